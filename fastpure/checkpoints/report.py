"""What was loaded: `CheckpointReport`, and what a format's reader hands over before any weight is copied."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError
from ..nets.registry import Config
from ..shown import Card, Shown, size
from .weights import Translation, same_names


@dataclass(frozen=True, eq=False)
class Plan:
    """A checkpoint understood, not loaded: the network it is for, and where each weight comes from.

    ``time_input`` None means the one that the configuration implies; ``dropped`` names what the file holds and
    the network does not use, with the reason; ``ema`` says which of averaged and raw weights are taken;
    ``network`` the network on the meta device, where it has been built already.
    """

    architecture: str
    config: Config
    tensors: dict[str, Tensor]
    translate: Translation = same_names
    prediction: str = "eps"
    time_input: str | None = None
    learned_sigma: bool | None = None
    image_shape: tuple[int, int, int] | None = None
    schedule: str = "linear"
    data_at: int | None = None
    time_scale: float | None = None
    dropped: tuple[str, ...] = ()
    ema: str = "as in the file"
    notes: tuple[str, ...] = ()
    t_max: float | None = None
    network: nn.Module | None = None


@dataclass(frozen=True, repr=False)
class CheckpointReport(Shown):
    """Where a denoiser's weights come from and what they are. ``denoiser.checkpoint`` of a loaded denoiser.

    Attributes:
        path: the file (the weights file, where a folder was given).
        format: a name of `FORMATS`.
        architecture: a name of `fastpure.nets.ARCHITECTURES`.
        config: its configuration as plain values.
        parameters: number of trainable numbers.
        ema: which weights were taken where the file has averaged and raw ones.
        dropped: what the file holds and the denoiser does not use, with the reason.
        notes: what was assumed because the file does not say it.
        prediction, time_input, schedule, image_shape, learned_sigma: as for `Denoiser`.
        bytes: size of the file.
        t_max: latest diffusion time that the network was trained at; None where the file does not say.
    """

    path: Path
    format: str
    architecture: str
    config: dict[str, Any]
    parameters: int
    ema: str
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    prediction: str
    time_input: str
    schedule: str
    image_shape: tuple[int, int, int]
    learned_sigma: bool
    bytes: int
    modified_ns: int = field(repr=False)
    t_max: float | None = None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file in hexadecimal; computed when first asked for, as it takes longer than loading.

        Raises:
            CheckpointError: the file is gone or has changed since it was loaded.
        """
        try:
            now = self.path.stat()
            if (now.st_size, now.st_mtime_ns) != (self.bytes, self.modified_ns):
                raise CheckpointError(f"{self.path}: the file has changed since it was loaded")
            digest = hashlib.sha256()
            with self.path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read any more: {error}") from error
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Everything, SHA-256 included, in values that JSON can hold."""
        return {
            "path": str(self.path),
            "format": self.format,
            "architecture": self.architecture,
            "parameters": self.parameters,
            "image_shape": list(self.image_shape),
            "prediction": self.prediction,
            "time_input": self.time_input,
            "schedule": self.schedule if self.time_input != "sigma" else "any",
            "learned_sigma": self.learned_sigma,
            "weights": self.ema,
            "dropped": list(self.dropped),
            "notes": list(self.notes),
            "bytes": self.bytes,
            "sha256": self.sha256,
            "config": self.config,
        }

    def _shown(self) -> Card:
        # Without the checksum, which takes longer than loading.
        rows = [
            ("file", f"{self.path} ({self.bytes:,} bytes)"),
            ("format", self.format),
            ("parameters", f"{self.parameters:,}"),
            ("images", size(self.image_shape)),
            ("predicts", f"{self.prediction}, told {self.time_input}, schedule {self.schedule}"),
            ("weights", self.ema),
        ]
        more = [("dropped", text) for text in self.dropped]
        more += [("config", ", ".join(f"{name}={value}" for name, value in self.config.items()))]
        return Card(
            f"CheckpointReport: {self.architecture} from {self.path.name}",
            (*rows, *(("note", note) for note in self.notes)),
            tuple(more),
        )

    def __str__(self) -> str:
        lines = []
        for name, value in self.describe().items():
            if isinstance(value, dict):
                value = ", ".join(f"{key}={item}" for key, item in value.items())
            elif name == "image_shape":
                value = "x".join(map(str, value))
            elif isinstance(value, list):
                value = "; ".join(value) or "none"
            elif name in ("parameters", "bytes"):
                value = f"{value:,}"
            lines.append(f"{name:<14} {value}")
        return "\n".join(lines)
