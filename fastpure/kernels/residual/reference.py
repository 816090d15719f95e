"""The end of a residual block in plain torch: the definition the Triton kernel is tested against.

out = (a + b + bias) scale, half precision summed in float32. Transposed: both branches get scale times the
cotangent, which needs no kernel of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def residual_add(a: Tensor, b: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """See :func:`fastpure.kernels.residual_add`; differentiable by autograd."""
    wide = torch.promote_types(a.dtype, torch.float32)
    total = a.to(wide) + b.to(wide)
    if bias is not None:
        total = total + bias.to(wide)[:, None, None]
    return (total * scale).to(a.dtype).contiguous(memory_format=torch.channels_last)
