//! `ebbtide run`: a program beside a cluster of its own, followed to its end.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use ebbtide_api::job::{ClusterRef, Retries};
use ebbtide_api::{Cluster, ClusterJob, ClusterJobSpec, JobPhase, Phase};
use kube::ResourceExt as _;
use serde_json::json;
use tokio::time::timeout;

use crate::backend::{Backend, Kubernetes};
use crate::command::{On, Place, Script, try_script, up};
use crate::{manifest, node, output};

/// How long a job that ended can be looked at, in seconds.
const KEPT_SECONDS: i32 = 86_400;

/// How long the rest of what a program printed may take when it has ended.
const REST_MAX: Duration = Duration::from_secs(20);

/// What somebody asks for.
pub(crate) struct Wanted {
    pub(crate) file: PathBuf,
    pub(crate) on: On,
    pub(crate) name: Option<String>,
    pub(crate) retries: i32,
    pub(crate) detach: bool,
    pub(crate) arguments: Vec<String>,
}

pub(crate) async fn run(wanted: Wanted, place: &Place) -> anyhow::Result<ExitCode> {
    let program = fs::read_to_string(&wanted.file)
        .with_context(|| format!("cannot read {}", wanted.file.display()))?;
    let cluster = wanted.on.cluster.as_deref().map(manifest::read).transpose()?;
    let of_manifest = cluster.as_ref().and_then(|it| it.metadata.namespace.clone());
    let mut place = place.clone();
    place.namespace = place.namespace.or(of_manifest);
    let backend = Backend::connect(&place).await?;
    let namespace = backend.namespace();
    match &backend {
        Backend::Kubernetes(kubernetes) => {
            let job = as_job(&wanted, cluster, program)?;
            on_kubernetes(kubernetes, &namespace, &job, wanted.detach).await
        }
        Backend::Local { .. } => Box::pin(here(wanted, cluster, &backend, &place)).await,
    }
}

/// The same on this machine: a process beside the cluster's.
async fn here(
    wanted: Wanted,
    cluster: Option<Cluster>,
    backend: &Backend,
    place: &Place,
) -> anyhow::Result<ExitCode> {
    if wanted.detach {
        bail!("--detach: a program on this machine is followed to its end");
    }
    let Wanted { file, on, name, retries, arguments, .. } = wanted;
    let script = Script { path: file, arguments, retries };
    let namespace = backend.namespace();
    if let Some(on) = on.on {
        backend.get(&namespace, &on).await?;
        return try_script(&script, &on, &namespace, backend.kind()).await;
    }
    let mut cluster = cluster.context("there is no manifest")?;
    cluster.metadata.name = Some(named(name, &cluster.name_any())?);
    up(cluster, Some(&script), place).await
}

/// The job for a program.
fn as_job(
    wanted: &Wanted,
    cluster: Option<Cluster>,
    program: String,
) -> anyhow::Result<ClusterJob> {
    let stem = match (&cluster, &wanted.on.on) {
        (Some(cluster), _) => cluster.name_any(),
        (None, Some(on)) => on.clone(),
        (None, None) => String::new(),
    };
    let mut spec: ClusterJobSpec = serde_json::from_value(json!({}))?;
    spec.cluster = cluster.map(|it| it.spec);
    spec.cluster_ref = wanted.on.on.clone().map(|name| ClusterRef { name });
    spec.script = Some(program);
    spec.args.clone_from(&wanted.arguments);
    spec.retries = Retries { exit: wanted.retries, ..Retries::default() };
    spec.ttl_seconds_after_finished = Some(KEPT_SECONDS);
    let job = ClusterJob::new(&named(wanted.name.clone(), &stem)?, spec);
    let file = wanted.file.display();
    let told = |it: String| anyhow!("{}", it.replace("spec.script", &file.to_string()));
    ebbtide_plan::job::check(&job).map_err(told)?;
    Ok(job)
}

/// The name that was given, or one that nobody has yet.
fn named(given: Option<String>, stem: &str) -> anyhow::Result<String> {
    if let Some(given) = given {
        return Ok(given);
    }
    let random = fs::read_to_string("/proc/sys/kernel/random/uuid").context("no randomness")?;
    let stem: String = stem.chars().take(200).collect();
    Ok(format!("{}-{}", stem.trim_end_matches(['-', '.']), &random[..6]))
}

async fn on_kubernetes(
    kubernetes: &Kubernetes,
    namespace: &str,
    job: &ClusterJob,
    detach: bool,
) -> anyhow::Result<ExitCode> {
    let job = kubernetes.create_job(namespace, job).await?;
    let name = job.name_any();
    if detach {
        output::line(&name)?;
        return Ok(ExitCode::SUCCESS);
    }
    let ended = tokio::select! {
        ended = followed(kubernetes, namespace, &job) => ended,
        asked = node::asked_to_end() => Ok(128 + asked.as_raw()),
    };
    let was_asked = ended.as_ref().is_ok_and(|code| *code > 128);
    if ended.is_err() || was_asked {
        output::tell(&format!("{name}: taking it down"));
        tokio::select! {
            gone = kubernetes.delete_job(namespace, &job) => gone?,
            _ = node::asked_to_end() => bail!("interrupted: {name} may still be there"),
        }
        output::tell(&format!("{name} is gone"));
    }
    Ok(ExitCode::from(u8::try_from(ended?).unwrap_or(1)))
}

/// Follows a job to its end: what it waits for, what it prints, and its exit code.
async fn followed(
    kubernetes: &Kubernetes,
    namespace: &str,
    job: &ClusterJob,
) -> anyhow::Result<i32> {
    let name = job.name_any();
    let (mut job, mut told) = (job.clone(), None);
    let mut printing: Option<(String, _)> = None;
    loop {
        let status = job.status.clone().unwrap_or_default();
        let message = status.message.filter(|_| !status.phase.is_over());
        if message.is_some() && message != told {
            output::tell(&format!("{name}: {}", message.as_deref().unwrap_or_default()));
            told = message;
        }
        // What cannot come by itself is told, and not waited for.
        if status.phase == JobPhase::Pending {
            unless_degraded(kubernetes, namespace, &job).await?;
        }
        if let Some(pod) = status.pod.filter(|_| status.phase != JobPhase::Pending)
            && printing.as_ref().is_none_or(|(it, _)| *it != pod.name)
        {
            finish(printing.take()).await;
            let (kubernetes, namespace) = (kubernetes.clone(), namespace.to_owned());
            let pod_name = pod.name.clone();
            let print = async move { kubernetes.follow(&namespace, &pod_name).await };
            printing = Some((pod.name, tokio::spawn(print)));
        }
        if status.phase.is_over() {
            finish(printing).await;
            let words = job.status.as_ref().and_then(|it| it.message.clone()).unwrap_or_default();
            output::tell(&format!("{name}: {words}"));
            let code = status.exit_code.filter(|code| *code != 0);
            return Ok(if status.phase == JobPhase::Succeeded { 0 } else { code.unwrap_or(1) });
        }
        let next = kubernetes.next_job(namespace, &job).await?;
        job = next.ok_or_else(|| anyhow!("{name} was deleted meanwhile"))?;
    }
}

/// Waits for the rest of what a pod printed.
async fn finish(printing: Option<(String, tokio::task::JoinHandle<anyhow::Result<()>>)>) {
    let Some((pod, printing)) = printing else { return };
    match timeout(REST_MAX, printing).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => {
            output::tell(&format!("{pod}: its output may not be whole: {error:#}"));
        }
        Ok(Err(_)) | Err(_) => output::tell(&format!("{pod}: its output may not be whole")),
    }
}

async fn unless_degraded(
    kubernetes: &Kubernetes,
    namespace: &str,
    job: &ClusterJob,
) -> anyhow::Result<()> {
    let accepted =
        job.status.iter().flat_map(|it| &it.conditions).find(|it| it.type_ == "Accepted");
    if let Some(refused) = accepted.filter(|it| it.status == "False") {
        bail!("{}", refused.message);
    }
    let Some(seen) = job.status.as_ref().and_then(|it| it.cluster.as_ref()) else { return Ok(()) };
    let cluster = kubernetes.get(namespace, &seen.name).await?;
    let status = cluster.status.filter(|it| it.phase == Phase::Degraded);
    match status.and_then(|it| it.message) {
        Some(message) => bail!("cluster {}: {message}", seen.name),
        None => Ok(()),
    }
}
