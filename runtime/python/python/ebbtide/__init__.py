"""Ephemeral compute clusters and chunked arrays.

>>> import ebbtide.array as xp
>>> float(xp.asarray([1, 2, 3]).sum().compute())
6.0
"""

from ebbtide._cluster import Cluster, Worker
from ebbtide._function import Delayed, Future, delayed
from ebbtide._native import ConnectionLost, EbbtideError, TaskFailed, __version__

__all__ = [
    "Cluster",
    "ConnectionLost",
    "Delayed",
    "EbbtideError",
    "Future",
    "TaskFailed",
    "Worker",
    "__version__",
    "delayed",
]
