"""The array: its properties, methods and operators."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

from ebbtide import _cluster, _native
from ebbtide.array import _arguments
from ebbtide.array._arguments import Axis, Scalar, Size
from ebbtide.array._dtype import DType
from ebbtide.array._dtype import bool as bool_
from ebbtide.array._results import results

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from ebbtide.array._results import Result


class Array:
    """An array that need not exist yet: an expression with shape, dtype and chunks.

    Functions and operators make new ones and compute nothing; `compute` does. The same expression
    gives the same bits in this process and on every cluster, whatever the number of workers, and
    also when a worker is lost on the way.

    Beside an array an operator takes another one, a NumPy array or a Python number. Shapes
    broadcast as in NumPy. A Python number takes the array's dtype: a bool beside bool, an int
    beside int64, an int or a float beside float64. What does not go together is refused when the
    expression is made: a ValueError names the shapes, a TypeError the dtypes.

    >>> import ebbtide.array as xp
    >>> x = xp.asarray([[1.0, 2.0], [3.0, 4.0]])
    >>> 2 * x - 1
    <ebbtide.array (2, 2) float64 in chunks of (2, 2)>
    >>> (2 * x - 1).compute()
    array([[1., 3.],
           [5., 7.]])
    """

    __slots__ = ("_expression",)
    # NumPy arrays leave operators with one of ours to us, and do not take it apart.
    __array_ufunc__ = None

    def __init__(self, expression: _native.Expression) -> None:
        """Use `asarray`, `from_numpy`, `from_delayed` or `random.default_rng` instead."""
        self._expression = expression

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of each axis.

        >>> import ebbtide.array as xp
        >>> xp.asarray([[1, 2, 3], [4, 5, 6]]).shape
        (2, 3)
        """
        return tuple(self._expression.shape)

    @property
    def dtype(self) -> DType:
        """Type of the elements.

        >>> import ebbtide.array as xp
        >>> xp.asarray([1, 2]).dtype
        ebbtide.array.int64
        """
        return DType(self._expression.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes.

        >>> import ebbtide.array as xp
        >>> xp.asarray([[1, 2, 3], [4, 5, 6]]).ndim
        2
        """
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements.

        >>> import ebbtide.array as xp
        >>> xp.asarray([[1, 2, 3], [4, 5, 6]]).size
        6
        """
        size = 1
        for extent in self.shape:
            size *= extent
        return size

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Extents of the chunks along each axis.

        >>> import ebbtide.array as xp
        >>> xp.random.default_rng(7).random((5, 4), chunks=(2, 4)).chunks
        ((2, 2, 1), (4,))
        """
        return tuple(tuple(extents) for extents in self._expression.chunks)

    def compute(self, *, progress: builtins.bool = False) -> Result:
        """Compute on the innermost open cluster, else in this process.

        Returns a NumPy array of this shape and dtype, which is read-only, or a NumPy scalar where
        there are no axes. `progress` is that of `ebbtide.array.compute`, and so are the errors.

        >>> import ebbtide.array as xp
        >>> (xp.asarray([1, 2]) + 1).compute()
        array([2, 3])
        """
        return results([self._expression], progress=progress)[0]

    def persist(self) -> Array:
        """Compute once and keep the chunks with the workers, as long as anything refers to them.

        Shape, dtype and chunks stay. On a cluster it returns at once, and what uses the array waits
        for it; in this process it computes now. The errors are those of `ebbtide.array.persist`.

        >>> import ebbtide.array as xp
        >>> x = xp.random.default_rng(7).random(1000).persist()
        >>> bool(x.sum().compute() == x.sum().compute())
        True
        """
        return Array(*_cluster.keep([self._expression]))

    def sum(self, *, axis: Axis = None, **numpys: object) -> Array:
        """Add over axes, all by default, as `ebbtide.array.sum` does.

        >>> import ebbtide.array as xp
        >>> xp.asarray([[1, 2], [3, 4]]).sum(axis=0).compute()
        array([4, 6])
        """
        _arguments.nothing("sum", numpys)
        return Array(self._expression.reduce("sum", _arguments.axes("sum", axis, self.ndim)))

    def prod(self, *, axis: Axis = None, **numpys: object) -> Array:
        """Multiply over axes, all by default, as `ebbtide.array.prod` does.

        >>> import ebbtide.array as xp
        >>> xp.asarray([[1, 2], [3, 4]]).prod(axis=-1).compute()
        array([ 2, 12])
        """
        _arguments.nothing("prod", numpys)
        return Array(self._expression.reduce("prod", _arguments.axes("prod", axis, self.ndim)))

    def mean(self, *, axis: Axis = None, **numpys: object) -> Array:
        """Average over axes, all by default, as `ebbtide.array.mean` does.

        >>> import ebbtide.array as xp
        >>> xp.asarray([[1, 2], [3, 4]]).mean().compute()
        np.float64(2.5)
        """
        _arguments.nothing("mean", numpys)
        return Array(self._expression.reduce("mean", _arguments.axes("mean", axis, self.ndim)))

    def astype(self, dtype: DType) -> Array:
        """Convert every element, as `ebbtide.array.astype` does.

        >>> import ebbtide.array as xp
        >>> xp.asarray([True, False]).astype(xp.float64).compute()
        array([1., 0.])
        """
        return Array(self._expression.cast(_arguments.dtype_name(dtype)))

    def rechunk(self, chunks: Size) -> Array:
        """Cut the same array into chunks of these extents, one for each axis.

        Shape, dtype and elements stay. The last chunk along an axis is smaller where the extent
        does not divide.

        >>> import ebbtide.array as xp
        >>> xp.asarray([1, 2, 3, 4, 5]).rechunk(2).chunks
        ((2, 2, 1),)

        Raises:
            TypeError: extents are no whole numbers.
            ValueError: there are more or fewer extents than axes, or one is less than 1.

        """
        return Array(self._expression.rechunk(_arguments.extents(chunks, "chunks", 1)))

    def __getitem__(self, key: Any) -> Array:
        """Take a part: slices with positive steps, whole numbers, and an ellipsis.

        Bounds beyond the array end there. A whole number takes its axis away; the dtype stays.

        >>> import ebbtide.array as xp
        >>> x = xp.asarray([[1, 2, 3], [4, 5, 6]])
        >>> x[-1].compute(), x[..., ::2].shape
        (array([4, 5, 6]), (2, 2))

        Raises:
            IndexError: there are too many indices or ellipses, a whole number is outside its axis,
                or a step is negative.
            TypeError: it is something else than slices, whole numbers and an ellipsis.
            ValueError: a step is 0.

        """
        ranges, single = _arguments.part(key, self.shape)
        part = self._expression.slice(ranges)
        if not single:
            return Array(part)
        # The sum over an axis of one element is that element.
        cast = part.cast("int64") if self.dtype == bool_ else part
        return Array(cast.reduce("sum", single).cast(self.dtype.name))

    def __iter__(self) -> Iterator[Array]:
        """Go through the parts along the first axis.

        >>> import ebbtide.array as xp
        >>> [row.sum().compute() for row in xp.asarray([[1, 2], [3, 4]])]
        [np.int64(3), np.int64(7)]

        Raises:
            TypeError: there are no axes.

        """
        if not self.shape:
            raise TypeError("an array without axes has no parts to go through; compute() gives it")
        return (self[place] for place in range(self.shape[0]))

    def __matmul__(self, other: Array) -> Array:
        """Multiply matrices, as `matmul` does.

        >>> import ebbtide.array as xp
        >>> (xp.asarray([[1.0, 2.0], [3.0, 4.0]]) @ xp.asarray([1.0, 10.0])).compute()
        array([21., 43.])
        """
        return product(self, other)

    def __rmatmul__(self, other: Any) -> Array:
        """Multiply a NumPy array with a matrix, as `matmul` does.

        >>> import ebbtide.array as xp, numpy as np
        >>> (np.array([1.0, 10.0]) @ xp.asarray([[1.0, 2.0], [3.0, 4.0]])).compute()
        array([31., 42.])
        """
        return product(other, self)

    def __lt__(self, other: Array | Scalar) -> Array:
        """Compare element by element: an array of bool. False beside NaN.

        >>> import ebbtide.array as xp
        >>> (xp.asarray([1, 2, 3]) < 2).compute()
        array([ True, False, False])
        """
        return compare("less", self, other)

    def __le__(self, other: Array | Scalar) -> Array:
        """Compare element by element: an array of bool. False beside NaN.

        >>> import ebbtide.array as xp
        >>> (xp.asarray([1, 2, 3]) <= 2).compute()
        array([ True,  True, False])
        """
        return compare("less_equal", self, other)

    def __gt__(self, other: Array | Scalar) -> Array:
        """Compare element by element: an array of bool. False beside NaN.

        >>> import ebbtide.array as xp
        >>> (xp.asarray([1, 2, 3]) > 2).compute()
        array([False, False,  True])
        """
        return compare("greater", self, other)

    def __ge__(self, other: Array | Scalar) -> Array:
        """Compare element by element: an array of bool. False beside NaN.

        >>> import ebbtide.array as xp
        >>> (xp.asarray([1, 2, 3]) >= 2).compute()
        array([False,  True,  True])
        """
        return compare("greater_equal", self, other)

    def __eq__(self, other: object) -> Array:  # type: ignore[override]
        """Compare element by element: an array of bool. False beside NaN.

        >>> import ebbtide.array as xp
        >>> (xp.asarray([1, 2, 3]) == 2).compute()
        array([False,  True, False])
        """
        return compare("equal", self, other)

    def __ne__(self, other: object) -> Array:  # type: ignore[override]
        """Compare element by element: an array of bool. True beside NaN.

        >>> import ebbtide.array as xp
        >>> (xp.asarray([1, 2, 3]) != 2).compute()
        array([ True, False,  True])
        """
        return compare("not_equal", self, other)

    __hash__ = None  # type: ignore[assignment]

    def __neg__(self) -> Array:
        """Multiply by -1. Shape and dtype stay; a TypeError for an array of bool.

        >>> import ebbtide.array as xp
        >>> (-xp.asarray([1, -2])).compute()
        array([-1,  2])
        """
        return binary("multiply", self, -1)

    def __add__(self, other: Array | Scalar) -> Array:
        """Add element by element, as `add` does.

        >>> import ebbtide.array as xp
        >>> (xp.asarray([1, 2]) + xp.asarray([[10], [20]])).compute()
        array([[11, 12],
               [21, 22]])
        """
        return binary("add", self, other)

    def __radd__(self, other: Scalar) -> Array:
        """Add to a number or a NumPy array, as `add` does.

        >>> import ebbtide.array as xp
        >>> (10 + xp.asarray([1, 2])).compute()
        array([11, 12])
        """
        return binary("add", other, self)

    def __sub__(self, other: Array | Scalar) -> Array:
        """Subtract element by element, as `subtract` does.

        >>> import ebbtide.array as xp
        >>> (xp.asarray([1, 2]) - 10).compute()
        array([-9, -8])
        """
        return binary("subtract", self, other)

    def __rsub__(self, other: Scalar) -> Array:
        """Subtract from a number or a NumPy array, as `subtract` does.

        >>> import ebbtide.array as xp
        >>> (10 - xp.asarray([1, 2])).compute()
        array([9, 8])
        """
        return binary("subtract", other, self)

    def __mul__(self, other: Array | Scalar) -> Array:
        """Multiply element by element, as `multiply` does.

        >>> import ebbtide.array as xp
        >>> (xp.asarray([1, 2]) * xp.asarray([3, 4])).compute()
        array([3, 8])
        """
        return binary("multiply", self, other)

    def __rmul__(self, other: Scalar) -> Array:
        """Multiply a number or a NumPy array, as `multiply` does.

        >>> import ebbtide.array as xp
        >>> (0.5 * xp.asarray([1.0, 2.0])).compute()
        array([0.5, 1. ])
        """
        return binary("multiply", other, self)

    def __truediv__(self, other: Array | Scalar) -> Array:
        """Divide element by element in float64, as `divide` does.

        >>> import ebbtide.array as xp
        >>> (xp.asarray([1, 2]) / 4).compute()
        array([0.25, 0.5 ])
        """
        return binary("divide", self, other)

    def __rtruediv__(self, other: Scalar) -> Array:
        """Divide a number or a NumPy array in float64, as `divide` does.

        >>> import ebbtide.array as xp
        >>> (1 / xp.asarray([4, 5])).compute()
        array([0.25, 0.2 ])
        """
        return binary("divide", other, self)

    def __bool__(self) -> builtins.bool:
        """Refuse with a TypeError: an array that is not computed has no truth."""
        raise TypeError("the truth of an array is not known before .compute()")

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: builtins.bool | None = None
    ) -> NDArray[Any]:
        """Compute, for a NumPy function that is given an array of ours.

        >>> import ebbtide.array as xp, numpy as np
        >>> np.asarray(xp.asarray([1, 2]) * 2)
        array([2, 4])
        """
        import numpy as np

        return np.array(self.compute(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        """Show shape, dtype and chunks, and compute nothing."""
        chunks = tuple(max(extents) for extents in self.chunks)
        return f"<ebbtide.array {self.shape} {self.dtype} in chunks of {chunks}>"


def binary(op: str, left: object, right: object) -> Array:
    """Make the array of an operation on two elements."""
    return Array(_expression(op, left, right).binary(op, _expression(op, right, left)))


def compare(op: str, left: object, right: object) -> Array:
    """Make the array of a comparison."""
    return Array(_expression(op, left, right).compare(op, _expression(op, right, left)))


def product(left: object, right: object) -> Array:
    """Make the array of a product of matrices."""
    one, other = _expression("matmul", left, right), _expression("matmul", right, left)
    return Array(one.matmul(other))


def checked(op: str, x: object) -> Array:
    """Take an array as it is, and nothing else."""
    if not isinstance(x, Array):
        raise TypeError(f"{op}: expected an array, not {type(x).__name__}; use asarray")
    return x


def _expression(op: str, value: object, beside: object) -> _native.Expression:
    if isinstance(value, Array):
        return value._expression
    return _arguments.number(op, value, checked(op, beside).dtype)
