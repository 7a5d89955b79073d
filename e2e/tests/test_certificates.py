"""Certificates are renewed while everybody works, and what somebody takes away comes back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ebbtide as eb
import pytest
from conftest import OPERATOR, alone, kubectl, mean, on_the_dev_cluster, resize, until, up

pytestmark = alone

AUTHORITY = ("secret/ebbtide-authority", "-n", "ebbtide")
#: Longest time for a takeover: two pauses of the dev cluster's chart, and looks.
TAKEOVER = 150


def authority() -> dict[str, str]:
    """Read what is kept of the authority."""
    return json.loads(kubectl("get", *AUTHORITY, "-o", "json"))["data"]


def status(namespace: str) -> dict:
    """Read the status of the cluster."""
    return json.loads(kubectl("get", "ebb", "mean", "-n", namespace, "-o", "json"))["status"]


def pods(namespace: str) -> dict[str, str]:
    """Tell the uids of pods by their names."""
    found = json.loads(kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
    return {it["metadata"]["name"]: it["metadata"]["uid"] for it in found}


def grow(namespace: str, workers: int) -> None:
    """Have so many workers: a new one must agree with everybody who was there before."""
    resize(namespace, workers, 110)


def works(namespace: str) -> None:
    """Have a new client compute something of which workers exchange parts."""
    small = mean((4000, 1000))
    with eb.Cluster("mean", namespace=namespace):
        bits = small.compute()
    assert bits == small.compute()


@contextmanager
def load(namespace: str) -> Iterator[list[int]]:
    """Have work done all the time, and count it. A task that fails fails the test."""
    done: list[int] = [0]
    stop = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        large = mean((4000, 1000))
        try:
            with eb.Cluster("mean", namespace=namespace) as cluster:
                bits = large.compute()
                while not stop.is_set():
                    futures = [cluster.submit(pow, it, 2) for it in range(20)]
                    assert [it.result(60) for it in futures] == [it * it for it in range(20)]
                    assert large.compute() == bits
                    done[0] += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join(120)
    assert not thread.is_alive()
    assert failed == []


@on_the_dev_cluster
def test_another_authority_takes_over_under_load_and_no_task_fails(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with up(manifest(), namespace):
        before, first = authority()["ca.crt"], status(namespace)["credentials"]
        grow(namespace, 2)
        there = pods(namespace)
        with load(namespace) as done:
            kubectl("annotate", *AUTHORITY, "ebbtide.dev/renew=now")

            def is_over() -> bool:
                data = authority()
                has_others = {"next.crt", "previous.crt"} & data.keys()
                return not has_others and data["ca.crt"] != before

            seen = {first}

            def is_told(count: int) -> bool:
                seen.add(status(namespace)["credentials"])
                return len(seen) > count

            # It is announced, it signs, and it signs alone.
            until(lambda: is_told(3), "three editions after the first", TAKEOVER)
            until(is_over, "another authority signs alone")
            # Who dials now does it with what the new one signed.
            kubectl("rollout", "restart", *OPERATOR)
            kubectl("rollout", "status", *OPERATOR, "--timeout=60s")
            grow(namespace, 3)
            count = done[0]
            until(lambda: done[0] > count + 1, "work goes on")
        works(namespace)
        assert there.items() <= pods(namespace).items()
        annotations = json.loads(kubectl("get", *AUTHORITY, "-o", "json"))["metadata"]
        assert "ebbtide.dev/renew" not in annotations.get("annotations", {})


@on_the_dev_cluster
def test_an_authority_that_somebody_deletes_comes_back_as_it_was(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    before = authority()
    kubectl("delete", *AUTHORITY)
    kubectl("wait", "--for=create", *AUTHORITY, "--timeout=60s")
    assert authority() == before
    with up(manifest(), namespace):
        works(namespace)


@on_the_dev_cluster
def test_clusters_recover_from_the_loss_of_the_authority_and_its_operator(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with up(manifest(), namespace):
        before, first, there = authority(), status(namespace)["credentials"], pods(namespace)
        kubectl("scale", *OPERATOR, "--replicas=0")
        operators = ["pods", "-n", "ebbtide", "-l", "app.kubernetes.io/name=ebbtide-operator"]
        try:
            kubectl("wait", "--for=delete", *operators, "--timeout=60s")
            kubectl("delete", *AUTHORITY)
        finally:
            kubectl("scale", *OPERATOR, "--replicas=1")
            kubectl("rollout", "status", *OPERATOR, "--timeout=60s")
        until(lambda: status(namespace)["credentials"] != first, "its Secrets are renewed")
        assert authority()["ca.crt"] != before["ca.crt"]
        # Kubelets bring them to the pods that run.
        grow(namespace, 2)
        works(namespace)
        assert there.items() <= pods(namespace).items()


def test_secrets_of_a_cluster_that_somebody_deletes_come_back_for_clients_and_new_workers(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with up(manifest(), namespace):
        kubectl("delete", "secrets", "--all", "-n", namespace)
        works(namespace)
        grow(namespace, 2)
        works(namespace)


@on_the_dev_cluster
def test_the_operator_may_write_no_secret_that_is_not_a_cluster_s(namespace: str) -> None:
    operator = "--as=system:serviceaccount:ebbtide:ebbtide-operator"
    theirs = ("secret", "generic", "theirs", "--from-literal=word=theirs", "-n", namespace)
    with pytest.raises(AssertionError, match="Secrets of clusters only"):
        kubectl("create", *theirs, operator)
    kubectl("create", *theirs)
    word = ("get", "secret", "theirs", "-n", namespace, "-o", "jsonpath={.data.word}")
    before = kubectl(*word)
    there = json.loads(kubectl("get", "secret", "theirs", "-n", namespace, "-o", "json"))
    there["stringData"] = {"word": "ours"}
    # Somebody else's owner, by whose uid the operator may not call a cluster.
    name = "kube-root-ca.crt"
    uid = kubectl("get", "configmap", name, "-n", namespace, "-o", "jsonpath={.metadata.uid}")
    other = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid}
    owner = {"apiVersion": "ebbtide.dev/v1alpha1", "kind": "Cluster", "name": "mean",
             "uid": uid, "controller": True}  # fmt: skip
    for has, names in (([], []), ([], [owner]), ([other], [owner])):
        metadata = json.dumps({"metadata": {"ownerReferences": has}})
        kubectl("patch", "secret", "theirs", "-n", namespace, "--type=merge", "-p", metadata)
        there["metadata"] |= {"ownerReferences": names, "resourceVersion": None}
        with pytest.raises(AssertionError, match="Secrets of clusters only"):
            kubectl("replace", operator, "-f", "-", input=json.dumps(there))
    assert kubectl(*word) == before
    token = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token"}
    token["metadata"] = {"name": "token", "namespace": namespace, "ownerReferences": [owner],
                         "annotations": {"kubernetes.io/service-account.name": "default"},
                         }  # fmt: skip
    with pytest.raises(AssertionError, match="Secrets of clusters only"):
        kubectl("create", operator, "-f", "-", input=json.dumps(token))


def test_a_renewal_that_somebody_prevents_is_told_and_keeps_the_cluster_from_nothing(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    with up(manifest(), namespace):
        mine = kubectl("get", "secrets", "-n", namespace, "-o", "name").split()
        client = next(it for it in mine if "client" in it)
        patch = ("--type=merge", "-p", json.dumps({"immutable": True}))
        kubectl("patch", client, "-n", namespace, *patch)
        kubectl("annotate", "ebb", "mean", "-n", namespace, "ebbtide.dev/renew=1")
        until(lambda: "cannot be renewed" in status(namespace).get("message", ""), "it is told")
        grow(namespace, 2)
        assert status(namespace)["phase"] == "Ready"
        kubectl("delete", client, "-n", namespace)
        until(lambda: "cannot be renewed" not in status(namespace).get("message", ""), "renewed")
        works(namespace)
