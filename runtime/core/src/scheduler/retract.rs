//! Tasks that wait at a worker go to another one that could run them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use crate::message::ToWorker;
use crate::scheduler::fit::Need;
use crate::scheduler::ready::Class;
use crate::scheduler::{Scheduler, State, Worker};
use crate::{TaskId, WorkerId};

/// What an input takes to reach another worker, in nanoseconds a byte: 100 MB a second, which any
/// network of a cluster has.
const NANOSECONDS_PER_BYTE: u64 = 10;

/// Most tasks of one worker that are looked at after an event.
const OF_ONE_MAX: usize = 32;

/// Most tasks that are looked at after an event.
const TASKS_MAX: usize = 128;

/// Most times that a task is held against a worker after an event.
const LOOKS_MAX: usize = 2048;

/// How often it is doubted that what should run does.
const DOUBT: Duration = Duration::from_secs(1);

/// A worker with cores that nobody has use for, and what those will take who were asked back for it.
#[derive(Debug)]
struct Idle {
    worker: WorkerId,
    cores: u64,
    promised_bytes: u64,
}

impl Scheduler {
    /// Asks back what waits, the last ones first, for cores elsewhere that nobody has use for.
    pub(super) fn retract(&mut self) {
        let mut idle = self.idle();
        if idle.is_empty() {
            return;
        }
        let (mut hopeless, mut looks) = (BTreeSet::<Class>::new(), 0);
        for (at, task) in self.movable() {
            self.looked_at = at;
            let (class, _) = self.entrant(task, 0);
            if hopeless.contains(&class) || !self.is_light(task, at) {
                continue;
            }
            looks += idle.len();
            if let Some(target) = self.target(task, at, &idle) {
                idle = self.promise(task, target, idle);
                self.ask_back(at, task, Some(target));
            } else if !idle.iter().any(|it| self.suits(task, it.worker)) {
                hopeless.insert(class);
            }
            if idle.is_empty() || looks > LOOKS_MAX {
                return;
            }
        }
    }

    /// Asks back what waits behind tasks that all take longer than was expected. It goes to whoever
    /// has room first.
    pub(super) fn look_at(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        let late = self.late_for(worker);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.late = late;
        }
        if late.is_none() {
            return;
        }
        let waiting = self.workers[&id].load.waiting().filter(|task| self.is_light(*task, id));
        for task in waiting.collect::<Vec<TaskId>>() {
            self.ask_back(id, task, None);
        }
    }

    /// A worker gave a task back that it was asked for.
    pub(super) fn take_retracted(&mut self, task: TaskId, from: WorkerId) {
        let asked = self.workers.get(&from).and_then(|it| it.load.asked_back().get(&task));
        let Some(wanted) = asked.copied() else { return };
        self.unassign(task);
        let mut idle = if wanted.is_some() { self.idle() } else { Vec::new() };
        idle.sort_by_key(|it| Some(it.worker) != wanted);
        if self.settle(task)
            && let Some(worker) = self.target(task, from, &idle)
        {
            self.not_ready(task, self.tasks[&task].order);
            self.give(task, worker);
        }
    }

    fn ask_back(&mut self, at: WorkerId, task: TaskId, target: Option<WorkerId>) {
        let State::Assigned(_, attempt) = self.live(task).state else { return };
        if let Some(worker) = self.workers.get_mut(&at) {
            worker.load.ask_back(task, target);
        }
        self.send(at, ToWorker::Retract(task, attempt));
    }

    /// What may be asked back, from the worker on that comes after the last one.
    fn movable(&mut self) -> Vec<(WorkerId, TaskId)> {
        let (now, is_doubting) = (self.now, self.now >= self.doubts_at);
        if is_doubting {
            self.doubts_at = now.after(DOUBT);
        }
        let after = (Bound::Excluded(self.looked_at), Bound::Unbounded);
        let workers = self.workers.range(after).chain(self.workers.range(..=self.looked_at));
        let of_each = workers.flat_map(|(id, it)| {
            let uncertain = is_doubting.then(|| it.load.uncertain(now)).into_iter().flatten();
            let movable = it.load.waiting().chain(uncertain).take(OF_ONE_MAX);
            movable.map(|task| (*id, task))
        });
        of_each.take(TASKS_MAX).collect()
    }

    /// Where a core has nothing to do, no task that is ready waits for room, and no other was asked
    /// back for it.
    fn idle(&self) -> Vec<Idle> {
        let waiting: Vec<Need<'_>> =
            self.ready.firsts().map(|task| self.table.entry(task.group).need()).collect();
        let is_waited_for = |worker: &Worker| waiting.iter().any(|need| worker.can_take(*need));
        let is_idle = |it: &Worker| {
            let has_core = it.load.idle_cores() > 0 && it.load.waiting_count() == 0;
            it.is_open() && has_core && !is_waited_for(it)
        };
        let idle = self.workers.iter().filter(|(_, it)| is_idle(it));
        let idle: Vec<(WorkerId, u64)> = idle.map(|(id, it)| (*id, it.load.idle_cores())).collect();
        if idle.is_empty() {
            return Vec::new();
        }
        let mut promised = BTreeMap::<WorkerId, (u64, u64)>::new();
        for (task, target) in self.workers.values().flat_map(|it| it.load.asked_back()) {
            let Some(target) = target.filter(|it| self.workers.contains_key(it)) else { continue };
            let (cores, bytes) = promised.entry(target).or_default();
            *cores += 1;
            *bytes = bytes.saturating_add(self.cost_of(*task, target));
        }
        let left = idle.into_iter().map(|(worker, cores)| {
            let (taken, promised_bytes) = promised.get(&worker).copied().unwrap_or_default();
            Idle { worker, cores: cores.saturating_sub(taken), promised_bytes }
        });
        left.filter(|it| it.cores > 0).collect()
    }

    /// A core is for this task, once it is given back.
    fn promise(&self, task: TaskId, target: WorkerId, mut idle: Vec<Idle>) -> Vec<Idle> {
        for it in idle.iter_mut().filter(|it| it.worker == target) {
            it.cores -= 1;
            it.promised_bytes = it.promised_bytes.saturating_add(self.cost_of(task, target));
        }
        idle.retain(|it| it.cores > 0);
        idle
    }

    /// The first of these workers, but for the one where it is, that can begin a task at once.
    fn target(&self, task: TaskId, from: WorkerId, idle: &[Idle]) -> Option<WorkerId> {
        let expected = self.table.expected_nanoseconds(task.group);
        let has_room = |it: &Idle| {
            let bytes = self.cost_of(task, it.worker).saturating_add(it.promised_bytes);
            self.workers[&it.worker].has_room(bytes, expected)
        };
        let others = idle.iter().filter(|it| it.worker != from);
        let mut suitable = others.filter(|it| self.suits(task, it.worker));
        suitable.find(|it| has_room(it)).map(|it| it.worker)
    }

    fn suits(&self, task: TaskId, worker: WorkerId) -> bool {
        self.workers[&worker].can_take(self.table.entry(task.group).need())
    }

    fn cost_of(&self, task: TaskId, at: WorkerId) -> u64 {
        self.cost_at(task, at, &self.table.dependencies(task))
    }

    /// How long all that a worker runs takes at least, if each of it takes longer than was expected
    /// and no core is free.
    fn late_for(&self, worker: &Worker) -> Option<Duration> {
        let is_late =
            |(task, since): (TaskId, _)| self.lateness(task.group, since, self.now).is_some();
        if worker.load.idle_cores() > 0 || !worker.load.running().all(is_late) {
            return None;
        }
        let lengths = worker.load.running().map(|(_, since)| self.now.0.saturating_sub(since.0));
        lengths.min()
    }

    /// Whether its inputs reach another worker in less time than it takes, or than it would wait for.
    fn is_light(&self, task: TaskId, at: WorkerId) -> bool {
        let inputs = self.table.dependencies(task).into_iter();
        let bytes = inputs.filter_map(|input| self.chunk_bytes(input)).fold(0, u64::saturating_add);
        let late = self.workers[&at].late.unwrap_or_default();
        let late = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
        let worth = self.table.expected_nanoseconds(task.group).max(late);
        bytes.saturating_mul(NANOSECONDS_PER_BYTE) <= worth
    }
}
