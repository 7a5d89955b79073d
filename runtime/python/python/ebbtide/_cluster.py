"""Clusters that exist already, as context managers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sysconfig
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeVar

from ebbtide import _function, _native
from ebbtide._function import Future

if TYPE_CHECKING:
    import distributed

T = TypeVar("T")

_open: ContextVar[tuple[Cluster, ...]] = ContextVar("ebbtide_open_clusters", default=())


@dataclass(frozen=True)
class Worker:
    """A worker of a cluster, as it was when `Cluster.workers` listed it.

    >>> import ebbtide as eb
    >>> with eb.Cluster("examples") as cluster:
    ...     [worker] = cluster.workers()
    >>> worker.cores, worker.memory_bytes // 2**20
    (1, 768)

    Attributes:
        name: its pod's name.
        cores: tasks that it runs at once.
        memory_bytes: bytes that its chunks and running tasks may take.
        peak_bytes: the most memory that it and one of its Python processes have had, in bytes.

    """

    name: str
    cores: int
    memory_bytes: int
    peak_bytes: int


class Cluster:
    """A running cluster, by its name. Computations inside the `with` block run there.

    Without a name it is the cluster that `ebbtide up --run` started this program for. Attaching
    never deletes the cluster. The way to its scheduler leads through the API server's
    port-forward, or straight there on this machine. What is computed has the same bits as in this
    process.

    `namespace` is the one of the kubeconfig by default; `backend` is `"kubernetes"`, or `"local"`
    for processes of this machine.

    >>> import ebbtide as eb, ebbtide.array as xp
    >>> with eb.Cluster("examples"):
    ...     xp.asarray([1, 2, 3]).mean().compute()
    np.float64(2.0)

    Raises:
        ConnectionLost: there is no such cluster, or it refuses this client.
        ValueError: no name is given and none is known, or there is no such backend.

    """

    def __init__(
        self,
        name: str | None = None,
        *,
        namespace: str | None = None,
        backend: str | None = None,
    ) -> None:
        """Attach to a cluster."""
        name = name or os.environ.get("EBBTIDE_CLUSTER")
        if not name:
            raise ValueError("a cluster needs a name: eb.Cluster('name')")
        if backend not in (None, "kubernetes", "local"):
            raise ValueError(f"backend {backend!r}: expected 'kubernetes' or 'local'")
        command = [_program(), "endpoint"]
        if namespace:
            command += ["--namespace", namespace]
        if backend:
            command += ["--backend", backend]
        command += ["--", name]
        # It keeps the way open until its standard input closes, and so never outlives us.
        self._way = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Ctrl-C in a terminal is for the program, not for its way to the cluster.
            start_new_session=True,
        )
        assert self._way.stdout is not None and self._way.stderr is not None
        self.name = name
        try:
            endpoint = self._way.stdout.readline().decode()
            if not endpoint:
                words = self._way.stderr.read().decode().strip().removeprefix("error: ")
                raise _native.ConnectionLost(words or f"cluster {name} cannot be reached")
            client = _connect(endpoint)
        except BaseException:
            # Before there is a way, it does not look at its standard input.
            self._way.terminate()
            self._way.stderr.close()
            self._close_way()
            raise
        self._client: _native.Client | _Dask | None = client
        self._process = os.getpid()
        assert self._way.stdin is not None
        # Who only drops it closes it too.
        self._finalizer = weakref.finalize(self, self._way.stdin.close)
        threading.Thread(target=_attend, args=(self._way.stderr, client), daemon=True).start()

    def submit(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        memory: int | str | None = None,
        retries: int = 0,
        resources: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> Future[T]:
        """Call a function on a worker, and do not wait for it.

        The function and its arguments travel by value. An array among the arguments is computed
        there and given as a read-only NumPy array; a future is waited for first.

        `memory` bounds what the function's process may allocate, 512 MiB by default; `retries`
        says how often the function is tried again when it raises. When its process ends, by a
        crash or for lack of memory, it is tried again up to three times in any case. `resources`
        says what it takes of its worker for as long as it runs, like `{"nvidia.com/gpu": 1}`: it
        runs on a worker of a group that has it, and such workers come when it waits.

        >>> import ebbtide as eb, ebbtide.array as xp
        >>> with eb.Cluster("examples") as cluster:
        ...     cluster.submit(lambda x, power: (x**power).sum(), xp.asarray([3, 4]), 2).result()
        np.int64(25)

        Raises:
            TypeError: the function cannot be called, it or an argument cannot be pickled, a future
                is inside another argument, or retries are no whole number.
            ValueError: memory is no number of bytes, retries are less than 0 or too many, resources
                are no kinds with amounts, or an array among the arguments was persisted elsewhere.
            ConnectionLost: the cluster is gone, or was closed by this program.
            Exception: what waiting for a future among the arguments raised.

        """
        callee = _function.Callee(function, memory, retries, resources)
        return self._call(callee, args, kwargs)

    def map(
        self,
        function: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        memory: int | str | None = None,
        retries: int = 0,
        resources: Mapping[str, int] | None = None,
    ) -> list[Future[T]]:
        """Call a function for the elements of iterables side by side, and do not wait.

        The function is pickled once; otherwise each call is like `submit`'s, and raises like it.
        Ends with the shortest iterable. The futures come in the order of the elements.

        >>> import ebbtide as eb
        >>> with eb.Cluster("examples") as cluster:
        ...     futures = cluster.map(pow, [2, 3, 4], [5, 2])
        ...     [future.result() for future in futures]
        [32, 9]
        """
        callee = _function.Callee(function, memory, retries, resources)
        return [self._call(callee, args, {}) for args in zip(*iterables, strict=False)]

    def _call(
        self, callee: _function.Callee, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Any]:
        # No generator: what a call raises may be a StopIteration.
        values = tuple([arg.result() if isinstance(arg, Future) else arg for arg in args])
        named = {
            name: arg.result() if isinstance(arg, Future) else arg for name, arg in kwargs.items()
        }
        expression = callee.expression(values, named)
        with _function.Originals():
            return Future(callee.name, self._connected().submit([expression]))

    def dask_client(self, **options: Any) -> distributed.Client:
        """Open a `distributed.Client` of a cluster whose manifest says `engine: dask`.

        From then on `dask.array`, `dask.dataframe` and `dask.delayed` compute there. It needs the
        package `distributed`, of the version that the cluster's environment has. `options` go to
        `distributed.Client`. It is closed when this cluster is. A cluster of the engine
        `ebbtide` has none:

        >>> import ebbtide as eb
        >>> with eb.Cluster("examples") as cluster:
        ...     cluster.dask_client()
        Traceback (most recent call last):
        ...
        TypeError: cluster examples runs ebbtide; `engine: dask` in a manifest makes one for Dask

        Raises:
            TypeError: the cluster runs another engine.
            ModuleNotFoundError: there is no package `distributed` here.
            ConnectionLost: the cluster was closed by this program.
            OSError: its scheduler does not answer, or refuses this client.

        """
        client = self._opened()
        if not isinstance(client, _Dask):
            raise TypeError(
                f"cluster {self.name} runs ebbtide; `engine: dask` in a manifest makes one for Dask"
            )
        opened = client.connect(options)
        # Who holds the client holds the way to the cluster.
        vars(opened)["_ebbtide_cluster"] = self
        return opened

    def workers(self) -> list[Worker]:
        """List the workers that are registered now.

        >>> import ebbtide as eb
        >>> with eb.Cluster("examples") as cluster:
        ...     [worker.cores for worker in cluster.workers()]
        [1]

        Raises:
            ConnectionLost: the cluster does not answer, or was closed by this program.

        """
        return [Worker(*parts) for parts in self._connected().workers()]

    def close(self) -> None:
        """Let go of the cluster, which lives on.

        Whoever waits for something there gets `ConnectionLost`, and what was persisted there is
        let go. The end of the `with` block closes too; closing twice is allowed.

        >>> import ebbtide as eb
        >>> cluster = eb.Cluster("examples")
        >>> cluster.close()
        >>> cluster
        <ebbtide.Cluster examples (closed)>
        """
        if self._client is not None:
            self._client.close(self._closed())
        self._client = None
        self._close_way()

    def _close_way(self) -> None:
        for pipe in (self._way.stdin, self._way.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._way.wait(timeout=10)
        except subprocess.TimeoutExpired:
            # A process that this one forked holds the pipe open.
            self._way.terminate()
            self._way.wait(timeout=10)

    def _compute(
        self,
        expressions: Sequence[_native.Expression],
        progress: Callable[[int, int, int], None] | None,
    ) -> list[bytes]:
        return self._connected().compute(expressions, progress)

    def _connected(self) -> _native.Client:
        client = self._opened()
        if isinstance(client, _Dask):
            raise TypeError(
                f"cluster {self.name} runs Dask: compute there with `cluster.dask_client()`"
            )
        return client

    def _opened(self) -> _native.Client | _Dask:
        if self._client is None:
            raise _native.ConnectionLost(self._closed())
        if self._process != os.getpid():
            raise _native.ConnectionLost(
                f"cluster {self.name} was opened by the process that forked this one; open it again"
            )
        return self._client

    def _closed(self) -> str:
        return f"cluster {self.name} was closed by this program"

    def __enter__(self) -> Cluster:
        """Compute there from now on, in this thread or task."""
        _open.set((*_open.get(), self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Compute where it was before, and close."""
        _open.set(tuple(cluster for cluster in _open.get() if cluster is not self))
        self.close()

    def __repr__(self) -> str:
        """Show name and state."""
        state = "closed" if self._client is None else "open"
        return f"<ebbtide.Cluster {self.name} ({state})>"


def run(
    expressions: Sequence[_native.Expression],
    progress: Callable[[int, int, int], None] | None,
) -> list[bytes]:
    """Compute on the innermost open cluster, else in this process."""
    clusters = _open.get()
    with _function.Originals():
        if clusters:
            return clusters[-1]._compute(expressions, progress)
        return _native.compute(expressions, progress)


def keep(expressions: Sequence[_native.Expression]) -> list[_native.Expression]:
    """Keep on the innermost open cluster, else in this process."""
    clusters = _open.get()
    with _function.Originals():
        if clusters:
            return clusters[-1]._connected().persist(expressions)
        return _native.persist(expressions)


class _Dask:
    """The way to a scheduler of Dask's, and the clients that use it."""

    def __init__(self, endpoint: dict[str, Any]) -> None:
        self._endpoint = endpoint
        self._clients: weakref.WeakSet[distributed.Client] = weakref.WeakSet()

    def connect(self, options: dict[str, Any]) -> distributed.Client:
        """Open one more client."""
        try:
            import distributed

            from ebbtide import _dask
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"a client of Dask needs the package {error.name}: pip install distributed, in the "
                "version that the cluster has"
            ) from error
        [address] = self._endpoint["address"].values()
        folder, uid = self._endpoint["credentials"], self._endpoint["clusterUid"]
        way = _dask.Way(folder, uid, "client")
        security = _dask.Credentials(way)
        client = distributed.Client(_dask.PREFIX + address, security=security, **options)
        self._clients.add(client)
        return client

    def close(self, reason: str) -> None:
        """Close them all."""
        for client in list(self._clients):
            # One that breaks keeps no other open.
            with contextlib.suppress(Exception):
                if client.asynchronous and client.loop is not None:
                    client.loop.add_callback(client.close)
                else:
                    client.close()


def _connect(endpoint: str) -> _native.Client | _Dask:
    described = json.loads(endpoint)
    is_dask = described.get("engine") == "dask"
    return _Dask(described) if is_dask else _native.Client.connect(endpoint)


def _attend(lines: IO[bytes], client: _native.Client | _Dask) -> None:
    """Read what the way to a cluster tells, or it would stop at a full pipe, until it ends."""
    import logging

    text = "error: the way to the cluster ended"
    with lines:
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            logging.getLogger("ebbtide").info(text)
    # It ends by itself only when the cluster is gone.
    client.close(text.removeprefix("error: "))


def _program() -> str:
    """Find the `ebbtide` program that was installed with this package."""
    beside = os.path.join(sysconfig.get_path("scripts"), "ebbtide")
    found = beside if os.path.exists(beside) else shutil.which("ebbtide")
    if found is None:
        raise _native.ConnectionLost("the program `ebbtide` is missing; install the package again")
    return found
