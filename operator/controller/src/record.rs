//! One status write, then events: what people are told is what the server has acknowledged.

use ebbtide_api::{Cluster, ClusterStatus};
use ebbtide_plan::{Change, Op};
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType};
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;

use crate::api_call::{CallError, call};
use crate::reconcile::Context;

const FIELD_MANAGER: &str = "ebbtide-operator";

/// Longest note that an event takes.
const NOTE_MAX: usize = 1000;

/// Writes the status if it differs, and tells of the changes.
pub(crate) async fn record(
    context: &Context,
    cluster: &Cluster,
    status: &ClusterStatus,
    changes: &[Change],
) -> Result<(), CallError> {
    if cluster.status.as_ref() != Some(status) {
        let clusters: Api<Cluster> =
            Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
        let document = json!({
            "apiVersion": Cluster::api_version(&()),
            "kind": Cluster::kind(&()),
            "metadata": { "uid": cluster.uid() },
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let name = cluster.name_any();
        let written = call(
            "write the status",
            clusters.patch_status(&name, &params, &Patch::Apply(document)),
        )
        .await;
        match written {
            Err(error) if !error.is_gone() => return Err(error),
            _ => {}
        }
    }
    for change in changes {
        tell(context, cluster, change).await;
    }
    Ok(())
}

async fn tell(context: &Context, cluster: &Cluster, change: &Change) {
    let reason = match &change.op {
        Op::CreatePod(_) => "CreatedPod",
        Op::DeletePod(_) => "DeletedPod",
        Op::Retire { .. } => "Retiring",
        Op::DeleteCluster { .. } => "Idle",
        // Of no interest unless something goes wrong.
        Op::CreateSecret(_) | Op::CreateNetworkPolicy(_) | Op::CreateService(_) => return,
    };
    let event = Event {
        type_: EventType::Normal,
        reason: reason.to_owned(),
        note: Some(change.to_string().chars().take(NOTE_MAX).collect()),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    // Events are for people: losing one must not stop the work.
    if let Err(error) =
        call("publish an event", context.recorder.publish(&event, &cluster.object_ref(&()))).await
    {
        tracing::warn!(%error, "an event is lost");
    }
}
