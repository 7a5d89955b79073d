//! What goes into the scheduler and what comes out of it.

use std::time::Duration;

use crate::message::{Failure, FromWorker, ToWorker};
use crate::{Group, GroupId, JobId, Resources, TaskId, Time, WorkerId};

/// Something that happened outside.
#[derive(Clone, Debug)]
pub enum Event {
    /// A worker finished its handshake.
    WorkerJoined(WorkerId, Joining),
    /// A worker's connection ended.
    WorkerLost(WorkerId),
    /// A worker says something. Peers lie and messages arrive late: it is checked.
    Worker(WorkerId, FromWorker),
    /// A worker's chunk has been handed to the client that wanted it.
    Collected(TaskId),
    /// A client wants every chunk of `targets`.
    Submitted {
        /// The job's name.
        job: JobId,
        /// Its groups, each after its inputs.
        groups: Vec<Group>,
        /// The groups that the client wants.
        targets: Vec<GroupId>,
        /// Whether their chunks are to stay with the workers until the job is cancelled, as inputs
        /// of other jobs, and not to go to the client.
        is_kept: bool,
    },
    /// A client no longer wants a job.
    Cancelled(JobId),
    /// The operator wants to do without this worker.
    Retire(WorkerId, Time),
    /// These kinds of workers may come, and no others.
    Offered(Vec<Offer>),
}

/// A kind of worker that may come when there is work for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Offer {
    /// The worker group's name.
    pub name: String,
    /// Bytes that a worker's chunks and running tasks may take.
    pub memory_bytes: u64,
    /// What it has beside cores and memory.
    pub resources: Resources,
    /// In which time the queue is to be finished: a task counts for no more, however long it takes.
    pub target: Duration,
}

/// What a worker says of itself when it joins.
#[derive(Clone, Debug)]
pub struct Joining {
    /// The pod's name.
    pub name: String,
    /// Where its peers reach it: `host:port`.
    pub address: String,
    /// Tasks that it runs at once.
    pub cores: u32,
    /// Bytes that its chunks and running tasks may take.
    pub memory_bytes: u64,
    /// What it has beside cores and memory.
    pub resources: Resources,
    /// Which life of the worker this is: larger after every restart.
    pub incarnation: u64,
}

/// Something that the shell must now do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send this to a worker.
    Send(WorkerId, ToWorker),
    /// Close a worker's connection.
    Disconnect(WorkerId, &'static str),
    /// The client has everything it asked for, or everything that is to be kept was made.
    JobDone(JobId),
    /// The job ended without its result.
    JobFailed(JobId, Failure),
    /// A worker holds nothing that is needed and will get no more work.
    Released(WorkerId),
    /// A worker could not be emptied in time and works on.
    Kept(WorkerId),
}

/// What waits and runs of one resource class: tasks that the same kinds of workers can take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Which of the kinds of workers that may come can take them, in the order of the offers.
    pub fits: Vec<String>,
    /// Tasks that wait.
    pub tasks: u64,
    /// Nanoseconds on one core that they and those that run are expected to need, each no more than the
    /// target of the first kind of workers that can take it.
    pub nanoseconds: u64,
    /// Tasks that were given to workers.
    pub assigned: u64,
}

/// A worker as others may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerView<'a> {
    /// The pod's name.
    pub name: &'a str,
    /// Tasks that it runs at once.
    pub cores: u32,
    /// Bytes that its chunks and running tasks may take.
    pub memory_bytes: u64,
    /// Bytes of chunks that it holds.
    pub held_bytes: u64,
    /// Tasks that it was given.
    pub assigned: u64,
}
