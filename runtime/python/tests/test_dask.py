"""Dask in the place of our engine, on clusters of this machine."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dask
import dask.array as da
import dask.dataframe as dd
import ebbtide as eb
import ebbtide.array as xp
import numpy as np
import pandas as pd
import pytest
from conftest import ebbtide

#: The environment of the first one is made.
SECONDS_MAX = 300

MANIFEST = """
apiVersion: ebbtide.dev/v1alpha1
kind: Cluster
metadata: {{ name: {name} }}
spec:
  engine: dask
  environment: {{ python: "3.11", packages: {packages} }}
  scheduler: {{ resources: {{ cpu: 1, memory: 1Gi }} }}
  workers:
    - {{ name: w, resources: {{ cpu: 1, memory: 2Gi }}, max: 2 }}
    - {{ name: device, resources: {{ cpu: 1, memory: 1Gi, example.com/device: 1 }}, max: 1 }}
"""

PACKAGES = '["dask[array,dataframe]==2026.8.0", distributed==2026.8.0, bokeh]'


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster without workers, as long as there is no work."""
    folder = tmp_path_factory.mktemp("dask")
    (folder / "cluster.yaml").write_text(MANIFEST.format(name="plain", packages=PACKAGES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        patch.setenv("EBBTIDE_BACKEND", "local")
        up = ("ebbtide", "up", str(folder / "cluster.yaml"))
        subprocess.run(up, check=True, timeout=SECONDS_MAX)
        yield
        ebbtide("down", "plain")


def test_arrays_frames_and_delayed_functions_compute_on_workers_that_come_for_them(
    plain: None,
) -> None:
    normal = da.random.default_rng(7).normal(size=(2000, 500), chunks=(250, 500))
    frame = pd.DataFrame({"who": ["a", "b"] * 500, "how_much": np.arange(1000)})
    squares = [dask.delayed(pow)(number, 2) for number in range(100)]
    here = normal.mean().compute(scheduler="synchronous")
    with eb.Cluster("plain") as cluster, cluster.dask_client() as client:
        assert dask.delayed(sum)(squares).compute() == sum(number**2 for number in range(100))
        assert client.scheduler_info()["workers"]
        assert normal.mean().compute() == here
        of_each = dd.from_pandas(frame, npartitions=4).groupby("who").how_much.sum().compute()
        assert of_each.to_dict() == {"a": 249_500, "b": 250_000}
        # Where the work ran.
        assert client.submit(os.getpid).result() != os.getpid()


def test_a_task_that_takes_a_device_waits_for_a_worker_of_the_group_that_has_it(
    plain: None,
) -> None:
    with eb.Cluster("plain") as cluster, cluster.dask_client() as client:
        name = client.submit(
            lambda: __import__("distributed").get_worker().name,
            resources={"example.com/device": 1},
        ).result(60)
        assert "-device-" in name


def test_what_is_for_the_other_engine_is_refused_in_words(plain: None, tmp_path: Path) -> None:
    with eb.Cluster("plain") as cluster:
        with pytest.raises(TypeError, match=r"plain runs Dask: .*cluster.dask_client\(\)"):
            xp.asarray([1, 2]).sum().compute()
        with pytest.raises(TypeError, match="plain runs Dask"):
            cluster.submit(len, "abc")
    assert repr(cluster) == "<ebbtide.Cluster plain (closed)>"
    with pytest.raises(eb.ConnectionLost, match="was closed by this program"):
        cluster.dask_client()


def test_a_client_ends_with_its_cluster(plain: None) -> None:
    cluster = eb.Cluster("plain")
    client = cluster.dask_client()
    cluster.close()
    assert client.status == "closed"


def test_a_client_holds_the_way_to_its_cluster(plain: None) -> None:
    client = eb.Cluster("plain").dask_client()
    gc.collect()
    assert client.submit(pow, 2, 5).result(60) == 32
    client.close()


def test_a_scheduler_that_stands_still_is_neither_idle_nor_dead(
    state: Path, tmp_path: Path, plain: None
) -> None:
    text = MANIFEST.format(name="still", packages=PACKAGES)
    (tmp_path / "cluster.yaml").write_text(text + "  lifetime: { idle: { after: 10s } }\n")
    ebbtide("up", str(tmp_path / "cluster.yaml"))
    with eb.Cluster("still", backend="local") as cluster, cluster.dask_client() as client:
        # As long as one that unpickles a large graph.
        client.run_on_scheduler(time.sleep, 25)
        assert client.submit(pow, 2, 5).result(60) == 32
    ebbtide("down", "still")


PROGRAM = """
from distributed import Client
with Client() as client:
    worker = client.submit(lambda: __import__("distributed").get_worker().name).result(60)
    [limit] = {it["memory_limit"] for it in client.scheduler_info()["workers"].values()}
    print(worker, limit)
"""


def test_a_program_that_knows_dask_alone_has_workers_with_the_memory_of_their_group(
    state: Path, tmp_path: Path, plain: None
) -> None:
    (tmp_path / "cluster.yaml").write_text(MANIFEST.format(name="limits", packages=PACKAGES))
    (tmp_path / "program.py").write_text(PROGRAM)
    with_cluster = ("--cluster", str(tmp_path / "cluster.yaml"), "--backend", "local")
    told = ebbtide("run", str(tmp_path / "program.py"), *with_cluster)
    assert f"-w-0 {2 << 30}\n" in told, told
    assert not list(state.glob("*"))


def follow(address: str, origin: str) -> str:
    """Ask as a page of some origin does that follows a cluster. Give what is answered."""
    host, port = address.removeprefix("http://").split("/")[0].split(":")
    lines = [
        "GET /status/ws HTTP/1.1", f"Host: {host}:{port}", f"Origin: {origin}",
        "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]  # fmt: skip
    with socket.create_connection((host, int(port)), timeout=20) as stream:
        stream.sendall("\r\n".join([*lines, "", ""]).encode())
        return stream.recv(64).split()[1].decode()


def test_the_dashboard_of_a_cluster_of_this_machine_is_where_it_is(plain: None) -> None:
    told = ebbtide("dashboard", "plain")
    assert told.startswith("http://127.") and told.endswith(":8787/status\n")
    with urllib.request.urlopen(told.strip(), timeout=20) as answer:
        assert b"bokeh.min.js" in answer.read()
    assert follow(told.strip(), told.strip().removesuffix("/status")) == "101"
    assert follow(told.strip(), "http://elsewhere.example") == "403"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(told.strip().replace("/status", "/proxy/8787/127.0.0.1/status"))


def test_an_environment_without_dask_is_told_what_it_lacks(state: Path, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(MANIFEST.format(name="bare", packages="[]"))
    told = ebbtide("up", str(tmp_path / "cluster.yaml"), check=False)
    assert "a cluster with `engine: dask` needs `distributed` among `packages`" in told
    ebbtide("down", "bare")
