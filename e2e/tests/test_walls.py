"""Who may not come in: wrong credentials, foreign namespaces, and bytes that are no protocol."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ebbtide as eb
import pytest
from conftest import LISTED, abroad, alone, kubectl, mean, no_operator, pods, run, staying, up
from ebbtide import _native

# Longer than the scheduler waits for a handshake.
CLOSED_WITHIN = 25

# The header that announces a graph: job 0, for its result.
SUBMIT = bytes(3)

# Tells what becomes of a connection without a certificate.
KNOCK = """
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
try:
    port = int(sys.argv[2]) if sys.argv[2:] else 8786
    with socket.create_connection((sys.argv[1], port), timeout=3) as plain:
        print("connected")
        with context.wrap_socket(plain) as stream:
            print(stream.recv(8))
except OSError as error:
    print(error)
"""


#: What a client proves itself with, and the files in which it lies.
PARTS = {"authority": "ca.crt", "certificate": "tls.crt", "key": "tls.key", "token": "token"}


def connect(endpoint: dict, folder: Path) -> _native.Client:
    """Connect with the parts of this endpoint."""
    credentials = folder / uuid.uuid4().hex
    credentials.mkdir()
    for part, name in PARTS.items():
        (credentials / name).write_text(endpoint[part])
    return _native.Client.connect(json.dumps(endpoint | {"credentials": str(credentials)}))


@contextmanager
def way(namespace: str, name: str = "mean") -> Iterator[dict]:
    """Keep the way to a scheduler open meanwhile."""
    command = ["ebbtide", "endpoint", name, "-n", namespace]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        endpoint = json.loads(process.stdout.readline())
        folder = Path(endpoint.pop("credentials"))
        yield endpoint | {part: (folder / name).read_text() for part, name in PARTS.items()}
        process.stdin.close()


@pytest.fixture
def unrelated(tmp_path: Path) -> Callable[[str], dict]:
    """Mint, with an authority of nobody, a certificate that claims to be a cluster's client."""

    def mint(cluster_uid: str) -> dict:
        def made(name: str) -> str:
            return str(tmp_path / name)

        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        claims = [f"subjectAltName=URI:ebbtide://cluster/{cluster_uid}/client",
                  "extendedKeyUsage=clientAuth", "basicConstraints=critical,CA:FALSE"]  # fmt: skip
        (tmp_path / "claims").write_text("\n".join(claims))
        run("openssl", "req", "-x509", *key, "-keyout", made("ca.key"), "-out", made("ca.crt"),
            "-subj", "/CN=nobody", "-days", "2")  # fmt: skip
        run("openssl", "req", *key, "-keyout", made("tls.key"), "-out", made("tls.csr"),
            "-subj", "/CN=nobody")  # fmt: skip
        run("openssl", "x509", "-req", "-in", made("tls.csr"), "-CA", made("ca.crt"), "-CAkey",
            made("ca.key"), "-CAcreateserial", "-days", "2", "-extfile", made("claims"), "-out",
            made("tls.crt"))  # fmt: skip
        parts = ("certificate", "key", "authority")
        return {part: (tmp_path / PARTS[part]).read_text() for part in parts}

    return mint


def strangers(mine: dict, other: dict, unrelated: dict) -> dict[str, dict]:
    """List certificates that are not for this cluster's clients, by whose they are."""
    identity = ("certificate", "key")
    return {
        "of another cluster": mine | {part: other[part] for part in identity},
        "of an unrelated authority": mine | {part: unrelated[part] for part in identity},
        "of an authority that the client believes": mine | unrelated,
        "of another cluster's client that was led astray": other | {"address": mine["address"]},
    }


def alert(endpoint: dict, folder: Path) -> str:
    """Tell the words of TLS in which a scheduler ends the connection of this certificate."""
    with tls(endpoint, folder) as stream, pytest.raises(ssl.SSLError) as refused:
        while stream.recv(64):
            pass
    return str(refused.value)


def tls(endpoint: dict, folder: Path) -> ssl.SSLSocket:
    """Connect to a scheduler with a client's certificate, believing whatever answers."""
    both = folder / "both.pem"
    both.write_text(endpoint["certificate"] + endpoint["key"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(both)
    return context.wrap_socket(plain(endpoint))


def plain(endpoint: dict) -> socket.socket:
    """Connect to a scheduler's port."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(CLOSED_WITHIN)
    stream.connect(endpoint["address"]["unix"])
    return stream


def test_only_a_certificate_of_this_clusters_client_opens_the_door_and_others_are_told_why(
    namespace: str,
    manifest: Callable[..., Path],
    unrelated: Callable[[str], dict],
    tmp_path: Path,
) -> None:
    others = manifest(name="other")
    with up(manifest(), namespace), up(others, namespace, "other"), way(namespace) as mine:
        with way(namespace, "other") as other:
            wrong = strangers(mine, other, unrelated(mine["clusterUid"]))
        for whose, endpoint in wrong.items():
            with pytest.raises(eb.ConnectionLost, match=r"certificate|alert"):
                connect(endpoint, tmp_path)
            words = "bad certificate" if "cluster" in whose else "unknown ca"
            assert f"alert {words}" in alert(endpoint, tmp_path), whose
        assert len(connect(mine, tmp_path).workers()) == 1


def test_a_token_that_is_not_the_clusters_is_refused_in_words(
    namespace: str, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    others = manifest(name="other")
    with up(manifest(), namespace), up(others, namespace, "other"), way(namespace) as mine:
        with way(namespace, "other") as other:
            tokens = [other["token"], "", mine["token"][:-1], mine["token"] + "0"]
        for token in tokens:
            with pytest.raises(eb.ConnectionLost, match="the token is not this cluster's"):
                connect(mine | {"token": token}, tmp_path)


@contextmanager
def pod(namespace: str, image: str) -> Iterator[Callable[..., str]]:
    """Keep a pod with Python that Pod Security `restricted` admits, and run programs there."""
    container = {
        "name": "stranger",
        "image": image,
        "command": ["python3", "-c", "import signal; signal.pause()"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stranger"}}
    made["spec"] = {"containers": [container]}
    kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(made))
    try:
        ready = "--for=condition=Ready"
        kubectl("wait", "pod/stranger", "-n", namespace, ready, "--timeout=60s")

        def python(program: str, *arguments: str) -> str:
            command = ["python3", "-c", program, *arguments]
            return kubectl("exec", "stranger", "-n", namespace, "--", *command)

        yield python
    finally:
        gone = ["--grace-period=0", "--force"]
        kubectl("delete", "pod", "stranger", "-n", namespace, *gone)


def until(probe: Callable[[], str], words: str, seconds: float = 60) -> None:
    """Ask again until the answer has these words."""
    end = time.monotonic() + seconds
    while words not in (answer := probe()):
        assert time.monotonic() < end, f"not {words!r} within {seconds} s: {answer}"


def refused(knock: str) -> bool:
    """Tell whether the handshake ends there: without a certificate nothing is read or answered."""
    return "certificate required" in knock.lower().replace("_", " ")


def operator_ip() -> str:
    """Tell the address of the operator's pod."""
    (pod,) = staying("ebbtide", "-l", "app.kubernetes.io/name=ebbtide-operator")
    return pod["status"]["podIP"]


@alone
def test_a_foreign_namespace_meets_the_policy_and_without_it_tls_and_the_policy_comes_back(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def read(what: str, path: str) -> str:
        return kubectl("get", *what.split(), "-n", namespace, "-o", f"jsonpath={{{path}}}")

    with up(manifest(), namespace):
        ip = read("pod -l ebbtide.dev/role=scheduler", ".items[0].status.podIP")
        policies = read("networkpolicy", ".items[*].metadata.name")
        assert len(policies.split()) == 2
        image = read("ebb mean", ".status.image")
        # Who is in the namespace comes as far as TLS.
        with pod(namespace, image) as python:
            assert refused(python(KNOCK, ip))
        with abroad() as far, pod(far, image) as python:
            assert python(KNOCK, ip) == "timed out\n"
            # Nor does it come to the operator's figures, and as a scheduler it must prove itself:
            # where the operator works in some namespaces only, it must look like one, too.
            assert python(KNOCK, operator_ip(), "8080") == "timed out\n"
            knock = python(KNOCK, operator_ip(), "7443")
            assert refused(knock) if LISTED is None else knock == "timed out\n"
            with no_operator():
                kubectl("delete", "networkpolicy", *policies.split(), "-n", namespace)
                until(lambda: python(KNOCK, ip), "connected")
                assert refused(python(KNOCK, ip))
            until(lambda: read("networkpolicy", ".items[*].metadata.name"), policies)
            until(lambda: python(KNOCK, ip), "timed out")
        pods = read("pods", "..restartCount")
        assert set(pods.split()) == {"0"}


#: The namespace that the chart's `monitoring.namespaces` names in the dev cluster.
MONITORING = "ebbtide-monitoring"

#: Tells whether metrics can be read at an address.
LOOK = """
import sys, urllib.request
try:
    with urllib.request.urlopen(f"http://{sys.argv[1]}:8787/metrics", timeout=3) as answer:
        print([line for line in answer.read().decode().splitlines() if "ebbtide_workers " in line])
except OSError as error:
    print(error)
"""


def test_who_is_let_in_by_the_manifest_reaches_the_clients_port_and_no_other(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def read(what: str, path: str) -> str:
        return kubectl("get", *what.split(), "-n", namespace, "-o", f"jsonpath={{{path}}}")

    def let(team: str | None) -> None:
        access = {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": team}}}
        spec = {"spec": {"access": access if team else None}}
        kubectl("patch", "ebb", "mean", "-n", namespace, "--type=merge", "-p", json.dumps(spec))

    with up(manifest(), namespace), abroad() as far:
        ip = read("pod -l ebbtide.dev/role=scheduler", ".items[0].status.podIP")
        image = read("ebb mean", ".status.image")
        with pod(far, image) as python:
            assert python(KNOCK, ip) == "timed out\n"
            let(far)
            until(lambda: python(KNOCK, ip), "connected")
            # They need a certificate as everybody does, and see nothing else.
            assert refused(python(KNOCK, ip))
            assert "timed out" in python(LOOK, ip)
            let("nobody")
            until(lambda: python(KNOCK, ip), "timed out")
            assert len(read("networkpolicy", ".items[*].metadata.name").split()) == 2
            let(None)
            until(lambda: str("nobody" in read("networkpolicy", ".items[*].spec")), "False")
            assert python(KNOCK, ip) == "timed out\n"


def test_who_watches_over_everything_reads_figures_and_reaches_nothing_else(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    def ip(role: str) -> str:
        pods = ("pods", "-n", namespace, "-l", f"ebbtide.dev/role={role}")
        return kubectl("get", *pods, "-o", "jsonpath={.items[0].status.podIP}")

    with up(manifest(), namespace), abroad(name=MONITORING) as far:
        image = kubectl("get", "ebb/mean", "-n", namespace, "-o", "jsonpath={.status.image}")
        with pod(far, image) as python:
            assert "ebbtide_workers 1" in python(LOOK, ip("scheduler"))
            assert python(LOOK, ip("worker")) == "[]\n"
            assert python(KNOCK, operator_ip(), "8080").startswith("connected")
            assert python(KNOCK, ip("scheduler")) == "timed out\n"
            assert python(KNOCK, ip("worker"), "8788") == "timed out\n"


def test_what_somebody_opens_is_closed_again_and_told(
    namespace: str, manifest: Callable[..., Path]
) -> None:
    """Whoever may edit policies and Services may do so by mistake."""

    def specs() -> str:
        found = kubectl("get", "networkpolicies,services", "-n", namespace, "-o", "json")
        keep = ("ingress", "selector", "type", "podSelector")
        made = {
            it["metadata"]["name"]: {key: it["spec"].get(key) for key in keep}
            for it in json.loads(found)["items"]
        }
        return json.dumps(made, sort_keys=True)

    with up(manifest(), namespace):
        before = specs()
        for what, spec in [
            ("networkpolicies", {"ingress": [{}]}),
            ("services", {"selector": {"app": "another"}}),
        ]:
            for name in kubectl("get", what, "-n", namespace, "-o", "name").split():
                patch = ("--type=merge", "-p", json.dumps({"spec": spec}))
                kubectl("patch", name, "-n", namespace, *patch)
        until(specs, before)
        with eb.Cluster("mean", namespace=namespace):
            bits = mean().compute()
        assert bits == mean().compute()
        events = kubectl("events", "-n", namespace, "--for=cluster/mean")
        assert "Restoring" in events, events


def frame(header: bytes, header_bytes: int | None = None, payload_bytes: int = 0) -> bytes:
    """Make a frame whose lengths may be lies, without its payload."""
    length = len(header) if header_bytes is None else header_bytes
    return struct.pack("<IQQ", length, payload_bytes, 0) + header


def hello_of(endpoint: dict) -> bytes:
    """Make a client's first frame."""
    token = endpoint["token"].encode()
    return frame(b"\x01" + bytes([len(token)]) + token)


def said_until_closed(stream: socket.socket, words: bytes) -> bytes:
    """Send, and return everything that comes until the other side closes."""
    with stream:
        stream.sendall(words)
        said = b""
        try:
            while part := stream.recv(4096):
                said += part
        except (ConnectionError, ssl.SSLEOFError):
            pass
    return said


def test_bytes_that_are_no_protocol_close_their_connection_and_nothing_else(
    namespace: str, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    def single(spec: dict) -> None:
        spec["workers"][0].update(min=1, max=1)

    with up(manifest(single), namespace), way(namespace) as mine:
        hello = hello_of(mine)
        with tls(mine, tmp_path) as stream:
            greeting = stream.recv(8)
            stream.sendall(greeting + hello)
            welcome = greeting + stream.recv(64)
        assert greeting[:4] == b"EBBT" and len(greeting) == 8 < len(welcome)
        older = greeting[:4] + struct.pack("<I", struct.unpack("<I", greeting[4:])[0] - 1)
        # What is sent, and what is answered before the connection is closed.
        strange = {
            "garbage": (b"\xde\xad\xbe\xef" * 4096, greeting),
            "another protocol": (b"GET / HTTP/1.1\r\nHost: scheduler\r\n\r\n", greeting),
            "an older version": (older + hello, greeting),
            "a header that is too long": (greeting + frame(b"", 0xFFFF_FFFF), greeting),
            "a payload in a hello": (greeting + frame(b"\x01", None, 1 << 60), greeting),
            "a hello that is no message": (greeting + frame(b"\xff" * 30), greeting),
            "a hello that is cut off": (greeting + hello[:-5], greeting),
            "a greeting that is cut off": (greeting[:5], greeting),
            "a payload that is too long": (
                greeting + hello + frame(SUBMIT, None, 1 << 40),
                welcome,
            ),
            "a frame that is no message": (greeting + hello + frame(b"\x77" * 20), welcome),
            "a graph that is none": (
                greeting + hello + frame(SUBMIT, None, 9) + b"a graph??",
                welcome,
            ),
        }
        before, begun = pods(namespace), threading.Event()
        large, small = mean((20_000, 4000)), mean()
        expected = [x.compute() for x in (large, small)]
        with ThreadPoolExecutor() as threads, eb.Cluster("mean", namespace=namespace) as cluster:
            answers: dict[str, Future[bytes]] = {}

            def pester(done: int, tasks: int, workers: int) -> None:
                if done > 0 and not begun.is_set():
                    begun.set()
                    noise = b"\xde\xad\xbe\xef" * 4096
                    answers["no TLS"] = threads.submit(said_until_closed, plain(mine), noise)
                    for what, (words, _) in strange.items():
                        stream = tls(mine, tmp_path)
                        answers[what] = threads.submit(said_until_closed, stream, words)

            bits = cluster._compute([large._expression], pester)[0]
            assert bits == expected[0].tobytes()
            assert answers.pop("no TLS").result()[:1] in (b"\x15", b"")  # an alert, if anything
            said = {what: answer.result() for what, answer in answers.items()}
            assert said == {what: answer for what, (_, answer) in strange.items()}
            assert small.compute() == expected[1]
            assert len(cluster.workers()) == 1
        assert pods(namespace) == before


def test_payloads_that_are_announced_and_never_sent_take_no_memory(
    namespace: str, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    expected = mean().compute()
    with up(manifest(), namespace), way(namespace) as mine, ExitStack() as open_streams:
        before, hello = pods(namespace), hello_of(mine)
        # Four times what the scheduler's pod may have.
        for _ in range(4):
            stream = open_streams.enter_context(tls(mine, tmp_path))
            stream.sendall(stream.recv(8) + hello)
            stream.recv(64)
            stream.sendall(frame(SUBMIT, None, 256 << 20) + b"some")
        with eb.Cluster("mean", namespace=namespace):
            assert mean().compute() == expected
        assert pods(namespace) == before
