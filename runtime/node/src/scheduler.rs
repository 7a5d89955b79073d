//! The scheduler's process: accepts workers and clients and drives the core.

mod accept;
mod hall;

use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Duration;

use ebbtide_buffer::Pool;
use ebbtide_contract::identity::Role;
use ebbtide_contract::port;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::http::{self, Metrics};
use crate::operator::{Facts, Operator};
use crate::scheduler::accept::Door;
use crate::scheduler::hall::Hall;
use crate::settings::{Settings, SettingsError};

/// Inputs that wait for the core before those who send them have to.
const INPUTS_MAX: usize = 4096;

/// How often clients are told of progress and the operator of demand.
const NEWS_INTERVAL: Duration = Duration::from_millis(100);

/// Idle buffers that the scheduler keeps: chunks only pass through it.
const POOL_BYTES: usize = 64 << 20;

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// Started with settings that cannot work.
    #[error("the scheduler cannot start")]
    Settings(#[from] SettingsError),
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// An address that somebody else listens on.
    #[error(
        "cannot listen on {address}: whoever listens on that port, at all addresses perhaps, has it; end that first"
    )]
    Taken {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Runs the scheduler of the cluster that the environment names, until `stop` is ready.
pub async fn run(
    settings: &Settings,
    stop: impl Future<Output = ()>,
) -> Result<(), SchedulerError> {
    let uid = settings.cluster_uid.clone();
    let accept = settings.current(move |it| it.accept(&uid, &[Role::Worker, Role::Client]))?;
    // It changes with the rest; that there is none is told now.
    settings.token()?;
    let operator = Operator::of(settings)?;
    let epoch = operator.epoch;
    let listener = listen(settings.listen_ip(), port::SCHEDULER).await?;
    let http = listen(settings.listen_ip(), port::HTTP).await?;

    let (inputs, mut received) = mpsc::channel(INPUTS_MAX);
    let (facts, facts_seen) = watch::channel(Facts::new());
    let (answers, answers_seen) = mpsc::unbounded_channel();
    let (orders, mut ordered) = mpsc::channel(INPUTS_MAX);
    let door = Door {
        config: accept,
        settings: settings.clone(),
        epoch,
        pool: Pool::new(POOL_BYTES),
        inputs: inputs.clone(),
    };
    let mut metrics = Metrics::new();
    let mut hall = Hall::new(inputs, answers, facts, &mut metrics);
    tokio::spawn(operator.inform(facts_seen, answers_seen, orders));
    tokio::spawn(door.open(listener));
    tokio::spawn(http::serve(http, metrics));
    tracing::info!(epoch, "the scheduler is ready");

    let mut news = interval(NEWS_INTERVAL);
    news.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(stop);
    loop {
        let due = hall.due().unwrap_or_else(|| Instant::now() + Duration::from_hours(1));
        tokio::select! {
            () = &mut stop => return Ok(()),
            Some(input) = received.recv() => {
                hall.take(input);
                while let Ok(input) = received.try_recv() {
                    hall.take(input);
                }
            }
            Some(order) = ordered.recv() => hall.obey(order),
            () = sleep_until(due) => hall.tick(),
            _ = news.tick() => hall.tell_news(),
        }
    }
}

pub(crate) async fn listen(ip: IpAddr, port: u16) -> Result<TcpListener, SchedulerError> {
    let address = format!("{ip}:{port}");
    TcpListener::bind((ip, port)).await.map_err(|source| {
        if source.kind() == ErrorKind::AddrInUse {
            SchedulerError::Taken { address, source }
        } else {
            SchedulerError::Listen { address, source }
        }
    })
}
