"""A worker of Dask, in the place of `ebbtide worker`.

It has the cores, memory and resources that the operator says, looks for its scheduler, and ends
when it is asked to or when the scheduler has gone.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile

import dask
from distributed import Worker
from distributed.comm.addressing import unparse_host_port
from distributed.core import Status
from distributed.worker_state_machine import UnpauseEvent
from ebbtide_dask import PREFIX, SCHEME, Credentials, Way
from ebbtide_dask_health import with_health

# Ports are the same in every pod.
WORKER_PORT, HTTP_PORT = 8788, 8787
# How long the scheduler may take to listen, and to answer one try, in seconds.
FIND_SECONDS, DIAL_SECONDS = 120, 1
# How long it may take to hand over what it holds when it is asked to end, and to end then, in
# seconds: a pod has five.
LEAVE_SECONDS, CLOSE_SECONDS = 3, 1
# Its scheduler is gone.
ABANDONED = 75

log = logging.getLogger("ebbtide")


class Finishing(Worker):
    """A worker that ends what it has when it is to go. Dask's own would never begin it."""

    def handle_worker_status_change(self, status: str, stimulus_id: str) -> None:
        """Do as the scheduler says."""
        was_running = self.status == Status.running
        super().handle_worker_status_change(status, stimulus_id)
        if was_running and self.status == Status.closing_gracefully:
            self.handle_stimulus(UnpauseEvent(stimulus_id=stimulus_id))


def scratch() -> str:
    """Tell where this may write: on a machine that others share, where it was started."""
    here = os.getcwd()
    return here if os.access(here, os.W_OK) else tempfile.gettempdir()


async def listening(addresses: list[str]) -> str:
    """Tell the first of some addresses at which somebody listens.

    Raises:
        OSError: nobody does.

    """
    loop = asyncio.get_running_loop()
    until = loop.time() + FIND_SECONDS
    while loop.time() < until:
        for address in addresses:
            host, _, port = address.rpartition(":")
            dialed = asyncio.open_connection(host.strip("[]"), int(port))
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                _, writer = await asyncio.wait_for(dialed, DIAL_SECONDS)
                writer.close()
                return address
        await asyncio.sleep(0.1)
    raise OSError(f"nobody listens at {' or '.join(addresses)}")


async def work() -> int:
    """Work as long as there is a scheduler. Who asks for an end cancels it."""
    environ = os.environ
    way = Way(environ["EBBTIDE_CREDENTIALS"], environ["EBBTIDE_CLUSTER_UID"], "worker")
    listen = sys.argv[4]
    dask.config.set(with_health("distributed.worker.http.routes"))
    scheduler = await listening(environ["EBBTIDE_SCHEDULER"].split(","))
    worker = Finishing(
        PREFIX + scheduler,
        name=environ["EBBTIDE_POD_NAME"],
        nthreads=int(environ.get("EBBTIDE_CORES", os.cpu_count() or 1)),
        memory_limit=environ.get("EBBTIDE_MEMORY_BYTES", "auto"),
        resources=json.loads(environ.get("EBBTIDE_RESOURCES", "{}")),
        protocol=f"{SCHEME}://",
        security=Credentials(way),
        host=listen,
        port=WORKER_PORT,
        contact_address=PREFIX + unparse_host_port(environ["EBBTIDE_POD_IP"], WORKER_PORT),
        dashboard_address=unparse_host_port(listen, HTTP_PORT),
        local_directory=scratch(),
        death_timeout=FIND_SECONDS,
    )
    await worker
    try:
        await worker.finished()
    except asyncio.CancelledError:
        await leave(worker)
        return 0
    log.error("the scheduler has gone, or does without this worker")
    return ABANDONED


async def leave(worker: Worker) -> None:
    """End, and let others have what it alone holds, if it was not handed over before."""
    if worker.status in (Status.running, Status.paused):
        with contextlib.suppress(Exception):
            moved = worker.scheduler.retire_workers(
                workers=[worker.address], close_workers=False, remove=True
            )
            await asyncio.wait_for(moved, LEAVE_SECONDS)
    with contextlib.suppress(Exception):
        await worker.close(timeout=CLOSE_SECONDS, executor_wait=False)


async def main() -> int:
    """Work until asked to end."""
    loop = asyncio.get_running_loop()
    working = asyncio.ensure_future(work())

    def end() -> None:
        working.cancel()
        # Whatever waits for what does not come.
        loop.call_later(LEAVE_SECONDS + CLOSE_SECONDS, os._exit, 0)

    for kind in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(kind, end)
    try:
        return await working
    except asyncio.CancelledError:
        return 0
    except Exception:
        log.exception("no scheduler takes this worker")
        return ABANDONED


logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
code = asyncio.run(main())
logging.shutdown()
# A function that runs on in a thread keeps nobody here.
os._exit(code)
