"""``Purifier``: images in, purified images out, differentiable, reproducible by construction."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import mistake
from ..kernels import Domain, NoiseKeys
from ..methods import Method
from ..nets import Denoiser
from ..reverse import (
    Call,
    Execution,
    Executor,
    GeneratedNoise,
    MemoryPlan,
    NoiseSource,
    PlacedNoise,
    Process,
    RecordedNoise,
    Seen,
    SplitNoise,
    check_backend,
    executor_for,
    opening,
    perform,
    perform_states,
    read_under,
    reverse,
    states,
    watch,
)
from ..reverse.step import evaluate
from ..shown import Card, ShownModule, described, size
from ..signatures import suggests_names
from .engine import Engine, Source
from .inputs import (
    Asked,
    check_range,
    check_seed,
    check_shape,
    current_question,
    differ,
    images_remedy,
    sealed,
)
from .precision import precision as precision_named

_FOLLOWING = threading.RLock()
"""Held while a purifier computes something from its weights that all threads will use."""

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


FOR_OTHER_SIZES: dict[str, Callable[..., Purifier]] = {}
"""Purifiers for pictures of other sizes, which are made of this one; their modules stand below and enter themselves."""


class Purifier(ShownModule, Asked):
    """Purifies images with a diffusion model.

    Args:
        denoiser: the diffusion model. Its weights are constants here; gradients flow to the images only.
        method: from ``fp.methods``.
        seed: 64-bit seed of all noise.
        precision: "fp32" (TF32 off), "tf32", "bf16", "fp16" for the networks; "fp64" computes everything in
            float64 and accepts float64 images, for verification.
        gradient_precision: the same choice for calls that record a gradient; as ``precision`` if None. An
            attacker may differentiate a cheaper copy of the networks; decisions, which record no gradient, are
            always taken by the deployed ones.
        memory: "auto", "store", "recompute" or bytes; what is kept for the backward pass.
        backend: "graph" replays recorded steps (CUDA graphs), "eager" launches every operation when it is due,
            "auto" takes graphs on CUDA and goes on eagerly, with one warning, where a step cannot be recorded
            (a network or guidance that waits for the device); "graph" raises there. Or an ``Executor``, such as
            ``Graphs`` with limits of its own, which several purifiers may share. The results are the same.
            Recorded noise (``noise=``) always runs eagerly.

    A purifier follows its networks: where weights of the denoiser or of the guidance have changed, the next call
    computes what a purifier built anew would. A backward pass through the change raises RuntimeError.

    The noise is a pure function of (seed, sample id, draw, step): an image gets the same result in any batch,
    order or device. A purifier is not trained and is always in evaluation mode.

    Warns:
        UserWarning: the denoiser's file says up to which diffusion time it was trained, and the method asks it later.
    """

    @suggests_names
    def __init__(
        self,
        denoiser: Denoiser,
        method: Method,
        seed: int = 0,
        precision: str = "fp32",
        memory: str | int = "auto",
        gradient_precision: str | None = None,
        backend: str | Executor = "auto",
    ) -> None:
        super().__init__()
        self.training = False
        if not isinstance(denoiser, Denoiser):
            remedy = "Wrap a network with fp.Denoiser.from_module(...)"
            raise TypeError(mistake("denoiser", "a fastpure.Denoiser", type(denoiser).__name__, remedy))
        if not isinstance(method, Method):
            remedy = "Use for example fp.methods.diffpure(t=0.1)"
            raise TypeError(mistake("method", "a Method", type(method).__name__, remedy))
        method.check_denoiser(denoiser)
        if not denoiser.deployed:  # another method of a purifier that there is: an attacker's, or a planner's
            method.warn_untrained(denoiser)
        self.precision = precision
        self.gradient_precision = gradient_precision or precision
        self.method = method
        self.seed = check_seed(seed)
        self.memory = MemoryPlan(memory)
        self.backend = check_backend(backend)
        names = {self.precision: None, self.gradient_precision: None}
        self._engines = {name: Engine.build(denoiser, method, precision_named(name)) for name in names}
        if len({engine.precision.state for engine in self._engines.values()}) > 1:
            expected = "'fp64' for both or for neither, because it changes the state's dtype"
            raise ValueError(
                mistake("gradient_precision", expected, f"{gradient_precision!r} with {precision!r}")
            )
        self._hold_networks()
        self._source = Source.of(denoiser, method)
        self._processes: dict[tuple[str, torch.device], Process] = {}
        self._costs: dict[tuple[object, ...], int] = {}
        self._executor: Executor | None = None

    @property
    def executor(self) -> Executor:
        """What carries the steps out on the device where the networks are now."""
        if self._executor is None:
            rows = self.method.procedure is None
            self._executor = executor_for(self.backend, self.device, rows)
        return self._executor

    @property
    def network_calls(self) -> int:
        """Passes of an image through the denoiser in one purification; see ``Method.network_calls``."""
        return self.method.network_calls

    @property
    def methods(self) -> tuple[Method, ...]:
        """The one."""
        return (self.method,)

    @property
    def execution(self) -> Execution:
        """How steps are carried out, and why: what is planned before the first call, what happened after it."""
        return self.executor.execution

    @property
    def denoiser(self) -> Denoiser:
        """The deployed denoiser: a frozen copy in the purifier's precision."""
        return self._engines[self.precision].denoiser

    def environment(self, work: float | None = None) -> AbstractContextManager[None]:
        """Torch's settings under which everything is computed, whatever the caller's are.

        On the host, with as many threads as suit layers of ``work`` floating-point operations; all that are
        available if None.
        """
        return self._engines[self.precision].precision.environment(self.device, work)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.denoiser.image_shape

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        tensors = chain(self.denoiser.parameters(), self.denoiser.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @sealed
    def forward(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor | None = None,
        *,
        noise: RecordedNoise | SplitNoise | PlacedNoise | None = None,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """Purify ``x`` [B, C, H, W] float32 in [0, 1]; returns the same shape and dtype.

        Args:
            x: images. Differentiable; the gradient is that of the exact discrete computation.
            sample_ids: B distinct non-negative integers that name the images; 0..B-1 if omitted.
            draw: which realisation of the noise, one for all or int64 [B]; 0 if omitted. Inside a module that is
                attacked or evaluated, omitted ids and draws are those the attack or evaluation asks for.
            noise: recorded arrays, or keys of one's own, instead of noise from seed, ids, draw and domain.
            domain: whose noise: the deployed defence's (default), an attack's, or an evaluation's.

        Returns:
            Purified images, in [0, 1] if the method clamps its output.

        Raises:
            TypeError, ValueError: wrong dtype, shape, range, ids; the message names the argument.
            NonFiniteError: NaN or Inf appeared, with the step and the sample id.
        """
        prepared = self._prepare(x, sample_ids, draw, noise, domain)
        if prepared is None:
            return x.clone()
        (call, state, context), rule = prepared, self.method.procedure
        end = reverse(call, state, context) if rule is None else perform(call, rule, state, context)
        u = (end + 1.0) * 0.5
        return (u.clamp(0.0, 1.0) if self.method.clip_output else u).to(x.dtype)

    @sealed
    def trajectory(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor | None = None,
        *,
        noise: RecordedNoise | SplitNoise | PlacedNoise | None = None,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """Every state on the way, [K + 1, B, C, H, W] in [0, 1] units, unclamped.

        The first is the input (as the method prepared it, where it does), the last the purified image before
        clamping. Differentiable unless the method has a procedure of its own. Arguments and errors as for calling
        the purifier.
        """
        prepared = self._prepare(x, sample_ids, draw, noise, domain)
        if prepared is None:
            return x.new_empty((len(self.method.steps) + 1, *x.shape))
        (call, state, context), rule = prepared, self.method.procedure
        visited = states(call, state, context) if rule is None else perform_states(call, rule, state, context)
        return ((torch.stack(visited) + 1.0) * 0.5).to(x.dtype)

    @sealed
    def watch(
        self,
        x: Tensor,
        visit: Callable[[Seen], None],
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor | None = None,
        *,
        noise: RecordedNoise | SplitNoise | None = None,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """The end state [B, C, H, W] in [-1, 1] coordinates, unclamped, every row having been shown to ``visit``.

        Without gradient, in the model's size. Other arguments and errors as for calling the purifier.

        Raises:
            ValueError: the method has a procedure of its own, so that its rows alone do not say what happens.
        """
        if self.method.procedure is not None:
            expected = "one whose rows alone say what happens"
            got = f"{self.method.name}, which walks its table by a rule of its own"
            raise ValueError(mistake("method", expected, got))
        prepared = self._prepare(x.detach() if isinstance(x, Tensor) else x, sample_ids, draw, noise, domain)
        return x * 2.0 - 1.0 if prepared is None else watch(*prepared, visit)

    @torch.no_grad()
    def own_noise(self, x: Tensor, sample_ids: Tensor) -> str:
        """ "" or the network that answers the same question differently, so that no draw reproduces a purification.

        Asked twice, in the last step that calls a network; arguments as for calling the purifier.
        """
        prepared = self._prepare(x, sample_ids, 0, None, Domain.EVALUATION)
        networks = [k for k, row in enumerate(self.method.steps.rows) if row.calls_something]
        if prepared is None or not networks:
            return ""
        call, state, context = prepared
        with call.environment():
            first, second = (
                evaluate(call.process, networks[-1], state, context, call.noise) for _ in range(2)
            )
        for name, one, other in zip(("the denoiser", "the guidance"), first, second, strict=True):
            if one is not None and other is not None and differ(one, other):
                return name
        return ""

    @torch.no_grad()
    def answers(self, x: Tensor, sample_ids: Tensor) -> Tensor | None:
        """Noise predicted in the first and the last step that calls the network [2, B, C, H, W]; None if none does.

        Not its weights alone decide it: attributes, class labels, code. Arguments as for calling.
        """
        prepared = self._prepare(x, sample_ids, 0, None, Domain.EVALUATION)
        networks = [k for k, row in enumerate(self.method.steps.rows) if row.calls_network]
        if prepared is None or not networks:
            return None
        call, state, _ = prepared
        denoiser, conditioning = call.process.denoiser, call.process.conditioning
        with call.environment():
            return torch.stack(
                [denoiser.noise_pred(state, conditioning, k) for k in (networks[0], networks[-1])]
            )

    def tiled(self, height: int, width: int, overlap: int | None = None, batch_size: int = 16) -> Purifier:
        """The same networks, method and options for pictures of ``height`` by ``width``: see ``TiledPurifier``."""
        denoiser, *options = self._remade()
        return FOR_OTHER_SIZES["tiled"](denoiser, self.method, height, width, overlap, batch_size, *options)

    def describe(self) -> dict[str, Any]:
        """What it is beside its method, networks and options, in values that JSON can hold."""
        return {"class": type(self).__name__, "image_shape": list(self.image_shape)}

    def with_method(self, method: Method) -> Purifier:
        """The same networks, seed and precisions with another method."""
        denoiser, *options = self._remade()
        return Purifier(denoiser, method, *options)

    def _remade(self) -> tuple[Any, ...]:
        """What another purifier of the same networks is made of, beside its method: the denoiser and the options."""
        # The wider copy of the weights holds what the narrower one has lost.
        widest = max(self._engines.values(), key=lambda engine: engine.precision.network.itemsize)
        options = (self.seed, self.precision, self.memory.choice, self.gradient_precision, self.backend)
        return (widest.denoiser, *options)

    def train(self, mode: bool = True) -> Purifier:
        """Keep evaluation mode: a purifier has nothing to train, and dropout would change its results."""
        return self

    def _shown(self) -> Card:
        method = self.method._shown()
        return Card(
            f"{type(self).__name__} of images {size(self.image_shape)}: {self.network_calls} network calls per image",
            (("method", self.extra_repr()), ("denoiser", described(self.denoiser))),
            (("device", str(self.device)), *method.more),
            method.grids,
        )

    def extra_repr(self) -> str:
        """Method, seed, precision and memory plan, for printing."""
        gradient = f", gradient_precision={self.gradient_precision!r}"
        return (
            f"{self.method}, seed={self.seed}, precision={self.precision!r}"
            f"{gradient if self.gradient_precision != self.precision else ''}, memory={self.memory.choice!r}"
            f"{f', backend={self.backend!r}' if self.backend != 'auto' else ''}"
        )

    def _prepare(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None,
        draw: int | Tensor | None,
        noise: RecordedNoise | SplitNoise | PlacedNoise | None,
        domain: Domain,
    ) -> tuple[Call, Tensor, tuple[Tensor, ...]] | None:
        """Checked arguments as (call, initial state, guidance context); None for an empty batch."""
        self._follow()
        self._check_images(x)
        device = x.device
        # Built before the empty batch leaves, so that a wrong id or draw is an error for it too.
        keys = self._keys(x, sample_ids, draw, domain, asked=noise is None)
        if len(x) == 0:
            return None
        recording = torch.is_grad_enabled() and x.requires_grad
        name = self.gradient_precision if recording else self.precision
        engine = self._engines[name]
        if engine.guidance is not None:
            engine.guidance.check()
        state = x.to(engine.precision.state) * 2.0 - 1.0
        source: NoiseSource = GeneratedNoise(keys) if noise is None else noise.bind(self.method.steps, state)
        environment = partial(engine.precision.environment, device, engine.work * len(x))
        process = self._process(name, device)
        context: tuple[Tensor, ...] = ()
        if engine.guidance is not None:
            offered = opening(process, source, environment, state)
            context = read_under(environment, partial(engine.guidance.read, opening=offered), state)
        if self.method.prepare is not None:
            (state,) = read_under(environment, lambda x: (self.method.prepared(x),), state)
        call = Call(
            process=process,
            noise=source,
            sample_ids=keys.sample_ids,
            plan=self.memory,
            costs=self._costs,
            environment=environment,
            executor=self.executor,
        )
        return call, state, context

    def _keys(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None,
        draw: int | Tensor | None,
        domain: Domain,
        *,
        asked: bool,
    ) -> NoiseKeys:
        """Which noise images ``x`` get; ``asked``: what is left out, a question that is being asked may say."""
        question = current_question()
        if draw is None and asked and question is not None:
            ids, draw, domain = question.take(self, len(x))
            sample_ids = ids if sample_ids is None else sample_ids
        keys = NoiseKeys.make(
            seed=self.seed,
            sample_ids=range(len(x)) if sample_ids is None else sample_ids,
            draw=0 if draw is None else draw,
            domain=domain,
            device=x.device,
        )
        if len(keys.sample_ids) != len(x):
            expected = f"one id per image, {len(x)}"
            raise ValueError(mistake("sample_ids", expected, f"{len(keys.sample_ids)}"))
        return keys

    def _hold_networks(self) -> None:
        networks = [network for engine in self._engines.values() for network in engine.networks()]
        self._networks = nn.ModuleList(networks)
        self._networks.training = False

    def _follow(self) -> None:
        """Copy the caller's networks again if one of their weights has changed since."""
        if not self._source.has_changed():
            return
        with _FOLLOWING:
            network = self._source.network()
            if network is None or not self._source.has_changed():
                return
            denoiser, device = self.denoiser.around(network), self.device
            self._source = Source.of(denoiser, self.method)
            self._engines = {
                name: Engine.build(denoiser, self.method, precision_named(name)) for name in self._engines
            }
            self._hold_networks()
            self._networks.to(device)
            self._forget()

    def _forget(self) -> None:
        """Drop what was computed from the weights."""
        self._processes.clear()
        if self._executor is not None:
            self._executor.clear()

    def _process(self, name: str, device: torch.device) -> Process:
        known = self._processes.get((name, device))
        if known is not None and known.is_current():
            return known
        with _FOLLOWING:
            if known is not None:
                self._forget()
            engine, table = self._engines[name], self.method.steps
            with torch.no_grad():
                made = Process.build(engine.denoiser, table, engine.guidance, device, engine.precision.state)
            self._processes[name, device] = made
            return made

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        before = self._engines[self.precision].precision.network
        if (after := fn(torch.empty(0, dtype=before)).dtype) != before:
            remedy = f"Build one with fp.Purifier(..., precision={_NAMES.get(after, 'fp32')!r})"
            raise TypeError(mistake("dtype", f"left to precision={self.precision!r}", after, remedy))
        self._forget()
        self._executor = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # What was computed from these very tensors is computed anew from the copies.
        return {**self.__dict__, "_processes": {}, "_executor": None, "_source": Source()}

    def _check_images(self, x: Tensor) -> None:
        channels, height, width = self.denoiser.image_shape
        shape = f"[B, {channels}, {height}, {width}]"
        if not isinstance(x, Tensor):
            raise TypeError(mistake("x", f"a float32 tensor {shape}", type(x).__name__, images_remedy(x)))
        allowed = (torch.float32, torch.float64) if self.precision == "fp64" else (torch.float32,)
        if x.dtype not in allowed:
            got = str(x.dtype).removeprefix("torch.")
            raise TypeError(mistake("x", "of dtype float32", got, images_remedy(x)))
        check_shape(x, self.denoiser.image_shape)
        if x.device != self.device:
            remedy = "Move one with .to(device)"
            raise ValueError(mistake("x", f"on {self.device} like the denoiser", f"{x.device}", remedy))
        if len(x):
            check_range(x)
