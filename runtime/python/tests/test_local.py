"""The same manifest as processes of this machine."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from urllib.request import urlopen

import ebbtide as eb
import ebbtide.array as xp
import pytest
from conftest import ebbtide, processes, until
from ebbtide import _native


def mean(rows: int = 4000) -> xp.Array:
    return xp.random.default_rng(7).normal(size=(rows, 2000), chunks=(250, 2000)).mean()


def test_a_manifest_becomes_a_number_and_nothing_is_left(
    state: Path, manifest: Callable[..., str], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import ebbtide as eb, ebbtide.array as xp\n"
        "with eb.Cluster():\n"
        "    x = xp.random.default_rng(7).normal(size=(4000, 2000), chunks=(250, 2000))\n"
        "    print(x.mean().compute().hex())\n"
    )
    printed = ebbtide("up", manifest(), "--run", str(script))
    assert mean().compute().hex() in printed
    assert processes(state) == {}
    assert not (state / "local").exists()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_changes_no_bit(
    state: Path, manifest: Callable[..., str], workers: int
) -> None:
    ebbtide("up", manifest(min=workers, max=workers))
    try:
        with eb.Cluster("local", backend="local"):
            assert mean().compute() == mean().compute()
            bits = mean().compute().hex()
    finally:
        ebbtide("down", "local")
    assert bits == mean().compute().hex()


def test_a_worker_that_is_killed_in_the_middle_changes_no_bit(
    state: Path, manifest: Callable[..., str]
) -> None:
    large = mean(100_000)
    ebbtide("up", manifest(min=2, max=2))
    try:
        with eb.Cluster("local", backend="local") as cluster:
            killed = []

            def kill_once(done: int, tasks: int, workers: int) -> None:
                if not killed and done > 0:
                    workers = [pid for name, pid in processes(state).items() if "-w-" in name]
                    killed.append(workers[0])
                    os.kill(workers[0], signal.SIGKILL)

            bits = cluster._compute([large._expression], kill_once)[0]
    finally:
        ebbtide("down", "local")
    assert killed
    assert bits == large.compute().tobytes()


def test_two_clusters_live_side_by_side_and_are_listed(
    state: Path, manifest: Callable[..., str]
) -> None:
    ebbtide("up", manifest("one"))
    ebbtide("up", manifest("two"))
    try:
        listed = ebbtide("get")
        assert "one" in listed and "two" in listed
        assert '"phase": "Ready"' in ebbtide("get", "one", "-o", "json")
        mine = (state / "one" / "endpoint.json").stat()
        assert mine.st_mode & 0o077 == 0
    finally:
        ebbtide("down", "one")
        ebbtide("down", "two")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("wrong", {"min": 5}, "min 5 is greater than max 3"),
        ("wrong", {"change": "  wokers: []\n"}, "unknown field `spec.wokers`, expected"),
        ("wrong", {"change": "  image: a\n"}, "run no images; give environment"),
        ("wrong", {"change": "  lifetime: { idle: { after: soon } }\n"}, "like 90s, 20m or 1h30m"),
    ],
)
def test_mistakes_are_refused_in_words(
    state: Path, manifest: Callable[..., str], name: str, options: dict, words: str
) -> None:
    refused = ebbtide("up", manifest(name, **options), check=False)
    assert words in refused
    ebbtide("down", name, check=False)
    assert processes(state, name) == {}


def test_a_function_runs_on_a_worker_with_the_packages_of_its_environment(
    state: Path, manifest: Callable[..., str]
) -> None:
    def where() -> tuple[str, str]:
        import sys

        import cloudpickle

        return sys.prefix, cloudpickle.__file__

    ebbtide("up", manifest())
    try:
        with eb.Cluster("local", backend="local") as cluster:
            future = cluster.submit(where)
            prefix, package = future.result(timeout=60)
            assert "environments" in prefix and package.startswith(prefix)
            assert future.done() and future.result() == (prefix, package)
    finally:
        ebbtide("down", "local")


def test_futures_carry_values_arguments_exceptions_and_cancellation(
    state: Path, manifest: Callable[..., str]
) -> None:
    def forever() -> None:
        while True:
            pass

    ebbtide("up", manifest())
    try:
        with eb.Cluster("local", backend="local") as cluster:
            squares = [cluster.submit(lambda x: x * x, nth) for nth in range(50)]
            assert [square.result(60) for square in squares] == [nth * nth for nth in range(50)]
            assert cluster.submit(max, squares[3], squares[2]).result(60) == 9
            total = cluster.submit(lambda x: float(x.sum()), xp.asarray([1.5, 2.5]))
            assert total.result(60) == 4.0
            with pytest.raises(ZeroDivisionError):
                cluster.submit(lambda: 1 / 0).result(60)
            endless = cluster.submit(forever)
            with pytest.raises(TimeoutError):
                endless.result(0.3)
            endless.cancel()
            with pytest.raises(CancelledError):
                endless.result(60)
            # The worker has one core: this runs only because the endless function was ended.
            assert cluster.submit(len, "abc").result(60) == 3
    finally:
        ebbtide("down", "local")


def test_a_future_inside_anything_else_is_refused_with_the_remedy(
    state: Path, manifest: Callable[..., str]
) -> None:
    ebbtide("up", manifest(max=1))
    try:
        with eb.Cluster("local", backend="local") as cluster:
            one, two = cluster.map(abs, [-1, -2])
            for call in (
                lambda: cluster.submit(sum, [one, two]),
                lambda: cluster.submit(len, obj={"one": one}),
                lambda: cluster.map(sum, [[one, two]]),
                lambda: cluster.submit(lambda: one),
            ):
                with pytest.raises(TypeError, match=r"a future .* by itself, or pass its result()"):
                    call()
            assert cluster.submit(sum, [one.result(60), two.result(60)]).result(60) == 3
    finally:
        ebbtide("down", "local")


def test_short_calls_do_not_wait_behind_a_long_one(
    state: Path, manifest: Callable[..., str], tmp_path: Path
) -> None:
    over = tmp_path / "over"

    def long() -> str:
        while not over.exists():
            time.sleep(0.01)
        return "over"

    ebbtide("up", manifest(min=2))
    try:
        with eb.Cluster("local", backend="local") as cluster:
            first = cluster.submit(long)
            short = [cluster.submit(abs, nth) for nth in range(20)]
            assert [it.result(60) for it in short] == list(range(20)) and not first.done()
            over.touch()
            assert first.result(60) == "over"
    finally:
        ebbtide("down", "local")


def test_long_calls_bring_the_workers_that_they_need(
    state: Path, manifest: Callable[..., str], tmp_path: Path
) -> None:
    def meets(nth: int) -> int:
        (tmp_path / f"met-{nth}").touch()
        while len(list(tmp_path.glob("met-*"))) < 3:
            time.sleep(0.01)
        return nth

    # A second each is what is expected of them: one worker would do.
    ebbtide("up", manifest(change="  scaling: {targetSeconds: 4}\n"))
    try:
        with eb.Cluster("local", backend="local") as cluster:
            calls = [cluster.submit(meets, nth) for nth in range(3)]
            assert [it.result(60) for it in calls] == [0, 1, 2]
    finally:
        ebbtide("down", "local")


def test_a_closed_cluster_leaves_nobody_waiting(state: Path, manifest: Callable[..., str]) -> None:
    ebbtide("up", manifest())
    try:
        with eb.Cluster("local", backend="local") as cluster:
            ended = cluster.submit(len, "abc")
            assert ended.result(60) == 3
            endless = cluster.submit(time.sleep, 1000)
        assert ended.result() == 3 and endless.done()
        cluster.close()
        for late in (lambda: endless.result(60), cluster.workers, lambda: cluster.submit(len, "a")):
            with pytest.raises(eb.ConnectionLost, match="cluster local was closed by this program"):
                late()
    finally:
        ebbtide("down", "local")


INTERRUPTED = """
import sys
import ebbtide as eb, ebbtide.array as xp

def endless(total, path):
    with open(path, "w") as begun:
        begun.write("x")
    while True:
        pass

with eb.Cluster("local", backend="local"):
    x = xp.random.default_rng(1).normal(size=10**9, chunks=10**6)
    call = eb.delayed(endless)(x[: 10**7].sum(), sys.argv[1])
    (x * xp.from_delayed(call, (), xp.float64)).sum().compute(progress=True)
"""


def test_ctrl_c_leaves_the_cluster_idle(
    state: Path, manifest: Callable[..., str], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "begun")
    begun = os.open(tmp_path / "begun", os.O_RDWR)
    ebbtide("up", manifest(max=1))
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "begun")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stderr is not None
        assert select.select([begun], [], [], 60)[0]
        bar = b""
        while not re.search(rb" [1-9][0-9.]*/[0-9.k]+ \[.*, 1 worker\]", bar):
            assert select.select([process.stderr], [], [], 60)[0]
            bar += os.read(process.stderr.fileno(), 1 << 16)
            assert process.poll() is None, bar.decode()
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=10)
        assert process.returncode == -signal.SIGINT
        assert rest.decode().rstrip().endswith("KeyboardInterrupt")
        with eb.Cluster("local", backend="local") as cluster:
            # The worker has one core: this runs only because the endless function was ended.
            assert cluster.submit(float, xp.asarray([1, 2]).sum()).result(10) == 3
    finally:
        process.kill()
        process.communicate()
        os.close(begun)
        ebbtide("down", "local")


def test_what_is_persisted_stays_on_its_cluster_and_survives_a_lost_worker(
    state: Path, manifest: Callable[..., str]
) -> None:
    ebbtide("up", manifest(min=2))
    try:
        x = xp.random.default_rng(3).random((400, 1000), chunks=(20, 1000))
        expected, expected_less = xp.compute(x.sum(), (x - 0.5).sum())
        with eb.Cluster("local", backend="local") as cluster:
            kept = x.persist()
            assert kept.sum().compute() == expected
            name, pid = next((n, p) for n, p in processes(state).items() if "-w-" in n)
            os.kill(pid, signal.SIGKILL)
            assert kept.sum().compute() == expected, name
            assert (kept - 0.5).sum().compute() == expected_less
            with pytest.raises(ValueError, match="persisted on another cluster"):
                _native.compute([kept._expression])
            assert len(cluster.workers()) >= 1
    finally:
        ebbtide("down", "local")


def test_what_went_wrong_where_it_was_to_be_persisted_is_told_to_who_uses_it(
    state: Path, manifest: Callable[..., str]
) -> None:
    def fails() -> None:
        raise LookupError("no such share")

    ebbtide("up", manifest(min=1))
    try:
        with eb.Cluster("local", backend="local"):
            kept = xp.from_delayed(fails, (4,), xp.float64).persist()
            for _ in range(2):
                with pytest.raises(LookupError, match="no such share"):
                    (kept + 1).compute()
    finally:
        ebbtide("down", "local")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make workers put their files where the environments are: other folders may be in memory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_chunks_that_do_not_fit_go_to_disk_and_come_back_the_same(
    state: Path, manifest: Callable[..., str], disk: Path
) -> None:
    ebbtide("up", manifest(max=1))
    try:
        # 1.6 GB in 64 MiB chunks, on a worker that may take 1 GiB altogether.
        x = xp.random.default_rng(3).random((24, 2**23), chunks=(1, 2**23))
        expected = x.sum(axis=1).compute()
        with eb.Cluster("local", backend="local") as cluster:
            kept = x.persist()
            assert (kept.sum(axis=1).compute() == expected).all()
            (worker,) = cluster.workers()
            assert worker.peak_bytes < 2**30
            (pid,) = (pid for name, pid in processes(state).items() if "-w-" in name)
            on_disk = sum(
                file.stat().st_blocks * 512
                for file in Path(f"/proc/{pid}/fd").iterdir()
                if file.readlink().is_relative_to(disk)
            )
            assert on_disk > 2**29
            del kept
            assert (x.sum(axis=1).compute() == expected).all()
    finally:
        ebbtide("down", "local")


def test_a_cluster_that_is_deleted_ends_what_waits_for_it(
    state: Path, manifest: Callable[..., str]
) -> None:
    ebbtide("up", manifest(max=1))
    with eb.Cluster("local", backend="local") as cluster:
        endless = cluster.submit(eval, "__import__('signal').pause()")
        assert cluster.submit(int).done() is False
        ebbtide("down", "local")
        with pytest.raises(eb.ConnectionLost, match="cluster local is gone: it was deleted"):
            endless.result(20)
        with pytest.raises(eb.ConnectionLost, match="cluster local is gone: it was deleted"):
            cluster.submit(int)


def test_a_manifest_that_is_refused_leaves_nothing(
    state: Path, manifest: Callable[..., str], tmp_path: Path
) -> None:
    given = Path(manifest(max=1))
    for change, words in [
        (("max: 1", "max: 0"), "max 0 from 1 to 10000"),
        (("name: local", "name: ../up"), "is no name"),
        (("name: local", "name: .."), "is no name"),
        (('python: "3.11"', 'python: "3.11", packages: ["a=>1"]'), '"a=>1"'),
    ]:
        wrong = tmp_path / "wrong.yaml"
        text = given.read_text()
        assert change[0] in text, text
        wrong.write_text(text.replace(*change))
        assert words in ebbtide("up", str(wrong), check=False)
        assert ebbtide("get", check=False).splitlines()[1:] == []
    ebbtide("up", str(given))
    ebbtide("down", "local")


def test_a_cluster_without_work_takes_its_workers_away_and_then_itself(
    state: Path, manifest: Callable[..., str]
) -> None:
    change = (
        "  scaling: { targetSeconds: 1, down: { window: 1s } }\n"
        "  lifetime: { idle: { after: 4s } }\n"
    )
    ebbtide("up", manifest(min=0, max=2, change=change))
    seen = set()
    with eb.Cluster("local", backend="local") as cluster:
        assert cluster.workers() == []
        assert cluster.submit(int).result(60) == 0
        assert len(cluster.workers()) > 0
        for count in counts(state):
            seen.add(count)
    assert 0 in seen and seen - {0, None}
    assert ebbtide("get").splitlines()[1:] == []


def counts(state: Path) -> Iterator[int]:
    """Tell how many workers there are, until the cluster is gone."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        listed = json.loads(ebbtide("get", "-o", "json"))
        if not listed:
            return
        yield listed[0].get("status", {}).get("workers", {}).get("ready")
    raise AssertionError("the cluster does not go")


def test_scheduler_and_workers_tell_how_they_are(state: Path, manifest: Callable[..., str]) -> None:
    ebbtide("up", manifest())
    try:
        printed = subprocess.run(
            ["ebbtide", "endpoint", "local", "--backend", "local"],
            input="", capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        network = json.loads(printed.stdout)["address"]["tcp"].rpartition(".")[0]

        def ask(host: int, path: str) -> str:
            with urlopen(f"http://{network}.{host}:8787{path}", timeout=20) as answer:
                return answer.read().decode()

        with eb.Cluster("local", backend="local") as cluster:
            (x,) = xp.persist(xp.random.default_rng(1).random(1000))
            assert x.sum().compute() > 0
            assert len(cluster.workers()) == 1
            assert ask(1, "/healthz") == ask(2, "/healthz") == "ok"
            for host, line in [
                (1, "ebbtide_workers 1"),
                (1, "ebbtide_clients 1"),
                (2, "ebbtide_worker_memory_taken_bytes 8000"),
            ]:
                until(lambda host=host, line=line: line in ask(host, "/metrics").splitlines())
    finally:
        ebbtide("down", "local")


def with_pod(manifest: Callable[..., str], pod: object) -> str:
    """Write a manifest whose workers' pods have these settings."""
    path = Path(manifest(max=1))
    path.write_text(path.read_text().replace("max: 1 }", f"max: 1, pod: {json.dumps(pod)} }}"))
    return str(path)


def test_variables_reach_functions_and_what_a_secret_would_give_comes_from_the_shell(
    state: Path, manifest: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"secretKeyRef": {"name": "lent", "key": "word"}}
    maybe = {"configMapKeyRef": {"name": "settings", "key": "k", "optional": True}}
    env = [
        {"name": "PLAIN", "value": "a$$b $(LENT)"},
        {"name": "LENT", "valueFrom": source},
        {"name": "MAYBE", "valueFrom": maybe},
    ]
    mounts = {"volumes": [{"name": "v", "emptyDir": {}}]}
    mounts["volumeMounts"] = [{"name": "v", "mountPath": "/data"}]
    path = with_pod(manifest, {"env": env, "nodeSelector": {"pool": "spot"}, **mounts})
    refused = ebbtide("up", path, check=False)
    assert "LENT comes from a Secret or ConfigMap" in refused and "export LENT=" in refused
    assert not (state / "local").exists()
    monkeypatch.setenv("LENT", "secret word")
    printed = ebbtide("up", path)
    try:
        assert "do without spec.workers[w].pod.volumeMounts" in printed
        with eb.Cluster("local", backend="local") as cluster:
            look = "[__import__('os').environ.get(it) for it in ('PLAIN', 'LENT', 'MAYBE')]"
            assert cluster.submit(eval, look).result(60) == ["a$$b $(LENT)", "secret word", None]
        assert ebbtide("diff", path) == "nothing differs\n"
        told = ebbtide("diff", manifest(max=2))
        assert "is refused on this machine; take the cluster down first:" in told
        assert "spec.workers[w].max: 1 -> 2" in told
        told = ebbtide("describe", "local")
        assert "w: 1 of 1 ready" in told and "create pod" in told
        assert "secret word" not in told + ebbtide("logs", "local")
        said = ebbtide("logs", "local", "--pod", "w-0")
        assert "registered" in said and "the scheduler is ready" not in said
        assert "has no pod whose name ends with w-9" in ebbtide(
            "logs", "local", "-p", "w-9", check=False
        )
    finally:
        ebbtide("down", "local")


def test_settings_of_pods_that_cannot_be_are_refused_before_anything_starts(
    state: Path, manifest: Callable[..., str]
) -> None:
    refused = ebbtide("up", with_pod(manifest, {"hostNetwork": True}), check=False)
    assert "unknown field `spec.workers[0].pod.hostNetwork`" in refused
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/data"}]}
    refused = ebbtide("up", with_pod(manifest, mount), check=False)
    assert "spec.workers[w].pod.volumeMounts: /data: there is no volume v in volumes" in refused
    assert not (state / "local").exists()


#: A second group, whose one worker has what nobody else has.
GPUS = """
    - name: gpus
      resources: { cpu: 2, memory: 1Gi, example.com/gpu: 1 }
      max: 1
"""


def group() -> str:
    return os.environ["EBBTIDE_GROUP"]


def span() -> tuple[float, float]:
    """Take a while, and tell when."""
    begin = time.monotonic()
    time.sleep(0.2)
    return begin, time.monotonic()


def test_what_takes_a_resource_brings_a_worker_that_has_it_and_shares_it(
    state: Path, manifest: Callable[..., str]
) -> None:
    gpu = {"example.com/gpu": 1}
    ebbtide("up", manifest(min=1, max=1, change=GPUS))
    try:
        with eb.Cluster("local", backend="local") as cluster:
            assert cluster.submit(group).result(60) == "w"
            assert "gpus: 0 of 0 ready" in ebbtide("describe", "local")
            assert cluster.submit(group, resources=gpu).result(60) == "gpus"
            # The worker has two cores, and one of these.
            spans = [cluster.submit(span, resources=gpu) for _ in range(4)]
            times = sorted(future.result(60) for future in spans)
            assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))
            made = xp.from_delayed(lambda: [len(group())], (1,), xp.int64, resources=gpu)
            assert made.compute().tolist() == [4]
            with pytest.raises(eb.TaskFailed, match=r"example\.com/gpu: 2, and no worker that is"):
                cluster.submit(group, resources={"example.com/gpu": 2}).result(60)
            with pytest.raises(eb.TaskFailed, match=r"GiB of memory .* example\.com/gpu: 1 has"):
                cluster.submit(group, resources=gpu, memory="2 GiB").result(60)
    finally:
        ebbtide("down", "local")


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"gpu": 1}, "'gpu' is no kind of resource"),
        ({"memory": 1}, "leave 'memory' out"),
        ({"example.com/gpu": 0}, "0 of example.com/gpu is no amount"),
        ({"example.com/gpu": 0.5}, "0.5 of example.com/gpu is no amount"),
    ],
)
def test_resources_that_cannot_be_are_refused_at_once(resources: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        xp.from_delayed(group, (), xp.int64, resources=resources)


def test_this_process_has_nothing_but_cores_and_memory() -> None:
    made = xp.from_delayed(group, (), xp.int64, resources={"example.com/gpu": 1})
    with pytest.raises(eb.TaskFailed, match="use a cluster with a worker group"):
        made.compute()


def test_who_asks_for_a_cluster_that_is_on_its_way_out_is_told(
    state: Path, manifest: Callable[..., str]
) -> None:
    file = manifest(max=1)
    ebbtide("up", file)
    [worker] = (pid for name, pid in processes(state).items() if "-w-" in name)
    # It takes as long as it may.
    os.kill(worker, signal.SIGSTOP)
    with subprocess.Popen(["ebbtide", "down", "local", "--backend", "local"]) as down:
        until(lambda: '"Deleting"' in (state / "local" / "cluster.json").read_text())
        assert "local is being deleted" in ebbtide("up", file, check=False)
        assert down.wait(30) == 0
    ebbtide("up", file)
    ebbtide("down", "local")
