"""One tenant has more and larger objects than anybody should: the others do not notice."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from api import Api, at, proxy
from conftest import abroad, alone, on_the_dev_cluster, pods, replace_operators, resize, up

# The operator is killed, and has much to do.
pytestmark = [alone, on_the_dev_cluster]

MANY = 1_000

#: As much as the operator may take in memory, in annotations as large as the API server takes.
LARGE = 500
WEIGHT = "x" * 250_000

#: What no catalogue has: nothing is made of it.
SPEC = {
    "environment": {"python": "3.11", "packages": ["in-no-catalogue"]},
    "workers": [{"name": "w", "max": 1, "resources": {"cpu": "1", "memory": "1Gi"}}],
}


def crowd(api: Api, path: str) -> None:
    """Create all of them, on four connections."""

    def create(numbers: range) -> None:
        own = api.another()
        for nth in numbers:
            metadata: dict = {"name": f"odd-{nth}"}
            if nth < LARGE:
                metadata["annotations"] = {"weight": WEIGHT}
            code, answer = own.create(path, "Cluster", metadata, SPEC)
            assert code == 201, answer

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(create, [range(start, MANY, 4) for start in range(4)]))


def operators() -> dict[str, int]:
    """Tell how often the container of each operator that is to stay was started again."""
    return {name: times for name, (_, times) in pods("ebbtide").items()}


def test_a_thousand_objects_and_a_hundred_megabytes_of_one_tenant_are_nobody_elses_concern(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with abroad() as crowded, proxy() as api:
        path = at(crowded, "clusters")
        before = operators()
        crowd(api, path)
        # It becomes ready, and grows, while the operator has all of them to tell.
        with up(manifest(), namespace):
            resize(namespace, 2)
            api.told(path, MANY, lambda words: "in-no-catalogue" in words, 120)
            assert operators() == before
            replace_operators()
            # The next one has read all of them before it looks after anybody.
            resize(namespace, 1)
            assert set(operators().values()) == {0}
        api.ask("DELETE", path)
