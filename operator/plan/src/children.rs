//! Sorts the observed pods into what the rest of the plan treats alike, each pod in one place.

use std::collections::BTreeMap;
use std::time::Duration;

use ebbtide_api::{Cluster, names};
use jiff::Timestamp;
use kube::ResourceExt as _;

use crate::pods::made_from;
use crate::{Change, Observed, Op, PodPhase, PodRef, PodSeen, Trouble};

/// How long a pod that ended keeps its name.
const PAUSE_AFTER_END: Duration = Duration::from_secs(10);

/// A pod that ended sooner than this cannot live, and nobody takes its place while it has its name:
/// another one would end as soon.
const LIFE_MIN: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(crate) struct Children {
    /// The scheduler's pod, unless it has ended.
    pub(crate) scheduler: Option<PodSeen>,
    /// Whether the scheduler cannot start or ended.
    pub(crate) is_scheduler_in_trouble: bool,
    /// Whether the scheduler's name is taken, by a pod in whatever state.
    pub(crate) is_scheduler_held: bool,
    /// Workers that live, by index.
    pub(crate) workers: BTreeMap<u32, Worker>,
    /// Indices whose name is taken by a pod that ended or is going.
    pub(crate) held: Vec<u32>,
    /// How many of those could not live.
    pub(crate) stillborn: usize,
    /// Pods that ended and have waited long enough.
    pub(crate) ended: Vec<PodRef>,
    /// Workers of a group that the spec no longer has.
    pub(crate) strays: Vec<PodRef>,
    /// How many of those that run were made from settings that are others now.
    pub(crate) behind: usize,
    /// Pods that did not start and were made from settings that are others now.
    pub(crate) outdated: Vec<PodRef>,
    /// Why the scheduler cannot start, or ended, with its name.
    pub(crate) of_scheduler: Option<(String, Trouble)>,
    /// Why workers cannot start, or ended, with their names.
    pub(crate) troubles: Vec<(String, Trouble)>,
    /// How many workers ended and are not made again yet.
    pub(crate) failed: usize,
    pub(crate) next_look: Option<Duration>,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pod: PodRef,
    pub(crate) is_registered: bool,
}

impl Children {
    pub(crate) fn sort(cluster: &Cluster, observed: &Observed, now: Timestamp) -> Self {
        let mut children = Self::default();
        let scheduler = names::scheduler(&cluster.name_any());
        let (leader, group) = (&cluster.spec.scheduler, &cluster.spec.workers[0]);
        let leader_from = made_from(&leader.resources, &leader.pod);
        let group_from = made_from(&group.resources, &group.pod);
        let is_behind =
            |pod: &PodSeen, from: &String| pod.made_from.as_ref().is_some_and(|it| it != from);
        let is_outdated =
            |pod: &PodSeen, from: &String| pod.phase == PodPhase::Pending && is_behind(pod, from);
        for pod in &observed.pods {
            if let Some(trouble) = pod.trouble.as_ref().filter(|_| !pod.is_deleting) {
                let is_leader = pod.name == scheduler;
                children.is_scheduler_in_trouble |= is_leader && !trouble.may_pass();
                let named = (pod.name.clone(), trouble.clone());
                if is_leader {
                    children.of_scheduler = Some(named);
                } else {
                    children.troubles.push(named);
                }
            }
            let is_over = pod.is_deleting || pod.phase == PodPhase::Ended;
            if pod.phase == PodPhase::Ended && !pod.is_deleting {
                children.end(pod, now);
            }
            if pod.name == scheduler {
                children.is_scheduler_held = true;
                children.scheduler = (!is_over).then(|| pod.clone());
                // It starts again and again in the same pod, and counts as running meanwhile.
                let is_stuck = pod.trouble.as_ref().is_some_and(|it| !it.may_pass());
                let is_due =
                    is_outdated(pod, &leader_from) || is_stuck && is_behind(pod, &leader_from);
                if !is_over && observed.demand.is_none() && is_due {
                    children.outdated.push(pod_ref(pod));
                }
                children.behind += usize::from(!is_over && is_behind(pod, &leader_from));
                continue;
            }
            let Some(index) = index(cluster, &group.name, pod) else {
                let of_old = pod.labels.get(names::WORKER_GROUP);
                if !is_over && of_old.is_some_and(|old| index(cluster, old, pod).is_some()) {
                    children.strays.push(pod_ref(pod));
                }
                continue;
            };
            if is_over {
                children.failed += usize::from(!pod.is_deleting);
                children.stillborn += usize::from(!pod.is_deleting && is_stillborn(pod));
                children.held.push(index);
                continue;
            }
            let is_registered =
                observed.demand.as_ref().is_some_and(|it| it.workers.contains_key(&pod.name));
            if !is_registered && is_outdated(pod, &group_from) {
                children.outdated.push(pod_ref(pod));
                children.held.push(index);
                continue;
            }
            children.behind += usize::from(is_behind(pod, &group_from));
            children.workers.insert(index, Worker { pod: pod_ref(pod), is_registered });
        }
        children
    }

    fn end(&mut self, pod: &PodSeen, now: Timestamp) {
        let since = pod.ended_at.map_or(PAUSE_AFTER_END, |at| crate::lifetime::since(at, now));
        match PAUSE_AFTER_END.checked_sub(since) {
            Some(rest) if !rest.is_zero() => {
                self.next_look = Some(self.next_look.map_or(rest, |look| look.min(rest)));
            }
            _ => self.ended.push(pod_ref(pod)),
        }
    }

    /// Pods that ended give their names free.
    pub(crate) fn clear_away(&self) -> impl Iterator<Item = Change> {
        let ended = self.ended.iter().map(|pod| (pod, "it has ended"));
        let strays = self.strays.iter().map(|pod| (pod, "the spec has no such worker group"));
        let outdated =
            self.outdated.iter().map(|pod| (pod, "its settings changed before it started"));
        ended
            .chain(strays)
            .chain(outdated)
            .map(|(pod, why)| Change { op: Op::DeletePod(pod.clone()), why })
    }
}

fn is_stillborn(pod: &PodSeen) -> bool {
    let (Some(created_at), Some(ended_at)) = (pod.created_at, pod.ended_at) else { return false };
    crate::lifetime::since(created_at, ended_at) < LIFE_MIN
}

pub(crate) fn pod_ref(pod: &PodSeen) -> PodRef {
    PodRef { name: pod.name.clone(), uid: pod.uid.clone() }
}

/// The index of a worker, if the pod's name is the one that we would give to it.
fn index(cluster: &Cluster, group: &str, pod: &PodSeen) -> Option<u32> {
    let index = pod.labels.get(names::INDEX)?.parse().ok()?;
    (names::worker(&cluster.name_any(), group, index) == pod.name).then_some(index)
}
