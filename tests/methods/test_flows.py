"""`flow`, `flowpure` and `consistency`: against closed forms on Gaussian data, and their loops written out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import fastpure as fp
from fastpure.methods import METHODS
from fastpure.nets import Denoiser
from fastpure.schedule import karras_grid
from tests.nets import gaussian
from tests.nets.gaussian import MEAN, STD, end_of_flow
from tests.reverse.toys import SHAPE, ToyNet, toy_classifier, toy_denoiser


def toy(prediction: str, **conventions) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser.from_module(ToyNet().double().eval(), prediction, image_shape=SHAPE, **conventions)


def flow_toy(data_at: int = 0, time_scale: float = 1000.0) -> Denoiser:
    return toy("flow", schedule="flow", data_at=data_at, time_scale=time_scale)


def flowpure_toy() -> Denoiser:
    return toy("flow", schedule="flowpure", data_at=1, time_scale=100.0)


def consistency_toy() -> Denoiser:
    return toy("consistency", time_input="sigma")


def told(denoiser: Denoiser, x: Tensor, label: float) -> Tensor:
    return denoiser.network(x, x.new_full((len(x),), label))


def written_flow(denoiser, u, noise, t, n, heun, data_at, time_scale):
    """x' = x + h dx/dtime in the network's own time, straight from its definition."""
    sign = -1.0 if data_at == 0 else 1.0

    def velocity(x, s):  # towards the image, per unit of time
        return sign * told(denoiser, x, time_scale * (s if data_at == 0 else 1 - s))

    x = (1 - t) * (2 * u - 1) + t * noise["forward"]
    for k in range(n):
        now, later = t * (n - k) / n, t * (n - k - 1) / n
        h, first = now - later, velocity(x, now)
        second = velocity(x + h * first, later) if heun and later > 0 else first
        x = x + h / 2 * (first + second)
    return (x + 1) / 2


def written_flowpure(denoiser, u, noise, sigma, start, n):
    x, t, h = 2 * u - 1, start, (1 - start) / n
    if sigma:
        x = x + (1 - start) * sigma * noise["forward"]
    for _ in range(n):
        x = x + h * told(denoiser, x, 100 * t)
        t += h
    return (x + 1) / 2


def written_consistency(denoiser, u, noise, sigma, n, sigma_min, rho, clip):
    levels = karras_grid(sigma, sigma_min, n + 1, rho)[:n].tolist()
    y = 2 * u - 1 + sigma * noise["forward"]
    for k, level in enumerate(levels):
        image = told(denoiser, y, level)
        image = image.clamp(-1, 1) if clip else image
        if k + 1 < n:
            y = image + (levels[k + 1] ** 2 - sigma_min**2) ** 0.5 * noise["steps"][k]
    return (image + 1) / 2


def flow_case(n, heun, data_at, time_scale):
    solver = "heun" if heun else "euler"
    return (
        flow_toy(data_at, time_scale),
        fp.methods.flow(t=0.4, n_steps=n, solver=solver, clip_output=False),
        lambda *given: written_flow(*given, 0.4, n, heun, data_at, time_scale),
    )


def flowpure_case(sigma, start, n):
    return (
        flowpure_toy(),
        fp.methods.flowpure(sigma, start, n, clip_output=False),
        lambda *given: written_flowpure(*given, sigma, start, n),
    )


def consistency_case(n, clip, sigma=0.7):
    return (
        consistency_toy(),
        fp.methods.consistency(sigma, n, 0.01, 5.0, clip_x0=clip, clip_output=False),
        lambda *given: written_consistency(*given, sigma, n, 0.01, 5.0, clip),
    )


CASES = {
    "flow": lambda: flow_case(4, False, 0, 1000.0),
    "flow, heun": lambda: flow_case(4, True, 0, 1000.0),
    "flow, data at 1": lambda: flow_case(3, True, 1, 100.0),
    "flowpure": lambda: flowpure_case(0.3, 0.2, 4),
    "flowpure without noise": lambda: flowpure_case(0.0, 0.0, 3),
    "consistency": lambda: consistency_case(1, True),
    "consistency, three steps": lambda: consistency_case(3, True),
    "consistency, not clipped": lambda: consistency_case(3, False),
}


def images(n: int, shape=SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def noise_for(method, n, shape=SHAPE):
    generator, table = torch.Generator().manual_seed(3), method.table()
    forward = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    steps = torch.randn(len(table), n, *shape, generator=generator, dtype=torch.float64)
    steps = steps[table.n_forward_rows :]
    return {"forward": forward if table.n_forward_rows else None, "steps": steps}


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("name", CASES)
def test_result_and_gradient_are_those_of_the_loop_written_out(name, memory):
    denoiser, method, written = CASES[name]()
    noise, v = noise_for(method, 3), images(3) - 0.5
    found = []
    for run in (
        lambda u: fp.Purifier(denoiser, method, precision="fp64", memory=memory)(
            u, noise=fp.RecordedNoise(**noise)
        ),
        lambda u: written(denoiser, u, noise),
    ):
        leaf = images(3).requires_grad_(True)
        out = run(leaf)
        found.append((out.detach(), torch.autograd.grad((out * v).sum(), leaf)[0]))
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-11


def test_clipping_happens_in_the_case_that_is_about_it():
    denoiser, method, written = CASES["consistency, three steps"]()
    other = CASES["consistency, not clipped"]()[2]
    noise = noise_for(method, 3)
    assert not torch.allclose(
        written(denoiser, images(3), noise), other(denoiser, images(3), noise), atol=1e-3
    )


def final_error(denoiser, method, alpha, sigma):
    """Distance to where the exact ODE leads from the diffused image."""
    u, noise = images(2, gaussian.SHAPE), noise_for(method, 2, gaussian.SHAPE)
    out = fp.Purifier(denoiser, method, precision="fp64")(u, noise=fp.RecordedNoise(**noise))
    start = alpha * (2 * u - 1) + sigma * noise["forward"]
    return float((2 * out - 1 - end_of_flow(start, alpha, sigma)).abs().max())


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("data_at", [0, 1])
def test_flow_converges_to_the_exact_transport(solver, order, data_at):
    denoiser = gaussian.flow_denoiser(data_at, 10.0)
    errors = [
        final_error(denoiser, fp.methods.flow(0.6, n, solver, clip_output=False), 0.4, 0.6)
        for n in (40, 80, 160)
    ]
    assert errors[-1] < (1e-2 if order == 1 else 2e-4)
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.1)


def test_flowpure_converges_to_the_exact_transport():
    size, start = 0.8, 0.25
    denoiser = gaussian.flowpure_denoiser(size)
    errors = [
        final_error(denoiser, fp.methods.flowpure(size, start, n, clip_output=False), 1.0, 0.75 * size)
        for n in (40, 80, 160)
    ]
    assert errors[-1] < 5e-3
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_one_consistency_step_is_the_whole_transport():
    """Exact in one call, up to the noise of size sigma_min that the data at the boundary have."""
    floor = 1e-4
    method = fp.methods.consistency(0.9, 1, floor, clip_x0=False, clip_output=False)
    assert method.table().n_network_calls == 1
    assert final_error(gaussian.consistency_denoiser(floor), method, 1.0, 0.9) < 1e-6


def test_many_consistency_steps_keep_the_law_of_the_data():
    generator = torch.Generator().manual_seed(4)
    x = MEAN + STD * torch.randn(400, *gaussian.SHAPE, generator=generator, dtype=torch.float64)
    u = (0.5 * x + 0.5).clamp(0, 1)
    method = fp.methods.consistency(2.0, 4, clip_x0=False, clip_output=False)
    out = 2 * fp.Purifier(gaussian.consistency_denoiser(0.002), method, precision="fp64")(u) - 1
    assert float(out.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(out.std()) == pytest.approx(STD, rel=0.03)


NETWORKS = {
    "vp": toy_denoiser,
    "sigma": lambda: toy("eps", time_input="sigma"),
    "flow": flow_toy,
    "flowpure": flowpure_toy,
    "consistency": consistency_toy,
}
FITS = {
    "diffpure": {"vp", "sigma", "flow"},
    "edm": {"vp", "sigma", "flow"},
    "one_shot": {"vp", "sigma", "flow"},
    "flow": {"sigma", "flow"},
    "flowpure": {"flowpure"},
    "consistency": {"consistency"},
}


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_that_do_not_fit_a_method_are_refused(name, kind):
    settings = {"t": 0.1, "dt": 0.05} if name == "diffpure" else {}
    method, denoiser = METHODS[name](**settings), NETWORKS[kind]()
    if kind in FITS[name]:
        fp.Purifier(denoiser, method)
    else:
        with pytest.raises(ValueError, match=rf"`denoiser` must be trained .* for {name}, got one trained"):
            fp.Purifier(denoiser, method)


def test_a_network_that_is_told_the_noise_level_flows_as_a_flow_network_does():
    """The same predicted noise, asked for in the other way, gives the same purification."""
    flow_net = gaussian.flow_denoiser()

    class Noise(torch.nn.Module):
        def forward(self, y, labels):
            return gaussian.noise_given(y, 1.0, labels.view(-1, 1, 1, 1).to(y.dtype))

    noise_net = Denoiser.from_module(Noise(), "eps", "sigma", gaussian.SHAPE).eval()
    u, method = images(2, gaussian.SHAPE), fp.methods.flow(0.5, 6, "heun")
    ours, theirs = (fp.Purifier(net, method, precision="fp64")(u) for net in (flow_net, noise_net))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fp.methods.flow(t=1.0), r"`t` must be a time in \(0, 1\)"),
        (lambda: fp.methods.flow(solver="rk4"), "`solver` must be one of 'euler', 'heun'"),
        (lambda: fp.methods.flow(n_steps=0), "`n_steps` must be"),
        (lambda: fp.methods.flowpure(start=1.0), r"`start` must be a time in \[0, 1\)"),
        (lambda: fp.methods.flowpure(sigma=-0.1), "`sigma` must be"),
        (lambda: fp.methods.consistency(sigma=200.0), "`sigma` must be at most"),
        (lambda: fp.methods.consistency(sigma_min=0.6), "`sigma_min` must be below sigma = 0.5"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["flow", "flowpure", "consistency"])
def test_attacks_take_them(name):
    denoiser = {"flow": flow_toy, "flowpure": flowpure_toy, "consistency": consistency_toy}[name]()
    method = METHODS[name](n_steps=2)
    defense = fp.Defense(
        fp.Purifier(denoiser.cast(torch.float32), method, seed=1), toy_classifier(torch.float32)
    )
    u = 0.25 + 0.5 * images(4).float()
    y = defense(u, draw=0).argmax(1)
    result = fp.attacks.PGD(norm="Linf", eps=0.1, n_iter=4, eot_iter=2)(defense, u, y)
    assert float((result.x_adv - u).abs().max()) <= 0.1 + 1e-6
    assert float(result.losses[-1].mean()) > float(result.losses[0].mean())
