//! The same steps for one job: read, decide, act, record.

use std::time::Duration;

use ebbtide_api::job::Named;
use ebbtide_api::{Cluster, ClusterJob, ClusterJobStatus};
use ebbtide_plan::job::{JobChange, JobObserved, JobOp, JobPlan, named, news, plan, stuck};
use ebbtide_plan::queue::{Key, Kind};
use ebbtide_plan::unreadable::{has_ended, job_patch};
use ebbtide_plan::{Refusal, Stage, is_going};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::PostParams;
use kube::runtime::events::{Event, EventType};
use kube::{Api, Resource as _, ResourceExt};
use serde::Serialize;

use crate::api_call::{CallError, call};
use crate::apply::{Child, Made, delete, is_owned, made, try_pod};
use crate::metrics;
use crate::reconcile::Context;
use crate::record::{tell_trouble, tell_within_bounds, unreadable};
use crate::slim::{SlimPod, is_scheduler, seen};

/// What is tried when something goes, for messages.
const GO: &str = "delete what a job has no more";

/// How long until a job is looked at again of which the cache has an older version.
const BEHIND: Duration = Duration::from_millis(200);

/// Why a look at a job ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{kind} {name} exists and is not this job's; remove or rename it")]
    Foreign { kind: String, name: String },
}

impl JobError {
    /// Whether a person must change something.
    fn is_lasting(&self) -> bool {
        match self {
            Self::Call(error) => error.is_lasting(),
            Self::Foreign { .. } => false,
        }
    }
}

/// Looks at one job and does what is due. Gives when to look again though nothing happens.
pub(crate) async fn steps(
    context: &Context,
    key: &Key,
    trace: &str,
) -> Result<Option<Duration>, JobError> {
    let Some(guarded) = context.jobs.get(key) else {
        context.beliefs.forget(key);
        return Ok(None);
    };
    let job = match &guarded.0 {
        Ok(job) => job,
        Err(unread) => {
            let patch = job_patch(unread, (context.clock)());
            return Ok(unreadable(context, key, (&*guarded, unread), patch).await?);
        }
    };
    let namespace = key.namespace.as_str();
    if !context.clusters.has_listed(namespace) || !context.pods.has_listed(namespace) {
        // It comes up again when it is known what jobs have.
        return Ok(None);
    }
    let job = &context.beliefs.newest(key, job);
    let observed = observe(context, key, job).await?;
    let JobPlan { changes, status, next_look } =
        plan(job, &observed, &context.site, (context.clock)()).traced(trace);
    if !changes.is_empty() && !is_newest(context, job).await? {
        return Ok(Some(BEHIND));
    }
    for change in &changes {
        if let Err(error) = carry_out(context, key, job, change).await {
            let (words, is_lasting) = (&*error.to_string(), error.is_lasting());
            let why = Refusal { words, is_lasting, at: Stage::Others };
            let (status, go) = stuck((job, &observed), &status, (change, &why), (context.clock)());
            record(context, key, job, &status).await?;
            for change in &go {
                carry_out(context, key, job, change).await?;
                tell_change(context, key, job, change).await;
            }
            return Err(error);
        }
        tell_change(context, key, job, change).await;
    }
    record(context, key, job, &status).await?;
    Ok(next_look)
}

/// Whether a job is as it was read. A cache may be from before it ended, or before somebody let it go on.
async fn is_newest(context: &Context, job: &ClusterJob) -> Result<bool, CallError> {
    let namespace = job.namespace().unwrap_or_default();
    let api: Api<ClusterJob> = Api::namespaced(context.client.clone(), &namespace);
    let (name, version) = (job.name_any(), job.resource_version());
    match call("look whether a job has changed", api.get_metadata(&name)).await {
        Ok(there) => Ok(there.resource_version() == version),
        Err(error) if error.is_gone() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads what a job has. That something is gone that its status names,
/// or is another one by now, is asked of the API server: a cache may be older than the status.
async fn observe(context: &Context, key: &Key, job: &ClusterJob) -> Result<JobObserved, CallError> {
    let (namespace, uid) = (key.namespace.as_str(), job.uid().unwrap_or_default());
    // Of one that has ended nothing follows from what is gone.
    let known = job.status.as_ref().filter(|it| !it.phase.is_over());
    let mut pods: Vec<_> = context.pods.of(namespace, &uid).iter().map(|it| seen(it)).collect();
    if let Some(Named { name, uid: pod_uid }) = known.and_then(|it| it.pod.as_ref())
        && pods.iter().all(|it| it.uid != *pod_uid)
    {
        let api: Api<SlimPod> = Api::namespaced(context.client.clone(), namespace);
        let there = call("look for a job's pod", api.get_opt(name)).await?;
        let there = there.filter(|it| it.owner_references().iter().any(|owner| owner.uid == uid));
        pods.retain(|it| it.name != *name);
        pods.extend(there.map(|it| seen(&it)));
    }
    let (mut cluster, mut is_cluster_unread, mut unread_cluster) = (None, false, None);
    if let Some(name) = job.cluster_name() {
        let place = Key { kind: Kind::Cluster, name: name.to_owned(), ..key.clone() };
        let shown = context.clusters.get(&place);
        is_cluster_unread = shown.as_ref().is_some_and(|it| it.0.is_err());
        let unread = shown.as_deref().filter(|it| it.0.is_err());
        unread_cluster = unread.filter(|it| is_owned(it.meta(), job) && !is_going(*it)).map(named);
        cluster = shown.as_ref().and_then(|it| it.0.as_ref().ok().cloned());
        let used = known.and_then(|it| it.cluster.as_ref()).filter(|_| !is_cluster_unread);
        if used.is_some_and(|used| {
            cluster.as_ref().is_none_or(|it| it.uid().as_ref() != Some(&used.uid))
        }) {
            let api: Api<Cluster> = Api::namespaced(context.client.clone(), namespace);
            cluster = call("look for a job's cluster", api.get_opt(name)).await?;
        }
    }
    let cluster_uid = cluster.as_ref().and_then(ResourceExt::uid).unwrap_or_default();
    let is_scheduler_heard = context.schedulers.demand(&cluster_uid).is_some();
    let all = context.pods.of(namespace, &cluster_uid);
    let schedulers = all.iter().filter(|it| is_scheduler(it)).map(|it| seen(it)).collect();
    let (mut runs, mut unread_runs) = (Vec::new(), Vec::new());
    for run in context.jobs.of(namespace, &uid).iter().filter(|it| it.uid() != job.uid()) {
        match &run.0 {
            Ok(run) => runs.push(run.clone()),
            Err(unread) if has_ended(unread) => {}
            Err(_) => unread_runs.push(named(&**run)),
        }
    }
    Ok(JobObserved {
        cluster,
        schedulers,
        is_scheduler_heard,
        pods,
        is_cluster_unread,
        unread_cluster,
        runs,
        unread_runs,
    })
}

async fn carry_out(
    context: &Context,
    key: &Key,
    job: &ClusterJob,
    change: &JobChange,
) -> Result<(), JobError> {
    tracing::info!("{change}");
    let kind = match &change.op {
        JobOp::TryPod(pod) => {
            let there = try_pod(context, pod).await?;
            if there.is_some_and(|it| !is_owned(&it, job)) {
                return Err(JobError::Foreign { kind: "Pod".to_owned(), name: pod.name_any() });
            }
            "try pod"
        }
        JobOp::CreateCluster(cluster) => {
            create(context, job, &**cluster).await?;
            "create cluster"
        }
        JobOp::DeleteCluster(it) => {
            delete::<Cluster>(context, key, GO, (&it.name, &it.uid)).await?;
            "delete cluster"
        }
        JobOp::CreatePod(pod) => {
            create(context, job, &**pod).await?;
            "create pod"
        }
        JobOp::DeletePod(it) => {
            delete::<Pod>(context, key, GO, (&it.name, &it.uid)).await?;
            "delete pod"
        }
        JobOp::CreateJob(run) => {
            create(context, job, &**run).await?;
            "create job"
        }
        JobOp::DeleteJob(it) => {
            delete::<ClusterJob>(context, key, GO, (&it.name, &it.uid)).await?;
            "delete job"
        }
        JobOp::LeaveOut(_) => "leave out job",
    };
    context.metrics.changes.get_or_create(&metrics::Kind { kind }).inc();
    Ok(())
}

/// Creates something. That it is there already is success if it is the job's.
async fn create<K: Child + Serialize>(
    context: &Context,
    job: &ClusterJob,
    object: &K,
) -> Result<(), JobError> {
    match made(context, "create what a job needs", object).await? {
        Made::There(there) if !is_owned(&there, job) => {
            let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
            Err(JobError::Foreign { kind, name })
        }
        Made::New(_) | Made::There(_) => Ok(()),
    }
}

/// Writes the status if it differs. It is the job's memory: whoever read an older one writes nothing.
async fn record(
    context: &Context,
    key: &Key,
    job: &ClusterJob,
    status: &ClusterJobStatus,
) -> Result<(), CallError> {
    if job.status.as_ref() == Some(status) {
        return Ok(());
    }
    let mut next = job.clone();
    next.status = Some(status.clone());
    let api: Api<ClusterJob> =
        Api::namespaced(context.client.clone(), &job.namespace().unwrap_or_default());
    let (name, params) = (job.name_any(), PostParams::default());
    let writing = api.replace_status(&name, &params, &next);
    match call("write a job's status", writing).await {
        Ok(written) => context.beliefs.wrote_job(key, written),
        Err(error) if error.is_gone() => {
            context.beliefs.missed(key);
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    for trouble in news(job.status.as_ref(), status) {
        tell_trouble(context, key, trouble, &job.object_ref(&())).await;
    }
    let before = job.status.as_ref().map(|it| it.phase);
    if before != Some(status.phase) && status.phase.is_over() {
        let message = status.message.as_deref().unwrap_or_default();
        tell(context, key, job, (status.phase.as_str(), message), None).await;
    }
    Ok(())
}

/// The reason of the event that tells of a change; none of what changed nothing.
fn told(change: &JobChange) -> Option<&'static str> {
    Some(match &change.op {
        JobOp::TryPod(_) => return None,
        JobOp::CreateCluster(_) => "CreatedCluster",
        JobOp::DeleteCluster(_) => "DeletedCluster",
        JobOp::CreatePod(_) => "CreatedPod",
        JobOp::DeletePod(_) => "DeletedPod",
        JobOp::CreateJob(_) => "CreatedRun",
        JobOp::DeleteJob(_) => "DeletedJob",
        JobOp::LeaveOut(_) => "LeftOut",
    })
}

async fn tell_change(context: &Context, key: &Key, job: &ClusterJob, change: &JobChange) {
    // Events of one reason about one thing count up as one, with the words of the first.
    let about = if let JobOp::LeaveOut(run) = &change.op {
        Some(ObjectReference { name: Some(run.clone()), uid: None, ..job.object_ref(&()) })
    } else {
        None
    };
    if let Some(reason) = told(change) {
        tell(context, key, job, (reason, &change.to_string()), about).await;
    }
}

async fn tell(
    context: &Context,
    key: &Key,
    job: &ClusterJob,
    (reason, note): (&str, &str),
    about: Option<ObjectReference>,
) {
    let event = Event {
        type_: if ["Failed", "LeftOut"].contains(&reason) {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: reason.to_owned(),
        action: "Reconcile".to_owned(),
        note: Some(note.to_owned()),
        secondary: about,
    };
    tell_within_bounds(context, key, event, &job.object_ref(&())).await;
}
