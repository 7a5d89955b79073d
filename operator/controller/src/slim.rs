//! What is kept of what watches show, and what a plan is told of it.

use ebbtide_api::names;
use ebbtide_contract::identity::Role;
use ebbtide_plan::{JOB, PodPhase, PodSeen, Trouble, is_own_container, says_policy, says_service};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, PodCondition, ServiceSpec};
use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use kube::core::ObjectMeta;
use kube::{Resource, ResourceExt as _};
use serde::{Deserialize, Deserializer};
use tokio::time::Instant;

use crate::known::{shrink, slim_metadata};

/// What is kept of a Service: whose it is, and what it says.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Service")]
pub(crate) struct SlimService {
    pub(crate) metadata: ObjectMeta,
    #[serde(default, rename = "spec", deserialize_with = "service_says")]
    pub(crate) says: Option<String>,
}

/// The same of a network policy.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::networking::v1::NetworkPolicy")]
pub(crate) struct SlimPolicy {
    pub(crate) metadata: ObjectMeta,
    #[serde(default, rename = "spec", deserialize_with = "policy_says")]
    pub(crate) says: Option<String>,
}

fn service_says<'de, D: Deserializer<'de>>(spec: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<ServiceSpec>::deserialize(spec)?.as_ref().map(says_service))
}

fn policy_says<'de, D: Deserializer<'de>>(spec: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<NetworkPolicySpec>::deserialize(spec)?.as_ref().map(says_policy))
}

/// Leaves out what nobody here asks for.
pub(crate) fn slim<K: Resource>(object: &mut K) {
    slim_metadata(object.meta_mut());
}

/// Longest annotation that is kept, in bytes: names of images are shorter.
const VALUE_MAX: usize = 1024;

/// What is kept of a pod: 2 KiB where a whole one takes 39.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
pub(crate) struct SlimPod {
    pub(crate) metadata: ObjectMeta,
    status: Option<SlimStatus>,
    /// When this was heard.
    #[serde(skip, default = "Instant::now")]
    heard_at: Instant,
}

impl SlimPod {
    /// Leaves out what nobody here asks for, people's annotations and room in lists for more: there are many.
    pub(crate) fn slim(&mut self) {
        self.metadata.managed_fields = None;
        shrink(&mut self.metadata.owner_references);
        if let Some(status) = &mut self.status {
            if let Some(conditions) = &mut status.conditions {
                conditions.retain(|it| it.type_ == SCHEDULED);
            }
            shrink(&mut status.conditions);
            shrink(&mut status.container_statuses);
            shrink(&mut status.init_container_statuses);
        }
        let is_ours = |key: &str| [names::MADE_FROM, names::IMAGE].contains(&key);
        self.annotations_mut().retain(|key, value| is_ours(key) && value.len() <= VALUE_MAX);
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

pub(crate) fn seen(pod: &SlimPod) -> PodSeen {
    let status = pod.status.as_ref();
    let has_ended = status.and_then(exit_code).is_some();
    let phase = match status.and_then(|status| status.phase.as_deref()) {
        // What others put beside it may run on.
        Some("Running") if has_ended && !is_scheduler(pod) => PodPhase::Ended,
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
    // Once it has ended, what others put beside it says nothing of it.
    let counts = |it: &&ContainerStatus| !has_ended || is_own_container(&it.name);
    let trouble = containers().filter(counts).find_map(trouble);
    let trouble = whole.or(trouble).or_else(unplaced);
    let created_at = pod.creation_timestamp().map(|time| time.0);
    // What a node refuses never had a container: it ended as it began.
    let refused_at = created_at.filter(|_| phase == PodPhase::Ended);
    PodSeen {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        labels: pod.labels().clone(),
        made_from: pod.annotations().get(names::MADE_FROM).cloned(),
        image: pod.annotations().get(names::IMAGE).cloned(),
        image_digest: status.and_then(image_digest),
        is_deleting: pod.metadata.deletion_timestamp.is_some(),
        phase,
        created_at,
        // Its node may have another time than the API server.
        ended_at: ended_at.or(refused_at).max(refused_at),
        told_for: pod.heard_at.elapsed(),
        stage_since: status.and_then(|it| runs_since(it).or_else(|| placed_at(it))),
        restarted_at: status.and_then(|it| {
            runs_since(it).filter(|_| own_container(it).is_some_and(|it| it.restart_count > 0))
        }),
        trouble,
        exit_code: status.and_then(exit_code),
    }
}

/// Whether it is a scheduler's, which starts again in the same pod.
pub(crate) fn is_scheduler(pod: &SlimPod) -> bool {
    pod.labels().get(names::ROLE).is_some_and(|it| it == Role::Scheduler.as_str())
}

/// Whether it is that of a job's program, and of which cluster's client, by its uid.
pub(crate) fn client_of(pod: &SlimPod) -> Option<&String> {
    let is_program = pod.labels().get(names::ROLE).is_some_and(|it| it == JOB);
    pod.labels().get(names::CLUSTER_UID).filter(|_| is_program)
}

fn own_container(status: &SlimStatus) -> Option<&ContainerStatus> {
    status.container_statuses.iter().flatten().find(|it| is_own_container(&it.name))
}

/// Since when our own container runs.
fn runs_since(status: &SlimStatus) -> Option<Timestamp> {
    let state = own_container(status)?.state.as_ref()?;
    Some(state.running.as_ref()?.started_at.as_ref()?.0)
}

/// When it got its node.
fn placed_at(status: &SlimStatus) -> Option<Timestamp> {
    let mut conditions = status.conditions.iter().flatten();
    let scheduled = conditions.find(|it| it.type_ == SCHEDULED && it.status == "True")?;
    Some(scheduled.last_transition_time.as_ref()?.0)
}

/// With what our own container ended.
fn exit_code(status: &SlimStatus) -> Option<i32> {
    Some(own_container(status)?.state.as_ref()?.terminated.as_ref()?.exit_code)
}

/// What our own container's node pulled. Before it runs, some of them name what they were asked for.
fn image_digest(status: &SlimStatus) -> Option<String> {
    let own = own_container(status)?;
    own.state.as_ref()?.running.as_ref()?;
    let (_, digest) = own.image_id.rsplit_once('@')?;
    digest.starts_with("sha256:").then(|| digest.to_owned())
}

/// What is wrong with a container: how it ended, where it is started again and again. People named those that run
/// before ours.
fn trouble(container: &ContainerStatus) -> Option<Trouble> {
    let state = container.state.as_ref()?;
    let reason = state.waiting.as_ref().and_then(|it| it.reason.as_deref());
    let before = container.last_state.as_ref().filter(|_| reason == Some("CrashLoopBackOff"));
    let what = before.and_then(what_is_wrong).or_else(|| what_is_wrong(state))?;
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

/// The condition that tells whether a node has a pod.
const SCHEDULED: &str = "PodScheduled";

fn unschedulable(conditions: &[PodCondition]) -> Option<Trouble> {
    let scheduled = conditions.iter().find(|condition| condition.type_ == SCHEDULED)?;
    let is_refused = scheduled.status == "False" && scheduled.reason.is_some();
    is_refused.then(|| Trouble::unschedulable(scheduled.message.as_deref().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use ebbtide_plan::PodPhase;

    use super::{SlimPod, image_digest, seen, trouble};

    fn ended(role: &str, phase: &str) -> SlimPod {
        let state =
            json!({ "terminated": { "exitCode": 3, "finishedAt": "2026-01-01T00:00:00Z" } });
        let own = json!({
            "name": role, "image": "i", "imageID": "i", "ready": false, "restartCount": 0,
            "state": state,
        });
        let beside = json!({
            "name": "proxy", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
            "state": { "running": {} },
        });
        let pod = json!({
            "metadata": {
                "name": "p",
                "creationTimestamp": "2026-01-01T00:01:00Z",
                "labels": { "ebbtide.dev/role": role },
                "annotations": { "ebbtide.dev/image": "i".repeat(2000), "other": "x" },
            },
            "status": { "phase": phase, "containerStatuses": [own, beside] },
        });
        let mut pod: SlimPod = serde_json::from_value(pod).unwrap();
        pod.slim();
        pod
    }

    #[test]
    fn a_process_that_ended_has_ended_whatever_others_put_beside_it() {
        for (role, phase) in [
            ("worker", PodPhase::Ended),
            ("job", PodPhase::Ended),
            ("scheduler", PodPhase::Running),
        ] {
            let seen = seen(&ended(role, "Running"));
            assert_eq!((seen.phase, seen.exit_code), (phase, Some(3)), "{role}");
        }
    }

    #[test]
    fn nothing_ended_before_it_was_made_and_nothing_long_is_kept() {
        let seen = seen(&ended("worker", "Failed"));
        assert_eq!(seen.ended_at, seen.created_at);
        assert_eq!(seen.image, None);
    }

    #[test]
    fn what_a_container_said_at_its_end_is_told_while_it_waits_to_be_started_again() {
        let told = |last: serde_json::Value| {
            let waiting = json!({ "reason": "CrashLoopBackOff", "message": "back-off" });
            let container = json!({
                "name": "scheduler", "image": "i", "imageID": "i", "ready": false, "restartCount": 1,
                "state": { "waiting": waiting },
                "lastState": { "terminated": last },
            });
            trouble(&serde_json::from_value(container).unwrap()).unwrap().message
        };
        assert_eq!(told(json!({ "exitCode": 0 })), "CrashLoopBackOff: back-off");
        let killed = json!({ "exitCode": 137, "reason": "OOMKilled" });
        assert_eq!(told(killed), "OOMKilled: exit code 137");
        let words = json!({ "exitCode": 64, "reason": "Error", "message": "no package" });
        assert_eq!(told(words), "Error: exit code 64: no package");
    }

    #[test]
    fn the_digest_is_that_of_the_image_that_our_own_container_runs() {
        let told = |name: &str, id: &str, state: &str| {
            let container = json!({
                "name": name, "image": "i:1", "imageID": id, "ready": true, "restartCount": 0,
                "state": { state: {} },
            });
            image_digest(
                &serde_json::from_value(json!({ "containerStatuses": [container] })).unwrap(),
            )
        };
        let digest = Some("sha256:1".to_owned());
        assert_eq!(told("worker", "registry:5000/i@sha256:1", "running"), digest);
        assert_eq!(told("worker", "registry:5000/i@sha256:1", "waiting"), None);
        assert_eq!(told("worker", "registry:5000/i:1", "running"), None);
        assert_eq!(told("fetch", "registry:5000/i@sha256:1", "running"), None);
    }
}
