"""Heterogeneous noise: what a classifier looks at is diffused further than the rest (arXiv 2503.01407)."""

from __future__ import annotations

import math

from torch import nn

from ..errors import mistake, whole
from ..guidance import Heterogeneous
from ..schedule import DiscreteVP, Row, StepTable, forward_diffusion, strided
from .base import Method, discrete_index, method, spaced_indices


@method(network="classifier", steps="n_steps")
def heterogeneous(
    classifier: nn.Module,
    t: float = 0.2,
    t_rest: float = 0.1,
    n_steps: int = 10,
    repeats: int = 2,
    blocks: str = "",
    threshold: float = 0.5,
    mask: str = "hard",
    sharpness: float = 20.0,
    eta: float = 0.0,
    clip_x0: bool = True,
    guidance_grad: str = "exact",
    clip_output: bool = True,
) -> Method:
    """Heterogeneous noise (arXiv 2503.01407): strong noise where the classifier looks, weak noise elsewhere.

    Diffuse to time ``t`` and come back with DDIM. After every step that ends at or above ``t_rest``, what lies outside
    a mask becomes the input, diffused to that step's level with fresh noise; then the step is noised again and
    repeated, ``repeats`` times in all (RePaint). The mask is made of the input by attention maps of the classifier's
    ``blocks``: see ``guidance.Heterogeneous``.

    The published mask is "hard", and its authors take it to be a constant; almost everywhere that loses nothing, since
    its derivative is zero. ``mask`` "soft" is ours: another defence, with a derivative by the mask that
    ``guidance_grad`` "exact" includes and "mask_constant" leaves out; "no_guide_path" leaves out the input in the mixed
    state as well, "detached" takes the change of the state to be a constant. Ours too, for want of a source: both
    times, the steps, ``repeats``, ``blocks`` and ``threshold``.
    """
    start, rest = discrete_index(t), discrete_index(t_rest, argument="t_rest")
    if rest >= start:
        raise ValueError(mistake("t_rest", f"below t = {t}", t_rest))
    guidance = Heterogeneous(classifier, blocks, threshold, mask, sharpness, guidance_grad)
    schedule, again = DiscreteVP(), whole("repeats", repeats, minimum=1)
    indices = spaced_indices(start, n_steps, "trailing")
    rows: list[Row] = []
    for row, after in zip(strided(indices, eta, clip_x0).rows, [*indices[1:], -1], strict=True):
        if after < rest:
            rows.append(row)
            continue
        now, then = schedule.alpha_bar(row.index), schedule.alpha_bar(after)
        mixed = Row(
            a=1.0, c=1.0, alpha=math.sqrt(then), sigma=math.sqrt(1.0 - then), t=(after + 1) / schedule.n
        )
        back = Row(a=math.sqrt(now / then), d=math.sqrt(1.0 - now / then), t=row.t)
        rows += [row, mixed, *[back, row, mixed] * (again - 1)]
    table = forward_diffusion(schedule.alpha_bar(start)) + StepTable(tuple(rows))
    return Method.of(table, guidance, clip_output)
