"""The example, beside an independent NumPy program that draws the same days."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

EXAMPLE = Path(__file__).parents[3] / "examples" / "risk"
SCENARIOS, SEED = 5_000_000, 7


def run(*command: str) -> str:
    """Run a command for at most five minutes and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def risk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the example, or a script that calls it, with so many workers."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def on(workers: int, *arguments: str, script: Path = EXAMPLE / "risk.py") -> str:
        manifest = yaml.safe_load((EXAMPLE / "cluster.yaml").read_text())
        manifest["spec"]["workers"][0].update(min=workers, max=workers)
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump(manifest))
        command = ["ebbtide", "up", str(path), "--backend", "local", "--run", str(script), "--"]
        return run(*command, "--scenarios", str(SCENARIOS), *arguments)

    return on


def test_any_number_of_workers_gives_the_same_digest_and_another_seed_another(
    risk: Callable[..., str],
) -> None:
    expected = (EXAMPLE / "expected.txt").read_text()
    for workers in (1, 2, 3):
        assert risk(workers) == expected
    other = risk(2, "--seed", "8").splitlines()
    assert not set(other) & set(expected.splitlines())


def test_the_demo_rises_from_no_worker_and_tells_what_its_workers_took() -> None:
    done = subprocess.run(
        [EXAMPLE.parent / "run", "local"], capture_output=True, text=True, timeout=300, check=True
    )
    # It has more scenarios than the tests.
    names = [line.split("  ")[0] for line in (EXAMPLE / "expected.txt").read_text().splitlines()]
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == names
    told = re.findall(r"^(\S+) +([\d,]+) MiB(?: at most)?$", done.stderr, re.MULTILINE)
    (what, scenarios), *workers = [(name, float(it.replace(",", ""))) for name, it in told]
    assert what == "scenarios" and workers
    assert all(0 < peak < scenarios / 10 for _, peak in workers)


#: The example, which keeps its figures as they are before it prints them.
KEEPING = """
import sys
import ebbtide.array as xp, numpy as np

def keep(*arrays, **options):
    made = compute(*arrays, **options)
    np.savez({kept!r}, *made)
    return made

compute, xp.compute = xp.compute, keep
sys.path.insert(0, {example!r})
import risk
risk.main()
"""


def test_an_independent_numpy_program_agrees(risk: Callable[..., str], tmp_path: Path) -> None:
    script, kept = tmp_path / "script.py", tmp_path / "kept.npz"
    script.write_text(KEEPING.format(kept=str(kept), example=str(EXAMPLE)))
    assert risk(2, script=script) == (EXAMPLE / "expected.txt").read_text()
    loss = losses_in_numpy()
    tail = loss[loss >= np.quantile(loss, 0.975)]
    expected = (np.quantile(loss, 0.99), tail.mean(), np.sort(loss)[:-11:-1], loss)
    with np.load(kept) as figures:
        assert len(figures) == len(expected)
        for name, numpys in zip(figures, expected, strict=True):
            assert figures[name].shape == np.shape(numpys)
            assert np.abs(figures[name] - numpys).max() < 1e-12


def losses_in_numpy() -> np.ndarray:
    """Simulate block by block, with words of NumPy's own Philox and Lemire's multiply-shift."""
    closes = np.genfromtxt(data_file(), delimiter=",", skip_header=1)[:, 1:]
    returns = closes[1:] / closes[:-1]
    low, high = np.uint64(0xFFFF_FFFF), np.uint64(32)
    words = np.random.Philox(key=[SEED, 0], counter=2**256 - 1)
    losses = np.empty(SCENARIOS)
    for start in range(0, SCENARIOS, 50_000):
        block = words.random_raw(500_000)
        bound = np.uint64(len(returns))
        # The upper half of a product of 64 bits with fewer than 32.
        days = ((block >> high) * bound + ((block & low) * bound >> high)) >> high
        growth = returns[days.astype(np.int64).reshape(-1, 10)].prod(axis=1)
        losses[start : start + 50_000] = 1 - growth.mean(axis=1)
    return losses


def data_file() -> Path:
    """Find the package's data file in the environment that the first test had made."""
    key = run("ebbtide", "env", "key", str(EXAMPLE / "cluster.yaml")).strip()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    packages = cache / "ebbtide" / "environments" / key / "lib" / "python3.11" / "site-packages"
    return packages / "skfolio" / "datasets" / "data" / "sp500_dataset.csv.gz"


def test_the_readme_runs_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    readme = (EXAMPLE.parents[1] / "README.md").read_text()
    for name, language in (("cluster.yaml", "yaml"), ("risk.py", "python")):
        (block,) = re.findall(f"```{language}\n(.*?)```", readme, re.DOTALL)
        (tmp_path / name).write_text(block)
    command = ["ebbtide", "up", str(tmp_path / "cluster.yaml"), "--backend", "local"]
    printed = float(run(*command, "--run", str(tmp_path / "risk.py")))
    # The same days with equal weights as in the example: the same figure but for the last digits.
    expected = (EXAMPLE / "expected.txt").read_text().split("\n")[0].split()[-1]
    assert abs(printed - float(expected)) < 1e-12
