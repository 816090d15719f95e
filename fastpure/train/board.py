"""TensorBoard beside ``metrics.csv``, for those who have it installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from ..errors import MissingExtra

__all__ = ["Board"]


@final
class Board:
    """Scalars of a run as TensorBoard events in ``FOLDER/tensorboard``.

    Args:
        folder: of the run.
        step: steps done so far; later ones of an earlier session are hidden.

    Raises:
        MissingExtra: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._writer = _writer_class()(str(folder / "tensorboard"), purge_step=step + 1)

    @staticmethod
    def check() -> None:
        """Raise `MissingExtra` unless TensorBoard is installed; nothing is written."""
        _writer_class()

    def row(self, step: int, loss: float, lr: float, held_out: float | None) -> None:
        """What a row of ``metrics.csv`` holds."""
        self._writer.add_scalar("loss/train", loss, step)
        self._writer.add_scalar("learning_rate", lr, step)
        if held_out is not None:
            self._writer.add_scalar("loss/held_out", held_out, step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard", "tensorboard", "--tensorboard") from error
    return SummaryWriter
