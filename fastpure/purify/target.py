"""``Target``: whatever is attacked, evaluated or reported; nothing that has one asks for types.

It knows what it is: whether its noise is ours to number (a ``Defense``, also inside somebody's module), its own (a
module that answers differently each time), or none. Attacks and evaluations ask for logits of (images, ids, draws) and
need not know more. ``entry`` makes one of a module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NoReturn, final

import torch
from torch import Tensor, nn

from ..classifiers.base import call_constant, call_frozen, not_probabilities, require_eval
from ..errors import finite, mistake, whole
from ..kernels import Domain
from ..methods import Method
from ..reverse import Execution
from ..shown import Card, Shown, described
from .defense import Defense
from .description import describe_module, kept_of, plain, probe_images, weights_sha256
from .inputs import Asked, Held, Question, asking, check_shape, differ, held_noise, holding
from .numbered import Numbered, calls_inside, outermost
from .precision import PRECISIONS

ASKED = 8
"""How often a module is asked about one image before it counts as deterministic: coin flips inside it may agree."""


@dataclass(frozen=True, eq=False, repr=False)
class Target(Shown, ABC):
    """What an attack attacks and an evaluation judges.

    Attributes:
        module: what the caller handed in, wrappers that change nothing taken off.
        n_classes: how many classes there are; 0 before anybody has looked.
        own_noise: "" or which part draws noise that nobody can number, so that it never answers the same twice.
    """

    module: nn.Module
    n_classes: int = 0
    own_noise: str = ""

    def _shown(self) -> Card:
        rows = [("module", described(self.module)), ("classes", str(self.n_classes or "not known"))]
        rows += [("noise", f"of {self.own_noise}, which nobody can number")] if self.own_noise else []
        return Card(type(self).__name__, tuple(rows))

    @property
    @abstractmethod
    def numbered(self) -> bool:
        """Whether there is noise that ids and draws name, and that ``fixed`` can hold."""

    @property
    @abstractmethod
    def frozen(self) -> bool:
        """Whether the caller holds all numbered noise still."""

    @abstractmethod
    def fixed(self, draw: int = 0, part: str = "all") -> AbstractContextManager[object]:
        """One realisation of the noise for every question inside the block; see ``Defense.fixed``.

        Raises:
            TypeError: it has no noise that can be held.
            ValueError: it has no such part.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Parts, settings and weights as plain values: what a run's identity holds."""

    def answers(self, image_shape: tuple[int, int, int]) -> dict[str, Any]:
        """What its networks answer to fixed images, roughly; {} where that is never twice the same.

        ``describe`` sees structure, settings and weights. What else decides a result (a mean kept as a plain number, a
        temperature, a class label, code) is seen here.
        """
        if self.own_noise:
            return {}
        x = probe_images(image_shape, self.device, torch.float32)
        ids = torch.arange(len(x), device=x.device)
        with torch.no_grad(), self.environment():
            return self._answers(x, ids)

    def _answers(self, x: Tensor, ids: Tensor) -> dict[str, Any]:
        return {"module": kept_of(self.logits(x, ids, torch.zeros_like(ids), Domain.EVALUATION))}

    @abstractmethod
    def _answer(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor: ...

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of the images, or None where the module does not say."""
        return None

    @property
    def network_calls(self) -> int:
        """Calls of a diffusion model in one answer; 1 where there is none."""
        return 1

    @property
    def classifier_calls(self) -> int:
        """How many of them the classifier makes after the purification."""
        return 0

    @property
    def execution(self) -> Execution | None:
        """How purification steps are carried out; None where nothing purifies."""
        return None

    def environment(self) -> AbstractContextManager[None]:
        """Torch's settings under which it is attacked and judged, whatever the caller's are."""
        return PRECISIONS["fp32"].environment(self.device)

    @property
    def budgets_memory(self) -> bool:
        """Whether it recomputes rather than runs out of memory."""
        return False

    @property
    def purifies(self) -> bool:
        """Whether ``method``, ``purify``, ``classify``, ``trajectory`` and ``with_method`` work."""
        return False

    @property
    def method(self) -> Method:
        """How it purifies."""
        self.no_purifier("a method")

    @property
    def methods(self) -> tuple[Method, ...]:
        """Of all purifiers inside."""
        return ()

    def purify(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        """The purified images that its classifier sees, [B, C, H, W]; arguments as for ``logits``."""
        self.no_purifier("purify")

    def trajectory(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        """Every state of the purification, [K + 1, B, C, H, W] in [0, 1] units, unclamped."""
        self.no_purifier("trajectory")

    @final
    def classify(
        self,
        purified: Tensor,
        ids: Tensor,
        draws: Tensor | None = None,
        domain: Domain = Domain.EVALUATION,
    ) -> Tensor:
        """Logits [B, classes] of images that have been purified; arguments and errors as for ``logits``.

        ``draws`` and ``domain`` are for classifiers that draw noise; draw 0 if None.
        """
        draws = torch.zeros_like(ids) if draws is None else draws
        return self._looked_at(self._classify(purified, ids, draws, domain), ids)

    def _classify(self, purified: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        self.no_purifier("classify")

    def with_method(self, method: Method) -> Target:
        """The same networks and held noise with another method."""
        self.no_purifier("with_method")

    def no_purifier(self, purpose: str, remedy: str = "") -> NoReturn:
        """Raise TypeError: ``purpose`` needs a ``Defense``."""
        inside = [name for name, part in self.module.named_modules() if isinstance(part, Defense)]
        remedy = f"Attack its {inside[0]!r}, the Defense inside" if inside else remedy
        expected = f"a fastpure.Defense for {purpose}"
        raise TypeError(mistake("defense", expected, type(self.module).__name__, remedy))

    @property
    def defense(self) -> Defense:
        """The ``Defense`` itself; raises TypeError where there is none."""
        self.no_purifier("this")

    def realisation(self, draws: Tensor, domain: Domain) -> tuple[int | Tensor, Domain]:
        """The draw and domain that a question about ``draws`` is answered with: the held ones where noise is held."""
        return draws, domain

    @final
    @property
    def is_random(self) -> bool:
        """Whether different draws see different noise: then attacks average and decisions take many draws."""
        return bool(self.own_noise) or (self.numbered and not self.frozen)

    @final
    @property
    def device(self) -> torch.device:
        """Where its networks are."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @final
    def logits(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        """Logits [N, classes] of (image, draw) pairs, differentiable in the images.

        Args:
            x: images [N, C, H, W] in [0, 1].
            ids: sample ids int64 [N]; several pairs may share one.
            draws: int64 [N].
            domain: whose noise.

        Raises:
            NonFiniteError: NaN or Inf, with the sample ids.
            ValueError: no logits of this shape.
        """
        if not self.own_noise:
            answer = self._answer(x, ids, draws, domain)
        else:
            # A module may draw one noise for a whole batch: pairs of different draws must be different calls.
            parts = [(draws == draw).nonzero()[:, 0] for draw in draws.unique()]
            answers = [self._answer(x[part], ids[part], draws[part], domain) for part in parts]
            answer = (
                torch.cat(answers)[torch.argsort(torch.cat(parts))]
                if parts
                else self._answer(x, ids, draws, domain)
            )
        return self._looked_at(answer, ids)

    def _looked_at(self, answer: Any, ids: Tensor) -> Tensor:
        if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != len(ids):
            got = f"shape {list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
            remedy = "Wrap it in a module that returns the logits alone"
            raise ValueError(
                mistake("defense", f"a module that returns logits [{len(ids)}, classes]", got, remedy)
            )
        looked_at: Tensor = finite(answer, ids, f"the classifier {type(self.classifier).__name__}")
        return looked_at

    @property
    def classifier(self) -> nn.Module:
        """The network that answers."""
        return self.module

    @final
    def probed(self, x: Tensor, ids: Tensor, n_labels: int = 0) -> Target:
        """The same, having been asked about the first of the images ``x``.

        Raises:
            NonFiniteError, ValueError: no finite logits [B, classes], or fewer classes than ``n_labels``.
        """
        with torch.no_grad():
            known = self._probed(x[:1], ids[:1])
        if known.n_classes < n_labels:
            expected = (
                f"a classifier of at least {n_labels} classes, because there are labels 0..{n_labels - 1}"
            )
            raise ValueError(mistake("defense", expected, f"{known.n_classes} classes"))
        return known

    @abstractmethod
    def _probed(self, x: Tensor, ids: Tensor) -> Target: ...


@final
@dataclass(frozen=True, eq=False, repr=False)
class Defended(Target):
    """A ``Defense``: its noise is numbered by (id, draw, domain), and its parts can be asked for."""

    module: Defense

    @property
    def numbered(self) -> bool:
        """Always."""
        return True

    @property
    def frozen(self) -> bool:
        """See ``Target.frozen``."""
        return self.module.fixed_draw is not None

    def fixed(self, draw: int = 0, part: str = "all") -> AbstractContextManager[object]:
        """See ``Target.fixed``."""
        return self.module.fixed(draw, part)

    @property
    def defense(self) -> Defense:
        """It."""
        return self.module

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """See ``Target.image_shape``."""
        return self.module.purifier.image_shape

    @property
    def network_calls(self) -> int:
        """See ``Target.network_calls``."""
        return self.module.network_calls

    @property
    def classifier_calls(self) -> int:
        """See ``Target.classifier_calls``."""
        return calls_inside(self.module.classifier)

    @property
    def execution(self) -> Execution:
        """See ``Target.execution``."""
        return self.module.purifier.execution

    def environment(self) -> AbstractContextManager[None]:
        """Those of its purifier's precision."""
        return self.module.purifier.environment()

    @property
    def budgets_memory(self) -> bool:
        """With ``memory="auto"``."""
        return self.module.purifier.memory.choice == "auto"

    @property
    def purifies(self) -> bool:
        """Always."""
        return True

    @property
    def method(self) -> Method:
        """See ``Target.method``."""
        return self.module.purifier.method

    @property
    def methods(self) -> tuple[Method, ...]:
        """The one."""
        return (self.method,)

    @property
    def classifier(self) -> nn.Module:
        """The defended classifier."""
        return self.module.classifier

    def purify(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        """See ``Target.purify``."""
        draw, domain = self.realisation(draws, domain)
        return self.module.purify(x, ids, draw, domain=domain)

    def trajectory(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        """See ``Target.trajectory``."""
        draw, domain = self.realisation(draws, domain)
        return self.module.trajectory(x, ids, draw, domain=domain)

    def _classify(self, purified: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        draw, domain = self.realisation(draws, domain)
        return self.module.classify(purified, ids, draw, domain=domain)

    def with_method(self, method: Method) -> Defended:
        """See ``Target.with_method``."""
        purifier = self.module.purifier.with_method(method)
        return replace(self, module=self.module.with_purifier(purifier))

    def describe(self) -> dict[str, Any]:
        """See ``Target.describe``."""
        purifier = self.module.purifier
        return {
            "kind": "defense",
            "purifier": purifier.describe(),
            "method": plain(purifier.method),
            "seed": purifier.seed,
            "precision": purifier.precision,
            "gradient_precision": purifier.gradient_precision,
            "denoiser": {**purifier.denoiser.describe(), "sha256": weights_sha256(purifier.denoiser)},
            "classifier": described_classifier(self.module.classifier),
        }

    def realisation(self, draws: Tensor, domain: Domain) -> tuple[int | Tensor, Domain]:
        """See ``Target.realisation``."""
        # Held noise is the deployed defence's own: attacker and decision see the same.
        held = self.module.fixed_draw
        return (draws, domain) if held is None else (held, Domain.DEFENSE)

    def _answer(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        draw, domain = self.realisation(draws, domain)
        return self.module(x, ids, draw, domain=domain)

    def _answers(self, x: Tensor, ids: Tensor) -> dict[str, Any]:
        purifier = self.module.purifier
        found = {"classifier": kept_of(self.classify(x, ids))}
        noise = purifier.answers(x, ids)
        if noise is not None:
            found["denoiser"] = kept_of(noise, purifier.denoiser.dtype or torch.float32)
        seen = probe_images(purifier.denoiser.image_shape, x.device, x.dtype)
        guides = self.method.guidance.networks() if self.method.guidance else ()
        for i, guide in enumerate(guides):
            if guide is not self.module.classifier:
                dtype = next((p.dtype for p in guide.parameters()), x.dtype)
                found[f"guide {i}" if i else "guide"] = kept_of(call_frozen(guide, seen.to(dtype)), dtype)
        return found

    def _probed(self, x: Tensor, ids: Tensor) -> Defended:
        # Its parts one by one: a whole purification would cost as much as an attack's step.
        check_shape(x, self.image_shape)
        first = not_probabilities(self.classify(x, ids), "classifier")
        asked = 2 if self.classifier_calls else ASKED
        own = "the classifier" if _differs(first, lambda: self.classify(x, ids), asked) else ""
        own = own or self.module.purifier.own_noise(x, ids)
        return replace(self, n_classes=first.shape[1], own_noise=own)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Bare(Target):
    """Any other module from [0, 1] images to logits.

    Purifiers inside it take the ids and draws of the question, so a wrapped defence keeps its randomness. What differs
    between two answers nevertheless is noise of its own.

    Attributes:
        inside: the modules that took their noise from the question when probed, with the number of their calls.
    """

    inside: Mapping[Asked, int] = field(default_factory=dict)

    @property
    def numbered(self) -> bool:
        """Whether something inside took numbered noise."""
        return bool(self.inside)

    @property
    def frozen(self) -> bool:
        """See ``Target.frozen``."""
        held = (isinstance(part, Numbered) and part.fixed_draw is not None for part in self.inside)
        return held_noise(self.module) is not None or (self.numbered and all(held))

    def fixed(self, draw: int = 0, part: str = "all") -> AbstractContextManager[object]:
        """See ``Target.fixed``; a part of the noise can be held in the one ``Defense`` inside only."""
        if not self.numbered:
            self.no_purifier("noise that can be held", "Nothing is random here: use PGD")
        if part == "all":
            return holding(self.module, Held(whole("draw", draw, maximum=2**32 - 1)))
        (one, *more) = self.inside
        if more or not isinstance(one, Numbered):
            raise ValueError(mistake("part", "'all' for a module around several purifiers", repr(part)))
        return one.fixed(draw, part)

    @property
    def network_calls(self) -> int:
        """See ``Target.network_calls``."""
        return sum(n * part.network_calls for part, n in self.inside.items()) or 1

    @property
    def methods(self) -> tuple[Method, ...]:
        """Of the purifiers that were asked."""
        return tuple(method for part in self.inside for method in part.methods)

    @property
    def execution(self) -> Execution | None:
        """That of the first purifier inside."""
        found = (part.execution for part in self.inside)
        return next((execution for execution in found if execution is not None), None)

    def describe(self) -> dict[str, Any]:
        """See ``Target.describe``."""
        described: dict[str, Any] = {"kind": "module", "classifier": described_classifier(self.module)}
        inside = [part for part in self.module.modules() if isinstance(part, Defense)]
        if inside:
            described["inside"] = [Defended(part).describe() for part in inside]
        return described

    def _answer(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        held = held_noise(self.module)
        if held is not None:
            draws, domain = torch.full_like(draws, held.draw), Domain.DEFENSE
        return self._ask(x, ids, draws, domain, bool(self.inside))[0]

    def _ask(
        self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain, purifies: bool
    ) -> tuple[Tensor, Question]:
        require_eval(self.module, "defense")
        # Purifiers hold their weights constant themselves; around them nothing but the call must change.
        call = call_constant if purifies else call_frozen
        with asking(ids, draws, domain) as question:
            return call(self.module, x), question

    def _probed(self, x: Tensor, ids: Tensor) -> Bare:
        draws = torch.zeros_like(ids)
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # a module that draws from the global generator must not move it
            inside = bool(outermost(self.module))
            first, question = self._ask(x, ids, draws, Domain.EVALUATION, inside)
            first = not_probabilities(self._looked_at(first, ids), "defense")
            again = lambda: self._ask(x, ids, draws, Domain.EVALUATION, inside)[0]  # noqa: E731
            own = "the module" if _differs(first, again, 2 if question.calls else ASKED) else ""
        return replace(self, n_classes=first.shape[1], own_noise=own, inside=question.calls)


def described_classifier(module: nn.Module) -> dict[str, Any]:
    """``describe_module``; where it draws numbered noise itself, outside of a ``Defense``, also what it costs."""
    own = [part for part in outermost(module) if not isinstance(part, Defense)]
    calls = sum(part.network_calls for part in own if not part.methods)
    return {**describe_module(module), **({"network_calls": calls} if calls else {})}


def _differs(first: Tensor, again: Callable[[], Tensor], asked: int = ASKED) -> bool:
    """Whether one of ``asked`` - 1 further answers is not the first one."""
    return any(differ(first, again()) for _ in range(asked - 1))
