//! Sorts the observed pods into what the rest of the plan treats alike, each pod in one place.

use std::collections::BTreeMap;
use std::time::Duration;

use ebbtide_api::{Cluster, names};
use jiff::Timestamp;
use kube::ResourceExt as _;

use crate::pods::made_from;
use crate::{Change, ObjectRef, Observed, Op, PodPhase, PodSeen, Trouble};

/// How long a pod that ended keeps its name.
const PAUSE_AFTER_END: Duration = Duration::from_secs(10);

/// A pod that ended sooner than this cannot live, and nobody takes its place while it has its name:
/// another one would end as soon.
const LIFE_MIN: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(crate) struct Children {
    /// Whether the scheduler cannot start or ended.
    pub(crate) is_scheduler_in_trouble: bool,
    /// Whether the scheduler's name is taken, by a pod in whatever state.
    pub(crate) is_scheduler_held: bool,
    /// The workers of each group of the spec, in its order, and of groups that it no longer has.
    pub(crate) groups: Vec<Workers>,
    /// Pods that ended and have waited long enough.
    pub(crate) ended: Vec<ObjectRef>,
    /// How many of those that run were made from settings that are others now.
    pub(crate) behind: usize,
    /// Whether the scheduler is one that stays.
    pub(crate) has_scheduler: bool,
    /// Pods that were made from what is other now, and need not stay, and why.
    pub(crate) outdated: Vec<(ObjectRef, &'static str)>,
    /// Why the scheduler cannot start, or ended, with its name.
    pub(crate) of_scheduler: Option<(String, Trouble)>,
    pub(crate) next_look: Option<Duration>,
}

/// The workers of one group.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    pub(crate) group: String,
    /// Those that live, by index.
    pub(crate) living: BTreeMap<u32, Worker>,
    /// Indices whose name is taken by a pod that ended or is going.
    pub(crate) held: Vec<u32>,
    /// How many of those could not live.
    pub(crate) stillborn: usize,
    /// How many ended and are not made again yet.
    pub(crate) failed: usize,
    /// Why some cannot start, or ended, with their names.
    pub(crate) troubles: Vec<(String, Trouble)>,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pod: ObjectRef,
    pub(crate) is_registered: bool,
}

impl Workers {
    fn of(group: &str) -> Self {
        Self { group: group.to_owned(), ..Self::default() }
    }

    pub(crate) fn registered(&self) -> usize {
        self.living.values().filter(|it| it.is_registered).count()
    }
}

/// By what pods are sorted.
#[derive(Clone, Copy)]
struct Look<'a> {
    cluster: &'a Cluster,
    observed: &'a Observed,
    image: Option<&'a str>,
    now: Timestamp,
}

impl Children {
    /// With an image, pods of another one go whatever they do.
    pub(crate) fn sort(
        cluster: &Cluster,
        observed: &Observed,
        image: Option<&str>,
        now: Timestamp,
    ) -> Self {
        let groups = cluster.spec.workers.iter().map(|group| Workers::of(&group.name));
        let mut children = Self { groups: groups.collect(), ..Self::default() };
        let scheduler = names::scheduler(&cluster.name_any());
        let look = Look { cluster, observed, image, now };
        for pod in &observed.pods {
            if pod.phase == PodPhase::Ended && !pod.is_deleting {
                children.end(pod, now);
            }
            if pod.name == scheduler {
                children.take_scheduler(look, pod);
            } else {
                children.take_worker(look, pod);
            }
        }
        children
    }

    fn take_scheduler(&mut self, look: Look<'_>, pod: &PodSeen) {
        let Look { cluster, observed, image, .. } = look;
        let spec = &cluster.spec.scheduler;
        let from = made_from(&spec.resources, &spec.pod);
        let trouble = pod.trouble.as_ref().filter(|_| !pod.is_deleting);
        let is_stuck = trouble.is_some_and(|it| !it.may_pass());
        self.is_scheduler_in_trouble |= is_stuck;
        self.of_scheduler = trouble.map(|it| (pod.name.clone(), it.clone()));
        self.is_scheduler_held = true;
        // It starts again and again in the same pod, and counts as running meanwhile.
        let is_changed = is_outdated(pod, &from) || is_stuck && is_behind(pod, &from);
        let is_changed = is_changed && observed.demand.is_none();
        let why = why_outdated(cluster, pod, image, is_changed);
        self.has_scheduler = !is_over(pod) && why.is_none();
        self.outdated.extend(why.filter(|_| !is_over(pod)).map(|why| (pod_ref(pod), why)));
        self.behind += usize::from(is_alive(pod) && is_behind(pod, &from));
    }

    fn take_worker(&mut self, look: Look<'_>, pod: &PodSeen) {
        let Look { cluster, observed, image, now } = look;
        let Some(name) = pod.labels.get(names::WORKER_GROUP) else { return };
        let Some(index) = index(cluster, name, pod) else { return };
        let spec = cluster.spec.workers.iter().find(|it| it.name == *name);
        let from = spec.map(|group| made_from(&group.resources, &group.pod));
        let is_registered =
            observed.demand.as_ref().is_some_and(|it| it.workers.contains_key(&pod.name));
        let is_outdated = from.as_ref().is_some_and(|from| is_outdated(pod, from));
        let is_behind = from.as_ref().is_none_or(|from| is_behind(pod, from));
        self.behind += usize::from(is_alive(pod) && is_behind && !is_outdated);
        let why = why_outdated(cluster, pod, image, is_outdated && !is_registered);
        self.outdated.extend(why.filter(|_| !is_over(pod)).map(|why| (pod_ref(pod), why)));
        let workers = self.group(name);
        if let Some(trouble) = pod.trouble.as_ref().filter(|_| !pod.is_deleting) {
            workers.troubles.push((pod.name.clone(), trouble.clone()));
        }
        if is_over(pod) {
            workers.failed += usize::from(!pod.is_deleting);
            workers.stillborn += usize::from(!pod.is_deleting && is_stillborn(pod, now));
            workers.held.push(index);
        } else if why.is_some() {
            workers.held.push(index);
        } else {
            workers.living.insert(index, Worker { pod: pod_ref(pod), is_registered });
        }
    }

    /// The workers of a group of this name, which the spec may no longer have.
    fn group(&mut self, name: &str) -> &mut Workers {
        let at = self.groups.iter().position(|it| it.group == name).unwrap_or_else(|| {
            self.groups.push(Workers::of(name));
            self.groups.len() - 1
        });
        &mut self.groups[at]
    }

    fn end(&mut self, pod: &PodSeen, now: Timestamp) {
        let since = pod.ended_at.map_or(PAUSE_AFTER_END, |at| crate::lifetime::since(at, now));
        // The clock of its node may be ahead.
        match PAUSE_AFTER_END.checked_sub(since.max(pod.told_for)) {
            Some(rest) if !rest.is_zero() => {
                self.next_look = Some(self.next_look.map_or(rest, |look| look.min(rest)));
            }
            _ => self.ended.push(pod_ref(pod)),
        }
    }

    /// Pods that ended give their names free.
    pub(crate) fn clear_away(&self) -> impl Iterator<Item = Change> {
        let ended = self.ended.iter().map(|pod| (pod, "it has ended"));
        let outdated = self.outdated.iter().map(|(pod, why)| (pod, *why));
        ended.chain(outdated).map(|(pod, why)| Change { op: Op::DeletePod(pod.clone()), why })
    }
}

fn is_over(pod: &PodSeen) -> bool {
    pod.is_deleting || pod.phase == PodPhase::Ended
}

/// Whether its processes may still run: one that is being deleted works on until it is gone.
fn is_alive(pod: &PodSeen) -> bool {
    pod.phase != PodPhase::Ended
}

fn is_behind(pod: &PodSeen, from: &String) -> bool {
    pod.made_from.as_ref().is_some_and(|it| it != from)
}

fn is_outdated(pod: &PodSeen, from: &String) -> bool {
    pod.phase == PodPhase::Pending && is_behind(pod, from)
}

/// Why a pod is to go that was made from what is other now, if it is.
fn why_outdated(
    cluster: &Cluster,
    pod: &PodSeen,
    image: Option<&str>,
    is_changed: bool,
) -> Option<&'static str> {
    // One that does not tell it is of an earlier operator.
    let told = cluster.status.as_ref().and_then(|it| it.image.as_deref());
    let made_with = pod.image.as_deref().or(told);
    let is_of_another = image.zip(made_with).is_some_and(|(wanted, made_with)| wanted != made_with);
    let changed = is_changed.then_some("its settings changed before it started");
    is_of_another.then_some("the image changed before anything ran").or(changed)
}

fn is_stillborn(pod: &PodSeen, now: Timestamp) -> bool {
    let (Some(created_at), Some(ended_at)) = (pod.created_at, pod.ended_at) else { return false };
    crate::lifetime::since(created_at, ended_at.min(now)) < LIFE_MIN
}

pub(crate) fn pod_ref(pod: &PodSeen) -> ObjectRef {
    ObjectRef { name: pod.name.clone(), uid: pod.uid.clone() }
}

/// The index of a worker, if the pod's name is the one that we would give to it.
fn index(cluster: &Cluster, group: &str, pod: &PodSeen) -> Option<u32> {
    let index = pod.labels.get(names::INDEX)?.parse().ok()?;
    (names::worker(&cluster.name_any(), group, index) == pod.name).then_some(index)
}
