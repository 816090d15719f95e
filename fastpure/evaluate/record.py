"""What is known of an image of a run, how its arrays become bytes, and the checksums of all of it."""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from dataclasses import dataclass, field
from typing import final

import numpy as np

from ..errors import mistake
from ..shown import Fields

INPUTS = ("clean", "adversarial", "transfer")
"""What was judged: the original, the attacked image, and the attacked image on noise the attacker did not know."""

LARGEST = 2**24
"""Numbers in the largest array that is read: a file says how large its images are, and may be lying."""

HIGHEST_RATIO = 1040
"""zlib compresses no further."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class Judged(Fields):
    """One input on K evaluation draws: predicted classes int64 [K] and cross-entropies float32 [K].

    ``logits`` float32 [K, classes] are what both were computed from, rounded to float32; None where they were not kept.
    """

    predicted: np.ndarray
    loss: np.ndarray
    logits: np.ndarray | None = None


@final
@dataclass(frozen=True, eq=False, repr=False)
class Course(Fields):
    """What an attack reached on an image, and what that took, in gradients of the deployed defence.

    A gradient of one draw counts 1, a forward pass a half.

    Attributes:
        correct: share in [0, 1] of the attack's own draws that were right at each point it looked at, float32 [T]; NaN
            where it did not look. None if it does not say.
        spent_at: gradients spent on the image by then, float32 [T], likewise.
        spent: gradients spent on the image in all; None if it does not say.
    """

    correct: np.ndarray | None = None
    spent_at: np.ndarray | None = None
    spent: float | None = None

    def __post_init__(self) -> None:
        rows = {len(array) for array in (self.correct, self.spent_at) if array is not None}
        if len(rows) > 1:
            raise ValueError(mistake("spent_at", "of as many rows as correct", sorted(rows)))

    def sha256(self, position: int) -> bytes:
        """SHA-256 of all of it and of the image that it belongs to."""
        digest = hashlib.sha256(struct.pack("<q", position))
        for array in (self.correct, self.spent_at):
            _feed(digest, array)
        digest.update(b"-" if self.spent is None else struct.pack("<d", self.spent))
        return digest.digest()


@final
@dataclass(frozen=True, eq=False, repr=False)
class ImageRecord(Fields):
    """One image of a run.

    Attributes:
        position: place in the run's data set.
        sample_id: the image's name for the noise.
        label: true class.
        x: the original, float32 [C, H, W] in [0, 1].
        x_adv: what the attack returned, likewise; None in a run without attack.
        distance: of ``x_adv`` from ``x`` in the attack's norm, measured on these pixels.
        zero_gradient: whether the attack's first gradient was exactly zero; None if it uses none.
        verdict: what the attack decided itself where it carries a published protocol (AutoAttack, "legacy").
        trace: the attack's loss at each iterate, float32 [n_iter]; NaN where it had given the image up.
        judged: by name of `INPUTS`.
        agreement: how far two halves of the attack's draws agree on the gradient, see `attacks.gradient.Query`; None
            where not measured. It describes the attack, not its result, and has a checksum of its own: files that were
            written without it keep theirs.
        ending: why an attack that decides so itself has ended, and what it meant to do and did not; () if it says
            nothing.
        course: accuracy on the attack's own draws and what it spent; None where it does not say. With a checksum of its
            own, for the same reason.
    """

    position: int
    sample_id: int
    label: int
    x: np.ndarray
    x_adv: np.ndarray | None = None
    distance: float | None = None
    zero_gradient: bool | None = None
    verdict: bool | None = None
    trace: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    judged: dict[str, Judged] = field(default_factory=dict)
    agreement: float | None = None
    ending: tuple[str, ...] = ()
    course: Course | None = None

    def sha256(self) -> bytes:
        """SHA-256 of every value but logits, agreement and course, independent of how the file stores it.

        These came later, and files that were written without them keep their checksums.
        """
        digest = hashlib.sha256(struct.pack("<qqq", self.position, self.sample_id, self.label))
        for array in (self.x, self.x_adv, self.trace):
            _feed(digest, array)
        for value in (self.distance, self.zero_gradient, self.verdict):
            digest.update(b"-" if value is None else struct.pack("<d", value + 0.0))
        for name in INPUTS:
            if name in self.judged:
                digest.update(name.encode())
                _feed(digest, self.judged[name].predicted)
                _feed(digest, _as_stored(self.judged[name].loss))
        return digest.digest()

    def decided_sha256(self) -> bytes:
        """SHA-256 of the same and of the logits, for protocols that decide by these."""
        digest = hashlib.sha256(self.sha256())
        for name in INPUTS:
            if name in self.judged and (logits := self.judged[name].logits) is not None:
                digest.update(logits_sha256(self.position, name, 0, logits))
        return digest.digest()


def logits_sha256(position: int, name: str, first: int, logits: np.ndarray) -> bytes:
    """SHA-256 of the logits [k, classes] of an image and input from draw ``first`` on."""
    digest = hashlib.sha256(struct.pack("<qq", position, first) + name.encode())
    _feed(digest, logits)
    return digest.digest()


def ending_sha256(position: int, ending: tuple[str, ...]) -> bytes:
    """SHA-256 of what an attack said at its end and the image it belongs to."""
    return hashlib.sha256(struct.pack("<q", position) + "\0".join(ending).encode()).digest()


def agreement_sha256(position: int, value: float) -> bytes:
    """SHA-256 of an agreement and the image it belongs to."""
    return hashlib.sha256(struct.pack("<qd", position, value)).digest()


def _as_stored(numbers: np.ndarray) -> np.ndarray:
    """Without the sign of zero and the payload of NaN, which SQLite does not keep; a saturated softmax has loss -0."""
    return np.where(np.isnan(numbers), np.float32(np.nan), numbers + np.float32(0.0)).astype(numbers.dtype)


def _feed(digest: hashlib._Hash, array: np.ndarray | None) -> None:
    if array is None:
        digest.update(b"-")
        return
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())


def pack(array: np.ndarray) -> bytes:
    """A float32 array as zlib-compressed bytes, exact.

    The bytes are regrouped by significance before compression: neighbouring pixels share sign and exponent, and
    equal bytes next to each other are what zlib compresses.

    Raises:
        ValueError: it is larger than what is read back.
    """
    if array.size > LARGEST:
        raise ValueError(mistake("dataset", f"images of at most {LARGEST:,} numbers each", f"{array.size:,}"))
    little = np.ascontiguousarray(array, dtype="<f4").reshape(-1)
    return zlib.compress(little.view(np.uint8).reshape(-1, 4).T.tobytes(), 1)


def unpack(blob: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array of ``shape`` that `pack` made ``blob`` of.

    Raises:
        ValueError, zlib.error: the blob is damaged or of another size.
    """
    size = 4 * math.prod(shape)
    if not 0 <= size <= min(4 * LARGEST, HIGHEST_RATIO * len(blob)):  # before anything is allocated
        raise ValueError(f"{len(blob)} bytes cannot hold {shape} numbers")
    stream = zlib.decompressobj()
    content = stream.decompress(blob, size + 1)
    if len(content) != size or not stream.eof or stream.unused_data:
        raise ValueError(f"a compressed array is not one of {shape} numbers")
    planes = np.frombuffer(content, dtype=np.uint8).reshape(4, -1)
    return np.ascontiguousarray(planes.T).view("<f4").astype(np.float32, copy=False).reshape(shape)
