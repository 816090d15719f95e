"""Certified robustness by denoised smoothing."""

from .oneshot import OneShotClassifier, certified_radius, lower_bound, rate_at
from .posterior import PosteriorCertificates, PosteriorSmoothing
from .records import Record, read_records
from .run import CertifyConfig, certify_dataset
from .smoothing import Certificates, Smoothing

__all__ = [
    "Certificates",
    "CertifyConfig",
    "OneShotClassifier",
    "PosteriorCertificates",
    "PosteriorSmoothing",
    "Record",
    "Smoothing",
    "certified_radius",
    "certify_dataset",
    "lower_bound",
    "rate_at",
    "read_records",
]
