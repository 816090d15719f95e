"""Classifiers: the contract they keep, a small ResNet, and loading by name, path or module."""

from .base import call_frozen, require_eval
from .features import FeatureClassifier, FeatureHead
from .loading import load_classifier
from .native import ARCHITECTURES, read_classifier, save_classifier
from .resnet import CONFIGS, ResNet, ResNetConfig

__all__ = [
    "ARCHITECTURES",
    "CONFIGS",
    "FeatureClassifier",
    "FeatureHead",
    "ResNet",
    "ResNetConfig",
    "call_frozen",
    "load_classifier",
    "read_classifier",
    "require_eval",
    "save_classifier",
]
