//! Which kinds of workers can take which tasks, and what is said when none can.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::message::Failure;
use crate::scheduler::event::{Demand, Offer};
use crate::scheduler::{SILENCE_MAX, Scheduler, Worker};
use crate::table::{Entry, Measured};
use crate::{Bytes, Cost, Group, GroupId, JobId, Resources, Time};

/// What the tasks of a group need of a worker that is to run one of them alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need<'a> {
    pub(super) bytes: u64,
    pub(super) resources: &'a Resources,
}

/// What runs for less is not late, however short it should be.
const LATE_MIN: Duration = Duration::from_secs(1);

/// Whose tasks are expected to take as long as each other.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Alike {
    Group(GroupId),
    Kind(u64),
}

impl Alike {
    fn of(group: &Group) -> Self {
        group.kind.map_or(Self::Group(group.id), Self::Kind)
    }
}

/// Whether there is so much of each kind.
pub(super) fn has(there: &Resources, needed: &Resources) -> bool {
    needed.iter().all(|(kind, amount)| there.get(kind).is_some_and(|it| it >= amount))
}

impl Entry {
    pub(super) fn need(&self) -> Need<'_> {
        Need { bytes: self.needed_bytes, resources: &self.group.resources }
    }
}

impl Need<'_> {
    fn fits(self, (memory_bytes, resources): (u64, &Resources)) -> bool {
        self.bytes <= memory_bytes && has(resources, self.resources)
    }
}

impl Worker {
    /// Whether it could run such a task if it did nothing else.
    pub(super) fn suits(&self, need: Need<'_>) -> bool {
        need.fits(self.kind())
    }

    /// Whether enough of what it has beside cores and memory is free.
    fn has_free(&self, needed: &Resources) -> bool {
        let free = |kind: &String| {
            let all = self.joining.resources.get(kind).copied().unwrap_or_default();
            all.saturating_sub(self.load.taken(kind))
        };
        needed.iter().all(|(kind, amount)| free(kind) >= *amount)
    }

    /// Whether it could run such a task with what is free of that beside cores and memory.
    pub(super) fn can_take(&self, need: Need<'_>) -> bool {
        self.suits(need) && self.has_free(need.resources)
    }

    fn kind(&self) -> (u64, &Resources) {
        (self.joining.memory_bytes, &self.joining.resources)
    }
}

impl Scheduler {
    /// What waits and runs, as far as it is known, by resource class. No class is empty.
    ///
    /// Tasks that run for longer than expected count among those that were measured.
    pub fn demand(&self, now: Time) -> Vec<Demand> {
        let mut assigned = BTreeMap::<GroupId, u64>::new();
        for task in self.workers.values().flat_map(|worker| worker.load.tasks()) {
            *assigned.entry(task.group).or_default() += 1;
        }
        let late = self.late(now);
        let mut classes = BTreeMap::<Vec<usize>, Demand>::new();
        for entry in self.table.iter() {
            let left = u64::from(entry.group.space.tasks() - entry.done.ones());
            let assigned = assigned.get(&entry.group.id).copied().unwrap_or_default();
            if left == 0 && assigned == 0 {
                continue;
            }
            let fits = self.offers_for(entry.need());
            let most = fits.first().map_or(Duration::MAX, |at| self.offers()[*at].target);
            let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
            let class = classes.entry(fits).or_default();
            class.tasks += left.saturating_sub(assigned);
            class.assigned += assigned;
            let late = if late.is_empty() { None } else { late.get(&Alike::of(&entry.group)) };
            let measured = self.table.measured(entry).and(late.copied().unwrap_or_default());
            let expected = measured.mean().unwrap_or(entry.group.cost.nanoseconds).max(1);
            let nanoseconds = left.saturating_mul(expected.min(most));
            class.nanoseconds = class.nanoseconds.saturating_add(nanoseconds);
        }
        let named =
            |fits: Vec<usize>| fits.iter().map(|at| self.offers()[*at].name.clone()).collect();
        classes.into_iter().map(|(fits, it)| Demand { fits: named(fits), ..it }).collect()
    }

    /// Tasks that run for longer than expected, if their workers were heard within two heartbeats and
    /// nothing like them that began later is over: that tells more. In nanoseconds that double, so
    /// that it is seldom news.
    fn late(&self, now: Time) -> BTreeMap<Alike, Measured> {
        let mut late = BTreeMap::<Alike, Measured>::new();
        let heard = now.after(SILENCE_MAX / 5 * 3);
        let running = self.workers.values().filter(|it| it.silent_at >= heard);
        for (task, since) in running.flat_map(|worker| worker.load.running()) {
            let Some(doublings) = self.lateness(task.group, since, now) else { continue };
            let entry = self.table.entry(task.group);
            if self.table.measured(entry).begun() > since {
                continue;
            }
            let nanoseconds = self.table.expected_nanoseconds(task.group) << doublings;
            late.entry(Alike::of(&entry.group)).or_default().add(nanoseconds, since);
        }
        late
    }

    /// How often the expected time of a task doubles until it is as long as it has run; none unless
    /// that is long, and at least once.
    pub(super) fn lateness(&self, group: GroupId, since: Time, now: Time) -> Option<u32> {
        let length = now.0.saturating_sub(since.0);
        if length < LATE_MIN {
            return None;
        }
        let length = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        let times = length / self.table.expected_nanoseconds(group);
        times.checked_ilog2().filter(|doublings| *doublings > 0)
    }

    fn offers_for(&self, need: Need<'_>) -> Vec<usize> {
        let fits = |offer: &Offer| need.fits((offer.memory_bytes, &offer.resources));
        let fitting = self.offers().iter().enumerate().filter(|(_, offer)| fits(offer));
        fitting.map(|(at, _)| at).collect()
    }

    pub(super) fn refuse_what_fits_nowhere(&mut self) {
        let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
        for job in jobs {
            self.refuse_unless_fitting(job);
        }
    }

    fn offers(&self) -> &[Offer] {
        self.offers.as_deref().unwrap_or_default()
    }

    /// Fails a job with tasks to come that no worker can take that is there or may come. Before it was
    /// told who may come, or while nobody may, nothing is known.
    pub(super) fn refuse_unless_fitting(&mut self, job: JobId) {
        let Some(offers) = &self.offers else { return };
        let there = self.workers.values().map(Worker::kind);
        let may_come = offers.iter().map(|it| (it.memory_bytes, &it.resources));
        let kinds: Vec<(u64, &Resources)> = there.chain(may_come).collect();
        if kinds.is_empty() {
            return;
        }
        let is_to_come = |it: &&Entry| it.done.ones() < it.group.space.tasks();
        let fits = |it: &&Entry| kinds.iter().any(|kind| it.need().fits(*kind));
        let misfits = self.table.of_job(job).filter(is_to_come).filter(|it| !fits(it));
        let Some(worst) = misfits.max_by_key(|it| it.needed_bytes) else { return };
        let (bytes, resources) = (worst.needed_bytes, &worst.group.resources);
        let with = kinds.iter().filter(|(_, there)| has(there, resources));
        let room = with.map(|(room, _)| *room).max();
        let refusal = self.refusal(worst.group.id, (bytes, resources), room);
        self.fail_with_users(job, &Failure::new(refusal));
    }

    fn refusal(
        &self,
        group: GroupId,
        (needed, resources): (u64, &Resources),
        room: Option<u64>,
    ) -> String {
        let Group { name, cost: Cost { output_bytes, scratch_bytes, .. }, .. } =
            &self.table.entry(group).group;
        let kinds: Vec<String> =
            resources.iter().map(|(kind, amount)| format!("{kind}: {amount}")).collect();
        let kinds = kinds.join(", ");
        let Some(room) = room else {
            return format!(
                "{name}: one task needs {kinds}, and no worker that is here or may come has it; \
                 use a cluster with a worker group whose resources have it"
            );
        };
        let inputs = needed.saturating_sub(*output_bytes).saturating_sub(*scratch_bytes);
        let with = if kinds.is_empty() { String::new() } else { format!(" with {kinds}") };
        format!(
            "{name}: one task needs {} of memory ({} for inputs, {} for its output, {} beside \
             them), and the largest worker{with} has {} for tasks and chunks; use smaller chunks, \
             or workers with more memory",
            Bytes(needed),
            Bytes(inputs),
            Bytes(*output_bytes),
            Bytes(*scratch_bytes),
            Bytes(room),
        )
    }
}
