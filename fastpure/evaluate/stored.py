"""From the plain values in a run file back to the method that purified."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .. import methods
from ..errors import FastpureError
from ..methods import Method
from .identity import canonical


class CannotRebuild(FastpureError, ValueError):
    """A stored description does not lead back to what it describes; the message says why."""


class Head(nn.Module):
    """Stands where a method needs a classifier to be built, and is never asked."""

    def forward(self, u: Tensor) -> Tensor:
        return u.flatten(1)[:, :2]

    def features_and_logits(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """For methods that want features too."""
        return u.flatten(1), self(u)


def rebuild_method(described: Mapping[str, Any], classifier: nn.Module) -> Method:
    """The method of an identity, guided by ``classifier`` where it is guided; its table is the stored one.

    Raises:
        CannotRebuild: an unknown method, one guided by something else, or a table that came out differently.
    """
    name, settings = described["name"], dict(described["settings"])
    if name not in methods.METHODS:
        raise CannotRebuild(f"this fastpure has no method {name}")
    takes = methods.spec(name)
    guided = described["guidance"] is not None or "sha256" in canonical(described.get("procedure"))
    if takes.network is not None and (takes.required or guided):
        settings[takes.network] = classifier
    try:
        method = methods.make(name, **settings)
    except (TypeError, ValueError) as error:
        raise CannotRebuild(f"{name} cannot be made from its stored settings: {error}") from error
    if method.steps.digest != described["steps"]:
        raise CannotRebuild(f"{name} has another step table than in the run")
    return method
