"""The frame around every attack: it proposes; here its proposal is projected, measured and re-scored."""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, mistake, named, unexpected, whole
from ..intervals import Interval, wilson
from ..progress import Progress
from ..purify import Target, look_through
from ..purify.inputs import check_range, images_remedy
from ..reverse import Execution
from ..shown import Card, Fields, Settings, Shown
from ..signatures import arguments, takes_any
from .budget import Admissible, Budget
from .gradient import score
from .printed import result_card
from .weakness import Effort, Finding, Seen, Setting, check, noise_left_by


@dataclass(frozen=True, eq=False, repr=False)
class AttackResult(Shown):
    """Adversarial images with their verdict.

    Attributes:
        x_adv: [B, C, H, W] float32, inside the budget and [0, 1].
        clean_correct: bool [B, K], the original images on K evaluation draws (K = 1 if nothing is random).
        robust_correct: bool [B, K], the adversarial images on the same draws.
        distance: float64 [B], measured on the stored pixels.
        losses: float32 [n_iter, B], the attack's loss at each iterate; NaN where an image was not attacked.
        seconds: wall time of the attack, without the scoring.
        attack: the attack with its settings, as text.
        execution: how the defence's steps were carried out; None for a module that is no ``Defense``.
        zero_gradients: bool [B], where the attack's first gradient was exactly zero: it could not move the image,
            and robustness there shows nothing. None for attacks that use no gradient.
        agreement: float64 [B], mean over the iterations of how far two halves of the draws agree on the gradient (a
            cosine, see ``Query``); NaN where not measured, None for attacks that use no gradient.
        setting: what the attack was and met, for `findings`; None if nobody said.
        sample_ids: int64 [B], the names of the images; None in results put together by hand.
        spent: float64 [B], gradients of the defence spent on each image, a forward pass counting a half and a cheaper
            gradient its share of the network passes; None where the attack does not count.
        stopped: why an attack that decides so itself (`Adaptive`) has ended; empty for others.
        own_notes: what the attack meant to do and did not, each with the reason.
    """

    x_adv: Tensor
    clean_correct: Tensor
    robust_correct: Tensor
    distance: Tensor
    losses: Tensor
    seconds: float
    attack: str
    execution: Execution | None = None
    zero_gradients: Tensor | None = None
    agreement: Tensor | None = None
    setting: Setting | None = None
    sample_ids: Tensor | None = None
    spent: Tensor | None = None
    stopped: str = ""
    own_notes: tuple[str, ...] = ()

    @property
    def clean_accuracy(self) -> Interval:
        """Mean accuracy of one draw on the original images, Wilson interval over images."""
        return _accuracy(self.clean_correct)

    @property
    def robust_accuracy(self) -> Interval:
        """Mean accuracy of one draw on the adversarial images, Wilson interval over images."""
        return _accuracy(self.robust_correct)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Every check for a weak attack with its value, as in an evaluation; none where the setting is not known."""
        if self.setting is None:
            return ()
        n = len(self.distance)

        def column(values: Tensor | None) -> np.ndarray:
            return np.full(n, np.nan) if values is None else values.detach().cpu().double().numpy()

        seen = Seen(
            correct=self.clean_correct.cpu().numpy(),
            clean=column(self.clean_correct.double().mean(1)),
            robust=column(self.robust_correct.double().mean(1)),
            distances=column(self.distance),
            traces=self.losses.detach().cpu().numpy().T,
            zero_gradients=column(self.zero_gradients),
            agreement=column(self.agreement),
        )
        return check(self.setting, seen)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that say the numbers should not be trusted as they are."""
        return tuple(finding for finding in self.findings if finding.alarm)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was asked for and not done, such as members of an ensemble that need more classes."""
        effort = None if self.setting is None else self.setting.effort
        return (*self.own_notes, *(() if effort is None else effort.left_out))

    def __str__(self) -> str:
        lines = [self.attack, f"clean  {self.clean_accuracy}", f"robust {self.robust_accuracy}"]
        if self.spent is not None and len(self.spent):
            ended = f", {self.stopped}" if self.stopped else ""
            lines.append(f"spent  {float(self.spent.mean()):.4g} gradients per image{ended}")
        lines += [f"NOTE     {note}" for note in self.notes]
        return "\n".join([*lines, *(f"WARNING  {warning}" for warning in self.warnings)])

    def _shown(self) -> Card:
        return result_card(self)

    @staticmethod
    def joined(parts: Sequence[AttackResult]) -> AttackResult:
        """One result of an attack that was run on parts of a set of images, in their order, on the CPU."""
        longest = max(len(part.losses) for part in parts)

        def column(name: str) -> Tensor:
            return torch.cat([getattr(part, name).cpu() for part in parts])

        def optional(name: str) -> Tensor | None:
            return None if any(getattr(part, name) is None for part in parts) else column(name)

        losses = []
        for part in parts:
            rest = part.losses.new_full((longest - len(part.losses), part.losses.shape[1]), torch.nan)
            losses.append(torch.cat([part.losses, rest]).cpu())
        return replace(
            parts[0],
            x_adv=column("x_adv"),
            clean_correct=column("clean_correct"),
            robust_correct=column("robust_correct"),
            distance=column("distance"),
            losses=torch.cat(losses, 1),
            seconds=sum(part.seconds for part in parts),
            zero_gradients=optional("zero_gradients"),
            agreement=optional("agreement"),
            sample_ids=optional("sample_ids"),
            spent=optional("spent"),
            stopped="; ".join(dict.fromkeys(part.stopped for part in parts if part.stopped)),
            own_notes=tuple(dict.fromkeys(note for part in parts for note in part.own_notes)),
        )


def _accuracy(correct: Tensor) -> Interval:
    return wilson(float(correct.double().mean(1).sum()) if len(correct) else 0.0, len(correct))


Tick = Callable[[int, float], None]
"""Called after each iteration with its number and the mean loss."""

Count = Callable[["Attack"], tuple[float, float]]
"""Most purifications with and without gradient per image that an attack asks for."""


@dataclass(frozen=True, repr=False)
class Problem(Fields):
    """What is attacked: the target, images [B, C, H, W] in [0, 1], labels [B] and sample ids [B]."""

    target: Target
    x: Tensor
    y: Tensor
    ids: Tensor

    @property
    def n_classes(self) -> int:
        """How many classes the target tells apart."""
        return self.target.n_classes

    @property
    def defense(self) -> nn.Module:
        """The module behind the target, as attacks written for version 0.1 used it."""
        warnings.warn("Problem.defense is now Problem.target.module", DeprecationWarning, stacklevel=2)
        return self.target.module

    def part(self, chosen: Tensor) -> Problem:
        """The same for some of the images, named by index."""
        return replace(self, x=self.x[chosen], y=self.y[chosen], ids=self.ids[chosen])


@dataclass(frozen=True, eq=False, repr=False)
class Proposal(Fields):
    """What an attack suggests; ``Attack`` projects, measures and re-scores it.

    Attributes:
        x: candidate images [B, C, H, W].
        losses: the attack's loss on the way, float [n_iter, B]; NaN where an image was not attacked (any more).
        zero_gradients: bool [B], where the first gradient was exactly zero though the image was classified correctly;
            None where no gradient is used.
        verdict: bool [B, 1], decisions of a protocol that the attack carries by name, or None: fresh draws decide.
        agreement: float64 [B], mean of ``Query.agreement`` over the queries; None where no gradient is used.
        correct: float32 [n_iter, B], share of the attack's draws that were right at each point looked at; rows and NaN
            as in ``losses``.
        spent_at: float32 [n_iter, B], gradients of the deployed defence spent on the image by then; NaN likewise.
        spent: float64 [B], gradients spent on each image in all; a forward pass counts a half.
        stopped: why an attack that decides so itself has ended; empty for others.
        notes: what was meant to be done and was not, each with the reason.
    """

    x: Tensor
    losses: Tensor
    zero_gradients: Tensor | None = None
    verdict: Tensor | None = None
    agreement: Tensor | None = None
    correct: Tensor | None = None
    spent_at: Tensor | None = None
    spent: Tensor | None = None
    stopped: str = ""
    notes: tuple[str, ...] = ()


class Attack(Settings, ABC):
    """Base of all attacks; subclasses are frozen dataclasses that implement ``propose``."""

    asks: ClassVar[bool] = True
    """Whether ``propose`` asks the target anything."""

    shares: ClassVar[bool] = False
    """Whether the images of one call share a budget, so that what comes out for one depends on the others."""

    seeks: ClassVar[bool] = True
    """Whether its images were chosen to be misclassified: signs of a weak attack do not apply to mere corruptions."""

    gradient: str | None = None
    """What it differentiates, a name of ``MODES`` (a field where it can be chosen); None if it follows no gradient."""

    eval_draws: int
    """How many fresh draws decide; a field of every subclass."""

    batch_size: int
    """Most (image, draw) pairs in one network call; a field of every subclass."""

    def __new__(cls, *args: Any, **settings: Any) -> Any:
        """Refuses settings that it has not, as the dataclass would, and says what was meant."""
        if model := next((one for one in args if isinstance(one, nn.Module)), None):
            # In torchattacks and ART an attack is made for one model.
            name, given = cls.__name__, type(model).__name__
            raise TypeError(
                f"{name}() takes settings, got {given}. Call what {name}(...) returns: {name}(...)(defense, x, y)"
            )
        own = getattr(cls, "__dataclass_fields__", {})
        # A subclass may have written its ``__init__`` itself.
        if any(name not in own for name in settings) and not takes_any(cls.__init__):
            known = [name for name in arguments(cls.__init__) if name != "self"]
            if error := unexpected(cls.__name__, settings, known):
                raise error
        return super().__new__(cls)

    @property
    @abstractmethod
    def budget(self) -> Admissible:
        """The images the attack may return."""

    @property
    def admissible(self) -> Admissible:
        """The same, also where an attack means something else by its ``budget``."""
        return self.budget

    @abstractmethod
    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """Adversarial images and what was seen on the way."""

    def conditions(self, target: Target) -> AbstractContextManager[object]:
        """What holds while the attack runs and is judged; held noise for white-box protocols."""
        return nullcontext()

    def iterations(self) -> int:
        """How often ``propose`` calls its ``tick`` at most, restarts and targets included; 0 if it does not say."""
        return 0

    def eot(self) -> int:
        """Most draws of one image that are asked about together."""
        return 1

    def effort(self, n_classes: int) -> Effort:
        """What it spends on an image of a target with ``n_classes`` classes, for the signs of a weak attack."""
        return Effort()

    def spoken_for(self) -> int:
        """Evaluation draws below this number are taken: by the verdict, or by what ``propose`` chose on them."""
        return self.eval_draws

    def named(self, sample_ids: Tensor) -> Attack:
        """The attack with what it knows of particular images under their names, of images [B] in the same order.

        Asked for at every door, so that ``propose`` may be given the images in parts.
        """
        return self

    def planned(self, random: bool, n_classes: int, count: Count) -> tuple[float, float] | None:
        """Most purifications with and without gradient per image, where that is known; None to have them counted.

        Args:
            random: whether the target draws noise that has a number, and is not held.
            n_classes: of the data.
            count: the same of another attack, counted if need be.
        """
        return None

    def for_counting(self) -> Attack:
        """An attack that asks as often at most, of any images: without what this one knows of particular ones."""
        if self.gradient in (None, "exact"):
            return self
        # Another gradient mode asks as often, and no query costs more than the exact one.
        settings = {"gradient": "exact", "surrogate_steps": None, "surrogate_dt": None}
        return replace(self, **settings)  # type: ignore[type-var]

    @final
    def admit(self, proposal: Proposal, problem: Problem) -> tuple[Tensor, Tensor]:
        """The proposed images, projected into the budget and stored as float32, and their distances float64 [B].

        Raises:
            NonFiniteError: the proposal holds NaN or Inf; the message names the samples.
        """
        bad = ~torch.isfinite(proposal.x).flatten(1).all(1)
        if bool(bad.any()):
            raise NonFiniteError(f"the attack proposed NaN or Inf for {named(problem.ids, bad)}")
        ball = self.admissible
        x_adv = ball.project(proposal.x.detach().to(problem.x.dtype), problem.x)
        distance = ball.distance(x_adv, problem.x)
        allowed = ball.admits(distance)
        if not bool(allowed.all()):
            # The projection is exact, so this is a defect of it and no circumstance to go on under.
            raise AssertionError(f"{int((~allowed).sum())} adversarial images left the budget of {self}")
        return x_adv, distance

    @final
    def __call__(
        self,
        defense: nn.Module | Target,
        x: Tensor,
        y: Tensor,
        *,
        sample_ids: Tensor | list[int] | None = None,
        report: Tick | None = None,
        progress: bool = False,
    ) -> AttackResult:
        """Attack ``defense`` on images ``x`` with labels ``y``.

        Args:
            defense: a ``Defense``, a module around one, or any module from [0, 1] images to logits. One that answers
                differently each time is random, and is asked ``eot_iter`` and ``eval_draws`` times.
            x: [B, C, H, W] float32 in [0, 1].
            y: int64 [B], true classes.
            sample_ids: names of the images for the noise; 0..B-1 if omitted.
            report: called with (iteration, mean loss).
            progress: show a bar, over the attack's iterations and then over the pairs that are judged.

        Raises:
            TypeError, ValueError: images, labels or ids are not as described; the message names the argument.
        """
        # Whatever the caller records or not, an attack differentiates.
        target = look_through(defense)
        with torch.inference_mode(False), torch.enable_grad(), target.environment():
            problem = _check(target, x, y, sample_ids)
            attack = self.named(problem.ids)
            with attack.conditions(problem.target):
                return attack._judge(problem, report, progress)

    def _judge(self, problem: Problem, report: Tick | None, progress: bool) -> AttackResult:
        begin = time.perf_counter()
        name = type(self).__name__
        with Progress(self.iterations() or None, "iterations", doing=name, shown=progress) as bar:

            def tick(iteration: int, loss: float) -> None:
                bar.to(iteration + 1, note=f"loss {loss:.4g}" if progress else "")
                if report is not None:
                    report(iteration, loss)

            proposal = self.propose(problem, tick)
        seconds = time.perf_counter() - begin
        x_adv, distance = self.admit(proposal, problem)
        arguments = (problem.y, problem.ids, self.eval_draws, self.batch_size)
        verdict = proposal.verdict
        draws = self.eval_draws if problem.target.is_random else 1
        pairs = len(problem.ids) * draws * (2 if verdict is None else 1)
        with Progress(pairs, "answers", doing=f"judging {name}", shown=progress) as bar:
            clean_correct = score(problem.target, problem.x, *arguments, seen=bar.step)
            robust_correct = (
                score(problem.target, x_adv, *arguments, seen=bar.step) if verdict is None else verdict
            )
        _warn_of_zero_gradients(proposal, clean_correct)
        return AttackResult(
            x_adv=x_adv,
            clean_correct=clean_correct,
            robust_correct=robust_correct,
            distance=distance,
            losses=proposal.losses,
            seconds=seconds,
            attack=str(self),
            zero_gradients=proposal.zero_gradients,
            execution=problem.target.execution,
            agreement=proposal.agreement,
            sample_ids=problem.ids.to(torch.int64),
            spent=proposal.spent,
            stopped=proposal.stopped,
            own_notes=proposal.notes,
            setting=Setting(
                n_classes=problem.n_classes,
                random=problem.target.is_random,
                noise_left=noise_left_by(problem.target.methods),
                effort=self.effort(problem.n_classes) if self.seeks else None,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class NormAttack(Attack):
    """An attack inside an lp ball.

    Attributes:
        norm: "Linf", "L2" or "L1".
        eps: radius in [0, 1] units.
        eval_draws: fresh draws that decide in the end.
        batch_size: most (image, draw) pairs in one network call.
        seed: of the attack's own random choices.
    """

    norm: str = "Linf"
    eps: float = 8 / 255
    eval_draws: int = 10
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", Budget(self.norm, self.eps).norm)
        whole("eval_draws", self.eval_draws, minimum=1)
        whole("batch_size", self.batch_size, minimum=1)
        whole("seed", self.seed, maximum=2**64 - 1)

    @property
    def budget(self) -> Budget:
        """The ball in which the adversarial images lie."""
        return Budget(self.norm, self.eps)


def _warn_of_zero_gradients(proposal: Proposal, clean_correct: Tensor) -> None:
    if proposal.zero_gradients is None:
        return
    n = int((proposal.zero_gradients & clean_correct.any(1)).sum())
    if n:
        warnings.warn(
            f"the gradient is exactly zero for {n} of {len(clean_correct)} images, so the attack cannot move them "
            "and their robustness is not shown. Try another loss ('margin' or 'dlr' instead of 'ce') or another "
            "gradient mode",
            RuntimeWarning,
            stacklevel=4,
        )


def _check(target: Target, x: Tensor, y: Tensor, sample_ids: Tensor | list[int] | None) -> Problem:
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.dim() != 4:
        got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(mistake("x", "a float32 tensor [B, C, H, W]", got, images_remedy(x)))
    if len(x):
        check_range(x)
    columns = isinstance(y, Tensor) and y.dim() == 2
    remedy = "One column per class: y.argmax(1) are the classes" if columns else ""
    if not isinstance(y, Tensor) or y.dtype not in (torch.int64, torch.int32, torch.uint8):
        got = str(y.dtype) if isinstance(y, Tensor) else type(y).__name__
        remedy = remedy or ("Use y.long()" if isinstance(y, Tensor) else "Use torch.as_tensor(y)")
        raise TypeError(mistake("y", "an integer tensor [B]", got, remedy))
    if tuple(y.shape) != (len(x),):
        raise ValueError(
            mistake("y", f"of shape [{len(x)}], one label per image", f"{list(y.shape)}", remedy)
        )
    ids = torch.arange(len(x)) if sample_ids is None else torch.as_tensor(sample_ids)
    if tuple(ids.shape) != (len(x),):
        raise ValueError(mistake("sample_ids", f"one id per image, {len(x)}", f"{list(ids.shape)}"))
    x, y, ids = (
        x.detach().clamp(0.0, 1.0),
        y.to(x.device, torch.int64, copy=True),
        ids.to(x.device, copy=True),
    )
    return Problem(_probed(target, x, y, ids) if len(x) else target, x, y, ids)


def _probed(target: Target, x: Tensor, y: Tensor, ids: Tensor) -> Target:
    known = target.probed(x, ids)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= known.n_classes:
        raise ValueError(mistake("y", f"labels in 0..{known.n_classes - 1}", f"values in {low}..{high}"))
    return known
