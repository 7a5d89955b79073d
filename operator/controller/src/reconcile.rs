//! The five steps for one cluster, and what happens when one fails. One cluster's trouble stays
//! its own.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use ebbtide_api::{Cluster, ClusterJob, Guarded};
use ebbtide_authority::Authority;
use ebbtide_listener::Schedulers;
use ebbtide_plan::queue::{Key, Kind};
use ebbtide_plan::unreadable::cluster_patch;
use ebbtide_plan::{Refusal, Site, is_told_to_have_begun, plan};
use futures::FutureExt as _;
use kube::Client;
use kube::runtime::events::Recorder;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::api_call::CallError;
use crate::apply::{Applied, ApplyError, Failed, apply};
use crate::jobs::{self, JobError};
use crate::known::Known;
use crate::metrics::{Class, Metrics, Outcome};
use crate::observe::{Beliefs, observe};
use crate::operator::Clock;
use crate::record::{record, unreadable};
use crate::slim::{SlimPod, SlimPolicy, SlimService};
use crate::trace::Traces;

/// First wait after a failure; each further one doubles it.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_mins(1);

/// Longest time for which a cluster is left alone after a failure, whatever happens to it.
const HELD_MAX: Duration = Duration::from_secs(5);

/// For how long one is left alone whose namespace goes.
const HELD_LONG: Duration = Duration::from_secs(10);

/// What every look at a cluster may use.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) clusters: Arc<Known<Guarded<Cluster>>>,
    pub(crate) jobs: Arc<Known<Guarded<ClusterJob>>>,
    pub(crate) pods: Arc<Known<SlimPod>>,
    pub(crate) services: Arc<Known<SlimService>>,
    pub(crate) policies: Arc<Known<SlimPolicy>>,
    pub(crate) schedulers: Schedulers,
    pub(crate) authority: watch::Receiver<Arc<Authority>>,
    pub(crate) site: Site,
    pub(crate) beliefs: Beliefs,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: Metrics,
    pub(crate) traces: Traces,
    pub(crate) clock: Clock,
}

/// Why a look ended early.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Record(CallError),
    #[error(transparent)]
    Job(JobError),
    #[error("a bug in the operator: {0}")]
    Panic(String),
}

/// When a cluster is looked at next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Next {
    /// After so long, though nothing happens.
    pub(crate) again: Option<Duration>,
    /// Not before, whatever happens.
    pub(crate) held: Option<Duration>,
}

/// Looks at one cluster or job and does what is due. Whatever is logged on the way says of which look it is.
pub(crate) async fn look(context: Arc<Context>, key: Key) -> (Key, Next) {
    let trace = context.traces.next();
    let span = tracing::info_span!("reconcile", trace, object = %key);
    let next = try_steps(&context, &key, &trace).instrument(span).await;
    (key, next)
}

/// Does what is due. A panic is its alone.
async fn try_steps(context: &Context, key: &Key, trace: &str) -> Next {
    let begin = Instant::now();
    let steps = async {
        match key.kind {
            Kind::Cluster => steps(context, key, trace).await,
            Kind::ClusterJob => jobs::steps(context, key, trace).await.map_err(LookError::Job),
        }
    };
    let steps = AssertUnwindSafe(steps).catch_unwind().await;
    let ended = steps.unwrap_or_else(|panic| Err(LookError::Panic(words(&*panic))));
    let outcome = if ended.is_ok() { "success" } else { "error" };
    context.metrics.reconciles.get_or_create(&Outcome { outcome }).inc();
    context.metrics.reconcile_seconds.observe(begin.elapsed().as_secs_f64());
    match ended {
        Ok(again) => {
            let again = again.into_iter().chain(context.beliefs.succeeded(key)).min();
            Next { again, held: None }
        }
        Err(error) => {
            let class = error.class();
            context.metrics.reconcile_errors.get_or_create(&Class { class }).inc();
            let wait = wait_after(context.beliefs.failed(key));
            let held = error.held(wait);
            let wait = wait.max(held.unwrap_or_default());
            let retry_seconds = wait.as_secs_f64();
            tracing::warn!(class, %error, retry_seconds, "a reconcile failed");
            Next { again: Some(wait), held }
        }
    }
}

async fn steps(context: &Context, key: &Key, trace: &str) -> Result<Option<Duration>, LookError> {
    let Some(guarded) = context.clusters.get(key) else {
        context.beliefs.forget(key);
        return Ok(None);
    };
    let cluster = match &guarded.0 {
        Ok(cluster) => cluster,
        Err(unread) => {
            let patch = cluster_patch(unread, (context.clock)());
            let told = unreadable(context, key, (&*guarded, unread), patch).await;
            return told.map_err(LookError::Record);
        }
    };
    let namespace = key.namespace.as_str();
    if !context.pods.has_listed(namespace)
        || !context.services.has_listed(namespace)
        || !context.policies.has_listed(namespace)
    {
        // It comes up again when it is known what clusters have.
        return Ok(None);
    }
    let cluster = &context.beliefs.with_written(key, cluster);
    let (observed, doubt) = observe(context, key, cluster);
    let uid = cluster.metadata.uid.as_deref().unwrap_or_default();
    context.schedulers.tell_groups(uid, &ebbtide_plan::groups(&cluster.spec));
    let planned = context.beliefs.as_planned(key, cluster);
    let plan = plan(&planned, &observed, &context.site, (context.clock)()).traced(trace);
    let is_new = observed.pods.is_empty() && !is_told_to_have_begun(&planned);
    let Applied { renewed, failed } = apply(context, cluster, &plan.changes, is_new).await;
    let plan = match &renewed {
        Ok(()) => plan,
        Err(error) => plan.without_renewal(&planned, &error.to_string()),
    };
    if let Some(Failed { error: ApplyError::Gone, .. }) = failed {
        // A watch tells it, too, or else it is looked again.
        context.beliefs.missed(key);
        return Ok(None);
    }
    if let Some(Failed { at, error, unmade }) = failed {
        let (words, is_lasting) = (&*error.to_string(), error.is_lasting());
        let why = Refusal { words, is_lasting, at };
        let status = plan.stuck(cluster, &why, &unmade, (context.clock)());
        record(context, cluster, &status, &[]).await.map_err(LookError::Record)?;
        return Err(error.into());
    }
    let wait = record(context, cluster, &plan.status, &plan.changes).await;
    renewed?;
    let wait = wait.map_err(LookError::Record)?;
    Ok([plan.next_look, wait, doubt].into_iter().flatten().min())
}

impl LookError {
    /// For how long nothing is a reason to look again, where the next try is after this wait.
    fn held(&self, wait: Duration) -> Option<Duration> {
        match self {
            // What it was read from has changed: that comes, and is to be looked at.
            Self::Record(error) if error.is_conflict() => None,
            Self::Apply(_) | Self::Record(_) | Self::Job(_) | Self::Panic(_) => {
                Some(if self.is_for_nothing() { HELD_LONG } else { wait.min(HELD_MAX) })
            }
        }
    }

    /// Whether another try would not help.
    fn is_for_nothing(&self) -> bool {
        match self {
            Self::Apply(ApplyError::Call(error) | ApplyError::Renewal { source: error, .. })
            | Self::Record(error)
            | Self::Job(JobError::Call(error)) => error.is_for_nothing(),
            Self::Apply(_) | Self::Job(_) | Self::Panic(_) => false,
        }
    }

    /// What went wrong, in a word.
    fn class(&self) -> &'static str {
        match self {
            Self::Apply(ApplyError::Call(error) | ApplyError::Renewal { source: error, .. })
            | Self::Record(error)
            | Self::Job(JobError::Call(error)) => error.class(),
            Self::Apply(ApplyError::Gone) => "gone",
            Self::Apply(ApplyError::Mint(_)) => "mint",
            Self::Apply(ApplyError::Foreign { .. }) | Self::Job(JobError::Foreign { .. }) => {
                "foreign"
            }
            Self::Apply(ApplyError::Earlier { .. }) => "earlier",
            Self::Apply(ApplyError::Unlabelled { .. }) => "unlabelled",
            Self::Apply(ApplyError::Fought { .. }) => "fought",
            Self::Panic(_) => "panic",
        }
    }
}

/// Longer after each failure in a row.
fn wait_after(failures: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << failures.min(10)).min(RETRY_MAX)
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
