"""Dask's scheduler and workers as pods: its scripts, its data, and who may come in."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import dask.array as da
import ebbtide as eb
import pytest
import yaml
from conftest import kubectl, resize, run, up
from ebbtide import _dask

EXAMPLE = Path(__file__).parents[2] / "examples" / "dask" / "cluster.yaml"

#: A program that knows nothing of Ebbtide.
PROGRAM = """
import dask, dask.array as da, dask.dataframe as dd, pandas as pd
from distributed import Client
client = Client()
print("array", int(da.arange(1_000_000, chunks=100_000).sum().compute()))
frame = dd.from_pandas(pd.DataFrame({"a": [1, 2, 1, 2], "b": [1, 2, 3, 4]}), npartitions=2)
print("frame", frame.groupby("a").b.sum().compute().to_dict())
print("delayed", dask.delayed(sum)([dask.delayed(pow)(n, 2) for n in range(10)]).compute())
print("workers", len(client.scheduler_info()["workers"]))
"""


@pytest.fixture
def of_dask(manifest: Callable[..., Path]) -> Callable[..., Path]:
    """Write a manifest of a cluster with so many workers."""

    def write(workers: int = 1, name: str = "mean") -> Path:
        def change(spec: dict) -> None:
            spec["engine"] = "dask"
            spec["environment"] = yaml.safe_load(EXAMPLE.read_text())["spec"]["environment"]
            # It takes more to start than ours.
            spec["scheduler"]["resources"] = {"cpu": "700m", "memory": "512Mi"}
            resources = {"cpu": "700m", "memory": "1Gi"}
            spec["workers"][0].update(min=workers, max=max(workers, 1), resources=resources)

        return manifest(change, name)

    return write


def test_workers_come_and_go_under_a_script_and_no_task_and_no_data_is_lost(
    namespace: str, of_dask: Callable[..., Path]
) -> None:
    with (
        up(of_dask(2), namespace),
        eb.Cluster("mean", namespace=namespace) as cluster,
        cluster.dask_client() as client,
    ):
        client.wait_for_workers(2, timeout=60)
        # They are made once: another time they would be others.
        kept = client.map(lambda nth: (nth, uuid.uuid4().hex), range(20), pure=False)
        before = client.gather(kept)
        slow = client.map(lambda nth: (time.sleep(0.5), nth)[1], range(40), pure=False)
        resize(namespace, 1)
        assert client.gather(kept) == before
        resize(namespace, 2)
        assert client.gather(slow) == list(range(40))
        assert client.gather(kept) == before
        mean = da.random.default_rng(7).normal(size=(2000, 500), chunks=(250, 500)).mean()
        assert mean.compute() == mean.compute(scheduler="synchronous")


def test_a_certificate_of_another_cluster_opens_no_door_of_dask(
    namespace: str, of_dask: Callable[..., Path], tmp_path: Path
) -> None:
    with (
        up(of_dask(0), namespace),
        up(of_dask(0, "other"), namespace, "other"),
        eb.Cluster("mean", namespace=namespace) as mean,
        eb.Cluster("other", namespace=namespace) as other,
    ):
        of_mean, of_other = (it._client._endpoint for it in (mean, other))  # type: ignore[union-attr]
        import distributed

        def client(credentials: str, cluster_uid: str) -> distributed.Client:
            [socket] = of_mean["address"].values()
            security = _dask.Credentials(_dask.Way(credentials, cluster_uid, "client"))
            address = _dask.PREFIX + socket
            return distributed.Client(address, security=security, timeout=10)

        with client(of_mean["credentials"], of_mean["clusterUid"]) as right:
            assert right.scheduler_info()["type"] == "Scheduler"
        with pytest.raises(OSError):
            client(of_other["credentials"], of_mean["clusterUid"])
        with pytest.raises(OSError, match="is not of this cluster"):
            client(of_mean["credentials"], of_other["clusterUid"])
        told = run("ebbtide", "logs", "mean", "-n", namespace)
        assert "its certificate is not of this cluster" in told


def test_the_dashboard_opens_through_the_port_forward(
    namespace: str, of_dask: Callable[..., Path]
) -> None:
    with up(of_dask(0), namespace):
        command = ["ebbtide", "dashboard", "mean", "-n", namespace]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as way:
            assert way.stdout is not None
            address = way.stdout.readline().strip()
            with urllib.request.urlopen(address, timeout=20) as answer:
                assert b"bokeh.min.js" in answer.read()
            healthy = address.replace("/status", "/healthz")
            with urllib.request.urlopen(healthy, timeout=20) as answer:
                assert answer.read() == b"ok\n"
            way.terminate()
            assert way.wait(10) == 0


def test_a_plain_program_runs_as_it_is_in_a_pod_and_on_this_machine(
    namespace: str, of_dask: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    program, manifest = str(tmp_path / "program.py"), str(of_dask(1))
    says = "array 499999500000\nframe {1: 4, 2: 6}\ndelayed 285\nworkers 1\n"
    place = ("-n", namespace)
    assert run("ebbtide", "run", program, "--cluster", manifest, *place, "--name", "job") == says
    assert run("ebbtide", "up", manifest, "--run", program, *place) == says


def test_a_plain_program_goes_on_while_workers_come_and_go_and_loses_no_task(
    namespace: str, of_dask: Callable[..., Path], tmp_path: Path
) -> None:
    begins = """
import dask, time
print("begun", flush=True)
tasks = [dask.delayed(lambda n: (time.sleep(0.4), n)[1])(n) for n in range(60)]
print("tasks", dask.compute(*tasks) == tuple(range(60)))
"""
    connected, rest = PROGRAM.split("client = Client()")
    (tmp_path / "program.py").write_text(f"{connected}client = Client()\n{begins}{rest}")
    asks = [
        "ebbtide",
        "up",
        str(of_dask(2)),
        "-n",
        namespace,
        "--run",
        str(tmp_path / "program.py"),
    ]
    with subprocess.Popen(asks, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == "begun\n"
        resize(namespace, 1)
        resize(namespace, 2)
        said, _ = it.communicate(timeout=300)
    assert said == ("tasks True\narray 499999500000\nframe {1: 4, 2: 6}\ndelayed 285\nworkers 2\n")
    assert it.returncode == 0


def test_an_image_without_dask_is_told_what_it_lacks(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def change(spec: dict) -> None:
        spec["engine"] = "dask"
        spec["scheduler"]["resources"]["cpu"] = "500m"

    path = manifest(change)
    words = run("ebbtide", "up", str(path), "-n", namespace, check=False)
    assert "a cluster with `engine: dask` needs `distributed` among `packages`" in words


def test_an_engine_that_cannot_change_does_not(
    namespace: str, of_dask: Callable[..., Path]
) -> None:
    with up(of_dask(0), namespace):
        patch = json.dumps({"spec": {"engine": "ebbtide"}})
        words = kubectl(
            "patch", "ebb", "mean", "-n", namespace, "--type=merge", "-p", patch, check=False
        )
        assert "engine cannot change while the cluster lives" in words
