"""Environments of clusters of this machine."""

from __future__ import annotations

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
