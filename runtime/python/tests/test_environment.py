"""Environments of clusters of this machine."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ebbtide


def test_an_environment_that_could_not_be_made_is_tried_again_when_somebody_asks_again(
    state: Path, manifest: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setenv("EBBTIDE_UV", "/nowhere/uv")
        without.setenv("XDG_CACHE_HOME", str(tmp_path))
        told = ebbtide("up", manifest(), check=False)
        assert "uv cannot be started" in told, told
        assert "there is no cluster local" in ebbtide("get", "local", check=False)
    assert "is not there; `ebbtide up` makes it" in ebbtide("diff", manifest())
    ebbtide("up", manifest())
    assert "Ready" in ebbtide("get", "local")
    ebbtide("down", "local")


def locked(folder: Path, python: str, *packages: str) -> str:
    """Write a manifest with a package list and lock it."""
    path = folder / "listed.yaml"
    names = ", ".join(f'"{it}"' for it in packages)
    path.write_text(f"""
apiVersion: ebbtide.dev/v1alpha1
kind: Cluster
metadata: {{ name: listed }}
spec:
  environment: {{ python: "{python}", packages: [{names}] }}
  workers: [{{ name: w, resources: {{ cpu: "1", memory: 1Gi }}, max: 1 }}]
""")
    return ebbtide("env", "lock", str(path), check=False)


def test_a_lock_has_a_file_with_its_hash_of_every_package_whatever_the_order_of_the_list(
    tmp_path: Path,
) -> None:
    lock = locked(tmp_path, "3.11", "Jinja2", "PyYAML>=6,<7")
    assert lock == locked(tmp_path, "3.11", "pyyaml <7, >= 6", "jinja2", "JINJA2")
    packages = {it["name"]: it for it in tomllib.loads(lock)["packages"]}
    # What these need, and what workers do.
    assert {"cloudpickle", "numpy", "jinja2", "markupsafe", "pyyaml"} <= set(packages)
    for it in packages.values():
        assert all(len(wheel["hashes"]["sha256"]) == 64 for wheel in it["wheels"]), it
    assert "cp313-cp313-" in locked(tmp_path, "3.13", "pyyaml")


def test_what_has_no_lock_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for python, package, words in [
        ("3.11", "numpy>99", "you require numpy>99"),
        ("3.11", "nope-nope-nope-1", "nope-nope-nope-1 was not found"),
        ("3.11", "pyspark==3.5.1", "pyspark==3.5.1 has no usable wheels"),
        ("2.7", "six", "there is no lock for Python 2.7"),
    ]:
        told = locked(tmp_path, python, package)
        assert told.startswith("error: ") and words in told, told
    monkeypatch.setenv("EBBTIDE_UV", "/nowhere/uv")
    assert "uv cannot be started; install it" in locked(tmp_path, "3.11")
