//! A client of a cluster: sends graphs, receives chunks. Blocking on the outside, so that any
//! program can use it from any thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebbtide_array::Array;
use ebbtide_array::graph::Graph;
use ebbtide_buffer::{Buffer, Pool};
use ebbtide_contract::identity::{Identity, Role};
use ebbtide_contract::tls::{Credentials, CredentialsError};
use serde::{Deserialize, Serialize};
use tokio::io::ReadHalf;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::frame::{self, FrameError};
use crate::in_process::Watch;
use crate::link::{self, Link, Outbox, Payload, Stream};
use crate::result::Whole;
use crate::wire::{ClientFrame, ClientReply, Hello, Welcome};

/// How often a computation asks whether it is still wanted.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(50);

/// How long a client tries to reach a scheduler again before it gives up.
const RECONNECT_MAX: Duration = Duration::from_mins(1);

/// Wait between two tries.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(200);

/// Replies that wait for the program.
const REPLIES_MAX: usize = 16;

/// Largest chunk that is taken.
const CHUNK_BYTES_MAX: u64 = 4 << 30;

/// How to reach a cluster's scheduler and how to prove that one may. Holds secrets.
#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Name of the cluster, for messages.
    pub name: String,
    /// `metadata.uid` of the cluster.
    pub cluster_uid: String,
    /// Where it listens.
    pub address: Address,
    /// PEM certificate of the authority.
    pub authority: String,
    /// PEM certificate of the client.
    pub certificate: String,
    /// PEM key of the client.
    pub key: String,
    /// The cluster's token.
    pub token: String,
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
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The credentials cannot be used.
    #[error("the credentials of cluster {0} cannot be used")]
    Credentials(String, #[source] CredentialsError),
    /// The scheduler cannot be reached or understood.
    #[error("cluster {0} cannot be reached: {1}")]
    Connection(String, FrameError),
    /// The scheduler refuses this client.
    #[error("cluster {0} refuses this client: {1}")]
    Refused(String, String),
    /// A task failed, or the expression means nothing.
    #[error("{0}")]
    Failed(String),
    /// The caller no longer wants it.
    #[error("the computation was interrupted")]
    Interrupted,
    /// This process cannot run a connection.
    #[error("cannot start a connection")]
    Runtime(#[from] std::io::Error),
}

type Reply = Result<(ClientReply, Option<Buffer>), FrameError>;

/// An open connection to a scheduler. When it breaks, a new one is opened and what was not computed
/// is asked for again: expressions are small, and give the same result every time.
pub struct Client {
    endpoint: Endpoint,
    outbox: Outbox,
    replies: mpsc::Receiver<Reply>,
    next_job: u64,
    // Last, so that it outlives the rest.
    runtime: Runtime,
}

impl Client {
    /// Connects, proving both sides.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, ClientError> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (outbox, replies) = runtime.block_on(open(endpoint))?;
        Ok(Self { endpoint: endpoint.clone(), outbox, replies, next_job: 0, runtime })
    }

    /// Computes arrays. Their bytes come in the same order.
    pub fn compute(
        &mut self,
        targets: &[Array],
        watch: &mut dyn Watch,
    ) -> Result<Vec<Vec<u8>>, ClientError> {
        let mut broken_at: Option<Instant> = None;
        loop {
            match self.try_compute(targets, watch) {
                Err(ClientError::Connection(name, error)) => {
                    let since = *broken_at.get_or_insert_with(Instant::now);
                    if since.elapsed() > RECONNECT_MAX {
                        return Err(ClientError::Connection(name, error));
                    }
                    self.reconnect(since, watch)?;
                }
                ended => return ended,
            }
        }
    }

    fn reconnect(&mut self, since: Instant, watch: &mut dyn Watch) -> Result<(), ClientError> {
        loop {
            match self.runtime.block_on(open(&self.endpoint)) {
                Ok((outbox, replies)) => {
                    (self.outbox, self.replies) = (outbox, replies);
                    return Ok(());
                }
                Err(ClientError::Connection(..)) if since.elapsed() < RECONNECT_MAX => {}
                Err(error) => return Err(error),
            }
            if watch.is_interrupted() {
                return Err(ClientError::Interrupted);
            }
            // A timer needs the runtime from the moment it is made.
            self.runtime.block_on(async { sleep(RECONNECT_INTERVAL).await });
        }
    }

    fn try_compute(
        &mut self,
        targets: &[Array],
        watch: &mut dyn Watch,
    ) -> Result<Vec<Vec<u8>>, ClientError> {
        let graph = Graph::of(targets);
        let job = self.next_job;
        self.next_job += 1;
        let submit = ClientFrame::Submit { job };
        self.outbox.send_with(&submit, Payload::Bytes(graph.encode()));
        let mut wholes: Vec<Whole> = targets.iter().map(Whole::new).collect();
        loop {
            if watch.is_interrupted() {
                self.outbox.send(&ClientFrame::Cancel { job });
                return Err(ClientError::Interrupted);
            }
            let Some((reply, chunk)) = self.next_reply()? else { continue };
            match reply {
                ClientReply::Progress { job: of, done, tasks, .. } if of == job => {
                    watch.progress(done, tasks);
                }
                ClientReply::Chunk { job: of, target, index } if of == job => {
                    let bytes = chunk.as_deref().unwrap_or_default();
                    // The scheduler sends a chunk once, for the first of several equal targets.
                    let made_by = graph.targets().get(target as usize);
                    let equal = graph.targets().iter().map(|it| Some(it) == made_by);
                    for (whole, _) in wholes.iter_mut().zip(equal).filter(|(_, equal)| *equal) {
                        whole.put(index, bytes);
                    }
                }
                ClientReply::Done { job: of } if of == job => {
                    return Ok(wholes.into_iter().map(Whole::into_bytes).collect());
                }
                ClientReply::Failed { job: of, error } if of == job => {
                    return Err(ClientError::Failed(error));
                }
                // What is left of a job that was interrupted.
                ClientReply::Progress { .. }
                | ClientReply::Chunk { .. }
                | ClientReply::Done { .. }
                | ClientReply::Failed { .. } => {}
            }
        }
    }

    fn next_reply(&mut self) -> Result<Option<(ClientReply, Option<Buffer>)>, ClientError> {
        let replies = &mut self.replies;
        let next =
            self.runtime.block_on(async { timeout(INTERRUPT_INTERVAL, replies.recv()).await });
        let broken = |error| ClientError::Connection(self.endpoint.name.clone(), error);
        match next {
            Err(_) => Ok(None),
            Ok(Some(reply)) => reply.map(Some).map_err(broken),
            Ok(None) => {
                Err(broken(FrameError::Stream(std::io::ErrorKind::ConnectionAborted.into())))
            }
        }
    }
}

async fn open(endpoint: &Endpoint) -> Result<(Outbox, mpsc::Receiver<Reply>), ClientError> {
    match &endpoint.address {
        Address::Tcp(address) => {
            let stream = link::dial(address).await;
            let lost = |error| ClientError::Connection(endpoint.name.clone(), error);
            greet(endpoint, stream.map_err(lost)?).await
        }
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(FrameError::from);
            let lost = |error| ClientError::Connection(endpoint.name.clone(), error);
            greet(endpoint, stream.map_err(lost)?).await
        }
    }
}

async fn greet<S: Stream + 'static>(
    endpoint: &Endpoint,
    stream: S,
) -> Result<(Outbox, mpsc::Receiver<Reply>), ClientError> {
    let name = || endpoint.name.clone();
    let lost = |error| ClientError::Connection(name(), error);
    let Endpoint { authority, certificate, key, .. } = endpoint;
    let scheduler = Identity::member(&endpoint.cluster_uid, Role::Scheduler);
    let config =
        Credentials::from_pem(authority.as_bytes(), certificate.as_bytes(), key.as_bytes())
            .and_then(|credentials| credentials.dial(scheduler))
            .map_err(|error| ClientError::Credentials(name(), error))?;
    let Link { mut stream, .. } = link::connect(stream, Arc::new(config)).await.map_err(lost)?;
    let hello = Hello::Client { token: endpoint.token.clone() };
    link::write_first(&mut stream, &hello).await.map_err(lost)?;
    match link::read_first(&mut stream).await.map_err(lost)? {
        Welcome::Yes => {}
        Welcome::Refused(reason) => return Err(ClientError::Refused(name(), reason)),
        Welcome::Worker { .. } => return Err(lost(FrameError::Stranger)),
    }
    let (outbox, reader) = link::split_off(stream);
    let (replies, received) = mpsc::channel(REPLIES_MAX);
    tokio::spawn(read_all(reader, replies));
    Ok((outbox, received))
}

async fn read_all<S: Stream>(mut reader: ReadHalf<S>, replies: mpsc::Sender<Reply>) {
    let pool = Pool::new(0);
    loop {
        let reply = frame::read::<ClientReply, _>(&mut reader, &pool, CHUNK_BYTES_MAX).await;
        let is_over = reply.is_err();
        if replies.send(reply).await.is_err() || is_over {
            return;
        }
    }
}
