"""The operator is changed, taken away and brought back: what runs stays as it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ebbtide as eb
import yaml
from conftest import (
    KUBE,
    OPERATOR,
    alone,
    ask_for,
    kubectl,
    mean,
    on_the_dev_cluster,
    pods,
    replace_operators,
    resize,
    run,
    until,
    up,
)

pytestmark = alone

CHART = Path(__file__).parents[2] / "charts" / "ebbtide"
#: The definitions in it.
CRDS = Path("files") / "crds"
RELEASE = ("ebbtide", "-n", "ebbtide")


def helm(*arguments: str) -> str:
    """Run the dev cluster's helm."""
    return run(f"{KUBE}/cluster.sh", "helm", *arguments)


def values() -> dict:
    """Read the values that the chart was installed with."""
    return json.loads(helm("get", "values", *RELEASE, "-o", "json"))


def works(namespace: str, workers: int) -> None:
    """Have the operator of now change the size, and a client compute something."""
    resize(namespace, workers)
    with eb.Cluster("mean", namespace=namespace):
        assert mean((1000, 1000)).compute() == mean((1000, 1000)).compute()


@contextmanager
def upgraded(*options: str, chart: Path = CHART) -> Iterator[None]:
    """Have the chart installed with other values meanwhile."""
    # By its number: the one before the present one may be another that was meanwhile.
    before = json.loads(helm("history", *RELEASE, "--max", "1", "-o", "json"))[-1]["revision"]
    # One that fails is undone.
    helm("upgrade", RELEASE[0], str(chart), *RELEASE[1:], "--reuse-values", *options,
         "--atomic", "--timeout", "90s")  # fmt: skip
    try:
        yield
    finally:
        helm("rollback", RELEASE[0], str(before), *RELEASE[1:], "--wait", "--timeout", "90s")


@on_the_dev_cluster
def test_an_upgrade_and_a_rollback_leave_every_pod_as_it_was(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with up(manifest(), namespace):
        before = pods(namespace)
        with upgraded("--set", "replicas=2", "--set", "podLabels.round=second"):
            labelled = ["pods", "-n", "ebbtide", "-l", "round=second", "-o", "name"]
            assert len(kubectl("get", *labelled).split()) == 2
            works(namespace, 2)
            assert before.items() <= pods(namespace).items()
        works(namespace, 3)
        assert before.items() <= pods(namespace).items()


@on_the_dev_cluster
def test_clusters_of_this_release_and_the_one_before_work_under_either_operator(
    namespace: str, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(os.environ["KUBECONFIG"]).parent / "previous"
    image = (folder / "runtime").read_text().strip()
    values_before = values()
    given = values_before | {"image": (folder / "operator").read_text().strip()}
    (folder / "values.json").write_text(json.dumps(given))
    # Values that are not given are those of that chart.
    options = ("--reset-values", "--values", str(folder / "values.json"))

    def before(spec: dict) -> None:
        del spec["environment"]
        spec["image"] = image

    # Of the one before with the definitions of this one.
    mixed = shutil.copytree(folder / "chart", tmp_path / "chart")
    shutil.copytree(CHART / CRDS, mixed / CRDS, dirs_exist_ok=True)
    with up(manifest(), namespace), ExitStack() as later:
        there = pods(namespace)
        with upgraded(*options, chart=folder / "chart"):
            works(namespace, 3)
            with upgraded(*options, chart=mixed):
                works(namespace, 1)
            later.enter_context(up(manifest(before, "before"), namespace, "before"))
            resize(namespace, 2, name="before")
            assert there.items() <= pods(namespace).items()
            there = pods(namespace)
        assert values() == values_before
        works(namespace, 3)
        resize(namespace, 3, name="before")
        assert there.items() <= pods(namespace).items()
        resize(namespace, 1, name="before")


#: What the status of a cluster did not tell in every release.
LATER = ("credentials", "phaseSince", "phases", "startedAt")


#: What takes anything.
PRESERVED = "x-kubernetes-preserve-unknown-fields"


@contextmanager
def another_definition(
    change: Callable[[dict], None], of: str = "clusters.ebbtide.dev"
) -> Iterator[None]:
    """Have another definition meanwhile."""

    def define(change: Callable[[dict], None]) -> None:
        definition = json.loads(kubectl("get", "crd", of, "-o", "json"))
        change(definition["spec"])
        kubectl("replace", "-f", "-", input=json.dumps(definition))
        kubectl("wait", "crd", of, "--for=condition=Established")

    spec = json.loads(kubectl("get", "crd", of, "-o", "json"))["spec"]
    define(change)
    try:
        yield
    finally:
        define(lambda now: now.update(spec))


def older(spec: dict) -> None:
    """Make a definition that of a release that did not know all of a status."""
    schema = spec["versions"][0]["schema"]["openAPIV3Schema"]
    for field in LATER:
        del schema["properties"]["status"]["properties"][field]
    groups = schema["properties"]["status"]["properties"]["groups"]["items"]["properties"]
    cause = groups["causes"]["items"]["properties"]["cause"]
    cause["enum"] = [it for it in cause["enum"] if it != "Quota"]
    rules = schema["x-kubernetes-validations"]
    rules[:] = [it for it in rules if not any(field in it["rule"] for field in LATER)]


def loose(spec: dict) -> None:
    """Make a definition one that takes any name and status, and any count of workers or retries."""
    schema = spec["versions"][0]["schema"]["openAPIV3Schema"]
    below = [schema]
    for it in below:
        it.pop("x-kubernetes-validations", None)
        below += [*it.get("properties", {}).values()]
        below += [it[part] for part in ("items", "additionalProperties") if part in it]
    schema["properties"]["status"] = {"type": "object", PRESERVED: True}
    fields, anything = schema["properties"]["spec"]["properties"], {PRESERVED: True}
    if "retries" in fields:
        fields["retries"]["properties"]["exit"] = anything
    else:
        fields["workers"]["items"]["properties"]["max"] = anything


@on_the_dev_cluster
def test_what_a_loose_definition_let_in_is_told_keeps_nobody_and_goes(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def wrong(spec: dict) -> None:
        spec["workers"][0]["max"] = "two"

    job = {
        "apiVersion": "ebbtide.dev/v1alpha1",
        "kind": "ClusterJob",
        "metadata": {"name": "unread"},
        "spec": {"clusterRef": {"name": "a"}, "script": "1", "retries": {"exit": "many"}},
    }
    with another_definition(loose), another_definition(loose, "clusterjobs.ebbtide.dev"):
        made = ("create", "-f", "-", "-n", namespace)
        until(lambda: "created" in kubectl(*made, input=json.dumps(job), check=False), "a job")
        create = ("create", "-f", str(manifest(wrong, "unread")), "-n", namespace)
        # A moment after it is told of, the definition is what objects are held against.
        until(lambda: "created" in kubectl(*create, check=False), "it is taken")
    replace_operators()
    with up(manifest(), namespace):
        works(namespace, 2)
        listed = run("ebbtide", "get", "-n", namespace, check=False)
        assert "mean" in listed and "unread" in listed, listed
        events = kubectl("get", "events", "-n", namespace, "-o", "json")
        told = [it["message"] for it in json.loads(events)["items"]
                if it["involvedObject"]["name"] == "unread"]  # fmt: skip
        wrong_field = 'spec.workers[0].max: invalid type: string "two", expected i32'
        assert any(wrong_field in it for it in told), told
        condition = "jsonpath={.status.phase} {.status.conditions[0].reason} {.status.message}"
        said = kubectl("get", "ebb/unread", "-n", namespace, "-o", condition)
        assert said.startswith("Degraded Unreadable") and wrong_field in said, said
        assert wrong_field in listed
        condition = "jsonpath={.status.conditions[0].reason} {.status.message}"
        said = kubectl("get", "ebbjob/unread", "-n", namespace, "-o", condition)
        assert said.startswith("Unreadable") and "spec.retries.exit: invalid type" in said, said
        kubectl("delete", "ebbjob/unread", "-n", namespace)
        assert wrong_field in run("ebbtide", "describe", "unread", "-n", namespace, check=False)
        # Corrected, it is like any other.
        mended = [{"op": "replace", "path": "/spec/workers/0/max", "value": 2}]
        kubectl("patch", "ebb/unread", "-n", namespace, "--type=json", "-p", json.dumps(mended))
        kubectl("wait", "ebb/unread", "-n", namespace, "--for=condition=Ready", "--timeout=60s")
    run("ebbtide", "down", "unread", "-n", namespace)
    assert not kubectl("get", "ebb", "-n", namespace, "-o", "name")


@on_the_dev_cluster
def test_of_a_status_that_cannot_be_read_nothing_is_lost_and_a_name_from_before_is_told_and_goes(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def status(of: str) -> dict:
        return json.loads(kubectl("get", of, "-n", namespace, "-o", "jsonpath={.status}") or "{}")

    def odd(of: str, status: dict) -> None:
        patch = json.dumps({"status": status})
        kubectl("patch", of, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)

    # Nobody looks at them before all is as it is meant.
    kubectl("scale", *OPERATOR, "--replicas=0")
    try:
        kubectl("wait", "--for=delete", "pods", "--all", "-n", "ebbtide", "--timeout=60s")
        with another_definition(loose), another_definition(loose, "clusterjobs.ebbtide.dev"):
            digit = ("create", "-n", namespace, "-f", str(manifest(name="2026-risk")))
            # A moment after it is told of, the definition is what objects are held against.
            until(lambda: "created" in kubectl(*digit, check=False), "it is taken")
            kubectl("create", "-n", namespace, "-f", str(manifest(name="odd")))
            job = {"apiVersion": "ebbtide.dev/v1alpha1", "kind": "ClusterJob",
                   "metadata": {"name": "ended"},
                   "spec": {"clusterRef": {"name": "odd"}, "script": "1"}}  # fmt: skip
            kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(job))
            ended = {"phase": "Failed", "message": "it had its reasons", "failures": "many",
                     "conditions": []}  # fmt: skip
            odd("clusterjob/ended", ended)
            odd("ebb/odd", {"groups": "three", "image": "i"})
    finally:
        kubectl("scale", *OPERATOR, "--replicas=1")
        kubectl("rollout", "status", *OPERATOR, "--timeout=60s")
    until(lambda: status("ebb/odd").get("phase") == "Degraded", "what is wrong with its status")
    told = status("ebb/odd")
    assert (told["groups"], told["image"]) == ("three", "i")
    assert "status.groups: invalid type" in told["message"], told
    until(
        lambda: "2026-risk" in status("ebb/2026-risk").get("message", ""),
        "what is wrong with its name",
    )
    assert status("clusterjob/ended") == ended
    before = kubectl(
        "get", "ebb/odd", "-n", namespace, "-o", "jsonpath={.metadata.resourceVersion}"
    )
    # An hour's list of an operator, and what follows from it, in a moment.
    replace_operators()
    kubectl("delete", "ebb/2026-risk", "-n", namespace, "--cascade=foreground", "--timeout=60s")
    after = kubectl("get", "ebb/odd", "-n", namespace, "-o", "jsonpath={.metadata.resourceVersion}")
    assert before == after
    assert status("clusterjob/ended") == ended
    kubectl("delete", "ebb/odd", "clusterjob/ended", "-n", namespace, "--cascade=foreground",
            "--timeout=60s")  # fmt: skip


@on_the_dev_cluster
def test_under_an_older_definition_clusters_work_and_under_the_newer_one_they_are_as_they_were(
    namespace: str, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    status = ("get", "ebb", "mean", "-n", namespace, "-o", "jsonpath={.status}")
    chart = shutil.copytree(CHART, tmp_path / "chart")
    file = chart / CRDS / "clusters.yaml"
    definition = yaml.safe_load(file.read_text())
    older(definition["spec"])
    file.write_text(yaml.safe_dump(definition))
    with upgraded(chart=chart):
        run("ebbtide", "up", str(manifest()), "-n", namespace)
        before = pods(namespace)
        works(namespace, 2)
        assert not set(LATER) & set(json.loads(kubectl(*status)))
        kubectl("create", "quota", "full", "--hard=pods=3", "-n", namespace)
        used = "--for=jsonpath={.status.used.pods}=3"
        kubectl("wait", "quota/full", "-n", namespace, used, "--timeout=30s")
        ask_for(namespace, 3)
        until(lambda: "exceeded quota: full" in kubectl(*status), "what keeps it from growing")
        kubectl("delete", "quota", "full", "-n", namespace)
    works(namespace, 3)
    assert before.items() <= pods(namespace).items()

    def is_whole() -> bool:
        # A definition is what statuses are held against a moment after it is told of.
        resize(namespace, 2)
        resize(namespace, 3)
        return set(LATER) - {"phases"} <= set(json.loads(kubectl(*status)))

    until(is_whole, "all of its status is told")
    run("ebbtide", "down", "mean", "-n", namespace)


@on_the_dev_cluster
def test_clusters_outlive_the_chart_and_are_taken_up_again_when_it_comes_back(
    namespace: str, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    given = tmp_path / "values.json"
    given.write_text(json.dumps(values()))
    with up(manifest(), namespace):
        before = pods(namespace)
        helm("uninstall", *RELEASE, "--wait")
        try:
            # The definitions, and the policy without which clusters would be made unchecked.
            kubectl("get", "crd/clusters.ebbtide.dev", "crd/clusterjobs.ebbtide.dev")
            kubectl("get", "validatingadmissionpolicy/ebbtide-lent-rights")
            with eb.Cluster("mean", namespace=namespace):
                assert mean((1000, 1000)).compute() == mean((1000, 1000)).compute()
        finally:
            helm("install", *RELEASE[:1], str(CHART), *RELEASE[1:], "--values", str(given),
                 "--wait", "--timeout", "90s")  # fmt: skip
        works(namespace, 2)
        assert before.items() <= pods(namespace).items()
