"""What matplotlib draws for us: its non-interactive back end, and figures as PNG; nothing is shown on a screen."""

from __future__ import annotations

import io
from typing import Any


def pyplot() -> Any:
    """``matplotlib.pyplot`` without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def png(figure: Any, dpi: int = 110) -> bytes:
    """The figure as a PNG, and its end; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    finally:
        pyplot().close(figure)
    return buffer.getvalue()
