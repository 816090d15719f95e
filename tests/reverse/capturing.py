"""A purifier with recorded steps beside the same one without, and what compares them."""

from __future__ import annotations

import torch

import fastpure as fp
from fastpure.methods import Method
from tests.reverse import test_adjoint
from tests.reverse.toys import SHAPE, toy_denoiser


def mixed(classifier):
    """Two rounds whose rows differ in nothing but clipping."""
    rounds = [fp.methods.ddim(t=0.2, n_steps=3, clip_x0=clip).table() for clip in (False, True)]
    return Method("mixed", (), rounds[0] + rounds[1], None, True)


METHODS = test_adjoint.METHODS | {"mixed_ddim": mixed}


def pair(method, device, denoiser=None, **choice):
    """The same purifier with graphs and without."""
    denoiser = (denoiser or toy_denoiser(torch.float32)).to(device)
    return tuple(
        fp.Purifier(denoiser, method, seed=7, backend=backend, **choice) for backend in ("graph", "eager")
    )


def images(n, device, seed=0):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed)).to(device)


def both(purifier, x, **choice):
    """Purified images and the gradient of a loss that is not linear in them."""
    leaf = x.clone().requires_grad_(True)
    out = purifier(leaf, **choice)
    return out.detach(), torch.autograd.grad((out * (out + 0.3)).sum(), leaf)[0]


def same(found, exact):
    return all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


def families(purifier):
    return list(purifier.executor._families.values())
