"""``Denoiser``: one interface to every network. Its answer is always the predicted noise.

State x = alpha x0 + sigma noise. A network predicts the noise itself ("eps"), the clean image ("x0"), the
velocity v = alpha noise - sigma x0 ("v"; Salimans and Ho, "Progressive Distillation", 2022), that of a straight
path ("flow"), or the image at the end of the probability flow ("consistency"; Song et al., "Consistency Models",
2023); ``conversion`` has the formulas. It is told the time as a real number ("continuous"), an integer ("index"), or as
the noise level of an unscaled state ("sigma": the network gets x / alpha and sigma / alpha; Karras et al.,
"Elucidating the Design Space", 2022).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import mistake, one_of, whole
from ..readers import READERS
from . import conversion
from .base import LARGEST, HoistedNetwork, checked_shape, is_hooked, same_layout
from .classes import OneClass, checked_classes
from .compiled import CompiledCall
from .conditioning import Conditioning, labels_at, usable_steps
from .constant_weights import ConstantWeights
from .copies import frozen_copy
from .edm import EDM
from .foreign import is_unet2d, refuse_scheduler
from .printed import Printed
from .products import widens
from .registry import ARCHITECTURES, build, classes_of, config_dict, named_config, with_class

_KNOWN = tuple(kind for _, kind in ARCHITECTURES.values())


class Denoiser(Printed):
    """A diffusion network and its conventions. Made by ``from_module``, ``from_config`` or ``load_denoiser``.

    Attributes:
        network: the wrapped module.
        prediction: what it predicts, one of ``PREDICTIONS``.
        time_input: how it is told the time, one of ``TIME_INPUTS``.
        image_shape: (C, H, W).
        learned_sigma: whether it returns 2 C channels, the last C a variance for ``noise_and_variance`` only.
        schedule: what its steps and times mean, one of ``SCHEDULES``; without meaning for "sigma" labels.
        path: how a flow network counts time, None for another one.
        n_classes: 0, or how many classes there are of which every call must name one per image (``classes``).
        null_class: whether a call may also name none (class -1, or ``classes`` left out): it was trained that way.
        checkpoint: the report on the file it was loaded from (``fastpure.checkpoints.CheckpointReport``), or None.
        deployed: whether it is the copy that a purifier computes with.
    """

    checkpoint: Any = None
    deployed = False

    def __init__(
        self,
        network: nn.Module,
        prediction: str,
        time_input: str,
        image_shape: tuple[int, int, int] | None,
        learned_sigma: bool = False,
        schedule: str = "linear",
        data_at: int | None = None,
        time_scale: float | None = None,
        n_classes: int = 0,
        null_class: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self._set_classes(n_classes, null_class)
        self.path = conversion.conventions(prediction, time_input, schedule, data_at, time_scale)
        self.prediction, self.time_input, self.schedule = prediction, time_input, schedule
        self.image_shape = checked_shape(image_shape)
        self.learned_sigma = bool(learned_sigma)
        self._call: CompiledCall | None = None

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        prediction: str = "eps",
        time_input: str | None = None,
        image_shape: tuple[int, int, int] | None = None,
        *,
        learned_sigma: bool = False,
        compile: bool = False,
        schedule: str = "linear",
        data_at: int | None = None,
        time_scale: float | None = None,
        n_classes: int = 0,
        null_class: bool = False,
        scheduler: Any = None,
    ) -> Denoiser:
        """Wrap a network: ``module(x [B, C, H, W], labels [B]) -> [B, C, H, W]``; it is not changed.

        Where gradients are wanted its weights are constants (``ConstantWeights``): a step keeps half as much as else.

        Labels are 999 t for "continuous" (floating; None), the step index for "index" (int64), sigma / alpha for
        "sigma" (floating). ``schedule`` "linear" is DDPM's and the VP-SDE's, 1000 steps; "cosine" that of Nichol
        and Dhariwal, 4000 steps. ``compile`` is short for ``.compiled()``. A network of ``n_classes`` > 0 classes is
        called ``module(x, labels, classes)``, classes int64 [B]; with ``null_class`` also without them or with -1.

        Prediction "flow" is the velocity dx/dt of a network trained on the straight path from image to noise (schedule
        "flow") or from attacked to clean image ("flowpure"). ``data_at`` is the time of the clean image: 0, the
        default, as in diffusers (the answer is noise - x0), 1 as in FlowPure (it is x0 - noise). Labels are
        ``time_scale`` t, 1000 t by default. "consistency" is a consistency function D(x, sigma), told "sigma".

        A ``UNet2DModel`` of diffusers becomes a network of our own with a copy of its weights; its configuration says
        what it is, and ``scheduler`` (diffusers' object, or its configuration) what it predicts and when.

        Raises:
            TypeError: ``module`` is not an ``nn.Module``.
            ValueError: an unknown convention, or an image shape that is not three positive integers.
            CheckpointError: a ``UNet2DModel`` or scheduler of a kind that we do not have.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(mistake("module", "a torch.nn.Module", type(module).__name__))
        path = (schedule, data_at, time_scale)
        if is_unet2d(module):
            denoiser = READERS["unet2d"](module, scheduler, prediction, time_input, image_shape, *path)
        else:
            refuse_scheduler(module, scheduler)
            told = time_input or "continuous"
            denoiser = cls(module, prediction, told, image_shape, learned_sigma, *path, n_classes, null_class)
        return denoiser.compiled() if compile else denoiser

    @classmethod
    def from_config(
        cls, name_or_dict: str | dict[str, Any], seed: int = 0, *, init_scale: float = 1.0
    ) -> Denoiser:
        """Build a network with random weights, in evaluation mode: a name such as "ddpmpp-cifar10", or fields.

        Args:
            name_or_dict: a name of ``NETWORKS``, or a dict with "architecture" ("ddpmpp" if absent) and the
                fields of its configuration class.
            seed: seed of the weights; the global random state is neither read nor changed.
            init_scale: scale of the weights that end each residual branch and the network. The default makes
                an ordinary random function; 0 makes branches and output almost zero, as one starts training.

        Raises:
            ValueError: an unknown name, architecture or field, or a value outside its range.
        """
        network = build(*named_config(name_or_dict))
        network.initialise(whole("seed", seed), init_scale)
        config = network.config
        shape = (config.channels, config.image_size, config.image_size)
        prediction = getattr(config, "prediction", "eps")
        return cls(network, prediction, config.time_input, shape, config.learned_sigma).eval()

    @property
    def dtype(self) -> torch.dtype | None:
        """Floating dtype of the network's weights; None if it has none."""
        return next((p.dtype for p in self.network.parameters() if p.is_floating_point()), None)

    def describe(self) -> dict[str, Any]:
        """What this denoiser is, in values that JSON can hold; "config" is None for foreign networks."""
        return {
            "network": type(self.network).__name__,
            "config": config_dict(self.network) if isinstance(self.network, _KNOWN) else None,
            "prediction": self.prediction,
            "time_input": self.time_input,
            "image_shape": list(self.image_shape),
            "learned_sigma": self.learned_sigma,
            "schedule": self.schedule,
            **self._flow(),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            **({"n_classes": self.n_classes, "null_class": self.null_class} if self.n_classes else {}),
        }

    def forward(self, x: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """The network's own prediction [B, C, H, W] for x [B, C, H, W] and its own labels [B]; for training.

        ``classes``: int64 [B], for a class-conditional network (``n_classes``) and for no other.
        """
        self._check_images(x)
        told = self._told(classes, len(x))
        return self._first(self._checked(self._answer(self.network, x, labels, *told), x))

    def for_class(self, class_label: int) -> Denoiser:
        """A frozen copy that is told this one class at every call, and so can purify; weights are shared.

        Raises:
            ValueError: the denoiser has no classes, or not this one.
        """
        if not self.n_classes:
            raise ValueError(mistake("denoiser", "a class-conditional one", "one without classes"))
        whole("class_label", class_label, 0, self.n_classes - 1)
        copy = self.frozen()
        if isinstance(copy.network, _KNOWN):
            copy.network.config = with_class(copy.network.config, class_label)
            if isinstance(copy.network, EDM):
                copy.network.network.config = copy.network.config.network
            copy._set_classes(0, False)
            return copy
        return copy._around(OneClass(copy.network, class_label), copy._call, classes=False).eval()

    def check_needs_no_class(self, argument: str = "denoiser") -> None:
        """Raise ValueError if every call must name a class, so that nothing that knows none can use it."""
        if self.n_classes and not self.null_class:
            remedy = (
                f"Fix one class with {argument}.for_class(y) or load_denoiser(..., class_label=y), take an "
                "unconditional network, or classify with fp.DiffusionClassifier"
            )
            found = f"one of {self.n_classes} classes that was never trained without them"
            raise ValueError(mistake(argument, "one that needs no class here", found, remedy))

    def check_levels(self, *, mean: bool = False) -> None:
        """Raise ValueError unless it answers at any noise level, told by the VP-SDE's times or by what the level is.

        With ``mean`` the answer must amount to the mean of the clean images, as for all but consistency functions.
        """
        if self.schedule not in ("linear", "flow"):
            raise ValueError(
                mistake("denoiser", "one of the linear schedule", f"one of the {self.schedule} one")
            )
        if mean and self.prediction == "consistency":
            raise ValueError(mistake("denoiser", "one that predicts a mean", "a consistency function"))

    def conditioning(
        self, tau: np.ndarray, index: np.ndarray, alpha: np.ndarray, sigma: np.ndarray
    ) -> Conditioning:
        """Everything about the steps of a table that does not depend on the images.

        Args:
            tau: real-valued labels [K]; index: integer labels [K]; alpha, sigma: noise levels [K]. Steps
                that call no network may hold anything, NaN included.
        """
        self.check_needs_no_class()
        columns = [np.asarray(column, dtype=np.float64) for column in (tau, index, alpha, sigma)]
        if len({column.shape for column in columns}) != 1 or columns[0].ndim != 1:
            shapes = ", ".join(str(list(column.shape)) for column in columns)
            raise ValueError(mistake("tau, index, alpha, sigma", "of one length [K]", f"shapes {shapes}"))
        with np.errstate(divide="ignore", invalid="ignore"):
            label = {"continuous": columns[0], "index": columns[1], "sigma": columns[3] / columns[2]}[
                self.time_input
            ]
            if self.path is not None:
                label = self.path.label(columns[2], columns[3])
        levels = [column.tolist() for column in columns[2:]]
        tensors = chain(self.network.parameters(), self.network.buffers())
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        labels = torch.tensor(
            np.nan_to_num(label, posinf=0.0, neginf=0.0), dtype=self._label_dtype(), device=device
        )
        embeddings = None
        # Weights in training get their gradient through the embedding too: then it stays inside the step.
        if isinstance(self.network, HoistedNetwork) and not self._trainable():
            embeddings = self.network.embedding(labels)
        return Conditioning(
            labels, embeddings, tuple(levels[0]), tuple(levels[1]), usable_steps(label.tolist(), *levels)
        )

    def noise_pred(self, x: Tensor, conditioning: Conditioning, k: int) -> Tensor:
        """Predicted noise [B, C, H, W] for the state x [B, C, H, W] of step ``k``, in x's dtype and layout.

        Differentiable with respect to x. The network runs in the dtype of its weights, the conversion to
        noise in the dtype of x.

        Raises:
            TypeError: x is not floating.
            ValueError: the shape of x or of the network's output is wrong, step k calls no network, or the
                network is in training mode (dropout would make the defence something else).
        """
        return self._noise_of(self._output(x, conditioning, k), x, conditioning, k)

    def noise_and_variance(self, x: Tensor, conditioning: Conditioning, k: int) -> tuple[Tensor, Tensor]:
        """``noise_pred`` and, from the same call of the network, the share of the learned variance, both like x.

        The share s [B, C, H, W] is (v + 1) / 2 of the second half v of the answer, not clamped: the variance is
        exp(s log beta + (1 - s) log posterior variance) (Nichol and Dhariwal 2021, eq. 15; "learned_range").

        Raises:
            TypeError, ValueError: as ``noise_pred``, or the network learned no variance.
        """
        self.require_variance()
        output = self._output(x, conditioning, k)
        share = (output[:, self.image_shape[0] :].to(x.dtype) + 1.0) * 0.5
        return self._noise_of(output, x, conditioning, k), same_layout(share, x)

    def require_variance(self) -> None:
        """Raise ValueError unless the network learned a variance, that of a diffusion's steps."""
        remedy = "Use variance='large' or 'small'"
        if not self.learned_sigma:
            expected = "a network that learned a variance (learned_sigma=True)"
            found = f"{type(self.network).__name__}, which did not"
            raise ValueError(mistake("denoiser", f"{expected} for variance='learned'", found, remedy))
        if self.path is not None or self.prediction == "consistency":
            expected = "a network of a diffusion, to whose steps a variance belongs, for variance='learned'"
            raise ValueError(mistake("denoiser", expected, f"one that predicts {self.prediction!r}", remedy))

    def _output(self, x: Tensor, conditioning: Conditioning, k: int) -> Tensor:
        """All channels of the answer for the state of step ``k``, in the network's dtype."""
        self._check_images(x)
        self._check_evaluates()
        alpha, sigma = conditioning.noise_level(k)
        seen = self.seen(x, alpha, sigma)
        output = self._run(seen if self.dtype is None else seen.to(self.dtype), conditioning, k)
        return self._checked(output, x)

    def _noise_of(self, output: Tensor, x: Tensor, conditioning: Conditioning, k: int) -> Tensor:
        alpha, sigma = conditioning.noise_level(k)
        return same_layout(self.noise_of(x, self._first(output).to(x.dtype), alpha, sigma), x)

    def seen(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """The state x = alpha x0 + sigma noise as the network is given it: divided where it knows other levels."""
        if self.path is not None:
            return x / self.path.width(alpha, sigma)
        return x / alpha if self.time_input == "sigma" else x

    def noise_of(self, x: Tensor, output: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """The noise that the network's own answer ``output`` amounts to for the state x = alpha x0 + sigma noise."""
        return conversion.noise_of(self.prediction, x, output, alpha, sigma, self.path)

    def clean_of(self, x: Tensor, output: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """The clean image that ``output`` amounts to; see ``noise_of``."""
        return conversion.clean_of(self.prediction, x, output, alpha, sigma, self.path)

    def clean_image(self, x: Tensor, sigma: Tensor, classes: Tensor | None = None) -> Tensor:
        """Expected clean image [B, C, H, W] given x = x0 + sigma noise, ``sigma`` [B] > 0: D(x; sigma) of Karras et al.

        A network that is told the time gets that of the VP state with this noise level, a flow network that on its
        path; a consistency function answers with the end of the ODE instead of the mean. ``classes`` int64 [B] as for
        calling. Differentiable with respect to x as often as the network is.

        Raises:
            TypeError, ValueError: x has another shape or dtype than the denoiser wants, or that is in training mode or
                knows no noise levels.
        """
        return self.clean_of(*self._answer_at(x, sigma, classes))

    def noise_at(self, x: Tensor, sigma: Tensor, classes: Tensor | None = None) -> Tensor:
        """Expected noise [B, C, H, W], (x - D(x; sigma)) / sigma without cancellation where the network predicts it.

        Arguments and errors as for ``clean_image``.
        """
        return self.noise_of(*self._answer_at(x, sigma, classes))

    def _answer_at(
        self, x: Tensor, sigma: Tensor, classes: Tensor | None
    ) -> tuple[Tensor, Tensor, float | Tensor, Tensor]:
        """What ``clean_of`` and ``noise_of`` want for x = x0 + sigma noise: a state, the answer to it, its levels."""
        self._check_evaluates()
        if self.schedule == "flowpure":
            raise ValueError(
                mistake("denoiser", "one that knows noise levels", "one of the flowpure schedule")
            )
        ratio = sigma.double()
        alpha = torch.rsqrt(1.0 + ratio.square())
        level, spread, scaled = (
            values.to(x.dtype).view(-1, 1, 1, 1) for values in (alpha, alpha * ratio, ratio)
        )
        timed = self.path is None and self.time_input != "sigma"
        seen = level * x if timed else self.seen(x, 1.0, scaled)
        seen = seen if self.dtype is None else seen.to(self.dtype)
        output = self(seen, self.labels(ratio), classes).to(x.dtype)
        if self.prediction == "v":
            return level * x, output, level, spread
        return x, output, 1.0, scaled

    def labels(self, ratio: Tensor) -> Tensor:
        """What the network is told at noise levels sigma / alpha = ``ratio`` float64 [B], in its own convention."""
        return labels_at(ratio, self.time_input, self.path).to(self._label_dtype())

    def cast(self, dtype: torch.dtype) -> Denoiser:
        """A frozen copy in evaluation mode, floating weights and buffers in ``dtype``; this one is unchanged.

        Tensors that have that dtype already are shared, not copied.
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(mistake("dtype", "a floating torch.dtype", repr(dtype)))
        return self._frozen_copy(dtype)

    def frozen(self) -> Denoiser:
        """A frozen copy in evaluation mode that shares every tensor with this one, which is unchanged."""
        return self._frozen_copy(None)

    def compiled(self, backend: str = "inductor", mode: str = "default") -> Denoiser:
        """The same denoiser (tensors shared) whose predicted noise comes from ``torch.compile`` of its network.

        Results agree up to rounding. Casts and frozen copies are compiled too, each at its first call and anew
        for other shapes; gradients exist once, not twice. For networks of one's own: the built-in ones have
        hand-written kernels and keep less for the backward pass uncompiled.

        Raises:
            ValueError: an unknown backend or mode. At the first call, CompileError with the compiler's reason.
        """
        return self._around(self.network, CompiledCall(backend, mode))

    def _frozen_copy(self, dtype: torch.dtype | None) -> Denoiser:
        return self._around(frozen_copy(self.network, dtype), copy.deepcopy(self._call)).eval()

    def around(self, network: nn.Module) -> Denoiser:
        """``network`` with the conventions of this one, compiled if this one is."""
        return self._around(network, copy.deepcopy(self._call))

    def _around(self, network: nn.Module, call: CompiledCall | None, *, classes: bool = True) -> Denoiser:
        """Another network with these conventions, without classes if ``classes`` is False."""
        denoiser = Denoiser(
            network,
            self.prediction,
            self.time_input,
            self.image_shape,
            self.learned_sigma,
            self.schedule,
            **self._flow(),
            n_classes=self.n_classes if classes else 0,
            null_class=self.null_class and classes,
        )
        denoiser.training, denoiser._call, denoiser.checkpoint = self.training, call, self.checkpoint
        return denoiser

    def _flow(self) -> dict[str, Any]:
        """The two conventions that only flow networks have, by name."""
        path = self.path
        return {} if path is None else {"data_at": path.data_at, "time_scale": path.time_scale}

    def _run(self, x: Tensor, conditioning: Conditioning, k: int) -> Tensor:
        function: Callable[..., Tensor] = self.network
        if not isinstance(self.network, HoistedNetwork):
            told = conditioning.batch_labels(k, len(x))
        elif is_hooked(self.network):  # which only a call of the whole network would run
            told = conditioning.labels[k : k + 1]
        else:
            function, known = self.network.body, conditioning.embedding(k)
            told = self.network.embedding(conditioning.labels[k : k + 1]) if known is None else known
        return self._answer(function, x, told) if self._call is None else self._call(function, x, told)

    def _answer(self, function: Callable[..., Tensor], x: Tensor, *told: Tensor) -> Tensor:
        """``function(x, *told)``; networks other than our own then keep as little for the backward pass as ours."""
        gains = widens(x) or (torch.is_grad_enabled() and x.requires_grad)
        with ConstantWeights() if gains and not isinstance(self.network, _KNOWN) else nullcontext():
            return function(x, *told)

    def _set_classes(self, n_classes: int, null_class: bool) -> None:
        """As given, but as the configuration says for a network of our own."""
        if isinstance(self.network, _KNOWN):
            n_classes, null_class = classes_of(self.network.config)
        self.n_classes = whole("n_classes", n_classes, 0, LARGEST["classes"])
        self.null_class = one_of("null_class", null_class, (False, True))
        if self.null_class and not self.n_classes:
            raise ValueError(mistake("null_class", "False for a network without classes", "True"))

    def _told(self, classes: Tensor | None, batch: int) -> tuple[Tensor, ...]:
        """``classes`` as the network's last argument, checked; nothing where there are none to tell."""
        if classes is None:
            self.check_needs_no_class()
            return ()
        return (checked_classes(classes, batch, self.n_classes, self.null_class),)

    def _trainable(self) -> bool:
        return any(parameter.requires_grad for parameter in self.network.parameters())

    def _label_dtype(self) -> torch.dtype:
        if self.time_input == "index":
            return torch.int64
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def _check_evaluates(self) -> None:
        if self.network.training:
            raise ValueError(
                mistake("denoiser", "in evaluation mode", "training mode", "Call denoiser.eval()")
            )

    def _check_images(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(mistake("x", "floating", str(x.dtype)))
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            channels, height, width = self.image_shape
            raise ValueError(mistake("x", f"of shape [B, {channels}, {height}, {width}]", str(list(x.shape))))

    def _checked(self, output: Any, x: Tensor) -> Tensor:
        channels, height, width = self.image_shape
        expected = (len(x), channels * (2 if self.learned_sigma else 1), height, width)
        if not isinstance(output, Tensor):
            raise ValueError(mistake("denoiser", "a network that returns one tensor", type(output).__name__))
        if tuple(output.shape) != expected:
            doubled = tuple(output.shape) == (len(x), 2 * channels, height, width)
            remedy = "Pass learned_sigma=True if the second half is a learned variance" if doubled else ""
            found = str(list(output.shape))
            raise ValueError(
                mistake("denoiser", f"a network that returns shape {list(expected)}", found, remedy)
            )
        # Checked here, where the state has not been added yet: its own gradient would hide the missing one.
        if torch.is_grad_enabled() and x.requires_grad and not output.requires_grad:
            raise ValueError(
                "`denoiser` must be differentiable with respect to its input, but its output has no gradient. "
                "Remove `detach` or `no_grad` from its forward, or call the purifier under torch.no_grad()"
            )
        return output

    def _first(self, output: Tensor) -> Tensor:
        """The prediction, without the variance."""
        return output[:, : self.image_shape[0]] if self.learned_sigma else output
