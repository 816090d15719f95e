"""Readers of files, for layers that are given a file's name and must not know who reads it.

The package's face, which knows every layer, enters them; `attacks` opens run files so, which `evaluate` writes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

READERS: dict[str, Callable[[str | Path], AbstractContextManager[Any]]] = {}
"""Kind of file -> what opens one for reading."""
