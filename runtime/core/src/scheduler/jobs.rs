//! Jobs as they come and go: what is checked, counted and refused before a task of theirs runs.

use std::collections::BTreeSet;

use crate::frontier::Frontier;
use crate::message::Failure;
use crate::scheduler::{Effect, Job, Scheduler};
use crate::{Group, GroupError, GroupId, JobId, TaskId, WorkerId};

impl Scheduler {
    /// Tasks of a job that are done, and all its tasks.
    pub fn progress(&self, job: JobId) -> (u64, u64) {
        self.table.of_job(job).fold((0, 0), |(done, all), entry| {
            (done + u64::from(entry.done.ones()), all + u64::from(entry.group.space.tasks()))
        })
    }

    pub(super) fn submit(
        &mut self,
        job: JobId,
        groups: Vec<Group>,
        targets: &[GroupId],
        is_kept: bool,
    ) {
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
        for group in groups {
            let needed = group.needed_bytes(&all);
            let is_target = targets.contains(&group.id);
            self.table.insert(job, (group, needed), (is_target, is_kept));
        }
        let undelivered = sizes.iter().map(|(_, tasks)| u64::from(*tasks)).sum();
        // Chunks that are kept have more uses from now on.
        for group in kept {
            self.count_uses(group.id);
        }
        let needs = self.table.needs_of_job(job);
        let frontier = Frontier::new(sizes);
        let state = Job { frontier, undelivered, needs, is_released: false };
        self.jobs.insert(job, state);
        if undelivered == 0 {
            self.effects.push_back(Effect::JobDone(job));
            self.drop_job(job);
            return;
        }
        self.walking.insert(job);
        self.refuse_unless_fitting(job);
    }

    pub(super) fn drop_job(&mut self, job: JobId) {
        let Some(Job { needs, .. }) = self.jobs.remove(&job) else { return };
        let used = self.foreign_inputs(job);
        self.walking.remove(&job);
        let ids: Vec<GroupId> = self.table.of_job(job).map(|entry| entry.group.id).collect();
        for group in ids {
            let all = TaskId { group, index: 0 }..=TaskId { group, index: u32::MAX };
            let tasks: Vec<TaskId> = self.tasks.range(all).map(|(task, _)| *task).collect();
            for task in tasks {
                if let Some(live) = self.tasks.remove(&task) {
                    self.not_ready(task, live.order);
                }
            }
        }
        let groups: BTreeSet<GroupId> = self.table.remove_job(job).into_iter().collect();
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
