"""Clusters of this machine for tests, and one for the examples in the package's docstrings."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import ebbtide as eb
import pytest

MANIFEST = """
apiVersion: ebbtide.dev/v1alpha1
kind: Cluster
metadata: {{ name: {name} }}
spec:
  environment: {{ python: "3.11" }}
  workers:
    - {{ name: w, resources: {{ cpu: 1, memory: 1Gi }}, min: {min}, max: {max} }}
"""

#: How long an example may take.
SECONDS_MAX = 60


def pytest_configure(config: pytest.Config) -> None:
    # Whoever started this may ignore Ctrl-C, and so would every program that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A plugin of its own: the fixtures of this file are for this folder only.
    config.pluginmanager.register(Examples(), "examples")


class Examples:
    """Gives examples what their reader has, and ends those that do not end."""

    @pytest.fixture(scope="session")
    @classmethod
    def cluster(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        """Bring up the cluster once, when the first example needs it."""
        folder = tmp_path_factory.mktemp("examples")
        manifest = folder / "cluster.yaml"
        manifest.write_text(MANIFEST.format(name="examples", min=1, max=1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(folder))
            ebbtide("up", str(manifest))
            with eb.Cluster("examples", backend="local") as cluster:
                # Its worker is there when it has answered.
                assert cluster.submit(len, "abc").result(SECONDS_MAX) == 3
        yield folder
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(folder))
            ebbtide("down", "examples")

    @pytest.fixture(autouse=True)
    def example(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[None]:
        """Bound an example, and lead it to the cluster when it opens one."""
        if not isinstance(request.node, pytest.DoctestItem):
            yield
            return
        test = request.node.dtest
        assert test is not None
        if any("eb.Cluster(" in one.source for one in test.examples):
            monkeypatch.setenv("XDG_STATE_HOME", str(request.getfixturevalue("cluster")))
            monkeypatch.setenv("EBBTIDE_BACKEND", "local")
        before = signal.signal(signal.SIGALRM, too_long)
        signal.alarm(SECONDS_MAX)
        yield
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"the example took more than {SECONDS_MAX} s")


def ebbtide(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        ["ebbtide", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "EBBTIDE_BACKEND": "local"},
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "ebbtide" / "clusters" / "default"


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., str]:
    def write(name: str = "local", min: int = 1, max: int = 3, change: str = "") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(MANIFEST.format(name=name, min=min, max=max) + change)
        return str(path)

    return write


def processes(state: Path, name: str = "local") -> dict[str, int]:
    """Find the processes of a cluster by the folders that they work in."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            where = (process / "cwd").readlink()
        except OSError:
            continue
        if where.parent == state / name / "pods":
            found[where.name] = int(process.name)
    return found


def until(is_so: Callable[[], bool]) -> None:
    """Look again for at most twenty seconds."""
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
