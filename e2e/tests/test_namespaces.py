"""An operator of some namespaces: it has rights there alone, and does there all that it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import yaml
from conftest import abroad, alone, kubectl, on_the_dev_cluster, replace_operators, run, up
from test_jobs import PROGRAM
from test_upgrade import RELEASE, helm, upgraded, works

# The operator is another one meanwhile.
pytestmark = [alone, on_the_dev_cluster]

ACCOUNT = "system:serviceaccount:ebbtide:ebbtide-operator"


def may(verb: str, resource: str, namespace: str) -> str:
    """Tell whether the operator has a right."""
    asked = ["auth", "can-i", verb, resource, "-n", namespace, "--as", ACCOUNT]
    return kubectl(*asked, check=False).strip()


def test_an_operator_of_listed_namespaces_has_rights_there_alone_and_does_all_the_same(
    namespace: str, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with abroad() as elsewhere:
        with upgraded("--set", f"namespaces={{{namespace}}}"):
            rights = [("list", "clusters"), ("create", "pods"), ("create", "secrets")]
            assert [may(*it, namespace) for it in rights] == ["yes"] * 3
            for where in (elsewhere, "ebbtide", "kube-system"):
                assert [may(*it, where) for it in rights[:2]] == ["no"] * 2
            assert may("get", "secrets", namespace) == "no"
            kubectl("apply", "-f", str(manifest()), "-n", elsewhere)
            with up(manifest(), namespace):
                works(namespace, 2)
            command = ["ebbtide", "run", str(program), "--cluster", str(manifest())]
            assert run(*command, "-n", namespace).endswith("of []\n")
            cluster = json.loads(kubectl("get", "ebb", "mean", "-n", elsewhere, "-o", "json"))
            assert "status" not in cluster
        ready = "--for=jsonpath={.status.phase}=Ready"
        kubectl("wait", "ebb/mean", "-n", elsewhere, ready, "--timeout=90s")
        assert yaml.safe_load(helm("get", "values", *RELEASE)).get("namespaces") in (None, [])


def test_a_listed_namespace_that_is_gone_keeps_the_others_from_nothing(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with abroad() as gone, upgraded("--set", f"namespaces={{{gone},{namespace}}}"):
        with up(manifest(), namespace):
            kubectl("delete", "namespace", gone, "--timeout=60s")
            works(namespace, 2)
            # Another one has never seen it.
            replace_operators()
            works(namespace, 1)
