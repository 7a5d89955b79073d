"""The dev cluster itself: another one beside it comes, stays as it is, and goes without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import KUBE, alone, kubectl, on_the_dev_cluster, run

# It looks at the whole machine: no other test runs meanwhile.
pytestmark = [on_the_dev_cluster, alone, pytest.mark.last]

SPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
UIDS = ("get", "nodes,pods", "-n", "kube-system", "-o", "jsonpath={.items[*].metadata.uid}")


def stat(pid: str) -> list[str]:
    """Read what the kernel counts of a process, beginning with its state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def started(pid: str) -> str | None:
    """Tell when a process began, in the kernel's ticks, unless it has ended."""
    try:
        state, *counts = stat(pid)
    except OSError:
        return None
    # A zombie has ended, and whoever inherited it has not heard of it yet.
    return None if state == "Z" else counts[18]


def spaces(pid: str) -> set[str]:
    """Name the namespaces that a process is in."""
    try:
        return {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in SPACES}
    except OSError:
        return set()


def outside() -> str:
    """Find who started the tests from outside of the node's network."""
    pid = "self"
    while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        pid = stat(pid)[1]
    return pid


def links() -> set[tuple[str, ...]]:
    """Name the network interfaces of this machine and of the node that the tests run on."""
    ip = ("ip", "-o", "link")
    machine = ("nsenter", "-t", outside(), "-n", *ip)
    return {
        (command[0], *line.split(":")[:2])
        for command in (machine, ip)
        for line in run(*command).splitlines()
    }


@dataclass
class Traces:
    """What a cluster has on this machine while it is up."""

    folder: Path
    cgroups: list[Path]
    processes: dict[str, str | None]
    spaces: set[str]

    @classmethod
    def of(cls, folder: Path) -> Traces:
        """Look for all of it, beginning with the control groups of its one node."""
        cgroups = [Path(line) for line in (folder / "n1" / "cgroups").read_text().splitlines()]
        lists = [path for cgroup in cgroups for path in cgroup.rglob("cgroup.procs")]
        pids = {pid for path in lists for pid in path.read_text().split()}
        everywhere = set().union(*map(spaces, pids))
        processes = {pid: started(pid) for pid in pids}
        return cls(folder, cgroups, processes, everywhere - spaces("self"))

    def left(self) -> list[str]:
        """List what of it is still there."""
        everybody = [path.name for path in Path("/proc").glob("[0-9]*")]
        mounts = [Path(f"/proc/{pid}/mountinfo") for pid in everybody]
        here = [self.folder, *self.cgroups]
        return [
            *(str(path) for path in here if path.exists()),
            *(pid for pid, begin in self.processes.items() if begin and started(pid) == begin),
            *(self.spaces & set().union(*map(spaces, everybody))),
            *(str(path) for path in mounts if str(self.folder) in text(path)),
        ]


def text(path: Path) -> str:
    """Read a file that may be gone."""
    try:
        return path.read_text()
    except OSError:
        return ""


def first_process(folder: Path) -> tuple[str, str | None]:
    """Tell which process a cluster's first node is, and since when."""
    pid = (folder / "n1" / "pid").read_text().strip()
    return pid, started(pid)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Command another cluster of one node, which is gone afterwards."""

    def command(*arguments: str) -> list[str]:
        return ["env", f"E2E_RUN={tmp_path / 'other'}", f"{KUBE}/cluster.sh", *arguments]

    yield command
    run(*command("down"))


def test_up_twice_keeps_the_nodes_and_down_leaves_nothing_but_the_cluster_beside_it(
    other: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder, beside = tmp_path / "other", Path(os.environ["KUBECONFIG"]).parent
    before, ours = links(), (first_process(beside), kubectl(*UIDS))
    run(*other("up", "1"))
    first = first_process(folder), run(*other("kubectl", *UIDS))
    assert first[1] and not set(first[1].split()) & set(ours[1].split())
    run(*other("up", "1"))
    assert (first_process(folder), run(*other("kubectl", *UIDS))) == first
    traces = Traces.of(folder)
    assert first[0][0] in traces.processes and len(traces.spaces) >= len(SPACES)
    run(*other("down"))
    assert traces.left() == []
    assert links() <= before
    assert (first_process(beside), kubectl(*UIDS)) == ours


def test_an_interrupted_up_is_not_up(other: Callable[..., list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    pipe = subprocess.DEVNULL
    with subprocess.Popen(other("up", "1"), stderr=pipe, start_new_session=True) as interrupted:
        end = time.monotonic() + 60
        while not (folder / "n1" / "pid").exists():
            assert time.monotonic() < end
            with pytest.raises(subprocess.TimeoutExpired):
                interrupted.wait(0.05)
        os.killpg(interrupted.pid, signal.SIGKILL)
    half = Traces.of(folder)
    old = first_process(folder)
    assert old[1] is not None
    run(*other("up", "1"))
    assert first_process(folder) != old and run(*other("kubectl", *UIDS))
    run(*other("down"))
    assert half.left() == []
