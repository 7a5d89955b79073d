"""Functions of arrays by the array API standard's names, and those that compute them."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, SupportsIndex

from ebbtide import _cluster
from ebbtide.array import _arguments
from ebbtide.array._arguments import Axis, Scalar
from ebbtide.array._array import Array, binary, checked, product
from ebbtide.array._dtype import DType
from ebbtide.array._results import results

if TYPE_CHECKING:
    from ebbtide.array._results import Result


def compute(*arrays: Array, progress: builtins.bool = False) -> tuple[Result, ...]:
    """Compute several arrays together, on the innermost open cluster, else in this process.

    Returns of each a read-only NumPy array of its shape and dtype, or a NumPy scalar where there
    are no axes. What they have in common is computed once. The bits are the same wherever it is
    computed.

    With `progress`, a bar shows tasks and workers from a tenth of a second on. In a terminal it is
    text. In a notebook it is the notebook's own where ipywidgets is installed (`pip install
    ipywidgets`), and text otherwise.

    >>> import ebbtide.array as xp
    >>> x = xp.asarray([1.0, 2.0])
    >>> xp.compute(x.sum(), x.mean())
    (np.float64(3.0), np.float64(1.5))

    Raises:
        TaskFailed: a task failed, or needs more memory than any worker has; the message says which
            and why.
        Exception: what a Python function raised, with the worker's traceback as its cause.
        ConnectionLost: the cluster went away, or was closed by this program.
        MemoryError: a result does not fit the memory here.
        ValueError: an array was persisted on another cluster, or in another place than this one.
        KeyboardInterrupt: Ctrl-C, which cancels the computation on the cluster too.

    """
    expressions = [checked("compute", array)._expression for array in arrays]
    return results(expressions, progress=progress)


def persist(*arrays: Array) -> tuple[Array, ...]:
    """Compute several arrays once and keep their chunks with the workers of the innermost cluster.

    The new arrays have the same shapes, dtypes and chunks. The chunks stay as long as anything
    refers to the returned arrays or to what is made of them, and are made again when a worker is
    lost. On a cluster it returns at once, and what uses the arrays waits for them. Without a
    cluster they are computed now and stay in this process.

    >>> import ebbtide.array as xp
    >>> (x,) = xp.persist(xp.asarray([1.0, 2.0]) * 2)
    >>> x.sum().compute()
    np.float64(6.0)

    Raises:
        TaskFailed: in this process, as `compute`.
        ValueError: an array was persisted on another cluster, or in another place than this one.
        ConnectionLost: the cluster was closed by this program.

    """
    expressions = [checked("persist", array)._expression for array in arrays]
    kept = _cluster.keep(expressions) if expressions else []
    return tuple(Array(expression) for expression in kept)


def astype(x: Array, dtype: DType, /) -> Array:
    """Convert every element. The shape stays.

    Floating point is cut towards zero and NaN becomes 0 where it becomes int64, and what does not
    fit saturates. What is not 0 becomes True.

    >>> import ebbtide.array as xp
    >>> xp.astype(xp.asarray([1.7, -1.7]), xp.int64).compute()
    array([ 1, -1])

    Raises:
        TypeError: it is no dtype of ours, or x is no array.

    """
    return checked("astype", x).astype(dtype)


def add(x1: Array | Scalar, x2: Array | Scalar, /) -> Array:
    """Add element by element.

    Shapes broadcast; the dtype is that of both. int64 wraps around where it does not fit.

    >>> import ebbtide.array as xp
    >>> xp.add(xp.asarray([1, 2]), 10).compute()
    array([11, 12])

    Raises:
        TypeError: the dtypes differ or are bool, a number does not go with the array's, or
            neither is an array.
        ValueError: the shapes do not broadcast.
        OverflowError: a number does not fit the dtype.

    """
    return binary("add", x1, x2)


def subtract(x1: Array | Scalar, x2: Array | Scalar, /) -> Array:
    """Subtract the second from the first, element by element.

    Shapes broadcast; the dtype is that of both. int64 wraps around where it does not fit.

    >>> import ebbtide.array as xp
    >>> xp.subtract(xp.asarray([1, 2]), 1).compute()
    array([0, 1])

    Raises:
        TypeError: the dtypes differ or are bool, a number does not go with the array's, or
            neither is an array.
        ValueError: the shapes do not broadcast.
        OverflowError: a number does not fit the dtype.

    """
    return binary("subtract", x1, x2)


def multiply(x1: Array | Scalar, x2: Array | Scalar, /) -> Array:
    """Multiply element by element.

    Shapes broadcast; the dtype is that of both. int64 wraps around where it does not fit.

    >>> import ebbtide.array as xp
    >>> xp.multiply(xp.asarray([1.0, 2.0]), xp.asarray([[3.0], [4.0]])).compute()
    array([[3., 6.],
           [4., 8.]])

    Raises:
        TypeError: the dtypes differ or are bool, a number does not go with the array's, or
            neither is an array.
        ValueError: the shapes do not broadcast.
        OverflowError: a number does not fit the dtype.

    """
    return binary("multiply", x1, x2)


def divide(x1: Array | Scalar, x2: Array | Scalar, /) -> Array:
    """Divide the first by the second, element by element, in float64.

    Shapes broadcast. Division by 0 gives an infinity or NaN.

    >>> import ebbtide.array as xp
    >>> xp.divide(xp.asarray([1, 2]), 4).compute()
    array([0.25, 0.5 ])

    Raises:
        TypeError: the dtypes differ or are bool, a number does not go with the array's, or
            neither is an array.
        ValueError: the shapes do not broadcast.
        OverflowError: a number does not fit the dtype.

    """
    return binary("divide", x1, x2)


def matmul(x1: Array, x2: Array, /) -> Array:
    """Multiply matrices over the last axis of x1 and the first of x2, which has one or two.

    Shapes (…, n, k) and (k, m) give (…, n, m); (…, k) and (k,) give (…). The dtype is that of
    both. Each task takes all of x2: it should be small. The bits depend on shapes and chunks alone.

    >>> import ebbtide.array as xp
    >>> xp.matmul(xp.asarray([[1.0, 2.0], [3.0, 4.0]]), xp.asarray([1.0, 10.0])).compute()
    array([21., 43.])

    Raises:
        TypeError: the dtypes differ or are bool.
        ValueError: the shapes do not go together.

    """
    return product(x1, x2)


def sum(x: Array, /, *, axis: Axis = None) -> Array:
    """Add over axes, all by default.

    The axes go away; negative ones are counted from the end. Booleans and integers are added as
    int64, which wraps around where it does not fit. The order of additions, and so every bit,
    depends on shape and chunks alone. Nothing adds to 0.

    >>> import ebbtide.array as xp
    >>> xp.sum(xp.asarray([1, 2, 3])).compute()
    np.int64(6)

    Raises:
        IndexError: there is no such axis.
        ValueError: an axis is named twice.
        TypeError: an axis is no whole number, or x is no array.

    """
    return checked("sum", x).sum(axis=axis)


def prod(x: Array, /, *, axis: Axis = None) -> Array:
    """Multiply over axes, all by default.

    The axes go away; negative ones are counted from the end. Booleans and integers are multiplied
    as int64, which wraps around where it does not fit. The order of multiplications, and so every
    bit, depends on shape and chunks alone. Nothing multiplies to 1.

    >>> import ebbtide.array as xp
    >>> xp.prod(xp.asarray([[1, 2], [3, 4]]), axis=0).compute()
    array([3, 8])

    Raises:
        IndexError: there is no such axis.
        ValueError: an axis is named twice.
        TypeError: an axis is no whole number, or x is no array.

    """
    return checked("prod", x).prod(axis=axis)


def mean(x: Array, /, *, axis: Axis = None) -> Array:
    """Average over axes, all by default, in float64.

    The axes go away; negative ones are counted from the end. The order of additions, and so every
    bit, depends on shape and chunks alone. The mean of nothing is NaN.

    >>> import ebbtide.array as xp
    >>> xp.mean(xp.asarray([[1, 2], [3, 4]]), axis=1).compute()
    array([1.5, 3.5])

    Raises:
        IndexError: there is no such axis.
        ValueError: an axis is named twice.
        TypeError: an axis is no whole number, or x is no array.

    """
    return checked("mean", x).mean(axis=axis)


def quantile(x: Array, q: float, /) -> Array:
    """Find the exact quantile over all elements, linear between the two nearest.

    A float64 without axes, the same bits in any chunks. Memory does not grow with the array: it is
    read six times. NaN if an element is NaN. Where it is an element itself, infinite neighbours do
    not matter, other than in NumPy.

    >>> import ebbtide.array as xp
    >>> xp.quantile(xp.asarray([1.0, 2.0, 3.0, 10.0]), 0.5).compute()
    np.float64(2.5)

    Raises:
        ValueError: q is outside 0 to 1, or the array is empty.
        TypeError: x is no array, or q no number.

    """
    try:
        share = q.__float__()
    except (AttributeError, TypeError):
        raise TypeError(f"quantile: q {q!r} is no number") from None
    except OverflowError:
        raise ValueError("quantile: q is beyond every float; expected 0 to 1") from None
    return Array(checked("quantile", x)._expression.quantile(share))


def topk(x: Array, k: SupportsIndex, /) -> Array:
    """Find the k largest elements of an array with one axis, in descending order.

    An array of shape (k,) and the same dtype, in one chunk, the same in any chunks of x. NaN is
    larger than every number, as where NumPy sorts.

    >>> import ebbtide.array as xp
    >>> xp.topk(xp.asarray([3, 1, 4, 1, 5]), 2).compute()
    array([5, 4])

    Raises:
        ValueError: the array has more or fewer axes, or k is not from 1 to its extent.
        TypeError: the array is of bool or is none, or k is no whole number.

    """
    (count,) = _arguments.extents(_arguments.integer(k, "topk: k"), "topk: k", 1)
    return Array(checked("topk", x)._expression.topk(count))


def take(x: Array, indices: Array, /, *, axis: SupportsIndex = 0) -> Array:
    """Take elements along an axis at places of int64, negative ones counted from the end.

    The axes of `indices` stand for the axis, as in NumPy; the dtype is that of x. x must be one
    chunk along the axis; each task takes all of that chunk.

    >>> import ebbtide.array as xp
    >>> xp.take(xp.asarray([10, 20, 30]), xp.asarray([[0, -1], [1, 1]])).compute()
    array([[10, 30],
           [20, 20]])

    Raises:
        TypeError: the indices are not int64, or one of both is no array.
        IndexError: there is no such axis.
        ValueError: x is cut along the axis.
        TaskFailed: at compute, an index is out of range.

    """
    places = checked("take", indices)._expression
    along = _arguments.along("take", axis, checked("take", x).ndim)
    return Array(x._expression.take(places, along))
