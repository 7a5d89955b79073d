//! What a worker was given: its tasks, and the bytes that they and their inputs will take there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::{Cost, GroupId, Resources, TaskId, Time, WorkerId};

/// How long a task may be thought to run before its worker is asked whether it does.
const UNCERTAIN_MAX: Duration = Duration::from_secs(1);

/// Tasks of one worker. An input that others hold comes once, for however many tasks need it.
///
/// As far as can be told from here, who was given first runs, one on each core while there is memory,
/// and the others wait for them.
#[derive(Debug, Default)]
pub(super) struct Load {
    cores: u64,
    memory_bytes: u64,
    tasks: BTreeMap<TaskId, Given>,
    /// Those that wait, in the order in which they were given.
    waiting: BTreeMap<u64, TaskId>,
    next: u64,
    /// Those that the worker was asked to give back and has not answered, and who is to have them.
    asked_back: BTreeMap<TaskId, Option<WorkerId>>,
    inputs: BTreeMap<TaskId, Coming>,
    bytes: u64,
    /// How much of that is what waiting tasks will make.
    waiting_bytes: u64,
    /// What chunks take that the worker holds.
    held_bytes: u64,
    resources: Resources,
}

#[derive(Debug)]
struct Given {
    output_bytes: u64,
    scratch_bytes: u64,
    resources: Resources,
    /// Inputs that others hold.
    away: Vec<TaskId>,
    turn: Turn,
}

#[derive(Clone, Copy, Debug)]
enum Turn {
    Waiting(u64),
    Running { since: Time, is_certain: bool },
}

#[derive(Debug)]
struct Coming {
    bytes: u64,
    users: u32,
}

impl Load {
    /// Nothing, of a worker that runs so many tasks at once in so much memory.
    pub(super) fn new(cores: u32, memory_bytes: u64) -> Self {
        Self { cores: u64::from(cores), memory_bytes, ..Self::default() }
    }

    /// Adds a task that takes so much beside its inputs and these resources, and its inputs that
    /// others hold, each once, with their bytes. What it needs only while it runs counts then.
    pub(super) fn give(
        &mut self,
        task: TaskId,
        (cost, resources): (Cost, Resources),
        away: &BTreeMap<TaskId, u64>,
        now: Time,
    ) {
        for (input, bytes) in away {
            let coming = self.inputs.entry(*input).or_insert_with(|| {
                self.bytes = self.bytes.saturating_add(*bytes);
                Coming { bytes: *bytes, users: 0 }
            });
            coming.users += 1;
        }
        let Cost { output_bytes, scratch_bytes, .. } = cost;
        self.bytes = self.bytes.saturating_add(output_bytes);
        self.waiting_bytes = self.waiting_bytes.saturating_add(output_bytes);
        for (kind, amount) in &resources {
            *self.resources.entry(kind.clone()).or_default() += amount;
        }
        let away = away.keys().copied().collect();
        let turn = Turn::Waiting(self.next);
        self.tasks.insert(task, Given { output_bytes, scratch_bytes, resources, away, turn });
        self.waiting.insert(self.next, task);
        self.next += 1;
        self.begin_next(now);
    }

    /// Removes a task.
    pub(super) fn take(&mut self, task: TaskId, now: Time) {
        let Some(given) = self.tasks.remove(&task) else { return };
        self.asked_back.remove(&task);
        self.bytes -= given.output_bytes;
        match given.turn {
            Turn::Waiting(nth) => {
                self.waiting.remove(&nth);
                self.waiting_bytes -= given.output_bytes;
            }
            Turn::Running { .. } => self.bytes -= given.scratch_bytes,
        }
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
        self.begin_next(now);
    }

    /// Removes the tasks of these groups.
    pub(super) fn take_groups(&mut self, groups: &BTreeSet<GroupId>, now: Time) {
        let over = self.tasks.keys().filter(|task| groups.contains(&task.group));
        for task in over.copied().collect::<Vec<TaskId>>() {
            self.take(task, now);
        }
    }

    /// The worker says that a task runs.
    pub(super) fn begun(&mut self, task: TaskId, now: Time) {
        self.asked_back.remove(&task);
        self.begin(task, now);
        if let Some(Given { turn: Turn::Running { is_certain, .. }, .. }) =
            self.tasks.get_mut(&task)
        {
            *is_certain = true;
        }
    }

    fn begin(&mut self, task: TaskId, now: Time) {
        let Some(given) = self.tasks.get_mut(&task) else { return };
        if let Turn::Waiting(nth) = given.turn {
            self.waiting.remove(&nth);
            given.turn = Turn::Running { since: now, is_certain: false };
            self.bytes = self.bytes.saturating_add(given.scratch_bytes);
            self.waiting_bytes -= given.output_bytes;
        }
    }

    fn begin_next(&mut self, now: Time) {
        while self.run() < self.cores {
            let Some(task) = self.waiting.values().next().copied() else { return };
            let Given { output_bytes, scratch_bytes, .. } = self.tasks[&task];
            let needed = output_bytes.saturating_add(scratch_bytes);
            let taken = self.held_bytes.saturating_add(self.bytes - self.waiting_bytes);
            if taken.saturating_add(needed) > self.memory_bytes && self.run() > 0 {
                return;
            }
            self.begin(task, now);
        }
    }

    /// The worker holds chunks that take so much memory.
    pub(super) fn beside(&mut self, held_bytes: u64) {
        self.held_bytes = held_bytes;
    }

    /// How many tasks wait, asked back or not.
    pub(super) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// How many tasks run.
    fn run(&self) -> u64 {
        self.len() - self.waiting.len() as u64
    }

    /// A task is wanted back, for a worker or for whoever can take it.
    pub(super) fn ask_back(&mut self, task: TaskId, target: Option<WorkerId>) {
        self.asked_back.insert(task, target);
    }

    /// Tasks that were asked back and for whom, with no answer yet.
    pub(super) fn asked_back(&self) -> &BTreeMap<TaskId, Option<WorkerId>> {
        &self.asked_back
    }

    /// Cores that have nothing to do.
    pub(super) fn idle_cores(&self) -> u64 {
        self.cores.saturating_sub(self.len())
    }

    /// Tasks that wait and were not asked back, the last one first.
    pub(super) fn waiting(&self) -> impl Iterator<Item = TaskId> {
        let waiting = self.waiting.values().rev().copied();
        waiting.filter(|task| !self.asked_back.contains_key(task))
    }

    /// How long a task's inputs may be on their way, at 10 MB a second.
    fn fetched_in(&self, given: &Given) -> Duration {
        let bytes = given.away.iter().map(|input| self.inputs[input].bytes);
        Duration::from_nanos(bytes.fold(0, u64::saturating_add).saturating_mul(100))
    }

    /// Tasks that should run, have nothing to wait for, and may not run after all.
    pub(super) fn uncertain(&self, now: Time) -> impl Iterator<Item = TaskId> {
        let uncertain = self.tasks.iter().filter(move |(_, given)| match given.turn {
            Turn::Running { since, is_certain: false } => {
                now > since.after(UNCERTAIN_MAX).after(self.fetched_in(given))
            }
            Turn::Running { .. } | Turn::Waiting(_) => false,
        });
        let uncertain = uncertain.map(|(task, _)| *task);
        uncertain.filter(|task| !self.asked_back.contains_key(task))
    }

    /// Tasks that run, and since when.
    pub(super) fn running(&self) -> impl Iterator<Item = (TaskId, Time)> {
        self.tasks.iter().filter_map(|(task, given)| match given.turn {
            Turn::Running { since, .. } => Some((*task, since)),
            Turn::Waiting(_) => None,
        })
    }

    /// Since when a task runs, unless it waits.
    pub(super) fn running_since(&self, task: TaskId) -> Option<Time> {
        match self.tasks.get(&task)?.turn {
            Turn::Running { since, .. } => Some(since),
            Turn::Waiting(_) => None,
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
    use std::time::Duration;

    use super::Load;
    use crate::{Cost, GroupId, Resources, TaskId, Time};

    const NOW: Time = Time(Duration::ZERO);
    const COST: Cost = Cost { output_bytes: 10, scratch_bytes: 7, nanoseconds: 1 };

    fn task(group: u64, index: u32) -> TaskId {
        TaskId { group: GroupId(group), index }
    }

    fn gpus(count: u64) -> Resources {
        Resources::from([("gpu".to_owned(), count)])
    }

    fn at(seconds: u64) -> Time {
        Time(Duration::from_secs(seconds))
    }

    /// So many tasks, each given a second after the one before.
    fn given(cores: u32, memory_bytes: u64, tasks: u32) -> Load {
        let mut load = Load::new(cores, memory_bytes);
        for nth in 0..tasks {
            load.give(task(1, nth), (COST, gpus(0)), &BTreeMap::new(), at(nth.into()));
        }
        load
    }

    fn since(load: &Load) -> Vec<Option<Time>> {
        (0..5).map(|nth| load.running_since(task(1, nth))).collect()
    }

    fn movable(load: &Load, now: Time) -> Vec<u32> {
        load.waiting().chain(load.uncertain(now)).map(|task| task.index).collect()
    }

    #[test]
    fn an_input_of_several_tasks_counts_once_until_the_last_of_them_is_over() {
        let (shared, own) = (task(0, 0), task(0, 1));
        let mut load = Load::new(1, 10_000);
        load.give(task(1, 0), (COST, gpus(1)), &BTreeMap::from([(shared, 100)]), NOW);
        load.give(task(1, 1), (COST, gpus(2)), &BTreeMap::from([(shared, 100), (own, 1000)]), NOW);
        assert_eq!((load.bytes(), load.len(), load.taken("gpu")), (1127, 2, 3), "one runs");
        load.take(task(1, 1), NOW);
        load.take(task(1, 1), NOW);
        assert_eq!((load.bytes(), load.taken("gpu")), (117, 1));
        assert!(load.has_input(shared) && !load.has_input(own));
        load.take_groups(&BTreeSet::from([GroupId(1)]), NOW);
        assert_eq!((load.bytes(), load.taken("gpu")), (0, 0));
        assert!(load.is_empty() && !load.has_input(shared));
    }

    #[test]
    fn who_was_given_first_runs_and_the_next_begins_when_a_core_is_free() {
        let mut load = given(2, 1000, 5);
        assert_eq!(since(&load), [Some(at(0)), Some(at(1)), None, None, None]);
        load.take(task(1, 0), at(9));
        assert_eq!(since(&load), [None, Some(at(1)), Some(at(9)), None, None]);
        // Against the order: the worker knows better.
        load.begun(task(1, 4), at(10));
        load.take(task(1, 1), at(11));
        assert_eq!(since(&load), [None, None, Some(at(9)), None, Some(at(10))]);
        assert_eq!((load.idle_cores(), load.bytes()), (0, 3 * 10 + 2 * 7));
        load.take_groups(&BTreeSet::from([GroupId(1)]), at(12));
        assert_eq!((load.idle_cores(), load.bytes()), (2, 0));
    }

    #[test]
    fn what_has_no_memory_waits_though_a_core_is_free_and_one_always_runs() {
        let mut load = given(2, 43, 0);
        load.beside(10);
        for nth in 0..2 {
            load.give(task(1, nth), (COST, gpus(0)), &BTreeMap::new(), at(0));
        }
        assert_eq!(since(&load)[..2], [Some(at(0)), None]);
        assert_eq!(since(&given(2, 34, 9))[..3], [Some(at(0)), Some(at(1)), None]);
        load.take(task(1, 0), at(5));
        assert_eq!(since(&load)[..2], [None, Some(at(5))]);
        assert_eq!(since(&given(2, 1, 1))[0], Some(at(0)));
    }

    #[test]
    fn what_waits_can_be_asked_back_and_what_may_not_run_though_it_should_for_a_second() {
        let mut load = given(2, 1000, 5);
        assert_eq!(movable(&load, at(1)), [4, 3, 2]);
        load.ask_back(task(1, 4), None);
        assert_eq!(movable(&load, at(1)), [3, 2]);
        load.begun(task(1, 0), at(1));
        assert_eq!(movable(&load, at(3)), [3, 2, 1]);
        // That it comes up here is no answer.
        for nth in [0, 1, 2, 3] {
            load.take(task(1, nth), at(4));
        }
        assert!(load.asked_back().contains_key(&task(1, 4)) && movable(&load, at(9)).is_empty());
        load.begun(task(1, 4), at(5));
        assert!(load.asked_back().is_empty() && movable(&load, at(9)).is_empty());
        // What fetches its inputs does not run, and is where it should be.
        let away = BTreeMap::from([(task(0, 0), 100_000_000)]);
        load.beside(0);
        load.take_groups(&BTreeSet::from([GroupId(1)]), at(9));
        load.give(task(1, 5), (COST, gpus(0)), &away, at(9));
        assert!(movable(&load, at(20)).is_empty());
        assert_eq!(movable(&load, at(21)), [5]);
    }
}
