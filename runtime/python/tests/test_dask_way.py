"""Who may come in where Dask listens: members of the cluster, each where it is expected."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from distributed.comm import connect, listen
from distributed.comm.core import Comm
from ebbtide import _dask

#: Of an event loop that answers, and of one that never does.
SECONDS = 5


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Mint, with one authority, a folder of credentials for a cluster's member."""
    root = tmp_path_factory.mktemp("authority")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def openssl(*arguments: str, of: Path = root) -> None:
        subprocess.run(("openssl", *arguments), cwd=of, check=True, capture_output=True)

    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=a")

    def mint(role: str, uid: str = "u-1", token: str = "secret") -> str:
        folder = root / f"{uid}-{role}-{token}"
        if folder.exists():
            return str(folder)
        folder.mkdir()
        (folder / "claims").write_text(
            f"subjectAltName=URI:ebbtide://cluster/{uid}/{role}\n"
            "extendedKeyUsage=clientAuth,serverAuth\nbasicConstraints=critical,CA:FALSE\n"
        )
        authority = ("-CA", "../ca.crt", "-CAkey", "../ca.key", "-CAcreateserial")
        openssl("req", *key, "-keyout", "tls.key", "-out", "csr", "-subj", "/CN=m", of=folder)
        openssl("x509", "-req", "-in", "csr", *authority, "-extfile", "claims", "-out", "tls.crt",
                of=folder)  # fmt: skip
        (folder / "ca.crt").write_bytes((root / "ca.crt").read_bytes())
        (folder / "token").write_text(token)
        return str(folder)

    return mint


def meet(there: _dask.Way, here: _dask.Way) -> str:
    """Listen as one, dial as the other, and tell what was heard or why nothing was."""

    async def answer(comm: Comm) -> None:
        await comm.write(await comm.read())
        await comm.close()

    async def both() -> str:
        listener = await listen(
            "ebbtide://127.0.0.1:0", answer, **_dask.Credentials(there).get_listen_args("")
        )
        try:
            args = _dask.Credentials(here).get_connection_args("")
            comm = await connect(listener.contact_address, timeout=SECONDS, **args)
            await comm.write("it is heard")
            return str(await asyncio.wait_for(comm.read(), SECONDS))
        except OSError as error:
            return f"refused: {error}"
        finally:
            listener.stop()

    return asyncio.run(both())


def test_members_meet_where_they_are_expected(credentials: Callable[..., str]) -> None:
    def way(role: str) -> _dask.Way:
        return _dask.Way(credentials(role), "u-1", role)

    for there, here in (
        ("scheduler", "worker"),
        ("scheduler", "client"),
        ("worker", "worker"),
        ("worker", "scheduler"),
    ):
        assert meet(way(there), way(here)) == "it is heard", (there, here)


def test_what_a_member_is_not_expected_to_be_is_refused_on_both_ends(
    credentials: Callable[..., str],
) -> None:
    def way(role: str, **of: str) -> _dask.Way:
        return _dask.Way(credentials(role, **of), "u-1", role)

    def disguised(is_: str, as_: str) -> _dask.Way:
        return _dask.Way(credentials(is_), "u-1", as_)

    refused = {
        "a worker of another cluster": (way("scheduler"), way("worker", uid="u-2")),
        "a client of another cluster": (way("scheduler"), way("client", uid="u-2")),
        "a scheduler of another cluster": (way("scheduler", uid="u-2"), way("client")),
        "a worker at another worker": (way("worker"), way("worker", uid="u-2")),
        "a client at a worker": (way("worker"), disguised("client", "scheduler")),
        "a worker in the scheduler's place": (disguised("worker", "scheduler"), way("client")),
        "a client with another token": (way("scheduler"), way("client", token="other")),
        "a client without a token": (way("scheduler"), disguised("client", "worker")),
        "a certificate of nobody's": (way("scheduler"), way("nobody")),
    }
    _dask.DIALS["nobody"] = _dask.DIALS["worker"]
    for who, (there, here) in refused.items():
        told = meet(there, here)
        assert told.startswith("refused: ") and "Timed out" not in told, (who, told)
    del _dask.DIALS["nobody"]


def test_credentials_that_change_hold_for_the_next_connection(
    credentials: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "changing"
    folder.mkdir()

    def become(uid: str) -> None:
        for file in Path(credentials("worker", uid=uid)).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    become("u-2")
    scheduler = _dask.Way(credentials("scheduler"), "u-1", "scheduler")
    worker = _dask.Way(str(folder), "u-1", "worker")
    assert meet(scheduler, worker).startswith("refused: ")
    become("u-1")
    assert meet(scheduler, worker) == "it is heard"
    # Half of a pair is no reason to lose the other.
    (folder / "tls.key").write_text("")
    assert meet(scheduler, worker) == "it is heard"
