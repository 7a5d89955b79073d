//! How many workers there should be, and which of those that are there may go.

use std::time::Duration;

use ebbtide_api::{Cluster, WorkerGroup};
use ebbtide_contract::demand::Outcome;
use ebbtide_contract::view::Demand;

use crate::children::Children;
use crate::lifetime::Idle;
use crate::{Change, Observed, Op};

#[derive(Debug, Default)]
pub(crate) struct Target {
    /// What the queue asks for, within `min` and `max`.
    pub(crate) desired: u32,
    /// Registered workers that are to be asked to go, and why.
    pub(crate) to_retire: Vec<String>,
    pub(crate) why_retire: &'static str,
    /// How many were asked and have not answered.
    pub(crate) retiring: u32,
    /// Indices of workers that may be deleted.
    pub(crate) to_delete: Vec<(u32, &'static str)>,
    pub(crate) next_look: Option<Duration>,
}

pub(crate) fn target(
    cluster: &Cluster,
    children: &Children,
    observed: &Observed,
    idle: &Idle,
) -> Target {
    let group = &cluster.spec.workers[0];
    let (min, max) = (count(cluster.spec.least()), count(group.max));
    let present = u32::try_from(children.workers.len()).unwrap_or(u32::MAX);
    let Some(demand) = &observed.demand else {
        // Nothing is known: nobody comes beyond the least number, and nobody goes.
        return Target { desired: present.clamp(min, max), ..Target::default() };
    };
    let busy = demand.tasks > 0 || demand.running > 0;
    let asked = if busy { workers_for(cluster, group, demand.core_seconds).max(1) } else { 0 };
    let window = cluster.spec.scaling.down.window.as_duration();
    let is_settled = idle.since.is_some() && idle.length >= window;
    // Down only when there was no work for the whole window.
    let floor = if is_settled { min } else { present };
    let mut target = Target { desired: asked.max(floor).clamp(min, max), ..Target::default() };
    if idle.since.is_some() && !is_settled && present > min {
        target.next_look = Some(window.saturating_sub(idle.length));
    }
    let mut surplus = present.saturating_sub(target.desired);
    let excess = present.saturating_sub(max);
    // Those that hold nothing yet go first, then the ones that came last.
    for (index, _) in children.workers.iter().rev().filter(|(_, it)| !it.is_registered) {
        if surplus > 0 {
            target.to_delete.push((*index, "it is not registered and no longer needed"));
            surplus -= 1;
        }
    }
    for (index, worker) in children.workers.iter().rev().filter(|(_, it)| it.is_registered) {
        let name = &worker.pod.name;
        if demand.retired.get(name) == Some(&Outcome::Released) {
            target.to_delete.push((*index, "its scheduler does without it"));
            surplus = surplus.saturating_sub(1);
        } else if demand.asked.contains(name) {
            target.retiring += 1;
            surplus = surplus.saturating_sub(1);
        }
    }
    let over = excess.saturating_sub(count_of(&target.to_delete)).saturating_sub(target.retiring);
    target.to_retire = to_retire(children, demand, surplus, over);
    target.why_retire = if over > 0 { "there are more than max" } else { "there was no work" };
    target
}

/// Registered workers to ask next. What holds chunks stays, but where there are more than `max`:
/// its scheduler would have to make them again.
fn to_retire(children: &Children, demand: &Demand, surplus: u32, over: u32) -> Vec<String> {
    let may_be_asked = |name: &&String| {
        let is_released = demand.retired.get(*name) == Some(&Outcome::Released);
        !is_released && !demand.asked.contains(*name)
    };
    let registered = children.workers.values().rev().filter(|it| it.is_registered);
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
pub(crate) fn fewer(cluster: &Cluster, children: &Children, target: &Target) -> Vec<Change> {
    let mut changes = Vec::new();
    if !target.to_retire.is_empty() {
        let deadline_seconds =
            u64::try_from(cluster.spec.scaling.down.retire_seconds).unwrap_or_default();
        let workers = target.to_retire.clone();
        let op = Op::Retire { workers, deadline_seconds };
        changes.push(Change { op, why: target.why_retire });
    }
    changes.extend(target.to_delete.iter().map(|(index, why)| {
        let pod = children.workers[index].pod.clone();
        Change { op: Op::DeletePod(pod), why }
    }));
    changes
}

/// Workers that finish so many core-seconds in the target time.
fn workers_for(cluster: &Cluster, group: &WorkerGroup, core_seconds: f64) -> u32 {
    let cores = group.resources.cpu().value().map_or(1.0, f64::ceil).max(1.0);
    let seconds = f64::from(cluster.spec.scaling.target_seconds.max(1));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "demand is finite and not negative; beyond u32 the maximum decides anyway"
    )]
    let workers = (core_seconds / (cores * seconds)).ceil() as u32;
    workers
}

fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

fn count_of<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}
