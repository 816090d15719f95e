"""Cheaper and calmer relatives of a defence, derived from it: what fools them usually fools the defence.

A purifier's mean gradient hardly depends on how finely its reverse process is solved or on its guidance, but the noise
of one draw's gradient does. One exponential step from the image itself costs a share of the defence's passes and has
next to no noise; how well it knows the mean gradient depends on the diffusion time that it starts from, and differs
between networks, so that the defence is asked which of several knows it best. One exponential step from the diffused
image has noise, though less than the defence's own, and for defences that diffuse next to no bias
(``python -m bench.attack_efficiency`` measures both); strong guidance makes it worth its noise against others, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods import Method, coup_unguided, diffpure
from ..purify import Target
from ..schedule.solvers import T_EPS
from .base import Problem
from .gradient import Logits, attack_logits, objective, query
from .ledger import total
from .losses import cross_entropy

STARTS = (1.0, 0.5, 4.0 / 3.0)
"""Where relatives begin, as shares of the time where the defence does. An image that was not diffused has less noise
than the network expects there; further in it is smoothed less, further out more, which ends in other optima."""


AS_WELL = 0.9
"""A relative knows the gradient as well as the best one that comes so near to it."""


@dataclass(frozen=True, eq=False)
class Relative:
    """Something to attack in place of a defence.

    Attributes:
        name: for people.
        target: what is attacked.
        cost: of one gradient of one draw, in gradients of the defence: the network passes of one by those of the other.
        draws: draws that a gradient of it is averaged over to begin with.
    """

    name: str
    target: Target
    cost: float
    draws: int = 1


def relatives(target: Target) -> tuple[Relative, ...]:
    """Those to search, one step each, which is next to no noise; the target itself where there is none.

    They do not diffuse the image and are not guided (Zhang et al., arXiv 2408.05900, without guidance, solved by
    ``schedule.exponential_sde``); see ``STARTS``.
    """
    start = _begin(target)
    found = (_straight(target, t, 1) for t in dict.fromkeys(min(share * start, 1.0) for share in STARTS))
    return tuple(one for one in found if one is not None) or (itself(target),)


def calmer(target: Target) -> Relative | None:
    """One step from the diffused image; None where nothing is random, one step is no fewer, or no network of its fits.

    Where the defence diffuses, its mean gradient is about the defence's, its noise less, at the cost of a step. Where
    it does not, a diffused image still is what the network knows best: `meet` asks whether that helps.
    """
    start = _begin(target)
    if not target.purifies or start <= T_EPS or not target.is_random:
        return None
    if target.method.steps.n_network_calls < 2:
        return None
    method = diffpure(start, start, clip_output=target.method.clip_output, solver="exponential")
    return _made(target, method, f"1 step after diffusion to t = {start:.3g}")


def sorter(target: Target) -> Relative:
    """Where candidates are sorted: cheaper than the defence where two steps are, and with noise as it has."""
    return _straight(target, _begin(target), 2) or itself(target)


def _begin(target: Target) -> float:
    """The diffusion time at which the reverse process begins; 0 where nothing purifies."""
    rows = target.method.steps.rows if target.purifies else ()
    return max((row.t for row in rows if row.calls_network), default=0.0)


def itself(target: Target) -> Relative:
    """The defence as a relative of its own."""
    return Relative("itself", target, 1.0, 4 if target.is_random else 1)


def _straight(target: Target, t: float, steps: int) -> Relative | None:
    if not target.purifies or t <= T_EPS or steps > target.method.steps.n_network_calls:
        return None
    method = coup_unguided(t, t / steps, clip_output=target.method.clip_output, solver="exponential")
    return _made(target, method, f"{steps} step{'s' if steps > 1 else ''} from t = {t:.3g}")


def _made(target: Target, method: Method, name: str) -> Relative | None:
    try:
        made = target.with_method(method)
    except ValueError:  # the denoiser was trained on another noise schedule than these steps walk
        return None
    return Relative(name, made, made.network_calls / target.network_calls)


def meet(
    problem: Problem,
    found: tuple[Relative, ...],
    calm: Relative | None,
    reference: tuple[Logits, float],
    guided: Logits | None,
    draws: tuple[int, int],
    batch_size: int,
    charge: Callable[[float], None],
) -> tuple[list[tuple[Relative, ...]], Relative | None]:
    """``found`` in groups, who knows the defence's gradient best first; and ``calm``, where it is worth its cost.

    The defence is asked at the images themselves, and what a relative answers is held against each of its draws, over
    all images, so that the noise of single draws averages out. Those that know it about as well as the best are one
    group; ``calm``, on as many draws as cost one of the defence, must come closer to its draws than they do to each
    other. Where guidance turns the gradient, relatives without guidance are searched for something that the defence is
    not: there it is enough to come closer than everybody in ``found``.

    Args:
        problem: the images.
        found: relatives with next to no noise.
        calm: one with noise, or None.
        reference: logits of the defence, without guidance where it has some, and what a gradient of them costs.
        guided: with guidance, differentiated as a constant, or None.
        draws: the number of the first draw, and on how many the defence is asked, at least two.
        batch_size: most (image, draw) pairs in one network call.
        charge: told what was asked, in gradients of the defence for each image.
    """
    first, n_draws = draws

    def directions(logits: Logits, asked: range, cost: float) -> Tensor:
        goal = objective(logits, cross_entropy)
        answer = query(goal, problem.x, problem.y, problem.ids, asked, batch_size)
        charge(cost * len(asked))
        flat = answer.gradient.flatten(1).double()
        return flat / flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)

    def near(one: Tensor, others: list[Tensor]) -> float:
        return sum(total((one * other).sum(1)) for other in others) / len(others)

    own = [directions(reference[0], range(first + k, first + k + 1), reference[1]) for k in range(n_draws)]
    known = [
        near(directions(attack_logits(one.target), range(first, first + one.draws), one.cost), own)
        for one in found
    ]
    order = sorted(range(len(found)), key=lambda i: -known[i])
    # Where even the best one is against the defence it is alone.
    best = [i for i in order if i == order[0] or known[i] >= AS_WELL * known[order[0]] > 0]
    groups = [tuple(found[i] for i in best), *((found[i],) for i in order if i not in best)]
    if calm is not None:
        # Other draws than the defence's own: with theirs it would begin at the very same diffused images.
        begin = first + n_draws
        asked = range(begin, begin + max(1, round(1.0 / calm.cost)))
        answer = near(directions(attack_logits(calm.target), asked, calm.cost), own)
        needed = near(own[0], own[1:])
        if guided is not None and max(known) < answer <= needed:
            # Under the first draw itself, so that nothing but the guidance makes a difference.
            turned = near(directions(guided, range(first, first + 1), 1.0), own[:1])
            needed = max(known) if turned < AS_WELL * len(problem.x) else needed
        calm = calm if answer > needed else None
    return groups, calm
