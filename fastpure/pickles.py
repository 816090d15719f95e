"""Unpickling that builds plain values and what its reader names, and runs, allocates and waits for nothing else.

Pickles are programs. The reader here is Python's own one in Python (the one in C reserves memory for whatever index
or length a file claims before it looks), with every instruction held to what weights and data sets need: calls go to
the functions that the reader grants and to no other object of the file, states go to objects that take them, lengths
are compared with what is left of the file, and keys are plain, since hashing a tuple that holds itself twice, sixty
times over, never ends.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import IO, Any, ClassVar, final

Grants = Callable[[str, str], Any]
"""(module, name) -> what stands for it here, or None if it is refused."""

_LONGEST_INT = 16
_REFUSED = [
    getattr(pickle, name)[0]
    for name in (
        "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER",
    )
]  # fmt: skip
_KEYS = (str, int, float, bytes, type(None))


class Inert:
    """Stands for any object of a file that is not needed: takes every construction and state, does nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def plain_keys(keys: Iterable[Any]) -> None:
    """Raise UnpicklingError unless every key is a number, a text, bytes, None or a flat tuple of these."""
    for key in keys:
        parts = key if type(key) is tuple else (key,)
        if not all(isinstance(part, _KEYS) for part in parts):
            raise pickle.UnpicklingError(f"a key of type {type(key).__name__}")


@final
class _Bounded:
    """A file that is asked for no more than it has left: a claimed length is refused before memory is found for it."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, n: int) -> bytes:
        if not 0 <= n <= self._left:
            raise EOFError(f"{n} bytes announced, {self._left} left")
        self._left -= n
        return self._file.read(n)

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line


_PythonUnpickler: Any = pickle._Unpickler


class RestrictedUnpickler(_PythonUnpickler):
    """Reads one pickle of at most ``size`` bytes from where ``file`` stands.

    Args:
        grants: what a name in the file stands for.
        reason: why other names are refused, with ``{}`` for the name.
        takes_state: classes whose objects are given the state that the file has for them.

    Raises:
        pickle.UnpicklingError: an instruction or a name that is refused.
        Exception: many other types, where the file is damaged.
    """

    def __init__(
        self,
        file: IO[bytes],
        size: int,
        grants: Grants,
        reason: str = "refused: {}",
        takes_state: tuple[type, ...] = (Inert,),
        encoding: str = "ASCII",
    ) -> None:
        super().__init__(_Bounded(file, size), encoding=encoding)
        self._grants, self._reason, self._takes_state = grants, reason, takes_state
        self._granted: dict[int, Any] = {}  # by identity, and kept alive so that it stays theirs

    def find_class(self, module: str, name: str) -> Any:
        """What the reader grants under this name."""
        found = self._grants(module, name)
        if found is None:
            raise pickle.UnpicklingError(self._reason.format(f"{module}.{name}"[:200]))
        self._granted[id(found)] = found
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Refused here: files of torch are read by a reader that knows where its storages are."""
        raise pickle.UnpicklingError("refused: references to objects outside the file")

    # Below, each replaces the instruction of that name.
    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if id(function) not in self._granted:
            raise pickle.UnpicklingError("refused: a call of something that is no function of the reader")
        if type(arguments) is not tuple:
            raise pickle.UnpicklingError("a call without arguments")
        self.stack[-1] = function(*arguments)

    def _state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, self._takes_state) and not isinstance(target, type):
            target.__setstate__(state)  # type: ignore[attr-defined]
        elif type(target) is not OrderedDict:  # whose state (a state dict's versions) is of no use
            raise pickle.UnpicklingError(f"refused: a state for a {type(target).__name__}")

    def _set_items(self) -> None:
        pairs = self.pop_mark()
        self._update(self.stack[-1], pairs[::2], pairs[1::2])

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update(self.stack[-1], [key], [value])

    def _dict(self) -> None:
        pairs = self.pop_mark()
        made: dict[Any, Any] = {}
        self._update(made, pairs[::2], pairs[1::2])
        self.stack.append(made)

    def _update(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        plain_keys(keys)
        if isinstance(target, dict):
            target.update(zip(keys, values, strict=True))
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    def _append(self) -> None:
        value = self.stack.pop()
        self._extend(self.stack[-1], [value])

    def _appends(self) -> None:
        values = self.pop_mark()
        self._extend(self.stack[-1], values)

    def _extend(self, target: Any, values: list[Any]) -> None:
        if type(target) is list:
            target.extend(values)
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"elements for a {type(target).__name__}")

    def _add(self) -> None:
        values = self.pop_mark()
        plain_keys(values)
        if type(self.stack[-1]) is not set:
            raise pickle.UnpicklingError(f"elements for a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(values)

    def _frozenset(self) -> None:
        values = self.pop_mark()
        plain_keys(values)
        self.stack.append(frozenset(values))

    def _long(self) -> None:
        self._long_of(self.read(1)[0])

    def _long4(self) -> None:
        self._long_of(*struct.unpack("<i", self.read(4)))

    def _long_of(self, n: int) -> None:
        if not 0 <= n <= _LONGEST_INT:
            raise pickle.UnpicklingError(f"an integer of {n} bytes")
        self.stack.append(pickle.decode_long(self.read(n)))

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("refused: an instruction that no weights need")

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **_PythonUnpickler.dispatch,
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _call,
        pickle.BUILD[0]: _state,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _dict,
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _appends,
        pickle.ADDITEMS[0]: _add,
        pickle.FROZENSET[0]: _frozenset,
        pickle.LONG1[0]: _long,
        pickle.LONG4[0]: _long4,
        **dict.fromkeys(_REFUSED, _refuse),
    }
