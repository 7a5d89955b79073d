"""One manifest becomes one number, on a real Kubernetes, and everything goes away again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import ebbtide as eb
import pytest
from conftest import kubectl, mean, objects, run, settled, up
from watch import short, told

SCRIPT = """
import ebbtide as eb, ebbtide.array as xp
x = xp.random.default_rng(7).normal(size=(4000, 4000), chunks=(500, 4000))
with eb.Cluster():
    print(x.mean().compute().hex())
"""


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

    expected = mean().compute()
    with up(manifest(from_zero), namespace):
        assert kubectl("get", "pods", "-n", namespace, "-o", "name").count("general") == 0
        with eb.Cluster("mean", namespace=namespace):
            assert mean().compute() == expected
        assert kubectl("get", "pods", "-n", namespace, "-o", "name").count("general") > 0


def test_the_ebb_takes_the_workers_when_the_work_is_done_and_then_the_cluster(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def ebbs(spec: dict) -> None:
        spec["workers"][0].update(min=0, max=2)
        spec["scaling"] = {"targetSeconds": 1, "down": {"window": "1s"}}
        # Longer than a pod may take to end.
        spec["lifetime"] = {"idle": {"after": "20s"}}

    expected, before = mean().compute(), objects(namespace)
    with told(namespace, "pods") as pods, told(namespace, "clusters") as clusters:
        run("ebbtide", "up", str(manifest(ebbs)), "-n", namespace)
        with eb.Cluster("mean", namespace=namespace):
            assert mean().compute() == expected
        clusters.wait(lambda them: not them, "the cluster is gone")
        pods.wait(lambda them: not them, "its pods are gone")
        (cluster,) = clusters.gone.values()
        workers = {it["metadata"]["uid"] for it in pods.made if "general" in short(it)}
        assert workers and all(pods.gone[worker] < cluster for worker in workers)
    reasons = kubectl("get", "events", "-n", namespace, "-o", "jsonpath={.items[*].reason}")
    assert {"Retiring", "DeletedCluster"} <= set(reasons.split())
    assert settled(namespace, before) == before


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda spec: spec["workers"][0].update(min=5, max=2), "min must not be greater than max"),
        (lambda spec: spec.update(image="a"), "give either image or environment"),
        (lambda spec: spec.pop("environment"), "give either image or environment"),
        (lambda spec: spec.update(wokers=1), 'unknown field "spec.wokers"'),
        (
            lambda spec: spec["workers"].extend(
                {**spec["workers"][0], "name": f"w{nth}"} for nth in range(16)
            ),
            "at most 16 items",
        ),
        (lambda spec: spec["workers"].append(spec["workers"][0]), "Duplicate value"),
        (lambda spec: spec["workers"][0]["resources"].update(memory="lots"), "memory"),
        (lambda spec: spec["workers"][0]["resources"].update(memory="0Gi"), "memory"),
        (lambda spec: spec["workers"][0]["resources"].update(cpu=-1), "cpu"),
        (lambda spec: spec.update(lifetime={"idle": {"after": "soon"}}), "after"),
    ],
)
def test_the_api_server_refuses_mistakes_in_words(
    namespace: str, manifest: Callable[..., Path], change: Callable[[dict], None], words: str
) -> None:
    refused = kubectl("apply", "-n", namespace, "-f", str(manifest(change)), check=False)
    assert words in refused
    assert kubectl("get", "ebb", "-n", namespace, "-o", "name") == ""


def test_what_runs_in_a_cluster_cannot_change_while_it_lives(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with up(manifest(), namespace):
        begun = ("get", "ebb", "mean", "-n", namespace, "-o", "jsonpath={.status.startedAt}")
        assert kubectl(*begun)
        for change, words in [
            (lambda spec: spec["environment"].update(packages=["a"]), "environment cannot change"),
            (lambda spec: spec.update(environment=None, image="a"), "image cannot change"),
        ]:
            refused = kubectl("apply", "-n", namespace, "-f", str(manifest(change)), check=False)
            assert words in refused and "delete the cluster and create it again" in refused
        # What may change does.
        wider = manifest(lambda spec: spec["workers"][0].update(max=7))
        kubectl("apply", "-n", namespace, "-f", str(wider))


def test_a_wrong_package_and_a_wrong_image_are_corrected_where_they_are(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def apply(change: Callable[[dict], None]) -> None:
        kubectl("apply", "-n", namespace, "-f", str(manifest(change)))

    def ready_because(reason: str) -> Callable[[list[dict]], bool]:
        def is_so(clusters: list[dict]) -> bool:
            conditions = [
                it for all in clusters for it in all.get("status", {}).get("conditions", [])
            ]
            return any(it["type"] == "Ready" and it["reason"] == reason for it in conditions)

        return is_so

    with told(namespace, "clusters") as clusters:
        apply(lambda spec: spec["environment"].update(packages=["nunpy"]))
        clusters.wait(ready_because("EnvironmentNotPacked"), "the list is not packed")
        nowhere = f"registry.invalid/nowhere@sha256:{'0' * 64}"
        apply(lambda spec: spec.update(environment=None, image=nowhere))
        clusters.wait(ready_because("Image"), "the image is nowhere")
        changes = run("ebbtide", "diff", str(manifest()), "-n", namespace)
        assert "holds, as the scheduler has not answered yet" in changes
        apply(lambda spec: None)
        clusters.wait(ready_because("SchedulerAnswers"), "it is corrected")
        assert len(clusters.made) == 1
    story = run("ebbtide", "describe", "mean", "-n", namespace)
    assert "the image changed before anything ran" in story
    with eb.Cluster("mean", namespace=namespace) as cluster:
        assert cluster.submit(int).result(60) == 0
    run("ebbtide", "down", "mean", "-n", namespace)


def test_what_was_mended_before_up_is_asked_again_has_a_moment_to_show(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def lent(spec: dict) -> None:
        spec["workers"][0].update(min=1, pod={"envFrom": [{"secretRef": {"name": "vendor"}}]})

    asks = ["ebbtide", "up", str(manifest(lent)), "-n", namespace]
    refused = run(*asks, check=False)
    assert 'secret "vendor" not found' in refused and "stays, and begins when that" in refused
    kubectl("create", "secret", "generic", "vendor", "--from-literal=A=b", "-n", namespace)
    assert run(*asks).endswith("mean is ready\n")
    run("ebbtide", "down", "mean", "-n", namespace)


def test_a_cluster_that_is_deleted_ends_what_waits_for_it(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    run("ebbtide", "up", str(manifest()), "-n", namespace)
    with eb.Cluster("mean", namespace=namespace) as cluster:
        assert cluster.submit(int).result(60) == 0
        endless = cluster.submit(eval, "__import__('signal').pause()")
        kubectl("delete", "ebb/mean", "-n", namespace, "--cascade=foreground")
        with pytest.raises(eb.ConnectionLost, match="cluster mean is gone: it was deleted"):
            # Nobody waits for credentials that do not come back.
            endless.result(15)
        with pytest.raises(eb.ConnectionLost, match="cluster mean is gone: it was deleted"):
            cluster.submit(int)


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

    def waits(reason: str) -> Callable[[list[dict]], bool]:
        def look(pods: list[dict]) -> bool:
            return any(
                container["state"].get("waiting", {}).get("reason") == reason
                for pod in pods
                if short(pod) == "mean scheduler"
                for container in pod["status"].get("containerStatuses", [])
            )

        return look

    with told(namespace, "pods") as pods:
        kubectl("apply", "-n", namespace, "-f", str(manifest(missing)))
        # Twice: the kubelet backs off and asks again, and nobody makes another pod meanwhile.
        for _ in range(2):
            pods.wait(waits("ErrImagePull"), "the image is asked for")
            pods.wait(waits("ImagePullBackOff"), "the kubelet backs off")
        names = [short(pod) for pod in pods.made]
        assert "mean scheduler" in names and len(set(names)) == len(names)
        assert pods.gone == {}
    degraded = "--for=jsonpath={.status.phase}=Degraded"
    kubectl("wait", "ebb/mean", "-n", namespace, degraded, "--timeout=60s")
    message = kubectl("get", "ebb/mean", "-n", namespace, "-o", "jsonpath={.status.message}")
    assert "registry.e2e:5000/nothing:1" in message and "not found" in message
