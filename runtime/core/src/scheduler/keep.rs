//! Jobs whose chunks stay with the workers, and other jobs that take them as inputs.

use std::collections::BTreeSet;

use crate::message::Failure;
use crate::scheduler::{Effect, Scheduler, State};
use crate::{Group, GroupId, JobId, TaskId};

impl Scheduler {
    /// Groups of other jobs that these take as inputs, if their chunks are kept.
    pub(super) fn kept_inputs(&self, groups: &[Group]) -> Vec<Group> {
        let inputs: BTreeSet<GroupId> =
            groups.iter().flat_map(|group| &group.inputs).map(|input| input.group).collect();
        let is_kept = |id: &GroupId| self.table.get(*id).filter(|entry| entry.is_kept);
        inputs.iter().filter_map(is_kept).map(|entry| entry.group.clone()).collect()
    }

    /// Groups of other jobs that a job takes as inputs.
    pub(super) fn foreign_inputs(&self, job: JobId) -> BTreeSet<GroupId> {
        let inputs =
            self.table.of_job(job).flat_map(|entry| &entry.group.inputs).map(|input| input.group);
        inputs.filter(|group| self.table.entry(*group).job != job).collect()
    }

    /// Counts the uses of a group's live chunks again, after its users changed. What nobody uses
    /// any more goes.
    pub(super) fn count_uses(&mut self, group: GroupId) {
        let all = TaskId { group, index: 0 }..=TaskId { group, index: u32::MAX };
        let tasks: Vec<TaskId> = self.tasks.range(all).map(|(task, _)| *task).collect();
        for task in tasks {
            let uses = self.table.uses_to_come(task);
            let live = self.live(task);
            live.uses = uses;
            if uses == 0 && matches!(live.state, State::InMemory { .. }) {
                self.free(task);
            }
        }
    }

    /// A chunk that is kept was made. The job is done when each was, once.
    pub(super) fn count_kept(&mut self, task: TaskId) {
        let entry = self.table.entry_mut(task.group);
        let id = entry.job;
        let Some(made) = entry.delivered.as_mut().filter(|it| !it.get(task.index)) else { return };
        made.set(task.index, true);
        let job = self.jobs.get_mut(&id).expect("a group in the table belongs to a live job");
        job.undelivered -= 1;
        if job.undelivered == 0 {
            self.effects.push_back(Effect::JobDone(id));
        }
    }

    /// A client no longer wants a job. What others need of it stays as long as they do.
    pub(super) fn release(&mut self, job: JobId) {
        let Some(known) = self.jobs.get_mut(&job) else { return };
        known.is_released = true;
        self.drop_if_over(job);
    }

    pub(super) fn drop_if_over(&mut self, job: JobId) {
        let is_needed = self.jobs.values().any(|it| it.needs.contains(&job));
        if self.jobs.get(&job).is_some_and(|it| it.is_released) && !is_needed {
            self.drop_job(job);
        }
    }

    /// Fails a job, and before it those that need what it keeps.
    pub(super) fn fail_with_users(&mut self, job: JobId, failure: &Failure) {
        let mut failed = vec![job];
        let mut nth = 0;
        while let Some(job) = failed.get(nth).copied() {
            let users = self.jobs.iter().filter(|(_, it)| it.needs.contains(&job));
            failed.extend(users.map(|(user, _)| *user).collect::<Vec<JobId>>());
            nth += 1;
        }
        for job in failed.into_iter().rev() {
            if self.jobs.contains_key(&job) {
                self.effects.push_back(Effect::JobFailed(job, failure.clone()));
                self.drop_job(job);
            }
        }
    }
}
