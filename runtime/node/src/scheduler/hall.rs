//! Where everybody's messages meet the core. Owns it, and never waits.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use ebbtide_array::Array;
use ebbtide_array::graph::Graph;
use ebbtide_array::lower::{Lowered, lower};
use ebbtide_buffer::Buffer;
use ebbtide_contract::demand::{Down, Fact, Group, Outcome, Up};
use ebbtide_core::message::{Failure, FromWorker, ToWorker};
use ebbtide_core::scheduler::{Demand, Effect, Event, Joining, Offer, Scheduler, WorkerView};
use ebbtide_core::{GroupId, JobId, TaskId, Time, WorkerId};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::http::Metrics;
use crate::link::{Outbox, Payload};
use crate::operator::Facts;
use crate::settings;
use crate::wire::{ClientFrame, ClientReply, Purpose, WorkerInfo};

/// Bytes of one client's chunks that are on their way at once: bounds what a slow client keeps
/// here. [`COLLECTING_MIN`] chunks are on their way however large they are.
const COLLECTING_BYTES_MAX: u64 = 8 << 20;
const COLLECTING_MIN: usize = 4;

/// Chunks of one client that are on their way at once, however small.
const COLLECTING_MAX: usize = 256;

/// Something that one of the connections has to say.
pub(super) enum Input {
    /// A worker asks for its name.
    WorkerComes(oneshot::Sender<WorkerId>),
    /// It has its name and can be sent messages.
    WorkerJoined(WorkerId, Joining, Outbox),
    /// A short chunk may come with the message that tells of it.
    WorkerSaid(WorkerId, FromWorker, Option<Buffer>),
    /// A chunk for a client.
    WorkerSent(TaskId, Option<Buffer>),
    /// The most memory that it has had.
    WorkerPeaked(WorkerId, u64),
    WorkerGone(WorkerId),
    ClientJoined(Outbox, oneshot::Sender<u64>),
    ClientSaid(u64, ClientFrame, Option<Buffer>),
    ClientGone(u64),
    /// A chunk of so many bytes has left for its client.
    Written(u64, u64),
}

struct Client {
    outbox: Outbox,
    /// Chunks that a worker was asked for, with their bytes.
    collecting: BTreeMap<TaskId, (WorkerId, u64)>,
    collecting_bytes: u64,
    /// Chunks that came and have not left for the client, and their bytes.
    leaving: (usize, u64),
    /// Chunks that are ready to be fetched from their worker.
    to_collect: VecDeque<(WorkerId, TaskId)>,
}

impl Client {
    fn new(outbox: Outbox) -> Self {
        Self {
            outbox,
            collecting: BTreeMap::new(),
            collecting_bytes: 0,
            leaving: (0, 0),
            to_collect: VecDeque::new(),
        }
    }

    /// Whether one more chunk may be on its way.
    fn has_room(&self) -> bool {
        let on_way = self.collecting.len() + self.leaving.0;
        let bytes = self.collecting_bytes + self.leaving.1;
        on_way < COLLECTING_MIN || (on_way < COLLECTING_MAX && bytes < COLLECTING_BYTES_MAX)
    }
}

struct Job {
    client: u64,
    /// The client's own name for it.
    number: u64,
    targets: Vec<GroupId>,
    /// The arrays that it keeps, in the order of its targets.
    kept: Vec<Array>,
    /// Whether its client wants to know how far it is.
    is_watched: bool,
    told: (u64, u64),
}

struct Gauges {
    workers: Gauge,
    clients: Gauge,
    waiting: Gauge,
    assigned: Gauge,
}

pub(super) struct Hall {
    core: Scheduler,
    workers: BTreeMap<WorkerId, Outbox>,
    peaks: BTreeMap<WorkerId, u64>,
    clients: BTreeMap<u64, Client>,
    jobs: BTreeMap<JobId, Job>,
    owners: BTreeMap<GroupId, JobId>,
    /// A chunk that came with the message that it is there, until that is heard.
    came: Option<(TaskId, Buffer)>,
    next_worker: u64,
    next_client: u64,
    next_job: u64,
    next_group: GroupId,
    started_at: Instant,
    inputs: mpsc::Sender<Input>,
    answers: mpsc::UnboundedSender<Up>,
    facts: watch::Sender<Facts>,
    gauges: Gauges,
}

impl Hall {
    pub(super) fn new(
        inputs: mpsc::Sender<Input>,
        answers: mpsc::UnboundedSender<Up>,
        facts: watch::Sender<Facts>,
        metrics: &mut Metrics,
    ) -> Self {
        let gauges = Gauges {
            workers: metrics.gauge("workers", "Registered workers"),
            clients: metrics.gauge("clients", "Connected clients"),
            waiting: metrics.gauge("tasks_waiting", "Tasks that wait"),
            assigned: metrics.gauge("tasks_assigned", "Tasks that were given to workers"),
        };
        let hall = Self {
            core: Scheduler::default(),
            workers: BTreeMap::new(),
            peaks: BTreeMap::new(),
            clients: BTreeMap::new(),
            jobs: BTreeMap::new(),
            owners: BTreeMap::new(),
            came: None,
            next_worker: 0,
            next_client: 0,
            next_job: 0,
            next_group: GroupId(0),
            started_at: Instant::now(),
            inputs,
            answers,
            facts,
            gauges,
        };
        hall.tell_operator();
        hall
    }

    /// When [`Self::tick`] is to be called next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.core.poll_timeout().map(|(at, _)| self.started_at + at.0)
    }

    pub(super) fn tick(&mut self) {
        self.core.handle_timeout(self.now());
        self.carry_out();
    }

    pub(super) fn take(&mut self, input: Input) {
        match input {
            Input::WorkerComes(reply) => {
                let id = WorkerId(self.next_worker);
                self.next_worker += 1;
                // It may have gone again.
                let _: Result<(), _> = reply.send(id);
            }
            Input::WorkerJoined(id, joining, outbox) => {
                tracing::info!(worker = joining.name, cores = joining.cores, "a worker registered");
                self.workers.insert(id, outbox);
                self.tell(Event::WorkerJoined(id, joining));
                self.tell_operator();
            }
            Input::WorkerSaid(id, message, chunk) => {
                if let FromWorker::NotHere(task) = message
                    && let Some(client) = self.client_of(task)
                {
                    self.stop_collecting(client, &[task]);
                }
                if let FromWorker::Finished { task, .. } = message {
                    self.came = chunk.map(|it| (task, it));
                }
                self.tell(Event::Worker(id, message));
                self.came = None;
            }
            Input::WorkerSent(task, chunk) => self.relay(task, chunk),
            Input::WorkerPeaked(id, bytes) => {
                self.peaks.insert(id, bytes);
            }
            Input::WorkerGone(id) => {
                self.part_with(id);
                self.tell(Event::WorkerLost(id));
                self.tell_operator();
            }
            Input::ClientJoined(outbox, reply) => {
                let id = self.next_client;
                self.next_client += 1;
                self.clients.insert(id, Client::new(outbox));
                let _: Result<(), _> = reply.send(id);
                self.tell_operator();
            }
            Input::ClientSaid(id, ClientFrame::Submit { job, purpose }, graph) => {
                self.submit(id, (job, purpose), graph.as_deref().unwrap_or_default());
                // The first job is news; of more of the same the next regular news tell.
                if self.jobs.len() == 1 {
                    self.tell_operator();
                }
            }
            Input::ClientSaid(id, ClientFrame::Workers { question }, _) => {
                let workers = self.worker_infos();
                if let Some(client) = self.clients.get(&id) {
                    client.outbox.send(&ClientReply::Workers { question, workers });
                }
            }
            Input::ClientSaid(id, ClientFrame::Cancel { job }, _) => {
                self.cancel(|it| it.client == id && it.number == job);
            }
            Input::ClientGone(id) => {
                self.clients.remove(&id);
                self.cancel(|it| it.client == id);
                self.tell_operator();
            }
            Input::Written(id, bytes) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.leaving = (client.leaving.0 - 1, client.leaving.1 - bytes);
                    self.collect_more(id);
                }
            }
        }
    }

    pub(super) fn obey(&mut self, order: Down) {
        let (workers, deadline_seconds) = match order {
            Down::Retire { workers, deadline_seconds } => (workers, deadline_seconds),
            Down::Groups { groups } => {
                self.tell(Event::Offered(groups.into_iter().map(offer).collect()));
                self.tell_operator();
                return;
            }
            Down::Resend | Down::Later => return,
        };
        let deadline = self.now().after(Duration::from_secs(deadline_seconds));
        for name in workers {
            let known: Vec<WorkerId> = self
                .core
                .workers()
                .filter(|(_, worker)| worker.name == name)
                .map(|(id, _)| id)
                .collect();
            if known.is_empty() {
                self.answer(name, Outcome::Unknown);
            }
            for id in known {
                self.tell(Event::Retire(id, deadline));
            }
        }
    }

    pub(super) fn tell_news(&mut self) {
        let workers = self.workers.len() as u64;
        for (id, job) in self.jobs.iter_mut().filter(|(_, job)| job.is_watched) {
            let (done, tasks) = self.core.progress(*id);
            if job.told != (done, workers)
                && let Some(client) = self.clients.get(&job.client)
            {
                job.told = (done, workers);
                let job = job.number;
                client.outbox.send(&ClientReply::Progress { job, done, tasks, workers });
            }
        }
        self.tell_operator();
    }

    fn now(&self) -> Time {
        Time(self.started_at.elapsed())
    }

    fn tell(&mut self, event: Event) {
        self.core.handle_event(event, self.now());
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Send(worker, ToWorker::Collect(task)) => self.collect(worker, task),
                Effect::Send(worker, message) => {
                    if let Some(outbox) = self.workers.get(&worker) {
                        outbox.send(&message);
                    }
                }
                // Its reader ends when nothing is left to write to.
                Effect::Disconnect(worker, why) => {
                    tracing::warn!(worker = worker.0, why, "a worker is disconnected");
                    self.part_with(worker);
                }
                Effect::JobDone(job) => self.done(job),
                Effect::JobFailed(job, failure) => {
                    self.end(job, |job| ClientReply::Failed { job, failure });
                }
                Effect::Released(worker) => self.retired(worker, Outcome::Released),
                Effect::Kept(worker) => self.retired(worker, Outcome::Kept),
            }
        }
    }

    fn submit(&mut self, client: u64, (number, purpose): (u64, Purpose), graph: &[u8]) {
        let is_kept = purpose == Purpose::Keep;
        let is_watched = purpose == Purpose::Compute;
        // What one client sends must not end what others do.
        let lowered = catch_unwind(AssertUnwindSafe(|| self.lower(client, graph)));
        let lowered = lowered.unwrap_or_else(|_| {
            Err("the expression cannot be planned; this is a bug in ebbtide".to_owned())
        });
        let (lowered, arrays) = match lowered {
            Ok(lowered) => lowered,
            Err(error) => {
                if let Some(client) = self.clients.get(&client) {
                    let failure = Failure::new(error);
                    client.outbox.send(&ClientReply::Failed { job: number, failure });
                }
                return;
            }
        };
        let job = JobId(self.next_job);
        self.next_job += 1;
        self.next_group = GroupId(self.next_group.0 + lowered.groups.len() as u64);
        self.owners.extend(lowered.targets.iter().map(|target| (*target, job)));
        let targets = lowered.targets.clone();
        let kept = if is_kept { arrays } else { Vec::new() };
        let told = (0, u64::MAX);
        self.jobs.insert(job, Job { client, number, targets, kept, is_watched, told });
        let Lowered { groups, targets } = lowered;
        self.tell(Event::Submitted { job, groups, targets, is_kept });
    }

    fn lower(&self, client: u64, graph: &[u8]) -> Result<(Lowered, Vec<Array>), String> {
        let arrays = Graph::decode(graph).and_then(|graph| graph.arrays());
        let arrays = arrays.map_err(|error| error.to_string())?;
        let held = |_, job, target, array: &Array| self.kept(client, (job, target), array);
        let lowered = lower(&arrays, self.next_group, &held).map_err(|error| error.to_string())?;
        Ok((lowered, arrays))
    }

    /// The group of what a client's job keeps, if it keeps such an array.
    fn kept(&self, client: u64, (number, target): (u64, u32), like: &Array) -> Option<GroupId> {
        let job = self.jobs.values().find(|it| it.client == client && it.number == number)?;
        let array = job.kept.get(target as usize)?;
        let is_alike = array.dtype() == like.dtype() && array.node().grid == like.node().grid;
        job.targets.get(target as usize).copied().filter(|_| is_alike)
    }

    fn done(&mut self, id: JobId) {
        if self.jobs.get(&id).is_some_and(|job| job.kept.is_empty()) {
            self.end(id, |job| ClientReply::Done { job });
        } else if let Some(job) = self.jobs.get(&id)
            && let Some(client) = self.clients.get(&job.client)
        {
            client.outbox.send(&ClientReply::Done { job: job.number });
        }
    }

    fn cancel(&mut self, is_meant: impl Fn(&Job) -> bool) {
        let jobs: Vec<JobId> =
            self.jobs.iter().filter(|(_, job)| is_meant(job)).map(|(id, _)| *id).collect();
        for id in jobs {
            self.forget(id);
            self.tell(Event::Cancelled(id));
        }
    }

    fn end(&mut self, id: JobId, reply: impl FnOnce(u64) -> ClientReply) {
        let Some(job) = self.forget(id) else { return };
        if let Some(client) = self.clients.get(&job.client) {
            client.outbox.send(&reply(job.number));
        }
    }

    fn forget(&mut self, id: JobId) -> Option<Job> {
        let job = self.jobs.remove(&id)?;
        for target in &job.targets {
            self.owners.remove(target);
        }
        if let Some(client) = self.clients.get_mut(&job.client) {
            let chunks = job.targets.iter().flat_map(|target| {
                let (first, last) = (TaskId { group: *target, index: 0 }, u32::MAX);
                client.collecting.range(first..=TaskId { index: last, ..first })
            });
            let chunks: Vec<TaskId> = chunks.map(|(chunk, _)| *chunk).collect();
            self.stop_collecting(job.client, &chunks);
        }
        Some(job)
    }

    /// The client of the job that asked for this chunk.
    fn client_of(&self, task: TaskId) -> Option<u64> {
        Some(self.jobs.get(self.owners.get(&task.group)?)?.client)
    }

    fn collect(&mut self, worker: WorkerId, task: TaskId) {
        let Some(id) = self.client_of(task) else { return };
        if let Some(client) = self.clients.get_mut(&id) {
            let has_room = client.to_collect.is_empty() && client.has_room();
            if let Some((_, chunk)) = self.came.take_if(|(came, _)| has_room && *came == task) {
                self.relay(task, Some(chunk));
                return;
            }
            client.to_collect.push_back((worker, task));
            self.collect_more(id);
        }
    }

    fn collect_more(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        while client.has_room()
            && let Some((worker, task)) = client.to_collect.pop_front()
        {
            // What is gone with its worker is lost to the core too, which has it made again.
            if let Some(outbox) = self.workers.get(&worker)
                && let Some(bytes) = self.core.chunk_bytes(task)
            {
                let before = client.collecting.insert(task, (worker, bytes));
                client.collecting_bytes += bytes;
                client.collecting_bytes -= before.map_or(0, |(_, bytes)| bytes);
                outbox.send(&ToWorker::Collect(task));
            }
        }
    }

    fn stop_collecting(&mut self, id: u64, chunks: &[TaskId]) {
        if let Some(client) = self.clients.get_mut(&id) {
            for chunk in chunks {
                let (_, bytes) = client.collecting.remove(chunk).unwrap_or((WorkerId(0), 0));
                client.collecting_bytes -= bytes;
            }
            self.collect_more(id);
        }
    }

    fn relay(&mut self, task: TaskId, chunk: Option<Buffer>) {
        let Some(id) = self.client_of(task) else { return };
        let (Some(owner), Some(client)) = (self.owners.get(&task.group), self.clients.get_mut(&id))
        else {
            return;
        };
        let job = &self.jobs[owner];
        let target = job.targets.iter().position(|target| *target == task.group);
        let target = target.and_then(|target| u32::try_from(target).ok()).unwrap_or_default();
        let reply = ClientReply::Chunk { job: job.number, target, index: task.index };
        let inputs = self.inputs.clone();
        let bytes = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        let payload =
            chunk.map_or(Payload::Bytes(Vec::new()), |chunk| Payload::Chunk(Arc::new(chunk)));
        client.leaving = (client.leaving.0 + 1, client.leaving.1 + bytes);
        client.outbox.send_and(&reply, payload, move || {
            if let Err(TrySendError::Full(written)) = inputs.try_send(Input::Written(id, bytes)) {
                // Off the writer's path: the hall is busy.
                tokio::spawn(async move { inputs.send(written).await });
            }
        });
        // It is on its way in order: if it does not arrive, the client is gone with its jobs.
        self.stop_collecting(id, &[task]);
        self.tell(Event::Collected(task));
    }

    fn worker_infos(&self) -> Vec<WorkerInfo> {
        let info = |(id, worker): (WorkerId, WorkerView<'_>)| WorkerInfo {
            name: worker.name.to_owned(),
            cores: worker.cores,
            memory_bytes: worker.memory_bytes,
            peak_bytes: self.peaks.get(&id).copied().unwrap_or_default(),
        };
        self.core.workers().map(info).collect()
    }

    /// Nothing is sent to a worker any more, and nothing is expected of it.
    fn part_with(&mut self, id: WorkerId) {
        self.workers.remove(&id);
        self.peaks.remove(&id);
        let lost = |client: &Client| -> Vec<TaskId> {
            let theirs = client.collecting.iter().filter(|(_, (worker, _))| *worker == id);
            theirs.map(|(chunk, _)| *chunk).collect()
        };
        let clients = self.clients.iter().map(|(client, it)| (*client, lost(it)));
        let clients: Vec<(u64, Vec<TaskId>)> = clients.collect();
        for (client, chunks) in clients {
            self.stop_collecting(client, &chunks);
        }
    }

    fn retired(&self, worker: WorkerId, outcome: Outcome) {
        if let Some((_, view)) = self.core.workers().find(|(id, _)| *id == worker) {
            self.answer(view.name.to_owned(), outcome);
        }
    }

    fn answer(&self, worker: String, outcome: Outcome) {
        // The receiver lives as long as the process.
        let _: Result<(), _> = self.answers.send(Up::Retired { worker, outcome });
    }

    fn tell_operator(&self) {
        let demand = self.core.demand(self.now());
        self.gauges.workers.set(count(self.workers.len() as u64));
        self.gauges.clients.set(count(self.clients.len() as u64));
        self.gauges.waiting.set(count(demand.iter().map(|it| it.tasks).sum()));
        self.gauges.assigned.set(count(demand.iter().map(|it| it.assigned).sum()));
        let mut facts = Facts::new();
        for Demand { fits, tasks, nanoseconds, assigned } in demand {
            let (name, core_seconds) = (fits.join(" "), nanoseconds as f64 / 1e9);
            let fact = Fact::Queue { fits, tasks, core_seconds, running: assigned };
            facts.insert(format!("queue {name}"), fact);
        }
        facts.insert("jobs".to_owned(), Fact::Jobs { ever: self.next_job });
        let connected = self.clients.len() as u64;
        facts.insert("clients".to_owned(), Fact::Clients { connected });
        for (_, worker) in self.core.workers() {
            let fact = Fact::Worker {
                name: worker.name.to_owned(),
                held_bytes: worker.held_bytes,
                assigned: worker.assigned,
            };
            facts.insert(format!("worker {}", worker.name), fact);
        }
        self.facts.send_if_modified(|told| {
            let is_new = *told != facts;
            *told = facts;
            is_new
        });
    }
}

fn offer(group: Group) -> Offer {
    let Group { name, memory_bytes, resources, target_seconds } = group;
    let target = Duration::from_secs(target_seconds.into());
    Offer { name, memory_bytes: settings::chunks_bytes(memory_bytes), resources, target }
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
