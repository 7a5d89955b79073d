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

mod keep;
mod place;
mod recovery;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::frontier::Frontier;
use crate::message::{Attempt, Failure, FromWorker, ToWorker};
use crate::table::Table;
use crate::{Bytes, Cost, Group, GroupError, GroupId, JobId, TaskId, Time, WorkerId};

/// How long a worker may be silent before it counts as lost: five heartbeats.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How many workers a task may lose before its job fails.
pub const LOSSES_MAX: u32 = 3;

/// How many times a task's inputs may be out of reach before its job fails: more often than workers
/// that hold them are lost one after the other.
pub const MISSES_MAX: u32 = 20;

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

/// What waits and runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Tasks that wait.
    pub tasks: u64,
    /// Nanoseconds on one core that they are expected to need.
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
    /// Times that it was lost with its worker or its process.
    losses: u32,
    /// Times that its program failed.
    failures: u32,
    /// Times that an input could not be fetched.
    misses: u32,
}

#[derive(Debug)]
struct Job {
    frontier: Frontier,
    undelivered: u64,
    /// The group whose tasks need most memory at once, and how much.
    largest: (u64, GroupId),
    /// Jobs whose kept chunks it takes.
    needs: BTreeSet<JobId>,
    /// Whether its client no longer wants it, though others still need it.
    is_released: bool,
}

#[derive(Debug)]
struct Worker {
    joining: Joining,
    assigned: BTreeSet<TaskId>,
    held: BTreeSet<TaskId>,
    held_bytes: u64,
    reserved_bytes: u64,
    defined: BTreeSet<GroupId>,
    peers: BTreeSet<WorkerId>,
    seen_at: Time,
    retire_by: Option<Time>,
    is_released: bool,
}

/// The whole scheduler.
#[derive(Debug, Default)]
pub struct Scheduler {
    table: Table,
    jobs: BTreeMap<JobId, Job>,
    /// Jobs whose walk is not over.
    walking: BTreeSet<JobId>,
    tasks: BTreeMap<TaskId, Task>,
    ready: BTreeSet<(u64, TaskId)>,
    workers: BTreeMap<WorkerId, Worker>,
    next_order: u64,
    effects: VecDeque<Effect>,
}

impl Scheduler {
    /// Takes one event to completion.
    pub fn handle_event(&mut self, event: Event, now: Time) {
        match event {
            Event::WorkerJoined(worker, joining) => {
                self.workers.insert(worker, Worker::new(joining, now));
                let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
                for job in jobs {
                    self.refuse_unless_fitting(job);
                }
            }
            Event::WorkerLost(worker) => self.lose_worker(worker),
            Event::Worker(worker, message) => {
                if let Some(known) = self.workers.get_mut(&worker) {
                    known.seen_at = now;
                    self.hear(worker, message);
                }
            }
            Event::Collected(task) => self.deliver(task),
            Event::Submitted { job, groups, targets, is_kept } => {
                self.submit(job, groups, &targets, is_kept);
            }
            Event::Cancelled(job) => self.release(job),
            Event::Retire(worker, deadline) => {
                if let Some(known) = self.workers.get_mut(&worker) {
                    known.retire_by.get_or_insert(deadline);
                    known.is_released = false;
                }
            }
        }
        self.assign();
        self.release_retiring(now);
    }

    /// Does what has fallen due at `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        let silent = self.workers.iter().filter(|(_, worker)| worker.silent_at() <= now);
        let silent: Vec<WorkerId> = silent.map(|(id, _)| *id).collect();
        for worker in silent {
            self.effects.push_back(Effect::Disconnect(worker, "it was silent for too long"));
            self.lose_worker(worker);
        }
        self.assign();
        self.release_retiring(now);
    }

    /// The next thing to do, if any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Self::handle_timeout`] next, and why.
    pub fn poll_timeout(&self) -> Option<(Time, &'static str)> {
        let silent = self.workers.values().map(|it| (it.silent_at(), "a worker is silent"));
        let retire = self.workers.values().filter_map(|it| {
            (!it.is_released).then_some(it.retire_by?).map(|at| (at, "a worker is not empty yet"))
        });
        silent.chain(retire).min()
    }

    /// What waits and runs, as far as it is known.
    pub fn demand(&self) -> Demand {
        let assigned = self.workers.values().map(|worker| worker.assigned.len() as u64).sum();
        let mut demand = Demand { assigned, ..Demand::default() };
        for entry in self.table.iter() {
            let tasks = u64::from(entry.group.space.tasks() - entry.done.ones());
            demand.tasks += tasks;
            demand.nanoseconds = demand
                .nanoseconds
                .saturating_add(tasks.saturating_mul(entry.expected_nanoseconds()));
        }
        demand.tasks = demand.tasks.saturating_sub(assigned);
        demand
    }

    /// The registered workers.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerId, WorkerView<'_>)> {
        self.workers.iter().map(|(id, worker)| {
            let view = WorkerView {
                name: &worker.joining.name,
                cores: worker.joining.cores,
                memory_bytes: worker.joining.memory_bytes,
                held_bytes: worker.held_bytes,
                assigned: worker.assigned.len() as u64,
            };
            (*id, view)
        })
    }

    /// Panics if the state contradicts itself. Walks everything: for simulations.
    pub fn check(&self) {
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
                State::Ready => assert!(self.ready.contains(&(live.order, *task)), "{task}"),
                State::Assigned(worker, _) => {
                    let known = self.workers.get(&worker);
                    assert!(known.is_some_and(|it| it.assigned.contains(task)), "{task}");
                }
                State::Planned => {}
            }
        }
    }

    /// Tasks of a job that are done, and all its tasks.
    pub fn progress(&self, job: JobId) -> (u64, u64) {
        self.table.iter().filter(|entry| entry.job == job).fold((0, 0), |(done, all), entry| {
            (done + u64::from(entry.done.ones()), all + u64::from(entry.group.space.tasks()))
        })
    }

    fn submit(&mut self, job: JobId, groups: Vec<Group>, targets: &[GroupId], is_kept: bool) {
        let kept = self.kept_inputs(&groups);
        if let Err(error) = check(&groups, &kept, targets) {
            self.effects.push_back(Effect::JobFailed(job, Failure::new(error.to_string())));
            return;
        }
        let sizes: Vec<(GroupId, u32)> = groups
            .iter()
            .filter(|group| targets.contains(&group.id))
            .map(|group| (group.id, group.space.tasks()))
            .collect();
        let all: Vec<Group> = groups.iter().chain(&kept).cloned().collect();
        let largest = groups.iter().map(|group| (group.needed_bytes(&all), group.id)).max();
        for group in groups {
            let is_target = targets.contains(&group.id);
            self.table.insert(job, group, (is_target, is_kept));
        }
        let undelivered = sizes.iter().map(|(_, tasks)| u64::from(*tasks)).sum();
        let largest = largest.unwrap_or((0, GroupId(0)));
        // Chunks that are kept have more uses from now on.
        for group in kept {
            self.count_uses(group.id);
        }
        let needs = self.table.needs_of_job(job);
        let frontier = Frontier::new(sizes);
        let state = Job { frontier, undelivered, largest, needs, is_released: false };
        self.jobs.insert(job, state);
        if undelivered == 0 {
            self.effects.push_back(Effect::JobDone(job));
            self.drop_job(job);
            return;
        }
        self.walking.insert(job);
        self.refuse_unless_fitting(job);
    }

    /// Fails a job with a task that needs more memory than any worker has, before it starts.
    fn refuse_unless_fitting(&mut self, job: JobId) {
        let room = self.workers.values().map(|it| it.joining.memory_bytes).max();
        let largest = self.jobs.get(&job).map(|it| it.largest);
        let (Some(room), Some((needed, id))) = (room, largest) else { return };
        if needed <= room {
            return;
        }
        let Group { name, cost: Cost { output_bytes, scratch_bytes, .. }, .. } =
            &self.table.entry(id).group;
        let inputs = needed.saturating_sub(*output_bytes).saturating_sub(*scratch_bytes);
        let error = format!(
            "{name}: one task needs {} of memory ({} for inputs, {} for its output, {} beside \
             them), and the largest worker has {} for tasks and chunks; use smaller chunks, or \
             workers with more memory",
            Bytes(needed),
            Bytes(inputs),
            Bytes(*output_bytes),
            Bytes(*scratch_bytes),
            Bytes(room),
        );
        self.fail_with_users(job, &Failure::new(error));
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
            FromWorker::NotHere(task) => self.lose_chunks(&[(task, from)]),
            FromWorker::Heartbeat => (),
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
        self.unassign(task);
        let entry = self.table.entry_mut(task.group);
        entry.done.set(task.index, true);
        entry.measured.add(nanoseconds);
        if let Some(worker) = self.workers.get_mut(&from) {
            worker.held.insert(task);
            worker.held_bytes += bytes;
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
                self.ready.insert((live.order, user));
            }
        }
    }

    fn fail_job(&mut self, task: TaskId, failure: &Failure) {
        self.fail_with_users(self.table.entry(task.group).job, failure);
    }

    fn drop_job(&mut self, job: JobId) {
        let Some(Job { needs, .. }) = self.jobs.remove(&job) else { return };
        let used = self.foreign_inputs(job);
        self.walking.remove(&job);
        let groups: BTreeSet<GroupId> = self.table.remove_job(job).into_iter().collect();
        for group in &groups {
            let all =
                TaskId { group: *group, index: 0 }..=TaskId { group: *group, index: u32::MAX };
            let tasks: Vec<TaskId> = self.tasks.range(all).map(|(task, _)| *task).collect();
            for task in tasks {
                if let Some(live) = self.tasks.remove(&task) {
                    self.ready.remove(&(live.order, task));
                }
            }
        }
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in ids {
            self.forget(id, &groups);
        }
        for group in used {
            self.count_uses(group);
        }
        for other in needs {
            self.drop_if_over(other);
        }
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
        worker.assigned.retain(|task| !groups.contains(&task.group));
        worker.held.retain(|task| !groups.contains(&task.group));
        self.send(id, ToWorker::Forget(known));
        self.recount(id);
    }

    /// Counts a worker's bytes again from its tasks.
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
        let reserved_bytes = worker.assigned.iter().map(|task| self.reservation(*task)).sum();
        let worker = self.workers.get_mut(&id).expect("it was there a line ago");
        worker.held_bytes = held_bytes;
        worker.reserved_bytes = reserved_bytes;
    }

    fn release_retiring(&mut self, now: Time) {
        for (id, worker) in &mut self.workers {
            let Some(deadline) = worker.retire_by.filter(|_| !worker.is_released) else { continue };
            if worker.assigned.is_empty() && worker.held.is_empty() {
                worker.is_released = true;
                self.effects.push_back(Effect::Released(*id));
            } else if deadline <= now {
                worker.retire_by = None;
                self.effects.push_back(Effect::Kept(*id));
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
            joining,
            assigned: BTreeSet::new(),
            held: BTreeSet::new(),
            held_bytes: 0,
            reserved_bytes: 0,
            defined: BTreeSet::new(),
            peers: BTreeSet::new(),
            seen_at: now,
            retire_by: None,
            is_released: false,
        }
    }

    fn silent_at(&self) -> Time {
        self.seen_at.after(SILENCE_MAX)
    }
}

/// Checks that the groups make a job: each after its inputs or taking what is kept, each relation
/// fitting.
fn check(groups: &[Group], kept: &[Group], targets: &[GroupId]) -> Result<(), GroupError> {
    for (nth, group) in groups.iter().enumerate() {
        for input in &group.inputs {
            let producer = groups[..nth].iter().chain(kept).find(|it| it.id == input.group);
            let producer = producer.ok_or(GroupError::UnknownInput(input.group))?;
            input.relation.check(&producer.space, &group.space)?;
        }
    }
    match targets.iter().find(|id| !groups.iter().any(|group| group.id == **id)) {
        Some(unknown) => Err(GroupError::UnknownInput(*unknown)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
