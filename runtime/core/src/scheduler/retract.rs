//! Tasks that wait at a worker go to another one that has nothing to do.

use std::collections::BTreeSet;

use crate::message::ToWorker;
use crate::scheduler::{Scheduler, State};
use crate::{TaskId, WorkerId};

/// What an input takes to reach another worker, in nanoseconds a byte: 100 MB a second, which any
/// network of a cluster has.
const NANOSECONDS_PER_BYTE: u64 = 10;

/// Most waiting tasks that are looked at after an event: of one worker, and of all.
const LOOKS_MAX: (usize, usize) = (4, 64);

impl Scheduler {
    /// Asks back what waits, the last ones first, as much as there are cores with nothing to do.
    pub(super) fn retract(&mut self) {
        let cores: u64 = self.idle().map(|id| self.workers[&id].load.idle_cores()).sum();
        let asked: u64 = self.workers.values().map(|it| it.load.asked_back()).sum();
        let mut wanted = Vec::new();
        let mut blocked = BTreeSet::new();
        let waiting = self.workers.iter().flat_map(|(id, it)| {
            let last = it.load.waiting().take(LOOKS_MAX.0);
            last.map(|task| (*id, task))
        });
        for (at, task) in waiting.take(LOOKS_MAX.1) {
            if wanted.len() as u64 + asked >= cores {
                break;
            }
            let (class, _) = self.entrant(task, 0);
            if blocked.contains(&class) || !self.is_light(task) {
                continue;
            }
            if self.idle_for(task).is_some() {
                wanted.push((at, task));
            } else {
                blocked.insert(class);
            }
        }
        for (at, task) in wanted {
            self.ask_back(at, task);
        }
    }

    fn ask_back(&mut self, at: WorkerId, task: TaskId) {
        let State::Assigned(_, attempt) = self.live(task).state else { return };
        if let Some(worker) = self.workers.get_mut(&at) {
            worker.load.ask_back(task);
        }
        self.send(at, ToWorker::Retract(task, attempt));
    }

    /// A worker gave a task back. It goes to one that has nothing to do, if there still is one.
    pub(super) fn take_retracted(&mut self, task: TaskId) {
        self.unassign(task);
        if self.settle(task)
            && let Some(worker) = self.idle_for(task)
        {
            self.not_ready(task, self.tasks[&task].order);
            self.give(task, worker);
        }
    }

    /// Workers with a core that has nothing to do.
    fn idle(&self) -> impl Iterator<Item = WorkerId> {
        let idle = self.workers.iter().filter(|(_, it)| it.is_open() && it.load.idle_cores() > 0);
        idle.map(|(id, _)| *id)
    }

    fn idle_for(&self, task: TaskId) -> Option<WorkerId> {
        let inputs = self.table.dependencies(task);
        let entry = self.table.entry(task.group);
        let expected = self.table.expected_nanoseconds(task.group);
        let mut idle = self.idle();
        idle.find(|id| {
            let worker = &self.workers[id];
            worker.suits(entry.need())
                && worker.has_free(&entry.group.resources)
                && worker.has_room(self.cost_at(task, *id, &inputs), expected)
        })
    }

    /// Whether its inputs reach another worker in less time than it takes.
    fn is_light(&self, task: TaskId) -> bool {
        let inputs = self.table.dependencies(task).into_iter();
        let bytes = inputs.filter_map(|input| self.chunk_bytes(input)).fold(0, u64::saturating_add);
        let expected = self.table.expected_nanoseconds(task.group);
        bytes.saturating_mul(NANOSECONDS_PER_BYTE) <= expected
    }
}
