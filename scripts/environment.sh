# Where things are. Sourced by the other scripts; every value can be set from outside.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# What is dear and can be made again: programs, target folders, wheels. Empty is right, only slow.
: "${EBBTIDE_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/ebbtide}"
export EBBTIDE_CACHE
toolchain=$({ rustc --version; cat "$ROOT/Cargo.lock"; } | sha256sum | cut -c1-12)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$EBBTIDE_CACHE/target-$toolchain}
TOOLS=$ROOT/.tools
# Pinned tools from PyPI, and the project's own virtual environment.
export PATH=$TOOLS/venv/bin:$PATH
export UV_CACHE_DIR=${UV_CACHE_DIR:-$EBBTIDE_CACHE/uv}
export UV_PYTHON_DOWNLOADS=never
