//! What travels in the headers of frames, beside the core's own messages.

use std::fmt;

use ebbtide_core::message::{Failure, FromWorker, ToWorker};
use ebbtide_core::{Resources, TaskId, WorkerId};
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
        /// What it has beside cores and memory, by kind.
        resources: Resources,
        /// Tells this life of the worker from others of the same name.
        incarnation: u64,
    },
    /// A client.
    Client {
        /// The cluster's token.
        token: Token,
    },
    /// A worker asks another for chunks.
    Peer {
        /// The scheduler's life in which both registered.
        epoch: u64,
    },
}

/// A secret that is sent, and never shown.
#[derive(Clone, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
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
    /// A message of the core. That a task is finished may have its chunk as the payload, where that is
    /// short.
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

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use ebbtide_array::graph::Graph;
    use ebbtide_array::lower::lower;
    use ebbtide_array::{Array, DType, Distribution, ReduceOp};
    use ebbtide_core::message::{Assignment, Attempt, Failure, FromWorker, ToWorker};
    use ebbtide_core::{GroupId, Resources, TaskId, WorkerId};
    use serde::Serialize;
    use xxhash_rust::xxh3::xxh3_64;

    use super::{ClientFrame, ClientReply, Hello, PeerReply, PeerRequest, Purpose};
    use super::{Token, Welcome, WorkerFrame, WorkerInfo};
    use crate::frame::VERSION;

    /// What peers of the same version must read alike: names and bytes of each message.
    #[derive(Default)]
    struct Protocol(Vec<u8>);

    impl Protocol {
        fn add<M: Debug + Serialize>(&mut self, messages: &[M]) {
            for message in messages {
                self.0.extend(format!("{message:?}").bytes());
                self.0.extend(postcard::to_stdvec(message).unwrap());
            }
        }
    }

    fn graph() -> Graph {
        let x = Array::random(Distribution::Normal, (7, 0), &[10, 4], Some(&[5, 2])).unwrap();
        let one = Array::constant(DType::Float64, vec![1], 1_f64.to_le_bytes().to_vec()).unwrap();
        let larger = Array::binary(ebbtide_array::BinaryOp::Add, &x, &one).unwrap();
        Graph::of(&[larger.reduce(ReduceOp::Sum, Some(&[0])).unwrap(), x.mean(None).unwrap()])
    }

    #[test]
    fn another_encoding_has_another_version() {
        let task = TaskId { group: GroupId(3), index: 4 };
        let (worker, attempt, failure) = (WorkerId(5), Attempt(6), Failure::new("why"));
        let (name, address) = ("w".to_owned(), "a:1".to_owned());
        let graph = graph();
        let groups =
            lower(&graph.arrays().unwrap(), GroupId(9), &|_, _, _, _| None).unwrap().groups;
        let mut protocol = Protocol::default();
        protocol.add(&[
            Hello::Worker {
                name: name.clone(),
                address,
                cores: 1,
                memory_bytes: 2,
                resources: Resources::from([("a/b".to_owned(), 1)]),
                incarnation: 3,
            },
            Hello::Client { token: Token("t".to_owned()) },
            Hello::Peer { epoch: 8 },
        ]);
        let refused = Welcome::Refused("no".to_owned());
        protocol.add(&[Welcome::Worker { id: worker, epoch: 8 }, Welcome::Yes, refused]);
        let missing = FromWorker::InputMissing { task, attempt, input: task, holder: worker };
        let said = [
            FromWorker::Finished { task, attempt, bytes: 7, nanoseconds: 8 },
            FromWorker::Failed { task, attempt, failure: failure.clone() },
            missing,
            FromWorker::Retracted { task, attempt },
            FromWorker::Begun { task, attempt },
            FromWorker::NotHere(task),
            FromWorker::OnDisk { bytes: 9 },
            FromWorker::Heartbeat,
        ];
        protocol.add(&said.map(WorkerFrame::Message));
        protocol.add(&[WorkerFrame::Chunk(task), WorkerFrame::Peak(1)]);
        let peer = ToWorker::Peer { worker, address: "b:2".to_owned() };
        protocol.add(&[
            ToWorker::Define(groups),
            ToWorker::Assign(Assignment { task, attempt, inputs: vec![(task, worker)] }),
            ToWorker::Free(vec![(task, attempt)]),
            ToWorker::Forget(vec![GroupId(3)]),
            ToWorker::Collect(task),
            ToWorker::Retract(task, attempt),
            peer,
        ]);
        let purposes = [Purpose::Future, Purpose::Compute, Purpose::Keep];
        protocol.add(&purposes.map(|purpose| ClientFrame::Submit { job: 1, purpose }));
        protocol.add(&[ClientFrame::Workers { question: 2 }, ClientFrame::Cancel { job: 1 }]);
        let info = WorkerInfo { name, cores: 1, memory_bytes: 2, peak_bytes: 3 };
        protocol.add(&[
            ClientReply::Progress { job: 1, done: 2, tasks: 3, workers: 4 },
            ClientReply::Chunk { job: 1, target: 2, index: 3 },
            ClientReply::Workers { question: 2, workers: vec![info] },
            ClientReply::Done { job: 1 },
            ClientReply::Failed { job: 1, failure },
        ]);
        protocol.add(&[PeerRequest { chunk: task }]);
        protocol.add(&[PeerReply::Chunk(task), PeerReply::NotHere(task)]);
        protocol.0.extend(graph.encode());
        let known = (4, 1_499_658_992_356_221_880);
        let found = (VERSION, xxh3_64(&protocol.0));
        assert_eq!(
            found, known,
            "what is said has changed: raise VERSION if its encoding has, and say so here"
        );
    }
}
