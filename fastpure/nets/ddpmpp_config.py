"""Configuration of the DDPM++ network: what determines its modules, their order, and the named sizes."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import mistake, one_of, whole


@dataclass(frozen=True)
class DDPMppConfig:
    """Everything that determines a DDPM++ network's parameters and arithmetic.

    ``nf`` channels at full resolution, times ``ch_mult[i]`` at level i (each level halves the resolution);
    ``n_blocks`` residual blocks per level, attention behind those at ``attn_resolutions`` (in pixels);
    ``block`` "biggan" or "ddpm"; ``dropout`` acts in training only.
    """

    image_size: int
    channels: int = 3
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    n_blocks: int = 8
    attn_resolutions: tuple[int, ...] = (16,)
    block: str = "biggan"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "n_blocks"):
            whole(name, getattr(self, name), minimum=1)
        whole("nf", self.nf, minimum=4)
        for name in ("ch_mult", "attn_resolutions"):
            object.__setattr__(self, name, tuple(whole(name, value, 1) for value in getattr(self, name)))
        one_of("block", self.block, ("biggan", "ddpm"))
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


_NORMALISED = ("block", "attention", "norm")


@dataclass(frozen=True)
class Step:
    """One module of the network: its kind and channels, and whether it keeps its output or uses a kept one."""

    kind: str  # "conv", "block", "attention", "down", "up" or "norm"
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
    width = config.nf
    for level in levels:
        for _ in range(config.n_blocks):
            steps.append(Step("block", width, widths[level], push=not attended[level]))
            width = widths[level]
            if attended[level]:
                steps.append(Step("attention", width, width, push=True))
            skips.append(width)
        if level != levels[-1]:
            steps.append(Step(resampler or "down", width, width, resample="down", push=True))
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
