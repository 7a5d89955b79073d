"""The spine on Kubernetes, in numbers: coming, growing from nothing, going, and the operator.

Run it with `e2e/dev-cluster net python e2e/bench/kubernetes_spine.py`. Images are on the nodes
before anything is measured. Clocks are this program's: they start right before a request is sent,
and stop when a watch tells what is waited for. A kubelet looks at its containers once a second:
every clock starts after everything came to rest, at a random moment between two of its looks.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ebbtide as eb
import yaml
from table import Table

ROOT = Path(__file__).resolve().parents[2]
RUNS = int(os.environ.get("EBBTIDE_BENCH_RUNS", "10"))
CLUSTERS = 10
LIMIT = 60
NAMESPACE = f"bench-{uuid.uuid4().hex[:8]}"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
GROUP = f"/apis/ebbtide.dev/v1alpha1/namespaces/{NAMESPACE}/clusters"
WORKER = {"cpu": "1", "memory": "1Gi"}
SMALL = {"cpu": "100m", "memory": "128Mi"}
PAUSE = "import signal; signal.signal(signal.SIGTERM, exit); signal.pause()"
Object = dict[str, Any]


class Watch:
    """What a watch tells, with the time at which it was heard."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        """Listen from now on."""
        self.heard: list[tuple[float, str, Object]] = []
        self._news = threading.Condition()
        threading.Thread(target=self._listen, args=[response], daemon=True).start()

    def _listen(self, response: http.client.HTTPResponse) -> None:
        for line in response:
            event, now = json.loads(line), time.perf_counter()
            with self._news:
                self.heard.append((now, event["type"], event["object"]))
                self._news.notify_all()

    def first(self, what: str, is_it: Callable[[str, Object], bool]) -> float:
        """Tell when an event was heard first, and wait for it."""
        looked = 0

        def find() -> float | None:
            nonlocal looked
            while looked < len(self.heard):
                at, kind, it = self.heard[looked]
                looked += 1
                if is_it(kind, it):
                    return at
            return None

        with self._news:
            at = self._news.wait_for(find, LIMIT)
        if at is None:
            raise SystemExit(f"{what}: not within {LIMIT} s")
        return at

    def gone(self, what: str, is_it: Callable[[Object], bool]) -> float:
        """Tell when the last of these was deleted, and wait for it."""

        def find() -> float | None:
            live, last = set(), 0.0
            for at, kind, it in self.heard:
                if is_it(it):
                    (live.discard if kind == "DELETED" else live.add)(it["metadata"]["uid"])
                    last = at
            return None if live else last

        with self._news:
            last = self._news.wait_for(find, LIMIT)
        if not last:
            raise SystemExit(f"{what}: not within {LIMIT} s")
        return last


class Api:
    """The API server, with the first context's address and the credentials of KUBECONFIG."""

    def __init__(self) -> None:
        """Read KUBECONFIG and connect."""
        config = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._server = urllib.parse.urlsplit(cluster["server"]).netloc
        self._context = ssl.create_default_context(cadata=authority)
        with tempfile.NamedTemporaryFile() as both:
            for part in ("client-certificate-data", "client-key-data"):
                both.write(base64.b64decode(user[part]))
            both.flush()
            self._context.load_cert_chain(both.name)
        self._connection = self._connect(LIMIT)

    def _connect(self, timeout: float | None) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._server, context=self._context, timeout=timeout)

    def ask(self, method: str, path: str, body: Object | None = None) -> Object:
        """Send a request and return the answer."""
        headers = {"Content-Type": "application/json"}
        self._connection.request(method, path, json.dumps(body) if body else None, headers)
        response = self._connection.getresponse()
        text = response.read()
        if response.status >= 300:
            raise SystemExit(f"{method} {path}: {text.decode()}")
        return json.loads(text)

    def watch(self, path: str) -> Watch:
        """Watch everything at a path."""
        connection = self._connect(None)
        connection.request("GET", f"{path}?watch=true")
        return Watch(connection.getresponse())


class Bench:
    """One namespace and what is measured in it."""

    def __init__(self, api: Api) -> None:
        """Watch the namespace."""
        self.api = api
        self.pods, self.clusters = api.watch(PODS), api.watch(GROUP)
        self.count = 0

    def name(self, prefix: str) -> str:
        """Make a name that was not used before."""
        self.count += 1
        return f"{prefix}{self.count}"

    def bare(self, image: str, node: str | None = None) -> float:
        """Time a pod from its creation until it runs."""
        name = self.name("bare")
        container = {"name": "bare", "image": image, "resources": {"limits": WORKER},
                     "command": ["python3", "-c", PAUSE]}  # fmt: skip
        spec = {"containers": [container], "nodeName": node}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        rest()
        start = time.perf_counter()
        self.api.ask("POST", PODS, pod)
        end = self.pods.first(
            f"{name} runs",
            lambda _, it: is_named(it, name) and it["status"]["phase"] == "Running",
        )
        self.api.ask("DELETE", f"{PODS}/{name}")
        self.pods.gone(f"{name} is gone", lambda it: is_named(it, name))
        return end - start

    def apply(self, name: str, least: int, resources: Object = WORKER) -> float:
        """Create a cluster, whose scheduler may use as much as each worker, and tell when."""
        workers = {"name": "w", "resources": resources, "min": least, "max": 2}
        spec = {"environment": {"python": "3.11"}, "scheduler": {"resources": resources},
                "workers": [workers]}  # fmt: skip
        rest()
        kind = {"apiVersion": "ebbtide.dev/v1alpha1", "kind": "Cluster"}
        start = time.perf_counter()
        self.api.ask("POST", GROUP, {**kind, "metadata": {"name": name}, "spec": spec})
        return start

    def ready(self, name: str) -> float:
        """Tell when a cluster said that its scheduler answers and its workers are registered."""
        return self.clusters.first(
            f"{name} is ready",
            lambda _, it: is_named(it, name) and it.get("status", {}).get("phase") == "Ready",
        )

    def child(self, cluster: str, role: str, is_it: Callable[[Object], bool]) -> float:
        """Tell when a cluster's pod of this role was first seen like this."""
        return self.pods.first(
            f"a {role} of {cluster}",
            lambda _, it: (
                is_child(it, cluster)
                and it["metadata"]["labels"]["ebbtide.dev/role"] == role
                and is_it(it)
            ),
        )

    def delete(self, name: str) -> float:
        """Time the deletion of a cluster by kubectl until its last pod is gone."""
        rest()
        start = time.perf_counter()
        kubectl = ["kubectl", "delete", "cluster.ebbtide.dev", name, "-n", NAMESPACE]
        with subprocess.Popen(kubectl, stdout=subprocess.DEVNULL):
            end = self.pods.gone(f"{name} is gone", lambda it: is_child(it, name))
        return end - start

    def from_zero(self) -> float:
        """Time from a call on a cluster without workers until the first worker's pod exists."""
        name = self.name("zero")
        self.apply(name, 0)
        self.ready(name)
        with eb.Cluster(name, namespace=NAMESPACE) as cluster:
            assert cluster.workers() == []
            rest()
            start = time.perf_counter()
            future = cluster.submit(int)
            end = self.child(name, "worker", lambda it: True)
            assert start < end and future.result(LIMIT) == 0
        self.delete(name)
        return end - start


def rest() -> None:
    """Let the kubelets look again, and begin at no particular moment between two looks."""
    time.sleep(1 + random.random())


def is_named(it: Object, name: str) -> bool:
    """Tell whether this is an object's name."""
    return bool(it["metadata"]["name"] == name)


def is_child(pod: Object, cluster: str) -> bool:
    """Tell whether a pod belongs to a cluster."""
    owners = pod["metadata"].get("ownerReferences", [])
    return any(owner["name"] == cluster for owner in owners)


@contextmanager
def bench() -> Iterator[Bench]:
    """Have a namespace meanwhile; nothing that was made in it stays."""
    api = Api()
    metadata = {"name": NAMESPACE}
    api.ask("POST", "/api/v1/namespaces", {"metadata": metadata})
    try:
        account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
        accounts = api.watch(account)
        accounts.first("the namespace's account", lambda _, it: is_named(it, "default"))
        yield Bench(api)
    finally:
        api = Api()
        api.ask("DELETE", GROUP)
        api.ask("DELETE", f"/api/v1/namespaces/{NAMESPACE}")


def operator_memory() -> tuple[float, float]:
    """Read how much memory the operator had at most, and how much it has that is no file's, in MB.

    Other clusters may be up on this machine: ours is the one in the control groups of our nodes.
    """
    folder, found = Path(os.environ["KUBECONFIG"]).parent, {}
    groups = [line for path in folder.glob("n*/cgroups") for line in path.read_text().split()]
    for path in (path for group in groups for path in Path(group).rglob("cgroup.procs")):
        for pid in path.read_text().split():
            try:
                program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            if program.rpartition(b"/")[2] == b"ebbtide-operator":
                lines = dict(line.split(":", 1) for line in status.splitlines())
                found[pid] = [int(lines[it].split()[0]) * 1024e-6 for it in ("VmHWM", "RssAnon")]
    if len(found) != 1:
        raise SystemExit(f"{len(found)} operators are on the dev cluster's nodes; expected one")
    ((most, own),) = found.values()
    return most, own


def tell(table: Table, metric: str, seconds: list[float], goal: float | None = None) -> None:
    """Enter the median of some runs, with its goal, and the slowest."""
    bound = None if goal is None else f"<= {goal:.3f}"
    table.add(metric, "s", statistics.median(seconds), goal=bound)
    table.add(f"{metric}, slowest of {len(seconds)}", "s", max(seconds))


def measure(bench: Bench, table: Table) -> None:
    """Measure everything."""
    # Every image on every node before the first run, and the operator's connections warm.
    bench.apply("first", 1)
    bench.ready("first")
    image = bench.api.ask("GET", f"{GROUP}/first")["status"]["image"]
    bench.delete("first")
    for node in bench.api.ask("GET", "/api/v1/nodes")["items"]:
        bench.bare(image, node["metadata"]["name"])
    bench.from_zero()

    bare, made, registered, going, growing = [], [], [], [], []
    for _ in range(RUNS):
        bare.append(bench.bare(image))
        name = bench.name("one")
        start = bench.apply(name, 1)
        registered.append(bench.ready(name) - start)
        made.append(bench.child(name, "worker", lambda it: True) - start)
        going.append(bench.delete(name))
        growing.append(bench.from_zero())
    tell(table, "a bare pod, applied to running", bare)
    tell(table, "cluster, applied to its worker's pod", made)
    limit = statistics.median(bare) + 0.5
    tell(table, "cluster, applied to its worker registered", registered, limit)
    tell(table, "work on no workers to the first pod", growing, 0.5)
    tell(table, "kubectl delete cluster to no pods", going, 2)

    names = [bench.name("many") for _ in range(CLUSTERS)]
    for name in names:
        bench.apply(name, 1, SMALL)
    for name in names:
        bench.ready(name)
    most, own = operator_memory()
    table.add(f"operator, {CLUSTERS} clusters", "MB", most, goal="<= 30")
    table.add(f"operator, {CLUSTERS} clusters, without files", "MB", own)
    for name in names:
        bench.delete(name)


def main() -> None:
    """Measure the spine on the Kubernetes of KUBECONFIG."""
    # Ended from outside, it cleans up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    table = Table("kubernetes spine", ROOT / "target" / "bench" / "kubernetes_spine.jsonl")
    table.add("load of this machine at the start", "1", os.getloadavg()[0])
    with bench() as made:
        measure(made, table)
    if not table.is_met():
        raise SystemExit("a goal was missed")


if __name__ == "__main__":
    main()
