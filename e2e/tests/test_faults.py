"""What happens to the dev cluster itself while a job runs: the job ends with the same bits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import ebbtide as eb
import ebbtide.array as xp
from conftest import kubectl, run
from test_thread import up

CLUSTER = str(Path(__file__).parents[1] / "kube" / "cluster.sh")


def test_the_way_through_the_api_server_is_cut_in_the_middle(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    large = xp.random.default_rng(7).normal(size=(20_000, 4000), chunks=(500, 4000)).mean()
    with up(manifest(), namespace):
        with eb.Cluster("mean", namespace=namespace) as cluster:
            cut = threading.Event()

            def cut_once(done: int, tasks: int, workers: int) -> None:
                if not cut.is_set() and done > 0:
                    cut.set()
                    run(CLUSTER, "stop", "1", "kube-apiserver", "KILL")
                    run(CLUSTER, "start", "1", "kube-apiserver")

            bits = cluster._compute([large._expression], cut_once)[0]
        assert cut.is_set()
        assert bits == large.compute().tobytes()


def test_two_operators_at_once_make_no_wrong_pod(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def two(spec: dict) -> None:
        spec["workers"][0].update(min=2, max=2)

    def pods() -> list[str]:
        names = kubectl("get", "pods", "-n", namespace, "-o", "jsonpath={.items[*].metadata.name}")
        return sorted(name.split("-", 2)[2] for name in names.split())

    operators = ["deploy/ebbtide-operator", "-n", "ebbtide"]
    kubectl("scale", *operators, "--replicas=2")
    kubectl("rollout", "status", *operators, "--timeout=60s")
    try:
        with up(manifest(two), namespace), eb.Cluster("mean", namespace=namespace):
            first = pods()
            uids = kubectl(
                "get", "pods", "-n", namespace, "-o", "jsonpath={.items[*].metadata.uid}"
            )
            x = xp.random.default_rng(7).normal(size=(4000, 4000), chunks=(500, 4000))
            for _ in range(10):
                x.mean().compute()
                assert pods() == first == ["general-0", "general-1", "scheduler"]
            again = ["get", "pods", "-n", namespace, "-o", "jsonpath={.items[*].metadata.uid}"]
            assert kubectl(*again) == uids
    finally:
        kubectl("scale", *operators, "--replicas=1")
        kubectl("rollout", "status", *operators, "--timeout=60s")
