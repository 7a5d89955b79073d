"""The API server's own requests, for tests that ask for much."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MERGE = "application/merge-patch+json"
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"


class Api:
    """An API server, behind kubectl's proxy."""

    def __init__(self, port: int) -> None:
        """Connect once."""
        self._port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(
        self, method: str, path: str, body: object = None, content: str = "application/json"
    ) -> tuple[int, str]:
        """Ask, and return the code and what came."""
        words = None if body is None else json.dumps(body)
        self._connection.request(method, path, words, {"Content-Type": content})
        answer = self._connection.getresponse()
        return answer.status, answer.read().decode()

    def read(self, path: str) -> dict:
        """Read what is there."""
        code, text = self.ask("GET", path)
        assert code == 200, f"{path}: {text}"
        return json.loads(text)

    def create(self, path: str, kind: str, metadata: dict, spec: dict) -> tuple[int, dict]:
        """Ask for an object of ours, and return the code and the answer."""
        whole = {"apiVersion": "ebbtide.dev/v1alpha1", "kind": kind, "metadata": metadata}
        code, text = self.ask("POST", path, {**whole, "spec": spec})
        return code, json.loads(text)

    def told(
        self, path: str, count: int, is_told: Callable[[str], bool], seconds: int
    ) -> dict[str, str]:
        """Watch until the messages of so many objects are of a kind. Return them, by name."""
        own = self.another()._connection
        own.timeout = seconds
        query = f"watch=true&includeObject=None&timeoutSeconds={seconds}"
        own.request("GET", f"{path}?{query}", headers={"Accept": TABLE})
        answer = own.getresponse()
        assert answer.status == 200, f"{path}: {answer.read().decode()}"
        names: list[str] = []
        said: dict[str, str] = {}
        waiting: set[str] = set()
        with contextlib.closing(own):
            for line in answer:
                table = json.loads(line)["object"]
                # The first one alone says what the columns are.
                names = [it["name"] for it in table["columnDefinitions"] or []] or names
                for row in table["rows"]:
                    it = dict(zip(names, row["cells"], strict=True))
                    said[it["Name"]] = it["Message"] or ""
                    (waiting.discard if is_told(said[it["Name"]]) else waiting.add)(it["Name"])
                if len(said) == count and not waiting:
                    return said
        some = {it: said[it] for it in sorted(waiting)[:8]}
        raise AssertionError(f"{len(waiting)} of {len(said)} of {count}: {some}")

    def another(self) -> Api:
        """Connect once more."""
        return Api(self._port)


def at(namespace: str, plural: str) -> str:
    """Tell where objects of ours are."""
    return f"/apis/ebbtide.dev/v1alpha1/namespaces/{namespace}/{plural}"


@contextmanager
def proxy() -> Iterator[Api]:
    """Have the way to the API server open meanwhile."""
    command = ["kubectl", "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Api(int(process.stdout.readline().rsplit(":", 1)[1]))
        finally:
            process.terminate()
