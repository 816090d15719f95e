"""Every method written out as a plain differentiable loop, from the formulas and not from the tables.

Each takes networks ``eps(x, label)``, images ``u`` in [0, 1] and the noise arrays as ``RecordedNoise`` has them.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

BETAS = 1e-4 + np.arange(1000) * (2e-2 - 1e-4) / 999
ABAR = np.cumprod(1 - BETAS)


def beta(t: float) -> float:
    return 0.1 + 19.9 * t


def abar(t: float) -> float:
    return math.exp(-0.1 * t - 9.95 * t * t)


def diffuse(x: Tensor, power: float, noise: Tensor) -> Tensor:
    return math.sqrt(power) * x + math.sqrt(1 - power) * noise


def clean(eps, x: Tensor, power: float, label: float, clip: bool) -> Tensor:
    x0 = (x - math.sqrt(1 - power) * eps(x, label)) / math.sqrt(power)
    return x0.clamp(-1, 1) if clip else x0


def eta_step(eps, x: Tensor, now: float, after: float, label: float, eta: float, clip: bool, z) -> Tensor:
    """Song et al. 2021, eq. 12: predicted image, direction towards the state, noise."""
    x0 = clean(eps, x, now, label, clip)
    noise = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
    spread = eta * math.sqrt((1 - after) / (1 - now)) * math.sqrt(1 - now / after)
    x = math.sqrt(after) * x0 + math.sqrt(max(1 - after - spread**2, 0.0)) * noise
    return x + spread * z if spread else x


def slope_of(value: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(value, x, create_graph=True)[0]


def agdm(
    eps,
    network,
    u,
    noise,
    indices,
    scale: float,
    eta: float,
    sampler: str,
    label: str,
    features: str,
    latent: str = "penultimate",
    distance: str = "mse",
) -> Tensor:
    """``indices``: descending positions in the chain of 1000; samplers in continuous time need all of them."""

    def latents(v: Tensor) -> tuple[Tensor, Tensor]:
        found, logits = network.features_and_logits(v)
        return (logits if latent == "logits" else found), logits

    x_in = 2 * u - 1
    c_in, logits = latents(u)
    y = logits.argmax(1)
    x = diffuse(x_in, ABAR[indices[0]], noise["forward"])
    for k, i in enumerate(indices):
        t, j = (i + 1) / 1000, indices[k + 1] if k + 1 < len(indices) else -1
        level = ABAR[i] if sampler == "ddpm" else abar(t)
        if features == "noised":
            c_in, _ = latents((diffuse(x_in, level, noise["guidance"][k]) + 1) / 2)
        c, logits = latents((x + 1) / 2)
        target = y if label == "input" else logits.argmax(1)
        logp = logits.log_softmax(1)[torch.arange(len(u)), target].sum()
        if distance == "mse":
            apart = ((c - c_in) ** 2).mean(1).sum()
        else:
            p = c_in.softmax(1)
            apart = (p * (p.log() - c.softmax(1).log())).sum()
        g = slope_of(logp - eta * apart, x)
        z = noise["steps"][k]
        if sampler == "ddpm":
            after = ABAR[j] if j >= 0 else 1.0
            spread, rest = 1 - level / after, 1 - after
            variance = spread if j >= 0 else last_variance(indices)
            x0 = clean(eps, x, level, i, True)
            mean = (math.sqrt(after) * spread * x0 + math.sqrt(level / after) * rest * x) / (1 - level)
            x = mean + scale * variance * g + (math.sqrt(spread) * z if j >= 0 else 0.0)
        elif sampler == "exponential":
            s, sigma = ((i / 1000) if i else 1e-5), math.sqrt(1 - level)
            e = eps(x, 999 * t) - scale * sigma * g
            jump, left = 1 - level / abar(s), (1 - abar(s)) / sigma**2
            x0 = (x - sigma * e) / math.sqrt(level)
            x = math.sqrt(abar(s)) * jump / sigma**2 * x0 + math.sqrt(level / abar(s)) * left * x
            x = x + math.sqrt(left * jump) * z
        else:
            h = 1e-3 if i else 9.9e-4
            score = -eps(x, 999 * t) / math.sqrt(1 - level)
            x = x + h * (0.5 * beta(t) * x + beta(t) * (score + scale * g)) + math.sqrt(beta(t) * h) * z
    return (x + 1) / 2


def last_variance(indices) -> float:
    """Posterior variance of the step before the last, which the last has none of its own for."""
    i, j = indices[-2:]
    return (1 - ABAR[i] / ABAR[j]) * (1 - ABAR[j]) / (1 - ABAR[i])


def learned(answer, u, noise, indices, rounds: int, scales, gradient) -> Tensor:
    """DDPM whose network answers (noise, v): variance exp(s log beta + (1 - s) log posterior), s = (v + 1) / 2.

    ``gradient(x, x_in)`` moves the mean by ``scales[k]`` times the variance.
    """
    x = x_in = 2 * u - 1
    n = len(indices)
    for lap in range(rounds):
        x = diffuse(x, ABAR[indices[0]], noise["forward"] if rounds == 1 else noise["forward"][lap])
        for k, i in enumerate(indices):
            after = ABAR[indices[k + 1]] if k + 1 < n else 1.0
            spread = 1 - ABAR[i] / after
            least = spread * (1 - after) / (1 - ABAR[i]) if k + 1 < n else last_variance(indices)
            e, v = answer(x, i)
            share = (v + 1) / 2
            variance = torch.exp(share * math.log(spread) + (1 - share) * math.log(least))
            x0 = ((x - math.sqrt(1 - ABAR[i]) * e) / math.sqrt(ABAR[i])).clamp(-1, 1)
            mean = math.sqrt(after) * spread * x0 + math.sqrt(ABAR[i] / after) * (1 - after) * x
            x = mean / (1 - ABAR[i]) + scales[k] * variance * gradient(x, x_in)
            if k + 1 < n:
                x = x + variance.sqrt() * noise["steps"][lap * n + k]
    return (x + 1) / 2


def coup_exponential(eps, classifier, u, noise, times, scale: float, forward: float | None = None) -> Tensor:
    """The posterior of x_s given x_t and the guided prediction of the clean image, times[-1] = 1e-5."""
    x = 2 * u - 1 if forward is None else diffuse(2 * u - 1, forward, noise["forward"])
    for k, (t, s) in enumerate(pairwise(times)):
        sigma = math.sqrt(1 - abar(t))
        e = eps(x, 999 * t)
        if classifier is not None:
            logp = classifier((x + 1) / 2).log_softmax(1).amax(1).sum()
            e = e - scale * sigma * slope_of(logp, x)
        x0 = (x - sigma * e) / math.sqrt(abar(t))
        jump = 1 - abar(t) / abar(s)
        mean = (
            math.sqrt(abar(s)) * jump / sigma**2 * x0
            + math.sqrt(abar(t) / abar(s)) * (1 - abar(s)) / sigma**2 * x
        )
        x = mean + math.sqrt((1 - abar(s)) / sigma**2 * jump) * noise["steps"][k]
    return (x + 1) / 2


REVISED = np.cumprod(1 - np.linspace(1e-6, 2e-2, 1000))
"""Signal power of ADBM's own schedule."""


def adbm_ddpm(eps, u, noise, indices) -> Tensor:
    """Ancestral with the variance beta of each stride, on ADBM's schedule."""
    x = diffuse(2 * u - 1, REVISED[indices[0] + 1], noise["forward"])
    for k, i in enumerate(indices):
        after = REVISED[indices[k + 1]] if k + 1 < len(indices) else 1.0
        spread = 1 - REVISED[i] / after
        x0 = clean(eps, x, REVISED[i], i, True)
        x = math.sqrt(after) * spread * x0 + math.sqrt(REVISED[i] / after) * (1 - after) * x
        x = x / (1 - REVISED[i])
        x = x + math.sqrt(spread) * noise["steps"][k] if after < 1 else x
    return (x + 1) / 2


def adbm_dpm_solver(eps, u, noise, indices) -> Tensor:
    """Lu et al. 2022b, algorithm 2, in their symbols; the last step returns the predicted image."""
    x = diffuse(2 * u - 1, REVISED[indices[0] + 1], noise["forward"])
    alpha, sigma = (np.sqrt(REVISED[list(indices)]), np.sqrt(1 - REVISED[list(indices)]))
    lam, images = np.log(alpha / sigma), []
    for k, i in enumerate(indices):
        images.append(clean(eps, x, REVISED[i], i, True))
        if k + 1 == len(indices):
            return (images[-1] + 1) / 2
        h, d = lam[k + 1] - lam[k], images[-1]
        if k:
            r = (lam[k] - lam[k - 1]) / h
            d = (1 + 1 / (2 * r)) * images[-1] - 1 / (2 * r) * images[-2]
        x = float(sigma[k + 1] / sigma[k]) * x - float(alpha[k + 1] * math.expm1(-h)) * d
    raise AssertionError("no steps")


def adbm(eps, u, noise, first: int, n: int, classifier=None, scale: float = 0.0) -> Tensor:
    power = REVISED
    x = diffuse(2 * u - 1, power[first + 1], noise["forward"])
    stride = (first + 1) // n
    for i in range(first, -1, -stride):
        after = power[i - stride] if i >= stride else 1.0
        x, before = eta_step(eps, x, power[i], after, i, 0.0, True, None), x
        if classifier is not None:
            # The step's own coefficient of the predicted noise, which is -sigma times the score.
            share = math.sqrt(1 - after) - math.sqrt(after / power[i]) * math.sqrt(1 - power[i])
            logp = classifier((before + 1) / 2).log_softmax(1).amax(1).sum()
            x = x - share * math.sqrt(1 - power[i]) * scale * slope_of(logp, before)
    return (x + 1) / 2


def addt(eps, u, noise, indices, sampler: str) -> Tensor:
    x = diffuse(2 * u - 1, ABAR[indices[0]], noise["forward"])
    for k, i in enumerate(indices):
        after = ABAR[indices[k + 1]] if k + 1 < len(indices) else 1.0
        if sampler == "ddim":
            x = eta_step(eps, x, ABAR[i], after, i, 0.0, True, None)
            continue
        step = ABAR[i] / after
        x0 = clean(eps, x, ABAR[i], i, True)
        x = (math.sqrt(after) * (1 - step) * x0 + math.sqrt(step) * (1 - after) * x) / (1 - ABAR[i])
        x = x + math.sqrt(1 - step) * noise["steps"][k] if after < 1 else x
    return (x + 1) / 2


def vp_predictor(eps, u, noise, times, dt: float) -> Tensor:
    """Euler-Maruyama on the reverse SDE; of the last step the mean."""
    x = diffuse(2 * u - 1, abar(times[0]), noise["forward"])
    for t, z in zip(times, noise["steps"], strict=True):
        score = -eps(x, 999 * t) / math.sqrt(1 - abar(t))
        x = x + dt * (0.5 * beta(t) * x + beta(t) * score)
        x = x + math.sqrt(beta(t) * dt) * z if t != times[-1] else x
    return (x + 1) / 2


def vp_sde(eps, u, noise, times, dt: float, snr: float) -> Tensor:
    x, draws = diffuse(2 * u - 1, abar(times[0]), noise["forward"]), iter(noise["steps"])
    for t in times:
        std = math.sqrt(1 - abar(t))
        score, z = -eps(x, 999 * t) / std, next(draws)
        norms = [v.flatten(1).norm(dim=1)[:, None, None, None] for v in (z, score)]
        step = 2 * (1 - BETAS[math.floor(999 * t)]) * (snr * norms[0] / norms[1]) ** 2
        x = x + step * score + torch.sqrt(2 * step) * z
        score, z = -eps(x, 999 * t) / std, next(draws)
        x = x + dt * (0.5 * beta(t) * x + beta(t) * score)
        x = x + math.sqrt(beta(t) * dt) * z if t != times[-1] else x
    return (x + 1) / 2


def vp_time(sigma: float) -> float:
    """The t with (1 - abar) / abar = sigma^2, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - abar(middle)) / abar(middle) < sigma**2 else (low, middle)
    return (low + high) / 2


def denoised(eps, x: Tensor, sigma: float) -> Tensor:
    """D(x; sigma) of a network that knows the VP schedule."""
    return x - sigma * eps(x / math.sqrt(1 + sigma**2), 999 * vp_time(sigma))


def edm(
    eps, u, noise, top: float, bottom: float, n: int, churn: float, spread: float, heun: bool, denoise=None
) -> Tensor:
    """Algorithm 2 of Karras et al. 2022 in its own coordinates."""
    grid = [(top ** (1 / 7) + i / (n - 1) * (bottom ** (1 / 7) - top ** (1 / 7))) ** 7 for i in range(n)]
    x, draws = 2 * u - 1 + top * noise["forward"], iter(noise["steps"])
    denoise = denoise or (lambda x, sigma: denoised(eps, x, sigma))
    gamma = min(churn / n, math.sqrt(2) - 1)
    for i in range(n):
        now, after = grid[i], grid[i + 1] if i + 1 < n else 0.0
        raised = now * (1 + gamma)
        if gamma:
            x = x + math.sqrt(raised**2 - now**2) * spread * next(draws)
        d = (x - denoise(x, raised)) / raised
        euler = x + (after - raised) * d
        next(draws)
        if heun and after:
            d = (d + (euler - denoise(euler, after)) / after) / 2
            euler = x + (after - raised) * d
            next(draws)
        x = euler
    return (x + 1) / 2


def gradual(eps, u, noise, stages) -> Tensor:
    x, draws = 2 * u - 1, iter(noise["steps"])
    for stage, (m, n) in enumerate(stages):
        x = diffuse(x, ABAR[m], noise["forward"][stage])
        for i in range(m - 1, -1, -(m // n)):
            after = ABAR[i - m // n] if i >= m // n else 1.0
            x = eta_step(eps, x, ABAR[i], after, i, 1.0, False, next(draws))
    return (x + 1) / 2


def ddpm_mean(eps, x: Tensor, i: int, clip: bool = True) -> Tensor:
    before = ABAR[i - 1] if i else 1.0
    x0 = clean(eps, x, ABAR[i], i, clip)
    return (
        math.sqrt(before) * BETAS[i] / (1 - ABAR[i]) * x0
        + math.sqrt(1 - BETAS[i]) * (1 - before) / (1 - ABAR[i]) * x
    )


def posterior(i: int) -> float:
    return BETAS[i] * (1 - ABAR[i - 1]) / (1 - ABAR[i])


def lorid(eps, u, noise, start: int, rounds: int, ranks) -> Tensor:
    x, draws = torch.stack([tucker(image, ranks) for image in 2 * u - 1]), iter(noise["steps"])
    for turn in range(rounds):
        x = diffuse(x, ABAR[start], noise["forward"][turn])
        for i in range(start, -1, -1):
            z, mean = next(draws), ddpm_mean(eps, x, i)
            x = mean + math.sqrt(posterior(i)) * z if i else mean
    return (x + 1) / 2


def tucker(x: Tensor, ranks) -> Tensor:
    """Onto the leading left singular vectors of each unfolding; torch's own SVD and its derivative."""
    bases = [
        torch.linalg.svd(x.movedim(mode, 0).flatten(1), full_matrices=False)[0][:, :rank]
        for mode, rank in enumerate(ranks)
    ]
    core = torch.einsum("chw,ci,hj,wk->ijk", x, *bases)
    return torch.einsum("ijk,ci,hj,wk->chw", core, *bases)


def langevin(eps, u, noise, n: int) -> Tensor:
    x = x_in = 2 * u - 1
    for k in range(n):
        pull = -eps(x, 9.99) / math.sqrt(1 - abar(0.01)) + (x_in - x) / 1e-3
        x = x + 0.01 * 0.01 / 2 * pull + 5.0 * math.sqrt(0.01 * 0.01) * noise["steps"][k]
    return (x + 1) / 2


def likelihood_max(eps, u, noise, lr: float, low: float, high: float, classifier=None, weight=0.0) -> Tensor:
    """One image at a time, Adam as in its paper."""
    images = []
    for b in range(len(u)):
        x = 2 * u[b : b + 1] - 1
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        for k, (n, chance) in enumerate(zip(noise["steps"], noise["guidance"], strict=True)):
            draw = 0.5 * (1 + math.erf(float(chance[b, 0, 0, 0]) / math.sqrt(2)))
            sigma = low + (high - low) * draw
            loss = ((denoised(eps, x + sigma * n[b : b + 1], sigma) - x) ** 2).mean()
            if classifier is not None:
                loss = loss - weight * classifier((x + 1) / 2).log_softmax(1).max()
            g = slope_of(loss, x)
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            hats = first / (1 - 0.9 ** (k + 1)), second / (1 - 0.999 ** (k + 1))
            x = x - lr * hats[0] / (hats[1].sqrt() + 1e-8)
        images.append((x + 1) / 2)
    return torch.cat(images)


def adp(
    eps, u, noise, std: float, level: float, n: int, settings: dict, rest: str = "before"
) -> tuple[Tensor, list[int]]:
    """One image at a time, with a real ``break``; also how many steps each took."""
    images, counts = [], []
    label, shrink = 999 * vp_time(2 * level), 1 / math.sqrt(1 + 4 * level**2)

    def score(v: Tensor) -> Tensor:
        return -eps(shrink * (2 * v - 1), label) / level

    for b in range(len(u)):
        v, taken = (u[b : b + 1] + std * noise["forward"][b : b + 1]).clamp(0, 1), 0
        for _ in range(n):
            g = score(v)
            z = (g * score(v + settings["probe"] * g)).sum() / (g * g).sum()
            a = (settings["rate"] * settings["probe"] / (1 - z)).clamp(*settings["bounds"])
            if rest == "before" and a <= settings["stop"]:
                break
            v, taken = (v + a * g).clamp(0, 1), taken + 1
            if rest == "after" and a < settings["stop"]:
                break
        images.append(v)
        counts.append(taken)
    return torch.cat(images), counts
