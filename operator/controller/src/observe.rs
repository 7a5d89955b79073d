//! All reads of one reconcile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ebbtide_api::{Cluster, names};
use ebbtide_plan::{Observed, PodPhase, PodSeen, Trouble, is_own_container};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, PodCondition};
use kube::core::ObjectMeta;
use kube::{Resource, ResourceExt as _};
use serde::Deserialize;
use tokio::time::Instant;

use crate::reconcile::Context;

/// How long it is believed that what was created or seen is still there. A Secret or Service that
/// somebody deletes comes back after that.
const BELIEF: Duration = Duration::from_mins(1);

/// What is kept of a pod: 2 KiB where a whole one takes 39.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
pub(crate) struct SlimPod {
    pub(crate) metadata: ObjectMeta,
    status: Option<SlimStatus>,
}

impl SlimPod {
    /// Leaves out what nobody here asks for: people's annotations may be long.
    pub(crate) fn slim(&mut self) {
        self.metadata.managed_fields = None;
        self.annotations_mut().retain(|key, _| key == names::MADE_FROM);
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimStatus {
    phase: Option<String>,
    reason: Option<String>,
    message: Option<String>,
    conditions: Option<Vec<PodCondition>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
}

/// What clusters have beside pods, as far as this operator made or saw it.
#[derive(Debug, Default)]
pub(crate) struct Beliefs(Mutex<BTreeMap<String, (Instant, BTreeSet<String>)>>);

impl Beliefs {
    /// Something was created or found.
    pub(crate) fn learn(&self, cluster_uid: &str, what: String) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let belief = all.entry(cluster_uid.to_owned());
        belief.or_insert_with(|| (Instant::now(), BTreeSet::new())).1.insert(what);
    }

    /// What is believed about a cluster. What is too old is forgotten: creating it again finds out.
    fn recall(&self, cluster_uid: &str) -> BTreeSet<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (since, _)| since.elapsed() < BELIEF);
        all.get(cluster_uid).map(|(_, known)| known.clone()).unwrap_or_default()
    }
}

pub(crate) fn secret(name: &str) -> String {
    format!("{SECRET}{name}")
}

pub(crate) fn service(name: &str) -> String {
    format!("{SERVICE}{name}")
}

const SECRET: &str = "secret/";
const SERVICE: &str = "service/";
pub(crate) const NETWORK_POLICY: &str = "network policy";

/// Reads what is known of a cluster. Pods come from the cache, demand from the scheduler's own
/// connection; Secrets, Service and policy from what this operator knows, so that a cluster that
/// is as it should be costs the API server nothing.
pub(crate) fn observe(context: &Context, cluster: &Cluster) -> Observed {
    let uid = cluster.uid().unwrap_or_default();
    let known = context.beliefs.recall(&uid);
    let named = |kind: &str| {
        known.iter().filter_map(|it| it.strip_prefix(kind)).map(str::to_owned).collect()
    };
    let is_ours = |pod: &SlimPod| {
        pod.metadata.namespace == cluster.metadata.namespace
            && pod.metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid)
    };
    let pods = context.pods.state_filter(is_ours);
    Observed {
        secrets: named(SECRET),
        services: named(SERVICE),
        has_network_policy: known.contains(NETWORK_POLICY),
        pods: pods.iter().map(|pod| seen(pod)).collect(),
        demand: context.schedulers.demand(&uid),
        busy_ago: context.schedulers.busy_ago(&uid),
    }
}

fn seen(pod: &SlimPod) -> PodSeen {
    let status = pod.status.as_ref();
    let phase = match status.and_then(|status| status.phase.as_deref()) {
        Some("Running") => PodPhase::Running,
        Some("Succeeded" | "Failed") => PodPhase::Ended,
        Some(_) | None => PodPhase::Pending,
    };
    let containers = || {
        let all = status.map(|it| [&it.init_container_statuses, &it.container_statuses]);
        all.into_iter().flatten().flat_map(|it| it.iter().flatten())
    };
    let ended_at = containers()
        .filter_map(|container| container.state.as_ref()?.terminated.as_ref())
        .filter_map(|ended| ended.finished_at.as_ref().map(|time| time.0))
        .max();
    let whole = status.and_then(|it| Some((it.reason.as_deref()?, it.message.as_deref())));
    let whole = whole.map(|(reason, message)| Trouble::failed(reason, message.unwrap_or_default()));
    let unplaced =
        || status.and_then(|it| unschedulable(it.conditions.as_deref().unwrap_or_default()));
    let trouble = whole.or_else(|| containers().find_map(trouble)).or_else(unplaced);
    let created_at = pod.creation_timestamp().map(|time| time.0);
    // What a node refuses never had a container: it ended as it began.
    let refused_at = created_at.filter(|_| phase == PodPhase::Ended);
    PodSeen {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        labels: pod.labels().clone(),
        made_from: pod.annotations().get(names::MADE_FROM).cloned(),
        is_deleting: pod.metadata.deletion_timestamp.is_some(),
        phase,
        created_at,
        ended_at: ended_at.or(refused_at),
        trouble,
    }
}

/// What is wrong with a container. People named those that run before ours.
fn trouble(container: &ContainerStatus) -> Option<Trouble> {
    let what = what_is_wrong(container.state.as_ref()?)?;
    Some(if is_own_container(&container.name) { what } else { what.of(&container.name) })
}

fn what_is_wrong(state: &ContainerState) -> Option<Trouble> {
    if let Some(waiting) = &state.waiting {
        let message = waiting.message.as_deref().unwrap_or_default();
        return Trouble::waiting(waiting.reason.as_deref()?, message);
    }
    let ended = state.terminated.as_ref()?;
    let reason = ended.reason.as_deref().unwrap_or("Error");
    Trouble::ended(reason, ended.exit_code, ended.message.as_deref().unwrap_or_default())
}

fn unschedulable(conditions: &[PodCondition]) -> Option<Trouble> {
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    let is_refused = scheduled.status == "False" && scheduled.reason.is_some();
    is_refused.then(|| Trouble::unschedulable(scheduled.message.as_deref().unwrap_or_default()))
}
