"""Reading and writing denoisers."""

from .loading import FORMATS, load_denoiser
from .native import save_denoiser

__all__ = ["FORMATS", "load_denoiser", "save_denoiser"]
