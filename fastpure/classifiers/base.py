"""What a classifier must be: a module from images in [0, 1], ``[B, C, H, W]``, to logits ``[B, classes]``.

The network normalises inside itself if it wants to; nobody outside shifts or scales its input.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import asdict, dataclass
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import mistake
from ..nets.constant_weights import ConstantWeights
from ..shown import Card, Shown

SWAPPING = threading.RLock()
"""Held while a module of the caller's is called in a state that other threads must not see."""


def call_frozen(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` with the parameters as constants: gradients reach ``x``, never ``.grad`` of a weight.

    A module whose parameters require no gradient is called as it is. Otherwise it is called on detached
    views of its parameters (no copy); its ``requires_grad`` flags and ``.grad`` fields stay as they were.
    Differentiable as often as the module is; convolutions and batch normalisations keep and compute only what
    derivatives with respect to the image need (`ConstantWeights`).
    Threads that call modules whose weights require gradients take turns.

    Args:
        x: images ``[B, C, H, W]`` in [0, 1].

    Raises:
        TypeError: a TorchScript module whose parameters require gradients (freeze them first).
    """
    with ConstantWeights():
        return call_constant(module, x)


def call_constant(module: nn.Module, x: Tensor) -> Tensor:
    """As ``call_frozen``, with every operation left as the module has it."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if not any(tensor.requires_grad or tensor.is_inference() for tensor in tensors.values()):
        return module(x)
    if isinstance(module, torch.jit.ScriptModule):
        trainable = sum(tensor.requires_grad for tensor in tensors.values())
        raise TypeError(
            mistake(
                "module",
                "frozen if it is TorchScript",
                f"{trainable} parameters that require gradients",
                "Call module.requires_grad_(False) first.",
            )
        )
    # No gradient passes through tensors made under inference mode, but through copies of them.
    constants = {
        name: tensor.clone() if tensor.is_inference() else tensor.detach()
        for name, tensor in tensors.items()
        if tensor.requires_grad or tensor.is_inference()
    }
    with SWAPPING:  # for the time of the call the module itself has these tensors
        return torch.func.functional_call(module, constants, (x,))


def require_eval(module: nn.Module, argument: str) -> nn.Module:
    """Return ``module`` if it and all modules inside are in evaluation mode.

    In training mode BatchNorm mixes the images of a batch and changes its own statistics, and Dropout
    draws from a global generator: no result would be reproducible.

    Raises:
        TypeError: ``module`` is not an ``nn.Module``.
        ValueError: it, or a module inside, is in training mode; the message names ``argument`` and
            the culprits.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(mistake(argument, "a torch.nn.Module", type(module).__name__))
    culprits = [
        f"{name or 'the module itself'} ({type(part).__name__})"
        for name, part in module.named_modules()
        if part.training
    ]
    if not culprits:
        return module
    shown = ", ".join(culprits[:3]) + (f" and {len(culprits) - 3} more" if len(culprits) > 3 else "")
    raise ValueError(
        mistake(argument, "in evaluation mode", f"training mode in {shown}", f"Call {argument}.eval() first.")
    )


def not_probabilities(answers: Tensor, argument: str) -> Tensor:
    """Return ``answers`` [B, classes]; warn (UserWarning) if they seem to be probabilities instead of logits.

    Losses take the softmax of answers: of numbers between 0 and 1 it is nearly the same for every class, and its
    gradient small. Answers of 0 and 1 alone are decisions, for which attacks without gradients ask.
    """
    p = answers.detach().float()  # not every device has float64
    shares = p.shape[1] > 1 and bool(((p >= 0) & (p <= 1)).all()) and bool(((p > 0) & (p < 1)).any())
    if shares and bool(((p.sum(1) - 1).abs() < 1e-3).all()):
        warnings.warn(
            f"`{argument}` seems to answer with probabilities (none below 0, sum 1), where logits are expected: losses "
            "take their softmax once more, which weakens attacks. Leave out the softmax, or return its logarithm",
            UserWarning,
            stacklevel=2,
        )
    return answers


@final
@dataclass(frozen=True, repr=False)
class ClassifierReport(Shown):
    """Where a classifier's weights come from and what they are.

    Attributes:
        path: the file.
        format: the layout that it was recognised as, or the library that built the network.
        architecture: the network's class.
        normalisation: what is done to images in [0, 1] before the first layer, and where that is known from.
        weights: which were taken where the file has averaged and raw ones.
        dropped: what the file holds and the classifier does not use.
        notes: what was assumed because the file does not say it.
        config: the network's configuration as plain values, empty for other libraries' networks.
    """

    path: str
    format: str
    architecture: str
    normalisation: str
    weights: str
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    config: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """Everything in values that JSON can hold."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def _shown(self) -> Card:
        rows = [("file", self.path), ("format", self.format), ("normalisation", self.normalisation)]
        rows += [("weights", self.weights), *(("note", note) for note in self.notes)]
        more = [("dropped", text) for text in self.dropped]
        more += [("config", ", ".join(f"{name}={value}" for name, value in self.config.items()))]
        return Card(f"ClassifierReport: {self.architecture}", tuple(rows), tuple(more))

    def __str__(self) -> str:
        lines = []
        for name, value in self.describe().items():
            if isinstance(value, dict):
                value = ", ".join(f"{key}={item}" for key, item in value.items())
            elif isinstance(value, list):
                value = "; ".join(value)
            lines.append(f"{name:<14} {value or 'none'}")
        return "\n".join(lines)


#: Beside the modules, not on them: where a file lies is no part of what a classifier computes.
_REPORTS: WeakKeyDictionary[nn.Module, ClassifierReport] = WeakKeyDictionary()


def report_of(classifier: nn.Module) -> ClassifierReport | None:
    """What is known of the file that ``load_classifier`` read this very module from; None for any other."""
    return _REPORTS.get(classifier)


def keep(classifier: nn.Module, report: ClassifierReport) -> nn.Module:
    """``classifier``, which ``report_of`` knows from now on."""
    _REPORTS[classifier] = report
    return classifier
