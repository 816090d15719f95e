"""The finished parts of a demo, kept beside its picture until that is drawn: killed, it continues with the next one."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from ..files import real, replacing

if TYPE_CHECKING:
    from torch import nn

    from ..attacks import AttackResult
    from ..data import Dataset

TENSORS = ("x_adv", "clean_correct", "robust_correct", "distance", "losses", "zero_gradients")
"""What is kept of a result beside its time and the attack's name; how it was executed is not shown."""


def identity(defense: nn.Module, data: Dataset, attack: Any) -> str:
    """SHA-256 of all that a result depends on: settings, weights, images, versions and the code itself."""
    import torch

    from ..evaluate.identity import canonical, code_sha256, describe_defense
    from ..purify.description import plain

    parts = {
        "defense": describe_defense(defense),
        "attack": plain(attack),
        "data": data.checksum,
        "ids": data.sample_ids.tolist(),
        "torch": str(torch.__version__),
        "code": code_sha256(),
    }
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


@final
class Parts:
    """A hidden folder beside the picture ``out`` with one file per finished result, named after its `identity`."""

    def __init__(self, out: Path) -> None:
        place = real(out)
        self.folder = place.with_name(f".{place.name}.parts")

    def read(self, key: str) -> AttackResult | None:
        """The result of that identity; None if it is not there or cannot be read, and must be computed."""
        import pickle

        import torch

        from ..attacks import AttackResult

        try:
            found = torch.load(self._file(key), map_location="cpu", weights_only=True)
            return AttackResult(**found)
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError):
            return None

    def write(self, key: str, result: AttackResult) -> None:
        """Keep a result."""
        import torch

        kept = (*TENSORS, "seconds", "attack")
        values = {field.name: getattr(result, field.name) for field in fields(result) if field.name in kept}
        with replacing(self._file(key)) as file:
            torch.save(values, file)

    def done(self) -> None:
        """The picture is drawn: forget them."""
        with suppress(OSError):
            shutil.rmtree(self.folder)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key[:32]}.pt"
