//! The scheduler and worker programs: settings in, exit code out.

use std::env;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::anyhow;
use ebbtide_api::Engine;
use ebbtide_contract::{exit, variable};
use ebbtide_node::dask::DaskError;
use ebbtide_node::settings::{Settings, SettingsError};
use ebbtide_node::worker::WorkerError;
use ebbtide_node::{dask, scheduler, worker};
use rustix::process::Signal;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) fn scheduler() -> ExitCode {
    run(async |settings| match engine()? {
        Engine::Ebbtide => scheduler::run(settings, ended()).await.map_err(Into::into),
        Engine::Dask => dask::scheduler(settings, ended()).await.map_err(|error| match error {
            DaskError::Ended(_) => Ended { code: 1, error: error.into() },
            DaskError::Settings(_)
            | DaskError::NoDask
            | DaskError::Pipe(_)
            | DaskError::Start(_) => error.into(),
        }),
    })
}

pub(crate) fn worker() -> ExitCode {
    run(async |settings| match engine()? {
        Engine::Ebbtide => worker::run(settings, ended()).await.map_err(|error| match error {
            WorkerError::Abandoned { .. } => Ended { code: exit::ABANDONED, error: error.into() },
            WorkerError::Settings(_)
            | WorkerError::Processor(_)
            | WorkerError::Start(_)
            | WorkerError::Threads(_) => error.into(),
        }),
        Engine::Dask => Err(dask::worker(settings).into()),
    })
}

/// The engine that the operator asks for. One that this program does not know is for a newer one.
fn engine() -> Result<Engine, Ended> {
    let asked = env::var(variable::ENGINE).unwrap_or_default();
    let known = [Engine::Ebbtide, Engine::Dask].into_iter();
    let found = known.clone().find(|it| it.as_str() == asked);
    found.or_else(|| asked.is_empty().then(Engine::default)).ok_or_else(|| Ended {
        code: exit::MISCONFIGURED,
        error: anyhow!(
            "{} is {asked:?}; this version of ebbtide has {}: take an image with a newer one",
            variable::ENGINE,
            known.map(Engine::as_str).collect::<Vec<_>>().join(" and ")
        ),
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
            tell_kubelet(&format!("{error:#}"));
            ExitCode::from(code)
        }
    }
}

/// Leaves the reason where a pod's status takes it from.
fn tell_kubelet(reason: &str) {
    let file = OpenOptions::new().write(true).open(exit::WORDS);
    if let Err(error) = file.and_then(|mut file| file.write_all(reason.as_bytes())) {
        tracing::debug!(%error, "nobody else is told");
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
