"""Giving back the memory of a mapped file while its tensors are copied out of it.

Files are opened as memory maps, so that only what is used is read. Pages that were read count as memory of the
process until the map goes, which would make twice the weights at the end of loading. They are clean copies of
the file and can be dropped as soon as they have been used; should one be needed again, it is read again.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from torch import Tensor


class MappedFile:
    """The address ranges at which ``path`` is mapped into this process; none where that cannot be found out."""

    def __init__(self, path: Path) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._madvise = None
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        try:
            name, lines = str(path.resolve()), Path("/proc/self/maps").read_text().splitlines()
            self._madvise = ctypes.CDLL(None).madvise
        except (OSError, AttributeError):
            return
        for line in lines:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] == name:
                start, end = (int(word, 16) for word in fields[0].split("-"))
                self._ranges.append((start, end))

    def release(self, tensor: Tensor) -> None:
        """Drop the pages that hold nothing but ``tensor``, if it lies in the file and nowhere else.

        Memory that is not of the file is left alone: there, the same call would erase it.
        """
        size = tensor.numel() * tensor.element_size()
        if self._madvise is None or not tensor.is_contiguous():
            return
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start and any(low <= start and end <= high for low, high in self._ranges):
            self._madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
