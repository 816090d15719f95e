"""Measurements that explain a defence: how far it moves images, how it shrinks perturbations, how noisy its gradients.

>>> print(fp.diagnostics.distance_bound(purifier, x))
>>> print(fp.diagnostics.gradient_agreement(defense, x, y, draws=32))
"""

from .bound import Constants, DistanceBound, distance_bound
from .compression import Compression, compression
from .gradients import GradientAgreement, gradient_agreement
from .quality import ImageQuality, image_quality

__all__ = [
    "Compression",
    "Constants",
    "DistanceBound",
    "GradientAgreement",
    "ImageQuality",
    "compression",
    "distance_bound",
    "gradient_agreement",
    "image_quality",
]
