"""What a person passes, read into what the core takes or refused in words. Knows no arrays."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from ebbtide import _native
from ebbtide.array._dtype import DType, bool, float64, int64

if TYPE_CHECKING:
    from numpy.typing import NDArray

Axis = SupportsIndex | Sequence[SupportsIndex] | None
Scalar = builtins.bool | int | float
Size = SupportsIndex | Sequence[SupportsIndex]

#: Dtypes that are computed with.
KERNELS = ("bool", "int64", "float64")

#: What a Python number may be beside an array of each dtype, by the array API standard: of no
#: higher kind. The standard leaves a bool beside numbers undefined, and so it is refused, as in
#: promotion.
_BESIDE: dict[DType, tuple[type, ...]] = {bool: (builtins.bool,), int64: (int,)}
_BESIDE[float64] = (int, float)


def integer(given: SupportsIndex, what: str) -> int:
    """Read a whole number, as Python's or NumPy's."""
    try:
        return operator.index(given)
    except TypeError:
        raise TypeError(f"{what} {given!r} is no whole number") from None


def integers(given: Size, what: str) -> list[int]:
    """Read one whole number or several, as Python's or NumPy's."""
    try:
        return [operator.index(given)]  # type: ignore[arg-type]
    except TypeError:
        pass
    try:
        return [operator.index(one) for one in given]  # type: ignore[union-attr]
    except TypeError:
        raise TypeError(f"{what} {given!r} is no whole number, nor several") from None


def extents(given: Size, what: str, least: int = 0) -> list[int]:
    """Read one or several whole numbers that count something."""
    read = integers(given, what)
    if not all(least <= one < 2**64 for one in read):
        raise ValueError(f"{what} {given!r}: expected at least {least}, and less than 2**64")
    return read


def along(op: str, axis: SupportsIndex, ndim: int) -> int:
    """Read an axis of an array that has so many."""
    read = integer(axis, f"{op}: axis")
    if not -ndim <= read < ndim:
        raise IndexError(f"{op}: axis {read} is out of range for an array of {ndim} axes")
    return read


def axes(op: str, axis: Axis, ndim: int) -> list[int] | None:
    """Read axes of an array that has so many, or all of them."""
    if axis is None:
        return None
    return [along(op, one, ndim) for one in integers(axis, f"{op}: axis")]


def nothing(op: str, numpys: dict[str, object]) -> None:
    """Refuse what NumPy's function of this name passes beside an axis, unless it says nothing."""
    for name, given in numpys.items():
        if name not in ("dtype", "out") or given is not None:
            raise TypeError(f"{op}: {name}= is not taken; expected axis= at most")


def dtype_name(dtype: DType) -> str:
    """Read a dtype of ours."""
    if not isinstance(dtype, DType):
        raise TypeError(f"{dtype!r} is no dtype of ebbtide.array; use float64, int64 or bool")
    return dtype.name


def constant(given: NDArray[Any]) -> _native.Expression:
    """Make an expression of the elements of a NumPy array."""
    if given.dtype.name not in KERNELS:
        raise TypeError(
            f"{given.dtype.name} has no kernels; expected elements that are or fit "
            f"{', '.join(KERNELS)}: convert them with NumPy's astype, or say dtype="
        )
    little = given.astype(given.dtype.newbyteorder("<"), copy=False)
    return _native.Expression.constant(given.dtype.name, list(given.shape), little.tobytes())


def number(op: str, value: Any, beside: DType) -> _native.Expression:
    """Make an expression of a number in the dtype of the array that it meets.

    NumPy's arrays and numbers keep their own dtype.
    """
    import numpy as np

    if isinstance(value, np.ndarray | np.generic):
        return constant(np.asarray(value))
    kind = next((kind for kind in (builtins.bool, int, float) if isinstance(value, kind)), None)
    if kind is None:
        what = type(value).__name__
        raise TypeError(f"{op}: expected an array or a bool, int or float, not {what}; use asarray")
    if kind not in _BESIDE[beside]:
        wider = int64 if kind is int else float64
        remedy = f"convert the array with astype({wider})"
        if kind is builtins.bool:
            remedy = f"write {value:d}"
        what = f"{value!r} is {'an' if kind is int else 'a'} {kind.__name__}"
        raise TypeError(f"{op}: {what} beside an array of {beside}; {remedy}")
    try:
        return constant(np.asarray(value, dtype=beside.name))
    except OverflowError:
        # Its digits may be too many to print.
        bits = value.bit_length()
        raise OverflowError(f"{op}: an int of {bits} bits does not fit {beside}") from None


def part(key: Any, shape: tuple[int, ...]) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Read an index: of each axis first element, count and step; and which axes it takes away."""
    keys = key if isinstance(key, tuple) else (key,)
    if sum(one is Ellipsis for one in keys) > 1:
        raise IndexError("an index may have one ellipsis only")
    missing = len(shape) - sum(one is not Ellipsis for one in keys)
    if any(one is None for one in keys):
        raise IndexError("None in an index adds an axis elsewhere; nothing adds one here")
    if missing < 0:
        raise IndexError(f"{len(shape) - missing} indices for an array of {len(shape)} axes")
    at = next((nth for nth, one in enumerate(keys) if one is Ellipsis), len(keys))
    full = (*keys[:at], *(slice(None),) * missing, *keys[at + 1 :])
    ranges, single = [], []
    for axis, (one, extent) in enumerate(zip(full, shape, strict=True)):
        if isinstance(one, slice):
            try:
                start, stop, step = one.indices(extent)
            except TypeError:
                raise TypeError(f"index {one!r} of axis {axis}: expected whole numbers") from None
            if step < 1:
                raise IndexError(
                    f"step {step} of axis {axis}: steps are at least 1; nothing reverses an axis"
                )
            count = len(range(start, stop, step))
            # The first is all that a step beyond the end takes.
            ranges.append((start, count, step if count > 1 else 1))
            continue
        # A bool is a mask here, and no 0 or 1.
        whole: Any = None if isinstance(one, builtins.bool) else one
        try:
            place = operator.index(whole)
        except TypeError:
            raise TypeError(
                f"index {one!r} of axis {axis}: expected a slice, a whole number or an ellipsis; "
                f"take(x, asarray(indices), axis={axis}) takes several places, and "
                "x * mask.astype(x.dtype) makes 0 of what is outside a mask"
            ) from None
        if not -extent <= place < extent:
            raise IndexError(f"index {place} is out of range for axis {axis} of {extent}")
        ranges.append((place % extent, 1, 1))
        single.append(axis)
    return ranges, single
