"""What names a realisation of noise: the seed, the sample, the draw and who is asking.

The step and the stream are arguments of the operations, because they change inside one purification; the keys
stay. Everything the kernels need lives in tensors on the device, so that a captured graph can replay new
draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from ..errors import mistake, whole
from ..shown import Fields

WORD_MAX = 2**32 - 1
SEED_MAX = 2**64 - 1
STEP_MAX = 2**16 - 1
BYTE_MAX = 2**8 - 1


class Stream(IntEnum):
    """What the noise of one step is used for. Streams never share a number."""

    FORWARD = 0
    REVERSE = 1
    GUIDANCE = 2
    ATTACK_START = 3
    CLASSIFIER = 4


class Domain(IntEnum):
    """Who draws. An attacker's gradients never see the noise that decides an evaluation, nor that a certificate."""

    DEFENSE = 0
    ATTACK = 1
    EVALUATION = 2
    TRAINING = 3
    CERTIFICATE = 4


@dataclass(frozen=True, eq=False, repr=False)
class NoiseKeys(Fields):
    """The keys of a batch; use :meth:`make`, which checks values and not only shapes.

    Attributes:
        seed: int64 [1], the bit pattern of a 64-bit unsigned integer.
        sample_ids: int64 [B], each in [0, 2**32 - 1]; names the image, not its place in the batch.
        draws: int64 [B], each in [0, 2**32 - 1]; numbers independent realisations for the same image.
        domain: a :class:`Domain` (any integer in [0, 255] is accepted).
    """

    seed: Tensor
    sample_ids: Tensor
    draws: Tensor
    domain: Domain | int = Domain.DEFENSE

    def __post_init__(self) -> None:
        whole("domain", self.domain, 0, BYTE_MAX)
        batch = tuple(self.sample_ids.shape)
        for name, tensor, shape in (
            ("seed", self.seed, (1,)),
            ("sample_ids", self.sample_ids, batch if len(batch) == 1 else None),
            ("draws", self.draws, batch),
        ):
            if tensor.dtype != torch.int64:
                raise TypeError(mistake(name, "an int64 tensor", f"a {tensor.dtype} tensor"))
            if shape is None or tuple(tensor.shape) != shape:
                expected = "[B]" if shape is None else str(list(shape))
                raise ValueError(mistake(name, f"of shape {expected}", f"{list(tensor.shape)}"))
            if tensor.device != self.sample_ids.device:
                raise ValueError(
                    mistake(name, f"on the device of `sample_ids` ({self.sample_ids.device})", tensor.device)
                )

    @staticmethod
    def make(
        seed: int,
        sample_ids: Tensor | Sequence[int] | Any,
        draw: int | Tensor | Sequence[int] = 0,
        domain: Domain | int = Domain.DEFENSE,
        device: torch.device | str | None = None,
    ) -> NoiseKeys:
        """Keys from plain numbers, checked.

        Args:
            seed: integer in [0, 2**64 - 1].
            sample_ids: B integers (tensor, array or sequence), each in [0, 2**32 - 1].
            draw: one integer for the whole batch, or B of them, each in [0, 2**32 - 1].
            domain: who draws.
            device: where the keys live; by default where ``sample_ids`` is, otherwise the CPU.

        Raises:
            TypeError, ValueError: naming ``seed``, ``sample_ids``, ``draw`` or ``domain``, with what came.
        """
        seed = whole("seed", seed, 0, SEED_MAX)
        signed = seed - 2**64 if seed >= 2**63 else seed
        if device is None:
            device = sample_ids.device if isinstance(sample_ids, Tensor) else torch.device("cpu")
        ids = _counter_words("sample_ids", sample_ids, device)
        if isinstance(draw, Tensor | list | tuple) or getattr(draw, "ndim", 0) > 0:
            draws = _counter_words("draw", draw, device)
            if draws.shape != ids.shape:
                expected = f"one integer or {ids.numel()} of them (one per sample id)"
                raise ValueError(mistake("draw", expected, f"{draws.numel()}"))
        else:
            draws = torch.full_like(ids, whole("draw", draw, 0, WORD_MAX))  # type: ignore[arg-type]
        return NoiseKeys(torch.tensor([signed], dtype=torch.int64, device=device), ids, draws, domain)

    def __len__(self) -> int:
        return self.sample_ids.shape[0]

    def __getitem__(self, index: slice | Tensor) -> NoiseKeys:
        """The keys of some samples of the batch (a slice or an index tensor)."""
        return NoiseKeys(self.seed, self.sample_ids[index], self.draws[index], self.domain)

    @property
    def device(self) -> torch.device:
        """Where the keys live."""
        return self.sample_ids.device

    def to(self, device: torch.device | str) -> NoiseKeys:
        """The same keys on another device."""
        return NoiseKeys(self.seed.to(device), self.sample_ids.to(device), self.draws.to(device), self.domain)


def check_keys(seed: Tensor, sample_ids: Tensor, draws: Tensor, batch: int, device: torch.device) -> None:
    """Raise unless the three key tensors are dense int64 of the right length on ``device``."""
    for name, tensor, length in (
        ("seed", seed, 1),
        ("sample_ids", sample_ids, batch),
        ("draws", draws, batch),
    ):
        if tensor.dtype != torch.int64 or tuple(tensor.shape) != (length,) or not tensor.is_contiguous():
            got = f"{tensor.dtype} {list(tensor.shape)}"
            raise ValueError(mistake(name, f"a dense int64 tensor of shape [{length}]", got))
        if tensor.device != device:
            raise ValueError(mistake(name, f"on the device of the state, {device}", tensor.device))


def _counter_words(name: str, values: Any, device: torch.device | str) -> Tensor:
    """A fresh int64 [B] tensor of unsigned 32-bit values on ``device``, or an error naming ``name``."""
    expected = f"integers in [0, {WORD_MAX}]"
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            mistake(name, f"a list of {expected}", f"{type(values).__name__} ({error})")
        ) from None
    if tensor.numel() == 0 and tensor.dim() == 1:
        return torch.empty(0, dtype=torch.int64, device=device)
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(mistake(name, expected, f"{tensor.dtype} values"))
    if tensor.dim() != 1:
        raise ValueError(mistake(name, "one-dimensional, [B]", f"shape {list(tensor.shape)}"))
    wide = tensor.to(torch.int64)
    outside = (wide < 0) | (wide > WORD_MAX)
    if bool(outside.any()):
        where = int(outside.nonzero()[0, 0])
        raise ValueError(mistake(name, expected, f"{int(wide[where])} at position {where}"))
    return wide.to(device=device, copy=True)
