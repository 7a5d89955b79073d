"""The operator at scale, in numbers: many clusters whose pods kwok plays, beside as many bare pods.

Run it with `e2e/scale-cluster net python3 e2e/bench/scale_operator.py [CLUSTERS..]`, 100, 1,000 and
then 3,000 if not said. Each cluster is a scheduler and three workers; one process speaks the real
contract for all schedulers. The operator has the rights of the chart and no others. It starts where
the API server is warm: the bare pods of the same size come first.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from scale_floor import AT_ONCE, LIMIT, ROOT, STATE, Api, Object, Seen, bare, cpu, is_ready
from table import Table

GROUP = "/apis/ebbtide.dev/v1alpha1"
OURS = "labelSelector=app.kubernetes.io/managed-by%3Debbtide"
NAMESPACES = 10
WORKERS = 3
PODS = 1 + WORKERS
HOSTILE = 100
#: Seconds without news, by size.
IDLE = {1000: 600}
IDLE_ELSE = 60
DEMANDS = 100
METRICS = "http://127.0.0.1:8080/metrics"
BIN = ROOT / ".tools" / "bin"
PREFIX = "ebbtide_operator_"


class Program:
    """A process that is ended by its id."""

    def __init__(self, command: list[str], log: str, **env: str) -> None:
        """Start it; what it says goes to a log file."""
        self.begin = time.perf_counter()
        with (ROOT / "target" / "bench" / log).open("a") as errors:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def cpu(self) -> float:
        """CPU seconds that it has had."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def peak(self) -> float:
        """Return most memory that it has had at once, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / 1e6

    def order(self, text: str) -> Object:
        """Say a line and read the answer."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        """End it and wait for it."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def operator() -> Program:
    """Start an operator with the chart's rights."""
    user = STATE / "pki" / "ebbtide-operator-bench.kubeconfig"
    catalogue = ROOT / "target" / "bench" / "environments.json"
    catalogue.write_text("{}")
    return Program(
        [str(BIN / "ebbtide-operator"), "--address=127.0.0.1:7443", f"--environments={catalogue}"],
        "scale_operator.log",
        KUBECONFIG=str(user),
        EBBTIDE_OPERATOR_NAMESPACE="ebbtide",
    )


def speaking(namespaces: str) -> Program:
    """Start what speaks for the schedulers of namespaces whose names begin so."""
    command = [str(BIN / "ebbtide-schedulers"), f"--namespaces={namespaces}"]
    return Program(command, "schedulers.log")


class Counts:
    """What the operator had counted at a moment."""

    def __init__(self, text: str) -> None:
        """Read the text of /metrics."""
        self.rows = re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE)

    def of(self, name: str, is_it: Callable[[dict[str, str]], bool] = lambda _: True) -> float:
        """Sum the rows of a name whose labels are right."""
        rows = [
            (dict(re.findall(r'(\w+)="(.*?)"', labels)), value)
            for found, labels, value in self.rows
            if found == PREFIX + name
        ]
        return sum(float(value) for labels, value in rows if is_it(labels))

    def requests(self, *verbs: str) -> float:
        """Count requests that are not about the lease."""
        return self.of(
            "api_requests_total",
            lambda it: it["resource"] != "leases" and it["verb"] in verbs,
        )

    def writes(self) -> float:
        """Count requests that would change something."""
        return self.requests("create", "patch", "update", "delete")


def counts() -> Counts:
    """Read what the operator counts."""
    with urllib.request.urlopen(METRICS, timeout=10) as answer:
        return Counts(answer.read().decode())


def wait(what: str, is_so: Callable[[Counts], bool], pause: float = 0.05) -> float:
    """Wait until it is so with what the operator counts; tell when."""
    deadline = time.perf_counter() + LIMIT
    while time.perf_counter() < deadline:
        try:
            if is_so(counts()):
                return time.perf_counter()
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(pause)
    raise SystemExit(f"{what}: not within {LIMIT} s")


@contextmanager
def namespaces(api: Api, prefix: str) -> Iterator[list[str]]:
    """Have namespaces meanwhile."""
    run = uuid.uuid4().hex[:8]
    names = [f"{prefix}-{run}-{number}" for number in range(NAMESPACES)]
    for name in names:
        api.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    try:
        yield names
    finally:
        for name in names:
            api.ask("DELETE", f"/api/v1/namespaces/{name}")


def cluster(name: str) -> Object:
    """Make a manifest."""
    size = {"cpu": "100m", "memory": "128Mi"}
    return {
        "apiVersion": "ebbtide.dev/v1alpha1",
        "kind": "Cluster",
        "metadata": {"name": name},
        "spec": {
            "image": "none@sha256:" + 64 * "0",
            "scheduler": {"resources": size},
            "lifetime": {"idle": {"after": "24h"}},
            "workers": [
                {"name": "w", "min": WORKERS, "max": WORKERS + 1, "resources": size},
            ],
        },
    }


def apply(api: Api, names: list[str], count: int) -> None:
    """Create so many clusters, spread over namespaces."""

    def create(number: int) -> None:
        path = f"{GROUP}/namespaces/{names[number % len(names)]}/clusters"
        api.ask("POST", path, cluster(f"c{number:04}"))

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(create, range(count)))


def is_cluster_ready(it: Object) -> bool:
    """Tell whether a cluster says that it is ready with all workers."""
    status = it.get("status", {})
    return status.get("phase") == "Ready"


def waits(schedulers: Program, count: int) -> list[float]:
    """Let work come to clusters, and tell how long each waited for its pod, in ms."""
    seconds = schedulers.order(f"demand {count}")["seconds"]
    if not seconds or None in seconds:
        raise SystemExit(f"{seconds.count(None)} of {len(seconds)} demands brought no pod")
    return [1000 * it for it in seconds]


def p99(values: list[float]) -> float:
    """Return what 99 of 100 do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def rise(api: Api, table: Table, size: int, names: list[str], run: Program) -> dict[str, float]:
    """Create clusters, beside as many bare pods. Tell what each cost."""
    created, ready = bare(api, size * PODS)
    pods = Seen(api, "/api/v1/pods", is_ready, OURS)
    clusters = Seen(api, f"{GROUP}/clusters", is_cluster_ready)
    before, start, used, all_used = counts(), time.perf_counter(), run.cpu(), cpu()
    apply(api, names, size)
    there = pods.wait("all pods are there", lambda there, _: there >= size * PODS) - start
    up = clusters.wait("all clusters are ready", lambda _, ready: ready == size) - start
    used, all_used = run.cpu() - used, cpu() - all_used
    head = f"{size} clusters"
    table.add(f"{head}, all pods created, beside bare pods", "s", there, created)
    table.add(f"{head}, all Ready, beside bare pods", "s", up, ready)
    table.add(f"{head}, all Ready, to that of bare pods", "1", up / ready, goal="<= 1.3")
    table.add(f"{head}, operator meanwhile", "core", used / up, goal="<= 0.5")
    table.add(f"{head}, operator meanwhile", "CPU s", used)
    for program, seconds in sorted(all_used.items()):
        table.add(f"{head}, {program} meanwhile", "CPU s", seconds)
    time.sleep(5)
    after = counts()
    requests = after.writes() + after.requests("get") - before.writes() - before.requests("get")
    table.add(
        f"{head}, requests of each but for its pods", "1", requests / size - PODS, goal="<= 8"
    )
    pods.end()
    clusters.end()
    return {
        "seconds until Ready": up / size,
        "seconds of bare pods until ready": ready / size,
        "CPU seconds of the operator": used / size,
        "requests of the operator": requests / size,
    }


def worker(api: Api, namespace: str) -> Object:
    """Read what the operator has asked for where it asked for a worker."""
    query = "labelSelector=ebbtide.dev/role%3Dworker&limit=1"
    [it] = api.ask("GET", f"/api/v1/namespaces/{namespace}/pods?{query}")["items"]
    metadata = {key: it["metadata"][key] for key in ("labels", "annotations")}
    given = {"nodeName", "serviceAccount", "tolerations"}
    return {"metadata": metadata, "spec": {k: v for k, v in it["spec"].items() if k not in given}}


def rest(table: Table, size: int, seconds: float) -> None:
    """See that nothing is asked for when nothing happens."""
    before, start = counts(), time.perf_counter()
    time.sleep(seconds)
    after, idle = counts(), time.perf_counter() - start
    head = f"{size} clusters, {idle:.0f} s without news"
    table.add(f"{head}, writes", "1", after.writes() - before.writes(), goal="<= 0")
    for verb, goal in (("list", "<= 0"), ("get", None)):
        table.add(f"{head}, {verb}s", "1", after.requests(verb) - before.requests(verb), goal=goal)


def again(table: Table, size: int, run: Program) -> Program:
    """Put another operator in the place of this one."""
    table.add(f"{size} clusters, operator, most memory", "MB", run.peak(), goal="<= 100")
    run.end()
    run = operator()
    first = wait("a first reconcile", lambda it: it.of("reconciles_total") > 0, 0.005)
    done = wait(
        "all are reconciled",
        lambda it: (
            it.of("reconciles_total") >= size
            and it.of("schedulers") >= size
            and it.of("queue_depth") == 0
        ),
    )
    head = f"{size} clusters, start to the first reconcile"
    table.add(head, "ms", 1000 * (first - run.begin), goal="<= 300")
    table.add(f"{size} clusters, restart to all looked at", "s", done - run.begin, goal="<= 10")
    time.sleep(15)
    table.add(f"{size} clusters, writes after a restart", "1", counts().writes(), goal="<= 0")
    return run


def demand(api: Api, table: Table, size: int, schedulers: Program) -> None:
    """Let work come, in quiet and beside hostile schedulers."""
    pods = Seen(api, "/api/v1/pods", is_ready, OURS)
    quiet = waits(schedulers, DEMANDS)
    head = f"{size} clusters, work to pod"
    table.add(f"{head}, median", "ms", statistics.median(quiet))
    table.add(f"{head}, p99", "ms", p99(quiet), goal="<= 500")
    hostile = speaking("hostile")
    with namespaces(api, "hostile") as names:
        clusters = Seen(api, f"{GROUP}/clusters", is_cluster_ready)
        apply(api, names, HOSTILE)
        clusters.wait("the hostile are ready", lambda _, ready: ready == size + HOSTILE)
        clusters.end()
        # Every cluster has room for one more worker again.
        usual = (size + HOSTILE) * PODS
        pods.wait("workers without work have gone", lambda there, _: there == usual)
        hostile.order("hostile")
        time.sleep(5)
        loud = waits(schedulers, DEMANDS)
        refused = counts().of("demands_refused_total")
        hostile.end()
    pods.end()
    table.add(f"{head}, p99 beside {HOSTILE} hostile, and in quiet", "ms", p99(loud), p99(quiet))
    table.add(
        f"{head}, p99 beside {HOSTILE} hostile, to that", "1", p99(loud) / p99(quiet), goal="<= 2"
    )
    table.add(f"{size} clusters, lines of the hostile refused", "1", refused, goal="> 0")


def measure(api: Api, table: Table, size: int, idle: float) -> dict[str, float]:
    """Measure one size. Tell what each cluster cost, and how much memory all took."""
    run = operator()
    schedulers = speaking("scale")
    wait("the operator leads", lambda it: it.of("is_leader") == 1)
    try:
        with namespaces(api, "scale") as names:
            cost = rise(api, table, size, names, run)
            like, up = worker(api, names[0]), size * cost["seconds until Ready"]
            rest(table, size, idle)
            cost["memory of the operator"] = run.peak() / size
            run = again(table, size, run)
            demand(api, table, size, schedulers)
            pods = Seen(api, "/api/v1/pods", is_ready, OURS)
            used, start = run.cpu(), time.perf_counter()
            for name in names:
                api.ask(
                    "DELETE", f"{GROUP}/namespaces/{name}/clusters?propagationPolicy=Foreground"
                )
            gone = pods.wait("all pods are gone", lambda there, _: there == 0) - start
            pods.end()
            table.add(f"{size} clusters, all pods gone", "s", gone)
            table.add(f"{size} clusters, all pods gone, operator", "CPU s", run.cpu() - used)
    finally:
        run.end()
        schedulers.end()
    _, ready = bare(api, size * PODS, like=like)
    head = f"{size} clusters, all Ready"
    table.add(f"{head}, beside bare pods that are as workers are", "s", up, ready)
    return cost


def grow(table: Table, small: int, large: int, costs: dict[int, dict[str, float]]) -> None:
    """Tell how much dearer each cluster is where there are more of them."""
    for what, cost in costs[large].items():
        growth = cost / costs[small][what]
        table.add(f"{large} clusters to {small}, each: {what}", "1", growth)


def main() -> None:
    """Measure each of the sizes that were asked for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    api = Api()
    table = Table("operator", ROOT / "target" / "bench" / "scale_operator.jsonl")
    table.add("load of this machine at the start", "1", os.getloadavg()[0])
    image = (ROOT / "target" / "bench" / "operator.tar").read_bytes()
    packed = len(gzip.compress(image, 6)) / 1e6
    table.add("image of the operator, compressed as a push does", "MB", packed, goal="<= 20")
    # A young API server ends watches of whoever cannot follow: it learns how much there is to keep.
    bare(api, 400)
    sizes = [int(it) for it in sys.argv[1:]] or [100, 1000, 3000]
    costs: dict[int, dict[str, float]] = {}
    for nth, size in enumerate(sizes):
        costs[size] = measure(api, table, size, IDLE.get(size, IDLE_ELSE))
        if nth:
            grow(table, sizes[nth - 1], size, costs)
    if not table.is_met():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
