"""`ebbtide run` with a cluster of this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conftest import ebbtide

PROGRAM = """
import pathlib, sys, ebbtide as eb, ebbtide.array as xp
tries = pathlib.Path(sys.argv[1])
tries.write_text(tries.read_text() + "I" if tries.exists() else "I")
with eb.Cluster():
    print("mean", xp.asarray([1, 2, 3]).mean().compute())
raise SystemExit(int(sys.argv[2]) if len(tries.read_text()) < int(sys.argv[3]) else 0)
"""


def test_a_program_has_a_cluster_until_it_ends_well(
    state: Path, manifest: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    asks = ("run", str(tmp_path / "program.py"), "--cluster", manifest(), "--retries", "1")
    told = ebbtide(*asks, "--name", "nightly", "--", str(tmp_path / "tries"), "3", "2")
    assert told.count("mean 2.0\n") == 2
    assert "attempt 1 went wrong; another one follows in 10s" in told
    assert "nightly is gone" in told and not list(state.glob("*"))


def test_a_program_on_a_cluster_that_is_there_leaves_it_and_its_exit_code_is_told(
    state: Path, manifest: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    ebbtide("up", manifest())
    asks = ("run", str(tmp_path / "program.py"), "--on")
    told = ebbtide(*asks, "local", "--", str(tmp_path / "tries"), "3", "9", check=False)
    assert told == "mean 2.0\n"
    assert "Ready" in ebbtide("get", "local")
    ebbtide("down", "local")
    told = ebbtide(*asks, "local", "--", "a", "0", "0", check=False)
    assert "there is no cluster local in namespace default" in told


def test_a_run_that_cannot_be_is_refused_in_words(
    state: Path, manifest: Callable[..., str], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    assert "cannot read" in ebbtide("run", str(program), "--on", "a", check=False)
    program.write_text("1")
    told = ebbtide("run", str(program), check=False)
    assert "--cluster <CLUSTER>|--on <ON>" in told
    told = ebbtide("run", str(program), "--cluster", manifest(), "--detach", check=False)
    assert "a program on this machine is followed to its end" in told
    for asked in (["jobs"], ["jobs", "a"], ["follow", "a"]):
        assert "none is kept" in ebbtide(*asked, check=False)
