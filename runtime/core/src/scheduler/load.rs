//! What a worker was given: its tasks, and the bytes that they and their inputs will take there.

use std::collections::{BTreeMap, BTreeSet};

use crate::{GroupId, Resources, TaskId};

/// Tasks of one worker. An input that others hold comes once, for however many tasks need it.
#[derive(Debug, Default)]
pub(super) struct Load {
    tasks: BTreeMap<TaskId, Given>,
    inputs: BTreeMap<TaskId, Coming>,
    bytes: u64,
    resources: Resources,
}

#[derive(Debug)]
struct Given {
    bytes: u64,
    resources: Resources,
    /// Inputs that others hold.
    away: Vec<TaskId>,
}

#[derive(Debug)]
struct Coming {
    bytes: u64,
    users: u32,
}

impl Load {
    /// Adds a task that takes so many bytes beside its inputs and these resources, and its inputs
    /// that others hold, each once, with their bytes.
    pub(super) fn give(
        &mut self,
        task: TaskId,
        (bytes, resources): (u64, Resources),
        away: &BTreeMap<TaskId, u64>,
    ) {
        for (input, bytes) in away {
            let coming = self.inputs.entry(*input).or_insert_with(|| {
                self.bytes = self.bytes.saturating_add(*bytes);
                Coming { bytes: *bytes, users: 0 }
            });
            coming.users += 1;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        for (kind, amount) in &resources {
            *self.resources.entry(kind.clone()).or_default() += amount;
        }
        let away = away.keys().copied().collect();
        self.tasks.insert(task, Given { bytes, resources, away });
    }

    /// Removes a task.
    pub(super) fn take(&mut self, task: TaskId) {
        let Some(given) = self.tasks.remove(&task) else { return };
        self.bytes -= given.bytes;
        for (kind, amount) in &given.resources {
            *self.resources.entry(kind.clone()).or_default() -= amount;
        }
        for input in given.away {
            let coming = self.inputs.get_mut(&input).expect("it was counted when it was given");
            coming.users -= 1;
            if coming.users == 0 {
                self.bytes -= coming.bytes;
                self.inputs.remove(&input);
            }
        }
    }

    /// Removes the tasks of these groups.
    pub(super) fn take_groups(&mut self, groups: &BTreeSet<GroupId>) {
        let over = self.tasks.keys().filter(|task| groups.contains(&task.group));
        for task in over.copied().collect::<Vec<TaskId>>() {
            self.take(task);
        }
    }

    pub(super) fn contains(&self, task: TaskId) -> bool {
        self.tasks.contains_key(&task)
    }

    /// Whether an input is on its way already, or was brought for another task.
    pub(super) fn has_input(&self, input: TaskId) -> bool {
        self.inputs.contains_key(&input)
    }

    pub(super) fn tasks(&self) -> impl Iterator<Item = TaskId> {
        self.tasks.keys().copied()
    }

    pub(super) fn len(&self) -> u64 {
        self.tasks.len() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// How much of a kind of resource its tasks take.
    pub(super) fn taken(&self, kind: &str) -> u64 {
        self.resources.get(kind).copied().unwrap_or_default()
    }

    /// Bytes that everything of it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::Load;
    use crate::{GroupId, Resources, TaskId};

    fn task(group: u64, index: u32) -> TaskId {
        TaskId { group: GroupId(group), index }
    }

    fn gpus(count: u64) -> Resources {
        Resources::from([("gpu".to_owned(), count)])
    }

    #[test]
    fn an_input_of_several_tasks_counts_once_until_the_last_of_them_is_over() {
        let (shared, own) = (task(0, 0), task(0, 1));
        let mut load = Load::default();
        load.give(task(1, 0), (10, gpus(1)), &BTreeMap::from([(shared, 100)]));
        load.give(task(1, 1), (10, gpus(2)), &BTreeMap::from([(shared, 100), (own, 1000)]));
        assert_eq!((load.bytes(), load.len(), load.taken("gpu")), (1120, 2, 3));
        load.take(task(1, 1));
        load.take(task(1, 1));
        assert_eq!((load.bytes(), load.taken("gpu")), (110, 1));
        assert!(load.has_input(shared) && !load.has_input(own));
        load.take_groups(&BTreeSet::from([GroupId(1)]));
        assert_eq!((load.bytes(), load.taken("gpu")), (0, 0));
        assert!(load.is_empty() && !load.has_input(shared));
    }
}
