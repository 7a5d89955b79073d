//! What the user sees: computed from what was observed, never from what is hoped.

use std::collections::BTreeMap;

use ebbtide_api::status::{CAUSES_MAX, Cause, CauseCount, GroupStatus};
use ebbtide_api::{Cluster, ClusterStatus, MESSAGE_MAX, Phase, WorkerCounts, names};
use ebbtide_environment::Key;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt as _;

use crate::children::Children;
use crate::lifetime::Idle;
use crate::scaling::Target;
use crate::trouble::{Trouble, refusal};
use crate::{Observed, Site, scheduler_addresses};

const READY: &str = "Ready";
const PENDING_CHANGE: &str = "PendingChange";

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
    let counts = counts(children, target);
    let min = cluster.spec.least();
    // Without work a cluster needs `min` workers, with work at least one.
    let is_busy = observed.demand.as_ref().is_some_and(|it| it.tasks > 0 || it.running > 0);
    let needed = min.max(i32::from(is_busy));
    let is_short = observed.demand.is_none() || counts.ready < needed;
    let is_hurt = children.is_scheduler_in_trouble || is_short;
    let (passing, lasting): (Vec<_>, Vec<_>) =
        children.of_scheduler.iter().chain(&children.troubles).partition(|(_, it)| it.may_pass());
    let (trouble, waits) = (lasting.first(), passing.first());
    let words = |(pod, trouble): &(String, Trouble)| format!("{pod}: {}", trouble.message);
    let (phase, reason, message) = if facts.idle.is_over {
        (Phase::Deleting, "Idle", "there was no work for spec.lifetime.idle.after".to_owned())
    } else if let Some(trouble) = trouble.filter(|_| is_hurt) {
        (Phase::Degraded, trouble.1.cause.as_str(), words(trouble))
    } else if let Some(waits) = waits.filter(|_| is_short) {
        (Phase::Starting, waits.1.cause.as_str(), words(waits))
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
            trouble.or(waits).map(|it| bounded(&words(it)))
        } else {
            Some(bounded(&message))
        },
        observed_generation: cluster.metadata.generation,
        conditions: vec![
            ready_condition(cluster, phase, (reason, &message), facts.now),
            pending_change(cluster, children.behind, facts.now),
        ],
        workers: counts,
        replicas: counts.starting.saturating_add(counts.ready),
        selector: Some(selector(cluster)),
        groups: vec![GroupStatus {
            name: cluster.spec.workers[0].name.clone(),
            workers: counts,
            causes: causes(&children.troubles),
        }],
        scheduler_address: scheduler_addresses(cluster, facts.site).into_iter().next(),
        environment_key: facts.key.as_ref().map(ToString::to_string),
        image: Some(facts.image.to_owned()),
        idle_since: facts.idle.since.and_then(whole_seconds),
    }
}

/// The labels of the first group's workers, as a query.
fn selector(cluster: &Cluster) -> String {
    format!(
        "{}={},{}={}",
        names::CLUSTER_UID,
        cluster.uid().unwrap_or_default(),
        names::WORKER_GROUP,
        cluster.spec.workers[0].name
    )
}

fn counts(children: &Children, target: &Target) -> WorkerCounts {
    let ready = children.workers.values().filter(|it| it.is_registered).count();
    WorkerCounts {
        desired: i32::try_from(target.desired).unwrap_or(i32::MAX),
        starting: count(children.workers.len() - ready),
        ready: count(ready),
        retiring: count(target.to_retire.len() + target.retiring as usize),
        failed: count(children.failed),
    }
}

/// The commonest causes, each with what is said of its first pod.
fn causes(troubles: &[(String, Trouble)]) -> Vec<CauseCount> {
    let mut found = BTreeMap::<Cause, CauseCount>::new();
    for (_, Trouble { cause, message }) in troubles {
        let first = || CauseCount { cause: *cause, pods: 0, message: bounded(message) };
        found.entry(*cause).or_insert_with(first).pods += 1;
    }
    let mut causes: Vec<CauseCount> = found.into_values().collect();
    causes.sort_by_key(|it| std::cmp::Reverse(it.pods));
    causes.truncate(CAUSES_MAX);
    causes
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
    let condition = ready_condition(cluster, phase, (refusal(error), error), now);
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

fn ready_condition(
    cluster: &Cluster,
    phase: Phase,
    told: (&str, &str),
    now: Timestamp,
) -> Condition {
    condition(cluster, READY, phase == Phase::Ready, told, now)
}

fn pending_change(cluster: &Cluster, behind: usize, now: Timestamp) -> Condition {
    let message = match behind {
        0 => return condition(cluster, PENDING_CHANGE, false, ("UpToDate", ""), now),
        1 => "1 pod was made from other settings; the next one has these".to_owned(),
        many => format!("{many} pods were made from other settings; the next ones have these"),
    };
    condition(cluster, PENDING_CHANGE, true, ("NextPods", &message), now)
}

/// A condition, with the time of its last change kept while it does not change.
fn condition(
    cluster: &Cluster,
    kind: &str,
    is_true: bool,
    (reason, message): (&str, &str),
    now: Timestamp,
) -> Condition {
    let status = if is_true { "True" } else { "False" };
    let known = cluster.status.iter().flat_map(|status| &status.conditions);
    let since = known
        .filter(|condition| condition.type_ == kind && condition.status == status)
        .map(|condition| condition.last_transition_time.clone())
        .next();
    let last_transition_time = since.or_else(|| whole_seconds(now)).unwrap_or(Time(now));
    Condition {
        type_: kind.to_owned(),
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
