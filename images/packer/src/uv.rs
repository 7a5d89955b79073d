//! `uv`, which finds and installs packages.

use std::env;
use std::ffi::OsStr;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

/// How long one step may take.
const STEP_MAX: Duration = Duration::from_mins(30);

/// Why `uv` did nothing.
#[derive(Debug, thiserror::Error)]
pub enum UvError {
    /// It is not there.
    #[error("uv cannot be started; install it (pip install uv) or put it on the PATH")]
    None(#[source] std::io::Error),
    /// It did not end.
    #[error("uv did not end within {STEP_MAX:?}")]
    Late,
    /// It says why.
    #[error("{0}")]
    Refused(String),
}

/// Runs `uv` with what it reads, and gives what it prints. It is the program that the variable `EBBTIDE_UV` names, or
/// the first of its name on the PATH, and ends when nobody waits for it any more.
pub async fn run<'a>(
    arguments: impl IntoIterator<Item = &'a OsStr>,
    input: &str,
) -> Result<String, UvError> {
    let program = env::var_os("EBBTIDE_UV").unwrap_or_else(|| "uv".into());
    let mut command = Command::new(program);
    command.arg("--quiet").args(arguments).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut uv = command.spawn().map_err(UvError::None)?;
    let output = async {
        if let Some(mut stdin) = uv.stdin.take() {
            // Who reads nothing has ended, and says why.
            let _: std::io::Result<()> = stdin.write_all(input.as_bytes()).await;
        }
        uv.wait_with_output().await
    };
    let output = timeout(STEP_MAX, output).await.map_err(|_| UvError::Late)?;
    let Output { status, stdout, stderr } = output.map_err(UvError::None)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if status.success() {
        return Ok(text(&stdout));
    }
    let words = text(&stderr);
    Err(UvError::Refused(words.strip_prefix("error: ").unwrap_or(&words).to_owned()))
}
