//! `ebbtide run`: a program beside a cluster of its own, followed to its end.

use std::fs;
use std::future::pending;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use ebbtide_api::job::{ClusterRef, Retries};
use ebbtide_api::status::Cause;
use ebbtide_api::{Cluster, ClusterJob, ClusterJobSpec, ClusterJobStatus, JobPhase, Phase, names};
use ebbtide_plan::is_going;
use ebbtide_plan::job::is_made_for_job;
use kube::ResourceExt as _;
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::backend::{Backend, Kubernetes, fresh_uid, no_cluster};
use crate::command::{HURT_MAX, On, Place, Script, UNNOTICED_MAX, try_script};
use crate::up::up;
use crate::{manifest, node, output};

/// How long a job that ended can be looked at, in seconds.
const KEPT_SECONDS: i32 = 86_400;

/// How long no more may come of what a program printed that has ended.
const REST_MAX: Duration = Duration::from_secs(20);

/// How long the API server may not answer, and how long until it is asked again.
const UNSEEN_MAX: Duration = Duration::from_mins(5);
const AGAIN: Duration = Duration::from_secs(1);

/// What keeps a cluster from its work and may pass by itself: a node's or a registry's trouble.
const MAY_PASS: [Cause; 5] =
    [Cause::Image, Cause::Exit, Cause::Evicted, Cause::NodeLost, Cause::Refused];

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
            if let Some(on) = &wanted.on.on
                && !backend.has(&namespace, on).await?
            {
                bail!("{}", no_cluster(&namespace, on));
            }
            let job = as_job(&wanted, cluster, program)?;
            Box::pin(on_kubernetes(kubernetes, &namespace, &job, wanted.detach)).await
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
        return try_script(&script, (&namespace, &on), backend).await;
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
    // What they say of a manifest they say of the job that is made of it.
    let marks = cluster.as_ref().map(|it| it.metadata.clone()).unwrap_or_default();
    let marks = (marks.labels, marks.annotations);
    spec.cluster = cluster.map(|it| it.spec);
    spec.cluster_ref = wanted.on.on.clone().map(|name| ClusterRef { name });
    spec.script = Some(program);
    spec.args.clone_from(&wanted.arguments);
    spec.retries = Retries { exit: wanted.retries, ..Retries::default() };
    spec.ttl_seconds_after_finished = Some(KEPT_SECONDS);
    let mut job = ClusterJob::new(&named(wanted.name.clone(), &stem)?, spec);
    (job.metadata.labels, job.metadata.annotations) = marks;
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
    let random = fresh_uid()?;
    let stem: String = stem.chars().take(200).collect();
    Ok(format!("{}-{}", stem.trim_end_matches(['-', '.']), &random[..6]))
}

async fn on_kubernetes(
    kubernetes: &Kubernetes,
    namespace: &str,
    job: &ClusterJob,
    detach: bool,
) -> anyhow::Result<ExitCode> {
    // From now on whoever asks for an end finds it.
    let asked = node::asked_to_end();
    tokio::pin!(asked);
    let mut made = Box::pin(kubernetes.create_job(namespace, job));
    let (job, early) = tokio::select! {
        biased;
        // It may be there already.
        asked = &mut asked => (made.await?, Some(asked)),
        made = &mut made => (made?, None),
    };
    let name = job.name_any();
    if detach && early.is_none() {
        output::line(&name)?;
        return Ok(ExitCode::SUCCESS);
    }
    let ended = if let Some(asked) = early {
        Ended::Asked(asked)
    } else {
        tokio::select! {
            ended = followed(kubernetes, namespace, &job, true) => ended,
            asked = &mut asked => Ended::Asked(asked),
        }
    };
    match &ended {
        Ended::Asked(_) | Ended::Refused(_) => {
            output::tell(&format!("{name}: taking the job down"));
            let this = ebbtide_plan::job::named(&job);
            tokio::select! {
                gone = kubernetes.delete_job(namespace, &this) => gone?,
                _ = node::asked_to_end() => bail!("interrupted: job {name} may still be there"),
            }
            output::tell(&format!("job {name} is gone"));
        }
        Ended::Code(_) | Ended::Gone | Ended::Unseen(_) => {}
    }
    ended.exit_code(&name)
}

/// The same of a job that is there, and stays.
pub(crate) async fn follow(name: &str, place: &Place) -> anyhow::Result<ExitCode> {
    let asked = node::asked_to_end();
    let backend = Backend::connect(place).await?;
    let (kubernetes, namespace) = (backend.kept()?, backend.namespace());
    let job = kubernetes.job(name).await?;
    if job.spec.schedule.is_some() {
        bail!(
            "{name} is a schedule, and each of its runs a job of its own: `ebbtide jobs` lists them"
        );
    }
    let ended = tokio::select! {
        ended = followed(kubernetes, &namespace, &job, false) => ended,
        asked = asked => Ended::Asked(asked),
    };
    ended.exit_code(name)
}

fn code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(1)
}

/// How following a job ended.
enum Ended {
    /// The job ended, and this is the program's exit code.
    Code(i32),
    /// Nothing can come of it.
    Refused(String),
    /// Somebody deleted it.
    Gone,
    /// Nobody knows: the API server does not answer.
    Unseen(anyhow::Error),
    /// This process is to end.
    Asked(Signal),
}

impl Ended {
    /// What this process ends with, or why nobody knows the program's end.
    fn exit_code(self, name: &str) -> anyhow::Result<ExitCode> {
        let ended = match self {
            Self::Code(code) => code,
            Self::Asked(signal) => 128 + signal.as_raw(),
            Self::Refused(words) => bail!("{words}"),
            Self::Gone => bail!("{name} was deleted meanwhile"),
            Self::Unseen(error) => return Err(error.context(format!("{name} goes on unseen"))),
        };
        Ok(ExitCode::from(code(ended)))
    }
}

/// Follows a job to its end: what it waits for, and what it prints. What was made to be followed is not
/// waited for when nothing can come of it; what is there may be mended by others.
async fn followed(
    kubernetes: &Kubernetes,
    namespace: &str,
    job: &ClusterJob,
    is_ours: bool,
) -> Ended {
    let name = job.name_any();
    let (mut job, mut told, mut hurt_since) = (job.clone(), None, None::<Instant>);
    let mut is_seen = false;
    let mut printer = Printer { kubernetes, namespace, job: &name, attempts: 0, printing: None };
    loop {
        is_seen |= job.status.is_some();
        let status = job.status.clone().unwrap_or_default();
        let message = status.message.clone().filter(|_| !status.phase.is_over());
        if message.is_some() && message != told {
            output::tell(&format!("{name}: {}", message.as_deref().unwrap_or_default()));
            told = message;
        }
        let refused = if is_ours { refusal(kubernetes, namespace, &job).await } else { None };
        match refused {
            None => hurt_since = None,
            Some((words, may_pass)) => {
                let since = *hurt_since.get_or_insert_with(Instant::now);
                if !may_pass || since.elapsed() >= HURT_MAX {
                    return Ended::Refused(words);
                }
            }
        }
        printer.print(&status).await;
        if status.phase.is_over() {
            output::tell(&format!("{name}: {}", status.message.unwrap_or_default()));
            let code = status.exit_code.filter(|code| *code != 0).unwrap_or(1);
            return Ended::Code(if status.phase == JobPhase::Succeeded { 0 } else { code });
        }
        let again = async {
            match hurt_since {
                Some(since) => sleep_until(since + HURT_MAX).await,
                None => pending().await,
            }
        };
        tokio::select! {
            next = next(kubernetes, namespace, &job) => match next {
                Ok(Some(next)) => job = next,
                Ok(None) => return Ended::Gone,
                Err(error) => return Ended::Unseen(error),
            },
            () = again => {}
            () = sleep(UNNOTICED_MAX), if !is_seen => {
                output::tell(&format!(
                    "{name}: nobody has looked at it yet; does the operator run, and in this namespace?"
                ));
                is_seen = true;
            }
        }
    }
}

/// The job when it has changed, patient with an API server that does not answer.
async fn next(
    kubernetes: &Kubernetes,
    namespace: &str,
    job: &ClusterJob,
) -> anyhow::Result<Option<ClusterJob>> {
    let started_at = Instant::now();
    let mut told = false;
    loop {
        match kubernetes.next_job(namespace, job).await {
            Err(error) if started_at.elapsed() < UNSEEN_MAX => {
                if !std::mem::replace(&mut told, true) {
                    output::tell(&format!("{}: {error:#}; it is tried again", job.name_any()));
                }
                sleep(AGAIN).await;
            }
            known => return known,
        }
    }
}

/// Prints what each attempt prints, one after the other.
struct Printer<'a> {
    kubernetes: &'a Kubernetes,
    namespace: &'a str,
    job: &'a str,
    /// Attempts whose output is printed, the one at work left out.
    attempts: u32,
    printing: Option<Printing>,
}

/// What one attempt prints, on its way.
struct Printing {
    /// The uid of its pod, if that is known.
    of: Option<String>,
    task: JoinHandle<anyhow::Result<bool>>,
    /// Told of every line.
    lines: watch::Receiver<()>,
}

impl Printing {
    /// Waits for its end for as long as there comes more. Gives why it may not be whole, if so: that its pod is gone
    /// is no reason where it was stopped.
    async fn rest(mut self, was_stopped: bool) -> Option<String> {
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut self.task => break ended,
                more = timeout(REST_MAX, self.lines.changed()) => match more {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => break (&mut self.task).await,
                    Err(_) => {
                        self.task.abort();
                        return Some(format!(": nothing came for {REST_MAX:?}"));
                    }
                },
            }
        };
        match ended {
            Ok(Ok(is_over)) => (!is_over && !was_stopped).then(|| ": its pod is gone".to_owned()),
            Ok(Err(error)) => Some(format!(": {error:#}")),
            Err(_) => Some(String::new()),
        }
    }
}

impl Printer<'_> {
    /// Prints what is known to be there: to their ends what attempts printed that have ended.
    async fn print(&mut self, status: &ClusterJobStatus) {
        let ended = status.failures.count();
        while self.attempts < ended {
            self.begin(None);
            self.finish(false).await;
        }
        let present = names::attempt(self.job, self.attempts);
        if status.phase != JobPhase::Pending
            && let Some(pod) = status.pod.as_ref().filter(|it| it.name == present)
        {
            let is_another = |it: &Printing| it.of.as_ref().is_some_and(|of| *of != pod.uid);
            if let Some(before) = self.printing.take_if(|it| is_another(it)) {
                // It was suspended, and begins again.
                self.rest_of(before, true).await;
            }
            self.begin(Some(pod.uid.clone()));
            if status.phase.is_over() {
                let was_stopped =
                    status.conditions.iter().any(|it| it.reason == "DeadlineExceeded");
                self.finish(was_stopped).await;
            }
        }
    }

    fn begin(&mut self, of: Option<String>) {
        if self.printing.is_some() {
            return;
        }
        let (kubernetes, namespace) = (self.kubernetes.clone(), self.namespace.to_owned());
        let pod = names::attempt(self.job, self.attempts);
        let (told, lines) = watch::channel(());
        let uid = of.clone();
        let print =
            async move { kubernetes.follow((&namespace, &pod), uid.as_deref(), &told).await };
        self.printing = Some(Printing { of, task: tokio::spawn(print), lines });
    }

    /// Waits for the rest of what an attempt printed that has ended.
    async fn finish(&mut self, was_stopped: bool) {
        let Some(printing) = self.printing.take() else { return };
        self.rest_of(printing, was_stopped).await;
        self.attempts += 1;
    }

    async fn rest_of(&self, printing: Printing, was_stopped: bool) {
        let nth = self.attempts + 1;
        if let Some(why) = printing.rest(was_stopped).await {
            output::tell(&format!("what attempt {nth} printed may not be whole{why}"));
        }
    }
}

/// Why nothing can come of a job, before its first attempt, and whether it may all the same, by itself.
async fn refusal(
    kubernetes: &Kubernetes,
    namespace: &str,
    job: &ClusterJob,
) -> Option<(String, bool)> {
    let status = job.status.as_ref()?;
    let accepted = status.conditions.iter().find(|it| it.type_ == "Accepted");
    let is_first = status.failures.total == 0 && status.pod.is_none();
    let is_final = |reason: &str| is_first || reason == "InvalidSpec";
    if let Some(refused) = accepted.filter(|it| it.status == "False" && is_final(&it.reason)) {
        return Some((refused.message.clone(), false));
    }
    let seen = status.cluster.as_ref().filter(|_| {
        // One that is there was not made for it, and others may mend it.
        job.spec.cluster.is_some()
            && status.phase == JobPhase::Pending
            && status.pod.is_none()
            && status.failures.total == 0
    })?;
    let cluster = kubernetes.get(namespace, &seen.name).await.ok()?;
    if !ebbtide_plan::job::is_own(job, &cluster) && !is_going(&cluster) {
        // That of an earlier job of the name is about to go.
        return Some((status.message.clone().unwrap_or_default(), is_made_for_job(&cluster)));
    }
    let degraded = cluster.status.filter(|it| it.phase == Phase::Degraded)?;
    // What nodes and registries say may be another thing a moment later.
    let mut reasons = degraded.conditions.iter().map(|it| it.reason.as_str());
    let may_pass = reasons.any(|it| MAY_PASS.iter().any(|cause| cause.as_str() == it));
    Some((format!("cluster {}: {}", seen.name, degraded.message.unwrap_or_default()), may_pass))
}
