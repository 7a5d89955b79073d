//! What is said of pods that take long and do not say why: where to look.

use std::time::Duration;

use ebbtide_api::{Cluster, names};
use jiff::Timestamp;
use kube::ResourceExt as _;

use crate::lifetime::since;
use crate::{Observed, PodSeen, SchedulerAddress, Site};

/// How long a pod may take to begin, and to be heard of, before people are told where to look.
const START_MAX: Duration = Duration::from_mins(1);

const WAITING: &str = "waiting for the scheduler to answer";

/// What the scheduler is waited for.
pub(crate) fn scheduler(
    (cluster, site): (&Cluster, &Site),
    observed: &Observed,
    now: Timestamp,
) -> String {
    // Processes of one machine have neither nodes nor policies.
    if matches!(site.scheduler_address, SchedulerAddress::Fixed(_)) {
        return WAITING.to_owned();
    }
    let name = names::scheduler(&cluster.name_any());
    let pod = observed.pods.iter().find(|it| it.name == name);
    let slow = pod.and_then(|it| match it {
        PodSeen { is_deleting: true, .. } => Some(format!(
            "{name} is being deleted, and another one comes when it is gone; on a node that does not answer \
             that is when the node is back or deleted, or when the pod is deleted by force"
        )),
        pod if pod.is_well() && is_slow(pod, now) => Some(format!(
            "{name} runs and has not reached the operator: its log says why (`ebbtide logs`); policies may \
             close its way out, or its image is of another release"
        )),
        pod => begins(pod, now),
    });
    slow.unwrap_or_else(|| WAITING.to_owned())
}

/// What the first worker of a group is waited for that takes long to begin.
pub(crate) fn worker(group: &str, observed: &Observed, now: Timestamp) -> Option<String> {
    let is_of = |it: &&PodSeen| it.labels.get(names::WORKER_GROUP).is_some_and(|it| it == group);
    observed.pods.iter().filter(is_of).find_map(|it| begins(it, now))
}

/// What is said of a pod that has not begun for long, and of which nobody says why.
pub(crate) fn begins(pod: &PodSeen, now: Timestamp) -> Option<String> {
    (pod.is_beginning() && is_slow(pod, now)).then(|| {
        format!(
            "{} has not begun: its image, its volumes, its network or its init containers are not ready; its \
             events say more (`ebbtide describe`)",
            pod.name
        )
    })
}

/// When something of this is to be said, if it may come to that.
pub(crate) fn next_look(observed: &Observed, now: Timestamp) -> Option<Duration> {
    let is_unheard = observed.demand.is_none();
    let may_be_slow = |it: &&PodSeen| it.is_beginning() || is_unheard && it.is_well();
    let rests = observed.pods.iter().filter(may_be_slow).filter_map(|it| rest(it, now));
    rests.filter(|it| !it.is_zero()).min()
}

/// How long until it takes long, if that is known of it.
pub(crate) fn rest(pod: &PodSeen, now: Timestamp) -> Option<Duration> {
    pod.stage_since.or(pod.created_at).map(|it| START_MAX.saturating_sub(since(it, now)))
}

fn is_slow(pod: &PodSeen, now: Timestamp) -> bool {
    rest(pod, now) == Some(Duration::ZERO)
}
