"""The API server's own requests, for tests that ask for much."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Iterator
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

    def columns(self, path: str) -> list[dict]:
        """Read what kubectl prints of everything that is there, and no more."""
        self._connection.request("GET", f"{path}?includeObject=None", headers={"Accept": TABLE})
        answer = self._connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, f"{path}: {text}"
        found = json.loads(text)
        names = [it["name"] for it in found["columnDefinitions"]]
        return [dict(zip(names, row["cells"], strict=True)) for row in found["rows"]]

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
