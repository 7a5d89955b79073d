//! The five steps for one cluster, and what happens when one fails. One cluster's trouble stays
//! its own.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ebbtide_api::Cluster;
use ebbtide_authority::Authority;
use ebbtide_listener::Schedulers;
use ebbtide_plan::{Site, plan};
use futures::FutureExt as _;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::Store;
use kube::{Client, ResourceExt as _};
use tokio::time::timeout;

use crate::api_call::CallError;
use crate::apply::{ApplyError, apply};
use crate::metrics::{Metrics, Outcome};
use crate::observe::{Beliefs, PolicyMetadata, ServiceMetadata, SlimPod, observe};
use crate::operator::Clock;
use crate::record::record;

/// How long a reconcile waits for the first lists of what clusters have.
const KNOWN_MAX: Duration = Duration::from_secs(30);

/// First wait after a failure; each further one doubles it.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_mins(1);

/// A cluster as it comes from the API server: it may not be one that we understand.
pub(crate) type Guarded = DeserializeGuard<Cluster>;

/// What every reconcile may use.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) pods: Store<SlimPod>,
    pub(crate) services: Store<ServiceMetadata>,
    pub(crate) policies: Store<PolicyMetadata>,
    pub(crate) schedulers: Schedulers,
    pub(crate) authority: Arc<Authority>,
    pub(crate) site: Site,
    pub(crate) beliefs: Beliefs,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: Metrics,
    pub(crate) failures: Mutex<BTreeMap<String, u32>>,
    pub(crate) clock: Clock,
}

/// Why a reconcile ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    #[error("what clusters have is not known yet")]
    NotReady,
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Record(CallError),
    #[error("a bug in the operator: {0}")]
    Panic(String),
}

/// Reconciles one cluster. A panic is this cluster's alone.
pub(crate) async fn reconcile(
    guarded: Arc<Guarded>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let steps = AssertUnwindSafe(steps(&guarded, &context)).catch_unwind().await;
    let ended = steps.unwrap_or_else(|panic| Err(ReconcileError::Panic(words(&*panic))));
    let outcome = if ended.is_ok() { "success" } else { "error" };
    context.metrics.reconciles.get_or_create(&Outcome { outcome }).inc();
    if ended.is_ok() {
        let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(&guarded.uid().unwrap_or_default());
    }
    ended
}

async fn steps(guarded: &Guarded, context: &Context) -> Result<Action, ReconcileError> {
    let cluster = match &guarded.0 {
        Ok(cluster) => cluster,
        Err(invalid) => {
            // Stored under another schema. It stays as it is until somebody mends it.
            tracing::warn!(name = guarded.name_any(), error = %invalid.error, "unreadable cluster");
            return Ok(Action::await_change());
        }
    };
    let known = async {
        context.pods.wait_until_ready().await?;
        context.services.wait_until_ready().await?;
        context.policies.wait_until_ready().await
    };
    timeout(KNOWN_MAX, known).await.ok().and_then(Result::ok).ok_or(ReconcileError::NotReady)?;
    let observed = observe(context, cluster);
    let uid = cluster.uid().unwrap_or_default();
    context.schedulers.tell_groups(&uid, &ebbtide_plan::groups(&cluster.spec));
    let plan = plan(cluster, &observed, &context.site, (context.clock)());
    if let Err(error) = apply(context, cluster, &plan.changes).await {
        let status = plan.stuck(cluster, &error.to_string(), (context.clock)());
        record(context, cluster, &status, &[]).await.map_err(ReconcileError::Record)?;
        return Err(error.into());
    }
    record(context, cluster, &plan.status, &plan.changes).await.map_err(ReconcileError::Record)?;
    Ok(plan.next_look.map_or_else(Action::await_change, Action::requeue))
}

/// Waits longer after each failure in a row.
#[expect(clippy::needless_pass_by_value, reason = "the signature is kube's")]
pub(crate) fn retry(
    guarded: Arc<Guarded>,
    error: &ReconcileError,
    context: Arc<Context>,
) -> Action {
    let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let count = failures.entry(guarded.uid().unwrap_or_default()).or_default();
    let wait = RETRY_FIRST.saturating_mul(1 << (*count).min(10)).min(RETRY_MAX);
    *count += 1;
    tracing::warn!(
        name = guarded.name_any(),
        namespace = guarded.namespace(),
        %error,
        retry_seconds = wait.as_secs_f64(),
        "a reconcile failed"
    );
    Action::requeue(wait)
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
