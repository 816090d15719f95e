"""Which of two: the one place that chooses between several sets of weights in a file or folder.

Training code keeps averaged weights (EMA) beside those that are trained, under names of its own. Both fit the network,
and they are different networks. Where both are there the averaged ones are taken, as their authors do when they
measure, and the report says so; ``weights="raw"``, ``"ema"`` or a name of the file chooses. Whatever these names do
not settle is refused until it is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from ..errors import CheckpointError, listed, mistake

CHOICES = ("ema", "raw")
"""What ``weights`` may be besides the name of a set."""

_AVERAGED = re.compile(
    r"(?<![a-z])(?<!non[_\-])(ema|averaged|average|swa|polyak|shadow)(?![a-z])", re.IGNORECASE
)
_RAW = re.compile(
    r"^(?:(?:non[_\-]?ema|raw|online_model|current_model_state)$|unaveraged(?![a-z])|"
    r"(?=.)(?:model|net|network|unet|module|weights|params|classifier|denoiser)?_?(?:state)?_?(?:dict)?$)",
    re.IGNORECASE,
)
_UNAVERAGED = "unaveraged_"
"""Robust training code keeps "model_state_dict", the average, beside "unaveraged_model_state_dict"."""

#: Entries of a training file whose tensors are no network's.
_OTHER = re.compile(r"optim|sched|scaler|loss|rng|random|amp|config|args|hyper|metric|history", re.IGNORECASE)
_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)*([A-Za-z0-9_\-]+)\.")
_PARALLEL = ("module.", "_orig_mod.")
_COUNTER = "n_averaged"
"""What torch's AveragedModel keeps beside the average."""

_DEEPEST = 4


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    """One of several sets of weights.

    Attributes:
        name: under which it stood.
        value: what stood there.
        said: which of averaged and raw it is, in words for the report.
        others: the sets that were left, in words.
    """

    name: str
    value: Any
    said: str
    others: tuple[str, ...] = ()


def is_averaged(name: str) -> bool:
    """Whether a set of weights of this name is the average of a training's."""
    return _AVERAGED.search(name) is not None


def is_raw(name: str) -> bool:
    """Whether a set of weights of this name is what was trained."""
    return not is_averaged(name) and any(_RAW.match(part) is not None for part in re.split(r"[/.]", name))


def choose(sets: Mapping[str, Any], weights: str | None, source: str) -> Chosen:
    """The one of ``sets``, by name, that is meant.

    Args:
        weights: "ema", "raw", a name of ``sets``, or None for averaged weights where there are any.

    Raises:
        ValueError: ``weights`` names what is not there.
        CheckpointError: more than one is left.
    """
    kinds = {name: _kind(name, sets) for name in sets}
    averaged, raw = ([name for name in sets if kinds[name] == kind] for kind in ("averaged", "raw"))
    unknown = [name for name in sets if name not in averaged and name not in raw]
    if weights is None:
        # A set of unknown meaning beside averaged ones may be anything: no reason to take it, or them.
        candidates = averaged if averaged and not unknown else list(sets)
    elif weights in sets:
        candidates = [weights]
    else:
        candidates = {"ema": averaged, "raw": raw}.get(weights, [])
    if not candidates:
        found = f"one of {', '.join(sorted(map(repr, sets)))}, which {source} has, or None"
        raise ValueError(mistake("weights", found, repr(weights)))
    if len(candidates) > 1:
        remedy = "Say which: weights=" + " or ".join(repr(name) for name in candidates[:4])
        raise CheckpointError(
            f"{source}: expected one set of weights, found {len(candidates)}: {listed(candidates)}. {remedy}"
        )
    (name,) = candidates
    others = tuple(f"{other} ({kinds[other]} weights)" for other in sets if other != name)
    kind = kinds[name]
    # A lone "model" or "state_dict" is how many people store the weights they mean.
    silent = kind == "other" or (kind == "raw" and not others)
    return Chosen(name, sets[name], "as in the file" if silent else f"{kind} ({name})", others)


def _kind(name: str, beside: Iterable[str] = ()) -> str:
    """What a set of weights is by its name, and by those of the sets ``beside`` it."""
    folder, slash, last = name.rpartition("/")
    if is_averaged(name) or f"{folder}{slash}{_UNAVERAGED}{last}" in beside:
        return "averaged"
    return "raw" if is_raw(name) else "other"


def is_tensors(content: Any) -> bool:
    """Whether this is a dict of nothing but tensors by name."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def chosen_tensors(content: Any, weights: str | None, source: str, name: str = "") -> Chosen | None:
    """The tensors by name that are meant, without the prefixes of data-parallel training; None if there are none.

    Args:
        name: what a file that holds nothing but tensors is called: of "ema_0.9999_500000" it says which they are.

    Raises:
        ValueError, CheckpointError: as for `choose`.
    """
    sets = {name: dict(content)} if is_tensors(content) else dict(_sets(content))
    if not sets:
        return None
    inner = {key: _by_prefix(value) for key, value in sets.items()}
    within = {prefix for found in inner.values() for prefix in found}
    if len(sets) == 1 and within:
        outer = Chosen(*next(iter(sets.items())), "")
    else:  # a name that is only that of an inner set says nothing about the outer ones
        outer = choose(sets, None if weights in within and weights not in sets else weights, source)
    if found := inner[outer.name]:
        one = choose(found, weights if weights in (*CHOICES, *found) else None, source)
        said = f"{_kind(one.name)} ({'/'.join(part for part in (outer.name, one.name) if part)})"
        outer = Chosen(outer.name, one.value, said, (*outer.others, *one.others))
    tensors = dict(outer.value)
    said = outer.said
    if _COUNTER in tensors:
        tensors.pop(_COUNTER)
        said = f"averaged ({_COUNTER}: torch's AveragedModel)"
    return Chosen(outer.name, without_prefixes(tensors), said, outer.others)


def without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of data-parallel and compiled modules, where every name has them."""
    found = dict(tensors)
    while prefix := next((p for p in _PARALLEL if found and all(name.startswith(p) for name in found)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _sets(content: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(path, tensors by name) of every such dict in a training file, its optimizer's aside."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    for key, value in list(content.items())[:10_000]:
        if not isinstance(value, Mapping) or not isinstance(key, str) or _OTHER.search(key):
            continue
        name = f"{path}/{key}" if path else key
        if is_tensors(value):
            yield name, value
        else:
            yield from _sets(value, name, depth + 1)


def _by_prefix(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sets that stand in one dict under prefixes ("model.", "ema_model."): those of which one is another's average.

    Parts of one network have prefixes too, hence only prefixes with the same names behind them count, or the same
    but for their dots, which some code leaves out.
    """
    sets: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        found = _PREFIX.match(name)
        if found is not None:
            sets.setdefault(found[1], {})[name[found.end() :]] = value
    averaged = [prefix for prefix in sets if is_averaged(prefix)]
    others = [prefix for prefix in sets if prefix not in averaged]

    def undotted(prefix: str) -> set[str]:
        return {name.replace(".", "") for name in sets[prefix]}

    pairs = [(a, o) for a in averaged for o in others if undotted(o) <= undotted(a)]
    if pairs:
        return {prefix: sets[prefix] for prefix in dict.fromkeys(p for pair in pairs for p in pair)}
    whole = len(averaged) == 1 and all(len(tensors[name].shape) == 0 for name in tensors if "." not in name)
    return {averaged[0]: sets[averaged[0]]} if whole and not others else {}
