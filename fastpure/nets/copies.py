"""Frozen copies of networks that share what they can."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .narrow import Programs
from .packed import PackedMap, PackedWeight


def frozen_copy(network: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy without gradients for the weights, floating ones in ``dtype`` unless it is None.

    Tensors that have that dtype already are shared, and so are their packed forms.
    """
    shared: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        own = tensor.clone() if tensor.is_inference() else tensor.detach()
        own = own.to(dtype) if dtype is not None and own.is_floating_point() else own
        shared[id(tensor)] = (
            nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own
        )
    first = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
    if dtype in (None, first):  # the same weights may share their packed forms
        for module in network.modules():
            for part in vars(module).values():
                if isinstance(part, PackedWeight | PackedMap | Programs):
                    shared[id(part)] = part
    return copy.deepcopy(network, shared)
