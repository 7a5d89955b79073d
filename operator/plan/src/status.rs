//! What the user sees: computed from what was observed, never from what is hoped.

use ebbtide_api::{Cluster, ClusterStatus, MESSAGE_MAX, Phase, WorkerCounts};
use ebbtide_environment::Key;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::children::Children;
use crate::lifetime::Idle;
use crate::scaling::Target;
use crate::{Observed, Site, scheduler_addresses};

const READY: &str = "Ready";

pub(crate) struct Facts<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) children: &'a Children,
    pub(crate) observed: &'a Observed,
    pub(crate) site: &'a Site,
    pub(crate) image: &'a str,
    pub(crate) key: Option<Key>,
    pub(crate) idle: &'a Idle,
    pub(crate) target: &'a Target,
    pub(crate) now: Timestamp,
}

pub(crate) fn observed(facts: &Facts<'_>) -> ClusterStatus {
    let Facts { cluster, children, observed, target, .. } = facts;
    let ready = children.workers.values().filter(|it| it.is_registered).count();
    let counts = WorkerCounts {
        desired: i32::try_from(target.desired).unwrap_or(i32::MAX),
        starting: count(children.workers.len() - ready),
        ready: count(ready),
        retiring: count(target.to_retire.len() + target.retiring as usize),
    };
    let min = cluster.spec.workers[0].min;
    // Without work a cluster needs `min` workers, with work at least one.
    let is_busy = observed.demand.as_ref().is_some_and(|it| it.tasks > 0 || it.running > 0);
    let needed = min.max(i32::from(is_busy));
    let trouble = children.troubles.first();
    let is_hurt =
        children.is_scheduler_in_trouble || observed.demand.is_none() || counts.ready < needed;
    let (phase, reason, message) = if facts.idle.is_over {
        (Phase::Deleting, "Idle", "there was no work for spec.lifetime.idle.after".to_owned())
    } else if let Some(trouble) = trouble.filter(|_| is_hurt) {
        (Phase::Degraded, "PodTrouble", trouble.clone())
    } else if let Some(waits) =
        children.waits.first().filter(|_| observed.demand.is_none() || counts.ready < needed)
    {
        (Phase::Starting, "PodWaiting", waits.clone())
    } else if observed.demand.is_none() {
        (Phase::Starting, "SchedulerStarting", "waiting for the scheduler to answer".to_owned())
    } else if counts.ready < min {
        let message = format!("{} of {min} workers are registered", counts.ready);
        (Phase::Starting, "WorkersStarting", message)
    } else {
        (Phase::Ready, "SchedulerAnswers", "the scheduler answers".to_owned())
    };
    ClusterStatus {
        phase,
        message: if phase == Phase::Ready {
            trouble.map(|it| bounded(it))
        } else {
            Some(bounded(&message))
        },
        observed_generation: cluster.metadata.generation,
        conditions: vec![ready_condition(cluster, phase, (reason, &message), facts.now)],
        workers: counts,
        scheduler_address: scheduler_addresses(cluster, facts.site).into_iter().next(),
        environment_key: facts.key.as_ref().map(ToString::to_string),
        image: Some(facts.image.to_owned()),
        idle_since: facts.idle.since.and_then(whole_seconds),
    }
}

/// A spec that nothing can be made of.
pub(crate) fn degraded(
    cluster: &Cluster,
    reason: &str,
    message: &str,
    key: Option<Key>,
    now: Timestamp,
) -> ClusterStatus {
    ClusterStatus {
        phase: Phase::Degraded,
        message: Some(bounded(message)),
        observed_generation: cluster.metadata.generation,
        conditions: vec![ready_condition(cluster, Phase::Degraded, (reason, message), now)],
        environment_key: key.map(|key| key.to_string()),
        ..ClusterStatus::default()
    }
}

/// The status when a change could not be made: what was observed, and what went wrong.
pub(crate) fn stuck(
    cluster: &Cluster,
    planned: &ClusterStatus,
    error: &str,
    now: Timestamp,
) -> ClusterStatus {
    let is_ready = planned.phase == Phase::Ready;
    let phase = if is_ready { Phase::Starting } else { planned.phase };
    let condition = ready_condition(cluster, phase, ("ApplyFailed", error), now);
    let message = Some(bounded(error));
    ClusterStatus { phase, message, conditions: vec![condition], ..planned.clone() }
}

/// As much of a message as a status takes.
fn bounded(message: &str) -> String {
    if message.chars().count() <= MESSAGE_MAX {
        return message.to_owned();
    }
    let begin = message.chars().take(MESSAGE_MAX - 1);
    begin.chain(['…']).collect()
}

pub(crate) fn deleting(cluster: &Cluster) -> ClusterStatus {
    ClusterStatus {
        phase: Phase::Deleting,
        observed_generation: cluster.metadata.generation,
        ..cluster.status.clone().unwrap_or_default()
    }
}

/// The condition, with the time of its last change kept while it does not change.
fn ready_condition(
    cluster: &Cluster,
    phase: Phase,
    (reason, message): (&str, &str),
    now: Timestamp,
) -> Condition {
    let status = if phase == Phase::Ready { "True" } else { "False" };
    let known = cluster.status.iter().flat_map(|status| &status.conditions);
    let since = known
        .filter(|condition| condition.type_ == READY && condition.status == status)
        .map(|condition| condition.last_transition_time.clone())
        .next();
    let last_transition_time = since.or_else(|| whole_seconds(now)).unwrap_or(Time(now));
    Condition {
        type_: READY.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: bounded(message),
        observed_generation: cluster.metadata.generation,
        last_transition_time,
    }
}

/// Kubernetes keeps whole seconds: anything finer would differ at every read.
fn whole_seconds(at: Timestamp) -> Option<Time> {
    Timestamp::from_second(at.as_second()).ok().map(Time)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
