"""Purifiers, the defences they are part of, and the door through which these are attacked and judged."""

from .defense import Defense
from .purifier import Purifier
from .resized import ResizedPurifier
from .target import Target, door, look_through

__all__ = ["Defense", "Purifier", "ResizedPurifier", "Target", "door", "look_through"]
