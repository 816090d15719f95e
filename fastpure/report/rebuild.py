"""From the plain values in a run file back to attack, method and defence, and never to another one in its place.

What is rebuilt is compared with what was stored: method tables by their digest, defences field by field, weights
by SHA-256. Anything that differs is a reason not to use it, which the page then gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import nn

from ..attacks.base import Attack
from ..checkpoints import load_denoiser
from ..classifiers import load_classifier
from ..data import Dataset
from ..errors import FastpureError
from ..evaluate.controls import KINDS
from ..evaluate.described import members, spends_as
from ..evaluate.identity import (
    CannotRebuild,
    Head,
    canonical,
    describe_defense,
    differences,
    rebuild_method,
)
from ..evaluate.plan import count_queries
from ..evaluate.protocol import Protocol
from ..nets import Denoiser
from ..purify import Defense, Purifier, Target, look_through
from ..purify.description import plain, weights_sha256
from ..zoo import CLASSIFIERS, DENOISERS

SMALL = 8
"""Height and width of the images on which the queries of an attack are counted, at most."""


def rebuild_attack(described: Mapping[str, Any]) -> Attack:
    """The attack of an identity.

    Raises:
        CannotRebuild: an unknown attack, or one with settings that plain values do not hold.
    """
    kind: Any = KINDS.get(described["name"])
    if kind is None:
        raise CannotRebuild(f"this fastpure has no attack {described['name']}")
    known = {field.name for field in fields(kind)}
    settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in described["settings"].items()
        if name in known
    }
    try:
        attack: Attack = kind(**settings)
    except (TypeError, ValueError) as error:
        raise CannotRebuild(str(error)) from error
    # With whom an image was attacked is no setting of the attack.
    own = {name: value for name, value in described.items() if name != "block"}
    _same(own, plain(attack), "attack")
    return attack


def rebuild_defense(
    described: Mapping[str, Any], denoiser: Denoiser, classifier: nn.Module, guide: nn.Module | None = None
) -> Defense:
    """The defence of an identity from its networks; ``guide`` is the method's own, the classifier if None.

    Raises:
        CannotRebuild: the networks or the settings are not those of the run; the message has what differs.
    """
    method = rebuild_method(described["method"], classifier if guide is None else guide)
    try:
        purifier = Purifier(
            denoiser,
            method,
            seed=described["seed"],
            precision=described["precision"],
            gradient_precision=described["gradient_precision"],
        )
        defense = Defense(purifier, classifier)
    except (TypeError, ValueError, FastpureError) as error:
        raise CannotRebuild(str(error)) from error
    _same(described, describe_defense(defense), "defence")
    return defense


def find_defense(described: Mapping[str, Any], given: tuple[nn.Module, ...], networks: Any) -> Target:
    """The defence of an identity: among those ``given``, or put together from ``networks`` or bundled ones.

    Args:
        described: the part "defense" of an identity.
        given: defences the caller has.
        networks: (denoiser or None, classifier) the caller has, or None.

    Raises:
        CannotRebuild: none of these is the defence of the run.
    """
    for target in map(look_through, given):
        if not differences(dict(described), target.describe()):
            return target
    reasons = [f"none of the {len(given)} given defences is the one of the run"] if given else []
    if networks is not None:
        try:
            return look_through(_put_together(described, *networks))
        except CannotRebuild as error:
            reasons.append(str(error))
    for denoiser, classifier, guide in _bundled(described):
        with suppress(CannotRebuild):
            return look_through(_put_together(described, denoiser, classifier, guide))
    # That bundled networks are not those of the run is of interest only to one who offered no others.
    raise CannotRebuild("; ".join(reasons) or "its networks are not the bundled ones")


def _put_together(
    described: Mapping[str, Any],
    denoiser: Denoiser | None,
    classifier: nn.Module,
    guide: nn.Module | None = None,
) -> nn.Module:
    if described["kind"] == "module":
        _same(described, describe_defense(classifier), "classifier")
        return classifier
    if denoiser is None:
        raise CannotRebuild("no denoiser was given")
    return rebuild_defense(described, denoiser, classifier, guide)


@cache
def queries(
    attack: str, protocol: Protocol, shape: tuple[int, ...], n_classes: int, purified: bool, random: bool
) -> Any:
    """(gradients, judgements) per image of an attack given as canonical text, if it breaks nothing; None if unknown.

    A number of the attack alone: counted against a stand-in that costs nothing, see ``count_queries``.
    """
    import json

    try:
        described = json.loads(attack)
        # Images stand in a file as checksums: such an attack does not come back, but how often it asks is known.
        given = members(described) or '"sha256"' in attack
        rebuilt = spends_as(described) if given else rebuild_attack(described)
        if rebuilt is None:
            return None
        classes = tuple(str(i) for i in range(n_classes))
        one = torch.zeros(1, dtype=torch.int64)
        data = Dataset(torch.zeros((1, *shape)), one, one.clone(), classes, "stand-in", "none")
        return count_queries(data, rebuilt, protocol, random=random, purifies=purified)
    except (FastpureError, ValueError, TypeError):
        return None


def calls_per_purification(identity: Mapping[str, Any]) -> int | None:
    """Network calls in one answer, 1 where there is no diffusion model; None where the method cannot be rebuilt."""
    own = int(identity["defense"]["classifier"].get("network_calls", 0))
    if identity["defense"]["kind"] == "module":
        return own or 1
    try:
        return own + rebuild_method(identity["defense"]["method"], Head().eval()).network_calls
    except CannotRebuild:
        return None


def network_calls(
    identity: Mapping[str, Any], protocol: Protocol, judged: int, images: int, spent: float | None = None
) -> int | None:
    """Images through the denoiser (the classifier where nothing purifies) of a run, at most; None if not known.

    Args:
        judged: recorded triples (image, input, draw), which cost one purification each.
        images: finished images, each of which was attacked once. A gradient counts twice, forward and backward.
        spent: gradients that the attack spent on all of them, where it says so: then the result is what was done.
    """
    data, per = identity["data"], calls_per_purification(identity)
    if per is None:
        return None
    if spent is not None:
        return round(per * (judged + 2 * spent))
    purified, attack = identity["defense"]["kind"] != "module", identity["attack"]
    if attack is None or (attack["name"] in KINDS and not KINDS[attack["name"]].asks):
        return per * judged
    channels, height, width = data["image_shape"]
    # How often an attack asks does not depend on the size of the images; how long it takes to find out does.
    shape, n_classes = (channels, min(height, SMALL), min(width, SMALL)), max(len(data["classes"]), 2)
    random = purified or "network_calls" in identity["defense"]["classifier"]
    found = queries(canonical(identity["attack"]), protocol, shape, n_classes, purified, random)
    return None if found is None else round(per * (judged + images * (2 * found[0] + found[1])))


def _bundled(
    described: Mapping[str, Any],
) -> Iterator[tuple[Denoiser | None, nn.Module, nn.Module | None]]:
    """(denoiser, classifier, guide) among the bundled networks that may be those of a described defence."""
    wanted = described["classifier"]["sha256"]
    classifiers = {name: _bundled_classifier(name) for name in CLASSIFIERS}
    found = [c for c in classifiers.values() if weights_sha256(c) == wanted]
    if described["kind"] == "module":
        yield from ((None, classifier, None) for classifier in found)
        return
    text = canonical(described["method"])
    guides: list[nn.Module | None] = [c for c in classifiers.values() if weights_sha256(c) in text]
    size = described["denoiser"].get("parameters")
    for name in DENOISERS if found else ():
        denoiser = _bundled_denoiser(name)
        if denoiser.describe()["parameters"] == size:
            yield from ((denoiser, classifier, guide) for classifier in found for guide in guides or [None])


@cache
def _bundled_denoiser(name: str) -> Denoiser:
    return load_denoiser(name)


@cache
def _bundled_classifier(name: str) -> nn.Module:
    return load_classifier(name)


def _same(stored: Mapping[str, Any], made: Any, what: str) -> None:
    changed = differences(dict(stored), made)
    if changed:
        more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
        raise CannotRebuild(f"this is not the {what} of the run: {'; '.join(changed[:2])}{more}")
