"""What a denoiser looks like at a prompt and in a notebook."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import nn

from ..shown import Card, ShownModule, size


class Printed(ShownModule, nn.Module):
    """Shown by what ``describe`` says, and by the ``checkpoint`` that it was loaded from, if any."""

    checkpoint: Any = None

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What it is, in values that JSON can hold."""

    def _shown(self) -> Card:
        told = self.describe()
        schedule = "any" if told["time_input"] == "sigma" else told["schedule"]
        rows = [
            ("network", f"{told['network']}, {told['parameters']:,} parameters, {told['dtype']}"),
            ("predicts", f"{told['prediction']}, told {told['time_input']}, schedule {schedule}"),
        ]
        if "n_classes" in told:
            rows.append(("classes", str(told["n_classes"])))
        if self.checkpoint is not None:
            rows.append(("file", f"{self.checkpoint.path} ({self.checkpoint.format})"))
        config = (told["config"] or {}).items()
        more = (("config", ", ".join(f"{name}={value}" for name, value in config)),) if config else ()
        return Card(f"Denoiser of images {size(told['image_shape'])}", tuple(rows), more)
