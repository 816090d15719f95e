"""Attacks by what run files say of them. Images they were given stand there as checksums, and cannot come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from ..attacks import Transfer
from ..attacks.base import Attack
from ..attacks.transfer import Still
from .controls import KINDS


def members(described: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The attacks that a described one is put together from; none if it is a single one or has them by name."""
    return [part for part in described["settings"].get("attacks") or () if isinstance(part, Mapping)]


def spends_as(described: Mapping[str, Any]) -> Attack | None:
    """An attack that asks as often and spends as much as the described one, without the images it was given.

    None for one of a class that is not known here.

    Raises:
        TypeError, ValueError: its settings do not lead back to an attack.
    """
    kind: Any = KINDS.get(described["name"])
    if kind is None:
        return None
    settings = described["settings"]
    if kind is Transfer:
        return Still(norm=settings["norm"], eps=settings["eps"])
    parts = [spends_as(part) for part in members(described)]
    if None in parts:
        return None
    made: Attack = kind(**dict(_settings(kind, settings, parts)))
    return made


def _settings(kind: Any, settings: Mapping[str, Any], parts: list[Any]) -> Iterator[tuple[str, Any]]:
    given = {field.name: field for field in fields(kind) if field.init}
    for name, value in settings.items():
        if name not in given:
            continue
        if name == "attacks" and parts:
            yield name, tuple(parts)
        elif given[name].metadata.get("later") and isinstance(value, Mapping):
            # A start costs nothing, and labels for every image as much as labels by chance.
            yield name, "random" if name == "targeted" else None
        else:
            yield name, tuple(value) if isinstance(value, list) else value
