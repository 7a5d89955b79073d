"""What the roles of the chart let people do, with nothing but `edit` or `view` in a namespace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ebbtide as eb
import pytest
import yaml
from conftest import abroad, kubectl, mean, run, until, up


@contextmanager
def being(role: str, namespace: str, folder: Path) -> Iterator[None]:
    """Be somebody meanwhile who has one of Kubernetes' own roles in the namespace."""
    who = f"{role}-{namespace}"
    given = ("rolebinding", who, f"--clusterrole={role}", f"--user={who}", "-n", namespace)
    kubectl("create", *given)
    made = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    for user in made["users"]:
        user["user"]["as"] = who
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(made))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(path))
        # The API server hears of a binding a moment after it was made.
        until(lambda: may("get", "clusters.ebbtide.dev", namespace), "they have the role")
        yield


def may(verb: str, resource: str, namespace: str) -> bool:
    """Tell whether whoever asks has a right."""
    resource, _, part = resource.partition("/")
    asked = ["auth", "can-i", verb, resource, f"--subresource={part}", "-n", namespace]
    return kubectl(*asked, check=False).strip().endswith("yes")


def test_who_may_edit_does_all_that_there_is_to_do_with_clusters_and_nothing_else(
    namespace: str, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text("print('it runs')")
    with abroad() as elsewhere, being("edit", namespace, tmp_path):
        with up(manifest(), namespace):
            with eb.Cluster("mean", namespace=namespace) as cluster:
                bits = mean().compute()
                assert cluster.submit(len, "abc").result(60) == 3
            assert bits == mean().compute()
            kubectl("scale", "ebb/mean", "--replicas=2", "-n", namespace)
            ready = "--for=jsonpath={.status.workers.ready}=2"
            kubectl("wait", "ebb/mean", "-n", namespace, ready, "--timeout=60s")
            for command in (
                ["get", "mean"],
                ["top"],
                ["describe", "mean"],
                ["logs", "mean"],
                ["diff", str(manifest())],
                ["jobs"],
            ):
                assert run("ebbtide", *command, "-n", namespace), command
            asks = ["ebbtide", "run", str(program), "--on", "mean", "-n", namespace]
            assert run(*asks) == "it runs\n"
        assert may("create", "clusters.ebbtide.dev", namespace)
        for verb, resource, where in [
            ("update", "clusters.ebbtide.dev/status", namespace),
            ("patch", "clusterjobs.ebbtide.dev/status", namespace),
            ("get", "clusters.ebbtide.dev", elsewhere),
            ("create", "pods/portforward", elsewhere),
            ("get", "secrets", "ebbtide"),
            ("update", "customresourcedefinitions", namespace),
            ("create", "networkpolicies", elsewhere),
        ]:
            assert not may(verb, resource, where), (verb, resource, where)


def test_who_may_view_looks_and_changes_and_reaches_nothing(
    namespace: str, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    with up(manifest(), namespace), being("view", namespace, tmp_path):
        for command in (["get", "mean"], ["describe", "mean"], ["logs", "mean"], ["jobs"]):
            assert run("ebbtide", *command, "-n", namespace), command
        for command in (["down", "mean"], ["up", str(manifest())]):
            refused = run("ebbtide", *command, "-n", namespace, check=False)
            assert "cannot" in refused and "clusters" in refused, refused
        with pytest.raises(eb.ConnectionLost, match="cannot get resource"):
            eb.Cluster("mean", namespace=namespace)
        assert not may("create", "pods/portforward", namespace)
