"""What the package promises, checked against NumPy."""

import multiprocessing
import operator
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ebbtide.array as xp
import numpy as np
import pytest


def philox_words(seed: int, stream: int, count: int) -> np.ndarray:
    """NumPy's own Philox, set so that it starts at our block 0."""
    return np.random.Philox(key=[seed, stream], counter=2**256 - 1).random_raw(count)


@pytest.mark.parametrize("chunks", [(1,), (7,), (1000,)])
def test_random_words_are_those_of_numpys_philox(chunks: tuple[int]) -> None:
    rng = xp.random.default_rng(42)
    uniform = rng.random(1000, chunks=chunks).compute()
    integers = rng.integers(-5, 1000, 1000, chunks=chunks).compute()
    assert (uniform == (philox_words(42, 0, 1000) >> np.uint64(11)) * 2.0**-53).all()
    expected = [(int(word) * 1005 >> 64) - 5 for word in philox_words(42, 1, 1000)]
    assert integers.tolist() == expected


def test_normal_elements_are_quantiles_of_the_words() -> None:
    ours = xp.random.default_rng(3).normal(size=5000).compute()
    uniform = ((philox_words(3, 0, 5000) >> np.uint64(12)) + 0.5) * 2.0**-52
    quantile = statistics.NormalDist().inv_cdf
    np.testing.assert_allclose(ours, [quantile(p) for p in uniform], rtol=1e-14)


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (2, 1, 0)])
def test_reductions_agree_with_numpy(axis: int | tuple[int, ...] | None) -> None:
    x = xp.random.default_rng(1).random((30, 41, 52), chunks=(7, 20, 13))
    plain = x.compute()
    ours = xp.compute(x.sum(axis=axis), x.mean(axis=axis))
    np.testing.assert_allclose(ours[0], plain.sum(axis=axis), rtol=1e-13)
    np.testing.assert_allclose(ours[1], plain.mean(axis=axis), rtol=1e-13)


def test_operators_broadcast_and_take_numbers() -> None:
    x = xp.random.default_rng(1).random((6, 4), chunks=(3, 2))
    row = xp.random.default_rng(2).random(4, chunks=2)
    plain, plain_row = xp.compute(x, row)
    np.testing.assert_array_equal(
        (1 - 2 * x / (row + 1)).compute(), 1 - 2 * plain / (plain_row + 1)
    )


def test_equal_arrays_are_computed_once_and_come_twice() -> None:
    x = xp.random.default_rng(1).random(10, chunks=3)
    left, right = xp.compute(x, x)
    assert (left == right).all() and left.any()


def test_the_chunks_do_not_change_a_random_array_but_may_change_a_sum() -> None:
    rng = [xp.random.default_rng(1) for _ in range(2)]
    x, y = rng[0].random(1000, chunks=10), rng[1].random(1000, chunks=333)
    assert (x.compute() == y.compute()).all()
    assert x.sum().compute() == pytest.approx(y.sum().compute(), rel=1e-14)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda x: x + xp.asarray([1.0, 2.0, 3.0]), ValueError, "do not broadcast"),
        (lambda x: x + xp.asarray([1, 2]), TypeError, "astype"),
        (lambda x: x.sum(axis=2), IndexError, "sum: axis 2 is out of range for an array of 1 axes"),
        (lambda x: x.mean(axis=100), IndexError, "mean: axis 100 is out of range for an array of"),
        (lambda x: x.prod(axis=(0, -(2**70))), IndexError, "prod: axis -1180591620717411303424 is"),
        (
            lambda x: xp.take(x, xp.asarray([0]), axis=2**70),
            IndexError,
            "take: axis 1180591620717411303424 is out of range for an array of 1 axes",
        ),
        (
            lambda x: x[::-1],
            IndexError,
            "step -1 of axis 0: steps are at least 1; nothing reverses",
        ),
        (lambda x: x[2], IndexError, "index 2 is out of range for axis 0 of 2"),
        (lambda x: x[-3], IndexError, "index -3 is out of range for axis 0 of 2"),
        (lambda x: x[0, 0], IndexError, "2 indices for an array of 1 axes"),
        (lambda x: x[..., ...], IndexError, "an index may have one ellipsis only"),
        (
            lambda x: x[1.5],
            TypeError,
            "index 1.5 of axis 0: expected a slice, a whole number or an",
        ),
        (lambda x: x[True], TypeError, "index True of axis 0: expected a slice"),
        (lambda x: x["a":], TypeError, "index slice('a', None, None) of axis 0: expected whole"),
        (lambda x: x[[0, 1]], TypeError, "take(x, asarray(indices), axis=0) takes several places"),
        (lambda x: x[np.array([0, 1])], TypeError, "take(x, asarray(indices), axis=0)"),
        (
            lambda x: xp.asarray([[1, 2]])[:, [0]],
            TypeError,
            "index [0] of axis 1: expected a slice, a whole number or an ellipsis; "
            "take(x, asarray(indices), axis=1)",
        ),
        (
            lambda x: x[x > 1],
            TypeError,
            "x * mask.astype(x.dtype) makes 0 of what is outside a mask",
        ),
        (lambda x: x[np.array([True, False])], TypeError, "x * mask.astype(x.dtype)"),
        (lambda x: x.sum(axis=np.array([0.5])), TypeError, "sum: axis array([0.5]) is no whole"),
        (lambda x: x.rechunk(np.array(1.5)), TypeError, "chunks array(1.5) is no whole number"),
        (
            lambda x: xp.random.default_rng(1).random(np.array([[1], [2]])),
            TypeError,
            "is no whole number, nor several",
        ),
        (
            lambda x: xp.quantile(x, np.array([0.1, 0.9])),
            TypeError,
            "q array([0.1, 0.9]) is no numb",
        ),
        (lambda x: xp.quantile(x, "0.5"), TypeError, "quantile: q '0.5' is no number"),
        (lambda x: xp.quantile(x, 10**400), ValueError, "quantile: q is beyond every float"),
        (lambda x: x + "a", TypeError, "use asarray"),
        (lambda x: x == None, TypeError, "equal: expected an array or a bool, int or float"),  # noqa: E711
        (lambda x: xp.add(1, 2), TypeError, "add: expected an array, not int; use asarray"),
        (lambda x: xp.sum([1, 2]), TypeError, "sum: expected an array, not list; use asarray"),
        (lambda x: xp.take(x, [0]), TypeError, "take: expected an array, not list"),
        (lambda x: xp.compute([x]), TypeError, "compute: expected an array, not list"),
        (lambda x: x @ 3, ValueError, "matmul: shapes [2] and []"),
        (lambda x: xp.asarray([1]) + 2**70, OverflowError, "an int of 71 bits does not fit int64"),
        (lambda x: x < 10**5000, OverflowError, "does not fit float64"),
        (lambda x: x.rechunk(-1), ValueError, "chunks -1: expected at least 1"),
        (lambda x: xp.topk(x, -1), ValueError, "topk: k -1: expected at least 1"),
        (lambda x: xp.topk(x, 1.5), TypeError, "topk: k 1.5 is no whole number"),
        (lambda x: xp.from_delayed(float, (-1,), xp.float64), ValueError, "shape (-1,)"),
        (lambda x: xp.from_delayed(3, (), xp.float64), TypeError, "3 cannot be called"),
        (lambda x: bool(x), TypeError, "before .compute()"),
        (lambda x: xp.asarray(["a"]), TypeError, "str32 has no kernels"),
        (lambda x: xp.random.default_rng(-1), ValueError, "seed -1"),
        (lambda x: xp.random.default_rng(1.5), TypeError, "seed 1.5 is no whole number"),
        (lambda x: xp.random.default_rng(1).random(-1), ValueError, "size -1"),
        (
            lambda x: xp.random.default_rng(1).integers(0, 2**63, 1),
            ValueError,
            "does not fit int64",
        ),
        (lambda x: xp.random.default_rng(1).random(4, chunks=(2, 2)), ValueError, "chunks [2, 2]"),
        (lambda x: xp.random.default_rng(1).integers(3, 3, 1), ValueError, "low 3 must be less"),
    ],
)
def test_mistakes_are_named(make, kind, words) -> None:  # noqa: ANN001
    with pytest.raises(kind, match=re.escape(words)):
        make(xp.asarray([1.0, 2.0]))


ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv)
COMPARISONS = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)


@pytest.mark.parametrize("op", (*ARITHMETIC, *COMPARISONS), ids=lambda op: op.__name__)
@pytest.mark.parametrize(
    "dtype, number, words",
    [
        (xp.bool, 1.5, "1.5 is a float beside an array of bool; convert the array with astype(flo"),
        (xp.bool, 0, "0 is an int beside an array of bool; convert the array with astype(int64)"),
        (xp.int64, 0.5, "0.5 is a float beside an array of int64; convert the array with astype(f"),
        (xp.int64, True, "True is a bool beside an array of int64; write 1"),
        (xp.float64, False, "False is a bool beside an array of float64; write 0"),
    ],
)
def test_a_number_of_a_kind_that_the_array_does_not_take_is_refused_with_the_remedy(
    op: Callable, dtype: xp.DType, number: float, words: str
) -> None:
    x = xp.asarray([1, 0], dtype=dtype)
    for left, right in ((x, number), (number, x)):
        with pytest.raises(TypeError, match=re.escape(words)):
            op(left, right)


@pytest.mark.parametrize("dtype, number", [(xp.int64, 3), (xp.float64, 3), (xp.float64, 2.5)])
def test_a_number_takes_the_dtype_of_the_array_that_it_meets(
    dtype: xp.DType, number: float
) -> None:
    x = xp.asarray([2, 3], dtype=dtype)
    plain = x.compute()
    for op in ARITHMETIC:
        for ours, numpys in (
            (op(x, number), op(plain, number)),
            (op(number, x), op(number, plain)),
        ):
            made = ours.compute()
            assert made.dtype == numpys.dtype and np.array_equal(made, numpys)
    for op in COMPARISONS:
        assert np.array_equal(op(x, number).compute(), op(plain, number))


@pytest.mark.parametrize("op", COMPARISONS, ids=lambda op: op.__name__)
def test_a_bool_meets_an_array_of_bool(op: Callable) -> None:
    given = np.array([True, False])
    assert np.array_equal(op(xp.asarray(given), True).compute(), op(given, True))


def test_matrices_of_numpys_meet_ours_on_either_side() -> None:
    x, plain = xp.asarray([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 6.0], [7.0, 8.0]])
    assert np.array_equal((x @ plain).compute(), x.compute() @ plain)
    assert np.array_equal((plain @ x).compute(), plain @ x.compute())


INTERRUPTED = """
import os, signal
import ebbtide as eb, ebbtide.array as xp

def interrupt(total):
    os.kill(PARENT, signal.SIGINT)
    return total

PARENT = os.getpid()
x = xp.random.default_rng(1).normal(size=10**11, chunks=10**6)
# One of the first tasks interrupts, and the many others wait for it.
began = xp.from_delayed(eb.delayed(interrupt)(x[: 10**6].sum()), (), xp.float64)
try:
    (x * began).sum().compute()
except KeyboardInterrupt:
    print(xp.asarray([1]).sum().compute())
"""


def test_ctrl_c_ends_a_computation_and_the_next_one_runs() -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_cluster_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # noqa: ANN001
    import ebbtide as eb

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(eb.ConnectionLost, match="there is no cluster nobody"):
        eb.Cluster("nobody", backend="local")


def test_the_mean_of_large_integers_does_not_overflow() -> None:
    assert float(xp.asarray([2**62] * 4).mean().compute()) == 2.0**62


def test_numbers_of_another_byte_order_keep_their_value() -> None:
    given = np.array([1.5, -2.0], dtype=">f8")
    assert (xp.asarray(given).compute() == [1.5, -2.0]).all()


ODD = np.array([np.nan, np.inf, -np.inf, 1e300, -1e300, -0.0, 1.7, -1.7])
MIN, MAX = -(2**63), 2**63 - 1


@pytest.mark.parametrize(
    "convert",
    [lambda x, to: xp.asarray(x).astype(to), lambda x, to: xp.asarray(x, dtype=to)],
    ids=["astype", "asarray"],
)
def test_a_conversion_saturates_and_makes_nan_0_wherever_it_is_asked_for(
    convert: Callable,
) -> None:
    assert convert(ODD, xp.int64).compute().tolist() == [0, MAX, MIN, MAX, MIN, 0, 1, -1]
    assert convert(ODD, xp.bool).compute().tolist() == [True] * 5 + [False, True, True]
    assert convert(ODD, xp.float64).compute().tobytes() == ODD.tobytes()
    assert convert(ODD[0], xp.int64).compute() == 0
    assert convert(ODD.astype(">f8"), xp.int64).compute().tolist()[1:3] == [MAX, MIN]
    for given in (np.array([MIN, MAX, 2**53 + 1, 0]), np.array([True, False])):
        for to in (xp.bool, xp.int64, xp.float64):
            made, numpys = convert(given, to).compute(), given.astype(to.name)
            assert made.dtype == numpys.dtype and np.array_equal(made, numpys)


def test_what_has_no_kernels_is_converted_as_numpy_does_where_a_dtype_is_said() -> None:
    for given in (np.array([1.5, -2.5], np.float32), np.array([1, 2], np.uint8), np.array(["3"])):
        made = xp.asarray(given, dtype=xp.int64).compute()
        assert made.dtype == np.int64 and np.array_equal(made, given.astype(np.int64))


def test_int64_wraps_around_as_numpys_does() -> None:
    given = np.array([MAX, 1])
    x = xp.from_numpy(given, chunks=1)
    for ours, numpys in [
        (x + x, given + given),
        (x + 1, given + 1),
        (-x - 2, -given - 2),
        (x * x, given * given),
        (x * 3, given * 3),
        (x.sum(), given.sum()),
        ((x + 2).prod(), (given + 2).prod()),
    ]:
        made = ours.compute()
        assert made.dtype == np.int64 and np.array_equal(made, numpys)


@pytest.mark.parametrize("shape, axis", [((3, 0), 0), ((2, 3, 0), 0), ((0, 3), 0), ((0,), 0)])
def test_empty_axes_reduce_as_numpy_does(shape: tuple[int, ...], axis: int) -> None:
    given = np.zeros(shape)
    made = xp.asarray(given).sum(axis=axis).compute()
    assert made.shape == given.sum(axis=axis).shape and (made == given.sum(axis=axis)).all()


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: x + y,
        lambda x, y: x < y,
        lambda x, y: y < x,
        lambda x, y: (x + y).sum(axis=1),
        lambda x, y: (y * x).sum(axis=0),
        lambda x, y: (x + y).mean(axis=1),
        lambda x, y: (x < y).sum(axis=1),
    ],
)
def test_what_meets_along_an_empty_axis_is_numpys(make: Callable) -> None:
    nothing, one = np.zeros((3, 0)), np.ones((3, 1))
    made, numpys = make(xp.asarray(nothing), xp.asarray(one)).compute(), make(nothing, one)
    assert made.dtype == numpys.dtype and np.array_equal(made, numpys, equal_nan=True)


def test_numpy_arrays_and_numbers_meet_ours_on_either_side() -> None:
    x = xp.asarray([1.0, 2.0])
    for made in (np.array([3.0, 4.0]) * x, x * np.array([3.0, 4.0])):
        assert (made.compute() == [3.0, 8.0]).all()
    assert (np.float64(2) * x).compute().tolist() == [2.0, 4.0]
    assert x.sum(axis=np.int64(0)).compute() == 3.0
    assert xp.random.default_rng(1).random(np.int64(3)).shape == (3,)


def test_numpy_arrays_of_whole_numbers_are_sizes_chunks_axes_and_places() -> None:
    x = xp.random.default_rng(1).random(np.array([4, 3]), chunks=np.array([2, 3]))
    assert (x.shape, x.chunks) == ((4, 3), ((2, 2), (3,)))
    assert x.sum(axis=np.array([0, 1])).shape == ()
    assert x[np.array(1)].shape == (3,)


@pytest.mark.parametrize(
    "mistake, words",
    [
        (lambda: xp.asarray([1]).sum(axis="x"), "axis 'x' is no whole number"),
        (lambda: xp.asarray([1]).astype(float), "is no dtype of ebbtide.array"),
    ],
)
def test_arguments_of_another_kind_are_named(mistake: Callable, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        mistake()


def test_nothing_computes_to_nothing() -> None:
    assert xp.compute() == ()


def test_sizes_beyond_every_machine_are_refused_and_end_nothing() -> None:
    rng = xp.random.default_rng(1)
    with pytest.raises(ValueError, match=r"larger chunks|counted"):
        rng.random(10**18)
    with pytest.raises(ValueError, match="larger chunks"):
        rng.random(10**16, chunks=1)
    with pytest.raises(MemoryError, match="does not fit the memory here"):
        rng.random(1 << 46, chunks=1 << 26).compute()


def test_a_fork_computes_with_threads_of_its_own() -> None:
    expected = xp.asarray([1, 2]).sum().compute()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        computed = pool.apply_async(_sum)
        assert computed.get(timeout=30) == expected


def _sum() -> int:
    return int(xp.asarray([1, 2]).sum().compute())


def test_what_is_persisted_is_computed_once(tmp_path: Path) -> None:
    calls = tmp_path / "calls"

    def notes() -> np.ndarray:
        with calls.open("a") as file:
            file.write("x")
        return np.arange(4.0)

    x = xp.from_delayed(notes, (4,), xp.float64).persist()
    y = (x + 1).persist()
    assert x.sum().compute() == 6 and y.sum().compute() == 10
    assert np.array_equal(x.compute(), np.arange(4.0))
    del x
    assert (y * 2).sum().compute() == 20
    assert calls.read_text() == "x"


def test_several_reductions_in_one_expression_take_a_few_rows_of_memory() -> None:
    drawn = [xp.random.default_rng(seed).random((1000, 1000)) for seed in range(3)]
    a, b, c = (array.persist() for array in drawn)
    sums = xp.sum(a, axis=1) + xp.sum(b, axis=1) + xp.sum(c, axis=1)
    fused = sum(xp.sum(array, axis=1) for array in drawn[1:]) + xp.sum(drawn[0], axis=1)
    numbers = [array.compute() for array in (a, b, c)]
    assert np.allclose(sums.compute(), sum(it.sum(axis=1) for it in numbers), rtol=1e-13)
    assert np.allclose(fused.compute(), sums.compute(), rtol=1e-13)
    covariance = xp.mean(a * b, axis=1) - xp.mean(a, axis=1) * xp.mean(b, axis=1)
    expected = (numbers[0] * numbers[1]).mean(axis=1)
    expected -= numbers[0].mean(axis=1) * numbers[1].mean(axis=1)
    assert np.allclose(covariance.compute(), expected, rtol=1e-9, atol=1e-12)


def test_hundreds_of_columns_are_added_up() -> None:
    x = xp.random.default_rng(5).random((40, 300), chunks=(16, 300)).persist()
    numbers = x.compute()
    columns, expected = x[:, 0] * 0, numbers[:, 0] * 0
    for at in range(300):
        columns, expected = columns + x[:, at] * at, expected + numbers[:, at] * at
    assert np.array_equal(columns.compute(), expected)


def test_an_array_is_gone_through_along_its_first_axis() -> None:
    assert [int(one.compute()) for one in xp.asarray([3, 4])] == [3, 4]
    with pytest.raises(TypeError, match="an array without axes has no parts"):
        iter(xp.asarray(3))
    with pytest.raises(TypeError, match="an array without axes has no parts"):
        sum(xp.asarray(3))


def test_numpys_reductions_give_arrays_of_ours() -> None:
    x = xp.asarray([[1.0, 2.0], [3.0, 4.0]])
    made = [np.sum(x), np.prod(x, axis=0), np.mean(x, axis=1)]
    assert all(isinstance(one, xp.Array) for one in made)
    assert made[0].compute() == 10 and np.array_equal(made[2].compute(), [1.5, 3.5])
    with pytest.raises(TypeError, match="sum: dtype= is not taken; expected axis= at most"):
        np.sum(x, dtype=float)
    with pytest.raises(TypeError, match="mean: keepdims= is not taken"):
        np.mean(x, keepdims=True)


def test_a_step_beyond_every_array_takes_the_first() -> None:
    assert xp.asarray([5, 6, 7])[:: 10**20].compute().tolist() == [5]
    with pytest.raises(IndexError, match="None in an index adds an axis elsewhere"):
        xp.asarray([5, 6, 7])[:, None]
