"""Makes modules of the first two arguments, which the program in the third one imports.

The fifth one says what is wrong where that cannot be, and the sixth one where to leave these words.
"""

import sys

# Nothing is imported from where this happens to be started.
sys.path[:] = [path for path in sys.path if path]

import contextlib  # noqa: E402
import types  # noqa: E402

try:
    for name, text in zip(("ebbtide_dask", "ebbtide_dask_health"), sys.argv[1:3], strict=True):
        module = types.ModuleType(name)
        exec(compile(text, f"{name}.py", "exec"), module.__dict__)
        sys.modules[name] = module
except ModuleNotFoundError as error:
    print(f"the environment has no package {error.name!r}", sys.argv[5], sep="\n", file=sys.stderr)
    # Where there is no such file there is nobody to read it.
    with contextlib.suppress(OSError), open(sys.argv[6], "r+") as last_words:
        last_words.write(sys.argv[5])
    # Started with what cannot work.
    raise SystemExit(64) from None
exec(compile(sys.argv[3], "ebbtide_dask_process.py", "exec"))
