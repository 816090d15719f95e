"""What a purification method is, data that describes and rebuilds itself, and index arithmetic that methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, ParamSpec, Protocol, cast, final

import numpy as np
from torch import Tensor, nn

from ..errors import mistake, one_of, positive, unexpected, warn_caller, whole
from ..guidance import Guidance
from ..nets import Denoiser
from ..reverse import Procedure
from ..schedule import VP, StepTable
from ..schedule.solvers import check_time
from ..shown import Card, Shown, brief
from ..signatures import REQUIRED, arguments, kinds
from .preparation import Preparation

COARSER = 5
"""A coarser method takes one step for this many of the method's unless told otherwise."""

_OWN = ("flowpure", "consistency")
_ON = "trained on the {} schedule"
_TRAINED = {"flowpure": "trained on FlowPure's path", "consistency": "trained as a consistency function"}
"""What a denoiser is, by ``Method.schedule``."""

SAME_LEVEL = 1.02
"""Noise levels count as the same up to this ratio."""

MOST, LARGEST = 100_000, 1e12
"""No setting counts further, or is larger: a table of so many rows is a mistake, and takes for ever."""

P = ParamSpec("P")
Condition = Callable[[Mapping[str, Any]], bool]
"""Whether something holds of the arguments of a method, by name."""


@final
@dataclass(frozen=True)
class Spec:
    """What a method takes.

    Attributes:
        name: of the method.
        settings: every setting with its default, in the order of the arguments; the network is none of them.
        network: the argument that is a network, None if the method takes none.
        required: whether there is no such method without that network.
        steps: the setting that says how many or how long the steps are, None if none does.
    """

    name: str
    settings: tuple[tuple[str, Any], ...]
    network: str | None = None
    required: bool = False
    steps: str | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of all arguments: the network's, where there is one, and those of the settings."""
        return (*(() if self.network is None else (self.network,)), *dict(self.settings))


class Factory(Protocol[P]):
    """A function of ``fastpure.methods``: makes a method of settings and, where it takes one, a network.

    Attributes:
        spec: what it takes.
        remembered: recorded settings -> the same with those that were left out for having their ``former`` value.
    """

    spec: Spec
    remembered: Callable[[Mapping[str, Any]], dict[str, Any]]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Method:
        """The method."""
        ...


@dataclass(frozen=True, repr=False)
class Method(Shown):
    """How to purify.

    The functions of ``fastpure.methods`` make methods that know how they were made and can be made anew with other
    settings. One put together by hand purifies just as well, but can only be replaced.

    Attributes:
        name: of the function that made it.
        settings: the arguments it was made with, for printing and for stored results.
        steps: the table, a row per step.
        guidance: what is added to the score, None if nothing is.
        clip_output: whether the purified image is clamped to [0, 1]; published COUP does, published DiffPure does not.
        procedure: walks the table where its rows alone do not say how.
        schedule: the noise schedule that a denoiser which is told times or steps must have been trained with; "flow",
            "flowpure" and "consistency" ask for networks of these kinds.
        note: what to call results, where that matters.
        network: the network it was made with, None if it was made without; not part of its value, as guidance is.
        factory: the function that made it, None for one put together by hand.
        prepare: what the image goes through before the table sees it, None if nothing.
    """

    name: str
    settings: tuple[tuple[str, object], ...]
    steps: StepTable = field(repr=False)
    guidance: Guidance | None = field(default=None, repr=False)
    clip_output: bool = False
    procedure: Procedure | None = field(default=None, repr=False)
    schedule: str = field(default="linear", repr=False)
    note: str = field(default="", repr=False)
    network: nn.Module | None = field(default=None, repr=False, compare=False)
    factory: Factory[...] | None = field(default=None, repr=False, compare=False)
    prepare: Preparation | None = field(default=None, repr=False)

    @staticmethod
    def of(
        table: StepTable,
        guidance: Guidance | None = None,
        clip_output: bool = False,
        procedure: Procedure | None = None,
        *,
        schedule: str = "linear",
        note: str = "",
        resolved: Mapping[str, object] | None = None,
        prepare: Preparation | None = None,
    ) -> Method:
        """What a function decorated with ``method`` returns: the parts that its arguments make, not yet named.

        ``resolved`` are settings that are recorded with another value than they were given, such as a number of steps
        in place of None.
        """
        settings = tuple((resolved or {}).items())
        return Method("", settings, table, guidance, clip_output, procedure, schedule, note, prepare=prepare)

    @property
    def network_calls(self) -> int:
        """Passes of an image through the denoiser, forth or back, in one purification, at most.

        Every call is one, and so is every way back of a step that itself differentiates the network; of a method that
        never calls a denoiser the same of its energy. An attacker's gradient takes twice as many.
        """
        parts = (self.guidance, self.procedure)
        return self.steps.n_network_calls + sum(part.passes(self.steps) for part in parts if part is not None)

    def table(self) -> StepTable:
        """The step table, one row per step, the diffusion of the input (if any) being row 0."""
        return self.steps

    def prepared(self, x: Tensor) -> Tensor:
        """The state that the table begins with, for images ``x`` [B, C, H, W] in [-1, 1]; differentiable.

        A guidance that reads the purifier's input reads the image itself, not this.
        """
        return x if self.prepare is None else self.prepare(x)

    def rebuilt(self, **changes: object) -> Method:
        """The same method with other settings; the rest, its network included, is what it was made with.

        What the method chose for itself counts as a setting: ``ddpm(t=0.1)`` with ``t=0.2`` keeps its 100 steps.

        Raises:
            ValueError: it has no such setting or cannot have that value, or was put together by hand.
        """
        if self.factory is None:
            remedy = "Make it again with Method(...), or by a function decorated with methods.base.method"
            raise ValueError(
                mistake("method", "one that fastpure.methods made", f"{self.name}, made by hand", remedy)
            )
        spec = self.factory.spec
        for setting in changes:
            one_of(f"settings of {self.name}", setting, dict(spec.settings))
        network = {} if spec.network is None else {spec.network: self.network}
        return self.factory(**{**self.factory.remembered(dict(self.settings)), **changes, **network})

    @property
    def step_setting(self) -> str | None:
        """The setting by which ``coarser`` makes the steps fewer, None if this method has none."""
        steps = None if self.factory is None else self.factory.spec.steps
        return steps if steps in dict(self.settings) else None

    def coarser(self, steps: int | None = None, dt: float | None = None) -> Method:
        """The same method in fewer steps: a fifth of them, or ``steps``, or steps of length ``dt``.

        Raises:
            ValueError: the method has no steps to change, both were given, or ``dt`` where steps are counted.
        """
        setting, settings = self.step_setting, dict[str, Any](self.settings)
        if setting is None:
            raise ValueError(mistake("method", "one whose settings say how many steps it takes", self.name))
        if steps is not None:
            whole("steps", steps, minimum=1)
            if dt is not None:
                raise ValueError(mistake("dt", "None where steps are given", dt))
        if setting == "dt":
            n = steps or max(1, round(self.steps.n_network_calls / COARSER))
            return self.rebuilt(dt=settings["t"] / n if dt is None else positive("dt", dt))
        if dt is not None:
            remedy = f"Give `steps`, which becomes {setting}"
            raise ValueError(mistake("dt", f"None for {self.name}, whose steps are counted", dt, remedy))
        n = steps or max(1, round(settings[setting] / COARSER))
        # Fewer steps of the same length would stop earlier.
        longer = {"dt": settings["dt"] * (settings[setting] / n)} if "dt" in settings else {}
        return self.rebuilt(**{setting: n}, **longer)

    def detached(self) -> Method:
        """The same method with its guidance a constant to whoever differentiates: a weaker attacker, by name.

        Raises:
            ValueError: the method has no such setting.
        """
        if "guidance_grad" not in dict(self.settings):
            raise ValueError(mistake("method", "one with the setting guidance_grad", self.name))
        return self.rebuilt(guidance_grad="detached")

    def weakened(self, share: float) -> Method:
        """The same method with its guidance times ``share``, without guidance for 0: a relative to attack instead.

        It purifies otherwise, and cannot be made anew from its settings.

        Args:
            share: in [0, 1].

        Raises:
            ValueError: no guidance, another share, or a method whose procedure and not its table weighs the guidance
                and that has no setting for it.
        """
        if self.guidance is None:
            raise ValueError(mistake("method", "one with guidance", self.name))
        if not 0.0 <= number("share", share) <= 1.0:
            raise ValueError(mistake("share", "in [0, 1]", share))
        if self.procedure is not None and not self.procedure.guided_by_table:
            return self._weakened_by_settings(share)
        guidance = self.guidance if share else None
        return replace(self, steps=self.steps.weakened(share), guidance=guidance, factory=None)

    def _weakened_by_settings(self, share: float) -> Method:
        spec, settings = (None if self.factory is None else self.factory.spec), dict(self.settings)
        if spec is None or self.factory is None or "confidence" not in settings or spec.required:
            remedy = "Use gradient='exact'"
            raise ValueError(mistake("method", "one whose guidance can be weighed", self.name, remedy))
        if share:
            return self.rebuilt(confidence=share * cast(float, settings["confidence"]))
        kept = {
            name: value for name, value in settings.items() if name not in ("confidence", "guidance_grad")
        }
        return self.factory(**kept)

    def check_denoiser(self, denoiser: Denoiser) -> None:
        """Raise ValueError if ``denoiser`` has another schedule, image shape or answer than this method, or classes."""
        denoiser.check_needs_no_class()
        if self.guidance is not None:
            self.guidance.check_images(denoiser.image_shape)
        if self.prepare is not None:
            self.prepare.check_images(denoiser.image_shape)
        if self.procedure is not None:
            self.procedure.check_denoiser(denoiser)
        found = denoiser.schedule if denoiser.prediction != "consistency" else "consistency"
        # These put a state of any levels onto their own; but what the last two answer is no noise of such a state.
        adapts = denoiser.time_input == "sigma" or found == "flow"
        if found != self.schedule and (not adapts or {found, self.schedule} & set(_OWN)):
            expected = f"{_TRAINED.get(self.schedule, _ON).format(self.schedule)} for {self.name}"
            raise ValueError(mistake("denoiser", expected, f"one {_TRAINED.get(found, _ON).format(found)}"))

    @property
    def highest_level(self) -> float:
        """Highest noise level, sigma / alpha, at which the denoiser is asked; 0 where it never is."""
        own = 0.0 if self.procedure is None else self.procedure.asked_level(self.steps)
        return max(
            self.steps.highest_level, own, 0.0 if self.guidance is None else self.guidance.asked_level()
        )

    def warn_untrained(self, denoiser: Denoiser) -> None:
        """Warn (UserWarning) where the ``denoiser`` is asked at more noise than it is known to be trained at."""
        known, asked = None if denoiser.checkpoint is None else denoiser.checkpoint.t_max, self.highest_level
        if known is None or not asked:
            return
        # Chains and the continuous schedule differ by a fraction of a per cent at the same time.
        if asked > SAME_LEVEL * math.exp(-VP().log_snr_half(known)):
            time = VP().time_of(-math.log(asked))
            said = f"the denoiser was trained at times up to t = {known:.3g} of the diffusion"
            remedy = "Use a smaller t, or a denoiser that was trained further"
            asks = f"{self.name} asks it at t = {time:.3g}. What it answers there is a guess"
            warn_caller(f"{said}, and {asks}. {remedy}")

    def _shown(self) -> Card:
        network = [] if self.network is None else [("network", type(self.network).__name__)]
        note = [("note", self.note)] if self.note else []
        settings = [(name, brief(value)) for name, value in self.settings]
        rows = [("clip_output", str(self.clip_output)), ("schedule", self.schedule), *network, *note]
        known = dict(settings)
        table = self.steps._shown()
        return Card(
            str(self),
            more=(*settings, *(row for row in rows if row[0] not in known), *table.rows),
            grids=table.grids,
        )

    def __str__(self) -> str:
        text = ", ".join(f"{name}={value!r}" for name, value in self.settings)
        note = f" ({self.note})" if self.note else ""
        return f"{self.name}({text}): {self.network_calls} network calls{note}"


def method(
    *,
    network: str | None = None,
    steps: str | None = None,
    since: Mapping[str, object] | None = None,
    former: Mapping[str, object] | None = None,
    only: Mapping[str, Condition] | None = None,
    order: tuple[str, ...] = (),
) -> Callable[[Callable[P, Method]], Factory[P]]:
    """Decorates a function that returns ``Method.of(...)``: its arguments become the method's settings.

    Args:
        network: the argument that is a network ("classifier", "auxiliary"); the method keeps it beside its settings.
        steps: the setting that says how many steps there are, or "dt" for their length, of which ``t`` is the whole.
        since: settings that came after the method's first release, with the value that it had before. They are
            recorded only where they differ, so that older run files still name the same method.
        former: the same for settings whose default is not what the method did before: they are recorded unless they
            have the value that it had then, and a record without them means that value (``remembered``).
        only: settings that mean something, and are recorded, only where this holds of the arguments as given.
        order: settings that are printed first, where that is another order than the arguments'.
    """
    since, former, only = since or {}, former or {}, only or {}
    before = {**since, **former}

    def decorate(function: Callable[P, Method]) -> Factory[P]:
        name, taken = function.__name__, arguments(function)
        settings = {key: value for key, value in taken.items() if key != network}
        if any(settings[key] != value for key, value in since.items()):
            # What is left out comes back as the default.
            raise TypeError(mistake("since", f"the defaults of {name}", since))
        if any(settings[key] == value for key, value in former.items()):
            raise TypeError(mistake("former", f"other values than the defaults of {name}", former))
        named, written = dict.fromkeys((*order, *settings)), kinds(function)

        @wraps(function)
        def make(*args: P.args, **kwargs: P.kwargs) -> Method:
            error = unexpected(name, kwargs, taken)
            if error is not None:
                raise error
            given = {**taken, **dict(zip(taken, args, strict=False)), **kwargs}
            # A wrong call raises Python's own TypeError below, with this function's name.
            if len(args) <= len(taken) and kwargs.keys() <= taken.keys():
                for key in settings:
                    check_setting(key, given[key], written[key])
            made = function(*args, **kwargs)
            values = {**given, **dict(made.settings)}
            recorded = tuple(
                (key, values[key])
                for key in named
                if (key not in before or values[key] != before[key]) and (key not in only or only[key](given))
            )
            kept = None if network is None else given[network]
            return replace(made, name=name, settings=recorded, network=kept, factory=factory)

        def remembered(recorded: Mapping[str, Any]) -> dict[str, Any]:
            given = {**taken, **recorded}
            left_out = {
                key: value
                for key, value in former.items()
                if key not in recorded and (key not in only or only[key](given))
            }
            return {**left_out, **recorded}

        required = network is not None and taken[network] is REQUIRED
        factory = cast(Factory[P], make)
        factory.remembered = remembered
        factory.spec = Spec(name, tuple(settings.items()), network, required, steps)
        return factory

    return decorate


def check_setting(argument: str, value: Any, kind: str) -> None:
    """Raise unless ``value`` is of the ``kind`` that the method's signature says, finite, and of a sane size.

    Ranges that mean something are the method's own; here is what no setting of any method may be, used or not.

    Raises:
        TypeError, ValueError: the message names the argument.
    """
    if value is None and kind.endswith("| None"):
        return
    kind = kind.removesuffix(" | None")
    if kind == "bool":
        if not isinstance(value, bool):
            raise TypeError(mistake(argument, "True or False", f"{type(value).__name__} {value!r}"))
    elif kind == "int":
        whole(argument, value, 0, MOST)
    elif kind == "float":
        _finite(argument, value)
    elif kind == "str":
        if not isinstance(value, str):
            raise TypeError(mistake(argument, "a name", f"{type(value).__name__} {value!r}"))
    elif kind == "tuple[int, int, int]":
        if not isinstance(value, tuple | list) or len(value) != 3:
            raise ValueError(mistake(argument, "three whole numbers", repr(value)[:200]))
        for part in value:
            whole(argument, part, 1, MOST)
    elif kind == "tuple[float, float]":
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ValueError(mistake(argument, "two numbers (low, high)", repr(value)))
        for part in value:
            _finite(argument, part)
    elif kind == "Sequence[Sequence[int]]":
        pairs = isinstance(value, tuple | list) and all(isinstance(pair, tuple | list) for pair in value)
        if not pairs or sum(map(len, value)) > MOST:
            raise ValueError(mistake(argument, f"at most {MOST} pairs of whole numbers", repr(value)[:200]))


def _finite(argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(mistake(argument, "a number", f"{type(value).__name__} {value!r}"))
    if not -LARGEST <= value <= LARGEST:  # NaN is not
        shown = repr(value) if isinstance(value, float) else f"an integer of {value.bit_length()} bits"
        raise ValueError(mistake(argument, f"a finite number of at most {LARGEST:g}", shown))


def discrete_index(t: float, n: int = 1000, argument: str = "t") -> int:
    """Zero-based index of the step that ends at time ``t``: 99 for t = 0.1 of 1000 steps."""
    steps = int(np.floor(check_time(t, argument) * n + 1e-6))
    if steps < 1:
        raise ValueError(mistake(argument, f"at least one of {n} discrete steps, {1 / n}", t))
    return steps - 1


def start_index(t: float, n: int = 1000) -> int:
    """Index of the diffusion in methods that diffuse one step further than they come back from: 100 for t = 0.1."""
    index = discrete_index(t, n) + 1
    if index >= n:
        raise ValueError(mistake("t", f"at most {(n - 1) / n}", t))
    return index


def spaced_indices(start: int, n_steps: int, spacing: str) -> list[int]:
    """``n_steps`` of the indices start..0, descending.

    "trailing" ends each block of equal length and so begins at ``start``; "linspace" includes both ends.
    """
    one_of("spacing", spacing, ("trailing", "linspace"))
    whole("n_steps", n_steps, minimum=1, maximum=start + 1)
    if spacing == "linspace":
        return [round(i) for i in np.linspace(start, 0, n_steps)]
    return [round((start + 1) * (n_steps - k) / n_steps) - 1 for k in range(n_steps)]


def number(argument: str, value: float) -> float:
    """Return ``value`` as float if it is a finite number >= 0; otherwise raise TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(mistake(argument, "a number >= 0", f"{type(value).__name__} {value!r}"))
    if not 0 <= value < float("inf"):
        raise ValueError(mistake(argument, "a finite number >= 0", value))
    return float(value)
