"""The API server that the operator's worlds are played on is a model: is it like a real one?

Random requests, of the kinds that the operator and its users make, go to both. Codes, reasons,
what is left, what watches tell and what the garbage collector takes must be the same.
"""

from __future__ import annotations

import copy
import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from api import MERGE, Api, proxy
from conftest import abroad, alone, no_operator

# The operator would change clusters meanwhile.
pytestmark = alone

PROGRAM = Path(__file__).parents[2] / ".tools" / "bin" / "ebbtide-model"

SEEDS = range(20)
REQUESTS = 80

HOLD = "ebbtide.dev/held-by-a-test"

#: Where each kind is, and what its objects have when they come.
PATHS = {
    "clusters": "/apis/ebbtide.dev/v1alpha1",
    "clusterjobs": "/apis/ebbtide.dev/v1alpha1",
    "configmaps": "/api/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "pods": "/api/v1",
    "secrets": "/api/v1",
    "services": "/api/v1",
}
KINDS = {
    "clusters": "Cluster",
    "clusterjobs": "ClusterJob",
    "configmaps": "ConfigMap",
    "leases": "Lease",
    "networkpolicies": "NetworkPolicy",
    "pods": "Pod",
    "secrets": "Secret",
    "services": "Service",
}
#: What an object says of itself in every kind; not in lists of those that are built in.
ABOUT = ("apiVersion", "kind", "metadata")
OWNERS = ("clusters", "clusterjobs", "configmaps")

#: What is compared to the letter; of the rest the real server may have more.
METADATA = (
    "name",
    "labels",
    "annotations",
    "finalizers",
    "generation",
    "deletionGracePeriodSeconds",
)


class Model:
    """The model."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Speak to this one."""
        self._process = process

    def ask(
        self, method: str, path: str, body: object = None, content: str = "application/json"
    ) -> tuple[int, str]:
        """Ask, and return the code and what came."""
        answer = self._say({"method": method, "path": path, "contentType": content, "body": body})
        return answer["code"], answer["body"]

    def collect(self) -> int:
        """Let its garbage collector do all that it has to, and tell how much that was."""
        return self._say({"method": "COLLECT"})["collected"]

    def _say(self, asked: dict) -> dict:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def empty() -> Iterator[Model]:
    """Have an empty model meanwhile, which e2e/run has built."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([PROGRAM], text=True, **pipes) as process:  # type: ignore[call-overload]
        yield Model(process)


def spec(kind: str, choice: str) -> dict:
    """Make what an object of a kind is about, one way or the other."""
    container = {
        "name": "it",
        "image": f"registry.invalid/{choice}",
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    cluster = {
        "image": f"registry.invalid/image@sha256:{'0' * 64}",
        "workers": [{"name": choice, "max": 1, "resources": {"cpu": "1", "memory": "1Gi"}}],
    }
    return {
        "clusters": {"spec": cluster},
        "clusterjobs": {"spec": {"script": choice, "suspend": True, "clusterRef": {"name": "x"}}},
        "configmaps": {"data": {"it": choice}},
        "leases": {"spec": {"holderIdentity": choice, "leaseDurationSeconds": 15}},
        "networkpolicies": {"spec": {"podSelector": {"matchLabels": {"it": choice}}}},
        # No scheduler takes it.
        "pods": {"spec": {"schedulerName": "nobody", "containers": [container]}},
        "secrets": {"stringData": {"it": choice}},
        # Without a selector nobody makes slices of endpoints for it.
        "services": {
            "spec": {
                "clusterIP": "None",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            }
        },
    }[kind]


def types(kind: str) -> dict[str, str]:
    """Tell what an object says of its kind."""
    return {"apiVersion": PATHS[kind].split("/", 2)[2], "kind": KINDS[kind]}


STATUS = {
    "clusters": lambda choice: {
        "phase": "Ready" if choice == "a" else "Starting",
        "message": choice,
        "workers": {"desired": 1, "starting": 0, "ready": 0, "retiring": 0, "failed": 0},
    },
    "clusterjobs": lambda choice: {"phase": "Suspended", "message": choice},
}


@dataclass
class Seen:
    """What one side told of an object last, and of all its versions."""

    last: dict = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)


class Sides:
    """Both servers, and what was seen there of each object."""

    def __init__(self, real: Api, model: Model, namespace: str, run: str) -> None:
        """Begin with nothing."""
        self.of: dict[str, Api | Model] = {"real": real, "model": model}
        self.real, self.model = real, model
        self.seen: dict[str, dict[tuple[str, str], Seen]] = {"real": {}, "model": {}}
        self.lives: list[tuple[str, str, dict[str, str]]] = []
        self.namespace, self.run = namespace, run
        self.told: list[str] = []
        found = [self._list("real", kind)["metadata"]["resourceVersion"] for kind in PATHS]
        self.begin = {"real": found[-1], "model": "0"}

    def path(self, kind: str, *rest: str, **query: object) -> str:
        """Tell where something is."""
        asked = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in query.items())
        path = "/".join([PATHS[kind], "namespaces", self.namespace, kind, *rest])
        return f"{path}?{asked}" if asked else path

    def ask(
        self,
        method: str,
        path: str,
        body: Callable[[str], object],
        content: str = "application/json",
    ) -> dict[str, tuple[int, dict]]:
        """Ask both, and hold their codes and reasons against each other."""
        answers = {}
        for side, server in self.of.items():
            code, text = server.ask(method, path, body(side), content)
            answers[side] = (code, json.loads(text))
        self.told.append(f"{method} {path} {content} {json.dumps(body('model'))}")
        told = {
            side: (code, answer.get("reason") if code >= 400 else None)
            for side, (code, answer) in answers.items()
        }
        assert told["model"] == told["real"], self.tell(answers)
        return answers

    def uids(self) -> list[dict[str, str]]:
        """Tell the uids of all objects that there were, on each side."""
        return [uids for _, _, uids in self.lives]

    def keep(self, kind: str, answers: dict[str, tuple[int, dict]]) -> None:
        """Hold one object against the other, and remember it."""
        if answers["real"][0] >= 400:
            return
        objects = {side: answer for side, (_, answer) in answers.items()}
        name = objects["real"]["metadata"]["name"]
        uids = {side: it["metadata"]["uid"] for side, it in objects.items()}
        if uids not in self.uids():
            self.lives.append((kind, name, uids))
        seen = {side: self.seen[side].setdefault((kind, name), Seen()) for side in self.of}
        changed = {}
        for side, it in objects.items():
            version = it["metadata"]["resourceVersion"]
            changed[side] = seen[side].versions[-1:] != [version]
            if changed[side]:
                seen[side].versions.append(version)
            seen[side].last = it
        assert changed["real"] == changed["model"], self.tell(answers, "one changed")
        self.same(objects)

    def same(self, objects: dict[str, dict]) -> None:
        """Hold what two objects say against each other."""
        metadata = {side: self.normal(side, it) for side, it in objects.items()}
        assert metadata["model"] == metadata["real"], self.tell(objects)
        rest = [
            {key: value for key, value in it.items() if key not in ABOUT}
            for it in (objects["model"], objects["real"])
        ]
        assert has(*rest), self.tell(objects)

    def normal(self, side: str, it: dict) -> dict:
        """Tell what both must say of an object."""
        metadata = it["metadata"]
        uid = {one[side]: index for index, one in enumerate(self.uids())}
        said = {key: metadata[key] for key in METADATA if metadata.get(key)}
        return said | {
            "finalizers": sorted(said.get("finalizers", [])),
            "uid": uid.get(metadata["uid"], metadata["uid"]),
            "owners": [
                uid.get(one["uid"], one["uid"]) for one in metadata.get("ownerReferences", [])
            ],
            "created": "creationTimestamp" in metadata,
            "going": "deletionTimestamp" in metadata,
        }

    def _list(self, side: str, kind: str) -> dict:
        path = self.path(kind, labelSelector=f"run={self.run}")
        code, text = self.of[side].ask("GET", path)
        assert code == 200, text
        return json.loads(text)

    def everything(self, side: str) -> dict[tuple[str, str], dict]:
        """Tell all that is there."""
        found = {}
        for kind in PATHS:
            for it in self._list(side, kind)["items"]:
                found[kind, it["metadata"]["name"]] = it
        return found

    def settle(self) -> None:
        """Let both garbage collectors do their work, and look at what is left."""
        if self.model.collect() == 0:
            return
        end = time.monotonic() + 30
        while True:
            left = {side: self.everything(side) for side in self.of}
            shown = {
                side: {key: self.normal(side, it) for key, it in found.items()}
                for side, found in left.items()
            }
            if shown["real"] == shown["model"]:
                break
            if time.monotonic() > end:
                self.agree(*shown.values(), "what is left")
        for side, found in left.items():
            for key, seen in self.seen[side].items():
                seen.last = found.get(key, {})
                version = seen.last.get("metadata", {}).get("resourceVersion")
                if version and seen.versions[-1] != version:
                    seen.versions.append(version)

    def watched(self, selector: str) -> dict[str, dict]:
        """Tell all that happened to each object, as watches from the beginning show it."""
        found: dict[str, dict] = {"real": {}, "model": {}}

        def watch(side: str, kind: str) -> None:
            server = self.real.another() if side == "real" else self.model
            asked = {"watch": "true", "timeoutSeconds": 1, "resourceVersion": self.begin[side]}
            path = self.path(kind, labelSelector=selector, **asked)
            code, text = server.ask("GET", path)
            assert code == 200, text
            for line in text.splitlines():
                event = json.loads(line)
                if event["type"] != "BOOKMARK":
                    it = event["object"]
                    said = {"type": event["type"], **self.normal(side, it)}
                    events = found[side].setdefault(f"{kind} {it['metadata']['name']}", [])
                    # Now and then the real pod garbage collector notes that one which goes and
                    # never had a node has failed.
                    if not (kind == "pods" and said.get("going") and events[-1:] == [said]):
                        events.append(said)

        with ThreadPoolExecutor(len(PATHS)) as threads:
            list(threads.map(lambda kind: watch("real", kind), PATHS))
        for kind in PATHS:
            watch("model", kind)
        return found

    def agree(self, real: dict, model: dict, words: str) -> None:
        """Hold what each side has by its names against each other."""
        differ = {
            str(key): {"real": real.get(key), "model": model.get(key)}
            for key in real | model
            if real.get(key) != model.get(key)
        }
        assert not differ, self.tell(differ, words)

    def tell(self, answers: object, words: str = "they differ") -> str:
        """Tell what was asked, and what came."""
        asked = "\n".join(self.told[-60:])
        return f"{words}, run {self.run}:\n{asked}\n{json.dumps(answers, indent=1)}"


def has(wanted: object, there: object) -> bool:
    """Tell whether one document has all that another has."""
    if isinstance(wanted, dict):
        return isinstance(there, dict) and all(
            has(it, there.get(key)) for key, it in wanted.items()
        )
    if isinstance(wanted, list):
        same = isinstance(there, list) and len(wanted) == len(there)
        return same and all(has(*pair) for pair in zip(wanted, there, strict=True))
    return wanted == there


class Asker:
    """Somebody who asks for this and that."""

    def __init__(self, sides: Sides, seed: int) -> None:
        """The same for the same seed."""
        self.sides, self.random = sides, random.Random(seed)

    def ask(self) -> None:
        """Ask for something."""
        kind = self.random.choice(list(PATHS))
        name = f"it-{self.sides.run}-{self.random.choice('abc')}"
        more = [self.merge, self.delete, self.create]
        more += [self.replace] if kind in ("configmaps", "secrets", "clusters", "leases") else []
        more += [self.status] if kind in STATUS else []
        self.random.choice([self.create, self.get, self.list, *more])(kind, name)
        self.sides.settle()

    def get(self, kind: str, name: str) -> None:
        """Read an object."""
        answers = self.sides.ask("GET", self.sides.path(kind, name), nothing)
        self.sides.keep(kind, answers)
        if answers["real"][0] == 404:
            for side in self.sides.of:
                self.sides.seen[side].setdefault((kind, name), Seen()).last = {}

    def list(self, kind: str, name: str) -> None:
        """Read a kind."""
        color = f"run={self.sides.run},color={self.random.choice(['red', 'blue'])}"
        answers = self.sides.ask("GET", self.sides.path(kind, labelSelector=color), nothing)
        items = {side: answer["items"] for side, (_, answer) in answers.items()}
        lengths = {side: len(some) for side, some in items.items()}
        assert lengths["real"] == lengths["model"], self.sides.tell(items)
        for real, modelled in zip(items["real"], items["model"], strict=True):
            self.sides.same({"real": real, "model": modelled})

    def labels(self) -> dict:
        """Draw labels."""
        return {"run": self.sides.run, "color": self.random.choice(["red", "blue"])}

    def create(self, kind: str, name: str) -> None:
        """Create an object, which may be another's or held."""
        metadata: dict = {"name": name, "labels": self.labels()}
        if self.random.random() < 0.2:
            metadata["finalizers"] = [HOLD]
        owner = self.owner() if self.random.random() < 0.4 else None

        def body(side: str) -> dict:
            made = {**types(kind), "metadata": copy.deepcopy(metadata), **spec(kind, "a")}
            if kind == "pods" and placed:
                made["spec"]["nodeName"] = f"nowhere-{self.sides.run}"
            if owner is not None:
                made["metadata"]["ownerReferences"] = [owner(side)]
            return made

        placed = self.random.random() < 0.4
        self.sides.keep(kind, self.sides.ask("POST", self.sides.path(kind), body))

    def owner(self) -> Callable[[str], dict] | None:
        """Draw an owner: one that is there, or was.

        What comes while its owner goes is collected later by the real server than by the model:
        with the next of the owner's others that is gone.
        """
        seen = self.sides.seen["real"]
        going = [
            it.last["metadata"]["uid"]
            for it in seen.values()
            if "deletionTimestamp" in it.last.get("metadata", {})
        ]
        lives = [
            life for life in self.sides.lives if life[0] in OWNERS and life[2]["real"] not in going
        ]
        if not lives:
            return None
        kind, name, uids = self.random.choice(lives)

        def reference(side: str) -> dict:
            said = {"name": name, "uid": uids[side]}
            return {**types(kind), "blockOwnerDeletion": True, **said}

        return reference

    def version(self, side: str, key: tuple[str, str], which: str) -> str | None:
        """Tell a version of an object: the last one, or one before."""
        versions = self.sides.seen[side].get(key, Seen()).versions
        if which == "none" or not versions:
            return None
        return versions[-1] if which == "last" else versions[0]

    def merge(self, kind: str, name: str) -> None:
        """Change something of an object."""
        which = self.random.choice(["none", "none", "last", "first"])
        change = self.random.choice(["labels", "annotations", "finalizers", "content"])
        choice, pick = self.random.choice("ab"), self.random.random()
        metadata: dict = {}
        match change:
            case "labels":
                metadata["labels"] = {"color": self.random.choice(["red", "blue", None])}
            case "annotations":
                metadata["annotations"] = {"it": self.random.choice([choice, None])}
            case "finalizers":
                metadata["finalizers"] = [HOLD] if pick < 0.3 else []

        def body(side: str) -> dict:
            made = {"metadata": dict(metadata)}
            version = self.version(side, (kind, name), which)
            if version is not None:
                made["metadata"]["resourceVersion"] = version
            # What a pod or a Service is about stays.
            if change == "content" and kind not in ("pods", "services", "secrets"):
                made |= spec(kind, choice)
            return made

        self.sides.ask("PATCH", self.sides.path(kind, name), body, MERGE)
        self.get(kind, name)

    def replace(self, kind: str, name: str) -> None:
        """Write another object in the place of one, as it was read.

        Only a lease would come by that, which nobody asks for like this.
        """
        if kind == "leases" and not self.sides.seen["real"].get((kind, name), Seen()).last:
            return
        key, choice = (kind, name), self.random.choice("ab")
        which = self.random.choice(["none", "last", "last", "first"])
        # Something differs each time: the real server notes who replaced what, even by the same.
        last = self.sides.seen["model"].get(key, Seen()).last.get("metadata", {})
        is_red = last.get("labels", {}).get("color") == "red"
        labels = {"run": self.sides.run, "color": "blue" if is_red else "red"}

        def body(side: str) -> dict:
            made = copy.deepcopy(self.sides.seen[side].get(key, Seen()).last)
            made.setdefault("metadata", {"name": name})["labels"] = labels
            made["metadata"].pop("resourceVersion", None)
            version = self.version(side, key, which)
            if version is not None:
                made["metadata"]["resourceVersion"] = version
            return made | types(kind) | spec(kind, choice)

        self.sides.ask("PUT", self.sides.path(kind, name), body)
        self.get(kind, name)

    def status(self, kind: str, name: str) -> None:
        """Write a status as the operator does: over one that was read."""
        key, choice = (kind, name), self.random.choice("ab")
        said, which = STATUS[kind](choice), self.random.choice(["last", "last", "first"])

        def body(side: str) -> dict:
            last = copy.deepcopy(self.sides.seen[side].get(key, Seen()).last)
            last.setdefault("metadata", {"name": name})
            version = self.version(side, key, which)
            if version is not None:
                last["metadata"]["resourceVersion"] = version
            return last | types(kind) | {"status": said}

        self.sides.ask("PUT", self.sides.path(kind, name, "status"), body)
        self.get(kind, name)

    def delete(self, kind: str, name: str) -> None:
        """Let an object go, with whatever a deletion may ask for."""
        key = (kind, name)
        policy = self.random.choice([None, "Foreground", "Background"])
        grace = self.random.choice([None, 0, 5, 40]) if kind == "pods" else None
        which = self.random.choice(["none", "none", "last", "first"])
        whose = self.random.choice([None, "own", "another's"])
        uids = self.sides.uids()
        other = self.random.choice(uids) if uids else None

        def body(side: str) -> dict:
            last = self.sides.seen[side].get(key, Seen()).last
            uid = {None: None, "own": last.get("metadata", {}).get("uid")}.get(
                whose, other[side] if other else None
            )
            conditions = {"uid": uid, "resourceVersion": self.version(side, key, which)}
            asked = {
                "preconditions": {it: value for it, value in conditions.items() if value},
                "propagationPolicy": policy,
                "gracePeriodSeconds": grace,
            }
            return {it: value for it, value in asked.items() if value not in (None, {})}

        self.sides.ask("DELETE", self.sides.path(kind, name), body)
        # The real garbage collector does not wait to be asked.
        self.sides.settle()
        self.get(kind, name)


def nothing(side: str) -> None:
    """Send no body."""


def clear(sides: Sides) -> None:
    """Take away on the real server what a run has left, whatever holds it."""
    for kind, name in sides.everything("real"):
        path = sides.path(kind, name)
        sides.real.ask("DELETE", path, {"gracePeriodSeconds": 0})
        sides.real.ask("PATCH", path, {"metadata": {"finalizers": []}}, MERGE)


def test_the_model_answers_random_requests_as_the_real_api_server_does() -> None:
    with no_operator(), abroad() as namespace, proxy() as real:
        for seed in SEEDS:
            with empty() as modelled:
                sides = Sides(real, modelled, namespace, str(seed))
                asker = Asker(sides, seed)
                try:
                    for _ in range(REQUESTS):
                        asker.ask()
                    left = {side: sides.everything(side) for side in sides.of}
                    assert left["real"].keys() == left["model"].keys(), sides.tell(left)
                    for key, it in left["real"].items():
                        sides.same({"real": it, "model": left["model"][key]})
                    for selector in (f"run={seed}", f"run={seed},color=red"):
                        told = sides.watched(selector)
                        sides.agree(told["real"], told["model"], f"what watches of {selector} tell")
                finally:
                    clear(sides)
