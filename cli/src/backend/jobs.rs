//! Jobs as objects of a Kubernetes API server, and what their pods print.

use std::time::Duration;

use anyhow::{Context as _, bail};
use ebbtide_api::job::Named;
use ebbtide_api::{Cluster, ClusterJob, Guarded};
use ebbtide_plan::JOB;
use ebbtide_plan::job::maker;
use futures::AsyncBufReadExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{LogParams, PostParams};
use kube::{Api, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::backend::kubernetes::{Kubernetes, changed, delete, in_time, readable, way};
use crate::output;

/// How long until a log is asked for again that broke off.
const LOG_AGAIN: Duration = Duration::from_millis(300);

/// How often that is done for a pod that has ended.
const LOG_TRIES: u32 = 10;

impl Kubernetes {
    fn jobs(&self, namespace: &str) -> Api<Guarded<ClusterJob>> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) async fn create_job(
        &self,
        namespace: &str,
        job: &ClusterJob,
    ) -> anyhow::Result<ClusterJob> {
        let jobs: Api<ClusterJob> = Api::namespaced(self.client.clone(), namespace);
        in_time("create the job", jobs.create(&PostParams::default(), job)).await
    }

    pub(crate) async fn job(&self, name: &str) -> anyhow::Result<ClusterJob> {
        let there = in_time("get the job", self.jobs(&self.namespace).get_opt(name)).await?;
        let namespace = &self.namespace;
        readable(there.with_context(|| format!("there is no job {name} in namespace {namespace}"))?)
    }

    /// What `down` ends by a name if not a cluster by itself: the job that a cluster of this name was made for; where
    /// there is no such cluster, the job of this name.
    ///
    /// # Errors
    ///
    /// There are both, and neither is the other's.
    pub(crate) async fn job_of(
        &self,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<Option<Guarded<ClusterJob>>> {
        let clusters: Api<Guarded<Cluster>> = Api::namespaced(self.client.clone(), namespace);
        let cluster = in_time("get", clusters.get_opt(name)).await?;
        let job = in_time("get the job", self.jobs(namespace).get_opt(name)).await;
        let Some(cluster) = cluster else {
            // Who may not read jobs is told that there is no cluster.
            return Ok(job.ok().flatten());
        };
        match (maker(&cluster), job) {
            // One whose job is gone goes by itself.
            (Some(maker), job) => Ok(job?.filter(|it| it.uid().as_ref() == Some(&maker.uid))),
            (None, Ok(Some(_))) => bail!(
                "there are a cluster {name} and a job {name}, and neither is the other's: `kubectl delete \
                 cluster.ebbtide.dev {name}` ends one, `kubectl delete clusterjob {name}` the other"
            ),
            (None, Ok(None) | Err(_)) => Ok(None),
        }
    }

    /// The job with this uid as soon as it differs from this version of it. None when it is gone.
    pub(crate) async fn next_job(
        &self,
        namespace: &str,
        seen: &ClusterJob,
    ) -> anyhow::Result<Option<ClusterJob>> {
        let (jobs, name) = (self.jobs(namespace), seen.name_any());
        loop {
            let now = in_time("get the job", jobs.get_opt(&name)).await?;
            let Some(now) = now.filter(|it| it.uid() == seen.uid()) else { return Ok(None) };
            if now.resource_version() != seen.resource_version() {
                return readable(now).map(Some);
            }
            let version = now.resource_version().unwrap_or_default();
            changed(&jobs, &name, &version).await?;
        }
    }

    /// Deletes a job and waits until everything is gone that it had.
    pub(crate) async fn delete_job(&self, namespace: &str, job: &Named) -> anyhow::Result<()> {
        let jobs = self.jobs(namespace);
        let there = in_time("get the job", jobs.get_opt(&job.name)).await?;
        let Some(there) = there.filter(|it| it.uid().as_ref() == Some(&job.uid)) else {
            return Ok(());
        };
        let clusters: Api<Guarded<Cluster>> = Api::namespaced(self.client.clone(), namespace);
        let cluster = in_time("get", clusters.get_opt(&job.name)).await?;
        let is_readable = there.0.is_ok() && cluster.is_none_or(|it| it.0.is_ok());
        delete(&jobs, (&job.name, there.uid()), way(is_readable)).await
    }

    /// Prints what a pod says until it has ended, and all of it, and tells of every line. With a uid, another
    /// pod of the name is none of it. False if the pod is gone, and what it said came to an end before.
    ///
    /// # Errors
    ///
    /// Something of it could not be read.
    pub(crate) async fn follow(
        &self,
        (namespace, pod): (&str, &str),
        uid: Option<&str>,
        lines: &watch::Sender<()>,
    ) -> anyhow::Result<bool> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let (mut last, mut failures, mut is_whole) = (None, 0, false);
        loop {
            // Asked first: what it says until then is whole.
            let there = in_time("get the job's pod", pods.get_opt(pod)).await;
            let is_same = |it: &Pod| uid.is_none_or(|uid| it.uid().as_deref() == Some(uid));
            let there = there.map(|it| it.filter(is_same));
            if matches!(there, Ok(None)) {
                return if is_whole { Ok(false) } else { bail!("the pod {pod} is gone") };
            }
            let is_over = there.ok().flatten().is_some_and(|it| has_ended(&it));
            let printed = print(&pods, pod, &mut last, lines).await;
            is_whole = printed.is_ok();
            match printed {
                Ok(()) if is_over => return Ok(true),
                // Nobody reads it any more, or there is no room for it.
                Err(LogError::Print(error)) => return Err(error),
                Err(LogError::Read(error)) if is_over => {
                    failures += 1;
                    if failures > LOG_TRIES {
                        return Err(error);
                    }
                }
                // It broke off, or what has not started has no log yet.
                Ok(()) | Err(LogError::Read(_)) => {}
            }
            sleep(LOG_AGAIN).await;
        }
    }
}

/// Whether a job's program has ended, whatever others put beside it.
fn has_ended(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let own = status.container_statuses.iter().flatten().find(|it| it.name == JOB);
    let state = own.and_then(|it| it.state.as_ref());
    let is_over = status.phase.as_deref().is_some_and(|it| ["Succeeded", "Failed"].contains(&it));
    is_over || state.is_some_and(|it| it.terminated.is_some())
}

/// What keeps a log from being printed.
enum LogError {
    Read(anyhow::Error),
    Print(anyhow::Error),
}

/// Prints a log from where it broke off to its end.
async fn print(
    pods: &Api<Pod>,
    pod: &str,
    last: &mut Option<Timestamp>,
    lines: &watch::Sender<()>,
) -> Result<(), LogError> {
    let before = *last;
    let params = LogParams {
        container: Some(JOB.to_owned()),
        follow: true,
        timestamps: true,
        // It is asked for by whole seconds.
        since_time: before.and_then(|it| Timestamp::from_second(it.as_second()).ok()),
        ..LogParams::default()
    };
    let log = in_time("read a log", pods.log_stream(pod, &params)).await;
    let mut log = log.map_err(LogError::Read)?;
    let (mut line, mut is_known) = (Vec::new(), before.is_some());
    loop {
        line.clear();
        let read = log.read_until(b'\n', &mut line).await;
        if read.map_err(|error| LogError::Read(error.into()))? == 0 {
            return Ok(());
        }
        let space = line.iter().position(|it| *it == b' ').unwrap_or(line.len());
        let time = str::from_utf8(&line[..space]).ok().and_then(|it| it.parse().ok());
        // It begins with what was read before.
        is_known = is_known && time.is_some_and(|time| Some(time) <= before);
        if !is_known {
            lines.send_replace(());
            *last = time.or(*last);
            let said = line.get(space + 1..).unwrap_or_default();
            output::bytes(said).map_err(LogError::Print)?;
        }
    }
}
