"""Certified robustness by randomised smoothing of denoised images."""

from .base import COMBINE, DenoisedBase, SmoothedBase
from .bounds import certified_radius, lower_bound, percentile_ranks, rate_at
from .densepure import DensePureClassifier
from .diffsmooth import DiffSmoothClassifier
from .oneshot import OneShotClassifier
from .posterior import PosteriorCertificates, PosteriorSmoothing
from .records import PosteriorRecord, Record, read_records
from .run import CertifyConfig, certify_dataset, certify_posteriors
from .smoothing import Certificates, Smoothing

__all__ = [
    "BASES",
    "COMBINE",
    "Certificates",
    "CertifyConfig",
    "DenoisedBase",
    "DensePureClassifier",
    "DiffSmoothClassifier",
    "OneShotClassifier",
    "PosteriorCertificates",
    "PosteriorRecord",
    "PosteriorSmoothing",
    "Record",
    "SmoothedBase",
    "Smoothing",
    "certified_radius",
    "certify_dataset",
    "certify_posteriors",
    "lower_bound",
    "percentile_ranks",
    "rate_at",
    "read_records",
]

BASES: dict[str, type[DenoisedBase]] = {
    "oneshot": OneShotClassifier,
    "densepure": DensePureClassifier,
    "diffsmooth": DiffSmoothClassifier,
}
"""Base classifiers by name."""
