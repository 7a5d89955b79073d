//! A virtual environment for a package list, made once by `uv` under the list's key.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use ebbtide_environment::Request;
use ebbtide_packer::uv::{self, UvError};

use crate::state;

/// Why there is no environment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvironmentError {
    #[error("cannot write {path}")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Uv(UvError),
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
    step(request, venv).await?;
    let python = draft.join("bin/python");
    let install: [&OsStr; 4] =
        ["pip".as_ref(), "install".as_ref(), "--python".as_ref(), python.as_ref()];
    step(request, install.into_iter().chain(request.installed().map(OsStr::new))).await
}

async fn step<'a>(
    request: &Request,
    arguments: impl IntoIterator<Item = &'a OsStr>,
) -> Result<(), EnvironmentError> {
    let packages: Vec<&str> = request.packages().collect();
    match uv::run(arguments, "").await {
        Ok(_) => Ok(()),
        Err(UvError::Refused(words)) => Err(EnvironmentError::Refused {
            python: request.python().to_owned(),
            packages: match &packages[..] {
                [] => "no packages".to_owned(),
                some => some.join(", "),
            },
            words,
        }),
        Err(error @ (UvError::None(_) | UvError::Late)) => Err(EnvironmentError::Uv(error)),
    }
}
