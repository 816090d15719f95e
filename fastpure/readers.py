"""Readers of files and foreign things, for layers that are handed one and must not know who reads it.

The package's face, which knows every layer, enters them; `attacks` opens run files so, which `evaluate` writes, and
`nets` has diffusers' modules read by `checkpoints`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

READERS: dict[str, Callable[..., Any]] = {}
"""Kind -> what opens one for reading ("run": a file's name), or makes one of ours of it ("unet2d": diffusers' module;
"robustbench": a name)."""
