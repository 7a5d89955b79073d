"""Data types by the array API standard's names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """A data type of the array API standard."""

    name: str

    def __repr__(self) -> str:
        """Show the standard's name."""
        return f"ebbtide.array.{self.name}"

    def __str__(self) -> str:
        """Show the standard's name."""
        return self.name


bool = DType("bool")
int64 = DType("int64")
float64 = DType("float64")
