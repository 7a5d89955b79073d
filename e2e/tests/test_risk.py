"""The example on a real Kubernetes: the figures and bits that it has everywhere."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import ebbtide as eb
import pytest
import yaml
from conftest import abroad, alone, kubectl, objects, on_the_dev_cluster, run, up
from watch import told

EXAMPLE = Path(__file__).parents[2] / "examples" / "risk"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Write the example's manifest for a small machine."""
    made = yaml.safe_load((EXAMPLE / "cluster.yaml").read_text())
    made["spec"]["scheduler"] = {"resources": {"cpu": "100m", "memory": "256Mi"}}
    made["spec"]["workers"][0]["resources"] = {"cpu": "500m", "memory": "1Gi"}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_pods_gives_the_figures_and_bits_of_the_example(
    namespace: str, manifest: Path, workers: int
) -> None:
    made = yaml.safe_load(manifest.read_text())
    made["spec"]["workers"][0].update(min=workers, max=workers)
    manifest.write_text(yaml.safe_dump(made))
    before = objects(namespace)
    command = ["ebbtide", "up", str(manifest), "-n", namespace, "--backend", "kubernetes"]
    printed = run(*command, "--run", str(EXAMPLE / "risk.py"), "--", "--scenarios", "5000000")
    figures = [line for line in printed.splitlines() if line]
    expected = (EXAMPLE / "expected.txt").read_text().splitlines()
    assert figures == expected
    assert objects(namespace) == before


#: What a cluster can ail from, as a change of its manifest, and what its status says then.
AILMENTS: list[tuple[str, Callable[[dict], object], str]] = [
    ("image", lambda it: it.update(image="registry.e2e:5000/ebbtide/nothing:1"), "Image"),
    ("list", lambda it: it.update(environment={"python": "3.11", "packages": ["no"]}), "list"),
    ("node", lambda it: it["scheduler"]["pod"].update(nodeSelector={"no": "such"}), "Unsched"),
    ("exit", lambda it: it.update(image="registry.e2e:5000/busybox:1"), "StartError"),
    ("field", lambda it: it["scheduler"]["pod"].update(labels={"a": "no label!"}), "labels"),
]


def sick(manifest: Path) -> str:
    """Write a hundred clusters of which none can live."""
    spec = yaml.safe_load(manifest.read_text())["spec"]
    small = {"cpu": "1m", "memory": "16Mi"}
    spec["scheduler"] = {"resources": small, "pod": {}}
    spec["workers"][0].update(resources=small, min=0, max=1)
    made = []
    for nth in range(100):
        ailment, change, _ = AILMENTS[nth % len(AILMENTS)]
        own = copy.deepcopy(spec)
        change(own)
        if "image" in own:
            own.pop("environment", None)
        about = {"apiVersion": "ebbtide.dev/v1alpha1", "kind": "Cluster"}
        made.append({**about, "metadata": {"name": f"{ailment}-{nth}"}, "spec": own})
    return yaml.safe_dump_all(made)


@on_the_dev_cluster
@alone
def test_a_hundred_sick_clusters_change_no_figure_and_each_says_what_it_ails_from(
    namespace: str, manifest: Path
) -> None:
    with abroad() as ward:
        kubectl("apply", "-n", ward, "-f", "-", input=sick(manifest))
        test_any_number_of_pods_gives_the_figures_and_bits_of_the_example(namespace, manifest, 2)
        words = {ailment: words for ailment, _, words in AILMENTS}
        right = set[str]()

        def are_told(clusters: list[dict]) -> bool:
            said = {it["metadata"]["name"]: json.dumps(it.get("status")) for it in clusters}
            right.update(it for it in said if words[it.split("-")[0]] in said[it])
            return len(said) == 100 and said.keys() == right

        with told(ward, "clusters") as clusters:
            clusters.wait(are_told, "each says what it ails from")
        kubectl("delete", "ebb", "-n", ward, "--all")


def test_a_function_that_kills_its_process_hurts_no_pod(namespace: str, manifest: Path) -> None:
    def aborts() -> None:
        import os

        os.abort()

    with up(manifest, namespace, "risk"), eb.Cluster("risk", namespace=namespace) as cluster:
        neighbour = cluster.submit(lambda: __import__("pandas").__version__)
        with pytest.raises(eb.TaskFailed, match="aborts ended the process"):
            cluster.submit(aborts).result(100)
        assert neighbour.result(100)
        with pytest.raises(MemoryError):
            cluster.submit(bytearray, 1 << 30).result(100)
        assert cluster.submit(len, "abc").result(100) == 3
        pods = kubectl("get", "pods", "-n", namespace, "-o", "jsonpath={..restartCount}")
        assert set(pods.split()) == {"0"}
