"""Arrays from what is no array yet: numbers, NumPy arrays and what Python functions return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ebbtide import _function
from ebbtide.array import _arguments
from ebbtide.array._arguments import Size
from ebbtide.array._array import Array
from ebbtide.array._dtype import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ebbtide._function import Delayed


def asarray(obj: object, *, dtype: DType | None = None) -> Array:
    """Make an array of one chunk from numbers, nested sequences or a NumPy array.

    The shape is that of NumPy's array; so is the dtype, where none is said: bool, int64 or float64
    for Python's numbers. With a dtype the elements are converted: NumPy's of bool, int64 and
    float64 as `astype` does, others as NumPy does. An array of ours comes back as it is, or
    converted.

    >>> import ebbtide.array as xp
    >>> xp.asarray([[1, 2], [3, 4]])
    <ebbtide.array (2, 2) int64 in chunks of (2, 2)>
    >>> xp.asarray(3, dtype=xp.float64).compute()
    np.float64(3.0)

    Raises:
        TypeError: no kernels exist for the dtype; bool, int64 and float64 have them.
        ValueError: the sequences are not of one length, or an element cannot be converted.
        OverflowError: with a dtype, a number does not fit it.

    """
    if isinstance(obj, Array):
        return obj if dtype is None else obj.astype(dtype)
    import numpy as np

    if dtype is None:
        return Array(_arguments.constant(np.asarray(obj)))
    name = _arguments.dtype_name(dtype)
    given = np.asarray(obj, dtype=None if hasattr(obj, "dtype") else name)
    if given.dtype.name not in _arguments.KERNELS:
        given = np.asarray(obj, dtype=name)
    return Array(_arguments.constant(given)).astype(dtype)


def from_numpy(x: NDArray[Any], *, chunks: Size | None = None) -> Array:
    """Make an array of a NumPy array, in one chunk or in chunks of these extents.

    Shape and dtype stay. Its elements travel with the expression: large data is better made where
    it is needed, with `from_delayed`.

    >>> import ebbtide.array as xp, numpy as np
    >>> xp.from_numpy(np.arange(5.0), chunks=2).chunks
    ((2, 2, 1),)

    Raises:
        TypeError: no kernels exist for the dtype; bool, int64 and float64 have them.
        ValueError: the chunks do not fit the shape.

    """
    array = asarray(x)
    return array if chunks is None else array.rechunk(chunks)


def from_delayed(
    value: Delayed[Any] | Callable[[], Any],
    shape: Size,
    dtype: DType,
    *,
    memory: int | str | None = None,
    retries: int = 0,
    resources: Mapping[str, int] | None = None,
) -> Array:
    """Make an array of one chunk from what a Python function will return on a worker.

    `value` is a call that was noted by `ebbtide.delayed`, or a function without arguments. It
    must return what NumPy makes an array of exactly this shape and dtype. An array among the
    arguments is computed there and given as a read-only NumPy array.

    The function and its arguments travel by value. It is called in a process of its own; `memory`
    bounds what that may allocate, 512 MiB by default. `retries` says how often it is tried again
    when it raises. When its process ends, by a crash or for lack of memory, it is tried again up
    to three times in any case. `resources` says what it takes of its worker for as long as it
    runs, like `{"nvidia.com/gpu": 1}`: it runs on a worker of a group that has it.

    >>> import ebbtide as eb, ebbtide.array as xp
    >>> squares = eb.delayed(lambda n: [float(i * i) for i in range(n)])(4)
    >>> xp.from_delayed(squares, (4,), xp.float64).sum().compute()
    np.float64(14.0)

    Raises:
        TypeError: the function cannot be called, it or an argument cannot be pickled, retries are
            no whole number, or no kernels exist for the dtype.
        ValueError: memory is no number of bytes, retries or an extent is less than 0 or too large,
            or resources are no kinds with amounts.
        TaskFailed: at compute, it returned another shape or dtype, or ended its process.
        Exception: at compute, what the function raised.

    """
    call = value if isinstance(value, _function.Delayed) else _function.Delayed(value)
    callee = _function.Callee(call.function, memory, retries, resources)
    returns = (_arguments.dtype_name(dtype), _arguments.extents(shape, "shape"))
    return Array(callee.expression(call.args, call.kwargs, returns))
