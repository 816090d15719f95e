"""Configuration of the ADM U-Net: what determines its modules, their order, and the named sizes."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import mistake, one_of, positive, whole
from .ddpmpp_config import check_class

RESAMPLINGS = ("block", "conv", "padded_conv", "plain")
SINUSOIDS = ("cos_sin", "sin_cos")


@dataclass(frozen=True)
class ADMConfig:
    """Everything that determines an ADM network's parameters and arithmetic.

    ``widths[i]`` channels at level i, each level halving the resolution; ``n_blocks`` residual blocks per level
    on the way down, one more on the way up, each followed by attention at ``attn_resolutions`` (in pixels).

    Attributes:
        model_channels: width of the sinusoidal time embedding; a quarter of that of the embedding itself.
        head_channels: channels per attention head; None means ``heads`` heads of whatever width results.
        legacy_attention: q, k and v of a head stand together in ``qkv``; otherwise all q, then all k, all v.
        scale_shift: the embedding scales and shifts the second normalisation; otherwise it is added before.
        resample: "block" (inside a residual block, 2x2 mean or nearest), "conv" (stride-2 convolution, nearest
            and convolution), "padded_conv" (the same, padded at bottom and right only) or "plain" (neither).
        sinusoid: "cos_sin" with frequencies 10000^(-i/half), or "sin_cos" with 10000^(-i/(half - 1)).
        groups: groups of every normalisation; ``narrow_groups`` lowers them to C // 4 where that is less.
        learned_sigma: twice the channels come out, of which the second half is a variance.
        classes: number of classes of a class-conditional network, ``class_label`` the one it is told, None
            meaning no class embedding at all (which EDM's networks were trained with now and then).
        dropout: in training only.
    """

    image_size: int
    channels: int = 3
    model_channels: int = 128
    widths: tuple[int, ...] = (128, 256, 256, 256)
    n_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int | None = None
    heads: int = 1
    legacy_attention: bool = False
    scale_shift: bool = True
    resample: str = "block"
    sinusoid: str = "cos_sin"
    groups: int = 32
    narrow_groups: bool = False
    eps: float = 1e-5
    learned_sigma: bool = False
    classes: int | None = None
    class_label: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "n_blocks", "heads", "groups"):
            whole(name, getattr(self, name), minimum=1)
        if self.head_channels is not None:
            whole("head_channels", self.head_channels, minimum=1)
        for name in ("widths", "attn_resolutions"):
            object.__setattr__(self, name, tuple(whole(name, value, 1) for value in getattr(self, name)))
        one_of("resample", self.resample, RESAMPLINGS)
        one_of("sinusoid", self.sinusoid, SINUSOIDS)
        positive("eps", self.eps)
        for name in ("legacy_attention", "scale_shift", "narrow_groups", "learned_sigma"):
            one_of(name, getattr(self, name), (False, True))
        if whole("model_channels", self.model_channels, minimum=4) % 2:
            raise ValueError(mistake("model_channels", "even", repr(self.model_channels)))
        if not 0 <= self.dropout < 1:
            raise ValueError(mistake("dropout", "in [0, 1)", repr(self.dropout)))
        if not self.widths:
            raise ValueError(mistake("widths", "at least one level", "none"))
        if self.image_size % 2 ** (len(self.widths) - 1):
            halvings = len(self.widths) - 1
            raise ValueError(mistake("image_size", f"divisible by 2^{halvings}", repr(self.image_size)))
        check_class(self.classes, self.class_label)
        self._check_divisible()

    def _check_divisible(self) -> None:
        for stage in layout(self):
            for part in stage.parts:
                if part.kind == "block" and part.inputs % self.groups_of(part.inputs):
                    wanted = (
                        f"such that every channel count is divisible by {self.groups_of(part.inputs)} groups"
                    )
                    raise ValueError(mistake("widths", wanted, f"{self.widths} (C = {part.inputs})"))
                if part.kind == "attention" and part.inputs % self.heads_of(part.inputs):
                    wanted = f"a divisor of every channel count with attention, {part.inputs} among them"
                    name = "heads" if self.head_channels is None else "head_channels"
                    raise ValueError(mistake(name, wanted, getattr(self, name)))

    @property
    def time_input(self) -> str:
        """Labels are integers, as in the published training code."""
        return "index"

    def groups_of(self, channels: int) -> int:
        """Groups of a normalisation of so many channels."""
        return min(self.groups, channels // 4) if self.narrow_groups else self.groups

    def heads_of(self, channels: int) -> int:
        """Attention heads at so many channels."""
        if self.head_channels is None:
            return self.heads
        # Not a divisor: one head too many, so that the check above fails with the channel count.
        return -(-channels // self.head_channels)


@dataclass(frozen=True)
class Part:
    """One module of a stage: "conv", "block", "attention", "down" or "up"."""

    kind: str
    inputs: int
    outputs: int
    resample: str | None = None


@dataclass(frozen=True)
class Stage:
    """One entry of ``input_blocks``, ``output_blocks``, or the middle; whether its output is kept or one used."""

    name: str
    parts: tuple[Part, ...]
    push: bool = False
    pop: bool = False


def layout(config: ADMConfig) -> list[Stage]:
    """The network as the sequence of its stages, named as in guided-diffusion's state dicts."""
    levels = range(len(config.widths))
    attended = [config.image_size >> level in config.attn_resolutions for level in levels]
    width = config.widths[0]
    entries: list[tuple[Part, ...]] = [(Part("conv", config.channels, width),)]
    skips = [width]
    for level in levels:
        for _ in range(config.n_blocks):
            block = Part("block", width, config.widths[level])
            width = config.widths[level]
            attention = (Part("attention", width, width),) if attended[level] else ()
            entries.append((block, *attention))
            skips.append(width)
        if level != levels[-1]:
            entries.append((_resampler(config, width, "down"),))
            skips.append(width)
    stages = [Stage(f"input_blocks.{i}", parts, push=True) for i, parts in enumerate(entries)]
    block = Part("block", width, width)
    stages.append(Stage("middle_block", (block, Part("attention", width, width), block)))
    count = 0
    for level in reversed(levels):
        for index in range(config.n_blocks + 1):
            parts = [Part("block", width + skips.pop(), config.widths[level])]
            width = config.widths[level]
            if attended[level]:
                parts.append(Part("attention", width, width))
            if level and index == config.n_blocks:
                parts.append(_resampler(config, width, "up"))
            stages.append(Stage(f"output_blocks.{count}", tuple(parts), pop=True))
            count += 1
    return stages


def _resampler(config: ADMConfig, width: int, kind: str) -> Part:
    return Part("block" if config.resample == "block" else kind, width, width, resample=kind)


#: Official sizes.
CONFIGS: dict[str, ADMConfig] = {
    "adm-imagenet256": ADMConfig(
        image_size=256,
        model_channels=256,
        widths=(256, 256, 512, 512, 1024, 1024),
        n_blocks=2,
        attn_resolutions=(32, 16, 8),
        head_channels=64,
        legacy_attention=True,
        learned_sigma=True,
    ),
    "iddpm-cifar10": ADMConfig(
        image_size=32,
        model_channels=128,
        widths=(128, 256, 256, 256),
        n_blocks=3,
        attn_resolutions=(16, 8),
        heads=4,
        legacy_attention=True,
        resample="conv",
        learned_sigma=True,
        dropout=0.3,
    ),
}
