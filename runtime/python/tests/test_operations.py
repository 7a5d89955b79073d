"""Operations beside NumPy's, over chunks of every kind: where NumPy fixes an order, to the bit."""

from __future__ import annotations

import ebbtide.array as xp
import numpy as np
import pytest

CHUNKS = [(1, 1), (3, 2), (5, 7), (40, 30)]


def random(shape: tuple[int, ...], chunks: tuple[int, ...], seed: int = 1) -> xp.Array:
    """Make numbers between -0.5 and 0.5."""
    return xp.random.default_rng(seed).random(shape, chunks=chunks) - 0.5


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize(
    "key",
    [
        np.s_[1:],
        np.s_[:-1],
        np.s_[::3],
        np.s_[2:9:2, 1:6],
        np.s_[..., 3:],
        np.s_[4],
        np.s_[-1, -2],
        np.s_[:, 5],
        np.s_[3:3],
        np.s_[5:100, 0:1],
        np.s_[()],
    ],
)
def test_parts_are_numpys(chunks: tuple[int, int], key: object) -> None:
    x = random((11, 8), chunks)
    part, whole = xp.compute(x[key], x)
    assert np.array_equal(part, whole[key])
    assert np.array_equal((x > 0)[key].compute(), (whole > 0)[key])


def test_a_part_of_a_part_and_an_array_cut_anew() -> None:
    x = random((50,), (7,))
    part, whole, cut = xp.compute(x[3:][::2][1:5], x, x.rechunk(11))
    assert np.array_equal(part, whole[3:][::2][1:5]) and np.array_equal(cut, whole)
    assert x.rechunk(11).chunks == ((11, 11, 11, 11, 6),)


@pytest.mark.parametrize("chunks", [3, 8, 50])
def test_arrays_that_are_cut_differently_meet(chunks: int) -> None:
    x, y = random((50,), (7,)), random((50,), (chunks,), 2)
    made, left, right = xp.compute(x * y, x, y)
    assert np.array_equal(made, left * right)
    grid = random((4, 50), (3, 11), 3)
    made, left, right = xp.compute(grid + x, grid, x)
    assert np.array_equal(made, left + right)


@pytest.mark.parametrize("op", ["__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"])
def test_comparisons_are_numpys(op: str) -> None:
    given = np.array([1.0, np.nan, -0.0, np.inf, 2.0])
    other = np.array([2.0, np.nan, 0.0, np.inf, -2.0])
    assert np.array_equal(
        getattr(xp.asarray(given), op)(xp.asarray(other)).compute(), getattr(given, op)(other)
    )
    whole = np.array([-1, 0, 1])
    assert np.array_equal(getattr(xp.asarray(whole), op)(0).compute(), getattr(whole, op)(0))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(6,), (3, 4), ()])
def test_taking_is_numpys(axis: int, shape: tuple[int, ...]) -> None:
    x = random((5, 7), (5, 7))
    places = xp.random.default_rng(5).integers(-5, 5, shape, chunks=tuple(2 for _ in shape))
    made, whole, indices = xp.compute(xp.take(x, places, axis=axis), x, places)
    assert np.array_equal(made, np.take(whole, indices, axis=axis))


def test_taking_from_an_array_that_is_cut_along_another_axis() -> None:
    x = random((5, 70), (5, 9))
    places = xp.random.default_rng(5).integers(0, 5, (8, 3), chunks=(3, 3))
    made, whole, indices = xp.compute(xp.take(x, places, axis=0), x, places)
    assert np.array_equal(made, np.take(whole, indices, axis=0))
    flags = xp.take(x > 0, places, axis=0) == xp.take(x, places, axis=0).astype(xp.bool)
    assert flags.shape == (8, 3, 70)
    with pytest.raises(ValueError, match="the array is in 8 chunks along axis 1"):
        xp.take(x, places, axis=1)


def test_an_index_out_of_range_is_named() -> None:
    with pytest.raises(xp_failed(), match="index 7 is out of range for an axis of extent 5"):
        xp.take(random((5,), (5,)), xp.asarray([1, 7])).compute()
    with pytest.raises(TypeError, match="take: float64 is not supported; convert to int64"):
        xp.take(random((5,), (5,)), random((5,), (5,)))


def xp_failed() -> type[Exception]:
    import ebbtide

    return ebbtide.TaskFailed


@pytest.mark.parametrize("chunks", [(4, 3), (50, 20), (7, 20)])
def test_matrices_multiply(chunks: tuple[int, int]) -> None:
    x, weights, matrix = (
        random((50, 20), chunks),
        random((20,), (20,), 2),
        random((20, 3), (9, 2), 3),
    )
    one, two, a, b, c = xp.compute(x @ weights, x @ matrix, x, weights, matrix)
    assert np.allclose(one, a @ b, rtol=1e-13, atol=1e-15)
    assert np.allclose(two, a @ c, rtol=1e-13, atol=1e-15)
    with pytest.raises(ValueError, match=r"matmul: shapes \[50, 20\] and \[3\]"):
        x @ xp.asarray([1.0, 2.0, 3.0])


@pytest.mark.parametrize("q", [0, 1e-9, 0.01, 0.25, 0.5, 2 / 3, 0.975, 0.99, 1])
@pytest.mark.parametrize("chunks", [(40, 25), (7, 11)])
def test_quantiles_are_exact(q: float, chunks: tuple[int, int]) -> None:
    x = xp.random.default_rng(3).normal(size=(40, 25), chunks=chunks)
    made, whole = xp.compute(xp.quantile(x, q), x)
    assert made == np.quantile(whole, q)


@pytest.mark.parametrize(
    "given",
    [
        [0.0],
        [1.0, 1.0, 1.0],
        [-0.0, 0.0, 5e-324, -5e-324],
        [-np.inf, 1.0, 2.0],
        [1e308, -1e308],
        [3.0, np.nan, 1.0],
    ],
)
def test_quantiles_of_odd_numbers(given: list[float]) -> None:
    for q in (0.0, 0.3, 0.5, 1.0):
        made = xp.quantile(xp.asarray(given), q).compute()
        place = q * (len(given) - 1)
        if place == int(place) and not np.isnan(given).any():
            # An element itself. NumPy adds nothing times the way to the next, which may be NaN.
            expected = np.sort(given)[int(place)]
        else:
            with np.errstate(invalid="ignore", over="ignore"):
                expected = np.quantile(given, q)
        assert made == expected or (np.isnan(made) and np.isnan(expected)), (q, made, expected)
    assert xp.quantile(xp.asarray([1, 2, 4]), 0.5).compute() == 2.0


@pytest.mark.parametrize("chunks", [1, 3, 100])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_the_largest_come_in_order(chunks: int, k: int) -> None:
    x = random((100,), (chunks,))
    made, whole = xp.compute(xp.topk(x, k), x)
    assert np.array_equal(made, np.sort(whole)[::-1][:k])
    whole_numbers = xp.random.default_rng(1).integers(-5, 5, 100, chunks=chunks)
    made, whole = xp.compute(xp.topk(whole_numbers, k), whole_numbers)
    assert np.array_equal(made, np.sort(whole)[::-1][:k])


@pytest.mark.parametrize("k", [1, 2, 6, 8, 11])
def test_the_largest_have_the_same_bits_in_any_chunks_and_order(k: int) -> None:
    given = np.array([-np.nan, 0.0, np.inf, -0.0, -np.inf, 1.0, np.nan, -0.0, 0.0, np.nan, -1.0])
    assert np.signbit(given[np.isnan(given)]).tolist() == [True, False, False]
    bits = set()
    for order in (given, given[::-1]):
        for chunks in (1, 2, 5, len(given)):
            made = xp.topk(xp.from_numpy(order, chunks=chunks), k).compute()
            assert np.array_equal(made, np.sort(given)[::-1][:k], equal_nan=True)
            bits.add(made.tobytes())
    assert len(bits) == 1


def test_what_is_fused_has_the_bits_of_what_is_not() -> None:
    table = random((30, 4), (30, 4)).compute()
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    bits = set()
    for chunks in (1, 7, 64, 200):
        rng = xp.random.default_rng(9)
        days = rng.integers(0, 30, (200, 10), chunks=(chunks, 10))
        growth = xp.prod(xp.take(xp.asarray(table + 1), days), axis=1)
        fused = 1 - growth @ xp.asarray(weights)
        # Each of these is wanted, so that nothing is made where it is used.
        apart = xp.compute(fused, days, growth)
        assert np.array_equal(apart[0], fused.compute())
        assert np.allclose(apart[2], np.prod((table + 1)[apart[1]], axis=1), rtol=1e-14)
        bits.add(apart[0].tobytes())
    assert len(bits) == 1


def test_from_numpy_cuts_into_chunks() -> None:
    given = np.arange(12.0).reshape(3, 4)
    x = xp.from_numpy(given, chunks=(2, 3))
    assert x.chunks == ((2, 1), (3, 1)) and np.array_equal(x.compute(), given)


def test_a_random_expression_gives_the_same_bits_in_any_chunks() -> None:
    for seed in range(60):
        pick = np.random.default_rng(seed)
        shape = tuple(int(pick.integers(0, 9)) for _ in range(3))
        # One element goes with none.
        row = tuple(max(extent, 1) for extent in shape[1:])
        made = []
        for _ in range(3):
            chunks = tuple(int(pick.integers(1, max(extent, 1) + 1)) for extent in shape)
            rng = xp.random.default_rng(seed)
            x, y = rng.random(shape, chunks=chunks), rng.normal(size=row, chunks=chunks[1:])
            numbers = (x * y - 0.5) * (x[:1] > 0.25).astype(xp.float64)
            made.append(xp.compute(numbers, (x > y).sum(axis=2)))
        assert all(
            np.array_equal(first, other)
            for others in made[1:]
            for first, other in zip(made[0], others, strict=True)
        )
