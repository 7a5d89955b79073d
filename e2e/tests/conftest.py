"""A namespace for each test, as strict as namespaces can be, and left as it was found."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import ebbtide.array as xp
import pytest
import yaml

MANIFEST = Path(__file__).parents[2] / "examples" / "mean" / "cluster.yaml"
KUBE = Path(__file__).parents[1] / "kube"
OPERATOR = ("deploy/ebbtide-operator", "-n", "ebbtide")

#: Where the operator works in some namespaces only, a folder with an empty file for each of them
#: that nobody has used: e2e/run.
LISTED = os.environ.get("EBBTIDE_E2E_LISTED")

# Tests that take hold of the programs of the dev cluster itself. e2e/run leaves them out elsewhere.
on_the_dev_cluster = pytest.mark.dev_cluster
# Tests that disturb the cluster of all: they stop operators, API servers, nodes. e2e/run runs the
# others beside each other, and these one after another.
alone = pytest.mark.alone


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "dev_cluster: takes hold of the dev cluster's own programs")
    config.addinivalue_line("markers", "alone: disturbs what other tests need")
    config.addinivalue_line(
        "markers", "last: looks at what all others did, or at the whole machine"
    )
    config.addinivalue_line("markers", "listed: looks at an operator of listed namespaces")


def run(*command: str, input: str | None = None, check: bool = True) -> str:
    """Run a command for at most two minutes and return what it printed."""
    done = subprocess.run(
        command, input=input, capture_output=True, text=True, timeout=120, check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout if check else done.stdout + done.stderr


def kubectl(*arguments: str, **options: object) -> str:
    """Run kubectl."""
    return run("kubectl", *arguments, **options)  # type: ignore[arg-type]


@contextmanager
def up(manifest: Path, namespace: str, name: str = "mean") -> Iterator[None]:
    """Keep a cluster up meanwhile."""
    run("ebbtide", "up", str(manifest), "-n", namespace)
    try:
        yield
    finally:
        run("ebbtide", "down", name, "-n", namespace)


def ask_for(namespace: str, workers: int, name: str = "mean") -> None:
    """Ask for exactly so many workers in a cluster."""
    spec = [{"op": "replace", "path": f"/spec/workers/0/{end}", "value": workers}
            for end in ("max", "min")]  # fmt: skip
    kubectl("patch", "ebb", name, "-n", namespace, "--type=json", "-p", json.dumps(spec))


def resize(namespace: str, workers: int, seconds: int = 60, name: str = "mean") -> None:
    """Have exactly so many workers in a cluster."""
    ask_for(namespace, workers, name)
    ready = f"--for=jsonpath={{.status.workers.ready}}={workers}"
    kubectl("wait", f"ebb/{name}", "-n", namespace, ready, f"--timeout={seconds}s")


def mean(shape: tuple[int, int] = (4000, 4000)) -> xp.Array:
    """Average normal numbers."""
    return xp.random.default_rng(7).normal(size=shape, chunks=(500, shape[1])).mean()


def until(is_so: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"it never came that {what}"
        time.sleep(0.5)


def objects(namespace: str) -> set[str]:
    """Name everything in a namespace, whatever its kind, less events."""
    kinds = kubectl("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    kinds = [kind for kind in kinds if kind.split(".")[0] != "events"]
    found = kubectl("get", ",".join(kinds), "-n", namespace, "-o", "name", "--ignore-not-found")
    return set(found.split())


def settled(namespace: str, before: set[str]) -> set[str]:
    """Name everything in a namespace when what is new there had its time to follow its owner."""
    if new := objects(namespace) - before:
        kubectl("wait", "--for=delete", *new, "-n", namespace, "--timeout=30s", check=False)
    return objects(namespace)


def staying(namespace: str, *asked: str) -> list[dict]:
    """Read the pods that are not on their way out."""
    found = json.loads(kubectl("get", "pods", "-n", namespace, *asked, "-o", "json"))["items"]
    return [it for it in found if "deletionTimestamp" not in it["metadata"]]


def pods(namespace: str) -> dict[str, tuple[str, int]]:
    """Tell uids of pods that stay and how often their containers were started again, by names."""
    return {
        it["metadata"]["name"]: (
            it["metadata"]["uid"],
            sum(one["restartCount"] for one in it["status"].get("containerStatuses", [])),
        )
        for it in staying(namespace)
    }


def unused() -> str:
    """Name a namespace that no other test has, and in which the operator works."""
    if LISTED is None:
        return f"e2e-{uuid.uuid4().hex[:8]}"
    for it in sorted(Path(LISTED).iterdir()):
        # Whoever removes the file has the namespace.
        with suppress(FileNotFoundError):
            it.unlink()
            return it.name
    raise AssertionError("e2e/run lists fewer namespaces than the tests take")


@contextmanager
def abroad(
    labels: Mapping[str, str] = MappingProxyType({}), name: str | None = None
) -> Iterator[str]:
    """Have another namespace meanwhile."""
    name = name or unused()
    metadata = {"name": name, "labels": dict(labels)}
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    kubectl("apply", "-f", "-", input=json.dumps(made))
    try:
        # One by one: of two that are not there yet kubectl says so, and waits for none.
        for first in ("serviceaccount/default", "configmap/kube-root-ca.crt"):
            kubectl("wait", "--for=create", first, "-n", name, "--timeout=30s")
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@contextmanager
def no_operator() -> Iterator[None]:
    """Keep every operator away meanwhile."""
    kubectl("scale", *OPERATOR, "--replicas=0")
    try:
        operators = ["pods", "-n", "ebbtide", "-l", "app.kubernetes.io/name=ebbtide-operator"]
        kubectl("wait", "--for=delete", *operators, "--timeout=60s")
        yield
    finally:
        kubectl("scale", *OPERATOR, "--replicas=1")
        kubectl("rollout", "status", *OPERATOR, "--timeout=60s")


def replace_operators() -> None:
    """Have other operators in the place of all that are there."""
    kubectl("delete", "pods", "-n", "ebbtide", "--all")
    kubectl("rollout", "status", *OPERATOR, "--timeout=60s")


@pytest.fixture
def namespace() -> Iterator[str]:
    """Make a namespace that enforces Pod Security `restricted`."""
    with abroad({"pod-security.kubernetes.io/enforce": "restricted"}) as name:
        yield name


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """Write a manifest that differs from the example's by the given changes to its spec."""

    def write(change: Callable[[dict], None] = lambda spec: None, name: str = "mean") -> Path:
        made = yaml.safe_load(MANIFEST.read_text())
        made["metadata"]["name"] = name
        # Small, so that many fit the nodes.
        made["spec"]["scheduler"] = {"resources": {"cpu": "100m", "memory": "256Mi"}}
        made["spec"]["workers"][0]["resources"] = {"cpu": "300m", "memory": "1Gi"}
        # How fast the machine is today brings nobody.
        made["spec"]["scaling"] = {"targetSeconds": 3600}
        change(made["spec"])
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(made))
        return path

    return write


@pytest.fixture
def may(namespace: str) -> Callable[..., None]:
    """Give people a right in the namespace; both begin with the right to clusters."""

    def give(person: str, group: str, resource: str, *verbs: str) -> None:
        api = "rbac.authorization.k8s.io"
        metadata = {"name": f"{person}-{resource}"}
        rules = [{"apiGroups": [group], "resources": [resource], "verbs": verbs}]
        role = {"apiGroup": api, "kind": "Role", **metadata}
        subjects = [{"apiGroup": api, "kind": "User", "name": person}]
        for made in (
            {"kind": "Role", "rules": rules},
            {"kind": "RoleBinding", "roleRef": role, "subjects": subjects},
        ):
            whole = {"apiVersion": f"{api}/v1", "metadata": metadata, **made}
            kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(whole))

    for person in ("analyst", "engineer"):
        give(person, "ebbtide.dev", "clusters", "get", "create", "patch")
    give("engineer", "", "pods", "create")
    return give
