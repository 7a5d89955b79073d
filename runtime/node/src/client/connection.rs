//! Keeps a client connected and carries its jobs: what is not done is asked for again.

use std::collections::BTreeMap;
use std::slice;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ebbtide_array::CHUNK_BYTES_MAX;
use ebbtide_array::graph::Graph;
use ebbtide_array::{Array, ArrayError};
use ebbtide_buffer::{Buffer, Pool};
use ebbtide_contract::identity::{Identity, Role};
use ebbtide_contract::tls::{self, CredentialsError, Current};
use ebbtide_core::Bytes;
use ebbtide_core::message::Failure;
use rustls::ClientConfig;
use tokio::io::ReadHalf;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::client::{Address, ClientError, Endpoint};
use crate::frame::{self, FrameError, GRAPH_BYTES_MAX};
use crate::in_process::Progress;
use crate::link::{self, Link, Outbox, Payload, Stream};
use crate::result::Whole;
use crate::wire::{ClientFrame, ClientReply, Hello, Purpose, Token, Welcome, WorkerInfo};

/// How long a client tries to reach a scheduler again before it gives its jobs up.
const RECONNECT_MAX: Duration = Duration::from_mins(1);

/// Wait between two tries.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(200);

/// Replies that wait to be taken in.
const REPLIES_MAX: usize = 16;

/// What the program wants of the connection.
pub(super) enum Order {
    /// A job was entered.
    Submit(u64),
    /// A job was left before it ended.
    Cancel(u64),
    /// Who are the workers?
    AskWorkers(u64),
}

/// The jobs, seen by the program and the connection.
#[derive(Default)]
pub(super) struct Shared {
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

#[derive(Default)]
struct Jobs {
    next: u64,
    /// The last answer to who the workers are.
    workers: Option<(u64, Vec<WorkerInfo>)>,
    entered: BTreeMap<u64, Entered>,
    /// Why nothing is carried any more.
    closed: Option<String>,
}

struct Entered {
    graph: Graph,
    /// What is kept is asked for again when it may be lost.
    purpose: Purpose,
    wholes: Vec<Whole>,
    /// The life of the connection in which the scheduler was asked.
    asked_in: Option<u64>,
    /// What was told of its tasks, until somebody looks.
    progress: Option<Progress>,
    ended: Option<Result<(), ClientError>>,
}

impl Jobs {
    fn end(&mut self, number: u64, mut ended: Result<(), ClientError>) {
        if let Some(job) = self.entered.get_mut(&number) {
            if ended.is_ok() && !job.wholes.iter().all(Whole::is_complete) {
                let error = "the scheduler said that the result was complete, and it is not; this \
                             is a bug in ebbtide";
                ended = Err(ClientError::Failed(Failure::new(error)));
            }
            // What was kept may be lost, and not to be made again.
            if job.purpose == Purpose::Keep && matches!(ended, Err(ClientError::Failed(_))) {
                job.ended = Some(ended);
            } else {
                job.ended.get_or_insert(ended);
            }
        }
    }

    /// Why what a job uses is not kept, if that is known: then it is why the job failed.
    fn cause(&self, number: u64) -> Option<ClientError> {
        let failure = |held| self.entered.get(&held)?.ended.as_ref()?.as_ref().err().cloned();
        self.entered.get(&number)?.graph.held_jobs().find_map(failure)
    }
}

type Reply = Result<(ClientReply, Option<Buffer>), FrameError>;

pub(super) type Opened = (Outbox, mpsc::Receiver<Reply>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a job and gives it a number.
    pub(super) fn enter(
        &self,
        session: u64,
        targets: &[Array],
        purpose: Purpose,
    ) -> Result<u64, ClientError> {
        let graph = Graph::of(targets);
        if !graph.is_of_session(session) {
            return Err(ArrayError::HeldElsewhere.into());
        }
        let wholes = if purpose == Purpose::Keep {
            Vec::new()
        } else {
            targets.iter().map(Whole::new).collect::<Result<_, _>>()?
        };
        let mut jobs = self.lock();
        if let Some(reason) = &jobs.closed {
            return Err(ClientError::Closed(reason.clone()));
        }
        let entered =
            Entered { graph, purpose, wholes, asked_in: None, progress: None, ended: None };
        let number = jobs.next;
        jobs.next += 1;
        jobs.entered.insert(number, entered);
        Ok(number)
    }

    /// Ends every job that has not ended, and takes no more. The first reason holds.
    pub(super) fn close(&self, reason: &str) {
        let mut jobs = self.lock();
        let reason = jobs.closed.get_or_insert_with(|| reason.to_owned()).clone();
        for job in jobs.entered.values_mut() {
            job.ended.get_or_insert_with(|| Err(ClientError::Closed(reason.clone())));
        }
        drop(jobs);
        self.changed.notify_all();
    }

    /// Why nothing is carried any more, if so.
    pub(super) fn closed(&self) -> Option<String> {
        self.lock().closed.clone()
    }

    /// Removes a job. True if the scheduler still has it.
    pub(super) fn leave(&self, number: u64) -> bool {
        let left = self.lock().entered.remove(&number);
        self.changed.notify_all();
        left.is_some_and(|job| job.purpose == Purpose::Keep || job.ended.is_none())
    }

    pub(super) fn is_done(&self, number: u64) -> bool {
        self.lock().entered.get(&number).is_none_or(|job| job.ended.is_some())
    }

    /// Waits a while for a job: what became of it, and what is new of its progress.
    #[expect(clippy::type_complexity, reason = "two answers, taken apart at once")]
    pub(super) fn wait(
        &self,
        number: u64,
        longest: Duration,
    ) -> (Option<Result<Vec<Vec<u8>>, ClientError>>, Option<Progress>) {
        let jobs = self.lock();
        let runs =
            |jobs: &mut Jobs| jobs.entered.get(&number).is_some_and(|job| job.ended.is_none());
        let waited = self.changed.wait_timeout_while(jobs, longest, runs);
        let (mut jobs, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let Some(job) = jobs.entered.get_mut(&number) else {
            return (Some(Err(ClientError::Interrupted)), None);
        };
        let progress = job.progress.take();
        let ended = job.ended.as_ref().map(|ended| {
            ended.clone().map(|()| {
                std::mem::take(&mut job.wholes).into_iter().map(Whole::into_bytes).collect()
            })
        });
        (ended, progress)
    }

    /// A number for a question.
    pub(super) fn ask(&self) -> u64 {
        let mut jobs = self.lock();
        jobs.next += 1;
        jobs.next
    }

    /// Waits a while for the answer to this question or a later one.
    pub(super) fn answer(&self, question: u64, longest: Duration) -> Option<Vec<WorkerInfo>> {
        let is_open = |jobs: &mut Jobs| jobs.workers.as_ref().is_none_or(|it| it.0 < question);
        let waited = self.changed.wait_timeout_while(self.lock(), longest, is_open);
        let (jobs, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() { None } else { jobs.workers.as_ref().map(|(_, them)| them.clone()) }
    }

    fn end(&self, number: u64, ended: Result<(), ClientError>) {
        self.lock().end(number, ended);
        self.changed.notify_all();
    }

    /// The jobs that have not ended, and those that keep something.
    fn open(&self) -> Vec<u64> {
        let jobs = self.lock();
        let is_open = |job: &Entered| match &job.ended {
            None => true,
            Some(ended) => job.purpose == Purpose::Keep && ended.is_ok(),
        };
        let open = jobs.entered.iter().filter(|(_, job)| is_open(job));
        open.map(|(number, _)| *number).collect()
    }

    /// What a job asks for, once for each life of the connection.
    fn graph(&self, number: u64, life: u64) -> Option<(Vec<u8>, Purpose)> {
        let mut jobs = self.lock();
        let job = jobs.entered.get_mut(&number).filter(|job| job.asked_in != Some(life))?;
        job.asked_in = Some(life);
        Some((job.graph.encode(), job.purpose))
    }

    fn take(&self, reply: ClientReply, chunk: Option<&[u8]>) {
        match reply {
            ClientReply::Progress { job, done, tasks, workers } => {
                if let Some(entered) = self.lock().entered.get_mut(&job) {
                    entered.progress = Some(Progress { done, tasks, workers });
                }
            }
            ClientReply::Chunk { job, target, index } => {
                if let Some(entered) = self.lock().entered.get_mut(&job) {
                    entered.put(target, index, chunk.unwrap_or_default());
                }
            }
            ClientReply::Workers { question, workers } => {
                self.lock().workers = Some((question, workers));
            }
            ClientReply::Done { job } => self.lock().end(job, Ok(())),
            ClientReply::Failed { job, failure } => {
                let mut jobs = self.lock();
                let cause = jobs.cause(job).unwrap_or(ClientError::Failed(failure));
                jobs.end(job, Err(cause));
            }
        }
    }
}

impl Entered {
    /// Puts a chunk. The scheduler sends it once, for the first of several equal targets.
    fn put(&mut self, target: u32, index: u32, chunk: &[u8]) {
        let targets = self.graph.targets();
        let made_by = targets.get(target as usize);
        for (whole, target) in self.wholes.iter_mut().zip(targets) {
            if Some(target) == made_by {
                whole.put(index, chunk);
            }
        }
    }
}

/// The connection to one scheduler, opened again when it breaks.
pub(super) struct Connection {
    way: Way,
    shared: Arc<Shared>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Counts connections.
    life: u64,
}

impl Connection {
    pub(super) fn new(
        way: Way,
        shared: Arc<Shared>,
        orders: mpsc::UnboundedReceiver<Order>,
    ) -> Self {
        Self { way, shared, orders, life: 0 }
    }

    /// Carries orders and replies until the client is gone.
    pub(super) async fn keep(mut self, mut opened: Opened) {
        loop {
            let Some(error) = self.carry(&mut opened).await else { return };
            tracing::debug!(%error, "the connection broke");
            let Some(reopened) = self.reopen().await else { return };
            opened = reopened;
            for number in self.shared.open() {
                self.submit(&opened.0, number);
            }
        }
    }

    /// Ends with why the connection did, or without a reason when the client is gone.
    async fn carry(&mut self, (outbox, replies): &mut Opened) -> Option<FrameError> {
        let mut here = Vec::with_capacity(REPLIES_MAX);
        loop {
            tokio::select! {
                order = self.orders.recv() => match order? {
                    Order::Submit(number) => self.submit(outbox, number),
                    Order::Cancel(job) => outbox.send(&ClientFrame::Cancel { job }),
                    Order::AskWorkers(question) => {
                        outbox.send(&ClientFrame::Workers { question });
                    }
                },
                count = replies.recv_many(&mut here, REPLIES_MAX) => {
                    if count == 0 {
                        return Some(std::io::Error::from(std::io::ErrorKind::ConnectionAborted).into());
                    }
                    for reply in here.drain(..) {
                        match reply {
                            Ok((reply, chunk)) => self.shared.take(reply, chunk.as_deref()),
                            Err(error) => return Some(error),
                        }
                    }
                    // Once for all of them: each time wakes whoever waits.
                    self.shared.changed.notify_all();
                },
            }
        }
    }

    fn submit(&self, outbox: &Outbox, job: u64) {
        let Some((graph, purpose)) = self.shared.graph(job, self.life) else { return };
        if graph.len() as u64 > GRAPH_BYTES_MAX {
            let error = format!(
                "an expression of {} is too large to be sent, at most {} are taken; make large \
                 arrays where they are needed, with random or from_delayed",
                Bytes(graph.len() as u64),
                Bytes(GRAPH_BYTES_MAX)
            );
            self.shared.end(job, Err(ClientError::Failed(Failure::new(error))));
        } else {
            let submit = ClientFrame::Submit { job, purpose };
            outbox.send_with(&submit, Payload::Bytes(graph));
        }
    }

    /// Opens the way again. Jobs are failed when that takes too long, and a new one tries again.
    /// Nothing when the client is gone.
    async fn reopen(&mut self) -> Option<Opened> {
        self.life += 1;
        loop {
            let start = Instant::now();
            let last = loop {
                match self.way.open().await {
                    Ok(opened) => return Some(opened),
                    Err(ClientError::Connection(..)) if start.elapsed() < RECONNECT_MAX => {
                        sleep(RECONNECT_INTERVAL).await;
                    }
                    Err(error) => break error,
                }
            };
            for number in self.shared.open() {
                self.shared.end(number, Err(last.clone()));
            }
            while !matches!(self.orders.recv().await?, Order::Submit(_)) {}
        }
    }
}

/// The way to one scheduler, and how the client proves itself there.
pub(super) struct Way {
    endpoint: Endpoint,
    config: Current<ClientConfig>,
}

impl Way {
    pub(super) fn new(endpoint: &Endpoint) -> Result<Self, ClientError> {
        let scheduler = Identity::member(&endpoint.cluster_uid, Role::Scheduler);
        let config = Current::new(&endpoint.credentials, move |it| it.dial(scheduler.clone()));
        let config = config.map_err(|error| unusable(endpoint, error))?;
        Ok(Self { endpoint: endpoint.clone(), config })
    }

    /// Connects, proving both sides.
    pub(super) async fn open(&self) -> Result<Opened, ClientError> {
        match &self.endpoint.address {
            Address::Tcp(address) => {
                let stream = link::dial(slice::from_ref(address)).await;
                self.greet(stream.map_err(|error| self.lost(error))?).await
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(FrameError::from);
                self.greet(stream.map_err(|error| self.lost(error))?).await
            }
        }
    }

    async fn greet<S: Stream + 'static>(&self, stream: S) -> Result<Opened, ClientError> {
        let name = || self.endpoint.name.clone();
        let lost = |error| self.lost(error);
        let Link { mut stream, .. } =
            link::connect(stream, self.config.get()).await.map_err(lost)?;
        let token = tls::token(&self.endpoint.credentials);
        let token = token.map_err(|error| unusable(&self.endpoint, error))?;
        let hello = Hello::Client { token: Token(token) };
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

    fn lost(&self, error: FrameError) -> ClientError {
        let name = self.endpoint.name.clone();
        match error {
            FrameError::Refused(_) | FrameError::Version(_) => {
                ClientError::Refused(name, error.to_string())
            }
            FrameError::Stream(_)
            | FrameError::Stranger
            | FrameError::TooLong { .. }
            | FrameError::Checksum(_)
            | FrameError::Header(_) => ClientError::Connection(name, Arc::new(error)),
        }
    }
}

fn unusable(endpoint: &Endpoint, error: CredentialsError) -> ClientError {
    ClientError::Credentials(endpoint.name.clone(), Arc::new(error))
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
