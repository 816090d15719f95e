"""Purifiers, the defences they are part of, and the door through which these are attacked and judged."""

from .defense import Defense
from .entry import door, look_through
from .purifier import Purifier
from .resized import ResizedPurifier
from .target import Target
from .tiled import TiledPurifier

__all__ = ["Defense", "Purifier", "ResizedPurifier", "Target", "TiledPurifier", "door", "look_through"]
