"""Configuration of the DDPM++ and NCSN++ networks: what determines its modules, their order, and the named sizes."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import mistake, one_of, whole


@dataclass(frozen=True)
class DDPMppConfig:
    """Everything that determines a DDPM++ or NCSN++ network's parameters and arithmetic.

    ``nf`` channels at full resolution, times ``ch_mult[i]`` at level i (each level halves the resolution);
    ``n_blocks`` residual blocks per level, attention behind those at ``attn_resolutions`` (in pixels);
    ``block`` "biggan" or "ddpm"; ``dropout`` acts in training only.

    The other fields are EDM's: ``embedding`` "positional" or "fourier" (random frequencies, of which the
    checkpoint has the values), ``embedding_mult`` times ``nf`` wide; ``fir`` resamples with the filter
    [1, 3, 3, 1] and ``residual_input`` feeds the image itself to every level (both are NCSN++'s); ``classes``
    and ``class_label`` as in `ADMConfig`.
    """

    image_size: int
    channels: int = 3
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    n_blocks: int = 8
    attn_resolutions: tuple[int, ...] = (16,)
    block: str = "biggan"
    dropout: float = 0.1
    embedding: str = "positional"
    embedding_mult: int = 1
    fir: bool = False
    residual_input: bool = False
    classes: int | None = None
    class_label: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "n_blocks", "embedding_mult"):
            whole(name, getattr(self, name), minimum=1)
        whole("nf", self.nf, minimum=4)
        for name in ("ch_mult", "attn_resolutions"):
            object.__setattr__(self, name, tuple(whole(name, value, 1) for value in getattr(self, name)))
        one_of("block", self.block, ("biggan", "ddpm"))
        one_of("embedding", self.embedding, ("positional", "fourier"))
        for name in ("fir", "residual_input"):
            one_of(name, getattr(self, name), (False, True))
        if (self.fir or self.residual_input) and self.block != "biggan":
            raise ValueError(
                mistake("block", "'biggan' where fir or residual_input is used", repr(self.block))
            )
        if self.residual_input and not self.fir:
            raise ValueError(mistake("fir", "True where residual_input is", "False"))
        check_class(self.classes, self.class_label)
        if not 0 <= self.dropout < 1:
            raise ValueError(mistake("dropout", "in [0, 1)", repr(self.dropout)))
        if not self.ch_mult:
            raise ValueError(mistake("ch_mult", "at least one multiplier", "none"))
        if self.image_size % 2 ** (len(self.ch_mult) - 1):
            halvings = len(self.ch_mult) - 1
            raise ValueError(mistake("image_size", f"divisible by 2^{halvings}", repr(self.image_size)))
        for channels in {step.inputs for step in layout(self) if step.kind in _NORMALISED}:
            if channels % min(channels // 4, 32):
                wanted = "such that every channel count is divisible by its number of groups, min(C // 4, 32)"
                raise ValueError(mistake("nf", wanted, f"{self.nf} (C = {channels})"))

    @property
    def time_input(self) -> str:
        """Labels are real numbers, 999 t."""
        return "continuous"

    @property
    def learned_sigma(self) -> bool:
        """Whether twice the channels come out: never."""
        return False


def check_class(classes: int | None, class_label: int | None) -> None:
    """Raise unless the label is one of so many classes, or None."""
    if classes is not None:
        whole("classes", classes, minimum=1)
    if class_label is not None:
        if classes is None:
            raise ValueError(mistake("class_label", "None for a network without classes", class_label))
        whole("class_label", class_label, 0, classes - 1)


_NORMALISED = ("block", "attention", "norm")


@dataclass(frozen=True)
class Step:
    """One module of the network: its kind and channels, and whether it keeps its output or uses a kept one."""

    kind: str  # "conv", "block", "attention", "down", "up", "residual" or "norm"
    inputs: int
    outputs: int
    resample: str | None = None
    push: bool = False
    pop: bool = False


def layout(config: DDPMppConfig) -> list[Step]:
    """The network as the sequence of its modules, ``all_modules.2`` first."""
    widths = [config.nf * multiplier for multiplier in config.ch_mult]
    levels = range(len(widths))
    attended = [config.image_size >> level in config.attn_resolutions for level in levels]
    resampler = {"biggan": "block", "ddpm": None}[config.block]
    steps = [Step("conv", config.channels, config.nf, push=True)]
    skips = [config.nf]
    width, image = config.nf, config.channels
    for level in levels:
        for _ in range(config.n_blocks):
            steps.append(Step("block", width, widths[level], push=not attended[level]))
            width = widths[level]
            if attended[level]:
                steps.append(Step("attention", width, width, push=True))
            skips.append(width)
        if level != levels[-1]:
            steps.append(
                Step(resampler or "down", width, width, resample="down", push=not config.residual_input)
            )
            if config.residual_input:
                steps.append(Step("residual", image, width, push=True))
                image = width
            skips.append(width)
    steps += [Step("block", width, width), Step("attention", width, width), Step("block", width, width)]
    for level in reversed(levels):
        for _ in range(config.n_blocks + 1):
            steps.append(Step("block", width + skips.pop(), widths[level], pop=True))
            width = widths[level]
        if attended[level]:
            steps.append(Step("attention", width, width))
        if level:
            steps.append(Step(resampler or "up", width, width, resample="up"))
    return [*steps, Step("norm", width, width), Step("conv", width, config.channels)]


#: Official sizes, and those of the bundled models.
CONFIGS: dict[str, DDPMppConfig] = {
    "ddpmpp-cifar10": DDPMppConfig(image_size=32),
    "ddpmpp-cifar10-small": DDPMppConfig(
        image_size=32, nf=32, ch_mult=(1, 2, 2), n_blocks=1, attn_resolutions=(8,), dropout=0.0
    ),
    "ddpmpp-digits": DDPMppConfig(
        image_size=8, channels=1, nf=16, ch_mult=(1, 2), n_blocks=1, attn_resolutions=(4,), dropout=0.1
    ),
}
