"""What people set of pods: it reaches Python code, is refused in words, and lends nobody rights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import ebbtide as eb
import pytest
from conftest import OPERATOR, kubectl, on_the_dev_cluster, run, until, up
from watch import Told, told

Change = Callable[[dict], None]

VOLUMES = {
    "env": [
        {"name": "PLAIN", "value": "plain"},
        {"name": "LENT", "valueFrom": {"secretKeyRef": {"name": "lent", "key": "word"}}},
        {"name": "MONEY", "value": "a$$b $(PLAIN)"},
    ],
    "envFrom": [{"prefix": "MAP_", "configMapRef": {"name": "settings"}}],
    "volumes": [
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "lent", "secret": {"secretName": "lent"}},
        {"name": "both", "projected": {"sources": [{"secret": {"name": "lent"}}]}},
        {"name": "share", "persistentVolumeClaim": {"claimName": "share"}},
        {"name": "scratch", "emptyDir": {"sizeLimit": "10Mi"}},
    ],
    "volumeMounts": [
        {"name": "settings", "mountPath": "/settings", "readOnly": True},
        {"name": "lent", "mountPath": "/lent"},
        {"name": "both", "mountPath": "/both"},
        {"name": "share", "mountPath": "/share"},
        {"name": "scratch", "mountPath": "/scratch"},
    ],
    "initContainers": [
        {
            "name": "fetch",
            "command": ["python3", "-c", "open('/scratch/data', 'w').write('fetched')"],
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        }
    ],
    "labels": {"team": "rates"},
    "annotations": {"example.com/cost-centre": "7"},
    "serviceAccountName": "rates-s3",
    "imagePullSecrets": [{"name": "pull"}],
}

#: What each place says, with the line that reads it.
SAID = {
    "os.environ['PLAIN']": "plain",
    "os.environ['LENT']": "secret word",
    "os.environ['MONEY']": "a$$b $(PLAIN)",
    "os.environ['MAP_word']": "open word",
    "open('/settings/word').read()": "open word",
    "open('/lent/word').read()": "secret word",
    "open('/both/word').read()": "secret word",
    "open('/share/data').read()": "shared",
    "open('/scratch/data').read()": "fetched",
    "open('/scratch/mine', 'w').write('it can be written')": 17,
    "os.path.exists('/var/run/secrets/kubernetes.io')": False,
}


def workers(**settings: object) -> Change:
    """Set something of the workers' pods."""
    return lambda spec: spec["workers"][0].update(pod=settings)


def apply(namespace: str, **spec: object) -> None:
    """Create an object."""
    kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps({"apiVersion": "v1", **spec}))


@pytest.fixture
def things(namespace: str, tmp_path: Path) -> Iterator[str]:
    """Have a ConfigMap, a Secret and a claim of a folder of this machine in the namespace."""
    apply(namespace, kind="ConfigMap", metadata={"name": "settings"}, data={"word": "open word"})
    apply(namespace, kind="Secret", metadata={"name": "lent"}, stringData={"word": "secret word"})
    # By its name a cloud knows who a pod is; Kubernetes' own token stays out of it.
    apply(namespace, kind="ServiceAccount", metadata={"name": "rates-s3"})
    pull = {".dockerconfigjson": json.dumps({"auths": {}})}
    kind = "kubernetes.io/dockerconfigjson"
    apply(namespace, kind="Secret", metadata={"name": "pull"}, type=kind, stringData=pull)
    group = "scheduling.k8s.io/v1"
    apply(namespace, apiVersion=group, kind="PriorityClass", metadata={"name": namespace}, value=7)
    tmp_path.chmod(0o755)
    (tmp_path / "data").write_text("shared")
    volume = {
        "capacity": {"storage": "1Mi"},
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "",
        "hostPath": {"path": str(tmp_path)},
        "claimRef": {"namespace": namespace, "name": "share"},
    }
    apply(namespace, kind="PersistentVolume", metadata={"name": namespace}, spec=volume)
    claim = {
        "storageClassName": "",
        "volumeName": namespace,
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Mi"}},
    }
    apply(namespace, kind="PersistentVolumeClaim", metadata={"name": "share"}, spec=claim)
    yield namespace
    kubectl("delete", f"persistentvolume/{namespace}", f"priorityclass/{namespace}", "--wait=false")


@on_the_dev_cluster
def test_variables_volumes_and_fetched_data_reach_python_code(
    things: str, manifest: Callable[..., Path]
) -> None:
    settings = workers(**VOLUMES, priorityClassName=things)
    with up(manifest(settings), things), eb.Cluster("mean", namespace=things) as cluster:
        code = f"[(lambda os: {{ {', '.join(f'{it!r}: {it}' for it in SAID)} }})(__import__('os'))]"
        assert cluster.submit(eval, code).result(60) == [SAID]
        chosen = ("pod", "-n", things, "-l", "team=rates", "-o")
        cost = kubectl(
            "get", *chosen, r"jsonpath={.items[*].metadata.annotations.example\.com/cost-centre}"
        )
        assert set(cost.split()) == {"7"}
        spec = "{.items[*].spec['serviceAccountName', 'priorityClassName']}"
        who = kubectl("get", *chosen, f"jsonpath={spec} {{.items[*].spec.imagePullSecrets}}")
        assert {"rates-s3", things} <= set(who.split()) and '"pull"' in who, who


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hostNetwork": True}, 'unknown field "spec.workers[0].pod.hostNetwork"'),
        (
            {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
            'unknown field "spec.workers[0].pod.volumes[0].hostPath"',
        ),
        ({"volumes": [{"name": "v"}]}, "spec.workers[0].pod.volumes[0]: Invalid value"),
        ({"volumes": [{"name": "tmp", "emptyDir": {}}]}, "are Ebbtide's own"),
        ({"env": [{"name": "EBBTIDE_X"}]}, "are taken by Ebbtide itself"),
        ({"env": [{"name": "A"}, {"name": "A"}]}, "Duplicate value"),
        ({"initContainers": [{"name": "worker"}]}, "are Ebbtide's own"),
        ({"priorityClassName": "system-node-critical"}, "are not for clusters"),
    ],
)
def test_what_pods_may_not_have_the_api_server_refuses_in_words(
    namespace: str, manifest: Callable[..., Path], settings: dict, words: str
) -> None:
    change = workers(**settings)
    refused = kubectl("apply", "-n", namespace, "-f", str(manifest(change)), check=False)
    assert words in refused
    assert kubectl("get", "ebb", "-n", namespace, "-o", "name") == ""


def message(namespace: str) -> str:
    """Read what the cluster says."""
    return kubectl("get", "ebb/mean", "-n", namespace, "-o", "jsonpath={.status.message}")


def wait(namespace: str, what: str) -> None:
    """Wait until the cluster's status has something."""
    kubectl("wait", "ebb/mean", "-n", namespace, f"--for=jsonpath={what}", "--timeout=60s")


def test_what_the_api_server_cannot_see_is_said_in_the_status_and_can_be_corrected(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    path = manifest(workers(annotations={"k8s.v1.cni.cncf.io/networks": "other/net"}))
    kubectl("apply", "-n", namespace, "-f", str(path))
    wait(namespace, "{.status.phase}=Degraded")
    assert "spec.workers[general].pod.annotations: k8s.v1.cni" in message(namespace)
    assert kubectl("get", "pods", "-n", namespace, "-o", "name") == ""
    kubectl("apply", "-n", namespace, "-f", str(manifest()))
    wait(namespace, "{.status.phase}=Ready")
    run("ebbtide", "down", "mean", "-n", namespace)


def test_a_worker_that_no_node_takes_says_why_and_another_comes_when_it_is_corrected(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def gpu(spec: dict) -> None:
        spec["workers"][0]["resources"]["nvidia.com/gpu"] = 1

    kubectl("apply", "-n", namespace, "-f", str(manifest(gpu)))
    wait(namespace, "{.status.conditions[0].reason}=Unschedulable")
    # At first there may be no room for the scheduler.
    until(lambda: "Insufficient nvidia.com/gpu" in message(namespace), "the worker is told of")
    told = run("ebbtide", "describe", "mean", "-n", namespace)
    assert "general: 0 of 1 ready, 1 starting" in told
    assert "1 pod: Unschedulable: 0/" in told
    assert "FailedScheduling: 0/" in told
    leader = ("pod", "-l", "ebbtide.dev/role=scheduler", "-n", namespace)
    kubectl("wait", *leader, "--for=condition=Ready", "--timeout=60s")
    said = run("ebbtide", "logs", "mean", "-n", namespace)
    assert "the scheduler is ready" in said
    kubectl("apply", "-n", namespace, "-f", str(manifest()))
    wait(namespace, "{.status.phase}=Ready")
    told = run("ebbtide", "describe", "mean", "-n", namespace)
    assert "DeletedPod: mean-" in told and "CreatedPod: mean-" in told
    run("ebbtide", "down", "mean", "-n", namespace)


def line(text: str) -> dict:
    """Read a line of a log, in which nothing is said twice."""

    def once(pairs: list[tuple[str, object]]) -> dict:
        assert len(dict(pairs)) == len(pairs), text
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def test_a_pod_says_which_look_made_it_and_both_logs_are_found_by_that(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with up(manifest(), namespace):
        log = kubectl("logs", *OPERATOR, "--tail=-1").splitlines()
        found = json.loads(kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
        assert len(found) == 2
        for pod in (it["metadata"] for it in found):
            name, trace = pod["name"], pod["annotations"]["ebbtide.dev/trace"]
            said = [line(it) for it in kubectl("logs", name, "-n", namespace).splitlines()]
            origins = {(it["cluster"], it["pod"], it["trace"], it["level"]) for it in said}
            assert origins == {("mean", name, trace, "INFO")}
            look = [line(it) for it in log if trace in it]
            assert {it["span"]["object"] for it in look} == {f"{namespace}/mean"}
            assert any(f"create pod {name}" in it["message"] for it in look)


def test_a_change_is_told_before_it_is_made_and_while_pods_run_without_it(
    namespace: str, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    def changed(spec: dict) -> None:
        spec["workers"][0].update(max=2, pod={"env": [{"name": "A", "value": "1"}]})

    def both(spec: dict) -> None:
        changed(spec)
        spec["minWorkers"] = 2

    def diff(change: Change) -> str:
        return run("ebbtide", "diff", str(manifest(change)), "-n", namespace)

    assert "mean is not there" in diff(lambda spec: None)
    with up(manifest(), namespace):
        assert diff(lambda spec: None) == "nothing differs\n"
        assert "is refused while the cluster lives" in diff(
            lambda spec: spec["environment"].update(packages=["zarr"])
        )
        told = diff(changed)
        assert "holds at once:\n  spec.workers[general].max: 3 -> 2" in told
        assert "spec.workers[general].pod.env[A].value: nothing -> 1" in told
        kubectl("apply", "-n", namespace, "-f", str(manifest(changed)))
        kubectl("wait", "ebb/mean", "-n", namespace, "--for=condition=PendingChange")
        kubectl("scale", "ebb/mean", "-n", namespace, "--replicas=2")
        wait(namespace, "{.status.replicas}=2")
        # What the manifest does not ask for is let be.
        assert diff(changed) == "nothing differs\n"
        run("ebbtide", "up", str(manifest(changed)), "-n", namespace)
        assert (
            kubectl("get", "ebb/mean", "-n", namespace, "-o", "jsonpath={.spec.minWorkers}") == "2"
        )
        one = json.dumps({"spec": {"minWorkers": 1}})
        kubectl("patch", "ebb/mean", "-n", namespace, "--type=merge", "-p", one)
        refused = run("ebbtide", "up", str(manifest(both)), "-n", namespace, check=False)
        assert ".spec.minWorkers" in refused
        taken_over = re.search(r"`kubectl (apply .* -f )FILE`", refused)
        assert taken_over, refused
        kubectl(*taken_over[1].split(), str(manifest(both)), "-n", namespace)
        wait(namespace, "{.spec.minWorkers}=2")
        run("ebbtide", "up", str(manifest(both)), "-n", namespace)
        # What would be refused, as somebody else has set it, is told.
        fewer = diff(lambda spec: spec["workers"][0].update(max=1))
        assert "spec.workers[general].max: 2 -> 1" in fewer and "spec.minWorkers:" not in fewer
        assert "`ebbtide up` would be refused: apply:" in fewer and "kubectl" in fewer, fewer
        # What an API server shows can be given back to it.
        shown = tmp_path / "shown.yaml"
        shown.write_text(run("ebbtide", "get", "mean", "-n", namespace, "-o", "yaml"))
        assert run("ebbtide", "diff", str(shown), "-n", namespace) == "nothing differs\n"
        too_many = kubectl("scale", "ebb/mean", "-n", namespace, "--replicas=3", check=False)
        assert "minWorkers must not be greater than max of the first group" in too_many
        # The worker that runs stays; when it goes, the next one has the variable.
        worker = ("pod", "-n", namespace, "-l", "ebbtide.dev/role=worker")
        kubectl("delete", *worker, "--wait=false")
        kubectl("wait", "ebb/mean", "-n", namespace, "--for=condition=PendingChange=False")
        with eb.Cluster("mean", namespace=namespace) as cluster:
            assert cluster.submit(eval, "__import__('os').environ['A']").result(60) == "1"


@pytest.fixture
def one_gpu() -> Iterator[str]:
    """Let a node say that it has a device, as a device plugin would."""
    node = kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
    path = "/status/capacity/example.com~1gpu"

    def patch(**change: object) -> None:
        patch = json.dumps([{"path": path, **change}])
        kubectl("patch", "node", node, "--subresource=status", "--type=json", "-p", patch)

    patch(op="add", value="1")
    allocatable = r"--for=jsonpath={.status.allocatable.example\.com/gpu}=1"
    kubectl("wait", f"node/{node}", allocatable, "--timeout=60s")
    yield node
    patch(op="remove")


@on_the_dev_cluster
def test_groups_come_for_what_only_their_workers_have_and_one_that_no_node_takes_says_so(
    namespace: str, one_gpu: str, manifest: Callable[..., Path]
) -> None:
    def groups(spec: dict) -> None:
        general = spec["workers"][0]
        for kind in ("gpu", "tpu"):
            resources = {**general["resources"], f"example.com/{kind}": 1}
            spec["workers"].append({"name": kind, "resources": resources, "max": 1})

    where = "(lambda it: (it['EBBTIDE_GROUP'], it['EBBTIDE_POD_NAME']))(__import__('os').environ)"
    with (
        up(manifest(groups), namespace),
        eb.Cluster("mean", namespace=namespace) as cluster,
    ):
        assert cluster.submit(eval, where).result(60)[0] == "general"
        nowhere = cluster.submit(eval, where, resources={"example.com/tpu": 1})
        group, pod = cluster.submit(eval, where, resources={"example.com/gpu": 1}).result(60)
        node = kubectl("get", f"pod/{pod}", "-n", namespace, "-o", "jsonpath={.spec.nodeName}")
        assert (group, node) == ("gpu", one_gpu)
        wait(namespace, "{.status.groups[2].causes[0].cause}=Unschedulable")
        assert "Insufficient example.com/tpu" in message(namespace)
        wait(namespace, "{.status.conditions[0].reason}=Unschedulable")
        assert cluster.submit(eval, where).result(60)[0] in ("general", "gpu")
        nowhere.cancel()
        wait(namespace, "{.status.phase}=Ready")
        # A group that is no longer in the manifest goes with its workers.
        kubectl("apply", "-n", namespace, "-f", str(manifest()))
        gone = ("pod", "-n", namespace, "-l", "ebbtide.dev/group=gpu")
        kubectl("wait", *gone, "--for=delete", "--timeout=60s")
        with told(namespace, "clusters") as clusters:
            clusters.wait(is_general_alone, "a group that has gone is told of no longer")


def is_general_alone(clusters: list[dict]) -> bool:
    """Tell whether clusters have no group but general."""
    return all([it["name"] for it in c["status"]["groups"]] == ["general"] for c in clusters)


def test_a_quota_that_is_used_up_is_told_and_the_cluster_comes_when_there_is_room(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    apply(namespace, kind="ResourceQuota", metadata={"name": "small"}, spec={"hard": {"pods": "1"}})
    # Nobody can be refused before the quota is counted.
    used = "--for=jsonpath={.status.used.pods}=0"
    kubectl("wait", "resourcequota/small", "-n", namespace, used, "--timeout=30s")
    two = manifest(lambda spec: spec["workers"][0].update(min=2))
    kubectl("apply", "-n", namespace, "-f", str(two))
    wait(namespace, "{.status.conditions[0].reason}=Quota")
    assert "exceeded quota: small" in message(namespace)
    # The one that there is room for may be the scheduler or a worker.
    causes = ("get", "ebb/mean", "-n", namespace, "-o", "jsonpath={.status.groups[0].causes}")
    until(lambda: '"cause":"Quota"' in kubectl(*causes), "the group tells of it")
    kubectl("delete", "resourcequota", "small", "-n", namespace)
    wait(namespace, "{.status.phase}=Ready")
    run("ebbtide", "down", "mean", "-n", namespace)


def tries(pods: Told) -> list[datetime]:
    """Tell when each worker's pod was created."""
    workers = [it for it in pods.made if it["metadata"]["labels"]["ebbtide.dev/role"] == "worker"]
    return [datetime.fromisoformat(it["metadata"]["creationTimestamp"]) for it in workers]


def test_what_fails_before_the_worker_starts_is_told_and_not_tried_in_haste(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    failing = {"name": "fetch", "command": ["python3", "-c", "exit(7)"]}
    path = manifest(workers(initContainers=[failing]))
    with told(namespace, "pods") as pods:
        kubectl("apply", "-n", namespace, "-f", str(path))
        wait(namespace, "{.status.conditions[0].reason}=Exit")
        assert "fetch: Error: exit code 7" in message(namespace)
        pods.wait(lambda _: len(tries(pods)) > 1, "another one is tried")
        first, second = tries(pods)[:2]
        assert (second - first).total_seconds() >= 10
        kubectl("apply", "-n", namespace, "-f", str(manifest()))
        wait(namespace, "{.status.phase}=Ready")
    run("ebbtide", "down", "mean", "-n", namespace)


SOURCE = {"name": "lent"}

#: Settings that lend something, and how the refusal names it.
LENT = [
    ({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {**SOURCE, "key": "k"}}}]}, "Secrets"),
    ({"envFrom": [{"secretRef": SOURCE}]}, "Secrets"),
    ({"volumes": [{"name": "v", "secret": {"secretName": "lent"}}]}, "Secrets"),
    ({"volumes": [{"name": "v", "projected": {"sources": [{"secret": SOURCE}]}}]}, "Secrets"),
    ({"imagePullSecrets": [SOURCE]}, "Secrets"),
    ({"initContainers": [{"name": "i", "envFrom": [{"secretRef": SOURCE}]}]}, "Secrets"),
    ({"envFrom": [{"configMapRef": SOURCE}]}, "ConfigMaps"),
    ({"volumes": [{"name": "v", "configMap": SOURCE}]}, "ConfigMaps"),
    ({"serviceAccountName": "rates-s3"}, "a service account"),
    ({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}, "volumes"),
    ({"volumes": [{"name": "v", "ephemeral": {"storage": "1Gi"}}]}, "volumes"),
    ({"labels": {"app": "payments"}}, "a place"),
    ({"annotations": {"example.com/x": "seven"}}, "a place"),
    ({"tolerations": [{"operator": "Exists"}]}, "a place"),
    ({"priorityClassName": "first"}, "a place"),
]


def test_nobody_is_lent_what_they_may_not_have_themselves(
    namespace: str, manifest: Callable[..., Path], may: Callable[..., None]
) -> None:
    def tries(change: Change, person: str = "analyst") -> str:
        path = manifest(change)
        asks = ("create", f"--as={person}", "--dry-run=server", "-n", namespace, "-f", str(path))
        answer = kubectl(*asks, check=False)
        return "taken" if "mean created (server dry run)" in answer else answer

    for way, what in LENT:
        refused = f"its pods would have {what} that you may not"
        assert refused in tries(workers(**way)), way
        assert refused in tries(lambda spec, way=way: spec["scheduler"].update(pod=way)), way
        assert tries(workers(**way), "engineer") == "taken", way
    gpu = {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": 1}
    assert "a place that you may not" in tries(lambda s: s["workers"][0].update(resources=gpu))
    free = {
        "env": [{"name": "A", "value": "1"}],
        "nodeSelector": {"pool": "spot"},
        "volumes": [{"name": "v", "emptyDir": {}}],
    }
    assert tries(workers(**free)) == "taken"

    # Each right opens its own door and no other.
    (secret, account, config) = (LENT[1][0], LENT[8][0], LENT[6][0])
    may("analyst", "", "serviceaccounts", "impersonate")
    assert tries(workers(**account)) == "taken"
    assert "Secrets that you may not read" in tries(workers(**secret))
    may("analyst", "", "configmaps", "get")
    assert tries(workers(**config)) == "taken"
    assert "Secrets that you may not read" in tries(workers(**secret))
    may("analyst", "", "secrets", "get")
    assert tries(workers(**secret)) == "taken"


def test_what_somebody_with_the_right_described_stays_where_it_is(
    namespace: str, manifest: Callable[..., Path], may: Callable[..., None]
) -> None:
    def patch(*changes: dict) -> str:
        asks = ("patch", "ebb/mean", "--as=analyst", "-n", namespace, "--type=json", "-p")
        return kubectl(*asks, json.dumps(changes), check=False)

    kubectl("apply", "-n", namespace, "-f", str(manifest(workers(**LENT[0][0]))))
    pod = "/spec/workers/0/pod"
    assert "patched" in patch({"op": "replace", "path": "/spec/workers/0/max", "value": 2})
    other = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "another", "key": "k"}}}
    for changes in [
        [{"op": "replace", "path": f"{pod}/env/0", "value": other}],
        [{"op": "move", "from": pod, "path": "/spec/scheduler/pod"}],
        [{"op": "copy", "from": pod, "path": "/spec/scheduler/pod"}],
    ]:
        assert "Secrets that you may not read" in patch(*changes), changes
    image = {"op": "add", "path": "/spec/image", "value": "registry.invalid/other"}
    no_packages = {"op": "remove", "path": "/spec/environment"}
    other_packages = {"op": "replace", "path": "/spec/environment/packages", "value": ["flask"]}
    # Until its scheduler has answered, which has no Secret to begin with, what it runs can change.
    kubectl("delete", "ebb/mean", "-n", namespace, "--cascade=foreground")
    lent = manifest(lambda spec: spec["scheduler"].update(pod=LENT[0][0]))
    kubectl("apply", "-n", namespace, "-f", str(lent))
    for changes in [[image, no_packages], [other_packages]]:
        assert "Secrets that you may not read" in patch(*changes), changes
    kubectl("delete", "ebb/mean", "-n", namespace, "--cascade=foreground")
    kubectl("apply", "-n", namespace, "-f", str(manifest(workers(**LENT[0][0]))))
    account = {"op": "add", "path": f"{pod}/serviceAccountName", "value": "rates-s3"}
    assert "you may not" in patch(account)
    # To take something away lends nothing.
    assert "patched" in patch({"op": "remove", "path": pod})
    kubectl("delete", "ebb/mean", "-n", namespace)


def test_a_scheduler_that_cannot_live_is_made_again_when_it_is_corrected(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def lost(spec: dict) -> None:
        spec["scheduler"]["pod"] = {"env": [{"name": "PATH", "value": "/nowhere"}]}

    kubectl("apply", "-n", namespace, "-f", str(manifest(lost)))
    wait(namespace, "{.status.phase}=Degraded")
    kubectl("apply", "-n", namespace, "-f", str(manifest()))
    wait(namespace, "{.status.phase}=Ready")
    run("ebbtide", "down", "mean", "-n", namespace)


def test_settings_that_the_api_server_does_not_take_are_told_before_anything_is_made(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def wrong(spec: dict) -> None:
        # Of a group that nobody needs yet.
        spec["workers"][0].update(min=0, pod={"tolerations": [{"key": "a", "operator": "Foo"}]})

    digit = manifest(name="2026-risk")
    assert "begins with a letter" in run("ebbtide", "up", str(digit), check=False)
    asks = ("create", "-f", str(digit), "-n", namespace)
    assert "metadata.name must begin with a letter" in kubectl(*asks, check=False)
    up = run("ebbtide", "up", str(manifest(wrong)), "-n", namespace, check=False)
    assert "spec.tolerations[0].operator" in up and "Foo" in up, up
    wait(namespace, "{.status.conditions[0].reason}=Rejected")
    made = "pods,secrets,services,networkpolicies"
    assert kubectl("get", made, "-n", namespace, "-o", "name") == ""
    kubectl("apply", "-n", namespace, "-f", str(manifest()))
    wait(namespace, "{.status.phase}=Ready")
    run("ebbtide", "down", "mean", "-n", namespace)


def test_what_is_another_s_and_has_the_name_of_a_cluster_s_own_is_told_and_left_alone(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    kubectl("apply", "-n", namespace, "-f", str(manifest()))
    wait(namespace, "{.status.phase}=Ready")
    kinds = "services,networkpolicies"
    made = json.loads(kubectl("get", kinds, "-n", namespace, "-o", "json"))["items"]
    kubectl("delete", "ebb/mean", "-n", namespace, "--cascade=foreground")
    # Who watches over it comes in by a policy that has another name in another life.
    for it in (it for it in made if "-access-" not in it["metadata"]["name"]):
        name, kind = it["metadata"]["name"], it["kind"]
        spec = {"podSelector": {}} if kind == "NetworkPolicy" else {"ports": [{"port": 1}]}
        foreign = {"apiVersion": it["apiVersion"], "kind": kind, "metadata": {"name": name}}
        foreign["spec"] = spec
        kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(foreign))
        kubectl("apply", "-n", namespace, "-f", str(manifest()))
        wait(namespace, "{.status.conditions[0].reason}=Rejected")
        assert f"{name} exists and is not this cluster's" in message(namespace)
        there = json.loads(kubectl("get", kind, name, "-n", namespace, "-o", "json"))
        assert "ownerReferences" not in there["metadata"]
        kubectl("delete", kind, name, "-n", namespace)
        wait(namespace, "{.status.phase}=Ready")
        kubectl("delete", "ebb/mean", "-n", namespace, "--cascade=foreground")
