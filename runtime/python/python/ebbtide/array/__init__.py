"""Chunked arrays with the array API standard's names, computed when asked for.

>>> import ebbtide.array as xp
>>> x = xp.random.default_rng(7).normal(size=(1000, 1000), chunks=(250, 500))
>>> x.shape, x.chunks[0]
((1000, 1000), (250, 250, 250, 250))
>>> round(float(x.mean().compute()), 4)
0.0002
"""

from ebbtide.array import random
from ebbtide.array._array import Array
from ebbtide.array._creation import asarray, from_delayed, from_numpy
from ebbtide.array._dtype import DType, bool, float64, int64
from ebbtide.array._functions import (
    add,
    astype,
    compute,
    divide,
    matmul,
    mean,
    multiply,
    persist,
    prod,
    quantile,
    subtract,
    sum,
    take,
    topk,
)

__all__ = [
    "Array",
    "DType",
    "add",
    "asarray",
    "astype",
    "bool",
    "compute",
    "divide",
    "float64",
    "from_delayed",
    "from_numpy",
    "int64",
    "matmul",
    "mean",
    "multiply",
    "persist",
    "prod",
    "quantile",
    "random",
    "subtract",
    "sum",
    "take",
    "topk",
]
