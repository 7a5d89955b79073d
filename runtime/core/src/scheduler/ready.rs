//! Tasks that may run now, by what tells where they may run, each class in the order of the walk.

use std::collections::{BTreeMap, BTreeSet};

use crate::{JobId, Resources, TaskId};

/// Tasks that the same workers can take.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Class {
    resources: Resources,
    /// How many of the sizes of workers that are there are too small.
    rung: usize,
}

/// A task that may run, with its place in the order of all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Entrant {
    pub(super) task: TaskId,
    pub(super) order: u64,
    pub(super) job: JobId,
}

#[derive(Debug, Default)]
pub(super) struct Ready {
    classes: BTreeMap<Class, BTreeSet<(u64, TaskId)>>,
    by_job: BTreeMap<JobId, usize>,
}

impl Class {
    /// The class of tasks that take these, where workers have these sizes, each once.
    pub(super) fn new(resources: &Resources, needed_bytes: u64, sizes: &[u64]) -> Self {
        let rung = sizes.iter().filter(|size| **size < needed_bytes).count();
        Self { resources: resources.clone(), rung }
    }
}

impl Ready {
    pub(super) fn insert(&mut self, class: Class, it: Entrant) {
        if self.classes.entry(class).or_default().insert((it.order, it.task)) {
            *self.by_job.entry(it.job).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, class: &Class, it: Entrant) {
        let Some(tasks) = self.classes.get_mut(class) else { return };
        if !tasks.remove(&(it.order, it.task)) {
            return;
        }
        if tasks.is_empty() {
            self.classes.remove(class);
        }
        if let Some(count) = self.by_job.get_mut(&it.job) {
            *count -= 1;
            if *count == 0 {
                self.by_job.remove(&it.job);
            }
        }
    }

    pub(super) fn contains(&self, class: &Class, it: Entrant) -> bool {
        self.classes.get(class).is_some_and(|tasks| tasks.contains(&(it.order, it.task)))
    }

    /// The first of all but of these classes.
    pub(super) fn first(&self, but: &BTreeSet<Class>) -> Option<(Class, TaskId)> {
        let firsts = self.classes.iter().filter(|(class, _)| !but.contains(class));
        let firsts = firsts.filter_map(|(class, tasks)| Some((tasks.first()?, class)));
        firsts.min().map(|((_, task), class)| (class.clone(), *task))
    }

    /// The first of each class.
    pub(super) fn firsts(&self) -> impl Iterator<Item = TaskId> {
        self.classes.values().filter_map(|tasks| tasks.first()).map(|(_, task)| *task)
    }

    pub(super) fn of_job(&self, job: JobId) -> usize {
        self.by_job.get(&job).copied().unwrap_or_default()
    }
}
