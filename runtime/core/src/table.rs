//! The groups of a scheduler and which of their tasks are done. Pure look-ups.

use std::collections::{BTreeMap, BTreeSet};

use crate::message::Attempt;
use crate::{Group, GroupId, JobId, TaskId, Time};

/// A group and what has become of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) group: Group,
    /// Bytes that one of its tasks needs at once, its inputs included.
    pub(crate) needed_bytes: u64,
    pub(crate) job: JobId,
    /// Groups that take this one as an input, once for each time they do.
    pub(crate) consumers: Vec<(GroupId, usize)>,
    /// For a group that a client asked for: which chunks it has, or which were made to be kept.
    pub(crate) delivered: Option<Bits>,
    /// Whether its chunks stay until the job is released.
    pub(crate) is_kept: bool,
    pub(crate) done: Bits,
    /// The last attempt given out for any task of this group.
    pub(crate) attempt: Attempt,
    pub(crate) measured: Measured,
}

/// Most kinds of groups whose times are remembered. Beyond, the one goes that was not measured for
/// longest.
pub(crate) const KINDS_MAX: usize = 4096;

/// After so many tasks each of them counts half: what was measured long ago fades.
const MEASURED_MAX: u64 = 64;

/// Time that tasks took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    tasks: u64,
    nanoseconds: u64,
    /// When the one of them began that began last.
    begun: Time,
    /// Which measurement was the last one of these.
    last: u64,
}

/// One bit for each task.
#[derive(Debug)]
pub(crate) struct Bits {
    words: Vec<u64>,
    ones: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: BTreeMap<GroupId, Entry>,
    by_job: BTreeMap<JobId, Vec<GroupId>>,
    /// Times of groups of one kind, for those that are there and those to come.
    kinds: BTreeMap<u64, Measured>,
    /// How often something was measured.
    measurements: u64,
}

impl Table {
    pub(crate) fn insert(
        &mut self,
        job: JobId,
        (group, needed_bytes): (Group, u64),
        (is_target, is_kept): (bool, bool),
    ) {
        for (nth, input) in group.inputs.iter().enumerate() {
            let producer =
                self.entries.get_mut(&input.group).expect("inputs are checked on submission");
            producer.consumers.push((group.id, nth));
        }
        let tasks = group.space.tasks();
        let entry = Entry {
            job,
            consumers: Vec::new(),
            delivered: is_target.then(|| Bits::zeros(tasks)),
            is_kept: is_target && is_kept,
            done: Bits::zeros(tasks),
            attempt: Attempt::default(),
            measured: Measured::default(),
            needed_bytes,
            group,
        };
        self.by_job.entry(job).or_default().push(entry.group.id);
        self.entries.insert(entry.group.id, entry);
    }

    pub(crate) fn get(&self, id: GroupId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: GroupId) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    pub(crate) fn entry(&self, id: GroupId) -> &Entry {
        self.entries.get(&id).expect("a live task's group is in the table")
    }

    pub(crate) fn entry_mut(&mut self, id: GroupId) -> &mut Entry {
        self.entries.get_mut(&id).expect("a live task's group is in the table")
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The groups of a job.
    pub(crate) fn of_job(&self, job: JobId) -> impl Iterator<Item = &Entry> {
        self.by_job.get(&job).into_iter().flatten().map(|id| self.entry(*id))
    }

    /// Removes the groups of a job and tells which they were.
    pub(crate) fn remove_job(&mut self, job: JobId) -> Vec<GroupId> {
        let ids = self.by_job.remove(&job).unwrap_or_default();
        for id in &ids {
            let inputs =
                self.entries.remove(id).map(|entry| entry.group.inputs).unwrap_or_default();
            for input in inputs {
                // A producer of another job lives on without this consumer.
                if let Some(producer) = self.entries.get_mut(&input.group) {
                    producer.consumers.retain(|(consumer, _)| consumer != id);
                }
            }
        }
        ids
    }

    /// The jobs other than its own whose groups a job takes as inputs.
    pub(crate) fn needs_of_job(&self, job: JobId) -> BTreeSet<JobId> {
        let inputs = self.of_job(job).flat_map(|entry| &entry.group.inputs);
        inputs.map(|input| self.entry(input.group).job).filter(|other| *other != job).collect()
    }

    /// The tasks that `task` needs, in the order of its inputs. One may stand there twice.
    pub(crate) fn dependencies(&self, task: TaskId) -> Vec<TaskId> {
        let consumer = &self.entry(task.group).group;
        let mut needed = Vec::new();
        for input in &consumer.inputs {
            let producer = &self.entry(input.group).group;
            let indices = input.relation.producers(&producer.space, &consumer.space, task.index);
            needed.extend(indices.into_iter().map(|index| producer.task(index)));
        }
        needed
    }

    /// The tasks that need `task`, once for each time they do.
    pub(crate) fn dependents(&self, task: TaskId) -> Vec<TaskId> {
        let producer = self.entry(task.group);
        let mut needing = Vec::new();
        for (id, nth) in &producer.consumers {
            let consumer = &self.entry(*id).group;
            let relation = &consumer.inputs[*nth].relation;
            let indices = relation.consumers(&producer.group.space, &consumer.space, task.index);
            needing.extend(indices.into_iter().map(|index| consumer.task(index)));
        }
        needing
    }

    /// Expected time of one task of a group on one core, in nanoseconds.
    pub(crate) fn expected_nanoseconds(&self, id: GroupId) -> u64 {
        let entry = self.entry(id);
        self.measured(entry).mean().unwrap_or(entry.group.cost.nanoseconds).max(1)
    }

    /// What was measured of tasks like those of a group.
    pub(crate) fn measured(&self, entry: &Entry) -> Measured {
        let of_kind = entry.group.kind.and_then(|kind| self.kinds.get(&kind));
        *of_kind.unwrap_or(&entry.measured)
    }

    /// Learns how long a task of a group took that began then.
    pub(crate) fn learn(&mut self, id: GroupId, nanoseconds: u64, begun: Time) {
        self.measurements += 1;
        let last = self.measurements;
        let entry = self.entry_mut(id);
        entry.measured.add(nanoseconds, begun);
        let Some(kind) = entry.group.kind else { return };
        if self.kinds.len() == KINDS_MAX && !self.kinds.contains_key(&kind) {
            let oldest = self.kinds.iter().min_by_key(|(_, measured)| measured.last);
            let oldest = oldest.map(|(kind, _)| *kind).expect("there are as many as can be");
            self.kinds.remove(&oldest);
        }
        let measured = self.kinds.entry(kind).or_default();
        measured.add(nanoseconds, begun);
        measured.last = last;
    }

    pub(crate) fn is_done(&self, task: TaskId) -> bool {
        self.entry(task.group).done.get(task.index)
    }

    /// Whether a client asked for this chunk and does not have it yet, or keeps it.
    pub(crate) fn is_wanted_by_client(&self, task: TaskId) -> bool {
        let entry = self.entry(task.group);
        let is_missing = |delivered: &Bits| !delivered.get(task.index);
        entry.is_kept || entry.delivered.as_ref().is_some_and(is_missing)
    }

    /// How many uses of `task` are still to come, the client's own included.
    pub(crate) fn uses_to_come(&self, task: TaskId) -> u32 {
        let uses = self.dependents(task).into_iter().filter(|user| !self.is_done(*user)).count();
        u32::try_from(uses).expect("a chunk has fewer than 2³² uses")
            + u32::from(self.is_wanted_by_client(task))
    }
}

impl Measured {
    pub(crate) fn add(&mut self, nanoseconds: u64, begun: Time) {
        if self.tasks == MEASURED_MAX {
            self.tasks /= 2;
            self.nanoseconds /= 2;
        }
        self.tasks += 1;
        self.nanoseconds = self.nanoseconds.saturating_add(nanoseconds);
        self.begun = self.begun.max(begun);
    }

    /// These and others.
    pub(crate) fn and(self, other: Self) -> Self {
        let nanoseconds = self.nanoseconds.saturating_add(other.nanoseconds);
        Self { tasks: self.tasks + other.tasks, nanoseconds, ..self }
    }

    /// When the one of them began that began last.
    pub(crate) fn begun(self) -> Time {
        self.begun
    }

    /// Nanoseconds of one.
    pub(crate) fn mean(self) -> Option<u64> {
        self.nanoseconds.checked_div(self.tasks)
    }
}

impl Bits {
    fn zeros(bits: u32) -> Self {
        let words = usize::try_from(bits.div_ceil(64)).expect("a u32 fits a usize");
        Self { words: vec![0; words], ones: 0 }
    }

    pub(crate) fn get(&self, at: u32) -> bool {
        self.words[word(at)] >> (at % 64) & 1 == 1
    }

    pub(crate) fn set(&mut self, at: u32, value: bool) {
        if self.get(at) == value {
            return;
        }
        self.words[word(at)] ^= 1 << (at % 64);
        self.ones = if value { self.ones + 1 } else { self.ones - 1 };
    }

    pub(crate) fn ones(&self) -> u32 {
        self.ones
    }
}

fn word(at: u32) -> usize {
    usize::try_from(at / 64).expect("a u32 fits a usize")
}
