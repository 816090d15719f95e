"""One batch's memory and the rows recorded on it.

Everything a recorded row reads besides weights lies in buffers that stay where they are: the state, the register,
the cotangents, the guidance's context, the noise keys (seed, sample ids, draws) and the number of the step. Labels
and embedding rows are looked up by that number while the graph runs, so one recording serves all steps of a kind, all
draws and all images. What Python numbers tell a row apart is its ``RowKind``; rows of another kind are another
recording. The denoiser and the guidance gradient do not depend on each other and are recorded side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..guidance import VJP, Guidance, GuidanceStep, PredictionGuidance
from ..kernels import NoiseKeys
from .memory import watch_saved
from .noise import GeneratedNoise, NoiseSource
from .recorder import Recorder, Work
from .step import Context, Process, Tape, advance, evaluate, linearize, row_vjp

SENTINEL = 2**32 - 1
"""Sample id of the images that fill a batch up; their results are cut off."""


@dataclass(frozen=True)
class RowKind:
    """The Python side of a row: what a recording fixes for good. Rows of one kind share a recording.

    Attributes:
        domain: whose noise.
        shape: which inputs, outputs and branches the row has.
        numbers: noise level, for networks whose output is converted with it; step number, alpha and sigma, for a
            guidance that may read them.
    """

    domain: int
    shape: tuple[bool, ...]
    numbers: tuple[float, ...] = ()


def layout_of(x: Tensor) -> torch.memory_format:
    """The memory format in which states like ``x`` are passed on."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def kind_of(process: Process, k: int, noise: NoiseSource) -> RowKind | None:
    """The kind of row ``k``; None for one that is not worth recording or draws on recorded noise."""
    rows, keys = process.table.rows, noise.row(k)
    row = rows[k]
    if not row.calls_something or not isinstance(keys, NoiseKeys):
        return None
    reads = row.p != 0.0 or row.s != 0.0
    after = rows[k + 1] if k + 1 < len(rows) else None
    # Of the register it writes a row has a cotangent only where the next one reads it.
    handed_on = row.writes_register and after is not None and (after.p != 0.0 or after.s != 0.0)
    asked = (row.calls_network, row.calls_guidance)
    shape = (*asked, row.d != 0.0, row.forward, row.clip, reads, row.writes_register, handed_on)
    numbers: tuple[float, ...] = ()
    denoiser, guidance = process.denoiser, process.guidance
    if denoiser.prediction != "eps" or denoiser.time_input == "sigma":
        numbers = (row.alpha, row.sigma)
    if row.calls_guidance and guidance is not None and guidance.reads_step:
        numbers = (float(k), row.alpha, row.sigma)
    return RowKind(int(keys.domain), shape, numbers)


@dataclass
class Recorded:
    """A replay and the buffers it writes."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    replay: Work = lambda: None

    def emit(self, name: str, value: Tensor | None) -> None:
        """Copy ``value`` into its buffer, which is made when it is first run."""
        if value is None:
            return
        if name not in self.outputs:
            self.outputs[name] = torch.empty_like(value)
        self.outputs[name].copy_(value)


@dataclass
class Slot:
    """A row whose tape stays in the recorder's pool between its two replays.

    Attributes:
        forward, vjp: the two.
        saved, tape: keep that memory from being given to later recordings: autograd lets go of what it saved once
            the VJP has been recorded.
        owner: counts who filled it.
    """

    forward: Recorded = field(default_factory=Recorded)
    vjp: Recorded = field(default_factory=Recorded)
    saved: list[Tensor] = field(default_factory=list)
    tape: Tape | None = None
    owner: int = 0


@dataclass(frozen=True)
class _StaticNoise(NoiseSource):
    keys: NoiseKeys
    step: Tensor

    def row(self, k: int) -> NoiseKeys:
        return self.keys

    def guidance(self, k: int, like: Tensor) -> Tensor:
        return GeneratedNoise(self.keys).guidance(self.step, like)


class Family:
    """The buffers of one (padded) batch and what is recorded on them, by kind of row."""

    def __init__(self, recorder: Recorder, process: Process, x: Tensor, context: Context) -> None:
        self.recorder = recorder
        self.process = process
        self.batch = len(x)
        fmt = layout_of(x)
        self.x, self.register, self.v, self.w = (torch.zeros_like(x, memory_format=fmt) for _ in range(4))
        self.context = tuple(torch.zeros_like(part) for part in context)
        ids = torch.full((self.batch,), SENTINEL, dtype=torch.int64, device=x.device)
        self.keys = NoiseKeys(torch.zeros_like(ids[:1]), ids, torch.zeros_like(ids))
        self.step = torch.zeros_like(ids[:1])
        self.forwards: dict[RowKind, Recorded] = {}
        self.vjps: dict[RowKind, Recorded] = {}
        self.slots: dict[int, Slot] = {}
        self._kept_kinds: set[RowKind] = set()
        self.slot_bytes = 0
        self.passes = self.gradients = 0
        self.filled_by: object = None  # the rows whose noise and context are in the buffers
        # Kept alive: a recording reads the addresses these weights have now, whatever becomes of their modules.
        self._weights = [
            t.detach() for net in process.networks() for t in (*net.parameters(), *net.buffers())
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers and of the recorder's pool; weights are not counted."""
        buffers = [self.x, self.register, self.v, self.w, *self.context]
        recorded = [*self.forwards.values(), *self.vjps.values()]
        recorded += [part for slot in self.slots.values() for part in (slot.forward, slot.vjp)]
        outputs = [tensor for part in recorded for tensor in part.outputs.values()]
        return self.recorder.nbytes + sum(tensor.nbytes for tensor in (*buffers, *outputs))

    def fill_up(self, batch: int) -> None:
        """Zeros and sentinels behind the first ``batch`` images: what an earlier, larger batch left is not used."""
        for buffer in (self.x, self.register, self.v, self.w, self.keys.draws, *self.context):
            buffer[batch:].zero_()
        self.keys.sample_ids[batch:].fill_(SENTINEL)

    def forward(self, kind: RowKind, k: int) -> Recorded:
        """The recording of networks and row; made with row ``k`` as the example."""
        if kind not in self.forwards:
            done = Recorded()

            def work() -> None:
                here, noise = self._here(kind)
                outputs = evaluate(here, k, self.x, self.context, noise)
                self._advance(done, here, k, outputs, noise)

            (done.replay,) = self.recorder.record(work)
            self.forwards[kind] = done
        return self.forwards[kind]

    def vjp(self, kind: RowKind, k: int) -> Recorded:
        """The recording of the row's recomputation and transpose."""
        if kind not in self.vjps:
            done = Recorded()

            def work() -> None:
                here, noise = self._here(kind)
                tape = self._on_two_streams(linearize(here, k, self.x, self.context, noise))
                self._row_vjp(done, here, k, tape)

            (done.replay,) = self.recorder.record(work)
            self.vjps[kind] = done
        return self.vjps[kind]

    def slot(self, kind: RowKind, k: int) -> Slot:
        """The two recordings of row ``k`` that keep its tape in between."""
        if k not in self.slots:
            slot, before = Slot(), self.recorder.nbytes

            def forward() -> None:
                here, noise = self._here(kind)
                slot.saved = []
                # It may hold parts of the buffers too: those are filled again before the VJP is replayed.
                with watch_saved(slot.saved.append):
                    tape = linearize(here, k, self.x, self.context, noise)
                slot.tape = self._on_two_streams(tape)
                self._advance(slot.forward, here, k, (tape.noise_pred, tape.guidance), noise)

            def vjp() -> None:
                here, _ = self._here(kind)
                self._row_vjp(slot.vjp, here, k, slot.tape)

            known = kind in self._kept_kinds
            slot.forward.replay, slot.vjp.replay = self.recorder.record(forward, vjp, warm=known)
            self._kept_kinds.add(kind)
            self.slot_bytes = max(self.slot_bytes, self.recorder.nbytes - before)
            self.slots[k] = slot
        return self.slots[k]

    def _here(self, kind: RowKind) -> tuple[Process, NoiseSource]:
        """The process as a recorded row sees it: every step is the one in the buffer."""
        process, n = self.process, len(self.process.table)
        known = process.conditioning
        labels = known.labels.index_select(0, self.step).expand(n)
        embeddings = known.embeddings
        if embeddings is not None:
            embeddings = embeddings.index_select(0, self.step).expand(n, -1)
        guidance = process.guidance
        # One that reads the prediction has nothing to do beside the denoiser.
        if guidance is not None and not isinstance(guidance, PredictionGuidance):
            guidance = _OnSecondStream(guidance, self.recorder, self.recorder.fork())
        here = replace(
            process,
            conditioning=replace(known, labels=labels, embeddings=embeddings),
            steps=self.step.expand(n),
            guidance=guidance,
        )
        return here, _StaticNoise(replace(self.keys, domain=kind.domain), self.step)

    def _advance(
        self,
        done: Recorded,
        here: Process,
        k: int,
        outputs: tuple[Tensor | None, Tensor | None],
        noise: NoiseSource,
    ) -> None:
        x_next, register = advance(here, k, self.x, self.register, outputs, noise.row(k))
        done.emit("x", x_next)
        done.emit("register", register)

    def _row_vjp(self, done: Recorded, here: Process, k: int, tape: Tape | None) -> None:
        after = here.table.rows[k + 1] if k + 1 < len(here.table) else None
        w = self.w if after is not None and (after.p != 0.0 or after.s != 0.0) else None
        v_x, v_context, v_register = row_vjp(here, k, self.x, tape, self.v, w)
        done.emit("v", v_x)
        done.emit("w", v_register)
        for i, part in enumerate(v_context):
            done.emit(f"context {i}", part)

    def _on_two_streams(self, tape: Tape) -> Tape:
        """The same tape with the guidance's VJP on a second stream beside the denoiser's."""
        noise_pred_vjp, guidance_vjp, recorder = tape.noise_pred_vjp, tape.guidance_vjp, self.recorder
        if guidance_vjp is None or noise_pred_vjp is None:
            return tape
        marks: list[object] = []

        def first(v: Tensor) -> Tensor:
            marks.append(recorder.fork())
            return noise_pred_vjp(v)

        def second(v: Tensor) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
            with recorder.beside(marks.pop()):
                return guidance_vjp(v)

        return replace(tape, noise_pred_vjp=first, guidance_vjp=second)


@dataclass(frozen=True)
class _OnSecondStream(Guidance):
    """A guidance evaluated on a second stream, which waits only for what was issued before ``mark``.

    Its VJP is left to the caller.
    """

    inner: Guidance
    recorder: Recorder
    mark: object

    def context(self, x0: Tensor) -> tuple[Tensor, ...]:
        return self.inner.context(x0)

    def gradient(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        with self.recorder.beside(self.mark):
            return self.inner.gradient(x, context, step)

    def linearize(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> tuple[Tensor, VJP]:
        with self.recorder.beside(self.mark):
            return self.inner.linearize(x, context, step)

    def networks(self) -> tuple[torch.nn.Module, ...]:
        return self.inner.networks()

    def cast(self, dtype: torch.dtype) -> Guidance:
        return self.inner.cast(dtype)

    def check(self) -> None:
        self.inner.check()
