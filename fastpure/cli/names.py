"""What there is by name, for the shell's completion, which waits for nothing to be loaded.

A test holds these against the registries that they are copied from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

METHODS = (
    "diffpure",
    "diffpure_ode",
    "coup",
    "coup_unguided",
    "ddpm",
    "ddim",
    "dpm_solver",
    "gdmp",
    "agdm",
    "adbm",
    "addt",
    "vp_sde",
    "edm",
    "gradual",
    "one_shot",
    "langevin",
    "likelihood_max",
    "adp",
    "flow",
    "flowpure",
    "consistency",
    "lorid",
    "mimic",
    "dps",
    "freqpure",
    "ebm_langevin",
    "heterogeneous",
)
ATTACKS = (
    "pgd",
    "apgd-ce",
    "apgd-dlr",
    "apgd-t",
    "fab",
    "square",
    "spsa",
    "rays",
    "autoattack",
    "adaptive",
    "diffattack",
    "diffhammer",
    "dw-pgd",
    "stadv",
    "diffpure-stadv",
    "low-frequency",
)
CONTROLS = ("salt_and_pepper", "gaussian")
DENOISERS = (
    "digits",
    "digits-addt",
    "digits-adbm",
    "cifar10-small",
    "cifar10-addt",
    "cifar10-adbm",
)
CLASSIFIERS = (
    "digits",
    "digits-aux",
    "cifar10-small",
    "cifar10-aux",
)
DATASETS = (
    "digits",
    "cifar10",
    "cifar100",
    "imagenet",
    "folder",
    "arrays",
)
PROTOCOLS = (
    "fresh",
    "any_of_n",
    "majority",
    "average",
    "dw_box",
    "legacy_autoattack",
)
PRESETS = (
    "coup-cifar10-linf",
    "coup-cifar10-linf-wrn70",
    "coup-cifar10-linf-wrn70-unguided",
    "coup-cifar10-linf-at",
    "coup-cifar10-l2-at",
    "coup-cifar10-l2-cross",
    "coup-cifar10-linf-cross",
    "coup-cifar10-l2",
    "coup-cifar100-lm",
    "coup-cifar100-lm-unguided",
    "diffpure-cifar10-linf",
    "diffpure-cifar10-linf-wrn70",
    "diffpure-cifar10-l2",
    "diffpure-cifar10-l2-wrn70",
    "diffpure-cifar10-stadv",
    "diffpure-imagenet-linf",
    "diffpure-imagenet-linf-wrn50",
    "diffpure-imagenet-linf-deit",
    "gdmp-cifar10-linf",
    "gdmp-imagenet-linf",
    "agdm-cifar10-linf",
    "agdm-cifar10-l2",
    "agdm-cifar100-linf",
    "agdm-cifar100-l2",
    "agdm-imagenet-linf",
    "agdm-imagenet-linf-respaced",
    "adbm-cifar10-linf",
    "adbm-cifar10-l2",
    "addt-cifar10-linf",
    "addt-vpsde-cifar10-linf",
    "addt-vpsde-dw-cifar10-linf",
    "lm-cifar10-linf",
    "gradual-cifar10-linf",
    "adp-cifar10-linf",
    "ebm-cifar10-linf",
    "mimic-cifar10-linf",
)
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
NORMS = ("Linf", "L2", "L1")


def among(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Completion: those of ``names`` that begin as typed."""
    known = list(names)

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete
