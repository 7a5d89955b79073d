//! Decides what must change for one job: its cluster, the pod of its present attempt, and at last itself.
//!
//! The status is the job's memory. What has ended is written before anything follows from it: the next
//! attempt, and the end of the cluster, come in a look that has read the status of the one before. So
//! an attempt counts once, however often an operator begins again, and two never run at once.

mod attempt;
mod check;
mod ends;
mod news;
mod schedule;

use std::fmt;
use std::time::Duration;

use ebbtide_api::job::Named;
use ebbtide_api::{Cluster, ClusterJob, ClusterJobStatus, ClusterSpec, JobPhase, Phase, names};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;

use crate::children::pod_ref;
use crate::image::{self, Image};
use crate::job::attempt::{Ended, attempt, backoff};
pub use crate::job::check::check;
use crate::job::ends::{after_failure, late, limit, over};
pub use crate::job::news::news;
use crate::lifetime::since;
use crate::pods::{self, Context};
use crate::status::{bounded, condition_after, whole_seconds};
use crate::trouble::REJECTED;
use crate::{INVALID, ObjectRef, PodPhase, PodSeen, Refusal, Site, is_going, slow};

/// How long the pod of an attempt may be refused before the cluster that waits for it goes.
const REJECTED_MAX: Duration = Duration::from_secs(30);

/// The condition of a job of whose spec something can be made.
pub(crate) const ACCEPTED: &str = "Accepted";

/// What was read of a job's things. Parts may be missing.
#[derive(Clone, Debug, Default)]
pub struct JobObserved {
    /// The cluster with the name that [`ClusterJob::cluster_name`] has.
    pub cluster: Option<Cluster>,
    /// The pods of its scheduler.
    pub schedulers: Vec<PodSeen>,
    /// Whether that is heard.
    pub is_scheduler_heard: bool,
    /// The pods that the job owns.
    pub pods: Vec<PodSeen>,
    /// Whether that cluster is there and cannot be read.
    pub is_cluster_unread: bool,
    /// That one, if it is the job's own and stays.
    pub unread_cluster: Option<Named>,
    /// The jobs that it made by its schedule.
    pub runs: Vec<ClusterJob>,
    /// Those of them that cannot be read and are not known to have ended.
    pub unread_runs: Vec<Named>,
}

impl JobObserved {
    /// The cluster, unless it goes.
    fn staying(&self) -> Option<&Cluster> {
        self.cluster.as_ref().filter(|it| !is_going(*it))
    }

    /// Whether the cluster that a pod was made for is there and stays.
    fn has_cluster_of(&self, pod: &PodSeen) -> bool {
        let uid = self.staying().and_then(|it| it.metadata.uid.as_ref());
        uid == pod.labels.get(names::CLUSTER_UID)
    }

    /// Whether the scheduler works that was there when a pod was made. Another one knows nothing of what its program
    /// computes.
    fn has_scheduler_of(&self, pod: &PodSeen) -> bool {
        let was_there = |it: &PodSeen| it.restarted_at.max(it.created_at) <= pod.created_at;
        let stays = |it: &PodSeen| it.phase == PodPhase::Running && !it.is_deleting;
        self.is_scheduler_heard && self.schedulers.iter().any(|it| stays(it) && was_there(it))
    }
}

/// Everything that one look will do.
#[derive(Debug, Serialize)]
pub struct JobPlan {
    /// In the order in which to apply them.
    pub changes: Vec<JobChange>,
    /// Written after the changes.
    pub status: ClusterJobStatus,
    /// When to look again even if nothing happens.
    #[serde(skip)]
    pub next_look: Option<Duration>,
}

impl JobPlan {
    /// The plan, with each pod that it makes telling which look made it.
    #[must_use]
    pub fn traced(mut self, trace: &str) -> Self {
        for change in &mut self.changes {
            if let JobOp::CreatePod(pod) = &mut change.op {
                pods::trace(pod, trace);
            }
        }
        self
    }
}

/// One write.
#[derive(Debug, Serialize)]
pub struct JobChange {
    /// What to write.
    pub op: JobOp,
    /// Shown in the log, the event and the snapshot.
    pub why: &'static str,
}

/// The writes that a job can ask for. That something exists already, or is gone already, is success.
#[derive(Debug, Serialize)]
pub enum JobOp {
    /// Ask the API server whether it would take the pod of an attempt, and create none.
    TryPod(Box<Pod>),
    /// Create its cluster.
    CreateCluster(Box<Cluster>),
    /// Delete this very cluster.
    DeleteCluster(Named),
    /// Create the pod of an attempt.
    CreatePod(Box<Pod>),
    /// Delete this very pod.
    DeletePod(ObjectRef),
    /// Create a run of its schedule.
    CreateJob(Box<ClusterJob>),
    /// Delete this very job.
    DeleteJob(Named),
    /// Make no run of this name, and tell people.
    LeaveOut(String),
}

/// Plans one step of a job.
pub fn plan(job: &ClusterJob, observed: &JobObserved, site: &Site, now: Timestamp) -> JobPlan {
    let known = job.status.clone().unwrap_or_default();
    if is_going(job) {
        // What it has goes with it: it carries owner references.
        return JobPlan { changes: Vec::new(), status: known, next_look: None };
    }
    if known.phase.is_over() {
        return ended(job, observed, known, now);
    }
    let refused = check(job).err();
    let told = refused.as_deref().unwrap_or_default();
    let accepted = condition(job, ACCEPTED, (refused.is_none(), INVALID, told), now);
    let known = ClusterJobStatus {
        observed_generation: job.metadata.generation,
        conditions: vec![accepted],
        ..known
    };
    match &job.spec.schedule {
        Some(schedule) => schedule::plan(job, schedule, (observed, refused.as_deref()), known, now),
        None if job.spec.suspend && !has_ended(job, observed, &known) => {
            suspended(job, observed, known)
        }
        None => under_way(job, observed, site, (known, refused.as_deref()), now),
    }
}

/// Whether a cluster was made for a job: it ends with the job.
pub fn is_made_for_job(cluster: &Cluster) -> bool {
    maker(cluster).is_some()
}

/// The job that something was made for.
pub fn maker(object: &impl Resource<DynamicType = ()>) -> Option<&OwnerReference> {
    owner(object).filter(|it| it.kind == ClusterJob::kind(&()))
}

fn owner(object: &impl Resource<DynamicType = ()>) -> Option<&OwnerReference> {
    object.meta().owner_references.iter().flatten().find(|it| it.controller == Some(true))
}

/// Whether something was made for this very job.
pub fn is_own(job: &ClusterJob, object: &impl Resource<DynamicType = ()>) -> bool {
    owner(object).is_some_and(|it| Some(&it.uid) == job.metadata.uid.as_ref())
}

/// Whether the present attempt came to its end by itself: that counts, whatever is asked for since.
fn has_ended(job: &ClusterJob, observed: &JobObserved, known: &ClusterJobStatus) -> bool {
    let nth = known.failures.count();
    let name = names::attempt(&job.name_any(), nth);
    let pod = observed.pods.iter().find(|it| it.name == name);
    pod.is_some_and(|it| it.phase == PodPhase::Ended && !it.is_deleting)
}

/// One that has ended: what it had goes, and at last it goes itself.
fn ended(
    job: &ClusterJob,
    observed: &JobObserved,
    status: ClusterJobStatus,
    now: Timestamp,
) -> JobPlan {
    let mut changes = leave(job, observed, "the job has ended");
    let ended_at = status.ended_at.as_ref().map(|time| time.0);
    let rest = job
        .spec
        .ttl_seconds_after_finished
        .zip(ended_at)
        .map(|(seconds, at)| in_seconds(seconds).saturating_sub(since(at, now)));
    if rest.is_some_and(|it| it.is_zero()) {
        let op = JobOp::DeleteJob(named(job));
        changes.push(JobChange { op, why: "it ended long enough ago" });
    }
    JobPlan { changes, status, next_look: rest.filter(|it| !it.is_zero()) }
}

/// One that is to have nothing for now.
fn suspended(job: &ClusterJob, observed: &JobObserved, known: ClusterJobStatus) -> JobPlan {
    let status = ClusterJobStatus {
        phase: JobPhase::Suspended,
        message: None,
        pod: None,
        cluster: None,
        started_at: None,
        ..known
    };
    JobPlan { changes: leave(job, observed, "the job is suspended"), status, next_look: None }
}

/// The status when something that was due could not be done: what was known before, since when it is under
/// way, and why nothing came after it. With it, what is to go where the pod of the attempt is not taken.
pub fn stuck(
    (job, observed): (&ClusterJob, &JobObserved),
    planned: &ClusterJobStatus,
    (failed, why): (&JobChange, &Refusal<'_>),
    now: Timestamp,
) -> (ClusterJobStatus, Vec<JobChange>) {
    let is_refused = matches!(failed.op, JobOp::TryPod(_) | JobOp::CreatePod(_)) && why.is_lasting;
    let refused = condition(job, ACCEPTED, (false, REJECTED, why.words), now);
    let known = || job.status.iter().flat_map(|it| &it.conditions);
    let is_for_long = known()
        .find(|it| it.reason == REJECTED)
        .is_some_and(|it| since(it.last_transition_time.0, now) >= REJECTED_MAX);
    let accepted = planned.conditions.iter().find(|it| it.type_ == ACCEPTED).cloned();
    let accepted = if is_refused { Some(refused) } else { accepted };
    let status = ClusterJobStatus {
        phase: planned.phase,
        message: Some(bounded(why.words)),
        started_at: planned.started_at.clone(),
        // What else is known is of what was done.
        conditions: accepted
            .into_iter()
            .chain(known().filter(|it| it.type_ != ACCEPTED).cloned())
            .collect(),
        observed_generation: planned.observed_generation,
        ..job.status.clone().unwrap_or_default()
    };
    let is_over = is_refused && is_for_long;
    let go = if is_over { leave(job, observed, "its pod is not taken") } else { Vec::new() };
    (status, go)
}

/// What it takes that nothing is left of a job but its ended pods.
fn leave(job: &ClusterJob, observed: &JobObserved, why: &'static str) -> Vec<JobChange> {
    let live = observed.pods.iter().filter(|it| it.phase != PodPhase::Ended && !it.is_deleting);
    let pods = live.map(|it| JobOp::DeletePod(pod_ref(it)));
    let cluster = observed.cluster.iter().filter(|it| is_own(job, *it) && !is_going(*it));
    let clusters = cluster.map(named).chain(observed.unread_cluster.clone());
    let clusters = clusters.map(JobOp::DeleteCluster);
    pods.chain(clusters).map(|op| JobChange { op, why }).collect()
}

/// One that is to come to its end.
fn under_way(
    job: &ClusterJob,
    observed: &JobObserved,
    site: &Site,
    (known, refused): (ClusterJobStatus, Option<&str>),
    now: Timestamp,
) -> JobPlan {
    let started_at = known.started_at.as_ref().map_or(now, |time| time.0);
    let known = ClusterJobStatus { started_at: whole_seconds(started_at), ..known };
    let nth = known.failures.count();
    let present = attempt(job, nth, observed, &known);
    let limit = limit(job);
    let deadline = limit.map(|(length, _)| length.saturating_sub(since(started_at, now)));
    let is_late = deadline.is_some_and(|it| it.is_zero());
    if observed.is_cluster_unread && !matches!(present, Ended::Well(_)) {
        // Whose fault it is cannot be told.
        return if is_late {
            late(job, known, limit, None, now)
        } else {
            unread(job, known, deadline)
        };
    }
    match present {
        Ended::Well(pod) => {
            // It may have ended before anybody saw it.
            let pod = known.pod.or_else(|| Some(seen(pod)));
            let known = ClusterJobStatus { exit_code: Some(0), pod, ..known };
            over(
                job,
                known,
                JobPhase::Succeeded,
                ("Completed", "the program ended with exit code 0"),
                now,
            )
        }
        Ended::Badly(lost) => after_failure(job, known, &lost, now),
        Ended::Not(_) | Ended::NotBegun if is_late => {
            let has_begun = nth > 0 || present.has_begun();
            let waits = known.message.clone().filter(|_| !has_begun);
            late(job, known, limit, waits, now)
        }
        Ended::Not(pod) => {
            let plan = while_there(observed, pod, known, now);
            JobPlan { next_look: [plan.next_look, deadline].into_iter().flatten().min(), ..plan }
        }
        Ended::NotBegun => {
            let plan = match refused {
                // What is under way goes on; nothing new begins.
                Some(refused) => JobPlan {
                    changes: Vec::new(),
                    status: ClusterJobStatus {
                        phase: JobPhase::Pending,
                        message: Some(bounded(refused)),
                        ..known
                    },
                    next_look: None,
                },
                None => begin(job, nth, (observed, site), &known, now),
            };
            let next_look = [plan.next_look, deadline].into_iter().flatten().min();
            JobPlan { next_look, ..plan }
        }
    }
}

/// One of whose cluster nothing can be read: what is under way goes on.
fn unread(job: &ClusterJob, known: ClusterJobStatus, next_look: Option<Duration>) -> JobPlan {
    let name = job.cluster_name().unwrap_or_default();
    let message = format!("cluster {name} cannot be read: its own status says why");
    let phase = if known.phase == JobPhase::Suspended { JobPhase::Pending } else { known.phase };
    let status = ClusterJobStatus { phase, message: Some(bounded(&message)), ..known };
    JobPlan { changes: Vec::new(), status, next_look }
}

/// An attempt is under way.
fn while_there(
    observed: &JobObserved,
    pod: &PodSeen,
    known: ClusterJobStatus,
    now: Timestamp,
) -> JobPlan {
    let mut changes = Vec::new();
    if !pod.is_deleting && !observed.has_cluster_of(pod) {
        let op = JobOp::DeletePod(pod_ref(pod));
        changes.push(JobChange { op, why: "the cluster that it computes on is gone" });
    }
    let (phase, message) = match (pod.is_deleting, pod.phase) {
        (true, _) => (JobPhase::Pending, Some(format!("{} is being deleted", pod.name))),
        (false, PodPhase::Pending) => {
            let trouble = pod.trouble.as_ref().map(|it| format!("{}: {}", pod.name, it.message));
            let told = trouble.or_else(|| slow::begins(pod, now));
            (JobPhase::Pending, Some(told.unwrap_or_else(|| format!("{} starts", pod.name))))
        }
        (false, PodPhase::Running | PodPhase::Ended) => {
            (JobPhase::Running, observed.staying().and_then(what_lacks))
        }
    };
    let slow_look = pod.is_beginning().then(|| slow::rest(pod, now)).flatten();
    // One that was on its way out when the job came back from a suspension is none of its attempts.
    let is_attempt = known.pod.is_some() || !pod.is_deleting;
    let status = ClusterJobStatus {
        phase,
        message: message.map(|it| bounded(&it)),
        pod: is_attempt.then(|| seen(pod)),
        cluster: observed.staying().map(named),
        ..known
    };
    JobPlan { changes, status, next_look: slow_look.filter(|it| !it.is_zero()) }
}

/// What keeps a cluster, or a group of its workers, from what a program waits for, as its status tells.
fn what_lacks(cluster: &Cluster) -> Option<String> {
    let status = cluster.status.as_ref()?;
    let name = cluster.name_any();
    if status.phase != Phase::Ready {
        return status.message.as_ref().map(|it| format!("cluster {name}: {it}"));
    }
    let group = status.groups.iter().find(|it| it.workers.ready == 0 && !it.causes.is_empty())?;
    Some(format!("cluster {name}: {}: {}", group.name, group.causes.first()?.message))
}

/// The next attempt begins when its cluster answers and it has waited for long enough.
fn begin(
    job: &ClusterJob,
    nth: u32,
    (observed, site): (&JobObserved, &Site),
    known: &ClusterJobStatus,
    now: Timestamp,
) -> JobPlan {
    let name = job.cluster_name().unwrap_or_default();
    let told = |changes, message: &str| waiting(observed, known, changes, message);
    // Why there has to be another attempt is worth more than what comes by itself, and is told beside the rest.
    let of_cluster = format!("; cluster {name}");
    let failure = known.message.as_deref().filter(|it| nth > 0 && it.starts_with("attempt "));
    let failure = failure.map(|it| it.split(&of_cluster).next().unwrap_or(it));
    let pass = |changes, message: &str| told(changes, failure.unwrap_or(message));
    let wait = |changes, message: &str| match failure {
        Some(failure) => told(changes, &format!("{failure}; {message}")),
        None => told(changes, message),
    };
    let Some(cluster) = &observed.cluster else {
        let Some(spec) = &job.spec.cluster else {
            return told(Vec::new(), &format!("there is no cluster {name}; it waits for one"));
        };
        let changes = cluster_due(job, nth, spec, site);
        return pass(changes, &format!("waiting for cluster {name}"));
    };
    if job.spec.cluster.is_some() && !is_own(job, cluster) {
        return if is_made_for_job(cluster) {
            let message = format!("cluster {name} of an earlier job of this name is about to go");
            pass(Vec::new(), &message)
        } else {
            let message = format!(
                "cluster {name} is there and is not this job's; remove it or rename the job"
            );
            wait(Vec::new(), &message)
        };
    }
    if is_going(cluster) {
        return pass(Vec::new(), &format!("cluster {name} is being deleted"));
    }
    let status = cluster.status.as_ref();
    let is_in = |phase| status.is_some_and(|it| it.phase == phase);
    let kept = status.and_then(|it| it.image.clone());
    let (true, Image::Known { image, .. }) = (is_in(Phase::Ready), image::of(cluster, kept, site))
    else {
        let told = status.and_then(|it| it.message.as_deref()).unwrap_or("it starts");
        let message = format!("cluster {name}: {told}");
        return if is_in(Phase::Degraded) {
            wait(Vec::new(), &message)
        } else {
            pass(Vec::new(), &message)
        };
    };
    let rest = backoff(job, known, now);
    if !rest.is_zero() {
        let plan = pass(Vec::new(), "waiting before the next attempt");
        return JobPlan { next_look: Some(rest), ..plan };
    }
    let made = Context { cluster, site, image: &image };
    let op = JobOp::CreatePod(Box::new(pods::attempt(&made, job, nth)));
    let why = if nth == 0 { "its cluster is ready" } else { "the attempt before went wrong" };
    pass(vec![JobChange { op, why }], "its pod starts")
}

/// One whose next attempt has not begun.
fn waiting(
    observed: &JobObserved,
    known: &ClusterJobStatus,
    changes: Vec<JobChange>,
    message: &str,
) -> JobPlan {
    let status = ClusterJobStatus {
        phase: JobPhase::Pending,
        message: Some(bounded(message)),
        cluster: observed.cluster.as_ref().map(named),
        ..known.clone()
    };
    JobPlan { changes, status, next_look: None }
}

/// What makes the cluster of a job. One that waits for a pod which nobody takes costs money for nothing: that is
/// tried before.
fn cluster_due(job: &ClusterJob, nth: u32, spec: &ClusterSpec, site: &Site) -> Vec<JobChange> {
    let name = job.name_any();
    let mut cluster = Cluster::new(&name, spec.clone());
    cluster.metadata = crate::owned_by(job, name);
    let trial = match image::of(&cluster, None, site) {
        Image::Known { image, .. } => {
            let made = Context { cluster: &cluster, site, image: &image };
            Some(JobOp::TryPod(Box::new(pods::attempt(&made, job, nth))))
        }
        Image::NotPacked { .. } | Image::Refused { .. } => None,
    };
    let trial = trial.map(|op| JobChange { op, why: "a cluster is to be made for it" });
    let due = JobChange { op: JobOp::CreateCluster(Box::new(cluster)), why: "the job has none" };
    trial.into_iter().chain([due]).collect()
}

fn in_seconds(seconds: i32) -> Duration {
    Duration::from_secs(seconds.max(0).unsigned_abs().into())
}

fn seen(pod: &PodSeen) -> Named {
    Named { name: pod.name.clone(), uid: pod.uid.clone() }
}

/// Which object this is.
pub fn named(object: &impl Resource) -> Named {
    let meta = object.meta();
    let text = |it: &Option<String>| it.clone().unwrap_or_default();
    Named { name: text(&meta.name), uid: text(&meta.uid) }
}

fn condition(
    job: &ClusterJob,
    kind: &str,
    (is_true, reason, message): (bool, &str, &str),
    now: Timestamp,
) -> Condition {
    let known = job.status.as_ref().map_or(&[][..], |it| &it.conditions);
    // A condition has a reason, whatever it is.
    let reason = if kind == ACCEPTED && is_true { "Valid" } else { reason };
    condition_after(known, job.metadata.generation, (kind, is_true, (reason, message)), now)
}

impl fmt::Display for JobChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.op {
            JobOp::TryPod(it) => write!(f, "try pod {}", it.name_any())?,
            JobOp::CreateCluster(it) => write!(f, "create cluster {}", it.name_any())?,
            JobOp::DeleteCluster(it) => write!(f, "delete cluster {}", it.name)?,
            JobOp::CreatePod(it) => write!(f, "create pod {}", it.name_any())?,
            JobOp::DeletePod(it) => write!(f, "delete pod {}", it.name)?,
            JobOp::CreateJob(it) => write!(f, "create job {}", it.name_any())?,
            JobOp::DeleteJob(it) => write!(f, "delete job {}", it.name)?,
            JobOp::LeaveOut(name) => write!(f, "leave out {name}")?,
        }
        write!(f, ": {}", self.why)
    }
}

#[cfg(test)]
mod tests;
