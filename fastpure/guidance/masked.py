"""Heterogeneous noise (arXiv 2503.01407): what a classifier looks at keeps its state, the rest is diffused anew."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..classifiers.base import SWAPPING, call_frozen, require_eval
from ..errors import listed, mistake, one_of, positive
from .base import GRADS, VJP, Guidance, GuidanceStep

MASKS = ("hard", "soft")
"""1 where the attention reaches the threshold and 0 elsewhere, or a sigmoid of how far it is above it."""

USUAL = re.compile(r"(blocks?|layers?|stages?)\.?[0-9]+")
"""What classifiers call their blocks: fastpure's, torchvision's and RobustBench's among them."""


@dataclass(frozen=True)
class Heterogeneous(Guidance):
    """g(x) = (1 - M) (alpha x0 + sigma n - x), x0 the purifier's input and n fresh noise: x + g is the mixed state.

    M [B, 1, H, W] in [0, 1] is the largest of the masks that attention maps of ``blocks`` of the ``classifier`` give at
    x0. A map is the sum over channels of squared activations, brought to [0, 1] for each image and to the image's size
    (bilinear); its mask says where that reaches ``threshold``. ``blocks`` are names of modules between commas; ""
    stands for those called blocks.N, layerN and the like.

    ``mask`` "hard" is the published one. It is constant almost everywhere, so its derivative is zero and a part of the
    exact gradient all the same; "soft" is a sigmoid of slope ``sharpness``, whose derivative "exact" includes: through
    the classifier, which must be smooth for that to mean anything. ``grad`` "mask_constant" leaves that one out, as
    the authors do, "no_guide_path" x0 in the mixed state too, "detached" the whole of g.
    """

    classifier: nn.Module
    blocks: str = ""
    threshold: float = 0.5
    mask: str = "hard"
    sharpness: float = 20.0
    grad: str = "exact"

    def __post_init__(self) -> None:
        if not isinstance(self.classifier, nn.Module):
            expected = "an nn.Module mapping [0, 1] images to logits"
            raise TypeError(mistake("classifier", expected, type(self.classifier).__name__))
        if not isinstance(self.blocks, str):
            raise TypeError(mistake("blocks", "names of modules, as one text", type(self.blocks).__name__))
        positive("sharpness", self.sharpness)
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(mistake("threshold", "in [0, 1]", self.threshold))
        one_of("mask", self.mask, MASKS)
        one_of("guidance_grad", self.grad, (*GRADS, "mask_constant"))
        self.check()

    def context(self, x0: Tensor) -> tuple[Tensor, ...]:
        """(the input [B, C, H, W], M [B, 1, H, W]); M carries a gradient if soft and ``grad`` is "exact"."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._soft_exact):
            kept = self._mask(x0)
        return x0, kept

    @property
    def _soft_exact(self) -> bool:
        return self.mask == "soft" and self.grad == "exact"

    def gradient(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """See ``Guidance.gradient``."""
        return (1.0 - context[1]) * self._gap(x, context[0], step)

    def linearize(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> tuple[Tensor, VJP]:
        """See ``Guidance.linearize``: -(1 - M) by x, alpha (1 - M) by x0, minus the gap by M."""
        free, gap = 1.0 - context[1], self._gap(x, context[0], step)

        def vjp(v: Tensor) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
            if self.grad == "detached":
                return None, (None, None)
            through_input = None if self.grad == "no_guide_path" else step.alpha * free * v
            through_mask = -(gap * v).sum(1, keepdim=True) if self._soft_exact else None
            return -free * v, (through_input, through_mask)

        return free * gap, vjp

    def networks(self) -> tuple[nn.Module, ...]:
        """The classifier."""
        return (self.classifier,)

    def cast(self, dtype: torch.dtype) -> Heterogeneous:
        """A copy whose classifier computes in ``dtype``; self where it does already."""
        if all(p.dtype == dtype for p in self.classifier.parameters()):
            return self
        return replace(self, classifier=copy.deepcopy(self.classifier).to(dtype))

    def check(self) -> None:
        """Raise ValueError if the classifier is in training mode."""
        require_eval(self.classifier, "classifier")

    def check_images(self, image_shape: tuple[int, int, int]) -> None:
        """Raise ValueError if a block does not exist, is not called once per image or has no map to show."""
        like = next(iter(self.classifier.parameters()), torch.empty(0))
        with torch.no_grad():
            self._mask(torch.zeros((1, *image_shape), dtype=like.dtype, device=like.device))

    def _gap(self, x: Tensor, x0: Tensor, step: GuidanceStep) -> Tensor:
        return step.alpha * x0 + step.sigma * step.noise() - x

    def _mask(self, x0: Tensor) -> Tensor:
        masks = []
        for seen in self._activations(x0):
            attention = seen.to(x0.dtype).square().sum(1, keepdim=True)
            low, high = (getattr(attention.flatten(1), end)(1).view(-1, 1, 1, 1) for end in ("amin", "amax"))
            # A map without any contrast attends to nothing.
            attention = (attention - low) / (high - low).clamp_min(torch.finfo(x0.dtype).tiny)
            attention = F.interpolate(attention, x0.shape[2:], mode="bilinear", align_corners=False)
            over = attention - self.threshold
            hard = self.mask == "hard"
            masks.append((over >= 0).to(x0.dtype) if hard else torch.sigmoid(self.sharpness * over))
        return torch.stack(masks).amax(0)

    def _named(self) -> list[str]:
        known = [name for name, _ in self.classifier.named_modules() if name]
        if self.blocks:
            return [one_of("blocks", block.strip(), known) for block in self.blocks.split(",")]
        found = [name for name in known if USUAL.fullmatch(name)]
        if not found:
            remedy = f"Its modules are {listed(known)}"
            raise ValueError(mistake("blocks", "names of the classifier's modules", "none", remedy))
        return found

    def _activations(self, x0: Tensor) -> list[Tensor]:
        seen: dict[str, list[Tensor]] = {block: [] for block in self._named()}
        dtype = next((p.dtype for p in self.classifier.parameters()), x0.dtype)
        with SWAPPING:
            handles = []
            try:
                for block, answers in seen.items():
                    module = self.classifier.get_submodule(block)
                    handles.append(
                        module.register_forward_hook(lambda _, __, out, into=answers: into.append(out))
                    )
                call_frozen(self.classifier, ((x0 + 1.0) * 0.5).to(dtype))
            finally:
                for handle in handles:
                    handle.remove()
        for block, answers in seen.items():
            if len(answers) != 1 or not isinstance(answers[0], Tensor) or answers[0].dim() != 4:
                expected = f"modules called once that answer [B, C, h, w] ({block} does not)"
                raise ValueError(mistake("blocks", expected, f"{len(answers)} answers"))
        return [answers[0] for answers in seen.values()]
