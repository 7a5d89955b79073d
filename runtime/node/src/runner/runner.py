"""Runs Python functions for a worker, in a process of their own.

Started by the worker with the number of a socket as its argument; ends when that closes. Each
message begins with eight bytes, the length of its header as a little-endian number, which carry
its descriptors; then come the header, as JSON, and what the header announces.

A request announces a pickled function, its pickled arguments and arrays, each a descriptor of
sealed memory. The answer announces an array's bytes, a pickled value, or an error.
"""

import sys

# Nothing is imported from where this happens to be started.
sys.path[:] = [path for path in sys.path if path]

import io  # noqa: E402
import json  # noqa: E402
import mmap  # noqa: E402
import os  # noqa: E402
import pickle  # noqa: E402
import socket  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

if TYPE_CHECKING:
    import numpy

# What is longer travels in shared memory.
INLINE_BYTES_MAX = 65_536
# The longest text and the longest pickled exception that are sent.
ERROR_CHARACTERS_MAX = 32_768
EXCEPTION_BYTES_MAX = 65_536
# A request that is not longer is read at once: the next one comes after its answer.
AHEAD_BYTES = 1 << 16
# Arrays that come with one request: CALL_INPUTS_MAX of the worker.
ARRAYS_MAX = 64
# Functions that are kept unpickled.
FUNCTIONS_MAX = 64
# What every pickle carries alike.
PLAIN = frozenset((type(None), bool, int, float, str, bytes))


class Refused(Exception):
    """What a function returned is not what was promised."""


def receive(connection: socket.socket, ahead: bytes, length: int) -> tuple[bytes, bytes]:
    """Read exactly so many bytes, at first from what came ahead; and what is left of that."""
    parts, left = [ahead[:length]], ahead[length:]
    length -= len(parts[0])
    while length:
        part = connection.recv(min(length, 1 << 20))
        if not part:
            raise SystemExit(0)
        parts.append(part)
        length -= len(part)
    return b"".join(parts), left


def send(
    connection: socket.socket,
    header: dict,
    payload: bytes = b"",
    descriptors: tuple[int, ...] = (),
) -> None:
    """Send one message."""
    encoded = json.dumps(header).encode()
    prefix = len(encoded).to_bytes(8, "little")
    if descriptors:
        socket.send_fds(connection, [prefix], descriptors)
        connection.sendall(encoded + payload)
    else:
        connection.sendall(prefix + encoded + payload)


def view(descriptor: int, dtype: str, shape: list[int]) -> "numpy.ndarray":
    """Lay a read-only array over shared memory, which is not copied."""
    import numpy

    dtype = numpy.dtype(dtype)
    length = dtype.itemsize
    for extent in shape:
        length *= extent
    if length == 0:
        array = numpy.empty(shape, dtype)
        array.flags.writeable = False
        return array
    memory = mmap.mmap(descriptor, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    return numpy.frombuffer(memory, dtype).reshape(shape)


def returned_array(value: object, dtype: str, shape: list[int], name: str) -> memoryview:
    """Check that a value is the array that was promised, and lay it out row by row."""
    import numpy

    array = numpy.asarray(value)
    if array.dtype != numpy.dtype(dtype) or array.shape != tuple(shape):
        raise Refused(
            f"{name} returned {array.dtype} of shape {array.shape} where {dtype} of shape "
            f"{tuple(shape)} was promised; change the function, or what from_delayed is told"
        )
    return memoryview(numpy.ascontiguousarray(array).reshape(-1)).cast("B")


def reply(connection: socket.socket, payload: memoryview) -> None:
    """Send what a function made."""
    length = len(payload)
    if length <= INLINE_BYTES_MAX:
        send(connection, {"bytes": length}, bytes(payload))
        return
    descriptor = os.memfd_create("ebbtide-result", os.MFD_CLOEXEC)
    try:
        done = 0
        while done < length:
            done += os.pwrite(descriptor, payload[done : done + (1 << 30)], done)
        send(connection, {"bytes": length, "shared": True}, descriptors=(descriptor,))
    finally:
        os.close(descriptor)


def reply_error(
    connection: socket.socket, name: str, error: BaseException, memory_bytes: int
) -> None:
    """Send what a function raised, with the traceback from the function on."""
    import traceback

    import cloudpickle

    frames = error.__traceback__
    ours = [serve.__code__, run.__code__, returned_array.__code__]
    while frames is not None and frames.tb_frame.f_code in ours:
        frames = frames.tb_next
    if isinstance(error, Refused):
        text = str(error)[:ERROR_CHARACTERS_MAX]
    else:
        lines = traceback.format_exception(type(error), error, frames)
        text = "".join(lines)[-ERROR_CHARACTERS_MAX:].rstrip()
    if isinstance(error, MemoryError):
        text += (
            f"\n{name} may take {memory_bytes / 2**20:.0f} MiB of memory with its process; "
            "say memory= to give it more"
        )
    # A file's name may have what no text takes.
    text = text.encode("utf-8", "backslashreplace").decode()
    exception = b""
    if not isinstance(error, Refused):
        try:
            exception = cloudpickle.dumps(error.with_traceback(None))
        except Exception:
            exception = b""
    if len(exception) > EXCEPTION_BYTES_MAX:
        exception = b""
    send(connection, {"error": text, "exception": len(exception)}, exception)


def run(
    header: dict,
    function_bytes: bytes,
    argument_bytes: bytes,
    descriptors: list[int],
    functions: dict,
) -> memoryview:
    """Call the function that a request names and return what goes back, as bytes."""
    function = functions.get(function_bytes)
    if function is None:
        function = pickle.loads(function_bytes)
        while len(functions) >= FUNCTIONS_MAX:
            del functions[next(iter(functions))]
        functions[function_bytes] = function

    arguments, keywords = load(argument_bytes, header["inputs"], descriptors)
    value = function(*arguments, **keywords)
    promised = header["returns"]
    if promised is not None:
        return returned_array(value, promised["dtype"], promised["shape"], header["name"])
    if type(value) in PLAIN:
        return memoryview(pickle.dumps(value))
    import cloudpickle

    try:
        return memoryview(cloudpickle.dumps(value))
    except MemoryError:
        raise
    except Exception as error:
        kind = type(value).__name__
        raise Refused(
            f"{header['name']} returned {kind}, which cannot be sent back: {error}; return plain "
            "data or NumPy arrays"
        ) from error


def load(argument_bytes: bytes, inputs: list[dict], descriptors: list[int]) -> tuple:
    """Unpickle arguments, with views of shared memory for arrays."""
    if not inputs:
        return pickle.loads(argument_bytes)
    views = [
        view(descriptor, given["dtype"], given["shape"])
        for descriptor, given in zip(descriptors, inputs, strict=True)
    ]

    class Arguments(pickle.Unpickler):
        def persistent_load(self, number: int) -> "numpy.ndarray":
            return views[number]

    return Arguments(io.BytesIO(argument_bytes)).load()


def serve(connection: socket.socket) -> None:
    """Answer requests until the worker closes the connection."""
    functions = {}
    # What a function starts or forks must not keep the worker waiting after this process ended.
    connection.set_inheritable(False)
    os.register_at_fork(after_in_child=connection.close)
    send(connection, {"python": list(sys.version_info[:2])})
    while True:
        flags = socket.MSG_CMSG_CLOEXEC
        ahead, descriptors, _, _ = socket.recv_fds(connection, AHEAD_BYTES, ARRAYS_MAX, flags)
        if not ahead:
            return
        prefix, ahead = receive(connection, ahead, 8)
        encoded, ahead = receive(connection, ahead, int.from_bytes(prefix, "little"))
        header = json.loads(encoded)
        function_bytes, ahead = receive(connection, ahead, header["function"])
        argument_bytes, _ = receive(connection, ahead, header["arguments"])
        try:
            made = run(header, function_bytes, argument_bytes, descriptors, functions)
        except BaseException as error:
            reply_error(connection, header["name"], error, header["memory"])
        else:
            reply(connection, made)
            del made
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


try:
    serve(socket.socket(fileno=int(sys.argv[1])))
except ConnectionError:
    # Nobody wants the answer any more.
    sys.exit(0)
