//! From a package list to a lock. Nothing of a package runs for it: what has no wheel is refused.

use std::ffi::OsStr;

use ebbtide_environment::Request;
use ebbtide_environment::lock::{Lock, LockError};
use ebbtide_environment::tags::{Library, Target};

use crate::uv::{self, UvError};

/// Why a package list has no lock.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There are no such versions, or nobody could be asked for them.
    #[error(transparent)]
    Uv(#[from] UvError),
    /// What was found cannot be installed.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// The lock of everything that a request has installed on a target, as it is today.
///
/// # Errors
///
/// There is none, or `uv` cannot tell: it says why.
pub async fn lock(request: &Request, target: &Target) -> Result<String, ResolveError> {
    let platform = platform(target);
    let arguments = [
        "pip",
        "compile",
        "--no-header",
        "--no-annotate",
        "--no-build",
        "--no-sources",
        "--no-python-downloads",
        "--format=pylock.toml",
        "--python-version",
        request.python(),
        "--python-platform",
        &platform,
        "-",
    ];
    let wanted: Vec<&str> = request.installed().collect();
    let text = uv::run(arguments.map(OsStr::new), &wanted.join("\n")).await?;
    Lock::read(&text)?.wheels(target)?;
    Ok(text)
}

/// A target as `uv` calls it, but for its Python.
fn platform(target: &Target) -> String {
    let processor = target.processor.as_str();
    match target.library {
        Library::Glibc(minor) => format!("{processor}-manylinux_2_{minor}"),
        Library::Musl(_) => format!("{processor}-unknown-linux-musl"),
    }
}
