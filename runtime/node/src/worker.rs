//! The worker's process: registers with the scheduler, serves its peers and drives an engine.

mod peers;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ebbtide_buffer::{Buffer, Pool};
use ebbtide_contract::identity::{Identity, Role};
use ebbtide_contract::tls::Current;
use ebbtide_contract::{port, variable};
use ebbtide_core::message::{FromWorker, ToWorker};
use ebbtide_core::worker::Event;
use ebbtide_core::{TaskId, WorkerId};
use ebbtide_kernels::level::{Level, TooOld};
use prometheus_client::metrics::gauge::Gauge;
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::engine::{Engine, Outcome, Report};
use crate::frame::{self, FrameError};
use crate::http::{self, Metrics};
use crate::link::{self, Link, Outbox, Payload};
use crate::runner::Interpreter;
use crate::scheduler::{SchedulerError, listen};
use crate::settings::{self, Settings, SettingsError};
use crate::threads::Equipment;
use crate::usage;
use crate::wire::{Hello, Welcome, WorkerFrame};
use crate::worker::peers::{Peers, Serving};

/// How often a worker says that it lives: a fifth of the scheduler's patience.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);

/// How often a worker says how much memory it has had.
const MEASURE_INTERVAL: Duration = Duration::from_millis(500);

/// Wait between two tries to reach the scheduler.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How long a worker waits for a scheduler before it ends.
const ABANDONED_AFTER: Duration = Duration::from_mins(2);

/// Inputs that wait for the engine before those who send them have to.
const INPUTS_MAX: usize = 4096;

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Started with settings that cannot work.
    #[error("the worker cannot start")]
    Settings(#[from] SettingsError),
    /// On a processor that is too old.
    #[error(transparent)]
    Processor(#[from] TooOld),
    /// Without a port or threads.
    #[error(transparent)]
    Start(#[from] SchedulerError),
    /// Threads cannot be started.
    #[error("cannot start threads")]
    Threads(#[source] std::io::Error),
    /// No scheduler for too long.
    #[error("no scheduler at {address} for {ABANDONED_AFTER:?}: {last}")]
    Abandoned {
        /// Where it should be.
        address: String,
        /// What the last try said.
        last: FrameError,
    },
}

/// Something that peers have to say, and in which epoch they were asked.
enum Input {
    Fetched(u64, TaskId, Buffer),
    FetchFailed(u64, TaskId, WorkerId),
}

struct Node {
    engine: Engine,
    peers: Peers,
    inputs: mpsc::Receiver<Input>,
    reports: mpsc::UnboundedReceiver<Report>,
    pool: Pool,
    taken: Gauge,
    on_disk: Gauge,
}

/// Runs a worker of the cluster that the environment names, until `stop` is ready.
pub async fn run(settings: &Settings, stop: impl Future<Output = ()>) -> Result<(), WorkerError> {
    let level = Level::detect()?;
    let (cores, memory_bytes) = (settings::worker_cores()?, settings::worker_memory_bytes()?);
    let scheduler = settings::required(variable::SCHEDULER)?;
    let scheduler: Vec<String> = scheduler.split(',').map(str::to_owned).collect();
    let uid = &settings.cluster_uid;
    let [scheduler_identity, peer] =
        [Role::Scheduler, Role::Worker].map(|it| Identity::member(uid, it));
    let dial = settings.current(move |it| it.dial(scheduler_identity.clone()))?;
    let dial_peer = settings.current(move |it| it.dial(peer.clone()))?;
    let uid = uid.clone();
    let accept = settings.current(move |it| it.accept(&uid, &[Role::Worker]))?;

    let pool = Pool::new(settings::pool_bytes(memory_bytes));
    let epoch = Arc::new(AtomicU64::new(0));
    let listener = listen(settings.listen_ip(), port::WORKER).await?;
    let http = listen(settings.listen_ip(), port::HTTP).await?;
    let mut metrics = Metrics::new();
    let taken = metrics.bytes("worker_memory_taken", "Bytes of chunks and of running tasks");
    let on_disk = metrics.bytes("worker_disk_taken", "Bytes of chunks on disk");
    let (sender, reports) = mpsc::unbounded_channel();
    let report = move |it| {
        // The engine is gone only when the process ends.
        let _: Result<(), _> = sender.send(it);
    };
    let interpreter = Interpreter::default();
    let equipment = Equipment { level, pool: pool.clone(), interpreter };
    let engine =
        Engine::start(cores, memory_bytes, &equipment, report).map_err(WorkerError::Threads)?;
    let (fetched, inputs) = mpsc::channel(INPUTS_MAX);
    let peers = Peers::new(dial_peer, pool.clone(), fetched, Arc::clone(&epoch));
    let serving = Serving { config: accept, store: engine.store(), pool: pool.clone(), epoch };
    tokio::spawn(serving.open(listener));
    tokio::spawn(http::serve(http, metrics));

    let hello = Hello::Worker {
        name: settings.pod_name.clone(),
        address: format!("{}:{}", settings.pod_ip, port::WORKER),
        cores,
        memory_bytes,
        resources: settings::worker_resources()?,
        incarnation: incarnation(),
    };
    tracing::info!(simd = %level, cores, memory_bytes, "the worker is ready");
    let mut node = Node { engine, peers, inputs, reports, pool, taken, on_disk };
    let ended = tokio::select! {
        () = stop => Ok(()),
        ended = node.stay_registered(&scheduler, &dial, &hello) => ended,
    };
    usage::end_all();
    ended
}

/// Tells this life of the worker from earlier ones: the time at which it started.
fn incarnation() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Node {
    async fn stay_registered(
        &mut self,
        addresses: &[String],
        config: &Current<ClientConfig>,
        hello: &Hello,
    ) -> Result<(), WorkerError> {
        let mut lost_at = Instant::now();
        loop {
            let ended = match register(addresses, config, hello).await {
                Ok((stream, epoch)) => {
                    self.peers.enter(epoch);
                    let ended = self.session(stream).await;
                    lost_at = Instant::now();
                    ended
                }
                Err(error) => error,
            };
            if lost_at.elapsed() > ABANDONED_AFTER {
                return Err(WorkerError::Abandoned { address: addresses.join(", "), last: ended });
            }
            tracing::debug!(error = %ended, ?addresses, "no scheduler");
            sleep(RETRY_INTERVAL).await;
        }
    }

    /// Works for one life of the scheduler. Ends with why the connection did.
    async fn session<S: link::Stream + 'static>(&mut self, stream: S) -> FrameError {
        let (outbox, mut reader) = link::split_off(stream);
        let (orders, mut ordered) = mpsc::channel(INPUTS_MAX);
        let pool = self.pool.clone();
        let reading = tokio::spawn(async move {
            loop {
                let order = match frame::read::<ToWorker, _>(&mut reader, &pool, 0).await {
                    Ok((order, _)) => order,
                    Err(error) => return error,
                };
                if orders.send(order).await.is_err() {
                    return FrameError::Stream(std::io::ErrorKind::BrokenPipe.into());
                }
            }
        });
        let outcomes = self.engine.handle(Event::Reconnected);
        self.carry_out(outcomes, &outbox);
        let mut heartbeat = interval(HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut measure = interval(MEASURE_INTERVAL);
        measure.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let outcomes = tokio::select! {
                order = ordered.recv() => match order {
                    Some(order) => self.engine.handle(Event::Scheduler(order)),
                    None => {
                        return reading.await.unwrap_or_else(|error| {
                            FrameError::Stream(std::io::Error::other(error))
                        });
                    }
                },
                Some(report) = self.reports.recv() => self.engine.take(report),
                Some(input) = self.inputs.recv() => match input {
                    Input::Fetched(epoch, chunk, buffer) if epoch == self.peers.epoch() => {
                        self.engine.fetched(chunk, buffer)
                    }
                    Input::FetchFailed(epoch, chunk, holder) if epoch == self.peers.epoch() => {
                        self.engine.handle(Event::FetchFailed { chunk, holder })
                    }
                    // Ids of another life of the scheduler.
                    Input::Fetched(..) | Input::FetchFailed(..) => Vec::new(),
                },
                _ = measure.tick() => {
                    outbox.send(&WorkerFrame::Peak(usage::peak_bytes()));
                    Vec::new()
                }
                _ = heartbeat.tick() => {
                    outbox.send(&WorkerFrame::Message(FromWorker::Heartbeat));
                    Vec::new()
                }
            };
            self.carry_out(outcomes, &outbox);
            self.taken.set(i64::try_from(self.engine.taken_bytes()).unwrap_or(i64::MAX));
            self.on_disk.set(i64::try_from(self.engine.disk_bytes()).unwrap_or(i64::MAX));
        }
    }

    fn carry_out(&mut self, outcomes: Vec<Outcome>, outbox: &Outbox) {
        for outcome in outcomes {
            match outcome {
                Outcome::Say(message) => {
                    let along = self.engine.along(&message);
                    let message = WorkerFrame::Message(message);
                    match along {
                        Some(chunk) => outbox.send_with(&message, Payload::Chunk(chunk)),
                        None => outbox.send(&message),
                    }
                }
                Outcome::Introduce(peer, address) => self.peers.introduce(peer, address),
                Outcome::Fetch { chunk, holder } => self.peers.fetch(chunk, holder),
                Outcome::Deliver(chunk, buffer) => {
                    outbox.send_with(&WorkerFrame::Chunk(chunk), Payload::Chunk(buffer));
                }
            }
        }
    }
}

async fn register(
    addresses: &[String],
    config: &Current<ClientConfig>,
    hello: &Hello,
) -> Result<(impl link::Stream + use<>, u64), FrameError> {
    let stream = link::dial(addresses).await?;
    let address = stream.peer_addr()?;
    let Link { mut stream, .. } = link::connect(stream, config.get()).await?;
    link::write_first(&mut stream, hello).await?;
    match link::read_first(&mut stream).await? {
        Welcome::Worker { id, epoch } => {
            tracing::info!(id = id.0, epoch, %address, "registered");
            Ok((stream, epoch))
        }
        Welcome::Refused(reason) => Err(FrameError::Stream(std::io::Error::other(reason))),
        Welcome::Yes => Err(FrameError::Stranger),
    }
}
