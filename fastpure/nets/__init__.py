"""Networks: DDPM++, ADM and EDM, autograd that keeps little when the weights are frozen, and ``Denoiser``."""

from .adm import ADM, ADMConfig
from .base import HoistedNetwork, Weights
from .conditioning import Conditioning
from .conversion import FLOWS, PREDICTIONS, SCHEDULES, TIME_INPUTS, FlowPath
from .ddpmpp import CONFIGS, DDPMpp, DDPMppConfig
from .denoiser import Denoiser
from .edm import EDM, EDMConfig
from .energy import EnergyConfig, EnergyNet, HillEnergyNet
from .narrow import runs_in_one_call
from .registry import ARCHITECTURES, NETWORKS, build, config_dict, named_config

__all__ = [
    "ADM",
    "ARCHITECTURES",
    "CONFIGS",
    "EDM",
    "FLOWS",
    "NETWORKS",
    "PREDICTIONS",
    "SCHEDULES",
    "TIME_INPUTS",
    "ADMConfig",
    "Conditioning",
    "DDPMpp",
    "DDPMppConfig",
    "Denoiser",
    "EDMConfig",
    "EnergyConfig",
    "EnergyNet",
    "FlowPath",
    "HillEnergyNet",
    "HoistedNetwork",
    "Weights",
    "build",
    "config_dict",
    "named_config",
    "runs_in_one_call",
]
