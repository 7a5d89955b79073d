"""Daily closes of 20 shares, read on a worker from the data file of a package."""

import ebbtide as eb
import ebbtide.array as xp

DAYS, SHARES = 8313, 20


def read_closes() -> object:
    """Read daily closes, one column a share."""
    import importlib.util
    from pathlib import Path

    import pandas as pd

    package = importlib.util.find_spec("skfolio")
    folder = Path(package.origin).parent / "datasets" / "data"
    return pd.read_csv(folder / "sp500_dataset.csv.gz", index_col=0)


closes = xp.from_delayed(read_closes, (DAYS, SHARES), xp.float64)
with eb.Cluster():
    print(closes.mean(axis=0).compute(progress=True))
