//! The scheduler and worker programs: settings in, exit code out.

use std::process::ExitCode;

use ebbtide_contract::exit;
use ebbtide_node::settings::{Settings, SettingsError};
use ebbtide_node::worker::WorkerError;
use ebbtide_node::{scheduler, worker};
use rustix::process::Signal;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) fn scheduler() -> ExitCode {
    run(async |settings| scheduler::run(settings, ended()).await.map_err(Into::into))
}

pub(crate) fn worker() -> ExitCode {
    run(async |settings| {
        worker::run(settings, ended()).await.map_err(|error| match error {
            WorkerError::Abandoned { .. } => Ended { code: exit::ABANDONED, error: error.into() },
            WorkerError::Settings(_)
            | WorkerError::Processor(_)
            | WorkerError::Start(_)
            | WorkerError::Threads(_) => error.into(),
        })
    })
}

/// Why a process ended other than by being asked to.
struct Ended {
    code: u8,
    error: anyhow::Error,
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Ended {
    fn from(error: E) -> Self {
        Self { code: exit::MISCONFIGURED, error: error.into() }
    }
}

fn run(work: impl AsyncFnOnce(&Settings) -> Result<(), Ended>) -> ExitCode {
    // One thread: the core is one state machine, and kernels have threads of their own.
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no event loop");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        let settings = Settings::from_env().map_err(|error: SettingsError| Ended::from(error))?;
        work(&settings).await
    });
    match ended {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(Ended { code, error }) => {
            tracing::error!("{error:#}");
            ExitCode::from(code)
        }
    }
}

async fn ended() {
    asked_to_end().await;
}

/// Ready when this process is asked to end, with the signal that asks.
pub(crate) async fn asked_to_end() -> Signal {
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let [Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => Signal::TERM,
        _ = interrupt.recv() => Signal::INT,
        _ = hangup.recv() => Signal::HUP,
    }
}
