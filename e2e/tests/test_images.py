"""The Dockerfiles of `images/`, as `e2e/dev-cluster dockerfiles` builds and pushes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ebbtide as eb
from conftest import alone, kubectl, mean, on_the_dev_cluster, up
from test_upgrade import upgraded

# The operator is another one meanwhile.
pytestmark = [alone, on_the_dev_cluster]

REGISTRY = "registry.e2e:5000/ebbtide"


def version() -> str:
    """Import what packages.txt names."""
    import yaml

    return yaml.__file__


def test_an_operator_and_a_cluster_run_in_images_that_dockerfiles_made(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def ours(spec: dict) -> None:
        del spec["environment"]
        spec["image"] = f"{REGISTRY}/runtime:docker"

    expected = mean().compute()
    with upgraded("--set", f"image={REGISTRY}/operator:docker"):
        with up(manifest(ours), namespace), eb.Cluster("mean", namespace=namespace) as cluster:
            assert mean().compute() == expected
            assert cluster.submit(version).result().startswith("/opt/environment/")
            pulled = "--for=jsonpath={.status.imageDigest}"
            kubectl("wait", "ebb/mean", "-n", namespace, pulled, "--timeout=30s")
            digest = kubectl(
                "get", "ebb/mean", "-n", namespace, "-o", "jsonpath={.status.imageDigest}"
            )
            assert digest.startswith("sha256:")
        found = json.loads(kubectl("get", "pods", "-n", "ebbtide", "-o", "json"))["items"]
        images = {one["image"] for it in found for one in it["spec"]["containers"]}
        assert f"{REGISTRY}/operator:docker" in images
