"""Dask's scheduler, and what an operator must know of it.

Started by `ebbtide scheduler`, which speaks to the operator. Its standard output tells what is so,
a line of JSON when something changed and from time to time; its standard input brings what the
operator asks for. Both are read and written by the event loop, which neither ever blocks. It ends
when it is asked to, or when its standard input closes.
"""

import asyncio
import itertools
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Iterable

import dask
from distributed import Scheduler
from distributed.active_memory_manager import RetireWorker
from distributed.comm.addressing import unparse_host_port
from distributed.core import Status
from distributed.diagnostics.plugin import SchedulerPlugin
from ebbtide_dask import SCHEME, Credentials, Way
from ebbtide_dask_health import with_health

# Ports are the same in every pod.
SCHEDULER_PORT, HTTP_PORT = 8786, 8787
# How often is looked at what is so, in seconds, and at most which part of the time that may take.
LOOK_SECONDS, LOOK_PART = 0.1, 0.1
# After how many seconds it is said again though nothing changed.
AGAIN_SECONDS = 2.0
# How many tasks of a kind are looked at; the others are taken for alike.
SAMPLE = 100
# How many resource classes are told apart.
CLASSES_MAX = 256
# The longest name of a pod, in bytes.
NAME_BYTES_MAX = 63
# The longest order, in bytes.
ORDER_BYTES_MAX = 1 << 20
# How often is looked whether a worker that is to go still has work, in seconds.
RETIRE_SECONDS = 0.05
# How long a worker that was let go may stay before it works again, in seconds.
RELEASED_SECONDS = 30

log = logging.getLogger("ebbtide")


class Graphs(SchedulerPlugin):
    """Counts what was ever asked for."""

    ever = 0

    def update_graph(self, scheduler: Scheduler, **_: object) -> None:
        """Count one more."""
        self.ever += 1


class Demand:
    """What waits and runs, by the worker groups that can take it."""

    def __init__(self, groups: list[dict]) -> None:
        """Know the groups of the cluster."""
        self._groups = groups
        self._classes: dict[tuple[str, ...], list[float]] = {}

    def add(self, fits: tuple[str, ...], tasks: float, seconds: float, running: float) -> None:
        """Add tasks that wait, seconds that tasks are expected to take, and tasks that run."""
        if not tasks and not running:
            return
        if fits not in self._classes and len(self._classes) >= CLASSES_MAX - 1:
            fits = self.every()
        known = self._classes.setdefault(fits, [0.0, 0.0, 0.0])
        for nth, more in enumerate((tasks, seconds, running)):
            known[nth] += more

    def every(self) -> tuple[str, ...]:
        """Name all groups."""
        return tuple(group["name"] for group in self._groups)

    def fits(self, task: object) -> tuple[str, ...]:
        """Name the groups that can take a task; none if it waits for a certain worker."""
        is_bound = task.worker_restrictions or task.host_restrictions
        if is_bound and not task.loose_restrictions:
            return ()
        needs = task.resource_restrictions or {}
        # Dask takes anything for an amount.
        if not all(isinstance(amount, int | float) for amount in needs.values()):
            return ()
        return tuple(
            group["name"]
            for group in self._groups
            if all(group["resources"].get(kind, 0) >= amount for kind, amount in needs.items())
        )

    def facts(self) -> dict[str, dict]:
        """Say it as the contract does. What is a part of a task is one."""
        return {
            f"queue {' '.join(fits)}": {
                "fact": "queue",
                "fits": fits,
                "tasks": math.ceil(tasks),
                "coreSeconds": max(seconds, 0.0) if math.isfinite(seconds) else 0.0,
                "running": math.ceil(running),
            }
            for fits, (tasks, seconds, running) in self._classes.items()
        }


def waiting(scheduler: Scheduler, demand: Demand) -> None:
    """Add the tasks that no worker has yet."""

    def seconds(tasks: Iterable) -> float:
        some = list(itertools.islice(tasks, SAMPLE))
        # Dask's own estimate, and its guess for what it never saw.
        whole = sum(scheduler._get_prefix_duration(task.prefix) for task in some)
        return whole / len(some) if some else 0.0

    # Dask holds back only what any worker can take.
    held_back = len(scheduler.queued)
    demand.add(demand.every(), held_back, held_back * seconds(scheduler.queued), 0)
    unrunnable = list(itertools.islice(scheduler.unrunnable, SAMPLE))
    alike = len(scheduler.unrunnable) / len(unrunnable) if unrunnable else 0.0
    for task in unrunnable:
        demand.add(demand.fits(task), alike, alike * seconds([task]), 0)


def under_way(scheduler: Scheduler, demand: Demand) -> None:
    """Add the tasks that workers have."""
    for worker in scheduler.workers.values():
        # What actors do is no task, and work all the same.
        demand.add(demand.every(), 0, 0, 1 if worker.actors else 0)
        tasks = len(worker.processing)
        if not tasks:
            continue
        running = min(tasks, worker.nthreads)
        if not any(worker.used_resources.values()):
            demand.add(demand.every(), tasks - running, worker.occupancy, running)
            continue
        some = list(itertools.islice(worker.processing, SAMPLE))
        part = 1 / len(some)
        for task in some:
            demand.add(
                demand.fits(task),
                part * (tasks - running),
                part * worker.occupancy,
                part * running,
            )


def facts(scheduler: Scheduler, graphs: Graphs, groups: list[dict]) -> dict[str, dict]:
    """Tell everything that is so, each fact by a name that stays."""
    demand = Demand(groups)
    waiting(scheduler, demand)
    under_way(scheduler, demand)
    workers = {
        f"worker {worker.name}": {
            "fact": "worker",
            "name": worker.name,
            "heldBytes": max(int(worker.nbytes), 0),
            "assigned": len(worker.processing),
        }
        for worker in scheduler.workers.values()
        # Others than pods are nobody's that the operator knows.
        if isinstance(worker.name, str) and len(worker.name.encode()) <= NAME_BYTES_MAX
    }
    return {
        "jobs": {"fact": "jobs", "ever": graphs.ever},
        "clients": {"fact": "clients", "connected": len(scheduler.client_comms)},
        **workers,
        **demand.facts(),
    }


class Retirement:
    """A worker that is to go."""

    def __init__(self, scheduler: Scheduler, worker: object) -> None:
        """Begin with a worker that works."""
        self._scheduler = scheduler
        self._worker = worker
        self.is_released = False

    def is_there(self) -> bool:
        """Tell whether it is still the one that it was."""
        return self._scheduler.workers.get(self._worker.address) is self._worker

    async def outcome(self, seconds: float) -> str:
        """Retire it: it ends what it has, gets no more, and what it alone holds goes to others."""
        try:
            await asyncio.wait_for(self._retire(), seconds)
            self.is_released = True
        # Nobody can take what it has, time is up, or it breaks: it works on.
        except Exception as error:
            log.info("%s stays: %s", self._worker.name, error or "there is no more time")
        if not self.is_there():
            return "unknown"
        if not self.is_released:
            self.resume()
        return "released" if self.is_released else "kept"

    async def _retire(self) -> None:
        worker = self._worker
        while self.is_there():
            retired = await self._scheduler.retire_workers(
                [worker.address], close_workers=False, remove=False
            )
            if not retired:
                raise LookupError("nobody can take what it has")
            while worker.processing and self.is_there():
                await asyncio.sleep(RETIRE_SECONDS)
            # What it made meanwhile goes the same way.
            if all(self._is_elsewhere(task) for task in worker.has_what):
                return
            await asyncio.sleep(RETIRE_SECONDS)

    def _is_elsewhere(self, task: object) -> bool:
        """Tell whether others hold it. Of several that are to go, one stays until all have it."""
        worker, running = self._worker, self._scheduler.running
        others = (it for it in task.who_has or () if it is not worker)
        return any(it in running or it.address > worker.address for it in others)

    def resume(self) -> None:
        """Let it work on."""
        amm = self._scheduler.extensions.get("amm")
        for policy in list(amm.policies if amm else ()):
            if isinstance(policy, RetireWorker) and policy.address == self._worker.address:
                amm.policies.discard(policy)
        stimulus = "ebbtide-resume"
        status = {"op": "worker-status-change", "status": "running", "stimulus_id": stimulus}
        self._scheduler.stream_comms[self._worker.address].send(status)
        self._scheduler.handle_worker_status_change(Status.running, self._worker, stimulus)


class Operator:
    """The program that started this one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.WriteTransport) -> None:
        """Speak over these pipes."""
        self._reader = reader
        self._writer = writer
        self._groups: list[dict] = []
        self._retiring: dict[str, tuple[Retirement, asyncio.Task]] = {}

    @classmethod
    async def connect(cls, told: int) -> "Operator":
        """Take hold of standard input, and of what was standard output."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=ORDER_BYTES_MAX)
        protocol = asyncio.StreamReaderProtocol(reader)
        await loop.connect_read_pipe(lambda: protocol, sys.stdin)
        writer, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(told, "wb"))
        return cls(reader, writer)

    def _say(self, line: dict) -> None:
        self._writer.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    async def tell(self, scheduler: Scheduler, graphs: Graphs) -> None:
        """Tell what is so, for as long as the scheduler lives."""
        loop, said, said_at = asyncio.get_running_loop(), None, 0.0
        while True:
            begun_at = loop.time()
            # What was not taken yet is old already.
            if not self._writer.get_write_buffer_size():
                try:
                    known = facts(scheduler, graphs, self._groups)
                    if known != said or begun_at - said_at > AGAIN_SECONDS:
                        self._say({"facts": known})
                        said, said_at = known, begun_at
                # Nobody loses work over something that cannot be told.
                except Exception:
                    log.exception("what is so cannot be told")
                    await asyncio.sleep(AGAIN_SECONDS)
            spent = loop.time() - begun_at
            await asyncio.sleep(max(LOOK_SECONDS, spent / LOOK_PART))

    async def obey(self, scheduler: Scheduler) -> None:
        """Do what is asked for, until nobody asks any more."""
        async for line in self._reader:
            order = json.loads(line)
            if order["type"] == "groups":
                self._groups = order["groups"]
            elif order["type"] == "retire":
                for name in order["workers"]:
                    self._begin(scheduler, name, order["deadlineSeconds"])

    def _begin(self, scheduler: Scheduler, name: str, seconds: float) -> None:
        retirement, task = self._retiring.pop(name, (None, None))
        if retirement is not None and retirement.is_there() and not task.done():
            # Who asks again gets the same answer.
            self._retiring[name] = (retirement, task)
            if retirement.is_released:
                self._answer(name, "released")
            return
        if task is not None:
            # Of one before, of the same name.
            task.cancel()
        worker = next((it for it in scheduler.workers.values() if it.name == name), None)
        if worker is None:
            self._answer(name, "unknown")
            return
        retirement = Retirement(scheduler, worker)
        task = asyncio.ensure_future(self._retire(retirement, name, seconds))
        self._retiring[name] = (retirement, task)

    async def _retire(self, retirement: Retirement, name: str, seconds: float) -> None:
        outcome = await retirement.outcome(seconds)
        self._answer(name, outcome)
        if outcome == "released":
            await asyncio.sleep(RELEASED_SECONDS)
            if retirement.is_there():
                retirement.resume()
                self._answer(name, "kept")

    def _answer(self, name: str, outcome: str) -> None:
        self._say({"retired": {"type": "retired", "worker": name, "outcome": outcome}})


async def main(told: int) -> None:
    """Run until asked to end."""
    environ = os.environ
    way = Way(environ["EBBTIDE_CREDENTIALS"], environ["EBBTIDE_CLUSTER_UID"], "scheduler")
    listen = sys.argv[4]
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for kind in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(kind, ended.set)
    dask.config.set(with_health("distributed.scheduler.http.routes"))
    # Whose pages may follow this cluster in a browser: its own, unless somebody says otherwise.
    # By Dask's default any other page could that is open on this machine.
    environ.setdefault("BOKEH_ALLOW_WS_ORIGIN", f"localhost,127.0.0.1,{listen}")
    scheduler = Scheduler(
        host=listen,
        port=SCHEDULER_PORT,
        protocol=f"{SCHEME}://",
        security=Credentials(way),
        dashboard_address=unparse_host_port(listen, HTTP_PORT),
    )
    async with scheduler:
        graphs = Graphs()
        scheduler.add_plugin(graphs, name="ebbtide")
        operator = await Operator.connect(told)
        works = [
            operator.tell(scheduler, graphs),
            operator.obey(scheduler),
            ended.wait(),
            # A client may shut it down.
            scheduler.finished(),
        ]
        tasks = [asyncio.ensure_future(work) for work in works]
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        for task in done:
            task.result()


# What is printed is for the log.
told = os.dup(1)
os.dup2(2, 1)
logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
asyncio.run(main(told))
