# Where things are. Sourced by the other scripts; EBBTIDE_CACHE and CARGO_TARGET_DIR can be set from outside.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# What is dear and can be made again: programs, target folders, wheels. Empty is right, only slow.
: "${EBBTIDE_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/ebbtide}"
export EBBTIDE_CACHE
# By the toolchain and what the lock file takes from elsewhere. Our own crates are kept by checkout.
built=$({ rustc --version; grep '^checksum' "$ROOT/Cargo.lock"; } | sha256sum | cut -c1-12)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$EBBTIDE_CACHE/target-$built}
export RUSTC_WORKSPACE_WRAPPER=$ROOT/scripts/compiler
TOOLS=$ROOT/.tools
# Pinned tools from PyPI, and the project's own virtual environment.
export PATH=$TOOLS/venv/bin:$PATH
export UV_CACHE_DIR=${UV_CACHE_DIR:-$EBBTIDE_CACHE/uv}
export UV_PYTHON_DOWNLOADS=never
# What other programs keep, ours among them: environments and the like beside the rest of the cache,
# clusters of this machine in the checkout that made them.
export XDG_CACHE_HOME=$EBBTIDE_CACHE
export XDG_STATE_HOME=$TOOLS/state
