"""What happens to the dev cluster itself while a job runs: the job ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import ebbtide as eb
from conftest import (
    KUBE,
    OPERATOR,
    alone,
    kubectl,
    mean,
    objects,
    on_the_dev_cluster,
    resize,
    run,
    settled,
    up,
)
from watch import owner, short, told

pytestmark = alone


@on_the_dev_cluster
def test_the_way_through_the_api_server_is_cut_in_the_middle(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    large, before = mean((20_000, 4000)), objects(namespace)
    with up(manifest(), namespace):
        with eb.Cluster("mean", namespace=namespace) as cluster:
            cut = threading.Event()

            def cut_once(done: int, tasks: int, workers: int) -> None:
                if not cut.is_set() and done > 0:
                    cut.set()
                    assert done < tasks
                    run(f"{KUBE}/cluster.sh", "stop", "1", "kube-apiserver", "KILL")
                    run(f"{KUBE}/cluster.sh", "start", "1", "kube-apiserver")

            bits = cluster._compute([large._expression], cut_once)[0]
        assert cut.is_set()
        assert bits == large.compute().tobytes()
    assert settled(namespace, before) == before


@contextmanager
def two_operators() -> Iterator[None]:
    """Have two operators meanwhile."""
    kubectl("scale", *OPERATOR, "--replicas=2")
    try:
        kubectl("rollout", "status", *OPERATOR, "--timeout=60s")
        yield
    finally:
        kubectl("scale", *OPERATOR, "--replicas=1")
        kubectl("rollout", "status", *OPERATOR, "--timeout=60s")


def lease(field: str) -> str:
    """Read a field of the lease by which operators agree on which of them works."""
    path = f"jsonpath={{.spec.{field}}}"
    return kubectl("get", "lease", "ebbtide-operator", "-n", "ebbtide", "-o", path)


def test_a_minute_of_coming_scaling_and_going_under_operators_that_take_turns_makes_no_wrong_pod(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def apply(name: str, workers: int) -> None:
        def exactly(spec: dict) -> None:
            spec["workers"][0].update(min=workers, max=workers)
            spec["workers"][0]["resources"] = {"cpu": "100m", "memory": "256Mi"}

        kubectl("apply", "-n", namespace, "-f", str(manifest(exactly, name)))

    def are(name: str, workers: int) -> Callable[[list[dict]], bool]:
        wanted = [f"{name} general-{nth}" for nth in range(workers)] + [f"{name} scheduler"]

        def look(pods: list[dict]) -> bool:
            mine = [pod for pod in pods if short(pod).startswith(name)]
            running = all(pod["status"]["phase"] == "Running" for pod in mine)
            return running and sorted(map(short, mine)) == wanted

        return look

    def none(name: str) -> Callable[[list[dict]], bool]:
        return lambda pods: not any(short(pod).startswith(name) for pod in pods)

    small = mean((1000, 1000))
    bits = small.compute()
    with (
        two_operators(),
        told(namespace, "pods") as pods,
        told(namespace, "clusters") as clusters,
    ):
        apply("steady", 2)
        pods.wait(are("steady", 2), "steady")
        turns = int(lease("leaseTransitions"))
        end, rounds = time.monotonic() + 60, 0
        while time.monotonic() < end or rounds < 4:
            rounds += 1
            # Gone while it is still coming, then again under the same name.
            apply("brief", 1)
            kubectl("delete", "pod", lease("holderIdentity"), "-n", "ebbtide", "--wait=false")
            pods.wait(lambda them: any(short(it) == "brief scheduler" for it in them), "brief")
            kubectl("delete", "ebb", "brief", "-n", namespace, "--wait=false")
            apply("brief", 2)
            swings = 1 + rounds % 3
            apply("swings", swings)
            pods.wait(are("swings", swings), f"swings in round {rounds}")
            pods.wait(are("brief", 2), f"brief in round {rounds}")
            with eb.Cluster("steady", namespace=namespace):
                assert small.compute() == bits
            cascade = ["background", "foreground"][rounds % 2]
            kubectl("delete", "ebb", "brief", "-n", namespace, f"--cascade={cascade}")
            pods.wait(none("brief"), f"brief in round {rounds} is gone")
        kubectl("delete", "ebb", "swings", "-n", namespace)
        pods.wait(none("swings"), "swings is gone")
        assert are("steady", 2)(list(pods.live.values())) and len(pods.live) == 3

        # None is foreign: each belongs to one of the clusters that were applied.
        names = {it["metadata"]["uid"]: it["metadata"]["name"] for it in clusters.made}
        assert all(short(pod).split()[0] == names[owner(pod)] for pod in pods.made)
        # None is an orphan: none was made after its cluster was gone.
        for pod in pods.made:
            gone = clusters.gone.get(owner(pod))
            assert gone is None or int(pod["metadata"]["resourceVersion"]) < gone, short(pod)
        # None is made twice: one for each time that the spec began to ask for it.
        made = sorted(short(pod) for pod in pods.made if not short(pod).startswith("brief"))
        asked = ["steady general-0", "steady general-1", "steady scheduler", "swings scheduler"]
        before = 0
        for swings in (1 + nth % 3 for nth in range(1, rounds + 1)):
            asked += [f"swings general-{nth}" for nth in range(before, swings)]
            before = swings
        assert made == sorted(asked)
        brief = [(owner(pod), short(pod)) for pod in pods.made if short(pod).startswith("brief")]
        assert len(set(brief)) == len(brief)
        # The lease went on each time.
        assert int(lease("leaseTransitions")) >= turns + rounds
        kubectl("delete", "ebb", "steady", "-n", namespace)
        pods.wait(lambda them: not them, "everything is gone")


def processes_of(pod: str) -> list[int]:
    """Find the processes of a pod of the operator on this machine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"EBBTIDE_POD_NAME={pod}".encode() in environment:
            found.append(int(process.name))
    return found


@on_the_dev_cluster
def test_when_an_operator_stands_still_the_other_takes_over_and_the_first_comes_too_late(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with two_operators():
        first = lease("holderIdentity")
        still = processes_of(first)
        assert still
        for process in still:
            os.kill(process, signal.SIGSTOP)
        try:
            with up(manifest(), namespace):
                assert lease("holderIdentity") != first
                for process in still:
                    os.kill(process, signal.SIGCONT)
                # It sees that it has lost the lease, ends, and starts again as the one that waits.
                path = "{.status.containerStatuses[0].restartCount}=1"
                pod = (f"pod/{first}", "-n", "ebbtide")
                kubectl("wait", *pod, f"--for=jsonpath={path}", "--timeout=60s")
                assert lease("holderIdentity") != first
                with eb.Cluster("mean", namespace=namespace):
                    assert mean((1000, 1000)).compute() == mean((1000, 1000)).compute()
        finally:
            for process in processes_of(first):
                os.kill(process, signal.SIGCONT)


def test_an_operator_that_is_killed_in_the_middle_of_a_job_finds_everything_as_it_left_it(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def uids() -> dict[str, str]:
        found = json.loads(kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
        return {short(pod): pod["metadata"]["uid"] for pod in found}

    large = mean((20_000, 4000))
    with up(manifest(), namespace):
        before, killed = uids(), threading.Event()

        def kill_once(done: int, tasks: int, workers: int) -> None:
            if not killed.is_set() and done > 0:
                killed.set()
                kubectl("delete", "pod", "-n", "ebbtide", "--grace-period=0", "--force",
                        "-l", "app.kubernetes.io/name=ebbtide-operator")  # fmt: skip
                assert done < tasks

        with eb.Cluster("mean", namespace=namespace) as cluster:
            bits = cluster._compute([large._expression], kill_once)[0]
        assert killed.is_set()
        assert bits == large.compute().tobytes()
        kubectl("rollout", "status", *OPERATOR, "--timeout=60s")
        kubectl("wait", "ebb/mean", "-n", namespace, "--for=condition=Ready", "--timeout=60s")
        assert uids() == before

        # The next one carries on: it hears of the workers, and makes and takes away pods.
        resize(namespace, 2)
        assert uids().keys() == before.keys() | {"mean general-1"}
        second = kubectl("get", "pods", "-n", namespace, "-l", "ebbtide.dev/index=1", "-o", "name")
        resize(namespace, 1)
        kubectl("wait", "--for=delete", second.strip(), "-n", namespace, "--timeout=60s")
        assert uids() == before


def test_the_way_to_a_scheduler_outlives_hundreds_of_connections_that_broke(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with up(manifest(), namespace), eb.Cluster("mean", namespace=namespace) as cluster:
        path = f"{tempfile.gettempdir()}/ebbtide-{cluster._way.pid}/scheduler"

        def broken(_: int) -> None:
            with socket.socket(socket.AF_UNIX) as stream:
                stream.settimeout(5)
                try:
                    stream.connect(path)
                    stream.sendall(b"no TLS")
                    while stream.recv(64):
                        pass
                except OSError:
                    pass

        with ThreadPoolExecutor(40) as threads:
            list(threads.map(broken, range(480)))
        try:
            assert cluster.submit(len, "abc").result(20) == 3
        finally:
            cluster._way.kill()
