"""Reading and writing denoisers."""

from .loading import FORMATS, load_denoiser
from .native import save_denoiser
from .report import CheckpointReport

__all__ = ["FORMATS", "CheckpointReport", "load_denoiser", "save_denoiser"]
