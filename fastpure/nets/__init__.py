"""Networks: DDPM++, autograd that keeps little when the weights are frozen, and the `Denoiser` interface."""

from .base import HoistedNetwork
from .clean_image import clean_image
from .conditioning import Conditioning
from .ddpmpp import DDPMpp
from .ddpmpp_config import CONFIGS, DDPMppConfig
from .denoiser import PREDICTIONS, TIME_INPUTS, Denoiser
from .registry import ARCHITECTURES, NETWORKS, build, config_dict, named_config

__all__ = [
    "ARCHITECTURES",
    "CONFIGS",
    "NETWORKS",
    "PREDICTIONS",
    "TIME_INPUTS",
    "Conditioning",
    "DDPMpp",
    "DDPMppConfig",
    "Denoiser",
    "HoistedNetwork",
    "build",
    "clean_image",
    "config_dict",
    "named_config",
]
