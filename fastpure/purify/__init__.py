"""Purifiers, defences and the methods they follow."""

from . import methods
from .defense import Defense
from .methods import Method
from .purifier import Purifier
from .resized import ResizedPurifier

__all__ = ["Defense", "Method", "Purifier", "ResizedPurifier", "methods"]
