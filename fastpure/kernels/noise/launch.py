"""Counter-based noise by the compiled extension, in host memory and on CUDA devices."""

from __future__ import annotations

from typing import Any

from ..extension import NOISE_CODES, STATE_CODES, call, layout_code


def normal(args: Any) -> None:
    """Write normals into ``out``; ``args`` as in the schema."""
    _fill(NOISE_CODES["normal"], args)


def uniform(args: Any) -> None:
    """Write uniforms into ``out``; ``args`` as in the schema."""
    _fill(NOISE_CODES["uniform"], args)


def _fill(kind: int, args: Any) -> None:
    out = args.out
    batch, channels, height, width = out.shape
    pixels, state = height * width, STATE_CODES[out.dtype]
    call("noise", out, args, kind, batch, channels, pixels, layout_code(out), state)
