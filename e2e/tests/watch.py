"""What a watch tells of pods, clusters and jobs, for tests that wait for it and see all of it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conftest import kubectl

OURS = "/apis/ebbtide.dev/v1alpha1"
PATHS = {"pods": "/api/v1", "clusters": OURS, "clusterjobs": OURS}


class Told:
    """What a watch told, as it came: the objects that are there, and all that ever were."""

    def __init__(self, path: str) -> None:
        """Start at what is there now."""
        self.made: list[dict] = []
        self.gone: dict[str, int] = {}
        self.live: dict[str, dict] = {}
        self.changed = threading.Condition()
        # A watch from nowhere begins at any time, also before what the test has seen.
        listed = json.loads(kubectl("get", "--raw", path))
        for it in listed["items"]:
            self.made.append(it)
            self.live[it["metadata"]["uid"]] = it
        since = listed["metadata"]["resourceVersion"]
        command = ["kubectl", "get", "--raw", f"{path}?watch=true&resourceVersion={since}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            it = event["object"]
            uid = it["metadata"]["uid"]
            with self.changed:
                if event["type"] == "ADDED":
                    self.made.append(it)
                if event["type"] == "DELETED":
                    self.gone[uid] = int(it["metadata"]["resourceVersion"])
                    del self.live[uid]
                else:
                    self.live[uid] = it
                self.changed.notify_all()

    def wait(self, wanted: Callable[[list[dict]], bool], words: str) -> list[dict]:
        """Wait until what is there is as wanted. Return that."""
        with self.changed:
            is_so = self.changed.wait_for(lambda: wanted(list(self.live.values())), 120)
            found = list(self.live.values())
        assert is_so, f"{words}: {sorted(it['metadata']['name'] for it in found)}"
        return found

    def close(self) -> None:
        """Stop listening."""
        self._process.terminate()
        self._reader.join()
        self._process.wait()


@contextmanager
def told(namespace: str, kind: str) -> Iterator[Told]:
    """Watch the pods, clusters or jobs of a namespace meanwhile."""
    watch = Told(f"{PATHS[kind]}/namespaces/{namespace}/{kind}")
    try:
        yield watch
    finally:
        watch.close()


def owner(pod: dict) -> str:
    """Tell the uid of a pod's one owner."""
    (it,) = pod["metadata"].get("ownerReferences", [{"uid": "nobody"}])
    return it["uid"]


def short(pod: dict) -> str:
    """Shorten the name of a pod to its cluster and its place there."""
    cluster, _, place = pod["metadata"]["name"].split("-", 2)
    return f"{cluster} {place}"
