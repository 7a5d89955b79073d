"""Random arrays by counter: an element depends on seed, call and place, never on chunks.

Element `i` of the generator's `n`th array comes from Philox4x64-10 with the key `(seed, n)`:
word `i % 4` of block `i // 4`.

>>> import ebbtide.array as xp
>>> whole = xp.random.default_rng(7).random(1000)
>>> cut = xp.random.default_rng(7).random(1000, chunks=10)
>>> bool((whole.compute() == cut.compute()).all())
True
"""

from __future__ import annotations

from typing import SupportsIndex

from ebbtide import _native
from ebbtide.array._arguments import Size, extents, integer
from ebbtide.array._array import Array

__all__ = ["Generator", "default_rng"]


class Generator:
    """Makes random arrays, each call a new stream of the same seed.

    `size` is the shape: one extent or several. `chunks` are the extents of the chunks, of at most
    8 MiB by default; they change no element.

    >>> import ebbtide.array as xp
    >>> rng = xp.random.default_rng(7)
    >>> bool((rng.random(3).compute() == rng.random(3).compute()).any())
    False
    """

    def __init__(self, seed: int) -> None:
        """Use `default_rng` instead."""
        number = integer(seed, "seed")
        if not 0 <= number < 2**64:
            raise ValueError(f"seed {seed} is not a whole number from 0 to 2**64 - 1")
        self._seed = number
        self._calls = 0

    def random(self, size: Size, *, chunks: Size | None = None) -> Array:
        """Draw float64 uniformly from [0, 1), multiples of 2**-53.

        >>> import ebbtide.array as xp
        >>> xp.random.default_rng(1).random(3).compute().round(3)
        array([0.795, 0.638, 0.91 ])

        Raises:
            TypeError: size or chunks are no whole numbers.
            ValueError: one of them is negative, or the chunks do not fit the shape.

        """
        return self._make("uniform", size, chunks)

    def normal(self, *, size: Size, chunks: Size | None = None) -> Array:
        """Draw float64 from the normal distribution with mean 0 and standard deviation 1.

        >>> import ebbtide.array as xp
        >>> xp.random.default_rng(1).normal(size=(2, 2)).compute().round(3)
        array([[ 0.824,  0.353],
               [ 1.338, -0.827]])

        Raises:
            TypeError: size or chunks are no whole numbers.
            ValueError: one of them is negative, or the chunks do not fit the shape.

        """
        return self._make("normal", size, chunks)

    def integers(
        self, low: SupportsIndex, high: SupportsIndex, size: Size, *, chunks: Size | None = None
    ) -> Array:
        """Draw int64 from low (included) to high (excluded).

        >>> import ebbtide.array as xp
        >>> xp.random.default_rng(1).integers(1, 7, size=5).compute()
        array([5, 4, 6, 2, 2])

        Raises:
            TypeError: a bound, size or chunks are no whole numbers.
            ValueError: there is no integer between the bounds, one does not fit int64, or size or
                chunks are as for `random`.

        """
        bounds = (integer(low, "low"), integer(high, "high"))
        for bound in bounds:
            if not -(2**63) <= bound < 2**63:
                raise ValueError(f"integers: {bound} does not fit int64")
        return self._make("integers", size, chunks, bounds)

    def _make(
        self,
        distribution: str,
        size: Size,
        chunks: Size | None,
        bounds: tuple[int, int] = (0, 1),
    ) -> Array:
        key = (self._seed, self._calls)
        shape = extents(size, "size")
        cut = None if chunks is None else extents(chunks, "chunks", 1)
        made = Array(_native.Expression.random(distribution, key, shape, cut, bounds))
        self._calls += 1
        return made


def default_rng(seed: int) -> Generator:
    """Make a generator. The same seed gives the same arrays, everywhere.

    >>> import ebbtide.array as xp
    >>> rng = xp.random.default_rng(7)
    >>> rng.normal(size=(4, 2), chunks=(2, 2))
    <ebbtide.array (4, 2) float64 in chunks of (2, 2)>

    Raises:
        TypeError: the seed is no whole number.
        ValueError: it is not from 0 to 2**64 - 1.

    """
    return Generator(seed)
