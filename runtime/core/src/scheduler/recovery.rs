//! What is done when workers and chunks are lost: what is still needed comes up again.

use crate::message::Failure;
use crate::scheduler::{LOSSES_MAX, MISSES_MAX, Scheduler, State, WAITS_MAX};
use crate::{TaskId, WorkerId};

impl Scheduler {
    pub(super) fn lose_worker(&mut self, lost: WorkerId) {
        let Some(worker) = self.workers.remove(&lost) else { return };
        self.measure();
        let chunks: Vec<(TaskId, WorkerId)> =
            worker.held.iter().map(|task| (*task, lost)).collect();
        self.lose_chunks(&chunks);
        let order = |task: &TaskId| self.tasks.get(task).map(|live| live.order);
        let mut assigned: Vec<TaskId> = worker.load.tasks().collect();
        assigned.sort_by_key(order);
        for task in assigned {
            // An earlier one may have failed the job that this one belonged to.
            let Some(live) = self.tasks.get_mut(&task) else { continue };
            if worker.load.running_since(task).is_some() {
                live.losses += 1;
            } else {
                live.waits += 1;
            }
            if live.losses > LOSSES_MAX || live.waits > WAITS_MAX {
                let name = &worker.joining.name;
                let error = format!(
                    "task {task} was lost with its worker {} times, last with {name}; \
                     it may need more memory than a worker has",
                    live.losses + live.waits
                );
                self.fail_job(task, &Failure::new(error));
            } else {
                self.settle(task);
            }
        }
    }

    /// A task's program failed or its process ended: it is tried again as often as it may.
    pub(super) fn fail(&mut self, task: TaskId, mut failure: Failure) {
        self.unassign(task);
        let retries = self.table.entry(task.group).group.retries;
        let live = self.live(task);
        let (times, times_max) = if failure.is_crash {
            live.losses += 1;
            (live.losses, LOSSES_MAX)
        } else {
            live.failures += 1;
            (live.failures, retries)
        };
        if times <= times_max {
            self.settle(task);
            return;
        }
        if times > 1 {
            failure.error = format!("{} (tried {times} times)", failure.error);
        }
        self.fail_job(task, &failure);
    }

    /// A worker could not fetch an input: it is made again, and the task tried again.
    pub(super) fn miss_input(
        &mut self,
        task: TaskId,
        (input, holder): (TaskId, WorkerId),
        from: WorkerId,
    ) {
        self.unassign(task);
        let live = self.live(task);
        live.misses += 1;
        if live.misses > MISSES_MAX {
            let name = |id| self.workers.get(&id).map_or("a lost worker", |it| &it.joining.name);
            let error = format!(
                "{} could not fetch from {} for the {MISSES_MAX}th time; the workers of a cluster \
                 must reach each other",
                name(from),
                name(holder)
            );
            self.fail_job(task, &Failure::new(error));
            return;
        }
        self.lose_chunks(&[(input, holder)]);
        self.settle(task);
    }

    /// These chunks are not where they were. Those that are still needed are made again.
    pub(super) fn lose_chunks(&mut self, lost: &[(TaskId, WorkerId)]) {
        let gone: Vec<TaskId> = lost
            .iter()
            .filter(|(task, from)| self.is_held_by(*task, *from))
            .map(|(task, _)| *task)
            .collect();
        for task in &gone {
            self.drop_chunk(*task);
        }
        for task in gone {
            self.visit(task);
        }
    }

    fn is_held_by(&self, task: TaskId, worker: WorkerId) -> bool {
        self.tasks.get(&task).is_some_and(
            |live| matches!(live.state, State::InMemory { holder, .. } if holder == worker),
        )
    }

    fn drop_chunk(&mut self, task: TaskId) {
        // Its users lost an input before the task is undone, which changes who uses what.
        for user in self.table.dependents(task) {
            let Some(live) = self.tasks.get_mut(&user) else { continue };
            match &mut live.state {
                State::Waiting { missing } => *missing += 1,
                State::Ready => {
                    live.state = State::Waiting { missing: 1 };
                    let order = live.order;
                    self.not_ready(user, order);
                }
                State::Planned | State::Assigned(..) | State::InMemory { .. } => (),
            }
        }
        self.free(task);
        self.undo(task);
    }

    /// A task that was done no longer is: its inputs have a use to come again.
    pub(super) fn undo(&mut self, task: TaskId) {
        if !self.table.is_done(task) {
            return;
        }
        self.table.entry_mut(task.group).done.set(task.index, false);
        for input in self.table.dependencies(task) {
            if let Some(live) = self.tasks.get_mut(&input) {
                live.uses += 1;
            }
        }
    }
}
