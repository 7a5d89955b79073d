//! A virtual environment for a package list, made once by `uv` under the list's key.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ebbtide_environment::Request;
use tokio::process::Command;
use tokio::time::timeout;

use crate::state;

/// How long one step of an environment may take.
const UV_MAX: Duration = Duration::from_mins(30);

/// Why there is no environment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvironmentError {
    #[error("cannot write {path}")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("uv cannot be started; install it (pip install uv) or put it on the PATH")]
    NoUv(#[source] std::io::Error),
    #[error("uv made no environment within {UV_MAX:?}")]
    Late,
    #[error("python {python} with {packages} cannot be had: {words}")]
    Refused { python: String, packages: String, words: String },
}

/// The folder of the environment for a request, whether it is there or not.
fn folder(request: &Request) -> PathBuf {
    let root = state::folder("XDG_CACHE_HOME", ".cache").join("ebbtide").join("environments");
    root.join(request.key().as_str())
}

/// Whether there is one already.
pub(crate) fn is_made(request: &Request) -> bool {
    folder(request).is_dir()
}

/// The folder of the environment for a request, made if there is none.
pub(crate) async fn make(request: &Request) -> Result<PathBuf, EnvironmentError> {
    let path = folder(request);
    if path.is_dir() {
        return Ok(path);
    }
    let name = format!("{}.{}", request.key().short(), std::process::id());
    let draft = Draft(path.with_file_name(name));
    build(request, &draft.0).await?;
    match fs::rename(&draft.0, &path) {
        // Another one was faster.
        Err(_) if path.is_dir() => Ok(path),
        Err(source) => Err(EnvironmentError::Folder { path, source }),
        Ok(()) => Ok(path),
    }
}

/// A folder that goes when it is let go, unless it was moved.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        if self.0.exists()
            && let Err(error) = fs::remove_dir_all(&self.0)
        {
            tracing::warn!(path = %self.0.display(), %error, "a folder is left");
        }
    }
}

async fn build(request: &Request, draft: &Path) -> Result<(), EnvironmentError> {
    if let Some(root) = draft.parent() {
        fs::create_dir_all(root)
            .map_err(|source| EnvironmentError::Folder { path: root.to_owned(), source })?;
    }
    // Relocatable: the folder is renamed once it is whole.
    let venv: [&OsStr; 7] = [
        "venv".as_ref(),
        "--relocatable".as_ref(),
        "--no-project".as_ref(),
        "--no-python-downloads".as_ref(),
        "--python".as_ref(),
        request.python().as_ref(),
        draft.as_ref(),
    ];
    uv(request, venv).await?;
    let python = draft.join("bin/python");
    let install: [&OsStr; 4] =
        ["pip".as_ref(), "install".as_ref(), "--python".as_ref(), python.as_ref()];
    uv(request, install.into_iter().chain(request.installed().map(OsStr::new))).await
}

async fn uv<'a>(
    request: &Request,
    arguments: impl IntoIterator<Item = &'a OsStr>,
) -> Result<(), EnvironmentError> {
    let program = env::var_os("EBBTIDE_UV").unwrap_or_else(|| "uv".into());
    // It ends when nobody waits for it any more.
    let output = Command::new(program).arg("--quiet").args(arguments).kill_on_drop(true).output();
    let output = timeout(UV_MAX, output).await.map_err(|_| EnvironmentError::Late)?;
    let output = output.map_err(EnvironmentError::NoUv)?;
    if output.status.success() {
        return Ok(());
    }
    let packages: Vec<&str> = request.packages().collect();
    Err(EnvironmentError::Refused {
        python: request.python().to_owned(),
        packages: match &packages[..] {
            [] => "no packages".to_owned(),
            some => some.join(", "),
        },
        words: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
