"""Evaluation protocols as values: which noise decides, how often, and by what rule.

Robustness of a randomised defence is not one number. Averaging over draws, demanding all of n draws, voting, or
freezing the noise give different results for the same adversarial images, and papers rarely say which they
mean; here every result carries its protocol. All rules read the same records: predicted classes per image and draw.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

from ..attacks.pgd import VARIANTS
from ..errors import mistake, one_of, whole
from ..shown import Settings
from ..signatures import arguments

FIRST_DRAW = 1 << 20
"""Evaluation draw k uses the noise of draw FIRST_DRAW + k of the evaluation domain.

The draws below are left to attacks that score candidates themselves: what chose among them must not decide again,
or the reported accuracy is a minimum over noise (the winner's curse).
"""

RULES = ("mean", "all", "majority", "one_shot", "average")
NOISES = ("fresh", "known")
AVERAGED = ("logits", "softmax")


@final
@dataclass(frozen=True)
class Protocol(Settings):
    """How accuracies are decided. Made by the functions of `PROTOCOLS`.

    Attributes:
        name: what the protocol is called in results.
        rule: "mean" (share of correct draws), "all" (every draw must be correct), "majority" (the most frequent
            class must be the right one, alone), "one_shot" (see ``legacy_autoattack``), "average" (the class with the
            highest mean of ``of`` must be the right one, alone).
        draws: recorded draws per image and input.
        noise: "fresh", or "known" where the attacker knows the noise the defence is frozen to.
        fixed_draw: which draw that is.
        part: which part of the noise is known: "all", "forward" (the diffusion of the input), or "reverse".
        transfer_draws: fresh draws on which images found with known noise are judged in addition.
        of: "logits" or "softmax" for the rule "average", else empty, and then no part of what names a protocol.
    """

    name: str
    rule: str
    draws: int
    noise: str = "fresh"
    fixed_draw: int = 0
    transfer_draws: int = 0
    part: str = "all"
    of: str = ""

    def __post_init__(self) -> None:
        one_of("rule", self.rule, RULES)
        one_of("noise", self.noise, NOISES)
        one_of("part", self.part, tuple(VARIANTS.values()))
        whole("draws", self.draws, 1, FIRST_DRAW)
        whole("fixed_draw", self.fixed_draw, 0, 2**32 - 1)
        whole("transfer_draws", self.transfer_draws, 0, FIRST_DRAW)
        if self.noise == "known" and self.part == "all" and self.draws != 1:
            raise ValueError(mistake("draws", "1 where all noise is known: it is one draw", self.draws))
        if self.rule == "average":
            one_of("of", self.of, AVERAGED)
        elif self.of:
            raise ValueError(mistake("of", f"left out for the rule {self.rule!r}", repr(self.of)))
        if self.rule == "one_shot" and self.draws != 2:
            raise ValueError(mistake("draws", "2 for the rule 'one_shot', one per input", self.draws))

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name these values, the same on every machine and version."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values; ``of`` only where it says something, so that older protocols keep their names."""
        return {name: value for name, value in asdict(self).items() if name != "of" or value}

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Protocol:
        """The protocol with these fields."""
        return Protocol(**fields)

    def clean_values(self, clean: np.ndarray, y: np.ndarray, logits: np.ndarray | None = None) -> np.ndarray:
        """How far each original image counts as correct, float64 [B] in [0, 1].

        Args:
            clean: predicted classes int64 [B, K]; K is 1 where nothing is random.
            y: true classes int64 [B].
            logits: float32 [B, K, classes] of the originals; the rule "average" reads nothing else.

        Raises:
            ValueError: no logits for the rule "average".
        """
        if self.rule == "average":
            return self._averaged(logits, y)
        return _decide("mean" if self.rule == "one_shot" else self.rule, self._first(clean), y)

    def robust_values(
        self,
        clean: np.ndarray,
        adversarial: np.ndarray,
        y: np.ndarray,
        verdict: np.ndarray | None = None,
        logits: np.ndarray | None = None,
    ) -> np.ndarray:
        """How far each adversarial image counts as correct, float64 [B] in [0, 1]; arguments as above.

        ``logits`` are those of the adversarial images. ``verdict`` float64 [B] is the decision that an attack took
        itself, NaN where it took none; only the rule "one_shot" respects it.
        """
        if self.rule == "average":
            return self._averaged(logits, y)
        if self.rule != "one_shot":
            return _decide(self.rule, adversarial, y)
        # AutoAttack drops an image that its first clean draw misclassifies, and judges the rest on a later draw.
        own = ((clean[:, 0] == y) & (adversarial[:, -1] == y)).astype(np.float64)
        return own if verdict is None else np.where(np.isnan(verdict), own, verdict)

    def _first(self, clean: np.ndarray) -> np.ndarray:
        return clean[:, :1] if self.rule == "one_shot" else clean

    def _averaged(self, logits: np.ndarray | None, y: np.ndarray) -> np.ndarray:
        if logits is None:
            raise ValueError(mistake("logits", f"given for {self}, which decides by them", "none"))
        return _decide_mean(logits if self.of == "logits" else _softmax(logits), y)

    def __str__(self) -> str:
        if self.rule == "average":
            return f"{self.name}({self.of} of {self.draws} draws)"
        if self.noise == "known":
            extra = f", {self.part} noise only, {self.draws} draws" if self.part != "all" else ""
            extra += f", transfer_draws={self.transfer_draws}" if self.transfer_draws else ""
            return f"{self.name}(draw={self.fixed_draw}{extra})"
        return self.name + ("()" if self.rule == "one_shot" else f"({self.draws} draws)")


def fresh(draws: int = 10) -> Protocol:
    """Mean accuracy over ``draws`` fresh draws of the final images (Avg.Rob of DiffBreak, on unseen noise).

    What a user of the deployed defence meets: each query draws its own noise.
    """
    return Protocol("fresh", "mean", draws)


def any_of_n(draws: int = 10) -> Protocol:
    """An image is robust if all ``draws`` fresh draws are right: an attacker may resubmit it n times (Wor.Rob).

    Falls with n for every randomised defence, on clean images too; compare it with the clean accuracy under the
    same rule.
    """
    return Protocol("any_of_n", "all", draws)


def majority(draws: int = 11) -> Protocol:
    """The most frequent class of ``draws`` fresh draws decides (MV.Rob). A tied vote counts as wrong."""
    return Protocol("majority", "majority", draws)


def average(draws: int = 10, of: str = "logits") -> Protocol:
    """The highest mean over ``draws`` fresh draws of the logits, or of the softmax probabilities, decides.

    Some defences answer so: GDMP averages 10 paths, ADP 10 runs. One draw with large logits can outweigh the others
    under "logits", and none can under "softmax". Two classes with the same highest mean count as wrong, as a tied vote
    does in ``majority``; so does a NaN among the draws, which is an answer of none.

    Args:
        draws: fresh draws that are averaged.
        of: "logits" or "softmax".

    Raises:
        ValueError: another ``of``, or no draw.
    """
    return Protocol("average", "average", draws, of=one_of("of", of, AVERAGED))


def dw_box(draw: int = 0, transfer_draws: int = 10, variant: str = "xi,z", draws: int = 10) -> Protocol:
    """Deterministic white box (ADDT): attacker and decision share the one realisation ``draw`` of the noise.

    Takes away what randomness alone protects. ``variant`` "xi,z" fixes all noise, "xi" only the diffusion of the
    input, "z" only the reverse steps; ``draws`` then number what stays random. The same images are also judged on
    ``transfer_draws`` fresh draws of everything, which tells how much the attack depends on knowing the noise.
    """
    part = VARIANTS[one_of("variant", variant, VARIANTS)]
    return Protocol("dw_box", "mean", 1 if part == "all" else draws, "known", draw, transfer_draws, part)


def legacy_autoattack() -> Protocol:
    """One draw per decision, as published AutoAttack numbers: for comparison with papers only.

    An image is robust if one draw gets the original right and another single draw gets the adversarial image
    right; ``AutoAttack(decision="legacy")`` decides so itself, after each of its attacks, and its verdict counts.
    Draws err by chance: the result is noisier than ``fresh``, and lower where clean draws disagree.
    """
    return Protocol("legacy_autoattack", "one_shot", 2)


PROTOCOLS: dict[str, Callable[..., Protocol]] = {
    "fresh": fresh,
    "any_of_n": any_of_n,
    "majority": majority,
    "average": average,
    "dw_box": dw_box,
    "legacy_autoattack": legacy_autoattack,
}
"""Every protocol by name."""

SETTINGS = {name: tuple(arguments(function)) for name, function in PROTOCOLS.items()}
"""What each of them can be told."""


def make(name: str, draws: int | None = None, **settings: Any) -> Protocol:
    """The protocol called ``name``. ``draws`` is its number of fresh draws, where it has one.

    Raises:
        ValueError: an unknown name or setting, or draws for a protocol that fixes their number.
    """
    function = PROTOCOLS[one_of("protocol", name, PROTOCOLS)]
    for setting in settings:
        one_of(f"settings of {name}", setting, SETTINGS[name])
    if draws is None:
        return function(**settings)
    if name == "legacy_autoattack":
        raise ValueError(
            mistake("draws", "left out for legacy_autoattack, which has one per decision", draws)
        )
    count = "transfer_draws" if name == "dw_box" and "draws" not in settings else "draws"
    return function(**{count: draws, **settings})


def _decide(rule: str, predicted: np.ndarray, y: np.ndarray) -> np.ndarray:
    correct = predicted == y[:, None]
    if rule == "mean":
        return correct.mean(1, dtype=np.float64)
    if rule == "all":
        return correct.all(1).astype(np.float64)
    right = correct.sum(1)
    # Votes of the strongest wrong class: as often as a wrong vote's class occurs among the votes.
    votes = (predicted[:, :, None] == predicted[:, None, :]).sum(2)
    rival = np.where(correct, 0, votes).max(1, initial=0)
    return (right > rival).astype(np.float64)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64; an infinite logit has all of the probability, two share it."""
    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        weight = np.exp(np.where(wide == top, 0.0, wide - top))
    return np.asarray(weight / weight.sum(-1, keepdims=True))


def _decide_mean(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1.0 where the true class alone has the highest sum over draws of ``scores`` [B, K, classes]; NaN is no higher."""
    with np.errstate(invalid="ignore"):
        total = scores.sum(1, dtype=np.float64)
    own = np.take_along_axis(total, y[:, None], 1)
    others = np.arange(total.shape[1]) != y[:, None]
    return ((own > total) | ~others).all(1).astype(np.float64)
