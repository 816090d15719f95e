"""A purifier for pictures of any size: overlapping tiles of the diffusion model's size, joined without seams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from ..errors import mistake, whole
from ..kernels import Domain, NoiseKeys
from ..methods import Method
from ..nets import Denoiser
from ..reverse import PlacedNoise, RecordedNoise, SplitNoise
from .inputs import check_range, sealed
from .purifier import FOR_OTHER_SIZES, Purifier

OVERLAP = 4
"""Neighbouring tiles share one pixel in so many along each axis, unless told otherwise."""


@final
@dataclass(frozen=True)
class Axis:
    """How one axis is cut into tiles and joined again.

    Attributes:
        length: of the picture along this axis.
        size: of a tile.
        overlap: at least so many pixels are shared by neighbours.
    """

    length: int
    size: int
    overlap: int

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First pixel of each tile; the last one ends with the picture, or is the only one and longer."""
        span = self.length - self.size
        if span <= 0:
            return (0,)
        n = math.ceil(span / (self.size - self.overlap)) + 1
        return tuple(round(i * span / (n - 1)) for i in range(n))

    @cached_property
    def sources(self) -> Tensor:
        """The picture's pixel under each pixel of each tile, int64 [tiles * size]; mirrored at the far edge."""
        places = torch.tensor(self.starts)[:, None] + torch.arange(self.size)
        period = max(2 * (self.length - 1), 1)
        folded = places % period
        return torch.minimum(folded, period - folded).flatten()

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Where each pixel of the picture comes from: places among the tiles' pixels, int64 [m, length], and shares.

        The shares [m, length] rise like a squared sine over the overlap at a tile's edge, fall alike, and add up to 1.
        """
        found: list[list[tuple[int, float]]] = [[] for _ in range(self.length)]
        for number, start in enumerate(self.starts):
            left = self.starts[number - 1] + self.size - start if number else 0
            last = number == len(self.starts) - 1
            right = start + self.size - self.starts[number + 1] if not last else 0
            for i in range(min(self.size, self.length - start)):
                rise = _rise((i + 0.5) / left) if i < left else 1.0
                fall = _rise((self.size - i - 0.5) / right) if i >= self.size - right else 1.0
                found[start + i].append((number * self.size + i, rise * fall))
        most = max(map(len, found))
        total = [sum(weight for _, weight in entries) for entries in found]
        padded = [entries + [(entries[0][0], 0.0)] * (most - len(entries)) for entries in found]
        places = torch.tensor([[place for place, _ in entries] for entries in padded]).T.contiguous()
        shares = torch.tensor(
            [[weight / whole for _, weight in entries] for entries, whole in zip(padded, total, strict=True)],
            dtype=torch.float64,
        ).T.contiguous()
        return places, shares

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """``x`` with axis ``dim`` [length] replaced by the pixels of all tiles, [tiles * size]."""
        return x.index_select(dim, self.sources.to(x.device))

    def join(self, tiles: Tensor, dim: int) -> Tensor:
        """The other way: axis ``dim`` [tiles * size] becomes [length]."""
        places, shares = (part.to(tiles.device) for part in self.parts)
        shape = [1] * tiles.dim()
        shape[dim] = self.length
        joined = torch.zeros_like(tiles.narrow(dim, 0, 1)).expand(
            [self.length if axis == dim else n for axis, n in enumerate(tiles.shape)]
        )
        for place, share in zip(places, shares, strict=True):
            joined = joined + tiles.index_select(dim, place) * share.to(tiles.dtype).view(shape)
        return joined


def _rise(way: float) -> float:
    return math.sin(0.5 * math.pi * min(max(way, 0.0), 1.0)) ** 2


@final
class TiledPurifier(Purifier):
    """``Purifier`` for pictures ``[B, C, height, width]`` of another size than its diffusion model's.

    The picture is cut into overlapping tiles of the model's size, each is purified, and where tiles overlap the result
    goes smoothly from one to the next. Noise belongs to places in the picture (``PlacedNoise``): neighbours see the
    same noise where they overlap, so no seam shows, and a tile has the same noise whatever is purified with it. A
    picture smaller than a tile is mirrored at its lower and right edge. Gradients flow through all of it, exactly.

    What a tile cannot see cannot help to purify it: a model of 32x32 images cleans textures, not scenes.

    Args:
        height, width: of the pictures that come in and go out.
        overlap: least number of pixels that neighbouring tiles share; a quarter of a tile if None.
        batch_size: tiles purified together.
        others: as for ``Purifier``.

    Raises:
        ValueError: an overlap of half a tile or more.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        method: Method,
        height: int,
        width: int,
        overlap: int | None = None,
        batch_size: int = 16,
        *args: Any,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, method, *args, **options)
        size = self.denoiser.image_shape[1:]
        self.overlap = min(size) // OVERLAP if overlap is None else whole("overlap", overlap, 0)
        if 2 * self.overlap >= min(size):
            expected = f"less than half of the model's {min(size)} pixels"
            raise ValueError(mistake("overlap", expected, overlap))
        self.batch_size = whole("batch_size", batch_size, 1)
        lengths = (whole("height", height, 1), whole("width", width, 1))
        self.axes = tuple(
            Axis(length, side, self.overlap) for length, side in zip(lengths, size, strict=True)
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, height, width): the pictures that come in and go out."""
        return self.denoiser.image_shape[0], self.axes[0].length, self.axes[1].length

    @property
    def n_tiles(self) -> int:
        """How many tiles a picture has."""
        return len(self.axes[0].starts) * len(self.axes[1].starts)

    @property
    def network_calls(self) -> int:
        """Passes through the denoiser for one picture: each tile is a purification."""
        return self.n_tiles * super().network_calls

    @sealed
    def forward(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor | None = None,
        *,
        noise: RecordedNoise | SplitNoise | PlacedNoise | None = None,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """Purify ``x`` [B, C, height, width] float32 in [0, 1]; arguments, result and errors as for ``Purifier``."""
        return self._of_tiles(super().forward, x, sample_ids, draw, noise, domain)

    @sealed
    def trajectory(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor | None = None,
        *,
        noise: RecordedNoise | SplitNoise | PlacedNoise | None = None,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """Every state on the way, [K + 1, B, C, height, width] in [0, 1] units, unclamped."""

        def states(tiles: Tensor, *args: Any, **options: Any) -> Tensor:
            return super(TiledPurifier, self).trajectory(tiles, *args, **options).movedim(0, 1)

        return self._of_tiles(states, x, sample_ids, draw, noise, domain).movedim(1, 0)

    def watch(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Refused: a picture has many end states, one for each tile. Raises ValueError."""
        expected, remedy = "a purifier of single images", "Watch a Purifier with the tiles as images"
        raise ValueError(mistake("purifier", expected, f"one of {self.n_tiles} tiles", remedy))

    def own_noise(self, x: Tensor, sample_ids: Tensor) -> str:
        """See ``Purifier.own_noise``; asked about the first tile of each picture."""
        return super().own_noise(self._first_tiles(x), sample_ids)

    def answers(self, x: Tensor, sample_ids: Tensor) -> Tensor | None:
        """See ``Purifier.answers``, of the first tile of each picture."""
        return super().answers(self._first_tiles(x), sample_ids)

    def describe(self) -> dict[str, Any]:
        """See ``Purifier.describe``; with the overlap, on which the pictures depend."""
        return {**super().describe(), "overlap": self.overlap}

    def tiled(
        self, height: int, width: int, overlap: int | None = None, batch_size: int = 16
    ) -> TiledPurifier:
        """See ``Purifier.tiled``; with this one's overlap if None."""
        denoiser, *options = self._remade()
        kept = self.overlap if overlap is None else overlap
        return TiledPurifier(denoiser, self.method, height, width, kept, batch_size, *options)

    def with_method(self, method: Method) -> TiledPurifier:
        """The same networks, sizes, seed and precisions with another method."""
        denoiser, *options = self._remade()
        _, height, width = self.image_shape
        return TiledPurifier(denoiser, method, height, width, self.overlap, self.batch_size, *options)

    def extra_repr(self) -> str:
        """Size, tiles, method, seed, precision and memory plan, for printing."""
        _, height, width = self.image_shape
        return f"size={height}x{width}, tiles={self.n_tiles}, overlap={self.overlap}, {super().extra_repr()}"

    def _of_tiles(
        self,
        purify: Callable[..., Tensor],
        x: Tensor,
        sample_ids: Tensor | list[int] | None,
        draw: int | Tensor | None,
        noise: RecordedNoise | SplitNoise | PlacedNoise | None,
        domain: Domain,
    ) -> Tensor:
        """What ``purify`` makes of each tile, [tiles, ..., C, h, w], joined to [B, ..., C, height, width]."""
        self._check_pictures(x)
        keys = self._keys(x, sample_ids, draw, domain, asked=noise is None)
        if noise is None:
            ahead, along = keys, keys
        elif isinstance(noise, SplitNoise):
            ahead, along = noise.ahead, noise.along
        else:
            remedy = "Leave it out, or record the noise of tiles and call a Purifier with them"
            raise ValueError(mistake("noise", "None or SplitNoise for tiles", type(noise).__name__, remedy))
        made = [
            purify(tiles, keys.sample_ids[where.picture.to(x.device)], noise=where)
            if len(x)
            else purify(tiles)
            for tiles, where in self._batches(x, ahead, along)
        ]
        tiles = torch.cat(made)
        rows, columns = (len(axis.starts) for axis in self.axes)
        # [B, rows, columns, ..., h, w] with a tile's own axes beside the axis of its kind.
        apart = tiles.view(len(x), rows, columns, *tiles.shape[1:])
        wide = apart.movedim(2, -2).flatten(-2)
        joined = self.axes[1].join(wide, wide.dim() - 1)
        tall = joined.movedim(1, -3).flatten(-3, -2)
        return self.axes[0].join(tall, tall.dim() - 2)

    def _cut(self, x: Tensor) -> Tensor:
        """All tiles [B * tiles, C, h, w], picture by picture, row by row."""
        rows, columns = (len(axis.starts) for axis in self.axes)
        pixels = self.axes[1].cut(self.axes[0].cut(x, 2), 3)
        split = pixels.unflatten(3, (columns, self.axes[1].size)).unflatten(2, (rows, self.axes[0].size))
        return split.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).contiguous()

    def _batches(self, x: Tensor, ahead: NoiseKeys, along: NoiseKeys) -> Iterator[tuple[Tensor, PlacedNoise]]:
        tiles = self._cut(x)
        top, left = (torch.tensor(axis.starts) for axis in self.axes)
        places = torch.cartesian_prod(torch.arange(len(x)), top, left)
        if not len(x):
            yield tiles, PlacedNoise(ahead, along, *places.new_empty(3, 0))
        for start in range(0, len(tiles), self.batch_size):
            picture, first, side = places[start : start + self.batch_size].T
            yield tiles[start : start + self.batch_size], PlacedNoise(ahead, along, picture, first, side)

    def _first_tiles(self, x: Tensor) -> Tensor:
        self._check_pictures(x)
        return self._cut(x)[:: self.n_tiles] if len(x) else x.new_empty(0, *self.denoiser.image_shape)

    def _check_pictures(self, x: Tensor) -> None:
        shape = f"[B, {', '.join(map(str, self.image_shape))}]"
        if not isinstance(x, Tensor):
            raise TypeError(mistake("x", f"a float32 tensor {shape}", type(x).__name__))
        if x.dim() != 4 or tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(mistake("x", f"of shape {shape}", list(x.shape)))
        if len(x) and x.is_floating_point():
            check_range(x)  # one message for the picture; of the rest the tiles are told


FOR_OTHER_SIZES["tiled"] = TiledPurifier
