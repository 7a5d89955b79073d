"""Python functions that run on workers, and what they return."""

from __future__ import annotations

import functools
import io
import itertools
import operator
import os
import pickle
import re
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, Self, SupportsIndex, TypeVar

from ebbtide import _native

if TYPE_CHECKING:
    from ebbtide.array import Array

P = ParamSpec("P")
T = TypeVar("T")

#: What a function's process may allocate when nothing is said: enough for pandas and some data.
MEMORY_DEFAULT = "512 MiB"

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

_numbers = itertools.count()

#: Arguments that every pickle carries alike.
_PLAIN = frozenset((type(None), bool, int, float, str, bytes))


@dataclass(frozen=True)
class Delayed(Generic[T]):
    """A call that has not happened: a function and its arguments. Made by `delayed`.

    >>> import ebbtide as eb
    >>> call = eb.delayed(max)(3, 7)
    >>> call.function is max, call.args, call.kwargs
    (True, (3, 7), {})

    Attributes:
        function: what will be called, on a worker.
        args: its arguments by place.
        kwargs: its arguments by name.

    """

    function: Callable[..., T]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def delayed(function: Callable[P, T], /) -> Callable[P, Delayed[T]]:
    """Make a function that notes its arguments and is called later, on a worker.

    `ebbtide.array.from_delayed` makes an array of what it will return.

    >>> import ebbtide as eb, ebbtide.array as xp
    >>> squares = eb.delayed(lambda n: [i * i for i in range(n)])
    >>> xp.from_delayed(squares(4), (4,), xp.int64).compute()
    array([0, 1, 4, 9])
    """

    @functools.wraps(function)
    def note(*args: P.args, **kwargs: P.kwargs) -> Delayed[T]:
        return Delayed(function, args, kwargs)

    return note


class Future(Generic[T]):
    """What `Cluster.submit` will have computed.

    Cancelled when nobody refers to it any more.

    >>> import ebbtide as eb
    >>> with eb.Cluster("examples") as cluster:
    ...     future = cluster.submit(max, 3, 7)
    ...     future.result()
    7
    """

    def __init__(self, name: str, job: _native.Job) -> None:
        """Use `Cluster.submit` instead."""
        self._name = name
        self._job = job
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._ended: tuple[T | None, BaseException | None] | None = None

    def done(self) -> bool:
        """Whether it has ended, well or not.

        >>> import ebbtide as eb
        >>> with eb.Cluster("examples") as cluster:
        ...     future = cluster.submit(max, 3, 7)
        ...     future.result()
        7
        >>> future.done()
        True
        """
        return self._job.is_done()

    def cancel(self) -> None:
        """No longer want it: a function that runs is ended with its process.

        Nothing happens to what has ended.

        >>> import ebbtide as eb, time
        >>> with eb.Cluster("examples") as cluster:
        ...     future = cluster.submit(time.sleep, 1000)
        ...     future.cancel()
        >>> future.result()
        Traceback (most recent call last):
        concurrent.futures._base.CancelledError: sleep was cancelled
        """
        self._job.cancel()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the value, at most `timeout` seconds. Asked again, it is the same object.

        >>> import ebbtide as eb
        >>> with eb.Cluster("examples") as cluster:
        ...     cluster.submit(lambda: 1 / 0).result(timeout=60)
        Traceback (most recent call last):
        ZeroDivisionError: division by zero

        Raises:
            TimeoutError: it is not there yet; the call goes on.
            CancelledError: the future was cancelled.
            TaskFailed: the function ended its process, or could not be run, or what it returned or
                raised cannot travel; an exception travels within 64 KiB.
            ConnectionLost: the cluster went away, or was closed by this program.
            Exception: what the function raised, with the worker's traceback as its cause.

        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        assert self._ended is not None
        return self._ended[0]  # type: ignore[return-value]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for what the function raised, at most `timeout` seconds; None where it returned.

        A `TaskFailed` is returned too.

        >>> import ebbtide as eb
        >>> with eb.Cluster("examples") as cluster:
        ...     cluster.submit(lambda: 1 / 0).exception()
        ZeroDivisionError('division by zero')

        Raises:
            TimeoutError: it is not known yet; the call goes on.
            CancelledError: the future was cancelled.
            ConnectionLost: the cluster went away, or was closed by this program.

        """
        if timeout is not None:
            # Longer than anybody waits is as long as it takes.
            timeout = None if timeout > threading.TIMEOUT_MAX else max(timeout, 0)
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError("the result is not there yet")
        try:
            if self._ended is None:
                self._ended = self._wait(timeout)
        finally:
            self._lock.release()
        return self._ended[1]

    def _wait(self, timeout: float | None) -> tuple[T | None, BaseException | None]:
        if self._process != os.getpid():
            raise _native.ConnectionLost(
                f"{self._name} was called by the process that forked this one; wait for it there"
            )
        try:
            (pickled,) = self._job.wait(timeout)
        except _native.TaskFailed as failed:
            return None, original(failed)
        except RuntimeError as error:
            from concurrent.futures import CancelledError

            raise CancelledError(f"{self._name} was cancelled") from error
        try:
            return pickle.loads(pickled), None
        except Exception as error:
            # Its bytes come once: what went wrong here is what the future has to tell.
            return None, error

    def __copy__(self) -> Self:
        """Return itself: there is one result."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse with a TypeError: whoever waits for it is here."""
        raise TypeError(
            "a future does not travel inside anything else: give it to submit by itself, or pass "
            "its result()"
        )

    def __repr__(self) -> str:
        """Show name and state, and wait for nothing."""
        return f"<ebbtide.Future {self._name} ({'done' if self.done() else 'pending'})>"


class Originals:
    """While it lasts, what a function raised on its worker is raised in place of `TaskFailed`.

    No generator, which could not raise a StopIteration.
    """

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, failed: BaseException | None, traceback: object) -> None:
        """Raise what the function raised."""
        if isinstance(failed, _native.TaskFailed):
            raised = original(failed)
            raise raised from raised.__cause__


def original(failed: _native.TaskFailed) -> BaseException:
    """What the function raised, caused by its traceback there; else the failure, readable."""
    text, pickled = (*failed.args, b"")[:2]
    told = _native.TaskFailed(text)
    if pickled:
        try:
            raised = pickle.loads(pickled)
        except Exception:
            # Its class is not known here: the text has everything that a person needs.
            return told
        if isinstance(raised, Exception):
            raised.__cause__ = _native.TaskFailed(f"on a worker:\n{text}")
            return raised
    return told


class Callee:
    """A function as it is sent to workers: pickled once, for any number of calls."""

    def __init__(
        self,
        function: Callable[..., Any],
        memory: int | str | None,
        retries: int,
        resources: Mapping[str, int] | None,
    ) -> None:
        """Pickle a function.

        Raises:
            TypeError: it cannot be called or pickled, has an array inside it, or retries are no
                whole number.
            ValueError: memory, retries or resources are not what they should be.

        """
        if not callable(function):
            raise TypeError(f"{function!r} cannot be called; expected a function")
        self.name: str = getattr(function, "__name__", None) or type(function).__name__
        limit = parse_bytes(MEMORY_DEFAULT if memory is None else memory)
        self._limits = (limit, checked_retries(retries), checked_resources(resources or {}))
        self._function, arrays = _pickle(function, self.name, "the function")
        if arrays:
            raise TypeError(
                f"{self.name}: the function has an array inside it; give it as an argument, which "
                "the function gets as a NumPy array"
            )

    def expression(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        returns: tuple[str, Sequence[int]] = ("object", ()),
    ) -> _native.Expression:
        """Make the expression of a call that returns an array, or an object of any kind.

        Raises:
            TypeError: an argument cannot be pickled.

        """
        arguments, arrays = _pickle((args, dict(kwargs)), self.name, "an argument")
        return _native.Expression.call(
            (self.name, next(_numbers), sys.version_info[:2]),
            (self._function, arguments),
            (returns[0], list(returns[1])),
            self._limits,
            [array._expression for array in arrays],
        )


def parse_bytes(text: int | str) -> int:
    """Read a number of bytes, like 4096, "512 MiB" or "2 GB".

    >>> parse_bytes("1.5 KiB")
    1536

    Raises:
        ValueError: it is none, is less than one byte, or does not fit 64 bits.

    """
    size: float = 0
    if isinstance(text, int):
        size = text
    elif match := re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([A-Za-z]*)\s*", str(text)):
        unit = match[2].upper()
        unit = {"B": "", "K": "KIB", "M": "MIB", "G": "GIB", "T": "TIB"}.get(unit, unit)
        unit = f"{unit[0]}IB" if len(unit) == 2 and unit[1] == "I" else unit
        size = float(match[1]) * _UNITS.get(unit, 0)
    if not 1 <= size < 2**64:
        raise ValueError(
            f"memory {text!r} is no number of bytes from 1 to 2**64 - 1; write it like '512 MiB'"
        )
    return int(size)


def checked_retries(retries: SupportsIndex) -> int:
    """Check how often a function is tried again.

    >>> checked_retries(3)
    3
    >>> checked_retries(-1)
    Traceback (most recent call last):
    ValueError: retries -1: expected at least 0, and less than 2**32

    Raises:
        TypeError: it is no whole number.
        ValueError: it is less than 0, or does not fit 32 bits.

    """
    try:
        times = operator.index(retries)
    except TypeError:
        raise TypeError(f"retries {retries!r} is no whole number") from None
    if not 0 <= times < 2**32:
        raise ValueError(f"retries {times}: expected at least 0, and less than 2**32")
    return times


def checked_resources(resources: Mapping[str, int]) -> dict[str, int]:
    """Check what a task takes of its worker beside cores and memory.

    >>> checked_resources({"nvidia.com/gpu": 1})
    {'nvidia.com/gpu': 1}
    >>> checked_resources({"gpu": 1})
    Traceback (most recent call last):
    ValueError: resources: 'gpu' is no kind of resource; expected one with its domain, as worker \
groups have it, like 'nvidia.com/gpu'

    Raises:
        ValueError: a kind has no domain, or its amount is no whole number of at least 1.

    """
    for kind, amount in resources.items():
        if kind in ("cpu", "memory"):
            raise ValueError(
                f"resources: a function has one core, and as much memory as memory= says; "
                f"leave {kind!r} out"
            )
        if not isinstance(kind, str) or "/" not in kind:
            raise ValueError(
                f"resources: {kind!r} is no kind of resource; expected one with its domain, as "
                "worker groups have it, like 'nvidia.com/gpu'"
            )
        if type(amount) is not int or not 1 <= amount < 1 << 64:
            raise ValueError(
                f"resources: {amount!r} of {kind} is no amount; expected a whole number of at "
                "least 1"
            )
    return dict(resources)


def _pickle(value: object, name: str, what: str) -> tuple[bytes, list[Array]]:
    """Pickle by value what workers cannot import, with arrays taken out and numbered."""
    if type(value) is tuple and all(type(one) in _PLAIN for one in value[0]) and not value[1]:
        return pickle.dumps(value), []
    buffer = io.BytesIO()
    pickler = _pickler()(buffer)
    with _by_value(sys.modules.get(getattr(value, "__module__", None) or "")):
        try:
            pickler.dump(value)
        except Exception as error:
            _refuse(name, what, error)
    return buffer.getvalue(), pickler.arrays


@functools.cache
def _pickler() -> Any:
    import cloudpickle

    from ebbtide.array import Array

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(self, buffer: io.BytesIO) -> None:
            super().__init__(buffer)
            self.arrays: list[Array] = []

        def persistent_id(self, obj: object) -> int | None:
            if not isinstance(obj, Array):
                return None
            self.arrays.append(obj)
            return len(self.arrays) - 1

    return Pickler


def _refuse(name: str, what: str, error: Exception) -> NoReturn:
    message = (
        f"{name}: {what} cannot be sent to a worker: {error}; pass plain data, and open files, "
        "locks and connections inside the function"
    )
    raise TypeError(message) from error


@contextmanager
def _by_value(module: ModuleType | None) -> Iterator[None]:
    """While it lasts, functions of a module that is not installed are pickled with their code."""
    import cloudpickle

    path = getattr(module, "__file__", None)
    is_own = module is not None and path is not None and not _is_installed(path)
    if not is_own or module.__name__ in cloudpickle.list_registry_pickle_by_value():  # type: ignore[union-attr]
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


@functools.cache
def _is_installed(path: str) -> bool:
    roots = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    real = os.path.realpath(path)
    return any(real.startswith(os.path.realpath(root) + os.sep) for root in roots)
