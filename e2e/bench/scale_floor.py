"""Bare pods where kwok plays the nodes, in numbers: what no operator can be faster than.

Run it with `e2e/scale-cluster net python3 e2e/bench/scale_floor.py [PODS..]`, 400 and then 4,000 if
not said. It is the only client; on few cores, the seconds are those of programs that compete, and
the CPU seconds of each tell more.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from table import Table

ROOT = Path(__file__).resolve().parents[2]
STATE = Path(os.environ["KUBECONFIG"]).parent
LIMIT = 1800
AT_ONCE = 32
# A server may end connections that nobody uses.
IDLE_MAX = 10
PROGRAMS = ("kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler", "kwok")
Object = dict[str, Any]


class Api:
    """The API server, asked as admin; each thread has a connection of its own."""

    def __init__(self) -> None:
        """Take the credentials that are in the state folder."""
        pki = STATE / "pki"
        self._context = ssl.create_default_context(cafile=pki / "ca.crt")
        self._context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self._own = threading.local()

    def connect(self, timeout: float) -> http.client.HTTPSConnection:
        """Make a connection."""
        return http.client.HTTPSConnection(
            "127.0.0.1", 6443, context=self._context, timeout=timeout
        )

    def ask(self, method: str, path: str, body: Object | None = None) -> Object:
        """Send a request and return the answer."""
        now = time.monotonic()
        if now - getattr(self._own, "used", 0) > IDLE_MAX:
            self._own.connection = self.connect(LIMIT)
        self._own.used = now
        headers = {"Content-Type": "application/json"}
        self._own.connection.request(method, path, json.dumps(body) if body else None, headers)
        response = self._own.connection.getresponse()
        text = response.read()
        if response.status >= 300:
            raise SystemExit(f"{method} {path}: {text.decode()}")
        return json.loads(text)


class Seen:
    """What there is and how much of it is as it should be, as a watch tells."""

    def __init__(
        self, api: Api, path: str, is_well: Callable[[Object], bool], query: str = ""
    ) -> None:
        """Listen from now on."""
        self._api, self._path, self._is_well, self._query = api, path, is_well, query
        self._well: dict[tuple[str, str], bool] = {}
        self._news = threading.Condition()
        self._is_over = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while not self._is_over:  # a server ends watches of who listens too slowly
            there = self._api.ask("GET", f"{self._path}?{self._query}")
            with self._news:
                self._well = {name(it): self._is_well(it) for it in there["items"]}
                self._news.notify_all()
            connection = self._api.connect(LIMIT)
            since = there["metadata"]["resourceVersion"]
            query = f"{self._query}&watch=true&resourceVersion={since}"
            connection.request("GET", f"{self._path}?{query}")
            for line in connection.getresponse():
                event = json.loads(line)
                if event["type"] == "ERROR" or self._is_over:
                    break
                self._take(event["type"], event["object"])
            connection.close()

    def end(self) -> None:
        """Listen no longer than to the next event."""
        self._is_over = True

    def _take(self, kind: str, it: Object) -> None:
        with self._news:
            if kind == "DELETED":
                self._well.pop(name(it), None)
            else:
                self._well[name(it)] = self._is_well(it)
            self._news.notify_all()

    def wait(self, what: str, is_it: Callable[[int, int], bool]) -> float:
        """Wait until it is so with how many there are and how many are well; tell when."""
        with self._news:
            if not self._news.wait_for(
                lambda: is_it(len(self._well), sum(self._well.values())), LIMIT
            ):
                there, well = len(self._well), sum(self._well.values())
                raise SystemExit(f"{what}: not within {LIMIT} s; {there} there, {well} well")
            return time.perf_counter()


def name(it: Object) -> tuple[str, str]:
    """Tell an object from others of its kind."""
    return it["metadata"]["namespace"], it["metadata"]["name"]


def is_ready(pod: Object) -> bool:
    """Tell whether a pod has an address and is ready."""
    status = pod["status"]
    conditions = {it["type"]: it["status"] for it in status.get("conditions", [])}
    return "podIP" in status and conditions.get("Ready") == "True"


def cpu() -> Counter[str]:
    """Read how many CPU seconds each program of the control plane has had, and this one."""
    seconds: Counter[str] = Counter({"bench": time.process_time()})
    for group in (STATE / "n1" / "cgroups").read_text().split():
        for path in Path(group).rglob("cgroup.procs"):
            for pid in path.read_text().split():
                try:
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
                    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                name = next((it for it in PROGRAMS if Path(command).name.startswith(it)), None)
                if name:
                    ticks = int(stat[11]) + int(stat[12])
                    seconds[name] = max(seconds[name], ticks / os.sysconf("SC_CLK_TCK"))
    return seconds


@contextmanager
def namespace(api: Api) -> Iterator[str]:
    """Have a namespace meanwhile, in which pods can be made."""
    place = f"floor-{uuid.uuid4().hex[:8]}"
    api.ask("POST", "/api/v1/namespaces", {"metadata": {"name": place}})
    try:
        accounts = f"/api/v1/namespaces/{place}/serviceaccounts"
        while not api.ask("GET", accounts)["items"]:
            time.sleep(0.1)
        yield place
    finally:
        api.ask("DELETE", f"/api/v1/namespaces/{place}")


#: A pod that asks for as much as those of clusters do, and for nothing else.
BARE: Object = {
    "metadata": {},
    "spec": {
        "containers": [
            {
                "name": "bare",
                "image": "none",
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
            }
        ],
        "terminationGracePeriodSeconds": 5,
    },
}


def bare(
    api: Api, count: int, table: Table | None = None, like: Object = BARE
) -> tuple[float, float]:
    """Make so many pods, wait for them, delete them. Tell when all were there, and when ready."""
    with namespace(api) as place:
        path = f"/api/v1/namespaces/{place}/pods"
        pods = Seen(api, path, is_ready)

        def create(number: int) -> None:
            metadata = {**like["metadata"], "name": f"bare-{number}"}
            api.ask("POST", path, {"metadata": metadata, "spec": like["spec"]})

        before, start = cpu(), time.perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(create, range(count)))
        created = time.perf_counter() - start
        ready = pods.wait("all pods are ready", lambda _, well: well == count) - start
        then, start = cpu(), time.perf_counter()
        api.ask("DELETE", path)
        gone = pods.wait("all pods are gone", lambda there, _: there == 0) - start
        pods.end()
        if table:
            table.add(f"{count} pods created", "s", created)
            table.add(f"{count} pods ready", "s", ready)
            for program, seconds in sorted((then - before).items()):
                table.add(f"{count} pods ready, {program}", "CPU s", seconds)
            table.add(f"{count} pods gone", "s", gone)
            for program, seconds in sorted((cpu() - then).items()):
                table.add(f"{count} pods gone, {program}", "CPU s", seconds)
        return created, ready


def main() -> None:
    """Measure each of the sizes that were asked for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    api = Api()
    table = Table("scale floor", ROOT / "target" / "bench" / "scale_floor.jsonl")
    table.add("load of this machine at the start", "1", os.getloadavg()[0])
    for count in [int(it) for it in sys.argv[1:]] or [400, 4000]:
        bare(api, count, table)


if __name__ == "__main__":
    main()
