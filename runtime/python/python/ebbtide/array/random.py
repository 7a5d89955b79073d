"""Random arrays by counter: an element depends on seed, call and place, never on chunks.

Element `i` of the generator's `n`th array comes from Philox4x64-10 with the key `(seed, n)`:
word `i % 4` of block `i // 4`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex

from ebbtide import _native
from ebbtide.array._array import Array, _integers

Size = SupportsIndex | Sequence[SupportsIndex]


class Generator:
    """Makes random arrays, each call a new stream of the same seed."""

    def __init__(self, seed: int) -> None:
        """Use `default_rng` instead."""
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed {seed} is not a whole number from 0 to 2**64 - 1")
        self._seed = seed
        self._calls = 0

    def random(self, size: Size, *, chunks: Size | None = None) -> Array:
        """Draw float64 uniformly from [0, 1), multiples of 2**-53.

        >>> default_rng(1).random(3).compute().round(3)
        array([0.795, 0.638, 0.91 ])
        """
        return self._make("uniform", size, chunks)

    def normal(self, *, size: Size, chunks: Size | None = None) -> Array:
        """Draw float64 from the normal distribution with mean 0 and standard deviation 1."""
        return self._make("normal", size, chunks)

    def integers(self, low: int, high: int, size: Size, *, chunks: Size | None = None) -> Array:
        """Draw int64 from low (included) to high (excluded).

        Raises:
            ValueError: there is no integer between the bounds.

        """
        return self._make("integers", size, chunks, (low, high))

    def _make(
        self,
        distribution: str,
        size: Size,
        chunks: Size | None,
        bounds: tuple[int, int] = (0, 1),
    ) -> Array:
        key = (self._seed, self._calls)
        shape = _extents(size)
        extents = None if chunks is None else _extents(chunks)
        made = Array(_native.Expression.random(distribution, key, shape, extents, bounds))
        self._calls += 1
        return made


def default_rng(seed: int) -> Generator:
    """Make a generator. The same seed gives the same arrays, everywhere.

    >>> rng = default_rng(7)
    >>> rng.normal(size=(4, 2), chunks=(2, 2))
    <ebbtide.array (4, 2) float64 in chunks of (2, 2)>
    """
    return Generator(seed)


def _extents(size: Size) -> list[int]:
    return _integers(size, "size")
