"""Networks: DDPM++, ADM and EDM, autograd that keeps little when the weights are frozen, and `Denoiser`."""

from .adm import ADM
from .adm_config import ADMConfig
from .base import HoistedNetwork
from .clean_image import clean_image
from .conditioning import Conditioning
from .ddpmpp import DDPMpp
from .ddpmpp_config import CONFIGS, DDPMppConfig
from .denoiser import PREDICTIONS, TIME_INPUTS, Denoiser
from .edm import EDM, EDMConfig
from .registry import ARCHITECTURES, NETWORKS, build, config_dict, named_config

__all__ = [
    "ADM",
    "ARCHITECTURES",
    "CONFIGS",
    "EDM",
    "NETWORKS",
    "PREDICTIONS",
    "TIME_INPUTS",
    "ADMConfig",
    "Conditioning",
    "DDPMpp",
    "DDPMppConfig",
    "Denoiser",
    "EDMConfig",
    "HoistedNetwork",
    "build",
    "clean_image",
    "config_dict",
    "named_config",
]
