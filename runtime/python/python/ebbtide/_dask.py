"""The way between the parts of a Dask cluster: TLS among those who prove that they are of it.

Dask's own `tls://` believes everybody with a certificate of its authority, and reads files once.
Ours, `ebbtide://`, asks whether the other is of the same cluster and does what is expected there,
takes a token from clients, and reads the files as they are now, for every connection. It dials
sockets of this machine, too: `ebbtide:///folder/socket`.

What runs in a cluster gets this text from the program that starts it; it needs nothing but Dask.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import logging
import os
import socket
import ssl
from typing import Any

from distributed.comm import tcp
from distributed.comm.addressing import parse_host_port
from distributed.comm.core import CommClosedError, FatalCommClosedError
from distributed.comm.registry import backends
from distributed.security import Security
from tornado.ioloop import PeriodicCallback
from tornado.iostream import IOStream, StreamClosedError

SCHEME = "ebbtide"
PREFIX = f"{SCHEME}://"

#: How long somebody may take to prove who they are, in seconds.
HANDSHAKE_SECONDS = 10

#: How often what a listener proves itself with is read again, in milliseconds.
RENEW_MILLISECONDS = 10_000

#: The longest token, in bytes. Its length goes before it, as two bytes.
TOKEN_BYTES_MAX = 4096

#: Whom each member dials, and whom it lets in. Only a scheduler can know a client's token.
DIALS = {
    "client": ("scheduler",),
    "worker": ("scheduler", "worker"),
    "scheduler": ("worker",),
}
LETS_IN = {"worker": ("scheduler", "worker"), "scheduler": ("worker", "client")}

#: What a connection keeps of what came and was not read yet, in bytes: as much as Dask's own.
BUFFER_BYTES_MAX = int(tcp.MAX_BUFFER_SIZE)

log = logging.getLogger("ebbtide")


class Way:
    """How a process of a cluster proves who it is, and whom it believes.

    `folder` has `ca.crt`, `tls.crt` and `tls.key`, and for schedulers and clients `token`;
    `cluster_uid` names the cluster, `role` says what this process does there.
    """

    def __init__(self, folder: str, cluster_uid: str, role: str) -> None:
        """Know where the credentials are."""
        self._folder = folder
        self._cluster = f"{PREFIX}cluster/{cluster_uid}/"
        self._contexts: dict[bool, tuple[object, ssl.SSLContext]] = {}
        self.role = role

    def context(self, *, is_server: bool) -> ssl.SSLContext:
        """Read the credentials as they are now.

        Raises:
            OSError: they cannot be read, and never could.

        """
        paths = [os.path.join(self._folder, name) for name in ("ca.crt", "tls.crt", "tls.key")]
        known = self._contexts.get(is_server)
        try:
            edition = [os.stat(path).st_mtime_ns for path in paths]
            if known is not None and known[0] == edition:
                return known[1]
            context = ssl.SSLContext(
                ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT
            )
            context.sslsocket_class = _Socket
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            # Who they are is in the certificate; where they are says nothing.
            context.check_hostname = False
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(paths[0])
            context.load_cert_chain(paths[1], paths[2])
        except OSError:
            # Between two files of which one is new already.
            if known is None:
                raise
            return known[1]
        self._contexts[is_server] = (edition, context)
        return context

    def token(self) -> str:
        """Read the token that clients present now.

        Raises:
            OSError: there is none here.

        """
        with open(os.path.join(self._folder, "token")) as file:
            return file.read().strip()

    def role_of(self, stream: IOStream) -> str | None:
        """Tell what the other end does in this cluster; nothing if it is not of it."""
        # One that closed has no certificate.
        certificate: dict[str, Any] = getattr(stream.socket, "getpeercert", dict)() or {}
        names = certificate.get("subjectAltName", ())
        uris = (name for kind, name in names if kind == "URI")
        ours = (uri for uri in uris if uri.startswith(self._cluster))
        return next((uri.removeprefix(self._cluster) for uri in ours), None)


@functools.cache
def _way_of_this_process() -> Way:
    """Find what the program was told that started this one: a plain `Client()` connects by it.

    Raises:
        OSError: it was told nothing.

    """
    try:
        return Way(os.environ["EBBTIDE_CREDENTIALS"], os.environ["EBBTIDE_CLUSTER_UID"], "client")
    except KeyError as error:
        raise OSError(
            f"{error.args[0]} is not set: run the program by `ebbtide run` or `ebbtide up --run`, "
            "or open the cluster by `ebbtide.Cluster(name).dask_client()`"
        ) from None


class _Socket(ssl.SSLSocket):
    """A socket of this machine has no settings of TCP."""

    def setsockopt(self, level: int, *args: Any) -> None:
        """Set what can be set."""
        if self.family != socket.AF_UNIX or level == socket.SOL_SOCKET:
            super().setsockopt(level, *args)


class Credentials(Security):
    """What Dask's processes and clients are given as their `security`."""

    __slots__ = ("way",)

    def __init__(self, way: Way) -> None:
        """Prove who this is by `way`, whatever Dask's configuration says."""
        super().__init__(require_encryption=True)
        self.way = way

    def get_connection_args(self, role: str) -> dict[str, Any]:
        """Dial by this way."""
        return {"way": self.way, "require_encryption": True}

    def get_listen_args(self, role: str) -> dict[str, Any]:
        """Listen by this way."""
        return {"way": self.way, "require_encryption": True}


class Connector(tcp.TLSConnector):
    """Dials members of the cluster."""

    prefix = PREFIX

    async def connect(
        self, address: str, deserialize: bool = True, *, way: Way | None = None, **_: object
    ) -> tcp.TLS:
        """Connect, and see that a member of the cluster answers that does what is expected."""
        way = way or _way_of_this_process()
        context = way.context(is_server=False)
        token = way.token().encode() if way.role == "client" else None
        try:
            stream = await _dial(address)
            stream = await stream.start_tls(False, context)
            role = way.role_of(stream)
            if token is not None and role in DIALS[way.role]:
                await stream.write(len(token).to_bytes(2, "big") + token)
        except (StreamClosedError, ssl.SSLError) as error:
            # Another try has newer credentials, perhaps.
            why = getattr(error, "real_error", None) or error
            raise CommClosedError(f"no connection to {address}: {why}") from error
        if stream.closed():
            raise CommClosedError(f"{address} closed the connection")
        if role not in DIALS[way.role]:
            stream.close()
            raise FatalCommClosedError(f"{address} is not of this cluster")
        here = "/here" if address.startswith("/") else tcp.get_stream_address(stream)
        return tcp.TLS(stream, PREFIX + here, PREFIX + address, deserialize)


async def _dial(address: str) -> IOStream:
    if not address.startswith("/"):
        host, port = parse_host_port(address)
        return await tcp.TLSConnector.client.connect(host, port, max_buffer_size=BUFFER_BYTES_MAX)
    stream = IOStream(socket.socket(socket.AF_UNIX), max_buffer_size=BUFFER_BYTES_MAX)
    return await stream.connect(address)


class Listener(tcp.TLSListener):
    """Lets members of the cluster in."""

    prefix = PREFIX

    def _get_server_args(self, **connection_args: Any) -> dict[str, Any]:
        self._way: Way = connection_args["way"]
        return {"ssl_options": self._way.context(is_server=True)}

    async def start(self) -> None:
        """Listen, with the credentials as they are from time to time."""
        await super().start()
        self._renewal = PeriodicCallback(self._renew, RENEW_MILLISECONDS)
        self._renewal.start()

    def stop(self) -> None:
        """Listen no more."""
        self._renewal.stop()
        super().stop()

    def _renew(self) -> None:
        if self.tcp_server is not None:
            self.tcp_server.ssl_options = self._way.context(is_server=True)

    async def _prepare_stream(self, stream: IOStream, address: str) -> IOStream | None:
        try:
            await asyncio.wait_for(self._see(stream, address), HANDSHAKE_SECONDS)
        except Exception as error:
            log.warning("%s does not come in: %s", address, error or "it says nothing")
            stream.close()
            return None
        return stream

    async def _see(self, stream: IOStream, address: str) -> None:
        """See who comes, before anything that they say means something.

        Raises:
            PermissionError: they may not come in.
            OSError: they cannot be heard.

        """
        if await super()._prepare_stream(stream, address) is None:
            raise PermissionError("its handshake failed")
        role = self._way.role_of(stream)
        if role not in LETS_IN[self._way.role]:
            raise PermissionError("its certificate is not of this cluster")
        if role == "client":
            length = int.from_bytes(await stream.read_bytes(2), "big")
            token = await stream.read_bytes(min(length, TOKEN_BYTES_MAX))
            if not hmac.compare_digest(token, self._way.token().encode()):
                raise PermissionError("its token is not this cluster's")


class Backend(tcp.TLSBackend):
    """What Dask looks up for `ebbtide://`."""

    _connector_class = Connector
    _listener_class = Listener

    def get_address_host(self, loc: str) -> str:
        """Tell the host of an address. What is behind a socket of this machine is elsewhere."""
        return loc if loc.startswith("/") else super().get_address_host(loc)

    def get_address_host_port(self, loc: str) -> tuple[str, int]:
        """Tell host and port of an address."""
        return ("localhost", 0) if loc.startswith("/") else super().get_address_host_port(loc)

    def resolve_address(self, loc: str) -> str:
        """Tell the address with a host that is a number."""
        return loc if loc.startswith("/") else super().resolve_address(loc)

    def get_local_address_for(self, loc: str) -> str:
        """Tell where somebody at this address would reach this machine."""
        return loc if loc.startswith("/") else super().get_local_address_for(loc)


backends[SCHEME] = Backend()
