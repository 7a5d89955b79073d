"""What is secret is where it belongs and nowhere else."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import ebbtide as eb
from conftest import OPERATOR, kubectl, mean, on_the_dev_cluster, up

#: Objects in which anybody who may look at a namespace could read it.
OPEN = "pods,services,endpointslices,configmaps,events,networkpolicies,clusters,clusterjobs"


def words(namespace: str) -> set[str]:
    """Read what the Secrets of a namespace hold that not everybody may know."""
    found = json.loads(kubectl("get", "secrets", "-n", namespace, "-o", "json"))["items"]
    secret = [
        base64.b64decode(value).decode()
        for it in found
        for key, value in it["data"].items()
        if not key.endswith(".crt")
    ]
    lines = [line for it in secret for line in it.splitlines() if not line.startswith("-----")]
    # In other objects it could be as the Secret has it.
    encoded = [base64.b64encode(it.encode()).decode() for it in secret]
    return {line for line in [*lines, *encoded] if len(line) >= 16}


def told(namespace: str) -> Iterator[tuple[str, str]]:
    """Read all that is told: objects, logs, metrics, and the arguments of every process."""
    yield "objects", kubectl("get", OPEN, "-n", namespace, "-o", "yaml", "--show-managed-fields")
    pods = kubectl("get", "pods", "-n", namespace, "-o", "name").split()
    for pod in pods:
        yield pod, kubectl("logs", pod, "-n", namespace, "--all-containers")
    yield "the operator", kubectl("logs", *OPERATOR, "--tail=-1")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield f"process {process.name}", (process / "cmdline").read_text(errors="replace")
        except OSError:
            continue


@on_the_dev_cluster
def test_what_secrets_hold_is_in_no_object_log_or_argument(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    canary = f"canary-{uuid.uuid4().hex}"
    kubectl("create", "secret", "generic", "lent", f"--from-literal=word={canary}", "-n", namespace)
    lent = {"name": "LENT", "valueFrom": {"secretKeyRef": {"name": "lent", "key": "word"}}}

    def lends(spec: dict) -> None:
        spec["workers"][0]["pod"] = {"env": [lent]}

    with up(manifest(lends), namespace):
        with eb.Cluster("mean", namespace=namespace) as cluster:
            small = mean((4000, 1000))
            assert small.compute() == small.compute()
            assert cluster.submit(lambda: __import__("os").environ["LENT"]).result(60) == canary
        secret = words(namespace)
        # Those that come in the place of others, too.
        kubectl("delete", "secrets", "-n", namespace, "-l", "app.kubernetes.io/managed-by=ebbtide")
        with eb.Cluster("mean", namespace=namespace):
            assert small.compute() == small.compute()
        secret |= words(namespace)
        assert canary in secret and len(secret) > 8
        for where, text in told(namespace):
            found = [it for it in secret if it in text]
            assert not found, f"{where} tells {len(found)} of {len(secret)} secret words"
