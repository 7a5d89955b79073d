"""The progress bar, in a terminal of its own and where a notebook would be."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

COMPUTATION = """
import sys
import ebbtide as eb, ebbtide.array as xp

def wait(total):
    with open(GATE, "rb") as gate:
        gate.read(1)
    return total

GATE = sys.argv[1]
x = xp.random.default_rng(1).random(1000, chunks=100)
made = xp.from_delayed(eb.delayed(wait)(x.sum()), (), xp.float64)
print("made", made.compute(progress=True))
"""

#: What tells a program that it runs in a notebook's kernel, and nothing more of one.
KERNEL = """
import sys
from types import ModuleType, SimpleNamespace

class ZMQInteractiveShell:
    config = {"IPKernelApp": {}}

def display(widget):
    print("displayed", type(widget).__mro__[1].__name__)

ipython, module = ModuleType("IPython"), ModuleType("IPython.display")
ipython.get_ipython, module.display = ZMQInteractiveShell, display
sys.modules |= {"IPython": ipython, "IPython.display": module}
sys.modules["ipykernel.zmqshell"] = ModuleType("ipykernel.zmqshell")
"""

#: The three widgets of which the notebook's bar is made.
WIDGETS = """
class Widget:
    def __init__(self, children=(), **options):
        self.children, self.layout, self.style = children, SimpleNamespace(), SimpleNamespace()
        self.value, self.bar_style = None, ""
        self.__dict__ |= options
        widgets.append(self)

class HBox(Widget): pass
class HTML(Widget): pass
class FloatProgress(Widget): pass

widgets = []
sys.modules["ipywidgets"] = ModuleType("ipywidgets")
vars(sys.modules["ipywidgets"]).update(HBox=HBox, HTML=HTML, FloatProgress=FloatProgress)
"""

NO_WIDGETS = """
sys.modules["ipywidgets"] = None
"""

SHOW = """
left, bar, right = next(it for it in widgets if isinstance(it, HBox)).children
print("bar", bar.value, bar.max, bar.bar_style, left.value, right.value)
"""


def in_terminal(program: str, gate: Path, begun: str) -> str:
    """Run a program until its end and return what it shows; open its gate when it shows `begun`."""
    os.mkfifo(gate)
    opener = os.open(gate, os.O_RDWR)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-c", program, str(gate)]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown, until = b"", time.monotonic() + 60
    try:
        while part := read(ours, until):
            shown += part
            if begun and re.search(begun, shown.decode(errors="replace")):
                os.write(opener, b"x")
                begun = ""
        assert process.wait(timeout=10) == 0, shown
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(opener)
    return shown.decode()


def read(terminal: int, until: float) -> bytes:
    """Wait for what a terminal shows next; nothing when nobody is there any more."""
    ready, _, _ = select.select([terminal], [], [], max(0, until - time.monotonic()))
    assert ready, "the program takes too long"
    try:
        return os.read(terminal, 1 << 16)
    except OSError as error:
        if error.errno == errno.EIO:
            return b""
        raise


BAR = r"(\d+)%\|[^|]*\| ([\d.]+)/([\d.]+) \[[^\]]*task/s, 1 worker\]"


def test_a_terminal_shows_a_bar_with_tasks_and_workers_that_ends_complete(tmp_path: Path) -> None:
    shown = in_terminal(COMPUTATION, tmp_path / "gate", BAR)
    bars = [
        (int(percent), float(done), float(all)) for percent, done, all in re.findall(BAR, shown)
    ]
    assert bars[0][0] < 100 and bars[0][1] < bars[0][2]
    assert bars[-1] == (100, bars[0][2], bars[0][2])
    before, after = shown.split("made ")
    assert before.endswith("1 worker]\r\n") and float(after) > 0


def test_a_computation_that_nobody_could_watch_leaves_no_bar(tmp_path: Path) -> None:
    program = "import ebbtide.array as xp; print(xp.asarray([1, 2]).sum().compute(progress=True))"
    assert in_terminal(program, tmp_path / "gate", "") == "3\r\n"


def test_a_notebook_shows_its_own_bar_that_ends_complete(tmp_path: Path) -> None:
    program = KERNEL + WIDGETS + COMPUTATION + SHOW
    shown = in_terminal(program, tmp_path / "gate", "displayed HBox")
    assert "task/s" not in shown.split("made ")[0]
    (bar,) = re.findall(r"bar ([\d.]+) ([\d.]+) success (\S+) .*1\u2007worker\]", shown)
    assert float(bar[0]) == float(bar[1]) > 1 and bar[2] == "100%"


def test_a_notebook_without_widgets_shows_the_bar_of_a_terminal_and_no_warning(
    tmp_path: Path,
) -> None:
    shown = in_terminal(KERNEL + NO_WIDGETS + COMPUTATION, tmp_path / "gate", BAR)
    assert re.findall(BAR, shown)[-1][0] == "100"
    assert "displayed" not in shown and "IProgress" not in shown and "Warning" not in shown
