"""Clusters that exist already, as context managers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import TracebackType

from ebbtide import _native

_open: ContextVar[tuple[Cluster, ...]] = ContextVar("ebbtide_open_clusters", default=())


class Cluster:
    """A running cluster, by its name. Computations inside the `with` block run there.

    Without a name it is the cluster that `ebbtide up --run` started this program for. Attaching
    never deletes the cluster. The way to its scheduler leads through the API server's
    port-forward, or straight there on this machine.

    Raises:
        ConnectionLost: there is no such cluster, or it refuses this client.

    """

    def __init__(
        self,
        name: str | None = None,
        *,
        namespace: str | None = None,
        backend: str | None = None,
    ) -> None:
        """Attach to a cluster. `backend` is `"kubernetes"` or `"local"`."""
        name = name or os.environ.get("EBBTIDE_CLUSTER")
        if not name:
            raise ValueError("a cluster needs a name: eb.Cluster('name')")
        command = [_program(), "endpoint", name]
        if namespace:
            command += ["--namespace", namespace]
        if backend:
            command += ["--backend", backend]
        # It keeps the way open until its standard input closes, and so never outlives us.
        self._way = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._way.stdout is not None and self._way.stderr is not None
        endpoint = self._way.stdout.readline().decode()
        if not endpoint:
            words = self._way.stderr.read().decode().strip().removeprefix("error: ")
            self._close_way()
            raise _native.ConnectionLost(words or f"cluster {name} cannot be reached")
        self.name = name
        try:
            self._client: _native.Client | None = _native.Client.connect(endpoint)
        except BaseException:
            self._close_way()
            raise

    def close(self) -> None:
        """Let go of the cluster, which lives on."""
        self._client = None
        self._close_way()

    def _close_way(self) -> None:
        for pipe in (self._way.stdin, self._way.stdout, self._way.stderr):
            if pipe is not None:
                pipe.close()
        self._way.wait(timeout=10)

    def _compute(
        self,
        expressions: Sequence[_native.Expression],
        progress: Callable[[int, int], None] | None,
    ) -> list[bytes]:
        if self._client is None:
            raise _native.ConnectionLost(f"cluster {self.name} was closed by this program")
        return self._client.compute(expressions, progress)

    def __enter__(self) -> Cluster:
        """Compute here from now on."""
        _open.set((*_open.get(), self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Compute where it was before."""
        _open.set(tuple(cluster for cluster in _open.get() if cluster is not self))
        self.close()

    def __repr__(self) -> str:
        """Show name and state."""
        state = "closed" if self._client is None else "open"
        return f"<ebbtide.Cluster {self.name} ({state})>"


def run(
    expressions: Sequence[_native.Expression],
    progress: Callable[[int, int], None] | None,
) -> list[bytes]:
    """Compute on the innermost open cluster, else in this process."""
    clusters = _open.get()
    if clusters:
        return clusters[-1]._compute(expressions, progress)
    return _native.compute(expressions, progress)


def _program() -> str:
    """Find the `ebbtide` program that was installed with this package."""
    beside = os.path.join(sysconfig.get_path("scripts"), "ebbtide")
    found = beside if os.path.exists(beside) else shutil.which("ebbtide")
    if found is None:
        raise _native.ConnectionLost("the program `ebbtide` is missing; install the package again")
    return found
