//! The lines between a scheduler and the operator: JSON, one message a line.
//!
//! A scheduler says [`Up::Hello`], then a snapshot (`Begin`, facts, `End`), then numbered facts as
//! they change. A gap in the numbers makes the operator answer [`Down::Resend`]. Silence says
//! nothing: neither that the cluster is idle nor that its scheduler is dead.
//!
//! The operator is often of another release than the images of the clusters: either side passes over
//! fields, facts and messages that it does not know. So what is added later has a default where it is
//! missing, and a message that is added has no number. What cannot be added so is another [`PROTOCOL`]:
//! an old message with another meaning, another [`Outcome`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of this protocol.
pub const PROTOCOL: u32 = 4;

/// Longest line, in bytes, that either side accepts.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// Longest time between two lines of a connected scheduler, in seconds.
pub const INTERVAL_SECONDS_MAX: u64 = 5;

/// Without a line for so long, what was said is not known to be so any more, in seconds.
pub const SILENT_SECONDS: u64 = 2 * INTERVAL_SECONDS_MAX;

/// From the scheduler to the operator.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Up {
    /// The first line.
    Hello {
        /// [`PROTOCOL`] of the scheduler.
        protocol: u32,
        /// Which life of the scheduler this is: larger after every restart.
        epoch: u64,
    },
    /// A snapshot starts: everything said before is void.
    Begin {
        /// Number of this line; the next fact after `End` has the next one.
        sequence: u64,
    },
    /// One fact, inside a snapshot or after it.
    Fact {
        /// Number of this line.
        sequence: u64,
        /// What is now so.
        fact: Fact,
    },
    /// The snapshot is complete.
    End {
        /// Number of this line.
        sequence: u64,
    },
    /// The answer to [`Down::Retire`] for one worker.
    Retired {
        /// The worker's name.
        worker: String,
        /// What became of it.
        outcome: Outcome,
    },
    /// What a later release says beside.
    #[serde(other)]
    Later,
}

/// Something that is so until said otherwise.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "fact", rename_all = "camelCase")]
pub enum Fact {
    /// What waits and runs of one resource class: tasks that the same worker groups can take.
    #[serde(rename_all = "camelCase")]
    Queue {
        /// Names of the groups, of those that the operator told of. Without any, no worker that may
        /// come can take the tasks.
        fits: Vec<String>,
        /// Tasks that wait.
        tasks: u64,
        /// Core-seconds that they and those that run are expected to need.
        core_seconds: f64,
        /// Tasks that run.
        running: u64,
    },
    /// How many jobs ever came: tells of work that came and went between two lines.
    Jobs {
        /// Jobs.
        ever: u64,
    },
    /// A worker is registered.
    #[serde(rename_all = "camelCase")]
    Worker {
        /// Its name: the pod's.
        name: String,
        /// Bytes of chunks that it holds.
        held_bytes: u64,
        /// Tasks that it was given.
        assigned: u64,
    },
    /// A worker is no longer registered.
    WorkerGone {
        /// Its name.
        name: String,
    },
    /// Who is connected.
    Clients {
        /// Open connections of clients.
        connected: u64,
    },
    /// What a later release tells beside.
    #[serde(other)]
    Later,
}

/// A worker group, as an engine must know it to tell which tasks its workers can take.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Memory limit of a worker, in bytes.
    pub memory_bytes: u64,
    /// What a worker has beside cores and memory, by kind, like `nvidia.com/gpu`.
    pub resources: BTreeMap<String, u64>,
    /// In how many seconds the queue is to be finished. A task counts for no more in what is told of
    /// the queue: it takes one core, however long.
    pub target_seconds: u32,
}

/// What became of a worker that was to be retired.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It holds nothing that is needed and gets no more work: it may be deleted.
    Released,
    /// It is needed after all, or its data could not be moved in time: it works on.
    Kept,
    /// Nobody of this name is registered.
    Unknown,
}

/// From the operator to the scheduler.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Down {
    /// Send a new snapshot.
    Resend,
    /// Which worker groups the cluster has. Everything that was said of them before is void.
    Groups {
        /// In the order of the manifest.
        groups: Vec<Group>,
    },
    /// Give these workers no more work and move what they alone hold.
    #[serde(rename_all = "camelCase")]
    Retire {
        /// Names of workers.
        workers: Vec<String>,
        /// How long moving may take, in seconds.
        deadline_seconds: u64,
    },
    /// What a later release asks for beside.
    #[serde(other)]
    Later,
}
