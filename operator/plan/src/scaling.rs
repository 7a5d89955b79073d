//! How many workers each group should have, and which of those that are there may go.

use std::collections::BTreeSet;
use std::time::Duration;

use ebbtide_api::{Cluster, WorkerGroup};
use ebbtide_contract::demand::Outcome;
use ebbtide_contract::view::Demand;
use jiff::Timestamp;

use crate::children::{Children, Workers};
use crate::lifetime::{self, Idle};
use crate::{Change, Observed, Op};

/// When to look again at workers that their scheduler kept.
const KEPT_LOOK: Duration = Duration::from_secs(10);

/// What one group of [`Children::groups`] should be, in the same order.
#[derive(Debug, Default)]
pub(crate) struct Target {
    /// What the queue asks for, within `min` and `max`.
    pub(crate) desired: u32,
    /// The least number of workers that it must have for what there is to do.
    pub(crate) needed: u32,
    /// Since when there has been no work for it.
    pub(crate) idle_since: Option<Timestamp>,
    /// Registered workers that are to be asked to go, and why.
    pub(crate) to_retire: Vec<String>,
    pub(crate) why_retire: &'static str,
    /// How many were asked and have not answered.
    pub(crate) retiring: u32,
    /// Indices of workers that may be deleted.
    pub(crate) to_delete: Vec<(u32, &'static str)>,
    pub(crate) next_look: Option<Duration>,
}

/// What is to be done by one group.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    is_busy: bool,
    /// Tasks that wait and run.
    tasks: u64,
    core_seconds: f64,
}

/// How many workers a group may have.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    min: u32,
    max: u32,
}

pub(crate) fn targets(
    cluster: &Cluster,
    children: &Children,
    observed: &Observed,
    idle: &Idle,
    now: Timestamp,
) -> Vec<Target> {
    let Some(demand) = observed.heard() else {
        // Nothing is known: nobody comes beyond the least number, and nobody goes.
        let groups = children.groups.iter().enumerate();
        return groups
            .map(|(nth, workers)| {
                let Bounds { min, max } = bounds(cluster, nth);
                let desired = count_of(workers.living.len()).clamp(min, max);
                Target { desired, needed: min, ..Target::default() }
            })
            .collect();
    };
    let shares = shares(&cluster.spec.workers, demand);
    let window = cluster.spec.scaling.down.window.as_duration();
    let groups = children.groups.iter().enumerate();
    groups
        .map(|(nth, workers)| {
            let share = shares.get(nth).copied().unwrap_or_default();
            let idle_since = idle_since(cluster, workers, share, idle, now);
            let asked =
                cluster.spec.workers.get(nth).map_or(0, |group| workers_for(cluster, group, share));
            let bounds = bounds(cluster, nth);
            let needed = bounds.min.max(u32::from(share.is_busy));
            let target = Target { needed, idle_since, ..Target::default() };
            let idle = idle_since.map(|since| lifetime::idle_for(cluster, observed, since, now));
            let is_settled = idle.is_some_and(|length| length >= window);
            let target = target.sized(workers, demand, (asked, bounds), is_settled);
            let is_more = count_of(workers.living.len()) > bounds.min;
            let rest = idle.filter(|_| !is_settled && is_more).map(|it| window.saturating_sub(it));
            // Those that were kept may be asked again.
            let is_kept = demand.retired.values().any(|it| *it == Outcome::Kept);
            let again = is_kept.then_some(KEPT_LOOK);
            Target { next_look: rest.into_iter().chain(again).min(), ..target }
        })
        .collect()
}

/// How many tasks no group of the spec can take.
pub(crate) fn homeless(cluster: &Cluster, demand: &Demand) -> u64 {
    let groups = &cluster.spec.workers;
    let queues = demand.queues.iter().filter(|(fits, _)| first_of(groups, fits).is_none());
    queues.map(|(_, queue)| queue.tasks).fold(0, u64::saturating_add)
}

/// Work is for the first group of the manifest that can take it.
fn shares(groups: &[WorkerGroup], demand: &Demand) -> Vec<Share> {
    let mut shares = vec![Share::default(); groups.len()];
    for (fits, queue) in &demand.queues {
        if let Some(nth) = first_of(groups, fits) {
            shares[nth].is_busy = true;
            let tasks = queue.tasks.saturating_add(queue.running);
            shares[nth].tasks = shares[nth].tasks.saturating_add(tasks);
            shares[nth].core_seconds += queue.core_seconds;
        }
    }
    shares
}

fn first_of(groups: &[WorkerGroup], fits: &BTreeSet<String>) -> Option<usize> {
    groups.iter().position(|group| fits.contains(&group.name))
}

/// Since when a group has had no work: what others had may have been work of its own too, as long as
/// nobody looked.
fn idle_since(
    cluster: &Cluster,
    workers: &Workers,
    share: Share,
    idle: &Idle,
    now: Timestamp,
) -> Option<Timestamp> {
    let groups = cluster.status.iter().flat_map(|status| &status.groups);
    let known = groups.filter(|it| it.name == workers.group).find_map(|it| it.idle_since.as_ref());
    let known = known.map_or(now, |time| time.0);
    (!share.is_busy).then(|| idle.since.map_or(known, |since| since.max(known)))
}

impl Target {
    fn sized(
        mut self,
        workers: &Workers,
        demand: &Demand,
        (asked, Bounds { min, max }): (u32, Bounds),
        is_settled: bool,
    ) -> Self {
        let present = count_of(workers.living.len());
        // Down only when there was no work for the whole window.
        let floor = if is_settled { min } else { present };
        self.desired = asked.max(floor).clamp(min, max);
        let mut surplus = present.saturating_sub(self.desired);
        let excess = present.saturating_sub(max);
        // Those that hold nothing yet go first, then the ones that came last.
        for (index, _) in workers.living.iter().rev().filter(|(_, it)| !it.is_registered) {
            if surplus > 0 {
                self.to_delete.push((*index, "it is not registered and no longer needed"));
                surplus -= 1;
            }
        }
        for (index, worker) in workers.living.iter().rev().filter(|(_, it)| it.is_registered) {
            let name = &worker.pod.name;
            if demand.retired.get(name) == Some(&Outcome::Released) {
                self.to_delete.push((*index, "its scheduler does without it"));
                surplus = surplus.saturating_sub(1);
            } else if demand.asked.contains(name) {
                self.retiring += 1;
                surplus = surplus.saturating_sub(1);
            }
        }
        let going = count_of(self.to_delete.len()).saturating_add(self.retiring);
        let over = excess.saturating_sub(going);
        self.to_retire = to_retire(workers, demand, surplus, over);
        self.why_retire = match (over, max) {
            (0, _) => "there was no work",
            (_, 0) => "the spec has no such worker group",
            (_, _) => "there are more than max",
        };
        self
    }
}

/// Registered workers to ask next. What holds chunks stays, but where there are more than `max`:
/// its scheduler would have to make them again.
fn to_retire(workers: &Workers, demand: &Demand, surplus: u32, over: u32) -> Vec<String> {
    let may_be_asked = |name: &&String| {
        let answer = demand.retired.get(*name);
        let has_answered = matches!(answer, Some(Outcome::Released | Outcome::Kept));
        !has_answered && !demand.asked.contains(*name)
    };
    let registered = workers.living.values().rev().filter(|it| it.is_registered);
    let names: Vec<&String> = registered.map(|it| &it.pod.name).filter(may_be_asked).collect();
    let held = |name: &String| demand.workers.get(name).map_or(0, |it| it.held_bytes);
    let (empty, holders): (Vec<&String>, Vec<&String>) =
        names.into_iter().partition(|name| held(name) == 0);
    let most = surplus as usize;
    let holders_most = (over as usize).saturating_sub(empty.len());
    let chosen = empty.into_iter().take(most).chain(holders.into_iter().take(holders_most));
    chosen.cloned().collect()
}

/// Changes that make the cluster smaller.
pub(crate) fn fewer(cluster: &Cluster, children: &Children, targets: &[Target]) -> Vec<Change> {
    let deadline_seconds =
        u64::try_from(cluster.spec.scaling.down.retire_seconds).unwrap_or_default();
    let mut changes = Vec::new();
    for (workers, target) in children.groups.iter().zip(targets) {
        if !target.to_retire.is_empty() {
            let op = Op::Retire { workers: target.to_retire.clone(), deadline_seconds };
            changes.push(Change { op, why: target.why_retire });
        }
        changes.extend(target.to_delete.iter().map(|(index, why)| {
            let pod = workers.living[index].pod.clone();
            Change { op: Op::DeletePod(pod), why }
        }));
    }
    changes
}

/// How many workers the group may have that is the `nth` of the spec: none, if the spec has fewer.
fn bounds(cluster: &Cluster, nth: usize) -> Bounds {
    let group = cluster.spec.groups().nth(nth);
    let (min, max) = group.map_or((0, 0), |(group, least)| (least, group.max));
    Bounds { min: count(min), max: count(max) }
}

/// Workers that finish their share in the target time: one at least for some work, and no more than
/// it has tasks, each of which takes one.
fn workers_for(cluster: &Cluster, group: &WorkerGroup, share: Share) -> u32 {
    let cores = group.resources.cpu().value().map_or(1.0, f64::ceil).max(1.0);
    let seconds = f64::from(cluster.spec.scaling.target_seconds.max(1));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "demand is finite and not negative; beyond u32 the maximum decides anyway"
    )]
    let workers = (share.core_seconds / (cores * seconds)).ceil() as u32;
    let tasks = u32::try_from(share.tasks).unwrap_or(u32::MAX);
    workers.min(tasks).max(u32::from(share.is_busy))
}

fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

fn count_of(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
