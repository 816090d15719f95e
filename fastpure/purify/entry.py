"""The one door: from a module to the ``Target`` that is attacked, evaluated or reported.

``door`` looks through wrappers, and asks the thing a few times on one image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..classifiers.normalised import warn_if_twice
from ..errors import mistake
from ..nets import Denoiser
from .defense import Defense
from .inputs import Asked
from .purifier import Purifier
from .target import Bare, Defended, Target


def look_through(defense: nn.Module | Target) -> Target:
    """``defense`` as a target, not asked anything yet; wrappers that only pass images on are taken off.

    Raises:
        TypeError: it is no module, or one that classifies nothing.
    """
    if isinstance(defense, Target):
        return defense
    if not isinstance(defense, nn.Module):
        raise TypeError(mistake("defense", "a Defense or an nn.Module", type(defense).__name__))
    if isinstance(defense, Purifier | Denoiser):
        purifier = "purifier" if isinstance(defense, Purifier) else "fp.Purifier(denoiser, method)"
        remedy = f"Put it before a classifier: fp.Defense({purifier}, classifier)"
        raise TypeError(mistake("defense", "a Defense or a classifier", type(defense).__name__, remedy))
    module = _unwrapped(defense)
    if isinstance(module, Defense):
        return Defended(module)
    warn_if_twice(module, "defense")
    return Bare(module)


def _unwrapped(module: nn.Module) -> nn.Module:
    """``module`` without wrappers around a purifier that change no number, or itself."""
    if not any(isinstance(part, Asked) for part in module.modules()):
        return module
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrapped(module.module)
    if isinstance(module, torch._dynamo.OptimizedModule):
        return _unwrapped(module._orig_mod)
    if type(module) is nn.Sequential and len(module) == 1:
        return _unwrapped(module[0])
    return module


def door(defense: nn.Module | Target, x: Tensor, ids: Tensor, n_labels: int = 0) -> Target:
    """``defense`` as a target that has been asked about the first of the images ``x`` [B, C, H, W].

    Args:
        defense: a ``Defense``, a module around one, or any module from [0, 1] images to logits.
        x: images in [0, 1], at least one, on the device of its networks.
        ids: their sample ids int64 [B].
        n_labels: one more than the largest label.

    Raises:
        TypeError: it is no module.
        NonFiniteError, ValueError: it does not return finite logits [B, classes] with enough classes, or is in training
            mode.
    """
    return look_through(defense).probed(x, ids, n_labels)
