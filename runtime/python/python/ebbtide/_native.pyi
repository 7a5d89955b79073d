from collections.abc import Callable, Sequence
from typing import final

__all__ = [
    "Client",
    "ConnectionLost",
    "EbbtideError",
    "Expression",
    "Job",
    "TaskFailed",
    "__version__",
    "compute",
]

__version__: str

class EbbtideError(Exception): ...
class ConnectionLost(EbbtideError): ...
class TaskFailed(EbbtideError): ...

@final
class Expression:
    @staticmethod
    def constant(name: str, shape: Sequence[int], bytes: bytes) -> Expression: ...
    @staticmethod
    def random(
        distribution: str,
        key: tuple[int, int],
        shape: Sequence[int],
        chunks: Sequence[int] | None = None,
        bounds: tuple[int, int] = ...,
    ) -> Expression: ...
    @staticmethod
    def call(
        title: tuple[str, int, tuple[int, int]],
        pickled: tuple[bytes, bytes],
        returns: tuple[str, Sequence[int]],
        limits: tuple[int, int],
        inputs: Sequence[Expression],
    ) -> Expression: ...
    def binary(self, op: str, other: Expression) -> Expression: ...
    def reduce(self, op: str, axes: Sequence[int] | None = None) -> Expression: ...
    def cast(self, to: str) -> Expression: ...
    @property
    def shape(self) -> list[int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def chunks(self) -> list[list[int]]: ...

def compute(
    expressions: Sequence[Expression], progress: Callable[[int, int], None] | None = None
) -> list[bytes]: ...

@final
class Client:
    @staticmethod
    def connect(endpoint: str) -> Client: ...
    def compute(
        self,
        expressions: Sequence[Expression],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[bytes]: ...
    def submit(self, expressions: Sequence[Expression]) -> Job: ...

@final
class Job:
    def is_done(self) -> bool: ...
    def cancel(self) -> None: ...
    def wait(self, seconds: float | None = None) -> list[bytes]: ...
