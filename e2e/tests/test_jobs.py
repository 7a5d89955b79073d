"""Programs that run to their end beside clusters of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import alone, kubectl, mean, objects, run, settled, until, up
from test_pods import LENT, workers
from watch import told

LIMIT = 120

#: Averages on the cluster, and says so and its arguments.
PROGRAM = """
import sys, ebbtide as eb, ebbtide.array as xp
with eb.Cluster():
    numbers = xp.random.default_rng(7).normal(size=(4000, 4000), chunks=(500, 4000))
    print(f"{float(numbers.mean().compute())!r} of {sys.argv[1:]}")
"""

#: Computes again and again.
BUSY = """
import time, ebbtide as eb, ebbtide.array as xp
with eb.Cluster():
    print("it runs", flush=True)
    for _ in range(50):
        assert xp.asarray([1, 2, 3]).sum().compute() == 6
        time.sleep(0.1)
"""

#: Runs until somebody ends it.
LONG = """
import time, ebbtide as eb
cluster = eb.Cluster()
print("it runs")
time.sleep(600)
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Write a program."""

    def write(text: str) -> Path:
        path = tmp_path / "program.py"
        path.write_text(text)
        return path

    return write


def command(program: Path, manifest: Path, namespace: str, *more: str) -> list[str]:
    return ["ebbtide", "run", str(program), "--cluster", str(manifest), "-n", namespace, *more]


def runs(*words: str) -> tuple[int, str, str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
    return done.returncode, done.stdout, done.stderr


def apply(namespace: str, spec: dict[str, Any], name: str = "job") -> str:
    made = {
        "apiVersion": "ebbtide.dev/v1alpha1",
        "kind": "ClusterJob",
        "metadata": {"name": name},
        "spec": spec,
    }
    return kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(made), check=False)


def status(namespace: str, name: str = "job") -> dict[str, Any]:
    found = kubectl("get", f"clusterjob/{name}", "-n", namespace, "-o", "json")
    return json.loads(found).get("status", {})


def wait(namespace: str, what: str, name: str = "job") -> None:
    kubectl(
        "wait", f"clusterjob/{name}", f"--for=jsonpath={what}", "-n", namespace, "--timeout=90s"
    )


def spec_of(manifest: Path) -> dict[str, Any]:
    return yaml.safe_load(manifest.read_text())["spec"]


def test_a_program_runs_beside_its_cluster_and_nothing_is_left_of_either(
    namespace: str, manifest: Callable[..., Path], program: Callable[[str], Path]
) -> None:
    before = objects(namespace)
    asks = command(program(PROGRAM), manifest(), namespace, "--name", "job", "--", "--seed", "7")
    code, out, err = runs(*asks)
    assert (code, out) == (0, f"{float(mean().compute())!r} of ['--seed', '7']\n"), err
    assert "the program ended with exit code 0" in err
    kubectl("wait", "--for=delete", "ebb/job", "-n", namespace, "--timeout=60s")
    code, out, _ = runs("ebbtide", "jobs", "-n", namespace)
    assert code == 0
    head, (row,) = out.splitlines()[0].split(), out.splitlines()[1:]
    assert head == ["NAMESPACE", "NAME", "PHASE", "CLUSTER", "FAILURES", "AGE", "MESSAGE"]
    assert row.split()[:5] == [namespace, "job", "Succeeded", "job", "0"]
    known = yaml.safe_load(run("ebbtide", "jobs", "job", "-n", namespace, "-o", "yaml"))
    assert (known["kind"], known["status"]["phase"]) == ("ClusterJob", "Succeeded")
    told = kubectl("get", "clusterjob/job", "-n", namespace)
    assert "Succeeded" in told
    events = kubectl("events", "-n", namespace, "--for=clusterjob/job")
    for reason in ("CreatedCluster", "CreatedPod", "Succeeded", "DeletedCluster"):
        assert reason in events, events
    kubectl("delete", "clusterjob/job", "-n", namespace, "--cascade=foreground")
    assert settled(namespace, before) - before == set()


def test_a_program_that_fails_is_tried_as_often_as_asked_and_its_exit_code_is_told(
    namespace: str, manifest: Callable[..., Path], program: Callable[[str], Path]
) -> None:
    asks = command(
        program("print('it tries', flush=True)\nraise SystemExit(3)"), manifest(), namespace
    )
    code, out, err = runs(*asks, "--name", "job", "--retries", "1")
    assert (code, out) == (3, "it tries\nit tries\n"), err
    assert "attempt 1 went wrong, another one follows: " in err
    assert "attempt 2 went wrong: " in err
    known = status(namespace)
    assert (known["phase"], known["exitCode"], known["failures"]["exit"]) == ("Failed", 3, 2)
    assert runs("ebbtide", "follow", "job", "-n", namespace)[:2] == (3, "it tries\nit tries\n")
    kubectl("wait", "--for=delete", "ebb/job", "-n", namespace, "--timeout=60s")


@alone
def test_a_pod_that_is_evicted_and_an_operator_that_is_killed_cost_an_attempt_and_no_result(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    spec = {"cluster": spec_of(manifest()), "script": LONG, "retries": {"backoffSeconds": 0}}
    apply(namespace, spec)
    wait(namespace, "{.status.phase}=Running")
    asks = ["ebbtide", "follow", "job", "-n", namespace]
    with subprocess.Popen(asks, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None and follower.stdout.readline() == "it runs\n"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(LIMIT) == 128 + signal.SIGINT
    first = status(namespace)["pod"]["name"]
    for pod in kubectl("get", "pods", "-n", "ebbtide", "-o", "name").split():
        kubectl("delete", "-n", "ebbtide", pod, "--grace-period=0", "--force")
    kubectl("delete", "pod", first, "-n", namespace)
    wait(namespace, "{.status.failures.lost}=1")
    wait(namespace, "{.status.phase}=Running")
    second = status(namespace)["pod"]["name"]
    assert second != first
    suspended = '{"spec":{"suspend":true}}'
    kubectl("patch", "clusterjob/job", "-n", namespace, "--type=merge", "-p", suspended)
    wait(namespace, "{.status.phase}=Suspended")
    kubectl("wait", "--for=delete", "ebb/job", "-n", namespace, "--timeout=60s")
    kubectl("wait", "--for=delete", f"pod/{second}", "-n", namespace, "--timeout=60s")
    kubectl("delete", "clusterjob/job", "-n", namespace, "--cascade=foreground")


def test_a_program_whose_scheduler_goes_is_not_at_fault_and_has_what_it_needs_the_next_time(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    apply(namespace, {"cluster": spec_of(manifest()), "script": BUSY})
    wait(namespace, "{.status.phase}=Running")
    asks = ["ebbtide", "follow", "job", "-n", namespace]
    with subprocess.Popen(asks, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None and follower.stdout.readline() == "it runs\n"
        pods = kubectl("get", "pods", "-n", namespace, "-o", "name").split()
        [scheduler] = [it for it in pods if it.endswith("-scheduler")]
        # What its client proves itself with is gone as well.
        kubectl("delete", "secrets", "--all", "-n", namespace)
        kubectl("delete", scheduler, "-n", namespace, "--wait=false")
        # The first attempt says why it ends.
        rest = follower.stdout.read()
        assert "ebbtide.ConnectionLost" in rest and rest.endswith("it runs\n"), rest
        assert follower.wait(LIMIT) == 0
    failures = status(namespace)["failures"]
    assert (failures["lost"], failures["exit"]) == (1, 0), failures
    kubectl("delete", "clusterjob/job", "-n", namespace, "--cascade=foreground")


def test_a_job_on_a_cluster_whose_secrets_somebody_deleted_gets_them(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with up(manifest(), namespace):
        kubectl("delete", "secrets", "--all", "-n", namespace)
        apply(namespace, {"clusterRef": {"name": "mean"}, "script": PROGRAM})
        wait(namespace, "{.status.phase}=Succeeded")
        kubectl("delete", "clusterjob/job", "-n", namespace, "--cascade=foreground")


def test_a_program_that_was_suspended_is_heard_from_its_beginning_and_has_its_words_as_given(
    namespace: str, manifest: Callable[..., Path], program: Callable[[str], Path]
) -> None:
    def suspend(wanted: bool) -> None:
        spec = json.dumps({"spec": {"suspend": wanted}})
        kubectl("patch", "clusterjob/job", "-n", namespace, "--type=merge", "-p", spec)

    speaks = program("import sys, time; print(*sys.argv[1:]); time.sleep(1000)")
    words = ["a$$b", "$(EBBTIDE_CLUSTER)"]
    asks = command(speaks, manifest(), namespace, "--name", "job", "--", *words)
    with subprocess.Popen(asks, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None and it.stderr is not None
        assert it.stdout.readline() == " ".join(words) + "\n"
        suspend(True)
        wait(namespace, "{.status.phase}=Suspended")
        suspend(False)
        assert it.stdout.readline() == " ".join(words) + "\n"
        it.send_signal(signal.SIGINT)
        assert it.wait(LIMIT) == 128 + signal.SIGINT
        err = it.stderr.read()
        assert "job is gone" in err and "may not be whole" not in err, err


def test_who_interrupts_a_run_takes_everything_down(
    namespace: str, manifest: Callable[..., Path], program: Callable[[str], Path]
) -> None:
    asks = command(program(LONG), manifest(), namespace, "--name", "job")
    with subprocess.Popen(asks, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None and it.stderr is not None
        assert it.stdout.readline() == "it runs\n"
        it.send_signal(signal.SIGINT)
        assert it.wait(LIMIT) == 128 + signal.SIGINT
        assert "job is gone" in it.stderr.read()
    left = objects(namespace)
    assert not any("job" in it.split("/")[1] for it in left), left


def test_what_no_cluster_can_be_made_of_is_told_and_not_waited_for(
    namespace: str, manifest: Callable[..., Path], program: Callable[[str], Path]
) -> None:
    unpacked = manifest(lambda spec: spec["environment"].update(packages=["flask"]))
    code, _, err = runs(*command(program(PROGRAM), unpacked, namespace, "--name", "job"))
    assert code == 1 and "no image is packed with the key" in err, err
    assert kubectl("get", "clusterjobs,ebb", "-n", namespace, "-o", "name") == ""
    for more in ([], ["--detach"]):
        asks = ["ebbtide", "run", str(program(PROGRAM)), "--on", "typo", "-n", namespace, *more]
        code, _, err = runs(*asks)
        assert code == 1 and f"there is no cluster typo in namespace {namespace}" in err, err
    assert kubectl("get", "clusterjobs,ebb", "-n", namespace, "-o", "name") == ""
    # A pod that the API server does not take is told before there is a cluster for it.
    apply(namespace, {"cluster": spec_of(manifest()), "script": "1",
                      "pod": {"serviceAccountName": "nobody"}}, "job")  # fmt: skip
    wait(namespace, '{.status.conditions[?(@.type=="Accepted")].reason}=Rejected')
    assert 'serviceaccount "nobody" not found' in status(namespace)["message"]
    assert kubectl("get", "ebb,pods,secrets", "-n", namespace, "-o", "name") == ""
    kubectl("delete", "clusterjob/job", "-n", namespace)
    right = {"clusterRef": {"name": "a"}, "script": "1"}
    for spec, words in [
        ({"script": "1"}, "give either cluster or clusterRef"),
        ({"clusterRef": {"name": "a"}}, "give either command or script"),
        ({**right, "retries": {"exit": -1}}, "should be greater than or equal to 0"),
        ({**right, "sript": "2"}, 'unknown field "spec.sript"'),
    ]:
        assert words in apply(namespace, spec), words
    # What has ended goes when it has been there for long enough.
    failing = {"cluster": spec_of(manifest()), "script": "raise SystemExit(1)"}
    apply(namespace, {**failing, "ttlSecondsAfterFinished": 1}, "short")
    kubectl("wait", "--for=delete", "clusterjob/short", "-n", namespace, "--timeout=90s")
    apply(namespace, {**right, "schedule": {"cron": "0 18 * * 9"}})
    wait(namespace, '{.status.conditions[?(@.type=="Accepted")].status}=False')
    assert "a schedule cannot come or go" in apply(namespace, {**right, "schedule": None})
    assert "cannot become another one" in apply(namespace, {**right, "clusterRef": {"name": "b"}})
    assert status(namespace)["message"].startswith('spec.schedule.cron: "0 18 * * 9": ')
    assert "\n" not in status(namespace)["message"] and status(namespace)["phase"] == "Pending"
    reasons = ["get", "events", "-n", namespace, "-o", "jsonpath={..reason}"]
    until(lambda: "InvalidSpec" in kubectl(*reasons), "the schedule's trouble is an event")
    assert run("ebbtide", "down", "job", "-n", namespace) == "job job is gone\n"
    err = runs("ebbtide", "down", "job", "-n", namespace)[2]
    assert f"there is no cluster job in namespace {namespace}" in err, err


def test_a_cluster_that_a_job_made_goes_with_the_job_and_that_of_others_is_let_alone(
    namespace: str, manifest: Callable[..., Path], program: Callable[[str], Path]
) -> None:
    before = objects(namespace)
    name = run(*command(program(LONG), manifest(), namespace, "--name", "job", "--detach")).strip()
    kubectl("wait", "--for=create", f"ebb/{name}", "-n", namespace, "--timeout=30s")
    label = f"ebbtide.dev/cluster={name},ebbtide.dev/job={name}"
    kubectl("wait", "--for=create", "pods", "-l", label, "-n", namespace, "--timeout=60s")
    assert run("ebbtide", "down", name, "-n", namespace) == f"job {name} is gone\n"
    assert settled(namespace, before) == before
    with up(manifest(), namespace):
        asks = command(program(PROGRAM), manifest(), namespace, "--name", "mean")
        code, _, err = runs(*asks)
        assert code == 1 and "cluster mean is there and is not this job's" in err, err
        assert "job mean is gone" in err
        path = "jsonpath={.status.phase}"
        assert kubectl("get", "ebb/mean", "-n", namespace, "-o", path) == "Ready"


def test_a_schedule_runs_on_a_cluster_that_is_there_and_leaves_it(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    kubectl("apply", "-n", namespace, "-f", str(manifest()))
    spec = {
        "clusterRef": {"name": "mean"},
        "script": PROGRAM,
        "schedule": {"cron": "* * * * *", "timeZone": "Asia/Kolkata"},
    }
    # The name of the first run is another's: that is told, and nothing of it is touched.
    minute = int(time.time()) // 60
    taken = [f"job-{minute + later}" for later in (1, 2)]
    for name in taken:
        apply(namespace, {"clusterRef": {"name": "nobody"}, "script": "1"}, name)
    apply(namespace, spec)
    wait(namespace, "{.status.phase}=Scheduled")
    assert "job is a schedule" in runs("ebbtide", "follow", "job", "-n", namespace)[2]
    # A minute begins within a minute.
    with told(namespace, "clusterjobs") as jobs:
        words = "exists and is not this job's"
        jobs.wait(lambda all_of: words in json.dumps(all_of), words)
    for name in taken:
        assert status(namespace, name)["phase"] == "Pending"
        kubectl("delete", f"clusterjob/{name}", "-n", namespace)
    wait(namespace, "{.status.active[0]}")
    [latest] = status(namespace)["active"]
    wait(namespace, "{.status.phase}=Succeeded", latest)
    log = kubectl("logs", status(namespace, latest)["pod"]["name"], "-n", namespace)
    assert log == f"{float(mean().compute())!r} of []\n"
    kubectl("delete", "clusterjob/job", "-n", namespace, "--cascade=foreground")
    assert kubectl("get", "clusterjobs", "-n", namespace, "-o", "name") == ""
    assert kubectl("get", "ebb/mean", "-n", namespace, "-o", "jsonpath={.status.phase}") == "Ready"
    kubectl("delete", "ebb/mean", "-n", namespace, "--cascade=foreground")


def test_nobody_is_lent_by_a_job_what_they_may_not_have_themselves(
    namespace: str, manifest: Callable[..., Path], may: Callable[..., None]
) -> None:
    for person in ("analyst", "engineer"):
        may(person, "ebbtide.dev", "clusterjobs", "get", "create", "patch")

    def tries(spec: dict[str, Any], person: str = "analyst") -> str:
        made = {
            "apiVersion": "ebbtide.dev/v1alpha1",
            "kind": "ClusterJob",
            "metadata": {"name": "job"},
            "spec": {"script": "1", **spec},
        }
        asks = ("create", f"--as={person}", "--dry-run=server", "-n", namespace, "-f", "-")
        return kubectl(*asks, input=json.dumps(made), check=False)

    own = {"cluster": spec_of(manifest())}
    for way, what in LENT:
        refused = f"its pods would have {what} that you may not"
        assert refused in tries({"cluster": spec_of(manifest(workers(**way)))}), way
        assert refused in tries({**own, "pod": way}), way
    assert "created" in tries(own)
    assert "credentials of a cluster" in tries({"clusterRef": {"name": "mean"}})
    assert "created" in tries({"clusterRef": {"name": "mean"}}, "engineer")

    # Nobody puts a cluster of their own, with an image of their own, under somebody's job.
    owner = {"apiVersion": "ebbtide.dev/v1alpha1", "kind": "ClusterJob", "name": "job"}
    made = yaml.safe_load(manifest().read_text())
    made["metadata"]["ownerReferences"] = [{**owner, "uid": "1", "controller": True}]
    asks = ("create", "--as=analyst", "--dry-run=server", "-n", namespace, "-f", "-")
    assert "the cluster of a job" in kubectl(*asks, input=json.dumps(made), check=False)

    # What runs with things that somebody else lent is not changed by others.
    lent = {**own, "script": "1", "suspend": True, "pod": LENT[0][0]}
    assert "created" in apply(namespace, lent)
    patch = ("patch", "clusterjob/job", "--as=analyst", "-n", namespace, "--type=merge", "-p")
    assert "Secrets" in kubectl(*patch, '{"spec":{"script":"2"}}', check=False)
    assert "Secrets" in kubectl(*patch, '{"spec":{"args":["2"]}}', check=False)
    assert "patched" in kubectl(*patch, '{"spec":{"retries":{"exit":1}}}', check=False)
    kubectl("delete", "clusterjob/job", "-n", namespace)
