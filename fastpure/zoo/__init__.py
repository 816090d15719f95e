"""Bundled weights. Where they come from stands in this folder's README.md."""

from __future__ import annotations

from pathlib import Path

from ..errors import one_of

__all__ = ["CLASSIFIERS", "DENOISERS", "ENERGIES", "weights_path"]

DENOISERS: dict[str, str] = {
    "digits": "digits_denoiser.safetensors",
    "digits-addt": "digits_addt_denoiser.safetensors",
    "digits-adbm": "digits_adbm_denoiser.safetensors",
    "cifar10-small": "cifar10_denoiser.safetensors",
    "cifar10-addt": "cifar10_addt_denoiser.safetensors",
    "cifar10-adbm": "cifar10_adbm_denoiser.safetensors",
}
CLASSIFIERS: dict[str, str] = {
    "digits": "digits_classifier.safetensors",
    "digits-aux": "digits_aux_classifier.safetensors",
    "cifar10-small": "cifar10_classifier.safetensors",
    "cifar10-aux": "cifar10_aux_classifier.safetensors",
}
ENERGIES: dict[str, str] = {
    "digits": "digits_energy.safetensors",
}
_KINDS = {"denoiser": DENOISERS, "classifier": CLASSIFIERS, "energy": ENERGIES}


def weights_path(kind: str, name: str) -> Path:
    """File of the bundled ``kind`` (``"denoiser"``, ``"classifier"`` or ``"energy"``) called ``name``.

    Raises:
        ValueError: nothing of that kind or name is bundled; the message lists what is.
    """
    one_of("kind", kind, _KINDS)
    one_of("name", name, _KINDS[kind])
    return Path(__file__).parent / _KINDS[kind][name]
