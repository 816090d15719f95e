"""Reading and writing denoisers and energies."""

from .energy import load_energy, save_energy
from .instances import from_unet2d
from .loading import FORMATS, load_denoiser
from .native import save_denoiser
from .report import CheckpointReport

__all__ = [
    "FORMATS",
    "CheckpointReport",
    "from_unet2d",
    "load_denoiser",
    "load_energy",
    "save_denoiser",
    "save_energy",
]
