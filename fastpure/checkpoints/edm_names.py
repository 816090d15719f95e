"""EDM's names for our tensors: SongUNet is our DDPM++ (or NCSN++), DhariwalUNet our ADM.

EDM numbers nothing: its modules are named after resolution and role, in the same order in which ours run.
Attention belongs to the block before it, and the channels of ``qkv`` are [heads, C/heads, (q, k, v)].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import Tensor

from ..nets import ADM, EDM, ADMConfig, DDPMpp, DDPMppConfig
from .weights import Entry

_SONG = {
    "GroupNorm_0": "norm0",
    "Conv_0": "conv0",
    "Dense_0": "affine",
    "GroupNorm_1": "norm1",
    "Conv_1": "conv1",
    "Conv_2": "skip",
}
_DHARIWAL = {
    "in_layers.0": "norm0",
    "in_layers.2": "conv0",
    "emb_layers.1": "affine",
    "out_layers.0": "norm1",
    "out_layers.3": "conv1",
    "skip_connection": "skip",
}
Make = Callable[[Tensor], Tensor]


def edm_names(network: EDM) -> dict[str, Entry]:
    """Our name -> EDM's names and shapes, without the prefix ``model.``."""
    inner = network.network
    entries = _song(inner) if isinstance(inner, DDPMpp) else _dhariwal(cast(ADM, inner))
    expected = inner.state_dict()
    found = {}
    for ours, (theirs, shape, make) in entries:
        if ours in expected:
            found[f"network.{ours}"] = Entry({theirs: shape or tuple(expected[ours].shape)}, make)
    return found


def block_names(config: DDPMppConfig | ADMConfig, residual: bool) -> Iterator[str]:
    """EDM's names of convolution, blocks and residual inputs in the order in which they run."""
    levels = len(config.ch_mult) if isinstance(config, DDPMppConfig) else len(config.widths)
    sizes = [config.image_size >> level for level in range(levels)]
    for level, size in enumerate(sizes):
        prefix = f"enc.{size}x{size}"
        if level == 0:
            yield f"{prefix}_conv"
        else:
            yield f"{prefix}_down"
            if residual:
                yield f"{prefix}_aux_residual"
        yield from (f"{prefix}_block{index}" for index in range(config.n_blocks))
    for size in reversed(sizes):
        prefix = f"dec.{size}x{size}"
        yield from (f"{prefix}_in0", f"{prefix}_in1") if size == sizes[-1] else (f"{prefix}_up",)
        yield from (f"{prefix}_block{index}" for index in range(config.n_blocks + 1))


def _same(value: Tensor) -> Tensor:
    return value


_Row = tuple[str, tuple[str, tuple[int, ...] | None, Make]]


def _both(ours: str, theirs: str) -> list[_Row]:
    return [(f"{ours}.{kind}", (f"{theirs}.{kind}", None, _same)) for kind in ("weight", "bias")]


def _song(network: DDPMpp) -> Iterator[_Row]:
    config = network.config
    yield from _both("all_modules.0", "map_layer0") + _both("all_modules.1", "map_layer1")
    width = config.embedding_mult * config.nf
    yield "frequencies", ("map_noise.freqs", None, _same)
    if config.classes:
        gain = math.sqrt(config.classes)  # the one-hot label is multiplied by this before the layer
        yield "label_emb.weight", ("map_label.weight", (width, config.classes), lambda w: w.t() * gain)
    names = block_names(config, config.residual_input)
    last = f"dec.{config.image_size}x{config.image_size}_aux"
    name = ""
    for index, step in enumerate(network.steps, start=2):
        prefix = f"all_modules.{index}"
        if step.kind == "attention":
            yield from _song_attention(prefix, name, step.inputs)
        elif step.kind == "norm":
            yield from _both(prefix, f"{last}_norm")
        elif index == len(network.steps) + 1:
            yield from _both(prefix, f"{last}_conv")
        else:
            name = next(names)
            if step.kind == "block":
                for ours, theirs in _SONG.items():
                    yield from _both(f"{prefix}.{ours}", f"{name}.{theirs}")
            else:
                yield from _both(prefix if step.kind == "conv" else f"{prefix}.Conv_0", name)


def _song_attention(prefix: str, name: str, channels: int) -> Iterator[_Row]:
    """One head: every third channel of ``qkv`` is q, and our matrices are (in, out)."""
    yield from _both(f"{prefix}.GroupNorm_0", f"{name}.norm2")
    for part in range(3):
        ours = f"{prefix}.NIN_{part}"
        yield f"{ours}.W", (f"{name}.qkv.weight", (3 * channels, channels, 1, 1), _third(part, matrix=True))
        yield f"{ours}.b", (f"{name}.qkv.bias", (3 * channels,), _third(part, matrix=False))
    yield f"{prefix}.NIN_3.W", (f"{name}.proj.weight", (channels, channels, 1, 1), _transposed)
    yield f"{prefix}.NIN_3.b", (f"{name}.proj.bias", None, _same)


def _third(part: int, matrix: bool) -> Make:
    return lambda value: _transposed(value[part::3]) if matrix else value[part::3]


def _transposed(weight: Tensor) -> Tensor:
    return weight[:, :, 0, 0].t()


def _dhariwal(network: ADM) -> Iterator[_Row]:
    config = network.config
    width = 4 * config.model_channels
    yield from _both("time_embed.0", "map_layer0") + _both("time_embed.2", "map_layer1")
    if config.classes:
        yield "label_emb.weight", ("map_label.weight", (width, config.classes), lambda w: w.t())
    names = block_names(config, residual=False)
    name = ""
    for stage in network.stages:
        for index, part in enumerate(stage.parts):
            prefix = f"{stage.name}.{index}"
            if part.kind == "attention":
                heads = config.heads_of(part.inputs)
                yield from _dhariwal_attention(prefix, name, part.inputs, heads)
                continue
            name = next(names)
            if part.kind == "conv":
                yield from _both(prefix, name)
            else:
                for ours, theirs in _DHARIWAL.items():
                    yield from _both(f"{prefix}.{ours}", f"{name}.{theirs}")
    yield from _both("out.0", "out_norm") + _both("out.2", "out_conv")


def _dhariwal_attention(prefix: str, name: str, channels: int, heads: int) -> Iterator[_Row]:
    def ordered(value: Tensor) -> Tensor:
        """[heads, D, (q, k, v)] -> [(q, k, v), heads, D] along the first axis."""
        flat = value.reshape(heads, channels // heads, 3, -1).permute(2, 0, 1, 3)
        return flat.reshape(3 * channels, *value.shape[1:2], *((1,) if value.ndim > 1 else ()))

    yield from _both(f"{prefix}.norm", f"{name}.norm2")
    yield f"{prefix}.qkv.weight", (f"{name}.qkv.weight", (3 * channels, channels, 1, 1), ordered)
    yield f"{prefix}.qkv.bias", (f"{name}.qkv.bias", None, ordered)
    shape = (channels, channels, 1, 1)
    yield f"{prefix}.proj_out.weight", (f"{name}.proj.weight", shape, lambda value: value[..., 0])
    yield f"{prefix}.proj_out.bias", (f"{name}.proj.bias", None, _same)


def translate(network: Any) -> dict[str, Entry]:
    """`edm_names` for `fill`."""
    return edm_names(cast(EDM, network))
