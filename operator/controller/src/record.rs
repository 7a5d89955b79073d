//! One status write, then events: what people are told of was done.

use std::time::Duration;

use ebbtide_api::status::GroupStatus;
use ebbtide_api::{Cluster, ClusterStatus, Guarded, Unread};
use ebbtide_plan::queue::Key;
use ebbtide_plan::unreadable::{UNREADABLE, words};
use ebbtide_plan::{Change, News, Op, is_urgent, news};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::events::{Event, EventType};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api_call::{CallError, call};
use crate::known::key;
use crate::metrics::{Class, Phase};
use crate::reconcile::Context;

/// Reason of the event that a cluster goes.
const GOES: &str = "DeletedCluster";

/// Longest note of an event that Kubernetes takes, in bytes.
const NOTE_MAX: usize = 1024;

/// Names that one event tells.
const NAMED_MAX: usize = 8;

/// Writes the status if it differs, and tells of the changes. What is not urgent may wait: gives how
/// long.
pub(crate) async fn record(
    context: &Context,
    cluster: &Cluster,
    status: &ClusterStatus,
    changes: &[Change],
) -> Result<Option<Duration>, CallError> {
    let (mut wait, mut written) = (None, Ok(()));
    if cluster.status.as_ref() != Some(status) {
        let is_urgent = is_urgent(cluster.status.as_ref(), status);
        if !is_urgent {
            wait = Some(context.beliefs.wait_of_status(cluster)).filter(|it| !it.is_zero());
        }
        if wait.is_none() {
            wait = Some(context.beliefs.status_allowance(&key(cluster), is_urgent))
                .filter(|it| !it.is_zero());
        }
        match wait {
            None => written = write(context, cluster, status).await,
            Some(_) => context.beliefs.waits(cluster, status),
        }
    }
    // That a new cluster gets its first pods is no news.
    let is_new = cluster.status.is_none();
    let is_news = |it: &&Change| !is_new || !matches!(it.op, Op::CreatePod(_));
    for told in told(changes.iter().filter(is_news)) {
        // That it goes is told once, and nobody could look it up later.
        if told.reason != GOES && !context.beliefs.may_tell(&key(cluster)) {
            tracing::info!(note = told.note(), "too many events to tell");
            continue;
        }
        tell(context, cluster, &told).await;
    }
    written.map(|()| wait)
}

/// Writes a status over the one that was read. Whoever read an older one, or an older spec, writes nothing.
async fn write(
    context: &Context,
    cluster: &Cluster,
    status: &ClusterStatus,
) -> Result<(), CallError> {
    let clusters: Api<Cluster> =
        Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let mut written = replace(&clusters, cluster, status).await;
    // A definition from before does not have these causes.
    let known = without_refusals(status);
    if matches!(&written, Err(error) if error.is_invalid()) && known != *status {
        written = replace(&clusters, cluster, &known).await;
    }
    match written {
        Ok(written) => {
            context.beliefs.wrote(status, written);
            count_phase(context, cluster, status);
            for trouble in news(cluster.status.as_ref(), status) {
                tell_trouble(context, &key(cluster), trouble, &cluster.object_ref(&())).await;
            }
            Ok(())
        }
        Err(error) if error.is_gone() => {
            context.beliefs.missed(&key(cluster));
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn replace(
    clusters: &Api<Cluster>,
    cluster: &Cluster,
    status: &ClusterStatus,
) -> Result<Cluster, CallError> {
    let mut next = cluster.clone();
    next.status = Some(status.clone());
    let (name, params) = (cluster.name_any(), PostParams::default());
    call("write the status", clusters.replace_status(&name, &params, &next)).await
}

fn without_refusals(status: &ClusterStatus) -> ClusterStatus {
    let groups = status.groups.iter().cloned().map(GroupStatus::without_unmade).collect();
    ClusterStatus { groups, ..status.clone() }
}

/// Counts how long the phase took that is over.
fn count_phase(context: &Context, cluster: &Cluster, status: &ClusterStatus) {
    let before = cluster.status.as_ref().filter(|it| it.phase != status.phase);
    let since = before.and_then(|it| it.phase_since.as_ref());
    if let (Some(before), Some(since), Some(until)) = (before, since, &status.phase_since) {
        let phase = Phase { phase: before.phase.as_str() };
        let seconds = until.0.duration_since(since.0).as_secs_f64();
        context.metrics.phase_seconds.get_or_create(&phase).observe(seconds);
    }
}

/// One event.
#[derive(Debug, Eq, PartialEq)]
struct Told {
    reason: &'static str,
    why: &'static str,
    pods: Vec<String>,
}

impl Told {
    fn note(&self) -> String {
        let Self { why, pods, .. } = self;
        let names = pods.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
        match pods.len() {
            0 => (*why).to_owned(),
            count if count > NAMED_MAX => format!("{names} and {} more: {why}", count - NAMED_MAX),
            _ => format!("{names}: {why}"),
        }
    }
}

/// What is told of changes: those of one kind and cause together.
fn told<'a>(changes: impl Iterator<Item = &'a Change>) -> Vec<Told> {
    let mut all: Vec<Told> = Vec::new();
    for change in changes {
        let (reason, pods) = match &change.op {
            Op::CreatePod(pod) => ("CreatedPod", vec![pod.name_any()]),
            Op::DeletePod(pod) => ("DeletedPod", vec![pod.name.clone()]),
            Op::Retire { workers, .. } => ("Retiring", workers.clone()),
            Op::DeleteCluster { .. } => (GOES, Vec::new()),
            Op::RenewSecret(_) => ("RenewedCertificates", Vec::new()),
            Op::RestoreNetworkPolicy(_) | Op::RestoreService(_) => ("Restoring", Vec::new()),
            // Of no interest unless something goes wrong.
            Op::CreateSecret(_)
            | Op::CreateNetworkPolicy(_)
            | Op::DeleteNetworkPolicy(_)
            | Op::CreateService(_)
            | Op::TryPod(_) => continue,
        };
        match all.iter_mut().find(|it| (it.reason, it.why) == (reason, change.why)) {
            Some(told) => told.pods.extend(pods),
            None => all.push(Told { reason, why: change.why, pods }),
        }
    }
    all
}

async fn tell(context: &Context, cluster: &Cluster, told: &Told) {
    // Without it events of one reason count up as one, with the words of the first.
    let about = told.pods.first().map(|name| ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(name.clone()),
        namespace: cluster.namespace(),
        ..ObjectReference::default()
    });
    let event = Event {
        type_: EventType::Normal,
        reason: told.reason.to_owned(),
        action: "Reconcile".to_owned(),
        note: Some(told.note()),
        secondary: about,
    };
    publish(context, event, &cluster.object_ref(&())).await;
}

/// Warns people of a trouble that a status tells.
pub(crate) async fn tell_trouble(
    context: &Context,
    key: &Key,
    trouble: News,
    of: &ObjectReference,
) {
    let News { reason, field, note } = trouble;
    // Events of one reason about one thing count up as one, with the words of the first.
    let about = ObjectReference { field_path: Some(field), ..of.clone() };
    warn(context, key, (reason, note, Some(about)), of).await;
}

/// Warns people of something for a reason, and names what it is about.
async fn warn(
    context: &Context,
    key: &Key,
    (reason, note, secondary): (String, String, Option<ObjectReference>),
    of: &ObjectReference,
) {
    let event = Event {
        type_: EventType::Warning,
        reason,
        action: "Reconcile".to_owned(),
        note: Some(note),
        secondary,
    };
    tell_within_bounds(context, key, event, of).await;
}

/// Tells people of something, unless they are told too much already.
pub(crate) async fn tell_within_bounds(
    context: &Context,
    key: &Key,
    event: Event,
    of: &ObjectReference,
) {
    if !context.beliefs.may_tell(key) {
        tracing::info!(event.reason, event.note, "too many events to tell");
        return;
    }
    publish(context, event, of).await;
}

/// Tells of an object that was stored under another definition, in its status if that does not say so yet. It stays
/// as it is until somebody corrects it. Gives when to look again.
pub(crate) async fn unreadable<K>(
    context: &Context,
    key: &Key,
    (object, unread): (&Guarded<K>, &Unread),
    status: Option<Value>,
) -> Result<Option<Duration>, CallError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone,
    K: std::fmt::Debug,
{
    tracing::warn!(error = unread.error, "an object cannot be read");
    context.metrics.reconcile_errors.get_or_create(&Class { class: "unreadable" }).inc();
    context.beliefs.overwritten(key);
    let Some(status) = status else { return Ok(None) };
    let wait = context.beliefs.status_allowance(key, true);
    if !wait.is_zero() {
        return Ok(Some(wait));
    }
    let api: Api<Guarded<K>> = Api::namespaced(context.client.clone(), &key.namespace);
    let version = json!({ "resourceVersion": object.resource_version() });
    let patch = Patch::Merge(json!({ "metadata": version, "status": status }));
    let params = PatchParams::default();
    let writing = api.patch_status(&key.name, &params, &patch);
    match call("write the status", writing).await {
        Ok(_) => {}
        Err(error) if error.is_gone() => {
            context.beliefs.missed(key);
            return Ok(None);
        }
        // Not every definition forgives a field that was wrong before.
        Err(error) if error.is_invalid() => tracing::warn!(%error, "its status cannot say so"),
        Err(error) => return Err(error),
    }
    let told = (UNREADABLE.to_owned(), words(unread), None);
    warn(context, key, told, &object.object_ref(&())).await;
    Ok(None)
}

/// Events are for people: losing one must not stop the work. Of a note that is too long the begin is told.
async fn publish(context: &Context, mut event: Event, about: &ObjectReference) {
    if let Some(note) = &mut event.note {
        note.truncate(note.floor_char_boundary(NOTE_MAX));
    }
    if let Err(error) = call("publish an event", context.recorder.publish(&event, about)).await {
        tracing::warn!(%error, "an event is lost");
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_plan::{Change, ObjectRef, Op};

    use super::{Told, told};

    #[test]
    fn what_is_done_to_many_for_one_reason_is_told_once() {
        let delete = |name: &str, why| {
            let (name, uid) = (name.to_owned(), String::new());
            Change { op: Op::DeletePod(ObjectRef { name, uid }), why }
        };
        let workers = (0..12).map(|it| format!("w-{it}")).collect();
        let retire = Op::Retire { workers, deadline_seconds: 1 };
        let changes = [
            delete("a", "it ended"),
            Change { op: retire, why: "idle" },
            delete("b", "it ended"),
            delete("c", "no group has it"),
        ];
        let told = told(changes.iter());
        let notes: Vec<String> = told.iter().map(Told::note).collect();
        let expected = [
            "a, b: it ended",
            "w-0, w-1, w-2, w-3, w-4, w-5, w-6, w-7 and 4 more: idle",
            "c: no group has it",
        ];
        assert_eq!(notes, expected);
        assert_eq!(told[2].reason, "DeletedPod");
    }
}
