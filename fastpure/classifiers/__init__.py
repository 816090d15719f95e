"""Classifiers: the contract they keep, residual networks, and loading by name, path or module."""

from .base import ClassifierReport, call_frozen, report_of, require_eval
from .biased_wide_resnet import BIASED_WIDE_RESNETS, BiasedWideResNet, BiasedWideResNetConfig
from .cifar_resnet import CIFAR_RESNETS, CifarResNet, CifarResNetConfig
from .features import FeatureClassifier, FeatureHead
from .loading import is_foreign, load_classifier
from .native import ARCHITECTURES, read_classifier, save_classifier
from .normalised import NORMALISATIONS, Normalised
from .resized import Resized, resize
from .resnet import CONFIGS, ResNet, ResNetConfig
from .robustbench import load_robustbench
from .wide_resnet import WIDE_RESNETS, WideResNet, WideResNetConfig

__all__ = [
    "ARCHITECTURES",
    "BIASED_WIDE_RESNETS",
    "CIFAR_RESNETS",
    "CONFIGS",
    "NORMALISATIONS",
    "WIDE_RESNETS",
    "BiasedWideResNet",
    "BiasedWideResNetConfig",
    "CifarResNet",
    "CifarResNetConfig",
    "ClassifierReport",
    "FeatureClassifier",
    "FeatureHead",
    "Normalised",
    "ResNet",
    "ResNetConfig",
    "Resized",
    "WideResNet",
    "WideResNetConfig",
    "call_frozen",
    "is_foreign",
    "load_classifier",
    "load_robustbench",
    "read_classifier",
    "report_of",
    "require_eval",
    "resize",
    "save_classifier",
]
