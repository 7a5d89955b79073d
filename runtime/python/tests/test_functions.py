"""Python functions on workers: here in processes of this very interpreter."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ebbtide as eb
import ebbtide.array as xp
import numpy as np
import pytest
from ebbtide import _function, _native


def array(function: Callable, *args: object, shape: tuple = (4,), **kwargs: object) -> np.ndarray:
    """Compute what a function returns, as float64."""
    return xp.from_delayed(eb.delayed(function)(*args), shape, xp.float64, **kwargs).compute()


def test_a_function_makes_an_array() -> None:
    assert (array(lambda n: np.arange(n, dtype=float), 4) == np.arange(4.0)).all()


def test_what_is_large_travels_in_shared_memory() -> None:
    made = array(lambda: np.arange(1e6).reshape(1000, 1000), shape=(1000, 1000))
    assert made[-1, -1] == 999_999


def test_arrays_are_given_whole_and_read_only() -> None:
    def double(given: np.ndarray, small: np.ndarray, times: int) -> np.ndarray:
        assert not given.flags.writeable and not small.flags.writeable
        assert small.shape == ()
        return given * times

    x = xp.random.default_rng(1).random((90, 70), chunks=(40, 30))
    made, given = xp.compute(
        xp.from_delayed(eb.delayed(double)(x, xp.asarray(3), times=2), (90, 70), xp.float64), x
    )
    assert (made == 2 * given).all()


def test_an_empty_array_is_given_and_made() -> None:
    empty = xp.from_delayed(
        eb.delayed(lambda x: x)(xp.asarray(np.zeros((3, 0)))), (3, 0), xp.float64
    )
    assert empty.compute().shape == (3, 0)


def test_each_call_is_its_own() -> None:
    def name() -> list[float]:
        return [float(os.getpid()), time.perf_counter()]

    first, second = xp.compute(*(xp.from_delayed(name, (2,), xp.float64) for _ in range(2)))
    assert first[1] != second[1]


def test_a_function_runs_in_a_process_of_its_own() -> None:
    assert array(lambda: [float(os.getpid())], shape=(1,))[0] != os.getpid()


def test_what_a_function_raises_is_raised_with_its_own_traceback() -> None:
    def fails() -> None:
        raise LookupError("no such share")

    with pytest.raises(LookupError, match="no such share") as raised:
        array(fails)
    cause = str(raised.value.__cause__)
    assert "on a worker" in cause and "in fails" in cause and "runner" not in cause


def test_an_exception_that_cannot_travel_is_told_in_its_words() -> None:
    def fails() -> None:
        class Own(Exception):
            def __reduce__(self) -> str:
                raise TypeError("stays here")

        raise Own("of its own kind")

    with pytest.raises(eb.TaskFailed, match="of its own kind"):
        array(fails)


def test_an_array_that_was_not_promised_is_refused_by_name() -> None:
    def five() -> np.ndarray:
        return np.zeros(5)

    with pytest.raises(eb.TaskFailed, match=r"five returned float64 of shape \(5,\) where float64"):
        array(five)
    with pytest.raises(eb.TaskFailed, match="returned int64"):
        array(lambda: np.zeros(4, dtype=int))


def test_a_function_that_kills_its_process_is_named_and_tried_again(tmp_path: Path) -> None:
    tries = tmp_path / "tries"

    def aborts() -> None:
        with tries.open("a") as file:
            file.write("x")
        os.abort()

    with pytest.raises(eb.TaskFailed, match=r"aborts ended the process.*signal 6.*4 times"):
        array(aborts)
    assert tries.read_text() == "xxxx"
    assert array(lambda: np.ones(4)).sum() == 4


def test_a_function_that_raises_is_tried_again_as_often_as_it_may(tmp_path: Path) -> None:
    tries = tmp_path / "tries"

    def third_time() -> np.ndarray:
        with tries.open("a") as file:
            file.write("x")
        if tries.stat().st_size < 3:
            raise OSError("not yet")
        return np.ones(4)

    assert array(third_time, retries=2).sum() == 4
    tries.unlink()
    with pytest.raises(OSError, match="not yet"):
        array(third_time, retries=1)


def test_a_function_that_takes_too_much_memory_fails_alone() -> None:
    def takes() -> np.ndarray:
        return np.ones(1 << 27)[:4]

    with pytest.raises(MemoryError) as raised:
        array(takes)
    assert "takes may take 512 MiB" in str(raised.value.__cause__)
    assert array(takes, memory="1.5 GiB").sum() == 4


def test_a_task_that_can_never_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(eb.TaskFailed, match=r"huge: one task needs 64\.0 TiB of memory"):

        def huge() -> np.ndarray:
            raise AssertionError("it never starts")

        array(huge, memory="64 TiB")
    large = xp.random.default_rng(1).random((1 << 20, 1 << 20), chunks=(1 << 20, 1 << 20))
    with pytest.raises(eb.TaskFailed, match=r"one task needs 8\.0 TiB .* use smaller chunks"):
        large.sum().compute()


@pytest.mark.parametrize(
    "bad",
    ["lots", "512 MQ", -1, 0, "1.2.3 GB", "", "0.5", "99999999 TiB", 2**64, 10**20, "9" * 400],
)
def test_memory_that_is_no_number_of_bytes_is_refused(bad: object) -> None:
    expected = f"memory {bad!r} is no number of bytes from 1 to 2**64 - 1; write it like '512 MiB'"
    with pytest.raises(ValueError, match=re.escape(expected)):
        xp.from_delayed(float, (), xp.float64, memory=bad)


@pytest.mark.parametrize(
    "bad, kind, words",
    [
        (-1, ValueError, "retries -1: expected at least 0, and less than 2**32"),
        (2**32, ValueError, "retries 4294967296: expected at least 0, and less than 2**32"),
        (None, TypeError, "retries None is no whole number"),
        (0.5, TypeError, "retries 0.5 is no whole number"),
    ],
)
def test_retries_that_cannot_be_counted_are_refused(
    bad: object, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        xp.from_delayed(float, (), xp.float64, retries=bad)


def test_the_largest_limits_are_taken() -> None:
    assert array(lambda: np.ones(4), retries=2**32 - 1).sum() == 4
    with pytest.raises(eb.TaskFailed, match=r"one task needs 16\.0 EiB of memory"):
        array(lambda: np.ones(4), memory=2**64 - 1)


def test_what_cannot_be_pickled_is_refused_by_name() -> None:
    lock = threading.Lock()

    def locks() -> None:
        lock.acquire()

    with pytest.raises(TypeError, match=r"locks: the function cannot be sent .* pass plain data"):
        xp.from_delayed(locks, (), xp.float64)
    with pytest.raises(TypeError, match="float: an argument cannot be sent"):
        xp.from_delayed(eb.delayed(float)(lock), (), xp.float64)


def test_a_function_of_another_python_is_refused_with_both_versions_named() -> None:
    import cloudpickle

    pickled = (cloudpickle.dumps(float), cloudpickle.dumps(((), {})))
    title = ("old", 0, (3, 9))
    call = _native.Expression.call(title, pickled, ("float64", []), (1 << 29, 0, {}), [])
    words = r"old comes from Python 3\.9 and the workers have Python 3\.1\d"
    with pytest.raises(eb.TaskFailed, match=words), _function.Originals():
        _native.compute([call])


def test_an_interrupted_function_is_ended() -> None:
    began = time.monotonic()

    def stop(done: int, tasks: int, workers: int) -> None:
        raise KeyboardInterrupt

    def forever() -> None:
        while True:
            pass

    call = xp.from_delayed(forever, (), xp.float64)
    with pytest.raises(KeyboardInterrupt):
        _native.compute([call._expression], stop)
    assert array(lambda: np.ones(4)).sum() == 4
    calls = [xp.from_delayed(lambda: np.ones(4), (4,), xp.float64) for _ in range(8)]
    assert sum(made.sum() for made in xp.compute(*calls)) == 32
    assert time.monotonic() - began < 30


def test_a_module_of_ones_own_travels_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_my_own.py").write_text(
        "FACTOR = 3\n\ndef triple(x):\n    return [float(FACTOR * x)] * 4\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import of_my_own  # type: ignore[import-not-found]

    assert array(of_my_own.triple, 2).sum() == 24


def test_an_array_inside_a_function_is_refused_with_the_remedy() -> None:
    x = xp.asarray([1.0, 2.0])
    with pytest.raises(TypeError, match=r"total: the function has an array inside it; give it as"):

        def total() -> object:
            return x.sum()

        xp.from_delayed(total, (), xp.float64)


def test_more_arrays_than_a_function_takes_are_refused_before_it_runs() -> None:
    def total(*given: np.ndarray) -> np.ndarray:
        return np.asarray(sum(float(one) for one in given))

    many = [xp.asarray(float(nth)) for nth in range(65)]
    with pytest.raises(ValueError, match="total is given 65 arrays; at most 64 are taken"):
        array(total, *many, shape=())
    assert array(total, *many[:64], shape=()) == sum(range(64))


@pytest.mark.parametrize("kind", [StopIteration, GeneratorExit, KeyError])
def test_whatever_a_function_raises_is_what_is_raised(kind: type[BaseException]) -> None:
    def fails() -> None:
        raise kind("it ends")

    expected = kind if issubclass(kind, Exception) else eb.TaskFailed
    with pytest.raises(expected, match="it ends"):
        array(fails)


def test_words_that_are_no_text_are_told_as_they_can_be() -> None:
    def fails() -> None:
        raise ValueError("no such file: \udcff.csv")

    with pytest.raises(ValueError, match="no such file: \udcff") as raised:
        array(fails)
    assert "\\udcff.csv" in str(raised.value.__cause__)


def test_what_a_function_leaves_running_keeps_nobody_waiting() -> None:
    def leaves() -> None:
        os.system("sleep 1000 &")
        os._exit(3)

    with pytest.raises(eb.TaskFailed, match=r"leaves ended the process.*exited with code 3"):
        array(leaves)
