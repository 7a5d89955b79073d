"""The chart's renderings, and what the program prints, at a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from conftest import alone, kubectl, on_the_dev_cluster, run, until

RENDERED = Path(__file__).parents[2] / "charts" / "ebbtide" / "rendered"

#: A run that changes nothing, of which nothing is left out that the API server judges.
DRY = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")


def definition(kind: str) -> dict:
    """Define a kind of Prometheus' operator, with whatever in it."""
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    of_version = {"name": "v1", "served": True, "storage": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [{**of_version, "schema": {"openAPIV3Schema": schema}}],
        },
    }


@contextmanager
def there(*objects: dict) -> Iterator[None]:
    """Have these meanwhile."""
    made = yaml.safe_dump_all(objects)
    try:
        kubectl("create", "-f", "-", input=made)
        yield
    finally:
        kubectl("delete", "--ignore-not-found", "-f", "-", input=made)


# Tests beside it look at all kinds that there are.
@alone
@on_the_dev_cluster
def test_the_api_server_takes_every_rendering() -> None:
    # What renderings take for granted.
    kinds = [definition(it) for it in ("PodMonitor", "PrometheusRule", "ServiceMonitor")]
    spaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": it}}
        for it in ("risk", "team-1")
    ]
    with there(*kinds, *spaces):
        names = [it["spec"]["names"]["plural"] for it in kinds]

        def are_served() -> bool:
            known = kubectl("get", "--raw", "/apis/monitoring.coreos.com/v1", check=False)
            return all(f'"{it}"' in known for it in names)

        until(are_served, "the kinds are served")
        renderings = list(RENDERED.glob("*.yaml"))
        assert len(renderings) > 2
        for rendering in renderings:
            objects = [it for it in yaml.safe_load_all(rendering.read_text()) if it]
            taken = kubectl(*DRY, "-f", str(rendering)).splitlines()
            assert len(taken) == len(objects)
            done = "serverside-applied (server dry run)"
            assert all(it.endswith(done) for it in taken), taken


@pytest.mark.parametrize("kind", ["cluster", "clusterjob"])
def test_the_api_server_takes_the_definition_that_the_program_prints(kind: str) -> None:
    printed = run("ebbtide", "crd", kind)
    assert "serverside-applied" in kubectl(*DRY, "-f", "-", input=printed)
    assert yaml.safe_load(printed) == yaml.safe_load(run("ebbtide", "crd", kind, "-o", "json"))


def test_the_program_tells_the_version_of_its_package() -> None:
    assert run("ebbtide", "version").strip() == version("ebbtide")
