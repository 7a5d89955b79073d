//! The scheduler: jobs in, assignments out. One owner, no locks, no clock, no sockets.
//!
//! | a task is | means | becomes |
//! | --- | --- | --- |
//! | absent | nobody is about to need it, or it is done and its chunk was freed | `Planned` |
//! | `Planned` | its needs are being visited | `Waiting`, `Ready` |
//! | `Waiting` | that many uses of its inputs are not in memory | `Ready` |
//! | `Ready` | may run anywhere | `Assigned` |
//! | `Assigned` | one worker was told to run one attempt | `InMemory`, `Ready`, `Waiting` |
//! | `InMemory` | a worker holds the chunk and somebody will use it | absent |

mod event;
mod fit;
mod jobs;
mod keep;
mod load;
mod place;
mod ready;
mod recovery;
mod retract;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::frontier::Frontier;
use crate::message::{Attempt, Failure, FromWorker, ToWorker};
pub use crate::scheduler::event::{Demand, Effect, Event, Joining, Offer, WorkerView};
use crate::scheduler::load::Load;
use crate::scheduler::ready::Ready;
use crate::table::Table;
use crate::{GroupId, JobId, TaskId, Time, WorkerId};

/// How long a worker may be silent before it counts as lost: five heartbeats.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How long a worker waits to be taken away after it was released: many times what an operator
/// needs, which may have been restarted and want it again.
pub const RELEASED_MAX: Duration = Duration::from_secs(30);

/// How much later than it was due a timeout may come before it counts as this process that stood
/// still, and not as everybody else who was silent.
const LATE_MAX: Duration = Duration::from_secs(1);

/// How many workers a task may lose before its job fails.
pub const LOSSES_MAX: u32 = 3;

/// How many workers may be lost that a task waited on before its job fails: it may have run after
/// all, and so often that is no coincidence.
pub const WAITS_MAX: u32 = 20;

/// How many times a task's inputs may be out of reach before its job fails: more often than workers
/// that hold them are lost one after the other.
pub const MISSES_MAX: u32 = 20;

#[derive(Clone, Debug, Eq, PartialEq)]
enum State {
    Planned,
    Waiting { missing: u32 },
    Ready,
    Assigned(WorkerId, Attempt),
    InMemory { holder: WorkerId, bytes: u64, attempt: Attempt },
}

#[derive(Debug)]
struct Task {
    state: State,
    /// When it came up: earlier ones run first.
    order: u64,
    /// Uses of its chunk that are still to come.
    uses: u32,
    /// Times that it was lost with its worker or its process while it ran.
    losses: u32,
    /// Times that it was lost with a worker where others ran before it.
    waits: u32,
    /// Times that its program failed.
    failures: u32,
    /// Times that an input could not be fetched.
    misses: u32,
}

#[derive(Debug)]
struct Job {
    frontier: Frontier,
    undelivered: u64,
    /// Jobs whose kept chunks it takes.
    needs: BTreeSet<JobId>,
    /// Whether its client no longer wants it, though others still need it.
    is_released: bool,
}

#[derive(Debug)]
struct Worker {
    joining: Joining,
    load: Load,
    held: BTreeSet<TaskId>,
    held_bytes: u64,
    /// How much of that takes no memory.
    disk_bytes: u64,
    defined: BTreeSet<GroupId>,
    peers: BTreeSet<WorkerId>,
    /// When it counts as lost, unless it says something before.
    silent_at: Time,
    retiring: Retiring,
    /// How long all that it runs takes at least, if that is longer than was expected: nothing more
    /// waits for it.
    late: Option<Duration>,
}

/// Whether the operator wants to do without a worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Retiring {
    No,
    /// It gets no more tasks. Works on at this time, if it is not empty before.
    Emptying {
        by: Time,
    },
    /// The operator was told that it is empty. Works on at this time, if it is still there.
    Released {
        until: Time,
    },
}

/// The whole scheduler.
#[derive(Debug, Default)]
pub struct Scheduler {
    table: Table,
    jobs: BTreeMap<JobId, Job>,
    /// Jobs whose walk is not over.
    walking: BTreeSet<JobId>,
    tasks: BTreeMap<TaskId, Task>,
    ready: Ready,
    workers: BTreeMap<WorkerId, Worker>,
    /// Sizes of their memory, ascending, each once.
    sizes: Vec<u64>,
    /// Kinds of workers that may come, once that was told.
    offers: Option<Vec<Offer>>,
    next_order: u64,
    /// When what is handled now happened.
    now: Time,
    /// The last worker that was looked at for what waits there.
    looked_at: WorkerId,
    /// When to look again for what should run and may not.
    doubts_at: Time,
    effects: VecDeque<Effect>,
}

impl Scheduler {
    /// Takes one event to completion.
    pub fn handle_event(&mut self, event: Event, now: Time) {
        self.now = now;
        match event {
            Event::WorkerJoined(worker, joining) => {
                if !self.replace(worker, &joining) {
                    return;
                }
                self.workers.insert(worker, Worker::new(joining, now));
                self.measure();
                self.refuse_what_fits_nowhere();
            }
            Event::Offered(offers) => {
                self.offers = Some(offers);
                self.refuse_what_fits_nowhere();
            }
            Event::WorkerLost(worker) => {
                self.lose_worker(worker);
                self.refuse_what_fits_nowhere();
            }
            Event::Worker(worker, message) => {
                if let Some(known) = self.workers.get_mut(&worker) {
                    known.silent_at = now.after(SILENCE_MAX);
                    self.hear(worker, message);
                }
            }
            Event::Collected(task) => self.deliver(task),
            Event::Submitted { job, groups, targets, is_kept } => {
                self.submit(job, groups, &targets, is_kept);
            }
            Event::Cancelled(job) => self.release(job),
            Event::Retire(worker, deadline) => self.retire(worker, deadline),
        }
        self.assign();
        self.retract();
        self.release_retiring(now);
    }

    /// Does what has fallen due at `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        self.now = now;
        self.forgive_if_late(now);
        let silent = self.workers.iter().filter(|(_, worker)| worker.silent_at <= now);
        let silent: Vec<WorkerId> = silent.map(|(id, _)| *id).collect();
        for worker in silent {
            self.effects.push_back(Effect::Disconnect(worker, "it was silent for too long"));
            self.lose_worker(worker);
        }
        self.release_retiring(now);
        self.assign();
        self.retract();
    }

    /// The next thing to do, if any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Self::handle_timeout`] next, and why.
    pub fn poll_timeout(&self) -> Option<(Time, &'static str)> {
        let silent = self.workers.values().map(|it| (it.silent_at, "a worker is silent"));
        let retire = self.workers.values().filter_map(|it| match it.retiring {
            Retiring::No => None,
            Retiring::Emptying { by } => Some((by, "a worker is not empty yet")),
            Retiring::Released { until } => Some((until, "a released worker is still there")),
        });
        silent.chain(retire).min()
    }

    /// The registered workers.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerId, WorkerView<'_>)> {
        self.workers.iter().map(|(id, worker)| {
            let view = WorkerView {
                name: &worker.joining.name,
                cores: worker.joining.cores,
                memory_bytes: worker.joining.memory_bytes,
                held_bytes: worker.held_bytes,
                assigned: worker.load.len(),
            };
            (*id, view)
        })
    }

    /// Bytes of a chunk that is in some worker's memory or on its disk.
    pub fn chunk_bytes(&self, task: TaskId) -> Option<u64> {
        match self.tasks.get(&task)?.state {
            State::InMemory { bytes, .. } => Some(bytes),
            State::Planned | State::Waiting { .. } | State::Ready | State::Assigned(..) => None,
        }
    }

    /// Panics if the state contradicts itself. Walks everything: for simulations.
    pub fn check(&self) {
        for (id, worker) in &self.workers {
            assert!(
                !worker.load.is_empty() || worker.load.bytes() == 0,
                "nothing takes {worker:?}"
            );
            for (kind, amount) in &worker.joining.resources {
                assert!(worker.load.taken(kind) <= *amount, "{kind} of {id:?}");
            }
            for task in worker.load.tasks() {
                let state = &self.tasks[&task].state;
                assert!(matches!(state, State::Assigned(to, _) if to == id), "{task} of {id:?}");
            }
        }
        for (task, live) in &self.tasks {
            assert_eq!(live.uses, self.table.uses_to_come(*task), "uses of {task}");
            let is_here = |it: &TaskId| matches!(self.tasks[it].state, State::InMemory { .. });
            let needs = self.table.dependencies(*task);
            match live.state {
                State::InMemory { holder, .. } => {
                    assert!(live.uses > 0, "{task} is in memory and nobody will use it");
                    assert!(self.holds(holder, *task), "{task} is held by {holder:?}");
                }
                State::Waiting { missing } => {
                    let away =
                        needs.iter().filter(|it| !self.tasks.contains_key(it) || !is_here(it));
                    assert_eq!(away.count() as u64, u64::from(missing), "inputs of {task}");
                    assert!(missing > 0, "{task} waits for nothing");
                }
                State::Ready => assert!(self.is_ready(*task, live.order), "{task}"),
                State::Assigned(worker, _) => {
                    let known = self.workers.get(&worker);
                    assert!(known.is_some_and(|it| it.load.contains(*task)), "{task}");
                }
                State::Planned => {}
            }
        }
    }

    /// Of two workers of one name the one with the later life counts; of two connections of one
    /// life, the later one. False when the one that comes does not.
    fn replace(&mut self, comes: WorkerId, joining: &Joining) -> bool {
        let there = self.workers.iter().find(|(_, it)| it.joining.name == joining.name);
        let Some((id, there)) = there.map(|(id, it)| (*id, it.joining.incarnation)) else {
            return true;
        };
        if there > joining.incarnation {
            self.effects.push_back(Effect::Disconnect(comes, "a later one has its name"));
            return false;
        }
        self.effects.push_back(Effect::Disconnect(id, "it has come back"));
        self.lose_worker(id);
        true
    }

    /// The first deadline holds, however often it is said. Who was released stays so, from now on for
    /// as long as at first: whoever hears of it is about to take it away.
    fn retire(&mut self, id: WorkerId, deadline: Time) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        match worker.retiring {
            Retiring::No => worker.retiring = Retiring::Emptying { by: deadline },
            Retiring::Emptying { .. } => (),
            Retiring::Released { .. } => {
                worker.retiring = Retiring::Released { until: self.now.after(RELEASED_MAX) };
                self.effects.push_back(Effect::Released(id));
            }
        }
    }

    /// When this process stood still, nobody could be heard: everybody gets half of their time
    /// again.
    fn forgive_if_late(&mut self, now: Time) {
        let Some((due, _)) = self.poll_timeout() else { return };
        if now > due.after(LATE_MAX) {
            for worker in self.workers.values_mut() {
                worker.silent_at = worker.silent_at.max(now.after(SILENCE_MAX / 2));
            }
        }
    }

    fn hear(&mut self, from: WorkerId, message: FromWorker) {
        match message {
            FromWorker::Finished { task, attempt, bytes, nanoseconds } => {
                self.finish(from, task, attempt, (bytes, nanoseconds));
            }
            FromWorker::Failed { task, attempt, failure } => {
                if self.is_assigned(task, from, attempt) {
                    self.fail(task, failure);
                }
            }
            FromWorker::InputMissing { task, attempt, input, holder } => {
                if self.is_assigned(task, from, attempt) {
                    self.miss_input(task, (input, holder), from);
                }
            }
            FromWorker::Retracted { task, attempt } => {
                if self.is_assigned(task, from, attempt) {
                    self.take_retracted(task, from);
                }
            }
            FromWorker::Begun { task, attempt } => {
                if self.is_assigned(task, from, attempt)
                    && let Some(worker) = self.workers.get_mut(&from)
                {
                    worker.load.begun(task, self.now);
                }
            }
            FromWorker::NotHere(task) => self.lose_chunks(&[(task, from)]),
            FromWorker::OnDisk { bytes } => {
                if let Some(worker) = self.workers.get_mut(&from) {
                    worker.disk_bytes = bytes;
                }
            }
            FromWorker::Heartbeat => self.look_at(from),
        }
    }

    fn is_assigned(&self, task: TaskId, worker: WorkerId, attempt: Attempt) -> bool {
        self.tasks.get(&task).is_some_and(|it| it.state == State::Assigned(worker, attempt))
    }

    fn finish(
        &mut self,
        from: WorkerId,
        task: TaskId,
        attempt: Attempt,
        (bytes, nanoseconds): (u64, u64),
    ) {
        if !self.is_assigned(task, from, attempt) {
            // An answer that no longer counts leaves a chunk behind, unless it was said before.
            if !self.holds(from, task) {
                self.send(from, ToWorker::Free(vec![(task, attempt)]));
            }
            return;
        }
        let begun = self.workers.get(&from).and_then(|it| it.load.running_since(task));
        let length = Duration::from_nanos(nanoseconds);
        let begun = begun.unwrap_or_else(|| Time(self.now.0.saturating_sub(length)));
        self.unassign(task);
        self.table.entry_mut(task.group).done.set(task.index, true);
        // What was here already took no time.
        if nanoseconds > 0 {
            self.table.learn(task.group, nanoseconds, begun);
        }
        if let Some(worker) = self.workers.get_mut(&from) {
            worker.held.insert(task);
            worker.held_bytes = worker.held_bytes.saturating_add(bytes);
        }
        self.live(task).state = State::InMemory { holder: from, bytes, attempt };
        for input in self.table.dependencies(task) {
            self.use_up(input);
        }
        for user in self.table.dependents(task) {
            self.one_more_input(user);
        }
        if self.live(task).uses == 0 {
            self.free(task);
        } else if self.table.entry(task.group).is_kept {
            self.count_kept(task);
        } else if self.table.is_wanted_by_client(task) {
            self.send(from, ToWorker::Collect(task));
        }
    }

    fn holds(&self, worker: WorkerId, task: TaskId) -> bool {
        self.workers.get(&worker).is_some_and(|worker| worker.held.contains(&task))
    }

    fn deliver(&mut self, task: TaskId) {
        let Some(entry) = self.table.get_mut(task.group) else { return };
        let Some(delivered) = entry.delivered.as_mut().filter(|it| !it.get(task.index)) else {
            return;
        };
        delivered.set(task.index, true);
        let id = entry.job;
        self.use_up(task);
        let job = self.jobs.get_mut(&id).expect("a group in the table belongs to a live job");
        job.undelivered -= 1;
        if job.undelivered == 0 {
            self.effects.push_back(Effect::JobDone(id));
            self.drop_job(id);
        }
    }

    /// One use of a chunk is over.
    fn use_up(&mut self, task: TaskId) {
        let Some(live) = self.tasks.get_mut(&task) else { return };
        live.uses = live.uses.checked_sub(1).expect("a chunk's uses are counted when it comes up");
        if live.uses == 0 && matches!(live.state, State::InMemory { .. }) {
            self.free(task);
        }
    }

    fn free(&mut self, task: TaskId) {
        let Some(Task { state: State::InMemory { holder, bytes, attempt }, .. }) =
            self.tasks.remove(&task)
        else {
            return;
        };
        if let Some(worker) = self.workers.get_mut(&holder) {
            worker.held.remove(&task);
            worker.held_bytes -= bytes;
        }
        self.send(holder, ToWorker::Free(vec![(task, attempt)]));
    }

    fn one_more_input(&mut self, user: TaskId) {
        let Some(live) = self.tasks.get_mut(&user) else { return };
        if let State::Waiting { missing } = &mut live.state {
            *missing -= 1;
            if *missing == 0 {
                live.state = State::Ready;
                let order = live.order;
                self.make_ready(user, order);
            }
        }
    }

    fn fail_job(&mut self, task: TaskId, failure: &Failure) {
        self.fail_with_users(self.table.entry(task.group).job, failure);
    }

    /// A worker has nothing to do with these groups any more. What it gave to them comes back to
    /// it when it is told; until then it is counted as if it had come back.
    fn forget(&mut self, id: WorkerId, groups: &BTreeSet<GroupId>) {
        let worker = self.workers.get_mut(&id).expect("the id is one of ours");
        let known: Vec<GroupId> = worker.defined.intersection(groups).copied().collect();
        if known.is_empty() {
            return;
        }
        worker.defined.retain(|group| !groups.contains(group));
        worker.load.take_groups(groups, self.now);
        worker.held.retain(|task| !groups.contains(&task.group));
        self.send(id, ToWorker::Forget(known));
        self.recount(id);
    }

    /// Counts again the bytes that a worker holds.
    fn recount(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        let held_bytes = worker
            .held
            .iter()
            .filter_map(|task| match self.tasks.get(task)?.state {
                State::InMemory { bytes, .. } => Some(bytes),
                State::Planned | State::Waiting { .. } | State::Ready | State::Assigned(..) => None,
            })
            .sum();
        let worker = self.workers.get_mut(&id).expect("it was there a line ago");
        worker.held_bytes = held_bytes;
    }

    fn release_retiring(&mut self, now: Time) {
        for (id, worker) in &mut self.workers {
            match worker.retiring {
                Retiring::Emptying { .. } if worker.load.is_empty() && worker.held.is_empty() => {
                    worker.retiring = Retiring::Released { until: now.after(RELEASED_MAX) };
                    self.effects.push_back(Effect::Released(*id));
                }
                Retiring::Emptying { by } if by <= now => {
                    worker.retiring = Retiring::No;
                    self.effects.push_back(Effect::Kept(*id));
                }
                Retiring::Released { until } if until <= now => {
                    worker.retiring = Retiring::No;
                    self.effects.push_back(Effect::Kept(*id));
                }
                Retiring::No | Retiring::Emptying { .. } | Retiring::Released { .. } => {}
            }
        }
    }

    fn live(&mut self, task: TaskId) -> &mut Task {
        self.tasks.get_mut(&task).expect("the caller found the task among the live ones")
    }

    fn send(&mut self, to: WorkerId, message: ToWorker) {
        if self.workers.contains_key(&to) {
            self.effects.push_back(Effect::Send(to, message));
        }
    }
}

impl Worker {
    fn new(joining: Joining, now: Time) -> Self {
        Self {
            load: Load::new(joining.cores, joining.memory_bytes),
            joining,
            held: BTreeSet::new(),
            held_bytes: 0,
            disk_bytes: 0,
            defined: BTreeSet::new(),
            peers: BTreeSet::new(),
            silent_at: now.after(SILENCE_MAX),
            retiring: Retiring::No,
            late: None,
        }
    }
}

#[cfg(test)]
mod tests;
