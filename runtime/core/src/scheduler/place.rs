//! Which task comes next, and which worker gets it.

use std::collections::{BTreeMap, BTreeSet};

use crate::message::{Assignment, Attempt, ToWorker};
use crate::scheduler::fit::Need;
use crate::scheduler::ready::{Class, Entrant, Ready};
use crate::scheduler::{Effect, Retiring, Scheduler, State, Task, Worker};
use crate::{Cost, Group, JobId, TaskId, WorkerId};

/// Work that a worker has in hand beyond what runs, per core, in nanoseconds: long enough to hide
/// a round trip, short enough to leave work for others.
const AHEAD_NANOSECONDS: u64 = 20_000_000;

/// Tasks of a job that may run and wait for a worker that suits them, before its walk waits too.
pub(super) const READY_MAX: usize = 256;

/// Most tasks per core that a worker has in hand, however short they are.
const AHEAD_MAX: u64 = 64;

impl Scheduler {
    /// Gives out tasks, to workers that were to go as well where nobody else can take them.
    pub(super) fn assign(&mut self) {
        self.give_out();
        while self.take_back() {
            self.give_out();
        }
    }

    /// Gives out tasks while a worker has room for the next one.
    fn give_out(&mut self) {
        let (mut closed, mut blocked) = (BTreeSet::new(), BTreeSet::new());
        while self.workers.iter().any(|(id, it)| it.is_open() && !closed.contains(id)) {
            let Some((class, task)) = self.next_ready(&blocked) else { return };
            if let Some(worker) = self.place(task, &closed) {
                self.not_ready(task, self.tasks[&task].order);
                self.give(task, worker);
            } else {
                // No later task takes the room that this one waits for.
                let need = self.table.entry(task.group).need();
                let full = self.workers.iter().filter(|(_, it)| it.can_take(need));
                closed.extend(full.map(|(id, _)| *id));
                blocked.insert(class);
            }
        }
    }

    /// Workers came or went: which sizes there are, and so which classes.
    pub(super) fn measure(&mut self) {
        let sizes: BTreeSet<u64> =
            self.workers.values().map(|it| it.joining.memory_bytes).collect();
        let sizes: Vec<u64> = sizes.into_iter().collect();
        if sizes == self.sizes {
            return;
        }
        self.sizes = sizes;
        self.ready = Ready::default();
        let ready = self.tasks.iter().filter(|(_, live)| live.state == State::Ready);
        let ready: Vec<(TaskId, u64)> = ready.map(|(task, live)| (*task, live.order)).collect();
        for (task, order) in ready {
            self.make_ready(task, order);
        }
    }

    pub(super) fn make_ready(&mut self, task: TaskId, order: u64) {
        let (class, entrant) = self.entrant(task, order);
        self.ready.insert(class, entrant);
    }

    pub(super) fn not_ready(&mut self, task: TaskId, order: u64) {
        let (class, entrant) = self.entrant(task, order);
        self.ready.remove(&class, entrant);
    }

    pub(super) fn is_ready(&self, task: TaskId, order: u64) -> bool {
        let (class, entrant) = self.entrant(task, order);
        self.ready.contains(&class, entrant)
    }

    pub(super) fn entrant(&self, task: TaskId, order: u64) -> (Class, Entrant) {
        let entry = self.table.entry(task.group);
        let class = Class::new(&entry.group.resources, entry.needed_bytes, &self.sizes);
        (class, Entrant { task, order, job: entry.job })
    }

    /// A worker that is to go works on when a task may run that nobody who stays can take, or when
    /// nobody stays at all: what it holds may be what the work needs. Whether one does.
    fn take_back(&mut self) -> bool {
        let stays = |worker: &Worker| worker.retiring == Retiring::No;
        if self.workers.values().all(stays) {
            return false;
        }
        let is_left = |need: &Need<'_>| {
            !self.workers.values().any(|worker| stays(worker) && worker.suits(*need))
        };
        let ready = self.ready.firsts().map(|task| self.table.entry(task.group).need());
        let left: Vec<Need<'_>> = ready.filter(is_left).collect();
        let is_walk_left = !self.walking.is_empty() && !self.workers.values().any(stays);
        let is_wanted = |worker: &Worker| {
            let holds = !worker.load.is_empty() || !worker.held.is_empty();
            is_walk_left && holds || left.iter().any(|need| worker.suits(*need))
        };
        let is_emptying = |worker: &Worker| matches!(worker.retiring, Retiring::Emptying { .. });
        let back = self.workers.iter().filter(|(_, it)| is_emptying(it) && is_wanted(it));
        let back: Vec<WorkerId> = back.map(|(id, _)| *id).collect();
        for id in &back {
            self.workers.get_mut(id).expect("it was there a line ago").retiring = Retiring::No;
            self.effects.push_back(Effect::Kept(*id));
        }
        !back.is_empty()
    }

    /// The first task that may run, but of these classes. Walks on for it, not without bound: a
    /// job of which many may run waits for its workers.
    fn next_ready(&mut self, blocked: &BTreeSet<Class>) -> Option<(Class, TaskId)> {
        loop {
            let first = self.ready.first(blocked);
            if first.is_some() {
                return first;
            }
            let job = self.walking.iter().find(|job| self.ready.of_job(**job) < READY_MAX);
            let job = *job?;
            if !self.advance(job) {
                self.walking.remove(&job);
            }
        }
    }

    /// Walks on through a job until one task is ready. False when the walk is over.
    fn advance(&mut self, job: JobId) -> bool {
        loop {
            let frontier = &mut self.jobs.get_mut(&job).expect("a live job").frontier;
            let next = match frontier.top() {
                Some(step) => step.to_visit.pop(),
                None => match frontier.next_target() {
                    Some(target) => {
                        if self.table.is_wanted_by_client(target) {
                            self.visit(target);
                        }
                        continue;
                    }
                    None => return false,
                },
            };
            if let Some(input) = next {
                self.visit(input);
                continue;
            }
            let task = frontier.pop().expect("a step was on top");
            if self.settle(task) {
                return true;
            }
        }
    }

    /// Brings a task up, unless it is up already.
    pub(super) fn visit(&mut self, task: TaskId) {
        if self.tasks.contains_key(&task) {
            return;
        }
        self.undo(task);
        let order = self.next_order;
        self.next_order += 1;
        let uses = self.table.uses_to_come(task);
        self.tasks.insert(
            task,
            Task {
                state: State::Planned,
                order,
                uses,
                losses: 0,
                waits: 0,
                failures: 0,
                misses: 0,
            },
        );
        let needs = self.table.dependencies(task);
        let job = self.table.entry(task.group).job;
        self.jobs.get_mut(&job).expect("a live job").frontier.push(task, needs);
        self.walking.insert(job);
    }

    /// Makes a task wait for the inputs that are not in memory. True when there are none.
    pub(super) fn settle(&mut self, task: TaskId) -> bool {
        let needs = self.table.dependencies(task);
        let is_missing = |input: &TaskId| {
            !matches!(self.tasks.get(input).map(|it| &it.state), Some(State::InMemory { .. }))
        };
        let missing: Vec<TaskId> = needs.into_iter().filter(is_missing).collect();
        let live = self.live(task);
        if missing.is_empty() {
            live.state = State::Ready;
            let order = live.order;
            self.make_ready(task, order);
            return true;
        }
        let count = u32::try_from(missing.len()).expect("a task has fewer than 2³² inputs");
        live.state = State::Waiting { missing: count };
        // An input may have been lost and forgotten since it was visited.
        for input in missing {
            self.visit(input);
        }
        false
    }

    /// The open worker that holds most of the inputs, else the one with least in hand.
    fn place(&self, task: TaskId, closed: &BTreeSet<WorkerId>) -> Option<WorkerId> {
        let inputs = self.table.dependencies(task);
        let entry = self.table.entry(task.group);
        let expected = self.table.expected_nanoseconds(task.group);
        let local_bytes = |id: WorkerId| -> u64 {
            let bytes = |input: &TaskId| match self.tasks.get(input).map(|it| &it.state) {
                Some(State::InMemory { holder, bytes, .. }) if *holder == id => *bytes,
                _ => 0,
            };
            inputs.iter().map(bytes).sum()
        };
        self.workers
            .iter()
            .filter(|(id, it)| !closed.contains(id) && it.can_take(entry.need()))
            .filter(|(id, it)| it.has_room(self.cost_at(task, **id, &inputs), expected))
            .max_by_key(|(id, it)| {
                let in_hand = it.load.len() * 1024 / u64::from(it.joining.cores.max(1));
                (local_bytes(**id), std::cmp::Reverse((in_hand, **id)))
            })
            .map(|(id, _)| *id)
    }

    pub(super) fn give(&mut self, task: TaskId, to: WorkerId) {
        let needs = self.table.dependencies(task);
        let inputs: Vec<(TaskId, WorkerId)> =
            needs.into_iter().map(|input| (input, self.holder(input))).collect();
        self.introduce(task, &inputs, to);
        let entry = self.table.entry_mut(task.group);
        entry.attempt = Attempt(entry.attempt.0 + 1);
        let attempt = entry.attempt;
        self.live(task).state = State::Assigned(to, attempt);
        let Group { cost, resources, .. } = &self.table.entry(task.group).group;
        let taking = (*cost, resources.clone());
        let away = inputs.iter().filter(|(_, holder)| *holder != to);
        let away = away.map(|(input, _)| (*input, self.chunk_bytes(*input).unwrap_or_default()));
        let away: BTreeMap<TaskId, u64> = away.collect();
        let worker = self.workers.get_mut(&to).expect("place chose one of ours");
        worker.load.beside(worker.held_in_memory());
        worker.load.give(task, taking, &away, self.now);
        self.send(to, ToWorker::Assign(Assignment { task, attempt, inputs }));
    }

    /// Tells a worker of the group and the peers that an assignment will name.
    fn introduce(&mut self, task: TaskId, inputs: &[(TaskId, WorkerId)], to: WorkerId) {
        let worker = self.workers.get_mut(&to).expect("place chose one of ours");
        let strangers: Vec<WorkerId> = inputs
            .iter()
            .map(|(_, holder)| *holder)
            .filter(|holder| *holder != to && worker.peers.insert(*holder))
            .collect();
        if worker.defined.insert(task.group) {
            let group = self.table.entry(task.group).group.clone();
            self.send(to, ToWorker::Define(vec![group]));
        }
        for stranger in strangers {
            let address = self.workers[&stranger].joining.address.clone();
            self.send(to, ToWorker::Peer { worker: stranger, address });
        }
    }

    fn holder(&self, input: TaskId) -> WorkerId {
        match self.tasks.get(&input).map(|it| &it.state) {
            Some(State::InMemory { holder, .. }) => *holder,
            other => unreachable!("a ready task's input {input} is in memory, not {other:?}"),
        }
    }

    /// Bytes that a task takes on this worker beyond what is there and on its way there: less, if it
    /// is to wait, by what it needs only while it runs.
    pub(super) fn cost_at(&self, task: TaskId, at: WorkerId, inputs: &[TaskId]) -> u64 {
        let load = &self.workers[&at].load;
        let bytes = |input: &TaskId| match self.tasks.get(input).map(|it| &it.state) {
            Some(State::InMemory { holder, bytes, .. })
                if *holder != at && !load.has_input(*input) =>
            {
                *bytes
            }
            _ => 0,
        };
        let Cost { output_bytes, scratch_bytes, .. } = self.table.entry(task.group).group.cost;
        let scratch_bytes = if load.idle_cores() > 0 { scratch_bytes } else { 0 };
        let own = output_bytes.saturating_add(scratch_bytes);
        inputs.iter().map(bytes).fold(own, u64::saturating_add)
    }

    /// Takes a task off its worker. The caller gives it a new state.
    pub(super) fn unassign(&mut self, task: TaskId) {
        let State::Assigned(from, _) = self.live(task).state else { return };
        if let Some(worker) = self.workers.get_mut(&from) {
            worker.load.beside(worker.held_in_memory());
            worker.load.take(task, self.now);
        }
    }
}

impl Worker {
    /// Bytes of chunks that it holds and that are not on disk.
    fn held_in_memory(&self) -> u64 {
        self.held_bytes.saturating_sub(self.disk_bytes)
    }

    pub(super) fn is_open(&self) -> bool {
        self.retiring == Retiring::No
            && self.load.len() < u64::from(self.joining.cores) * (1 + AHEAD_MAX)
    }

    pub(super) fn has_room(&self, bytes: u64, expected_nanoseconds: u64) -> bool {
        let ahead = (AHEAD_NANOSECONDS / expected_nanoseconds.max(1)).clamp(1, AHEAD_MAX);
        let ahead = if self.late.is_some() { 0 } else { ahead };
        let tasks_max = u64::from(self.joining.cores) * (1 + ahead);
        let taken = self.held_in_memory().saturating_add(self.load.bytes());
        let fits = taken.saturating_add(bytes) <= self.joining.memory_bytes;
        self.is_open() && self.load.len() < tasks_max && (fits || self.load.is_empty())
    }
}
