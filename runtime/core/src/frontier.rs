//! The order in which a job's tasks come up: depth first from its targets, one at a time.
//!
//! Depth first means that what is made is used soon, and that a tree of any size needs memory for
//! one path of it. The path is kept here, so that the next task costs only the steps to it.

use std::collections::VecDeque;

use crate::{GroupId, TaskId};

/// Where a job's walk stands.
#[derive(Debug)]
pub(crate) struct Frontier {
    targets: VecDeque<(GroupId, u32)>,
    next_target: u32,
    path: Vec<Step>,
}

/// A task on the path and what of its needs is still to be visited, last first.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) task: TaskId,
    pub(crate) to_visit: Vec<TaskId>,
}

impl Frontier {
    /// A walk to every task of the targets, each a group and its number of tasks.
    pub(crate) fn new(targets: impl IntoIterator<Item = (GroupId, u32)>) -> Self {
        Self { targets: targets.into_iter().collect(), next_target: 0, path: Vec::new() }
    }

    /// The task on which the walk stands.
    pub(crate) fn top(&mut self) -> Option<&mut Step> {
        self.path.last_mut()
    }

    /// Goes down to a task, whose needs are visited next in their own order.
    pub(crate) fn push(&mut self, task: TaskId, mut needs: Vec<TaskId>) {
        needs.reverse();
        self.path.push(Step { task, to_visit: needs });
    }

    /// Goes back up, once everything below has been visited.
    pub(crate) fn pop(&mut self) -> Option<TaskId> {
        self.path.pop().map(|step| step.task)
    }

    /// The next target, when the path is empty.
    pub(crate) fn next_target(&mut self) -> Option<TaskId> {
        let (group, tasks) = *self.targets.front()?;
        let task = TaskId { group, index: self.next_target };
        self.next_target += 1;
        if self.next_target == tasks {
            self.targets.pop_front();
            self.next_target = 0;
        }
        Some(task)
    }
}
