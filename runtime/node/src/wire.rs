//! What travels in the headers of frames, beside the core's own messages.

use ebbtide_core::TaskId;
use ebbtide_core::WorkerId;
use ebbtide_core::message::{Failure, FromWorker, ToWorker};
use serde::{Deserialize, Serialize};

/// The first frame of whoever dials.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Hello {
    /// A worker registers with the scheduler.
    Worker {
        /// The pod's name.
        name: String,
        /// Where its peers reach it: `host:port`.
        address: String,
        /// Tasks that it runs at once.
        cores: u32,
        /// Bytes that its chunks and tasks may take.
        memory_bytes: u64,
        /// Tells this life of the worker from others of the same name.
        incarnation: u64,
    },
    /// A client.
    Client {
        /// The cluster's token.
        token: String,
    },
    /// A worker asks another for chunks.
    Peer {
        /// The scheduler's life in which both registered.
        epoch: u64,
    },
}

/// The answer to [`Hello`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Welcome {
    /// A worker is registered.
    Worker {
        /// Its name for the life of this connection.
        id: WorkerId,
        /// The scheduler's life.
        epoch: u64,
    },
    /// A client or peer may go on.
    Yes,
    /// Go away.
    Refused(String),
}

/// From a worker to the scheduler.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum WorkerFrame {
    /// A message of the core.
    Message(FromWorker),
    /// A chunk for a client, as the payload.
    Chunk(TaskId),
    /// The most memory that it and its processes have had, in bytes.
    Peak(u64),
}

/// A worker, for people.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WorkerInfo {
    /// Name of its pod.
    pub name: String,
    /// Tasks that it runs at once.
    pub cores: u32,
    /// Bytes that its chunks and running tasks may take.
    pub memory_bytes: u64,
    /// The most memory that it and its processes have had, in bytes.
    pub peak_bytes: u64,
}

/// From the scheduler to a worker.
pub type WorkerOrder = ToWorker;

/// What a job is computed for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Purpose {
    /// For its result, some time.
    Future,
    /// For its result, which somebody waits for and wants to see coming.
    Compute,
    /// For chunks that stay with the workers until the job is cancelled.
    Keep,
}

/// From a client to the scheduler. Jobs are numbered by the client.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub enum ClientFrame {
    /// Compute the graph in the payload.
    Submit {
        /// The job.
        job: u64,
        /// What it is computed for.
        purpose: Purpose,
    },
    /// Who are the workers?
    Workers {
        /// Comes back with the answer.
        question: u64,
    },
    /// The job is no longer wanted.
    Cancel {
        /// The job.
        job: u64,
    },
}

/// From the scheduler to a client.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum ClientReply {
    /// How far the job is.
    Progress {
        /// The job.
        job: u64,
        /// Tasks that are done.
        done: u64,
        /// All its tasks.
        tasks: u64,
        /// Workers that are registered.
        workers: u64,
    },
    /// A chunk of the result, as the payload. An empty chunk has none.
    Chunk {
        /// The job.
        job: u64,
        /// Which of the graph's targets.
        target: u32,
        /// Which of its chunks, in row-major order.
        index: u32,
    },
    /// The registered workers.
    Workers {
        /// The question's number.
        question: u64,
        /// One by one.
        workers: Vec<WorkerInfo>,
    },
    /// Every chunk was sent, or is kept.
    Done {
        /// The job.
        job: u64,
    },
    /// The job ended without its result.
    Failed {
        /// The job.
        job: u64,
        /// Why.
        failure: Failure,
    },
}

/// From a worker that dials another.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct PeerRequest {
    /// The chunk that is wanted.
    pub chunk: TaskId,
}

/// The answer to [`PeerRequest`].
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub enum PeerReply {
    /// The chunk, as the payload. An empty chunk has none.
    Chunk(TaskId),
    /// It is not here.
    NotHere(TaskId),
}
