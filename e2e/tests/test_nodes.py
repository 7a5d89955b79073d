"""Pods that are evicted and nodes that are lost: others come, and no bit is another."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ebbtide as eb
from conftest import KUBE, OPERATOR, alone, kubectl, mean, on_the_dev_cluster, run, up
from watch import told

NODE = "node2"
#: By which an administrator says that nothing runs there any more.
GONE = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"


def workers(namespace: str) -> list[dict]:
    """Read the pods of workers that stay."""
    return staying(json.loads(kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"])


def staying(pods: list[dict]) -> list[dict]:
    """Tell the workers among pods that are not about to go."""
    found = [it for it in pods if it["metadata"]["labels"].get("ebbtide.dev/role") == "worker"]
    return [it for it in found if "deletionTimestamp" not in it["metadata"]]


def uid(pod: dict) -> str:
    """Tell one pod from all others."""
    return pod["metadata"]["uid"]


def replaced(namespace: str, gone: list[dict]) -> list[dict]:
    """Wait until there are two workers again, without those that are gone, and both run."""

    def are_two(pods: list[dict]) -> bool:
        found = staying(pods)
        news = {uid(it) for it in found} - {uid(it) for it in gone}
        running = [it for it in found if it["status"]["phase"] == "Running"]
        return len(found) == len(news) == len(running) == 2

    with told(namespace, "pods") as pods:
        return staying(pods.wait(are_two, "two others"))


def evict(namespace: str, name: str) -> None:
    """Evict a pod, as a drain does."""
    asked = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
    kubectl("create", "--raw", path, "-f", "-", input=json.dumps(asked))


def bits_while(namespace: str, happens: Callable[[], None]) -> tuple[bytes, bytes]:
    """Compute while something happens. Give the bits, and what they should be."""
    large = mean((20_000, 4000))
    begun, over = threading.Event(), threading.Event()

    def once(done: int, tasks: int, workers: int) -> None:
        if not begun.is_set() and done > 0:
            begun.set()
            assert done < tasks
            happens()
            over.set()

    with eb.Cluster("mean", namespace=namespace) as cluster:
        bits = cluster._compute([large._expression], once)[0]
    assert over.is_set()
    return bits, large.compute().tobytes()


def two(spec: dict) -> None:
    """Have two workers."""
    spec["workers"][0].update(min=2, max=2)


def test_a_worker_that_is_evicted_in_the_middle_is_replaced_and_no_bit_is_another(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with up(manifest(two), namespace):
        *_, last = workers(namespace)
        name = last["metadata"]["name"]
        bits, expected = bits_while(namespace, lambda: evict(namespace, name))
        assert bits == expected
        replaced(namespace, [last])
        ready = "--for=jsonpath={.status.workers.ready}=2"
        kubectl("wait", "ebb/mean", "-n", namespace, ready, "--timeout=60s")


@contextmanager
def lost() -> Iterator[None]:
    """Have a node that ended meanwhile, with all that ran there, and is given up."""
    run(f"{KUBE}/cluster.sh", "kill-node", NODE[-1])
    try:
        kubectl("wait", f"node/{NODE}", "--for=condition=Ready=Unknown", "--timeout=90s")
        kubectl("taint", "node", NODE, GONE)
        yield
    finally:
        run(f"{KUBE}/cluster.sh", "boot-node", NODE[-1])
        kubectl("wait", f"node/{NODE}", "--for=condition=Ready", "--timeout=90s")
        kubectl("taint", "node", NODE, f"{GONE}-", check=False)
        kubectl("rollout", "status", *OPERATOR, "--timeout=60s")


@alone
@on_the_dev_cluster
def test_a_node_that_is_lost_takes_its_workers_and_others_come_elsewhere(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def apart(spec: dict) -> None:
        two(spec)
        spec["scheduler"]["pod"] = {"nodeSelector": {"kubernetes.io/hostname": "node1"}}
        at = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
        wish = {"weight": 100, "preference": {"matchExpressions": [at]}}
        near = {"preferredDuringSchedulingIgnoredDuringExecution": [wish]}
        spec["workers"][0]["pod"] = {"affinity": {"nodeAffinity": near}}

    with up(manifest(apart), namespace):
        before = workers(namespace)
        assert [it["spec"]["nodeName"] for it in before] == [NODE, NODE]
        with lost():
            after = replaced(namespace, before)
            assert [it["spec"]["nodeName"] for it in after] == ["node1", "node1"]
            small = mean((4000, 1000))
            with eb.Cluster("mean", namespace=namespace):
                bits = small.compute()
            assert bits == small.compute()
