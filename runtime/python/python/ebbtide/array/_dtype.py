"""Data types by the array API standard's names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """A data type of the array API standard: `bool`, `int64` or `float64`.

    Those of the same name are equal. Two of different names never promote to each other; `astype`
    converts.

    >>> import ebbtide.array as xp
    >>> xp.asarray([1.5]).dtype == xp.float64
    True
    >>> xp.int64.name
    'int64'

    Attributes:
        name: the standard's name, which is NumPy's too.

    """

    name: str

    def __repr__(self) -> str:
        """Show where it is found, and the standard's name."""
        return f"ebbtide.array.{self.name}"

    def __str__(self) -> str:
        """Show the standard's name."""
        return self.name


bool = DType("bool")
int64 = DType("int64")
float64 = DType("float64")
