"""The option ``--device``."""

from __future__ import annotations


def checked_device(name: str) -> str:
    """``name`` if torch can compute there.

    Raises:
        ValueError: not a device, or one this torch cannot use.
    """
    import torch

    from ..errors import mistake

    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(mistake("device", "cpu, cuda or cuda:N", repr(name))) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(mistake("device", "cpu", repr(name), "This torch sees no CUDA device."))
    return name
