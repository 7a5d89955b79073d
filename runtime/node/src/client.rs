//! A client of a cluster: sends graphs, receives chunks. Blocking on the outside, so that any
//! program can use it from any thread; many jobs may be on their way at once.

mod connection;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ebbtide_array::{Array, ArrayError};
use ebbtide_contract::tls::CredentialsError;
use ebbtide_core::message::Failure;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64;

use crate::client::connection::{Connection, Order, Shared, Way};
use crate::frame::FrameError;
use crate::in_process::Watch;
use crate::result::TooLarge;
use crate::wire::{Purpose, WorkerInfo};

/// How often a waiting thread asks whether its job is still wanted.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(50);

/// How long a question may go without an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How to reach a cluster's scheduler, and where what proves that one may lies.
#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Name of the cluster, for messages.
    pub name: String,
    /// `metadata.uid` of the cluster.
    pub cluster_uid: String,
    /// Which engine it runs. This client is `ebbtide`'s. Without: that.
    #[serde(default)]
    pub engine: String,
    /// Where it listens.
    pub address: Address,
    /// Folder of a client's credentials and the token. It is read for each connection anew.
    pub credentials: PathBuf,
}

/// Where a scheduler listens.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Address {
    /// `host:port`.
    Tcp(String),
    /// A socket on this machine that leads there.
    Unix(PathBuf),
}

/// Why a cluster did not compute.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The credentials cannot be used.
    #[error("the credentials of cluster {0} cannot be used: {1}")]
    Credentials(String, Arc<CredentialsError>),
    /// The scheduler cannot be reached or understood.
    #[error("cluster {0} cannot be reached: {1}")]
    Connection(String, Arc<FrameError>),
    /// The scheduler refuses this client.
    #[error("cluster {0} refuses this client: {1}")]
    Refused(String, String),
    /// The client was closed, for this reason.
    #[error("{0}")]
    Closed(String),
    /// The result is too large for this machine.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// An expression that cannot be computed here.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// A task failed, or the expression means nothing.
    #[error("{}", .0.error)]
    Failed(Failure),
    /// The caller no longer wants it.
    #[error("the computation was interrupted")]
    Interrupted,
    /// This process cannot run a connection.
    #[error("cannot start a connection: {0}")]
    Runtime(Arc<std::io::Error>),
}

/// An open connection to a scheduler. When it breaks, a new one is opened and what was not computed
/// is asked for again: expressions are small, and give the same result every time.
pub struct Client {
    name: String,
    /// Tells what its jobs keep from what those of others keep.
    session: u64,
    shared: Arc<Shared>,
    orders: mpsc::UnboundedSender<Order>,
    // Last, so that it outlives the rest.
    _runtime: Runtime,
}

/// A number that no other client or engine has: time, process and a count.
pub(crate) fn session() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let parts = [
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        u64::from(std::process::id()),
        COUNT.fetch_add(1, Ordering::Relaxed),
    ];
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_le_bytes()).collect();
    xxh3_64(&bytes)
}

impl Drop for Client {
    /// Its jobs may outlive it, and nobody carries them any more.
    fn drop(&mut self) {
        self.close(&format!("the connection to cluster {} was closed by this program", self.name));
    }
}

/// A job on its way. Dropping it cancels the job.
pub struct Job {
    number: u64,
    shared: Arc<Shared>,
    orders: mpsc::UnboundedSender<Order>,
}

impl Client {
    /// Connects, proving both sides.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, ClientError> {
        let built = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = built.map_err(|error| ClientError::Runtime(Arc::new(error)))?;
        let way = Way::new(endpoint)?;
        let opened = runtime.block_on(way.open())?;
        let shared = Arc::new(Shared::default());
        let (orders, ordered) = mpsc::unbounded_channel();
        let connection = Connection::new(way, Arc::clone(&shared), ordered);
        runtime.spawn(connection.keep(opened));
        Ok(Self {
            name: endpoint.name.clone(),
            session: session(),
            shared,
            orders,
            _runtime: runtime,
        })
    }

    /// Asks for arrays, and does not wait for them.
    pub fn submit(&self, targets: &[Array]) -> Result<Job, ClientError> {
        self.enter(targets, Purpose::Future)
    }

    /// Asks for arrays whose chunks stay with the workers as long as the returned ones live. Does
    /// not wait.
    pub fn persist(&self, targets: &[Array]) -> Result<(Arc<Job>, Vec<Array>), ClientError> {
        let job = Arc::new(self.enter(targets, Purpose::Keep)?);
        let held = targets.iter().zip(0..).map(|(array, target)| {
            Array::held(array, (self.session, job.number, target), Arc::<Job>::clone(&job))
        });
        let held = held.collect();
        Ok((job, held))
    }

    fn enter(&self, targets: &[Array], purpose: Purpose) -> Result<Job, ClientError> {
        let number = self.shared.enter(self.session, targets, purpose)?;
        // The connection lives as long as the runtime, and fails what it cannot carry.
        let _: Result<(), _> = self.orders.send(Order::Submit(number));
        Ok(Job { number, shared: Arc::clone(&self.shared), orders: self.orders.clone() })
    }

    /// Ends everything that is on its way, and whatever is asked for from now on, for this reason.
    pub fn close(&self, reason: &str) {
        self.shared.close(reason);
    }

    /// The registered workers.
    pub fn workers(&self, watch: &mut dyn Watch) -> Result<Vec<WorkerInfo>, ClientError> {
        let question = self.shared.ask();
        let _: Result<(), _> = self.orders.send(Order::AskWorkers(question));
        let start = Instant::now();
        loop {
            if let Some(workers) = self.shared.answer(question, INTERRUPT_INTERVAL) {
                return Ok(workers);
            }
            if watch.is_interrupted() {
                return Err(ClientError::Interrupted);
            }
            if let Some(reason) = self.shared.closed() {
                return Err(ClientError::Closed(reason));
            }
            if start.elapsed() > ANSWER_MAX {
                let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                return Err(ClientError::Connection(self.name.clone(), Arc::new(late.into())));
            }
        }
    }

    /// Computes arrays. Their bytes come in the same order.
    pub fn compute(
        &self,
        targets: &[Array],
        watch: &mut dyn Watch,
    ) -> Result<Vec<Vec<u8>>, ClientError> {
        self.enter(targets, Purpose::Compute)?.wait(watch)
    }
}

impl Job {
    /// Whether it has ended, well or not.
    pub fn is_done(&self) -> bool {
        self.shared.is_done(self.number)
    }

    /// No longer wants it, if it has not ended. Whoever waits for it is interrupted.
    pub fn cancel(&self) {
        if self.shared.leave(self.number) {
            // The connection lives as long as the runtime.
            let _: Result<(), _> = self.orders.send(Order::Cancel(self.number));
        }
    }

    /// Waits for the arrays' bytes, and gives those that are there however short the wait. An interrupted one leaves
    /// the job as it is.
    ///
    /// The bytes are handed over once; what is kept has none.
    pub fn wait(&self, watch: &mut dyn Watch) -> Result<Vec<Vec<u8>>, ClientError> {
        let mut patience = Duration::ZERO;
        loop {
            let (ended, progress) = self.shared.wait(self.number, patience);
            if let Some(progress) = progress {
                watch.progress(progress);
            }
            if let Some(ended) = ended {
                return ended;
            }
            if watch.is_interrupted() {
                return Err(ClientError::Interrupted);
            }
            patience = INTERRUPT_INTERVAL;
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.cancel();
    }
}
