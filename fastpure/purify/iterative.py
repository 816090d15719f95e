"""Methods that optimise the image instead of reversing a diffusion: likelihood maximisation and ADP."""

from __future__ import annotations

from torch import nn

from ..errors import mistake, positive, whole
from ..guidance import ClassifierConfidence
from ..schedule import VP, Row, StepTable
from ..schedule.edm import level as noise_level
from .base import Method, number
from .procedures import AdaptiveScore, LikelihoodAscent


def likelihood_max(
    n_iter: int = 5,
    lr: float = 0.1,
    sigma: tuple[float, float] = (0.4, 0.6),
    classifier: nn.Module | None = None,
    confidence: float = 1.0,
    guidance_grad: str = "exact",
    clip_output: bool = True,
) -> Method:
    """Likelihood maximisation (Chen et al. 2023): ``n_iter`` Adam steps on the denoising loss at noise ``sigma``.

    loss = mean (D(x + sigma n; sigma) - x)^2 per image, sigma uniform in its range and n fresh at every step, ``lr`` in
    [-1, 1] units. An exact attack differentiates D twice and needs a denoiser for which that is defined. The
    published projection onto an L2 ball of radius 100 is never active and is left out.

    With a ``classifier`` the loss is lowered by ``confidence`` times the log-probability of the most probable class:
    COUP's CIFAR-100 experiment (Zhang et al., arXiv 2408.05900), whose constants are not published.
    """
    whole("n_iter", n_iter, minimum=1)
    positive("lr", lr)
    if not isinstance(sigma, tuple | list) or len(sigma) != 2:
        raise ValueError(mistake("sigma", "two noise levels (low, high)", repr(sigma)))
    low, high = (positive("sigma", value) for value in sigma)
    if low > high:
        raise ValueError(mistake("sigma", "(low, high) with low <= high", repr(sigma)))
    guidance, weight, note = None, 0.0, ""
    if classifier is not None:
        guidance, weight = (
            ClassifierConfidence(classifier, "step", guidance_grad),
            number("confidence", confidence),
        )
        note = "COUP's constants for this are not published"
    middle = 0.5 * (low + high)
    # Adam has no rows of its own; these say how many calls there are, at which level about, and that they draw noise.
    row = Row(a=1.0, b=-lr, d=middle, **noise_level(middle, VP()))  # type: ignore[arg-type]
    settings = (
        ("n_iter", n_iter),
        ("lr", lr),
        ("sigma", (low, high)),
        *((("confidence", confidence), ("guidance_grad", guidance_grad)) if guidance is not None else ()),
        ("clip_output", clip_output),
    )
    procedure = LikelihoodAscent(lr, low, high, weight)
    return Method(
        "likelihood_max",
        settings,
        StepTable((row,) * n_iter),
        guidance,
        clip_output,
        procedure,
        note=note,
    )


def adp(
    noise: float = 0.25,
    n_iter: int = 10,
    level: float | None = None,
    rate: float = 0.05,
    probe: float = 1e-3,
    bounds: tuple[float, float] = (1e-5, 1e-1),
    stop: float = 1e-3,
    clip_output: bool = True,
) -> Method:
    """Adaptive denoising purification (Yoon et al. 2021): noise, then score ascent with a step chosen per image.

    All in [0, 1] units: ``noise`` is added and the result clamped; each of at most ``n_iter`` steps is ``rate`` times
    the inverse curvature along the score, probed at distance ``probe``, held in ``bounds``; an image rests once its
    step is below ``stop``. ``level`` is the noise level of the score. The paper's network (NCSN-v2) is asked at a
    fixed label; for other denoisers the level is a choice, by default ``noise``. The paper averages 10 runs.
    """
    whole("n_iter", n_iter, minimum=1)
    level = positive("noise", noise) if level is None else positive("level", level)
    low, high = (positive("bounds", value) for value in bounds)
    if low > high:
        raise ValueError(mistake("bounds", "(low, high) with low <= high", repr(bounds)))
    procedure = AdaptiveScore(
        level, positive("rate", rate), positive("probe", probe), low, high, number("stop", stop)
    )
    # b is nominal: the step of an image whose curvature is that of the noise level itself.
    call = Row(a=1.0, b=-rate * level, **noise_level(2.0 * level, VP()))  # type: ignore[arg-type]
    table = StepTable((Row(a=1.0, d=2.0 * noise, forward=True), *(call,) * (2 * n_iter)))
    settings = (
        ("noise", noise),
        ("n_iter", n_iter),
        ("level", level),
        ("rate", rate),
        ("probe", probe),
        ("bounds", (low, high)),
        ("stop", stop),
        ("clip_output", clip_output),
    )
    return Method("adp", settings, table, None, clip_output, procedure)
