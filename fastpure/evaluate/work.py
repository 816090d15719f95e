"""The unit of work: attack a block of images and judge it on the protocol's draws. The same in every process."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from ..attacks.base import Attack, Problem, Tick
from ..attacks.gradient import answers
from ..attacks.losses import cross_entropy
from ..data import Dataset
from ..errors import OutOfMemory, mistake
from ..purify import Target, look_through
from .protocol import FIRST_DRAW, Protocol
from .record import Course, ImageRecord, Judged
from .store import Seconds


def frozen(target: Target, protocol: Protocol) -> AbstractContextManager[object]:
    """The target as the attacker knows it: frozen to one draw where the protocol says so.

    Raises:
        ValueError: the caller froze the defence himself, but the protocol wants fresh noise; or it draws noise of its
            own, which no protocol can know.
    """
    if protocol.noise == "known":
        if target.own_noise:
            remedy = "Use the protocol fresh"
            got = (
                f"one whose {target.own_noise} draws noise of its own"
                if target.numbered
                else "a random module"
            )
            raise ValueError(mistake("defense", f"one whose noise {protocol} can hold", got, remedy))
        return target.fixed(protocol.fixed_draw, protocol.part) if target.numbered else nullcontext()
    if target.frozen:
        remedy = "Evaluate outside `with defense.fixed()`, or use the protocol dw_box"
        raise ValueError(mistake("protocol", "dw_box for a frozen defence", str(protocol), remedy))
    return nullcontext()


def even(total: int, batch_size: int) -> int:
    """The batch size up to ``batch_size`` that cuts ``total`` pairs into equal parts.

    A small remainder would be slow, and libraries compute very small batches with other kernels, whose rounding
    differs in the last bits.
    """
    return max(-(-total // max(-(-total // batch_size), 1)), 1)


@torch.no_grad()
def judge(
    target: Target, x: Tensor, y: Tensor, ids: Tensor, n_draws: int, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Classes int64 [B, K], cross-entropies float32 [B, K] and logits on evaluation draws; K = 1 if nothing is random.

    The logits are float32 [B, K, classes] on the host, whatever precision the others were computed in.

    Args:
        target: what is judged.
        x: images [B, C, H, W] in [0, 1].
        y: labels int64 [B].
        ids: sample ids int64 [B].
        n_draws: fresh draws per image.
        batch_size: most (image, draw) pairs in one network call.
    """
    draws = range(FIRST_DRAW, FIRST_DRAW + (n_draws if target.is_random else 1))
    total = len(x) * len(draws)
    predicted = torch.empty(total, dtype=torch.int64, device=x.device)
    loss = torch.empty(total, dtype=torch.float32, device=x.device)
    answered: list[Tensor] = []
    for part, image, logits in answers(target, x, ids, draws, even(total, batch_size)):
        predicted[part] = logits.argmax(1)
        loss[part] = cross_entropy(logits.float(), y[image])
        answered.append(logits.float().cpu())
    shape, together = (
        (len(x), len(draws)),
        torch.cat(answered) if answered else torch.empty(0, target.n_classes),
    )
    return predicted.view(shape), loss.view(shape), together.view(*shape, together.shape[1])


def judged(predicted: Tensor, loss: Tensor, logits: Tensor) -> list[Judged]:
    """The same, as one `Judged` per image."""
    columns = [column.cpu().numpy() for column in (predicted, loss, logits)]
    return [Judged(*(column[i].copy() for column in columns)) for i in range(len(predicted))]


JUDGING_ROWS = 256
"""Pairs per network call in a run without attack."""


@final
@dataclass(frozen=True)
class Block:
    """Finished images and where the time went."""

    records: list[ImageRecord]
    seconds: Seconds


@final
@dataclass
class Worker:
    """Attacks and judges blocks of a data set.

    Attributes:
        target: what is attacked and judged.
        dataset, attack, protocol: as in `evaluate`.
        limit: most images at a time; falls when memory runs out.
        rows: most (image, draw) pairs per network call.
    """

    target: Target
    dataset: Dataset
    attack: Attack | None
    protocol: Protocol
    limit: int = 1 << 30
    rows: int = field(default=0)

    def __post_init__(self) -> None:
        self.rows = self.rows or (self.attack.batch_size if self.attack is not None else JUDGING_ROWS)

    @property
    def device(self) -> torch.device:
        """Where the target is."""
        return self.target.device

    def run(self, positions: Sequence[int], tick: Tick | None = None) -> Iterator[Block]:
        """Finish the images at ``positions``; one block, or several smaller ones if memory runs out.

        Raises:
            OutOfMemory: one image, one row at a time, does not fit.
        """
        waiting = [list(positions)]
        while waiting:
            block = waiting.pop(0)
            if len(block) > self.limit:
                waiting[:0] = [block[i : i + self.limit] for i in range(0, len(block), self.limit)]
                continue
            try:
                finished = self.block(block, tick or (lambda iteration, loss: None))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(len(block), error)
                waiting.insert(0, block)
                continue
            yield finished

    def block(self, positions: Sequence[int], tick: Tick) -> Block:
        """Judge and attack these images together."""
        at = torch.as_tensor(list(positions), dtype=torch.int64)
        x = self.dataset.batch(at).to(self.device)
        y, ids = self.dataset.labels[at].to(self.device), self.dataset.sample_ids[at].to(self.device)
        clock = [time.perf_counter()]
        columns: dict[str, Any] = {}
        with self.target.environment(), frozen(self.target, self.protocol):
            inputs = {"clean": judged(*judge(self.target, x, y, ids, self.protocol.draws, self.rows))}
            clock.append(time.perf_counter())
            if self.attack is not None:
                columns = self._attack(Problem(self.target, x, y, ids), tick)
            clock.append(time.perf_counter())
            if self.attack is not None:
                found = judge(self.target, columns["x_adv"], y, ids, self.protocol.draws, self.rows)
                inputs["adversarial"] = judged(*found)
        if self.attack is not None and self.protocol.noise == "known" and self.protocol.transfer_draws:
            with self.target.environment():
                found = judge(self.target, columns["x_adv"], y, ids, self.protocol.transfer_draws, self.rows)
            inputs["transfer"] = judged(*found)
        clock.append(time.perf_counter())
        clean, attack, judging = np.diff(clock).tolist()
        return Block(_records(positions, x, y, ids, columns, inputs), Seconds(clean, attack, judging))

    def _attack(self, problem: Problem, tick: Tick) -> dict[str, Any]:
        assert self.attack is not None
        total = len(problem.x) * self.attack.eot()
        attack: Attack = replace(self.attack, batch_size=even(total, self.rows))  # type: ignore[type-var]
        with attack.conditions(problem.target):
            proposal = attack.propose(problem, tick)
        # The attack's word is not taken: what is stored is projected, and its distance measured, here.
        x_adv, distance = attack.admit(proposal, problem)
        verdict = None if proposal.verdict is None else proposal.verdict[:, 0]
        return {
            "x_adv": x_adv,
            "distance": distance,
            "trace": proposal.losses,
            "zero_gradient": proposal.zero_gradients,
            "agreement": proposal.agreement,
            "correct": proposal.correct,
            "spent_at": proposal.spent_at,
            "spent": proposal.spent,
            "verdict": verdict,
            "ending": tuple(text for text in (proposal.stopped, *proposal.notes) if text),
        }

    def _shrink(self, size: int, error: BaseException) -> None:
        """Halve the block, and once it is a single image the rows of a network call."""
        # Images that share a budget stay together: cut elsewhere, they would be attacked otherwise.
        together = self.attack is not None and self.attack.shares
        if size > 1 and not together:
            self.limit = (size + 1) // 2
        elif self.rows > 1:
            self.rows = (self.rows + 1) // 2
        else:
            what = "not even one image and one draw fit"
            remedy = "a smaller network, precision='bf16' or memory='recompute'"
            if size > 1:
                what = f"{size} images that share a budget do not fit, one draw at a time,"
                remedy += ", or a smaller batch_size, which is another run"
            raise OutOfMemory(
                f"{what} into memory: {str(error).splitlines()[0]}. Use {remedy}; finished images are safe"
            ) from error
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def judged_by(attack: Attack | None, protocol: Protocol, sample_ids: Tensor) -> Attack | None:
    """The attack as an evaluation runs it: what it knows of images under their names, and how many draws will decide.

    An attack that decides itself when it is enough asks how sure the verdict will be.
    """
    if attack is None:
        return None
    named = attack.named(sample_ids)
    return replace(named, eval_draws=protocol.draws) if named.shares else named  # type: ignore[type-var]


def enter(defense: nn.Module | Target, dataset: Dataset, protocol: Protocol) -> Target:
    """``defense`` as a target that has been asked about the first image of ``dataset``, under ``protocol``.

    Raises:
        TypeError, ValueError, NonFiniteError: it does not fit the images, labels or protocol.
    """
    target = look_through(defense)
    if target.image_shape not in (None, tuple(dataset.image_shape)):
        raise ValueError(mistake("dataset", f"of images {target.image_shape}", dataset.image_shape))
    first = torch.arange(1)
    x, ids = dataset.batch(first).to(target.device), dataset.sample_ids[first].to(target.device)
    target = target.probed(x, ids, n_labels=int(dataset.labels.max()) + 1)
    dataset.fits(target.n_classes)
    with frozen(target, protocol):
        return target


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return not isinstance(error, OutOfMemory)
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in text or "out of memory" in text
    )


def _records(
    positions: Sequence[int],
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    columns: dict[str, Any],
    inputs: dict[str, list[Any]],
) -> list[ImageRecord]:
    ending = columns.get("ending", ())
    found = {name: value for name, value in columns.items() if value is not None and name != "ending"}
    arrays = {name: value.detach().cpu().numpy() for name, value in found.items()}
    originals, labels, names = x.cpu().numpy(), y.cpu().tolist(), ids.cpu().tolist()
    records = []
    for i, position in enumerate(positions):
        own: dict[str, Any] = {}
        for name, kind in (("distance", float), ("zero_gradient", bool), ("verdict", bool)):
            if name in arrays:
                own[name] = kind(arrays[name][i])
        if "agreement" in arrays and np.isfinite(arrays["agreement"][i]):
            own["agreement"] = float(arrays["agreement"][i]) + 0.0  # SQLite keeps no -0
        if "x_adv" in arrays:
            own["x_adv"] = arrays["x_adv"][i].copy()
            own["trace"] = np.ascontiguousarray(arrays["trace"][:, i], dtype=np.float32)
            own["course"], own["ending"] = _course(arrays, i), ending
        records.append(
            ImageRecord(
                position=int(position),
                sample_id=names[i],
                label=labels[i],
                x=originals[i].copy(),
                judged={name: rows[i] for name, rows in inputs.items()},
                **own,
            )
        )
    return records


def _course(arrays: dict[str, np.ndarray], i: int) -> Course | None:
    """What the attack says of its way on image ``i``; None if nothing."""
    walked = {
        name: np.ascontiguousarray(arrays[name][:, i], dtype=np.float32)
        for name in ("correct", "spent_at")
        if name in arrays
    }
    spent = float(arrays["spent"][i]) + 0.0 if "spent" in arrays else None
    if spent is not None and not np.isfinite(spent):  # SQLite keeps no NaN
        spent = None
    return Course(**walked, spent=spent) if walked or spent is not None else None
