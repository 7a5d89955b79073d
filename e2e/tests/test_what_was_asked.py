"""What the operator asked of the API server in all tests. This file comes last."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from conftest import kubectl, on_the_dev_cluster

OPERATOR = "system:serviceaccount:ebbtide:ebbtide-operator"

#: Nobody asks for these: who names an owner whose deletion waits must have them.
OF_OWNERS = {
    ("ebbtide.dev", "clusters/finalizers", "update"),
    ("ebbtide.dev", "clusterjobs/finalizers", "update"),
}

Asked = tuple[str, str, str]


@pytest.fixture
def asked() -> dict[Asked, Counter[str]]:
    """Read what was asked for, and whether it was allowed."""
    log = Path(os.environ["KUBECONFIG"]).parent / "n1" / "log" / "audit.log"
    found: dict[Asked, Counter[str]] = {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["user"]["username"] != OPERATOR or "objectRef" not in event:
            continue
        about = event["objectRef"]
        resource = "/".join(filter(None, [about["resource"], about.get("subresource")]))
        key = (about.get("apiGroup", ""), resource, event["verb"])
        decision = event["annotations"]["authorization.k8s.io/decision"]
        found.setdefault(key, Counter())[decision] += 1
    return found


def rights() -> set[Asked]:
    """Read what the chart lets the operator do."""
    rules = []
    for role in ("clusterrole/ebbtide-operator", "role/ebbtide-authority"):
        rules += json.loads(kubectl("get", role, "-n", "ebbtide", "-o", "json"))["rules"]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@on_the_dev_cluster
@pytest.mark.of_all
def test_the_operator_asks_for_nothing_that_it_may_not_and_may_nothing_that_it_does_not_ask_for(
    asked: dict[Asked, Counter[str]],
) -> None:
    assert {it: told for it, told in asked.items() if set(told) != {"allow"}} == {}
    allowed = rights()
    assert not any("*" in part for it in allowed for part in it)
    assert allowed - OF_OWNERS - set(asked) == set()
    assert {verb for _, resource, verb in asked if resource == "secrets"} == {"create", "get"}
