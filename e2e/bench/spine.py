"""The thread through everything, in numbers: start-up, tasks, functions, the risk job, memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ebbtide as eb
import ebbtide.array as xp
import numpy as np
from table import Table

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = """
apiVersion: ebbtide.dev/v1alpha1
kind: Cluster
metadata: { name: bench }
spec:
  environment: { python: "3.11", packages: [pandas, skfolio==1.12.2] }
  workers:
    - { name: w, resources: { cpu: "1", memory: 4Gi }, min: 2, max: 2 }
"""
STATE = Path(os.environ["XDG_STATE_HOME"]).resolve() / "ebbtide" / "clusters" / "default" / "bench"
LIMIT = 600
MB = 1e6


def run(*command: str, env: dict[str, str] | None = None) -> str:
    """Run a command for at most ten minutes and return what it printed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, env={**os.environ, **(env or {})}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def dask(*arguments: object, env: dict[str, str] | None = None) -> object:
    """Run the peer in its own environment."""
    python = os.environ["EBBTIDE_BENCH_PYTHON"]
    program = str(Path(__file__).with_name("dask_peer.py"))
    return json.loads(run(python, program, *map(str, arguments), env=env).splitlines()[-1])


def seconds_to_import(python: str, module: str) -> float:
    """Time an import in a fresh interpreter, the median of seven."""
    text = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return statistics.median(float(run(python, "-c", text)) for _ in range(7))


@contextmanager
def cluster() -> Iterator[eb.Cluster]:
    """Keep two worker processes up meanwhile."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as manifest:
        manifest.write(MANIFEST)
        manifest.flush()
        run("ebbtide", "up", manifest.name, "--backend", "local")
    try:
        with eb.Cluster("bench", backend="local") as running:
            yield running
    finally:
        run("ebbtide", "down", "bench", "--backend", "local")


def touch_memory() -> None:
    """Use as much memory as the peaks below, once, before anything is timed.

    A virtual machine gets its memory from the host page by page when it is touched first, at up to
    a second and more for each GiB: whoever is measured first would pay for everybody.
    """
    np.ones(2 << 30, np.uint8)


def peaks(role: str) -> list[int]:
    """List the most memory that each process with this role ever had, in bytes, by the kernel."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            folder = (process / "cwd").readlink()
            status = (process / "status").read_text()
        except OSError:
            continue
        if len(words) > 1 and words[1].decode() == role and folder.is_relative_to(STATE):
            line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            found.append(int(line.split()[1]) * 1024)
    return found


def idle(table: Table) -> None:
    """Measure what is there before anybody asks for anything."""
    time.sleep(2)
    schedulers, workers = peaks("scheduler"), peaks("worker")
    if (len(schedulers), len(workers)) != (1, 2):
        raise SystemExit(f"{len(schedulers)} schedulers and {len(workers)} workers, not 1 and 2")
    table.add("scheduler, idle", "MB", schedulers[0] / MB, goal="<= 30")
    table.add("worker, idle, without Python", "MB", max(workers) / MB, goal="<= 30")


def start_up(table: Table) -> None:
    """Measure what somebody waits for who computes one small thing."""
    peer = os.environ["EBBTIDE_BENCH_PYTHON"]
    ours = seconds_to_import(sys.executable, "ebbtide.array")
    table.add("import of the arrays", "s", ours, seconds_to_import(peer, "dask.array"), "<= 0.2")
    one = xp.asarray([1])
    one.sum().compute()
    times = []
    for _ in range(200):
        start = time.perf_counter()
        xp.asarray([1]).sum().compute()
        times.append(time.perf_counter() - start)
    text = (
        "import dask.array as da, time, statistics as s\n"
        "t = []\n"
        "for _ in range(50):\n"
        "    a = time.perf_counter(); da.asarray([1]).sum().compute()\n"
        "    t.append(time.perf_counter() - a)\n"
        "print(s.median(t))"
    )
    there = float(run(peer, "-c", text))
    table.add("hello world in process", "ms", statistics.median(times) * 1e3, there * 1e3, "<= 1")


def tasks(table: Table) -> None:
    """Measure tasks with inputs and outputs of their own, over TLS, on two workers."""
    tuned = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "inf"}
    for count in (5_000, 20_000, 100_000):
        x = xp.random.default_rng(7).random(count, chunks=1)
        # Two users, so that each chunk is a task of its own.
        y = (x * x).sum()
        y.compute()
        z = xp.random.default_rng(8).random(count, chunks=1)
        start = time.perf_counter()
        (z * z).sum().compute()
        rate = 2 * count / (time.perf_counter() - start)
        name = f"tasks a second, {2 * count:,}"
        if count > 20_000:
            # The peer would take minutes.
            table.add(name, "1/s", rate, goal=">= 20000")
            continue
        there = dask("tasks", count)
        table.add(f"{name}, peer as it is", "1/s", rate, there, ">= 20000")
        there = dask("tasks", count, env=tuned)
        table.add(f"{name}, peer with saturation inf", "1/s", rate, there, ">= 20000")


def functions(table: Table, running: eb.Cluster) -> None:
    """Measure Python functions."""
    for count in (2_000, 10_000):
        [future.result() for future in [running.submit(int) for _ in range(20)]]
        start = time.perf_counter()
        futures = running.map(lambda nth: nth + 1, range(count))
        values = [future.result() for future in futures]
        rate = count / (time.perf_counter() - start)
        assert values == [nth + 1 for nth in range(count)]
        there = dask("functions", count)
        table.add(f"Python functions a second, {count:,}", "1/s", rate, there, ">= 5000")


def risk(table: Table, running: eb.Cluster) -> None:
    """Measure the risk job on two workers."""
    sys.path.insert(0, str(ROOT / "examples" / "risk"))
    from risk import losses

    data = running.submit(data_file).result()
    for scenarios in (1_000_000, 5_000_000):
        start = time.perf_counter()
        loss = losses(scenarios, 7)
        tail = (loss >= xp.quantile(loss, 0.975)).astype(xp.float64)
        at_risk, shortfall, worst, _ = xp.compute(
            xp.quantile(loss, 0.99), xp.sum(loss * tail) / xp.sum(tail), xp.topk(loss, 10), loss
        )
        seconds = time.perf_counter() - start
        time.sleep(1)
        peak = max(worker.peak_bytes for worker in running.workers())
        there = dask("risk", scenarios, data)
        assert abs(at_risk - there["figures"][0]) < 5e-4
        assert abs(shortfall - there["figures"][1]) < 5e-4 and worst.size == 10
        name = f"risk, {scenarios // 10**6} million scenarios"
        table.add(name, "s", seconds, there["seconds"], "< peer")
        memory = (peak / MB, there["peak_bytes"] / MB)
        table.add(f"{name}, peak of a worker", "MB", *memory, "< peer")


def data_file() -> str:
    """Find the closes on a worker."""
    import importlib.util
    from pathlib import Path

    package = Path(importlib.util.find_spec("skfolio").origin).parent
    return str(package / "datasets" / "data" / "sp500_dataset.csv.gz")


def main() -> None:
    """Measure everything that needs no Kubernetes."""
    os.environ.pop("OPENBLAS_CORETYPE", None)
    table = Table("spine", ROOT / "target" / "bench" / "spine.jsonl")
    touch_memory()
    start_up(table)
    with cluster():
        idle(table)
    with cluster():
        tasks(table)
    with cluster() as running:
        functions(table, running)
    with cluster() as running:
        risk(table, running)
    if not table.is_met():
        raise SystemExit("a goal was missed")


if __name__ == "__main__":
    main()
