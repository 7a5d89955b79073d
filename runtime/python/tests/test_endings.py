"""What ends with what: functions with what they started, ways and scripts with their clusters."""

from __future__ import annotations

import gc
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ebbtide as eb
import pytest
from conftest import ebbtide, until

#: Seconds that a program sleeps which a function started: its mark in the list of processes.
MARK = str(987_000_000 + os.getpid())

ENDLESS = f"""
import ebbtide as eb, ebbtide.array as xp, subprocess
xp.from_delayed(eb.delayed(subprocess.run)(["sleep", "{MARK}"]), (), xp.float64).compute()
"""


def marked() -> bool:
    """Whether a program with the mark runs."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().split(b"\0")[:2] == [b"sleep", MARK.encode()]:
                return True
        except OSError:
            continue
    return False


@contextmanager
def up(manifest: Callable[..., str], **options: object) -> Iterator[None]:
    ebbtide("up", manifest(max=1, **options))
    try:
        yield
    finally:
        ebbtide("down", "local", check=False)


def test_what_a_function_started_ends_with_its_cluster(
    state: Path, manifest: Callable[..., str]
) -> None:
    with up(manifest), eb.Cluster("local", backend="local") as cluster:
        future = cluster.submit(subprocess.run, ["sleep", MARK])
        until(marked)
        ebbtide("down", "local")
        until(lambda: not marked())
        with pytest.raises(eb.ConnectionLost, match="is gone"):
            future.result(20)


def test_what_a_function_started_ends_when_nobody_wants_it(
    state: Path, manifest: Callable[..., str]
) -> None:
    with up(manifest), eb.Cluster("local", backend="local") as cluster:
        future = cluster.submit(subprocess.run, ["sleep", MARK])
        until(marked)
        future.cancel()
        until(lambda: not marked())
        assert cluster.submit(int).result(20) == 0


def test_what_a_function_started_ends_with_the_program_that_is_interrupted() -> None:
    command = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        until(marked)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
    until(lambda: not marked())


def test_the_way_to_a_cluster_ends_with_whoever_drops_it(
    state: Path, manifest: Callable[..., str]
) -> None:
    with up(manifest):
        cluster = eb.Cluster("local", backend="local")
        way = cluster._way
        del cluster
        gc.collect()
        assert way.wait(20) == 0


#: Whoever has the exception has the cluster that was not opened, as a notebook has its last one.
OPENING = """
import ebbtide as eb
try:
    eb.Cluster("silent", backend="kubernetes")
except KeyboardInterrupt as interrupt:
    print("interrupted", flush=True)
    input()
"""


def test_the_way_to_a_cluster_that_is_being_opened_ends_with_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as api_server:
        cluster = {"server": f"http://127.0.0.1:{api_server.getsockname()[1]}"}
        config = {
            "clusters": [{"name": "silent", "cluster": cluster}],
            "contexts": [{"name": "silent", "context": {"cluster": "silent", "user": ""}}],
            "current-context": "silent",
        }
        (tmp_path / "config").write_text(json.dumps(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        command = [sys.executable, "-c", OPENING]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes, start_new_session=True) as program:  # type: ignore[call-overload]
            api_server.settimeout(20)
            # The way asks, and nobody answers.
            asked, _ = api_server.accept()
            proc = Path("/proc", str(program.pid))
            until(lambda: (proc / "stat").read_text().rpartition(")")[2].split()[0] == "S")
            program.send_signal(signal.SIGINT)
            # At once: not after the time that a way has to end by itself.
            assert select.select([program.stdout], [], [], 5)[0]
            assert program.stdout.readline() == "interrupted\n"
            assert (proc / "task" / str(program.pid) / "children").read_text() == ""
            program.communicate("\n")
            asked.close()


def test_a_cluster_is_of_the_process_that_opened_it(
    state: Path, manifest: Callable[..., str]
) -> None:
    with up(manifest), eb.Cluster("local", backend="local") as cluster:
        future = cluster.submit(int)
        child = os.fork()
        if child == 0:
            words = []
            for attempt in (lambda: cluster.submit(int), lambda: future.result(1)):
                try:
                    attempt()
                except eb.ConnectionLost as lost:
                    words.append("the process that forked this one" in str(lost))
            os._exit(0 if words == [True, True] else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert future.result(20) == 0


def test_a_result_that_is_there_is_given_however_short_the_wait(
    state: Path, manifest: Callable[..., str]
) -> None:
    ebbtide("up", manifest(min=1))
    try:
        with eb.Cluster("local", backend="local") as cluster:
            futures = [cluster.submit(max, 3, 7), cluster.submit(max, 4, 8)]
            while not all(it.done() for it in futures):
                time.sleep(0.01)
            assert futures[0].result(timeout=0) == 7
            assert futures[1].exception(timeout=0) is None
            with pytest.raises(TimeoutError):
                cluster.submit(time.sleep, 1000).result(timeout=0)
            with pytest.raises(eb.TaskFailed, match="<lambda> returned generator, which cannot be"):
                cluster.submit(lambda: (i for i in range(3))).result()
    finally:
        ebbtide("down", "local")


class Unreadable:
    """Pickles into what cannot be read back."""

    def __reduce__(self) -> tuple:
        return (pickle.loads, (b"no pickle",))


def test_a_value_that_cannot_be_read_here_says_so_each_time(
    state: Path, manifest: Callable[..., str]
) -> None:
    with up(manifest), eb.Cluster("local", backend="local") as cluster:
        future = cluster.submit(Unreadable)
        for _ in range(2):
            with pytest.raises(pickle.UnpicklingError):
                future.result(60)


def test_a_script_ends_well_whose_cluster_went_before_it(
    state: Path, manifest: Callable[..., str], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import ebbtide as eb\n"
        "cluster = eb.Cluster()\n"
        "while True:\n"
        "    try:\n"
        "        cluster.workers()\n"
        "    except eb.ConnectionLost as lost:\n"
        "        print(lost)\n"
        "        break\n"
    )
    change = "  lifetime: { idle: { after: 2s } }\n"
    printed = ebbtide("up", manifest(change=change), "--run", str(script))
    assert "cluster local is gone: it was deleted" in printed and "local is gone" in printed


def test_a_script_that_is_not_there_is_named_before_anything_is_made(
    state: Path, manifest: Callable[..., str]
) -> None:
    assert "there is no script nowhere.py" in ebbtide(
        "up", manifest(), "--run", "nowhere.py", check=False
    )
    assert not state.exists()


def test_a_cluster_that_was_there_before_a_script_stays_after_it(
    state: Path, manifest: Callable[..., str], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('ran')\n")
    file = manifest()
    ebbtide("up", file)
    printed = ebbtide("up", file, "--run", str(script))
    assert "ran" in printed and "local was there before and stays" in printed
    assert "local" in ebbtide("get")
    ebbtide("down", "local")
    assert "local is gone" in ebbtide("up", file, "--run", str(script))


@contextmanager
def running(file: str, script: Path) -> Iterator[subprocess.Popen]:
    """Have a script run beside its cluster until it reads a line."""
    script.write_text("print('begun', flush=True)\ninput()\nprint('ended')\n")
    command = ["ebbtide", "up", file, "--backend", "local", "--run", str(script)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        yield process


def test_a_script_leaves_the_cluster_that_it_made_to_whoever_asked_for_it_since(
    state: Path, manifest: Callable[..., str], tmp_path: Path
) -> None:
    file = manifest()
    with running(file, tmp_path / "first.py") as first:
        with running(file, tmp_path / "second.py") as second:
            out, err = first.communicate("\n", timeout=60)
            assert out == "ended\n" and "local was asked for again since and stays" in err, err
            assert "local" in ebbtide("get")
            out, err = second.communicate("\n", timeout=60)
            assert out == "ended\n" and "local was there before and stays" in err, err
    ebbtide("down", "local")
    with running(file, tmp_path / "first.py") as first:
        ebbtide("up", file)
        out, err = first.communicate("\n", timeout=60)
        assert "local was asked for again since and stays" in err, err
    ebbtide("down", "local")
    with running(file, tmp_path / "first.py") as first:
        # Another one of its name is not its own.
        ebbtide("down", "local")
        ebbtide("up", file)
        first.communicate("\n", timeout=60)
    assert "local" in ebbtide("get")
    ebbtide("down", "local")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_script_and_its_cluster_end_with_who_is_asked_to_end(
    state: Path, manifest: Callable[..., str], tmp_path: Path, number: int
) -> None:
    script = tmp_path / "script.py"
    script.write_text("import signal\nprint('begun', flush=True)\nsignal.pause()\n")
    command = ["ebbtide", "up", manifest(), "--backend", "local", "--run", str(script)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert ebbtide("get").splitlines()[1:] == []


def test_a_cluster_that_is_taken_down_as_it_begins_leaves_nothing(
    state: Path, manifest: Callable[..., str]
) -> None:
    for _ in range(5):
        with subprocess.Popen(["ebbtide", "up", manifest(), "--backend", "local"]) as starting:
            until((state / "local" / "pid").exists)
            ebbtide("down", "local")
            assert not (state / "local").exists()
            assert starting.wait(30) == 1
