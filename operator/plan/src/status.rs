//! What the user sees: computed from what was observed, never from what is hoped.

use std::collections::BTreeMap;
use std::time::Duration;

use ebbtide_api::status::{CAUSES_MAX, Cause, CauseCount, GroupStatus};
use ebbtide_api::{Cluster, ClusterStatus, GROUPS_MAX, MESSAGE_MAX, Phase, WorkerCounts, names};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt as _;

use crate::children::Children;
use crate::image::{is_told_to_have_begun, scheduler};
use crate::lifetime::{Idle, jobs};
use crate::scaling::{Target, homeless};
use crate::slow;
use crate::trouble::{LASTING, Trouble, refusal, refused};
use crate::{Observed, Plan, PodSeen, Refusal, Site, Stage, Unmade, scheduler_addresses};

/// The condition of a cluster whose scheduler answers and that has its least number of workers.
pub(crate) const READY: &str = "Ready";
/// The condition of a cluster whose pods are not as its spec says.
pub const PENDING_CHANGE: &str = "PendingChange";

/// Groups that a status tells of: as many as there can be, and as many that are going.
const GROUPS_TOLD_MAX: usize = 2 * GROUPS_MAX;

pub(crate) struct Facts<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) children: &'a Children,
    pub(crate) observed: &'a Observed,
    pub(crate) site: &'a Site,
    pub(crate) image: &'a str,
    /// The image that its spec asks for and that it cannot have any more.
    pub(crate) other: Option<&'a str>,
    pub(crate) key: Option<String>,
    pub(crate) idle: &'a Idle,
    /// One for each group of the children.
    pub(crate) targets: &'a [Target],
    pub(crate) now: Timestamp,
}

pub(crate) fn observed(facts: &Facts<'_>) -> ClusterStatus {
    let Facts { cluster, children, observed, targets, .. } = facts;
    let groups: Vec<GroupStatus> = groups(children, targets);
    let lacking = cluster.spec.groups().zip(&groups);
    let lacking = lacking
        .map(|((_, min), group)| (min, group))
        .find(|(min, group)| group.workers.ready < *min);
    let Found { lasting: trouble, passing: waits, is_hurt, is_short } = Found::of(facts, &groups);
    let homeless = observed.demand.as_ref().map_or(0, |demand| homeless(cluster, demand));
    let (phase, reason, message) = if facts.idle.is_over {
        (Phase::Deleting, "Idle", "there was no work for spec.lifetime.idle.after".to_owned())
    } else if let Some(trouble) = trouble.filter(|_| is_hurt) {
        (Phase::Degraded, trouble.1.cause.as_str(), words(trouble))
    } else if let Some(waits) = waits.filter(|_| is_short) {
        (Phase::Starting, waits.1.cause.as_str(), words(waits))
    } else if observed.demand.is_none() || !children.has_scheduler {
        (
            Phase::Starting,
            "SchedulerStarting",
            slow::scheduler((cluster, facts.site), observed, facts.now),
        )
    } else if let Some((min, GroupStatus { name, workers, .. })) = lacking {
        let message = format!("{} of {min} workers of {name} are registered", workers.ready);
        let slow = slow::worker(name, observed, facts.now).map(|it| format!("; {it}"));
        let message = message + &slow.unwrap_or_default();
        (Phase::Starting, "WorkersStarting", message)
    } else {
        (Phase::Ready, "SchedulerAnswers", "the scheduler answers".to_owned())
    };
    ClusterStatus {
        phase,
        message: if phase == Phase::Ready {
            let of_pods = trouble.or(waits).map(|it| bounded(&words(it)));
            let of_pods = of_pods.or_else(|| (homeless > 0).then(|| fits_nowhere(homeless)));
            of_pods.or_else(|| keeps(facts))
        } else {
            Some(bounded(&message))
        },
        observed_generation: cluster.metadata.generation,
        conditions: vec![
            ready_condition(cluster, phase, (reason, &message), facts.now),
            pending_change(facts),
        ],
        workers: sum(&groups),
        replicas: groups
            .first()
            .map_or(0, |it| it.workers.starting.saturating_add(it.workers.ready)),
        selector: Some(selector(cluster)),
        groups,
        scheduler_address: scheduler_addresses(cluster, facts.site).into_iter().next(),
        environment_key: facts.key.clone(),
        image: Some(facts.image.to_owned()),
        image_digest: scheduler(cluster, observed).and_then(|it| it.image_digest.clone()),
        started_at: started_at(facts),
        idle_since: facts.idle.since.and_then(whole_seconds),
        jobs: match &observed.demand {
            Some(demand) if !demand.is_busy() => Some(jobs(demand)),
            _ => cluster.status.as_ref().and_then(|status| status.jobs),
        },
        ..ClusterStatus::default()
    }
}

/// When its scheduler answered for the first time.
fn started_at(facts: &Facts<'_>) -> Option<Time> {
    let known = facts.cluster.status.as_ref().and_then(|it| it.started_at.clone());
    let answers = facts.observed.demand.is_some() && facts.children.has_scheduler;
    known.or_else(|| whole_seconds(facts.now).filter(|_| answers))
}

/// How long a cluster that was ready counts as ready though its scheduler has no connection: when an
/// operator begins, all of them dial anew.
const SILENCE: Duration = Duration::from_secs(10);

/// A plan whose status waits for a scheduler that runs and says nothing yet.
pub(crate) fn patient(cluster: &Cluster, observed: &Observed, plan: Plan) -> Plan {
    let rest = SILENCE.saturating_sub(observed.silent_for);
    let name = names::scheduler(&cluster.name_any());
    let is_well = |it: &PodSeen| it.name == name && it.is_well();
    let before = cluster.status.as_ref().filter(|it| {
        it.phase == Phase::Ready && it.observed_generation == cluster.metadata.generation
    });
    match before {
        Some(before)
            if observed.demand.is_none()
                && plan.status.phase == Phase::Starting
                && !rest.is_zero()
                && observed.pods.iter().any(is_well) =>
        {
            let next_look = [plan.next_look, Some(rest)].into_iter().flatten().min();
            let credentials = plan.status.credentials.clone();
            let status = ClusterStatus { credentials, ..before.clone() };
            Plan { status, next_look, ..plan }
        }
        _ => plan,
    }
}

/// A plan whose status does not take another start for recovery: what ended with an error may do so again, and counts
/// as degraded until the cluster is ready.
pub(crate) fn steady(cluster: &Cluster, plan: Plan) -> Plan {
    let Some(before) = cluster.status.as_ref().filter(|it| {
        it.phase == Phase::Degraded && it.observed_generation == cluster.metadata.generation
    }) else {
        return plan;
    };
    let ended = [Cause::Exit, Cause::OutOfMemory].map(Cause::as_str);
    let starts = ["SchedulerStarting", "WorkersStarting"];
    let told = ready(before).filter(|it| ended.contains(&&*it.reason));
    // A group that comes for work may have nobody yet though the cluster is ready.
    let lacks = |it: &GroupStatus| it.workers.desired > 0 && it.workers.ready == 0;
    let is_start = ready(&plan.status).is_some_and(|it| starts.contains(&&*it.reason))
        || plan.status.phase == Phase::Ready && plan.status.groups.iter().any(lacks);
    let Some(told) = told.filter(|_| is_start) else { return plan };
    let status = ClusterStatus {
        phase: Phase::Degraded,
        message: Some(told.message.clone()),
        conditions: with_condition(told.clone(), &plan.status.conditions),
        ..plan.status
    };
    Plan { status, ..plan }
}

/// The condition that tells whether a cluster is ready, and why not.
pub fn ready(status: &ClusterStatus) -> Option<&Condition> {
    status.conditions.iter().find(|it| it.type_ == READY)
}

/// A trouble that people are told of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct News {
    /// Its reason, as conditions and causes have it.
    pub reason: String,
    /// The field of the status that tells it.
    pub field: String,
    /// What is told.
    pub note: String,
}

/// What people are told of when a status is written: troubles that the one before did not have.
pub fn news(before: Option<&ClusterStatus>, next: &ClusterStatus) -> Vec<News> {
    let is_known = |group: &str, cause| {
        let mut groups = before.iter().flat_map(|it| &it.groups).filter(|it| it.name == group);
        groups.any(|it| it.causes.iter().any(|it| it.cause == cause))
    };
    let of_groups =
        next.groups.iter().flat_map(|it| it.causes.iter().map(move |cause| (it, cause)));
    let of_groups = of_groups.filter(|(group, it)| !is_known(&group.name, it.cause));
    let mut told: Vec<News> = of_groups
        .map(|(group, it)| News {
            reason: it.cause.as_str().to_owned(),
            field: format!("status.groups[{}]", group.name),
            note: format!("{}: {}", group.name, it.message),
        })
        .collect();
    let reason = before.and_then(ready).map(|it| &it.reason);
    let is_trouble = |it: &&Condition| {
        next.phase == Phase::Degraded || Cause::ALL.iter().any(|cause| cause.as_str() == it.reason)
    };
    let of_all = ready(next).filter(is_trouble).filter(|it| Some(&it.reason) != reason);
    let of_all = of_all.filter(|it| told.iter().all(|told| told.reason != it.reason));
    told.extend(of_all.map(|it| News {
        reason: it.reason.clone(),
        field: "status.conditions[Ready]".to_owned(),
        note: it.message.clone(),
    }));
    told
}

/// A plan whose status does not forget what the cluster's Secrets hold, and what it runs.
pub(crate) fn mindful(cluster: &Cluster, plan: Plan) -> Plan {
    let Some(before) = &cluster.status else { return plan };
    let next = plan.status.clone();
    let status = ClusterStatus {
        credentials: next.credentials.or_else(|| before.credentials.clone()),
        started_at: next.started_at.or_else(|| before.started_at.clone()),
        image: next.image.or_else(|| before.image.clone()),
        ..plan.status
    };
    Plan { status, ..plan }
}

/// Whether a status says more than other counts, and people wait for it.
pub fn is_urgent(before: Option<&ClusterStatus>, next: &ClusterStatus) -> bool {
    let Some(before) = before else { return next.phase != Phase::Starting };
    let told = |it: &ClusterStatus| -> Vec<(String, String, String)> {
        let conditions = it.conditions.iter();
        conditions.map(|it| (it.type_.clone(), it.status.clone(), it.reason.clone())).collect()
    };
    let decided = |it: &ClusterStatus| {
        let (image, credentials) = (it.image.clone(), it.credentials.clone());
        (it.phase, it.observed_generation, it.started_at.is_some(), image, credentials)
    };
    decided(before) != decided(next) || told(before) != told(next)
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

/// What goes wrong, and whom it hurts.
struct Found<'a> {
    /// What does not pass by itself.
    lasting: Option<&'a (String, Trouble)>,
    /// What may.
    passing: Option<&'a (String, Trouble)>,
    /// Whether what lasts keeps the cluster from what it has to do.
    is_hurt: bool,
    /// Whether what may pass does.
    is_short: bool,
}

impl<'a> Found<'a> {
    /// Trouble of the scheduler comes before that of workers, and that of a group that lacks workers
    /// before others'.
    fn of(facts: &Facts<'a>, groups: &[GroupStatus]) -> Self {
        let children = facts.children;
        let is_unheard = facts.observed.demand.is_none();
        let lacks = |nth: usize| -> bool {
            let needed = i32::try_from(facts.targets[nth].needed).unwrap_or(i32::MAX);
            is_unheard || groups[nth].workers.ready < needed
        };
        let of_scheduler = children.of_scheduler.iter().map(|it| (it, is_unheard));
        let of_groups = children.groups.iter().enumerate();
        let of_groups = of_groups.flat_map(|(nth, it)| it.troubles.iter().map(move |it| (it, nth)));
        let of_groups = of_groups.map(|(it, nth)| (it, lacks(nth)));
        let mut all: Vec<(&(String, Trouble), bool)> = of_scheduler.chain(of_groups).collect();
        all.sort_by_key(|(_, hurts)| !hurts);
        let first = |may_pass| all.iter().find(|((_, it), _)| it.may_pass() == may_pass);
        let (lasting, passing) = (first(false), first(true));
        Self {
            is_hurt: children.is_scheduler_in_trouble || lasting.is_some_and(|(_, hurts)| *hurts),
            is_short: passing.is_some_and(|(_, hurts)| *hurts),
            lasting: lasting.map(|(it, _)| *it),
            passing: passing.map(|(it, _)| *it),
        }
    }
}

fn words((pod, trouble): &(String, Trouble)) -> String {
    format!("{pod}: {}", trouble.message)
}

fn fits_nowhere(tasks: u64) -> String {
    format!("{tasks} tasks wait for more memory or other resources than a worker of any group has")
}

/// What there is of each group, those last that the spec no longer has.
fn groups(children: &Children, targets: &[Target]) -> Vec<GroupStatus> {
    let groups = children.groups.iter().zip(targets);
    groups
        .map(|(workers, target)| {
            let ready = workers.registered();
            GroupStatus {
                name: workers.group.clone(),
                workers: WorkerCounts {
                    desired: i32::try_from(target.desired).unwrap_or(i32::MAX),
                    starting: count(workers.living.len() - ready),
                    ready: count(ready),
                    retiring: count(target.to_retire.len() + target.retiring as usize),
                    failed: count(workers.failed),
                },
                idle_since: target.idle_since.and_then(whole_seconds),
                causes: causes(&workers.troubles),
            }
        })
        .take(GROUPS_TOLD_MAX)
        .collect()
}

fn sum(groups: &[GroupStatus]) -> WorkerCounts {
    groups.iter().fold(WorkerCounts::default(), |mut sum, it| {
        sum += it.workers;
        sum
    })
}

/// The commonest causes, each with what is said of its first pod.
fn causes(troubles: &[(String, Trouble)]) -> Vec<CauseCount> {
    let mut found = BTreeMap::<Cause, CauseCount>::new();
    for (_, Trouble { cause, message }) in troubles {
        let first = || CauseCount { cause: *cause, pods: 0, message: bounded(message) };
        found.entry(*cause).or_insert_with(first).pods += 1;
    }
    commonest(found.into_values().collect())
}

fn commonest(mut causes: Vec<CauseCount>) -> Vec<CauseCount> {
    causes.sort_by_key(|it| std::cmp::Reverse(it.pods));
    causes.truncate(CAUSES_MAX);
    causes
}

/// A group that tells which of its pods were refused in this look, and not in an earlier one.
fn with_refused(group: &GroupStatus, unmade: &[Unmade]) -> GroupStatus {
    let group = group.clone().without_unmade();
    let unmade = unmade.iter().filter(|it| it.group == group.name);
    let WorkerCounts { desired, starting, ready, .. } = group.workers;
    let refused = unmade.filter_map(|Unmade { made, words, is_lasting, .. }| {
        let there = starting.saturating_add(ready).saturating_add(count(*made));
        let pods = Some(desired.saturating_sub(there)).filter(|it| *it > 0)?;
        let (cause, message) = (refused(words, *is_lasting)?, bounded(words));
        Some(CauseCount { cause, pods, message })
    });
    let causes = group.causes.iter().cloned().chain(refused).collect();
    GroupStatus { causes: commonest(causes), ..group }
}

/// Of pods that were made from other settings, and what is said of those that come after them.
const NEXT_PODS: &str = "NextPods";
const NO_PODS: &str =
    "there are pods that were made from other settings; none is made until the spec is right";

/// What there is of a cluster of whose spec nothing can be made.
pub(crate) fn degraded(
    cluster: &Cluster,
    (reason, message): (&str, &str),
    planned: ClusterStatus,
    now: Timestamp,
) -> ClusterStatus {
    if planned.phase == Phase::Deleting {
        return planned;
    }
    let told = ready_condition(cluster, Phase::Degraded, (reason, message), now);
    let mut conditions = with_condition(told, &planned.conditions);
    for pending in conditions.iter_mut().filter(|it| it.reason == NEXT_PODS) {
        NO_PODS.clone_into(&mut pending.message);
    }
    ClusterStatus {
        phase: Phase::Degraded,
        message: Some(bounded(message)),
        observed_generation: cluster.metadata.generation,
        conditions,
        ..planned
    }
}

/// The status when a change could not be made: what was observed, and what went wrong.
pub(crate) fn stuck(
    cluster: &Cluster,
    planned: &ClusterStatus,
    (why, unmade): (&Refusal<'_>, &[Unmade]),
    now: Timestamp,
) -> ClusterStatus {
    let message = Some(bounded(why.words));
    let groups = planned.groups.iter().map(|it| with_refused(it, unmade)).collect();
    // What is there may still be of the image before.
    let before = cluster.status.as_ref().and_then(|it| it.image.clone());
    let image = before.or_else(|| planned.image.clone());
    let status = ClusterStatus { message, image, groups, ..planned.clone() };
    let reason = refusal(why);
    let phase = match planned.phase {
        Phase::Deleting => Phase::Deleting,
        _ if LASTING.contains(&reason) => Phase::Degraded,
        // It works; it only does not grow.
        Phase::Ready if why.at == Stage::Pods => return status,
        Phase::Ready | Phase::Starting => Phase::Starting,
        Phase::Degraded => Phase::Degraded,
    };
    let is_lasting = LASTING.contains(&reason);
    let told = ready_condition(cluster, phase, (reason, why.words), now);
    let conditions = if phase == Phase::Degraded && !is_lasting {
        // It is why before, and will be why after.
        planned.conditions.clone()
    } else {
        with_condition(told, &planned.conditions)
    };
    let is_judged = why.at != Stage::Trials || is_lasting;
    // What was not tried to the end is tried again.
    let before = cluster.status.as_ref().and_then(|it| it.observed_generation);
    let observed_generation = if is_judged { status.observed_generation } else { before };
    ClusterStatus { phase, conditions, observed_generation, ..status }
}

/// As much of a message as a status takes.
pub(crate) fn bounded(message: &str) -> String {
    if message.chars().count() <= MESSAGE_MAX {
        return message.to_owned();
    }
    let begin = message.chars().take(MESSAGE_MAX - 1);
    begin.chain(['…']).collect()
}

/// One that somebody deleted and that waits for what it has.
pub(crate) fn deleting(cluster: &Cluster, now: Timestamp) -> ClusterStatus {
    going(cluster, ("Deleting", "it is being deleted"), now)
}

/// One that is as old as it may become.
pub(crate) fn expired(cluster: &Cluster, now: Timestamp) -> ClusterStatus {
    going(cluster, ("Expired", "it is as old as spec.lifetime.max.after"), now)
}

fn going(cluster: &Cluster, (reason, message): (&str, &str), now: Timestamp) -> ClusterStatus {
    let told = ready_condition(cluster, Phase::Deleting, (reason, message), now);
    let status = cluster.status.clone().unwrap_or_default();
    // It gets no more pods.
    let groups = status.groups.into_iter().map(GroupStatus::without_unmade).collect();
    ClusterStatus {
        phase: Phase::Deleting,
        groups,
        message: Some(message.to_owned()),
        observed_generation: cluster.metadata.generation,
        conditions: with_condition(told, &status.conditions),
        ..status
    }
}

/// This condition, and what others are known.
pub(crate) fn with_condition(told: Condition, known: &[Condition]) -> Vec<Condition> {
    let others = known.iter().filter(|it| it.type_ != told.type_).cloned().collect::<Vec<_>>();
    std::iter::once(told).chain(others).collect()
}

fn ready_condition(
    cluster: &Cluster,
    phase: Phase,
    told: (&str, &str),
    now: Timestamp,
) -> Condition {
    condition(cluster, READY, phase == Phase::Ready, told, now)
}

/// What is to be done for an image that a cluster cannot have any more.
fn keeps(facts: &Facts<'_>) -> Option<String> {
    let (image, other) = (facts.image, facts.other?);
    Some(bounded(&if is_told_to_have_begun(facts.cluster) {
        format!(
            "it has begun with the image {image} and keeps it; for {other} delete the cluster and \
             create it again"
        )
    } else {
        format!("it may have begun with the image {image}; if it has not, {other} follows")
    }))
}

fn pending_change(facts: &Facts<'_>) -> Condition {
    let Facts { cluster, now, .. } = *facts;
    if let Some(message) = keeps(facts) {
        return condition(cluster, PENDING_CHANGE, true, ("OtherImage", &message), now);
    }
    let message = match facts.children.behind {
        0 => return condition(cluster, PENDING_CHANGE, false, ("UpToDate", ""), now),
        1 => "1 pod was made from other settings; the next one has these".to_owned(),
        many => format!("{many} pods were made from other settings; the next ones have these"),
    };
    condition(cluster, PENDING_CHANGE, true, (NEXT_PODS, &message), now)
}

/// A condition, with the time of its last change kept while it does not change.
fn condition(
    cluster: &Cluster,
    kind: &str,
    is_true: bool,
    told: (&str, &str),
    now: Timestamp,
) -> Condition {
    let known = cluster.status.as_ref().map_or(&[][..], |it| &it.conditions);
    condition_after(known, cluster.metadata.generation, (kind, is_true, told), now)
}

/// The same after those that are known.
pub(crate) fn condition_after(
    known: &[Condition],
    generation: Option<i64>,
    (kind, is_true, (reason, message)): (&str, bool, (&str, &str)),
    now: Timestamp,
) -> Condition {
    let status = if is_true { "True" } else { "False" };
    let since = known
        .iter()
        .filter(|condition| condition.type_ == kind && condition.status == status)
        .map(|condition| condition.last_transition_time.clone())
        .next();
    let last_transition_time = since.or_else(|| whole_seconds(now)).unwrap_or(Time(now));
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: bounded(message),
        observed_generation: generation,
        last_transition_time,
    }
}

/// Kubernetes keeps whole seconds: anything finer would differ at every read.
pub(crate) fn whole_seconds(at: Timestamp) -> Option<Time> {
    Timestamp::from_second(at.as_second()).ok().map(Time)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
