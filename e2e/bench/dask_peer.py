"""The peer: the same work in dask, in its own environment. Prints one JSON object."""

from __future__ import annotations

import json
import sys
import time
import warnings

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

warnings.simplefilter("ignore")


def peak(dask_worker: object = None) -> int:
    """VmHWM of a worker's process, in bytes."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def tasks(count: int) -> float:
    """Tasks a second of an array whose chunks have their own inputs and outputs."""
    with Client(LocalCluster(2, 1, processes=True, dashboard_address=None)) as client:
        client.submit(int).result()
        x = da.random.default_rng(7).random(count, chunks=1)
        y = (x * x).sum()
        start = time.perf_counter()
        y.compute()
        # A chunk, its square with its sum, and a tree above them: dask fuses what it can.
        return 2 * count / (time.perf_counter() - start)


def functions(count: int) -> float:
    """Python functions a second."""
    with Client(LocalCluster(2, 1, processes=True, dashboard_address=None)) as client:
        client.submit(int).result()
        start = time.perf_counter()
        client.gather(client.map(lambda nth: nth + 1, range(count)))
        return count / (time.perf_counter() - start)


def risk(scenarios: int, path: str) -> dict[str, float]:
    """Run the risk job."""
    closes = np.genfromtxt(path, delimiter=",", skip_header=1)[:, 1:]
    returns = closes[1:] / closes[:-1]

    def simulate(days: np.ndarray, returns: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return 1 - returns[days].prod(axis=1) @ weights

    with Client(LocalCluster(2, 1, processes=True, dashboard_address=None)) as client:
        client.submit(int).result()
        start = time.perf_counter()
        days = da.random.default_rng(7).integers(
            0, len(returns), (scenarios, 10), chunks=(50_000, 10)
        )
        held = client.scatter(returns, broadcast=True)
        weights = np.full(20, 1 / 20)
        loss = days.map_blocks(
            simulate, held, weights, drop_axis=1, dtype=float, meta=np.empty(0)
        ).persist()
        (every,) = dask.compute(loss)
        # Exact, as ours: dask's own percentile is approximate.
        at_risk = np.quantile(every, 0.99)
        tail = every[every >= np.quantile(every, 0.975)].mean()
        worst = da.topk(loss, 10).compute()
        seconds = time.perf_counter() - start
        peaks = client.run(peak).values()
    return {
        "seconds": seconds,
        "peak_bytes": max(peaks),
        "figures": [float(at_risk), float(tail), float(worst[0])],
    }


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "tasks":
        made: object = tasks(int(arguments[0]))
    elif what == "functions":
        made = functions(int(arguments[0]))
    else:
        made = risk(int(arguments[0]), arguments[1])
    print(json.dumps(made))
