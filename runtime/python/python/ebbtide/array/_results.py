"""How expressions become NumPy arrays, and the bar that shows how far they are."""

from __future__ import annotations

import builtins
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ebbtide import _cluster, _native

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Result = NDArray[Any] | np.generic


def results(
    expressions: Sequence[_native.Expression], *, progress: builtins.bool
) -> tuple[Result, ...]:
    """Compute on the innermost open cluster, else in this process."""
    import numpy as np

    if not expressions:
        return ()
    if progress:
        with _Bar() as bar:
            made = _cluster.run(expressions, bar)
    else:
        made = _cluster.run(expressions, None)
    return tuple(
        np.frombuffer(bytes, dtype=expression.dtype).reshape(expression.shape)[()]
        for expression, bytes in zip(expressions, made, strict=True)
    )


class _Bar:
    """A progress bar over tasks, drawn as soon as anything is known of them."""

    def __enter__(self) -> Callable[[int, int, int], None]:
        """Choose the bar of a terminal or of a notebook."""
        self._bar: Any = None
        with warnings.catch_warnings():
            # In a notebook without ipywidgets it is the terminal's, which needs no excuse.
            warnings.filterwarnings("ignore", message="IProgress not found")
            try:
                from tqdm.auto import tqdm
            except ImportError:
                # The environment of a job has what its package list says.
                return lambda done, tasks, workers: None

        self._make, self._began = tqdm, time.time()
        return self._tell

    def _tell(self, done: int, tasks: int, workers: int) -> None:
        if self._bar is None:
            # The notebook's cannot learn its total later.
            self._bar = self._make(total=tasks, unit="task", unit_scale=True)
            self._bar.start_t = self._began
        self._bar.set_postfix_str(f"{workers} worker{'s' * (workers != 1)}", refresh=False)
        self._bar.n = done
        self._bar.refresh()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the bar complete, or where it was when the computation failed."""
        if self._bar is None:
            return
        if kind is None:
            self._bar.n = self._bar.total
            self._bar.refresh()
        self._bar.close()
