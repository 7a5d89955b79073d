"""Every field of the schema, with what nobody should write there: refused or told in words.

The manifests are made from the schema that the API server has: a new field is in it by itself.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from api import at, proxy
from conftest import abroad, alone, kubectl, up

# Hundreds of clusters at once.
pytestmark = alone

#: What many programs do not expect in a text.
TEXTS = ["", "../../etc/passwd", "a\nb", "$(id) `id` {{ id }}", "'; --", "\u202e\u0000", "x" * 4000]
#: What is of another kind than asked for, and numbers that are none.
OTHERS: dict[str, list[object]] = {
    "string": [7, True, {"odd": 1}, ["x"]],
    "integer": ["three", 2.5, -1, 2**40, 2**70, {"odd": 1}],
    "boolean": ["yes", 1, {"odd": 1}],
    "quantity": ["-1", "1e400", "1Zi", "NaN", "", 0, -5, {"odd": 1}, True],
    "object": ["text", [1], 7],
    "array": ["text", {"odd": 1}, 7],
}

#: One that fits each pattern of the schema.
FITTING = ["a", "1", "20m", "3.11", "/a", "* * * * *", "Etc/UTC", "0" * 8]

Place = tuple[str, ...]


@dataclass(frozen=True)
class Leaf:
    """A field: where it is, with `[]` for the first of a list and `{}` for the value of a key."""

    path: Place
    schema: dict

    def is_named(self, words: str) -> bool:
        """Tell whether a message names it, or what it is a part of."""
        named = [it for it in self.path if it not in ("[]", "{}")]
        # Nearly all are parts of the scheduler's pod: it must be said which.
        named = named[2:] or named
        said = words.lower().replace(" ", "")
        return any(it.removesuffix("Name").lower() in said for it in named)


def kind(schema: dict) -> str:
    """Tell what a schema asks for."""
    return "quantity" if schema.get("x-kubernetes-int-or-string") else schema["type"]


def leaves(schema: dict, path: Place) -> Iterator[Leaf]:
    """Walk a schema: all its fields, those that hold others, too."""
    yield Leaf(path, schema)
    for name, it in schema.get("properties", {}).items():
        yield from leaves(it, (*path, name))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from leaves(schema["additionalProperties"], (*path, "{}"))
    if "items" in schema:
        yield from leaves(schema["items"], (*path, "[]"))


def right(schema: dict) -> object:
    """Make the smallest value that a schema takes."""
    match kind(schema):
        case "object":
            made = {it: right(schema["properties"][it]) for it in schema.get("required", [])}
            return {"cpu": "1", "memory": "1Gi"} if schema.get("maxProperties") == 16 else made
        case "array":
            return [right(schema["items"])] * schema.get("minItems", 0)
        case "integer":
            return max(1, int(schema.get("minimum", 1)))
        case "boolean":
            return True
        case "quantity":
            return "1"
    if "enum" in schema:
        return schema["enum"][0]
    wanted = re.compile(schema.get("pattern", ""))
    return next(it for it in FITTING if wanted.search(it) and len(it) >= schema.get("minLength", 0))


def put(whole: object, schema: dict, path: Place, value: object) -> object:
    """Make a document with a value at a place, and what must be around it."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if whole is None:
        whole = right(schema)
    whole = copy.deepcopy(whole)
    match step:
        case "[]":
            assert isinstance(whole, list)
            first = whole[0] if whole else None
            return [put(first, schema["items"], rest, value), *whole[1:]]
        case "{}":
            assert isinstance(whole, dict)
            key = "cpu" if "cpu" in whole else "a"
            inner = schema["additionalProperties"]
            return {**whole, key: put(whole.get(key), inner, rest, value)}
    assert isinstance(whole, dict)
    inner = schema["properties"][step]
    return {**whole, step: put(whole.get(step), inner, rest, value)}


def wrong(schema: dict) -> Iterator[object]:
    """Make values that a field should not have."""
    asked = kind(schema)
    yield from OTHERS[asked]
    match asked:
        case "string":
            yield from TEXTS
            if "maxLength" in schema:
                yield "x" * (schema["maxLength"] + 1)
        case "array" if "maxItems" in schema:
            yield [right(schema["items"])] * (schema["maxItems"] + 1)
        case "object" if schema.get("properties"):
            yield {**right(schema), "odd": 1}
        case "object" if "maxProperties" in schema:
            yield {f"a{nth}": "1" for nth in range(schema["maxProperties"] + 1)}
        case "integer":
            yield from [schema["maximum"] + 1] if "maximum" in schema else []


CLUSTER = {
    "image": f"registry.invalid/image@sha256:{'0' * 64}",
    "workers": [{"name": "w", "max": 1, "resources": {"cpu": "1", "memory": "1Gi"}}],
}
JOB = {"clusterRef": {"name": "nobody"}, "command": ["true"], "suspend": True}

#: A field in the place of another: these come in two ways.
INSTEAD = {"environment": "image", "cluster": "clusterRef", "script": "command"}


def manifests(
    schema: dict, base: dict, skip: Callable[[Place], bool]
) -> Iterator[tuple[Leaf, dict]]:
    """Make a spec for each field and each thing that should not be there."""
    for leaf in leaves(schema, ()):
        if not leaf.path or skip(leaf.path):
            continue
        around = {it: value for it, value in base.items() if it != INSTEAD.get(leaf.path[0])}
        for value in wrong(leaf.schema):
            made = put(around, schema, leaf.path, value)
            assert isinstance(made, dict)
            yield leaf, made


def schema_of(plural: str) -> dict:
    """Read the schema of a kind's spec from the API server."""
    found = json.loads(kubectl("get", f"crd/{plural}.ebbtide.dev", "-o", "json"))
    (version,) = found["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]["properties"]["spec"]


def without_words(schema: object) -> object:
    """Leave out what is for people."""
    if isinstance(schema, dict):
        return {it: without_words(value) for it, value in schema.items() if it != "description"}
    return [without_words(it) for it in schema] if isinstance(schema, list) else schema


def in_another_place(path: Place) -> bool:
    """Tell what a scheduler's pod has as well."""
    return path[:3] == ("workers", "[]", "pod")


STRICT = "fieldValidation=Strict"


def check_refusal(leaf: Leaf, spec: dict, code: int, answer: dict) -> None:
    """See that an answer is a refusal which names the field."""
    where = f"{leaf.path}: {json.dumps(spec)[:600]}: {answer}"
    assert code in (400, 422), where
    assert leaf.is_named(answer["message"]), where


def test_what_holds_of_one_pod_holds_of_all() -> None:
    cluster, job = schema_of("clusters"), schema_of("clusterjobs")
    pod = cluster["properties"]["scheduler"]["properties"]["pod"]
    worker = cluster["properties"]["workers"]["items"]["properties"]["pod"]
    assert without_words(worker) == without_words(pod) == without_words(job["properties"]["pod"])
    inner = job["properties"]["cluster"]["properties"]
    assert without_words(inner) == without_words(cluster["properties"])


def test_what_should_not_be_in_a_field_of_a_job_is_refused_by_its_name() -> None:
    refused = 0
    with abroad() as namespace, proxy() as api:
        path = f"{at(namespace, 'clusterjobs')}?dryRun=All&{STRICT}"
        for leaf, spec in manifests(
            schema_of("clusterjobs"), JOB, lambda it: it[0] in ("cluster", "pod")
        ):
            code, answer = api.create(path, "ClusterJob", {"name": "a"}, spec)
            if code != 201:
                refused += 1
                check_refusal(leaf, spec, code, answer)
        assert kubectl("get", "ebb,ebbjob", "-n", namespace, "-o", "name") == ""
    assert refused > 100


@contextmanager
def without_pods() -> Iterator[str]:
    """Have a namespace without room for a pod: what is wrong with one is told before that."""
    with abroad() as namespace:
        kubectl("create", "quota", "none", "--hard=pods=0", "-n", namespace)
        kubectl("wait", "--for=jsonpath={.status.hard.pods}=0", "quota/none", "-n", namespace)
        yield namespace


def test_what_should_not_be_in_a_cluster_is_refused_or_told_by_name_and_can_be_corrected(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    taken: dict[str, tuple[Leaf, dict]] = {}
    refused = 0
    life = "jsonpath={.items[*].metadata.uid} {.items[*].metadata.generation} {..restartCount}"
    with up(manifest(), namespace), without_pods() as full, proxy() as api:
        before = kubectl("get", "pods,ebb", "-n", namespace, "-o", life)
        path = at(full, "clusters")
        for leaf, spec in manifests(schema_of("clusters"), CLUSTER, in_another_place):
            name = f"odd-{len(taken)}"
            code, answer = api.create(f"{path}?{STRICT}", "Cluster", {"name": name}, spec)
            if code == 201:
                taken[name] = (leaf, spec)
                continue
            refused += 1
            check_refusal(leaf, spec, code, answer)
        assert refused > 1000
        assert {it["metadata"]["name"] for it in api.read(path)["items"]} == taken.keys()
        said = api.told(path, len(taken), bool, 240)
        nameless = [
            (leaf.path, spec, said[name])
            for name, (leaf, spec) in taken.items()
            if "exceeded quota" not in said[name] and not leaf.is_named(said[name])
        ]
        assert not nameless
        wrong = {it for it, words in said.items() if "exceeded quota" not in words}
        assert len(wrong) > 50
        # Those that have no room have all but pods; of what is wrong with one nothing is made.
        kinds = "secrets,services,networkpolicies"
        owners = "jsonpath={.items[*].metadata.ownerReferences[*].name}"
        made = set(kubectl("get", kinds, "-n", full, "-o", owners).split())
        assert made == taken.keys() - wrong
        for name in taken:
            mended = [{"op": "replace", "path": "/spec", "value": CLUSTER}]
            code, text = api.ask("PATCH", f"{path}/{name}", mended, "application/json-patch+json")
            assert code == 200, f"{taken[name]}: {text}"
        api.told(path, len(taken), lambda words: "exceeded quota" in words, 240)
        assert kubectl("get", "pods", "-n", full, "-o", "name") == ""
        api.ask("DELETE", path)
        assert kubectl("get", "pods,ebb", "-n", namespace, "-o", life) == before
