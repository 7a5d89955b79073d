//! Tasks that wait at a worker go to another one that could run them.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::message::ToWorker;
use crate::scheduler::fit::Need;
use crate::scheduler::{Scheduler, State, Worker};
use crate::{GroupId, TaskId, WorkerId};

/// What an input takes to reach another worker, in nanoseconds a byte: 100 MB a second, which any
/// network of a cluster has.
const NANOSECONDS_PER_BYTE: u64 = 10;

/// Most tasks that are looked at after an event, of one worker.
const LOOKS_AT_ONE_MAX: usize = 4;

/// Most tasks that are looked at after an event.
const LOOKS_MAX: usize = 64;

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
        let mut wanted = Vec::new();
        let mut blocked = BTreeSet::<GroupId>::new();
        let mut last = self.looked_at;
        for (at, task) in self.movable() {
            last = at;
            if blocked.contains(&task.group) || !self.is_light(task) {
                continue;
            }
            let Some(nth) = idle.iter().position(|it| self.can_begin(task, it)) else {
                blocked.insert(task.group);
                continue;
            };
            let target = &mut idle[nth];
            wanted.push((at, task, target.worker));
            target.cores -= 1;
            target.promised_bytes +=
                self.cost_at(task, target.worker, &self.table.dependencies(task));
            if target.cores == 0 {
                idle.swap_remove(nth);
            }
            if idle.is_empty() {
                break;
            }
        }
        self.looked_at = last;
        for (at, task, target) in wanted {
            self.ask_back(at, task, Some(target));
        }
    }

    /// Asks back what waits behind tasks that all take longer than was expected. It goes to whoever
    /// has room first.
    pub(super) fn look_at(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        let is_late =
            |(task, since): (TaskId, _)| self.lateness(task.group, since, self.now).is_some();
        let is_stuck = worker.load.idle_cores() == 0 && worker.load.running().all(is_late);
        let waiting = worker.load.waiting().filter(|task| is_stuck && self.is_light(*task));
        for task in waiting.collect::<Vec<TaskId>>() {
            self.ask_back(id, task, None);
        }
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.is_stuck = is_stuck;
        }
    }

    /// A worker gave a task back that it was asked for.
    pub(super) fn take_retracted(&mut self, task: TaskId, from: WorkerId) {
        let asked = self.workers.get(&from).and_then(|it| it.load.asked_back().get(&task));
        let Some(target) = asked.copied() else { return };
        self.unassign(task);
        let idle = if target.is_some() { self.idle() } else { Vec::new() };
        if self.settle(task)
            && let Some(it) = idle.iter().find(|it| self.can_begin(task, it))
        {
            self.not_ready(task, self.tasks[&task].order);
            self.give(task, it.worker);
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
    fn movable(&self) -> impl Iterator<Item = (WorkerId, TaskId)> {
        let after = (Bound::Excluded(self.looked_at), Bound::Unbounded);
        let workers = self.workers.range(after).chain(self.workers.range(..=self.looked_at));
        let of_each = workers.flat_map(|(id, it)| {
            let movable = it.load.movable(self.now).take(LOOKS_AT_ONE_MAX);
            movable.map(|task| (*id, task))
        });
        of_each.take(LOOKS_MAX)
    }

    /// Where a core has nothing to do, no task that is ready waits for room, and no other was asked
    /// back for it.
    fn idle(&self) -> Vec<Idle> {
        let waiting: Vec<Need<'_>> =
            self.ready.firsts().map(|task| self.table.entry(task.group).need()).collect();
        let is_waited_for = |worker: &Worker| {
            waiting.iter().any(|need| worker.suits(*need) && worker.has_free(need.resources))
        };
        let idle = self
            .workers
            .iter()
            .filter(|(_, it)| it.is_open() && it.load.idle_cores() > 0 && !is_waited_for(it));
        let idle = idle.map(|(id, it)| Idle {
            worker: *id,
            cores: it.load.idle_cores(),
            promised_bytes: 0,
        });
        let mut idle: Vec<Idle> = idle.collect();
        if idle.is_empty() {
            return idle;
        }
        let asked = self.workers.values().flat_map(|it| it.load.asked_back());
        for (task, target) in asked {
            let Some(it) = idle.iter_mut().find(|it| Some(it.worker) == *target) else { continue };
            it.cores = it.cores.saturating_sub(1);
            it.promised_bytes += self.cost_at(*task, it.worker, &self.table.dependencies(*task));
        }
        idle.retain(|it| it.cores > 0);
        idle
    }

    fn can_begin(&self, task: TaskId, at: &Idle) -> bool {
        let (worker, entry) = (&self.workers[&at.worker], self.table.entry(task.group));
        let cost = self.cost_at(task, at.worker, &self.table.dependencies(task));
        let expected = self.table.expected_nanoseconds(task.group);
        worker.suits(entry.need())
            && worker.has_free(&entry.group.resources)
            && worker.has_room(cost.saturating_add(at.promised_bytes), expected)
    }

    /// Whether its inputs reach another worker in less time than it takes.
    fn is_light(&self, task: TaskId) -> bool {
        let inputs = self.table.dependencies(task).into_iter();
        let bytes = inputs.filter_map(|input| self.chunk_bytes(input)).fold(0, u64::saturating_add);
        let expected = self.table.expected_nanoseconds(task.group);
        bytes.saturating_mul(NANOSECONDS_PER_BYTE) <= expected
    }
}
