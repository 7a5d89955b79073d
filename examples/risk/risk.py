"""Value at risk of a portfolio by historical simulation: twenty million times ten days.

Daily closes of 20 S&P 500 shares, 1990 to 2022, come from the data file of a package and are read
on a worker. A scenario is ten days drawn at random; its loss is what the portfolio loses over them.
"""

import argparse
import hashlib
import sys

import ebbtide as eb
import ebbtide.array as xp

CLOSES, SHARES, DAYS = 8313, 20, 10


def read_closes() -> object:
    """Read daily closes, one column a share. Runs where skfolio is installed: on a worker."""
    import importlib.util
    from pathlib import Path

    import pandas as pd

    package = importlib.util.find_spec("skfolio")
    folder = Path(package.origin).parent / "datasets" / "data"
    return pd.read_csv(folder / "sp500_dataset.csv.gz", index_col=0)


def losses(scenarios: int, seed: int) -> xp.Array:
    """Simulate: the part of the portfolio that each scenario loses."""
    closes = xp.from_delayed(read_closes, (CLOSES, SHARES), xp.float64)
    returns = closes[1:] / closes[:-1]
    days = xp.random.default_rng(seed).integers(
        0, CLOSES - 1, (scenarios, DAYS), chunks=(50_000, DAYS)
    )
    growth = xp.prod(xp.take(returns, days), axis=1)
    weights = xp.asarray([1 / SHARES] * SHARES)
    return 1 - growth @ weights


def main() -> None:
    """Simulate, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenarios", type=int, default=20_000_000)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()

    loss = losses(arguments.scenarios, arguments.seed)
    tail = (loss >= xp.quantile(loss, 0.975)).astype(xp.float64)
    with eb.Cluster() as cluster:
        at_risk, shortfall, worst, every = xp.compute(
            xp.quantile(loss, 0.99),
            xp.sum(loss * tail) / xp.sum(tail),
            xp.topk(loss, 10),
            loss,
            progress=True,
        )
        workers = cluster.workers()
    print(f"99 % value at risk         {at_risk:.15f}")
    print(f"97.5 % expected shortfall  {shortfall:.15f}")
    print("ten worst scenarios       ", *(f"{one:.4f}" for one in worst))
    print("digest of the losses      ", hashlib.sha256(every.tobytes()).hexdigest())
    size = arguments.scenarios * DAYS * SHARES * 8
    print(f"scenarios                  {size / 2**20:,.0f} MiB", file=sys.stderr)
    for worker in workers:
        print(f"{worker.name:26} {worker.peak_bytes / 2**20:,.0f} MiB at most", file=sys.stderr)


if __name__ == "__main__":
    main()
