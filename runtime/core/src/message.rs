//! What scheduler and workers say to each other. Each message is safe to deliver twice.
//!
//! A message belongs to one connection, which carries the scheduler's epoch and the worker's
//! incarnation; within it, a task's attempt tells an answer that counts from one that came late.

use serde::{Deserialize, Serialize};

use crate::{Group, GroupId, TaskId, WorkerId};

/// Tells one try at a task from another; larger for later tries.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Attempt(pub u32);

/// A task for a worker.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Assignment {
    /// The task.
    pub task: TaskId,
    /// Which try this is.
    pub attempt: Attempt,
    /// Its inputs in the order of its group's relations, each with a worker that holds it.
    pub inputs: Vec<(TaskId, WorkerId)>,
}

/// Why a task has no chunk.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Failure {
    /// What happened, for a person.
    pub error: String,
    /// What was raised, for whoever can read it: a pickled exception. May be empty.
    pub exception: Vec<u8>,
    /// Whether the process that ran it ended with it, which another try may not repeat.
    pub is_crash: bool,
}

impl Failure {
    /// A failure that is no crash and that only people read.
    pub fn new(error: impl Into<String>) -> Self {
        Self { error: error.into(), ..Self::default() }
    }
}

/// From the scheduler to a worker.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum ToWorker {
    /// Groups whose tasks may follow.
    Define(Vec<Group>),
    /// Run this task.
    Assign(Assignment),
    /// Nobody needs these chunks any more, as far as they come from these attempts or earlier ones.
    Free(Vec<(TaskId, Attempt)>),
    /// These groups are over: drop what is left of them, finished or not.
    Forget(Vec<GroupId>),
    /// Send this chunk to the scheduler, for a client.
    Collect(TaskId),
    /// Give this attempt at a task back, unless it has begun.
    Retract(TaskId, Attempt),
    /// Where a worker that is named in assignments can be reached.
    Peer {
        /// The worker.
        worker: WorkerId,
        /// `host:port`.
        address: String,
    },
}

/// From a worker to the scheduler.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum FromWorker {
    /// A task is done and its chunk is held here.
    Finished {
        /// The task.
        task: TaskId,
        /// The try that made it.
        attempt: Attempt,
        /// Size of the chunk.
        bytes: u64,
        /// Time on one core.
        nanoseconds: u64,
    },
    /// A task failed.
    Failed {
        /// The task.
        task: TaskId,
        /// The try.
        attempt: Attempt,
        /// Why.
        failure: Failure,
    },
    /// An input could not be had from the worker that should hold it.
    InputMissing {
        /// The task.
        task: TaskId,
        /// The try.
        attempt: Attempt,
        /// The input.
        input: TaskId,
        /// Who should have held it.
        holder: WorkerId,
    },
    /// The answer to `Retract` where the task had not begun: it never will here.
    Retracted {
        /// The task.
        task: TaskId,
        /// The try.
        attempt: Attempt,
    },
    /// The answer to `Retract` where the task runs.
    Begun {
        /// The task.
        task: TaskId,
        /// The try.
        attempt: Attempt,
    },
    /// The answer to `Collect` where the chunk is not here.
    NotHere(TaskId),
    /// How much of what is held here is on disk and takes no memory.
    OnDisk {
        /// Bytes of chunks.
        bytes: u64,
    },
    /// Proof of life.
    Heartbeat,
}
