"""Purifiers and the defences they are part of."""

from .defense import Defense
from .purifier import Purifier
from .resized import ResizedPurifier

__all__ = ["Defense", "Purifier", "ResizedPurifier"]
