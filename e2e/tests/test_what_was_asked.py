"""What the operators of both dev clusters asked of the API server in all tests. It comes last."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import LISTED, alone, kubectl, on_the_dev_cluster

OPERATOR = "system:serviceaccount:ebbtide:ebbtide-operator"

#: Nobody asks for these: who names an owner whose deletion waits must have them.
OF_OWNERS = {
    ("ebbtide.dev", "clusters/finalizers", "update"),
    ("ebbtide.dev", "clusterjobs/finalizers", "update"),
}

#: What is asked for when an object cannot be read: that takes another definition, for everybody.
OF_DEFINITIONS = {
    ("ebbtide.dev", "clusters/status", "patch"),
    ("ebbtide.dev", "clusterjobs/status", "patch"),
}

Asked = tuple[str, str, str]


@dataclass(frozen=True)
class Request:
    """One request of the operator, as the API server judged it."""

    asked: Asked
    namespace: str
    decision: str
    pod: str
    at: str

    @property
    def right(self) -> tuple[Asked, str]:
        """What it takes a right to."""
        return (self.asked, self.namespace)


@pytest.fixture
def requests() -> list[Request]:
    """Read what the operators asked for."""
    first = Path(os.environ["KUBECONFIG"]).parent
    second = first.with_name(f"{first.name}-second")
    logs = [it / "n1" / "log" / "audit.log" for it in (first, second)]
    found = []
    for line in (line for log in logs if log.exists() for line in log.read_text().splitlines()):
        event = json.loads(line)
        if event["user"]["username"] != OPERATOR or "objectRef" not in event:
            continue
        if "annotations" not in event and event["responseStatus"]["code"] == 429:
            # Turned away for being too many at once, before anybody asked whether it may.
            continue
        about = event["objectRef"]
        resource = "/".join(filter(None, [about["resource"], about.get("subresource")]))
        asked = (about.get("apiGroup", ""), resource, event["verb"])
        decision = event["annotations"]["authorization.k8s.io/decision"]
        at = event["requestReceivedTimestamp"]
        [pod] = event["user"]["extra"]["authentication.kubernetes.io/pod-name"]
        found.append(Request(asked, about.get("namespace", ""), decision, pod, at))
    return found


def always_refused(requests: list[Request]) -> set[tuple[Asked, str]]:
    """Find what was never allowed.

    An API server that has just started refuses what it has not read the roles for yet, and a
    test kills one: a single refusal says nothing. Those namespaces that `e2e/run listed` lists have
    a test of their own.
    """
    requests = [it for it in requests if not it.namespace.startswith("listed-")]
    allowed = {request.right for request in requests if request.decision == "allow"}
    return {request.right for request in requests} - allowed


def rights(*roles: str, namespace: str = "ebbtide") -> set[Asked]:
    """Read what roles of the chart let the operator do."""
    rules = []
    for role in roles:
        rules += json.loads(kubectl("get", role, "-n", namespace, "-o", "json"))["rules"]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@on_the_dev_cluster
@alone
@pytest.mark.last
def test_the_operator_asks_for_nothing_that_it_may_not_and_may_nothing_that_it_does_not_ask_for(
    requests: list[Request],
) -> None:
    assert always_refused(requests) == set()
    judge(requests, rights("clusterrole/ebbtide-operator", "role/ebbtide-authority"))


def judge(requests: list[Request], allowed: set[Asked]) -> None:
    """Hold what was asked against what is allowed: everything, and no more."""
    asked = {request.asked for request in requests}
    assert not any("*" in part for it in allowed for part in it)
    assert allowed - OF_OWNERS - asked == set()
    secrets = {it.right for it in requests if it.asked[1] == "secrets"}
    assert {verb for (_, _, verb), namespace in secrets if namespace != "ebbtide"} <= {
        "create", "update"
    }  # fmt: skip
    assert {verb for (_, _, verb), _ in secrets} <= {"create", "update", "get"}


@on_the_dev_cluster
@alone
@pytest.mark.last
@pytest.mark.listed
def test_an_operator_of_listed_namespaces_asks_for_nothing_elsewhere_and_for_what_it_may(
    requests: list[Request],
) -> None:
    assert LISTED is not None
    # Those before had the rights of another installation.
    before = {it.pod for it in requests if it.at < os.environ["EBBTIDE_E2E_LISTED_SINCE"]}
    requests = [it for it in requests if it.pod not in before]
    elsewhere = {it for it in requests if not it.namespace.startswith("listed-")}
    assert {it for it in elsewhere if (it.namespace, it.decision) != ("ebbtide", "allow")} == set()
    # A namespace goes with the rights of the operator there.
    refused = {it.asked for it in requests if it.decision != "allow"}
    assert refused - {it.asked for it in requests if it.decision == "allow"} == set()
    # The first namespaces were taken by tests, and are gone.
    last = sorted(it.name for it in Path(LISTED).iterdir())[-1]
    judge(requests, rights("role/ebbtide-operator", namespace=last) - OF_DEFINITIONS)
