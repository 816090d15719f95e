"""Cheaper and calmer relatives of a defence, derived from it: what fools them usually fools the defence.

A purifier's mean gradient hardly depends on how finely its reverse process is solved or on its guidance, but the noise
of one draw's gradient does: on the bundled digits networks the gradient of one exponential step from the image itself
has a cosine of 0.87 to 0.97 with the mean over many draws of twelve Euler steps at attacked images (less at the
originals), costs a twelfth, and has next to no noise, where a draw's own gradient is more noise than signal
(``python -m bench.attack_efficiency`` measures it).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..methods import Method, coup_unguided
from ..purify import Target
from ..schedule.solvers import T_EPS

WIDER = 4.0 / 3.0
"""A relative that begins further out sees the image through a stronger denoiser, and ends in other optima."""


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

    They do not diffuse the image and are not guided, and begin where the defence's reverse process begins or further
    out (Zhang et al., arXiv 2408.05900, without guidance, solved by ``schedule.exponential_sde``).
    """
    start = _begin(target)
    found = (_straight(target, t, 1) for t in dict.fromkeys((start, min(WIDER * start, 1.0))))
    return tuple(one for one in found if one is not None) or (itself(target),)


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
    if not target.purifies or t <= T_EPS:
        return None
    own = target.classifier_calls
    if steps > target.network_calls - own:
        return None
    method: Method = coup_unguided(t, t / steps, clip_output=target.method.clip_output, solver="exponential")
    try:
        made = target.with_method(method)
    except ValueError:  # the denoiser was trained on another noise schedule than these steps walk
        return None
    name = f"{steps} step{'s' if steps > 1 else ''} from t = {t:.3g}"
    return Relative(name, made, (steps + own) / target.network_calls)
