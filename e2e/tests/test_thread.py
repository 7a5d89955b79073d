"""One manifest becomes one number, on a real Kubernetes, and everything goes away again."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ebbtide as eb
import ebbtide.array as xp
import pytest
from conftest import kubectl, objects, run
from ebbtide import _native

SCRIPT = """
import ebbtide as eb, ebbtide.array as xp
x = xp.random.default_rng(7).normal(size=(4000, 4000), chunks=(500, 4000))
with eb.Cluster():
    print(x.mean().compute().hex())
"""


@contextmanager
def up(manifest: Path, namespace: str, name: str = "mean") -> Iterator[None]:
    """Keep a cluster up meanwhile."""
    run("ebbtide", "up", str(manifest), "-n", namespace)
    try:
        yield
    finally:
        run("ebbtide", "down", name, "-n", namespace)


def endpoint(namespace: str, name: str = "mean") -> dict:
    """Read a cluster's endpoint without keeping the way open."""
    printed = run("ebbtide", "endpoint", name, "-n", namespace, input="")
    return json.loads(printed.splitlines()[0])


def mean(shape: tuple[int, int] = (4000, 4000)) -> xp.Array:
    """Average normal numbers."""
    return xp.random.default_rng(7).normal(size=shape, chunks=(500, shape[1])).mean()


def test_a_manifest_becomes_a_number_and_nothing_is_left(
    namespace: str, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    before = objects(namespace)
    printed = run("ebbtide", "up", str(manifest()), "-n", namespace, "--run", str(script))
    assert printed.split()[-1] == mean().compute().hex()
    assert objects(namespace) == before


def test_workers_rise_from_zero_with_the_queue(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def from_zero(spec: dict) -> None:
        spec["workers"][0].update(min=0, max=2)
        spec["scaling"] = {"targetSeconds": 1}

    with up(manifest(from_zero), namespace):
        assert kubectl("get", "pods", "-n", namespace, "-o", "name").count("general") == 0
        with eb.Cluster("mean", namespace=namespace):
            assert mean().compute() > -1
        assert kubectl("get", "pods", "-n", namespace, "-o", "name").count("general") > 0


def test_a_worker_that_is_killed_in_the_middle_changes_no_bit(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def two(spec: dict) -> None:
        spec["workers"][0].update(min=2, max=2)

    large = mean((40_000, 4000))
    with up(manifest(two), namespace), eb.Cluster("mean", namespace=namespace) as cluster:
        pods = kubectl(
            "get", "pods", "-n", namespace, "-l", "ebbtide.dev/role=worker", "-o", "name"
        )
        victim, killed = pods.split()[0], threading.Event()

        def kill_once(done: int, tasks: int, workers: int) -> None:
            if not killed.is_set() and done > 0:
                killed.set()
                kubectl("delete", victim, "-n", namespace, "--grace-period=0", "--force")

        bits = cluster._compute([large._expression], kill_once)[0]
    assert killed.is_set()
    assert bits == large.compute().tobytes()


def test_a_job_does_not_notice_that_the_operator_is_killed(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with up(manifest(), namespace), eb.Cluster("mean", namespace=namespace):
        kubectl(
            "delete",
            "pod",
            "-n",
            "ebbtide",
            "-l",
            "app.kubernetes.io/name=ebbtide-operator",
            "--grace-period=0",
            "--force",
        )
        assert mean().compute() > -1
        kubectl("rollout", "status", "deploy/ebbtide-operator", "-n", "ebbtide", "--timeout=60s")
        kubectl("wait", "ebb/mean", "-n", namespace, "--for=condition=Ready", "--timeout=60s")


def test_clients_that_may_not_are_refused(namespace: str, manifest: Callable[..., Path]) -> None:
    with up(manifest(), namespace), up(manifest(name="other"), namespace, "other"):
        way = subprocess.Popen(
            ["ebbtide", "endpoint", "mean", "-n", namespace],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert way.stdout is not None and way.stdin is not None
        mine, other = json.loads(way.stdout.readline()), endpoint(namespace, "other")
        _native.Client.connect(json.dumps(mine))
        for wrong, words in [
            (mine | {"token": other["token"]}, "the token is not this cluster's"),
            (mine | {"token": ""}, "the token is not this cluster's"),
            (mine | {key: other[key] for key in ("certificate", "key")}, "cannot be reached"),
        ]:
            with pytest.raises(eb.ConnectionLost, match=words):
                _native.Client.connect(json.dumps(wrong))
        way.stdin.close()
        way.wait(timeout=10)


def test_the_port_is_closed_to_foreign_namespaces(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with up(manifest(), namespace):
        ip = kubectl(
            "get",
            "pod",
            "-n",
            namespace,
            "-l",
            "ebbtide.dev/role=scheduler",
            "-o",
            "jsonpath={.items[0].status.podIP}",
        )
        kubectl(
            "run",
            "near",
            "-n",
            namespace,
            "--image=registry.e2e:5000/busybox:1",
            "--restart=Never",
            "--overrides",
            overrides("near"),
            "--command",
            "--",
            "sleep",
            "600",
        )
        kubectl(
            "run",
            "far",
            "-n",
            "default",
            "--image=registry.e2e:5000/busybox:1",
            "--restart=Never",
            "--overrides",
            overrides("far"),
            "--command",
            "--",
            "sleep",
            "600",
        )
        try:
            for pod, where in [("near", namespace), ("far", "default")]:
                kubectl("wait", f"pod/{pod}", "-n", where, "--for=condition=Ready", "--timeout=60s")
            knock = ["sh", "-c", f"nc -w 3 {ip} 8786 </dev/null"]
            kubectl("exec", "near", "-n", namespace, "--", *knock)
            with pytest.raises(AssertionError):
                kubectl("exec", "far", "-n", "default", "--", *knock)
        finally:
            kubectl("delete", "pod", "far", "-n", "default", "--grace-period=0", "--force")


def overrides(name: str) -> str:
    """Make a pod that Pod Security `restricted` admits."""
    context = {"runAsNonRoot": True, "runAsUser": 1000,
               "seccompProfile": {"type": "RuntimeDefault"}}  # fmt: skip
    container = {"name": name, "image": "registry.e2e:5000/busybox:1",
                 "command": ["sleep", "600"],
                 "securityContext": {"allowPrivilegeEscalation": False,
                                     "capabilities": {"drop": ["ALL"]}}}  # fmt: skip
    return json.dumps({"spec": {"securityContext": context, "containers": [container]}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda spec: spec["workers"][0].update(min=5, max=2), "min must not be greater than max"),
        (lambda spec: spec.update(image="a"), "give either image or environment"),
        (lambda spec: spec.pop("environment"), "give either image or environment"),
        (lambda spec: spec.update(wokers=1), 'unknown field "spec.wokers"'),
        (
            lambda spec: spec["workers"].append({**spec["workers"][0], "name": "b"}),
            "at most 1 item",
        ),
        (lambda spec: spec["workers"][0]["resources"].update(memory="lots"), "memory"),
        (lambda spec: spec.update(lifetime={"idle": {"after": "soon"}}), "after"),
    ],
)
def test_the_api_server_refuses_mistakes_in_words(
    namespace: str, manifest: Callable[..., Path], change: Callable[[dict], None], words: str
) -> None:
    refused = kubectl("apply", "-n", namespace, "-f", str(manifest(change)), check=False)
    assert words in refused
    assert kubectl("get", "ebb", "-n", namespace, "-o", "name") == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda spec: spec["environment"].update(packages=["zarr"]), "with the key"),
        (lambda spec: spec["environment"].update(packages=["numpy=>1"]), '"numpy=>1"'),
    ],
)
def test_a_package_list_that_cannot_run_creates_nothing(
    namespace: str, manifest: Callable[..., Path], change: Callable[[dict], None], words: str
) -> None:
    before = objects(namespace)
    kubectl("apply", "-n", namespace, "-f", str(manifest(change)))
    kubectl(
        "wait",
        "ebb/mean",
        "-n",
        namespace,
        "--for=jsonpath={.status.phase}=Degraded",
        "--timeout=30s",
    )
    assert words in kubectl("get", "ebb/mean", "-n", namespace, "-o", "jsonpath={.status.message}")
    kubectl("delete", "ebb/mean", "-n", namespace)
    assert objects(namespace) == before


def test_an_image_that_does_not_exist_is_told_in_the_registrys_words(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def missing(spec: dict) -> None:
        del spec["environment"]
        spec["image"] = "registry.e2e:5000/nothing:1"

    kubectl("apply", "-n", namespace, "-f", str(manifest(missing)))
    kubectl(
        "wait",
        "ebb/mean",
        "-n",
        namespace,
        "--for=jsonpath={.status.phase}=Degraded",
        "--timeout=60s",
    )
    message = kubectl("get", "ebb/mean", "-n", namespace, "-o", "jsonpath={.status.message}")
    assert "registry.e2e:5000/nothing:1" in message
