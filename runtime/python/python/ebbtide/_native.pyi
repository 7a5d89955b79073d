from collections.abc import Callable, Sequence
from typing import final

__all__ = [
    "Client",
    "ConnectionLost",
    "EbbtideError",
    "Expression",
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
