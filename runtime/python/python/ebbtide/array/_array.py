"""The array and the functions that make one from others."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from ebbtide import _cluster, _function, _native
from ebbtide.array._dtype import DType, float64, int64
from ebbtide.array._dtype import bool as bool_

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ebbtide._function import Delayed

    Result = NDArray[Any] | np.generic

Scalar = builtins.bool | int | float
Axis = SupportsIndex | Sequence[SupportsIndex] | None


class Array:
    """An array that need not exist yet: an expression with shape, dtype and chunks.

    Functions and operators make new ones and compute nothing; `compute` does.
    """

    __slots__ = ("_expression",)
    # NumPy arrays leave operators with one of ours to us, and do not take it apart.
    __array_ufunc__ = None

    def __init__(self, expression: _native.Expression) -> None:
        """Use `asarray` or `random` instead."""
        self._expression = expression

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of each axis."""
        return tuple(self._expression.shape)

    @property
    def dtype(self) -> DType:
        """Type of the elements."""
        return DType(self._expression.dtype)

    @property
    def ndim(self) -> int:
        """Count the axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Count the elements."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Extents of the chunks along each axis."""
        return tuple(tuple(extents) for extents in self._expression.chunks)

    def compute(self, *, progress: builtins.bool = False) -> Result:
        """Compute on the innermost open cluster, else in this process.

        Returns a NumPy array of this shape and dtype, or a NumPy scalar where there are no axes.

        Raises:
            TaskFailed: a task failed; the message says which and why.
            ConnectionLost: the cluster went away.
            KeyboardInterrupt: Ctrl-C, which cancels the computation on the cluster too.

        """
        return compute(self, progress=progress)[0]

    def persist(self) -> Array:
        """Compute once and keep the chunks with the workers, as long as anything refers to them.

        On a cluster it returns at once, and what uses the array waits for it; in this process it
        computes now.
        """
        return persist(self)[0]

    def sum(self, *, axis: Axis = None) -> Array:
        """Add over axes, all by default. Booleans and integers are added as int64."""
        return sum(self, axis=axis)

    def prod(self, *, axis: Axis = None) -> Array:
        """Multiply over axes, all by default."""
        return prod(self, axis=axis)

    def mean(self, *, axis: Axis = None) -> Array:
        """Average over axes, all by default, in float64."""
        return mean(self, axis=axis)

    def astype(self, dtype: DType) -> Array:
        """Convert every element."""
        return astype(self, dtype)

    def rechunk(self, chunks: SupportsIndex | Sequence[SupportsIndex]) -> Array:
        """Cut the same array into chunks of these extents."""
        return Array(self._expression.rechunk(_integers(chunks, "chunks")))

    def __getitem__(self, key: Any) -> Array:
        """Take a part: slices with positive steps, whole numbers, and an ellipsis.

        Raises:
            IndexError: too many indices, or a whole number outside its axis.
            TypeError: something else than slices, whole numbers and an ellipsis.

        """
        return _part(self, key if isinstance(key, tuple) else (key,))

    def __matmul__(self, other: Array) -> Array:
        return matmul(self, other)

    def __lt__(self, other: Array | Scalar) -> Array:
        return _compare("less", self, other)

    def __le__(self, other: Array | Scalar) -> Array:
        return _compare("less_equal", self, other)

    def __gt__(self, other: Array | Scalar) -> Array:
        return _compare("greater", self, other)

    def __ge__(self, other: Array | Scalar) -> Array:
        return _compare("greater_equal", self, other)

    def __eq__(self, other: object) -> Array:  # type: ignore[override]
        return _compare("equal", self, other)

    def __ne__(self, other: object) -> Array:  # type: ignore[override]
        return _compare("not_equal", self, other)

    __hash__ = None  # type: ignore[assignment]

    def __neg__(self) -> Array:
        return _binary("multiply", self, -1)

    def __add__(self, other: Array | Scalar) -> Array:
        return _binary("add", self, other)

    def __radd__(self, other: Scalar) -> Array:
        return _binary("add", other, self)

    def __sub__(self, other: Array | Scalar) -> Array:
        return _binary("subtract", self, other)

    def __rsub__(self, other: Scalar) -> Array:
        return _binary("subtract", other, self)

    def __mul__(self, other: Array | Scalar) -> Array:
        return _binary("multiply", self, other)

    def __rmul__(self, other: Scalar) -> Array:
        return _binary("multiply", other, self)

    def __truediv__(self, other: Array | Scalar) -> Array:
        return _binary("divide", self, other)

    def __rtruediv__(self, other: Scalar) -> Array:
        return _binary("divide", other, self)

    def __bool__(self) -> builtins.bool:
        """Refuse: an array that is not computed has no truth."""
        raise TypeError("the truth of an array is not known before .compute()")

    def __repr__(self) -> str:
        """Show shape, dtype and chunks, and compute nothing."""
        chunks = tuple(max(extents) for extents in self.chunks)
        return f"<ebbtide.array {self.shape} {self.dtype} in chunks of {chunks}>"


def asarray(obj: object, *, dtype: DType | None = None) -> Array:
    """Make an array of one chunk from numbers, nested sequences or a NumPy array.

    >>> asarray([[1, 2], [3, 4]]).shape
    (2, 2)

    Raises:
        TypeError: no kernels exist for the dtype; bool, int64 and float64 have them.

    """
    if isinstance(obj, Array):
        return obj if dtype is None else astype(obj, dtype)
    import numpy as np

    given = np.asarray(obj, dtype=None if dtype is None else _name(dtype))
    little = given.astype(given.dtype.newbyteorder("<"), copy=False)
    shape = list(given.shape)
    return Array(_native.Expression.constant(given.dtype.name, shape, little.tobytes()))


def from_delayed(
    value: Delayed[Any] | Callable[[], Any],
    shape: Sequence[int],
    dtype: DType,
    *,
    memory: int | str | None = None,
    retries: int = 0,
) -> Array:
    """Make an array of one chunk from what a Python function will return on a worker.

    `value` is a call that was noted by `ebbtide.delayed`, or a function without arguments. It
    must return what NumPy makes an array of exactly this shape and dtype. `memory` bounds what its
    process may allocate, 512 MiB by default; `retries` says how often it is tried again when it
    raises.

    >>> import ebbtide as eb
    >>> squares = eb.delayed(lambda n: [float(i * i) for i in range(n)])(4)
    >>> from_delayed(squares, (4,), float64).sum().compute()
    np.float64(14.0)

    Raises:
        TypeError: the function or an argument cannot be pickled, or no kernels exist for the
            dtype.

    """
    call = value if isinstance(value, _function.Delayed) else _function.Delayed(value)
    callee = _function.Callee(call.function, memory, retries)
    returns = (_name(dtype), _integers(shape, "shape"))
    return Array(callee.expression(call.args, call.kwargs, returns))


def compute(*arrays: Array, progress: builtins.bool = False) -> tuple[Result, ...]:
    """Compute several arrays together, on the innermost open cluster, else in this process.

    What they have in common is computed once. With `progress`, a bar shows how far it is, in a
    terminal and in a notebook.

    >>> x = asarray([1.0, 2.0])
    >>> [float(result) for result in compute(x.sum(), x.mean())]
    [3.0, 1.5]
    """
    import numpy as np

    expressions = [array._expression for array in arrays]
    if not expressions:
        return ()
    if progress:
        with _Bar() as bar:
            results = _cluster.run(expressions, bar)
    else:
        results = _cluster.run(expressions, None)
    return tuple(
        np.frombuffer(bytes, dtype=array.dtype.name).reshape(array.shape)[()]
        for array, bytes in zip(arrays, results, strict=True)
    )


def persist(*arrays: Array) -> tuple[Array, ...]:
    """Compute several arrays once and keep their chunks with the workers of the innermost cluster.

    They stay as long as anything refers to the returned arrays or to what is made of them, and are
    made again when a worker is lost. Without a cluster they stay in this process.

    >>> (x,) = persist(asarray([1.0, 2.0]) * 2)
    >>> x.sum().compute()
    np.float64(6.0)

    Raises:
        ValueError: an array was persisted on another cluster.

    """
    kept = _cluster.keep([array._expression for array in arrays]) if arrays else []
    return tuple(Array(expression) for expression in kept)


class _Bar:
    """A progress bar over tasks."""

    def __enter__(self) -> Callable[[int, int, int], None]:
        from tqdm.auto import tqdm

        self._bar = tqdm(unit="task", unit_scale=True)
        return self._tell

    def _tell(self, done: int, tasks: int, workers: int) -> None:
        self._bar.set_postfix_str(f"{workers} worker{'s' * (workers != 1)}", refresh=False)
        self._bar.total = tasks
        self._bar.n = done
        self._bar.refresh()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._bar.total:
            self._bar.n = self._bar.total
            self._bar.refresh()
        self._bar.close()


def sum(x: Array, /, *, axis: Axis = None) -> Array:
    """Add over axes, all by default. Booleans and integers are added as int64.

    >>> sum(asarray([1, 2, 3])).compute()
    np.int64(6)
    """
    return Array(x._expression.reduce("sum", _axes(axis)))


def prod(x: Array, /, *, axis: Axis = None) -> Array:
    """Multiply over axes, all by default.

    >>> prod(asarray([[1, 2], [3, 4]]), axis=0).compute()
    array([3, 8])
    """
    return Array(x._expression.reduce("prod", _axes(axis)))


def mean(x: Array, /, *, axis: Axis = None) -> Array:
    """Average over axes, all by default, in float64.

    >>> mean(asarray([[1, 2], [3, 4]]), axis=1).compute()
    array([1.5, 3.5])
    """
    return Array(x._expression.reduce("mean", _axes(axis)))


def astype(x: Array, dtype: DType, /) -> Array:
    """Convert every element. Floating point is cut towards zero; what does not fit saturates.

    >>> astype(asarray([1.7, -1.7]), int64).compute()
    array([ 1, -1])
    """
    return Array(x._expression.cast(_name(dtype)))


def add(x1: Array, x2: Array | Scalar, /) -> Array:
    """Add element by element. Shapes broadcast.

    >>> add(asarray([1, 2]), 10).compute()
    array([11, 12])
    """
    return _binary("add", x1, x2)


def subtract(x1: Array, x2: Array | Scalar, /) -> Array:
    """Subtract element by element. Shapes broadcast.

    >>> subtract(asarray([1, 2]), 1).compute()
    array([0, 1])
    """
    return _binary("subtract", x1, x2)


def multiply(x1: Array, x2: Array | Scalar, /) -> Array:
    """Multiply element by element. Shapes broadcast.

    >>> multiply(asarray([1.0, 2.0]), asarray([[3.0], [4.0]])).compute()
    array([[3., 6.],
           [4., 8.]])
    """
    return _binary("multiply", x1, x2)


def divide(x1: Array, x2: Array | Scalar, /) -> Array:
    """Divide element by element, in float64. Shapes broadcast.

    >>> divide(asarray([1, 2]), 4).compute()
    array([0.25, 0.5 ])
    """
    return _binary("divide", x1, x2)


def matmul(x1: Array, x2: Array, /) -> Array:
    """Multiply matrices over the last axis of x1 and the first of x2, which has one or two.

    Each task takes all of x2: it should be small.

    >>> matmul(asarray([[1.0, 2.0], [3.0, 4.0]]), asarray([1.0, 10.0])).compute()
    array([21., 43.])
    """
    return Array(x1._expression.matmul(x2._expression))


def take(x: Array, indices: Array, /, *, axis: SupportsIndex = 0) -> Array:
    """Take elements along an axis at places of int64, negative ones counted from the end.

    The axes of `indices` stand for the axis, as in NumPy. x must be one chunk along the axis;
    each task takes all of that chunk.

    >>> take(asarray([10, 20, 30]), asarray([[0, -1], [1, 1]])).compute()
    array([[10, 30],
           [20, 20]])

    Raises:
        TypeError: the indices are not int64.
        ValueError: x is cut along the axis.
        TaskFailed: at compute, an index is out of range.

    """
    return Array(x._expression.take(indices._expression, operator.index(axis)))


def quantile(x: Array, q: float, /) -> Array:
    """Find the exact quantile over all elements, linear between the two nearest.

    Memory does not grow with the array: it is read six times. NaN if an element is NaN.

    >>> quantile(asarray([1.0, 2.0, 3.0, 10.0]), 0.5).compute()
    np.float64(2.5)

    Raises:
        ValueError: q is outside 0 to 1, or the array is empty.

    """
    return Array(x._expression.quantile(float(q)))


def topk(x: Array, k: SupportsIndex, /) -> Array:
    """Find the k largest elements of an array with one axis, in descending order.

    NaN is larger than every number, as where NumPy sorts.

    >>> topk(asarray([3, 1, 4, 1, 5]), 2).compute()
    array([5, 4])
    """
    return Array(x._expression.topk(operator.index(k)))


def from_numpy(x: NDArray[Any], *, chunks: Sequence[SupportsIndex] | None = None) -> Array:
    """Make an array of a NumPy array, in one chunk or in chunks of these extents.

    Its elements travel with the expression: large data is better made where it is needed, with
    `from_delayed`.

    >>> import numpy as np
    >>> from_numpy(np.arange(5.0), chunks=(2,)).chunks
    ((2, 2, 1),)
    """
    array = asarray(x)
    return array if chunks is None else array.rechunk(chunks)


def _part(x: Array, key: tuple[Any, ...]) -> Array:
    if builtins.sum(one is Ellipsis for one in key) > 1:
        raise IndexError("an index may have one ellipsis only")
    missing = x.ndim - builtins.sum(one is not Ellipsis for one in key)
    if missing < 0:
        raise IndexError(f"{x.ndim - missing} indices for an array of {x.ndim} axes")
    at = next((nth for nth, one in enumerate(key) if one is Ellipsis), len(key))
    rest = (slice(None),) * missing
    full = (*key[:at], *rest, *key[at + 1 :])
    ranges, single = [], []
    for axis, (one, extent) in enumerate(zip(full, x.shape, strict=True)):
        if isinstance(one, slice):
            start, stop, step = one.indices(extent)
            if step < 1:
                raise IndexError(f"step {step} of axis {axis}: expected at least 1")
            ranges.append((start, len(range(start, stop, step)), step))
        elif isinstance(one, SupportsIndex) and not isinstance(one, builtins.bool):
            place = operator.index(one)
            if not -extent <= place < extent:
                raise IndexError(f"index {place} is out of range for axis {axis} of {extent}")
            ranges.append((place % extent, 1, 1))
            single.append(axis)
        else:
            raise TypeError(f"index {one!r}: expected a slice, a whole number or an ellipsis")
    part = x._expression.slice(ranges)
    if not single:
        return Array(part)
    # The sum over an axis of one element is that element.
    cast = part.cast("int64") if x.dtype == bool_ else part
    return Array(cast.reduce("sum", single).cast(x.dtype.name))


def _compare(op: str, left: Array, right: object) -> Array:
    other = right if isinstance(right, Array) else _operand(right, left)
    return Array(left._expression.compare(op, other._expression))


def _binary(op: str, left: Array | Scalar, right: Array | Scalar) -> Array:
    if not isinstance(left, Array):
        left = _operand(left, right)
    elif not isinstance(right, Array):
        right = _operand(right, left)
    assert isinstance(left, Array) and isinstance(right, Array)
    return Array(left._expression.binary(op, right._expression))


def _operand(value: object, beside: Array | Scalar) -> Array:
    """Make a number an array of the dtype that it meets, as the standard says; NumPy's stay."""
    import numpy as np

    assert isinstance(beside, Array)
    if isinstance(value, np.ndarray | np.generic):
        return asarray(value)
    if not isinstance(value, builtins.bool | int | float):
        kind = type(value).__name__
        raise TypeError(f"expected an array or a number, not {kind}; use asarray")
    if isinstance(value, float) and beside.dtype == int64:
        raise TypeError(f"{value} does not fit int64; convert the array with astype(float64)")
    dtype = bool_ if isinstance(value, builtins.bool) else beside.dtype
    return asarray(value, dtype=dtype if dtype != bool_ else bool_)


def _axes(axis: Axis) -> list[int] | None:
    return None if axis is None else _integers(axis, "axis")


def _integers(given: SupportsIndex | Sequence[SupportsIndex], what: str) -> list[int]:
    """Read one whole number or several, as Python's or NumPy's."""
    if isinstance(given, SupportsIndex):
        return [operator.index(given)]
    try:
        return [operator.index(one) for one in given]
    except TypeError:
        raise TypeError(f"{what} {given!r} is no whole number, nor several") from None


def _name(dtype: DType) -> str:
    if not isinstance(dtype, DType):
        raise TypeError(f"{dtype!r} is no dtype of ebbtide.array; use float64, int64 or bool")
    return dtype.name


__all__ = ["float64"]
