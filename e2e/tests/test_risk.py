"""The example on a real Kubernetes: the figures and bits that it has everywhere."""

from __future__ import annotations

from pathlib import Path

import ebbtide as eb
import pytest
import yaml
from conftest import kubectl, objects, run, up

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
