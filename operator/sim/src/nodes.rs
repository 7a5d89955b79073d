//! Scheduler, kubelets and garbage collector: what becomes of objects that somebody created.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ebbtide_api::names;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::kinds;
use crate::server::Server;
use crate::store::{Store, whole};

/// How long a step in a pod's life takes.
const STEP: Duration = Duration::from_millis(200);

/// How long a job's program runs.
const PROGRAM: Duration = Duration::from_secs(10);

/// How long what may pass lasts.
const TROUBLE: Duration = Duration::from_secs(15);

/// What befalls one pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// No node takes it for a while.
    Unschedulable,
    /// Its image cannot be pulled for a while.
    Image,
    /// Its process ends with an error at once. A scheduler's starts again.
    Exit,
    /// It is killed for its memory when it has run for a while.
    OutOfMemory,
    /// Its node gets rid of it when it has run for a while.
    Evicted,
    /// Its node is gone when it has run for a while: it is deleted, and ends much later.
    NodeLost,
    /// Its node refuses it.
    Refused,
}

/// Every way in which a pod can fail.
pub const FAILURES: [Failure; 7] = [
    Failure::Unschedulable,
    Failure::Image,
    Failure::Exit,
    Failure::OutOfMemory,
    Failure::Evicted,
    Failure::NodeLost,
    Failure::Refused,
];

/// The nodes of a world.
#[derive(Debug, Default)]
pub struct Nodes {
    failure: Option<(usize, Failure)>,
    lives: BTreeMap<String, Life>,
    /// Pods that there were.
    count: usize,
    garbage_at: Option<Instant>,
    /// Up to which version there is no garbage.
    clean: u64,
}

#[derive(Clone, Copy, Debug)]
struct Life {
    nth: usize,
    since: Instant,
    stage: Stage,
}

/// How far a pod is, as its node knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    New,
    /// What keeps it is told.
    Kept,
    Placed,
    Running,
    Ended,
    Going,
}

impl Nodes {
    /// Nodes on which this befalls the nth pod, counted from 0.
    pub fn new(failure: Option<(usize, Failure)>) -> Self {
        Self { failure, ..Self::default() }
    }

    /// Does what is due, and tells when to come again.
    pub fn step(&mut self, server: &Server, now: Instant) -> Option<Instant> {
        let pods: Vec<Arc<Value>> = server.look(|store| store.list(kinds::POD).cloned().collect());
        let uid = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let mut due: Option<Instant> = None;
        let mut is_soonest = |at: Instant| due = Some(due.map_or(at, |it| it.min(at)));
        for pod in &pods {
            let life = *self.lives.entry(uid(pod)).or_insert_with(|| {
                let nth = self.count;
                self.count += 1;
                Life { nth, since: now, stage: Stage::New }
            });
            let failure = self.failure.filter(|(at, _)| *at == life.nth).map(|(_, it)| it);
            if let Some((at, next)) = next(pod, life, failure) {
                if at > now {
                    is_soonest(at);
                    continue;
                }
                enter(server, pod, next, failure);
                // What has passed does not come again.
                let has_passed = matches!(life.stage, Stage::Kept | Stage::Ended);
                let nth = if has_passed { usize::MAX } else { life.nth };
                self.lives.insert(uid(pod), Life { nth, since: now, stage: next });
                is_soonest(now);
            }
        }
        if self.lives.len() > pods.len() {
            let there: BTreeSet<String> = pods.iter().map(|it| uid(it)).collect();
            self.lives.retain(|uid, _| there.contains(uid));
        }
        if let Some(at) = self.collect_garbage(server, now) {
            is_soonest(at);
        }
        due
    }

    fn collect_garbage(&mut self, server: &Server, now: Instant) -> Option<Instant> {
        if server.look(Store::version) == self.clean {
            self.garbage_at = None;
            return None;
        }
        let at = *self.garbage_at.get_or_insert(now + STEP);
        if at > now {
            return Some(at);
        }
        while server.change(Store::collect_garbage) {}
        self.clean = server.look(Store::version);
        self.garbage_at = None;
        None
    }
}

/// When a pod gets further, and how far.
fn next(pod: &Value, life: Life, failure: Option<Failure>) -> Option<(Instant, Stage)> {
    let is_going = pod["metadata"]["deletionTimestamp"].is_string();
    let after = |time: Duration| life.since + time;
    let is_lost = failure == Some(Failure::NodeLost);
    let next = match life.stage {
        Stage::Going => return None,
        _ if is_going => (after(if is_lost { TROUBLE * 2 } else { STEP }), Stage::Going),
        Stage::New if failure == Some(Failure::Unschedulable) => (after(STEP), Stage::Kept),
        Stage::New if failure == Some(Failure::Refused) => (after(STEP), Stage::Ended),
        Stage::New | Stage::Kept => {
            let is_kept = life.stage == Stage::Kept;
            (after(if is_kept { TROUBLE } else { STEP }), Stage::Placed)
        }
        Stage::Placed if failure == Some(Failure::Image) => (after(STEP), Stage::Kept),
        Stage::Placed => (after(STEP), Stage::Running),
        Stage::Running if failure.is_none() && role(pod) == "job" => (after(PROGRAM), Stage::Ended),
        Stage::Running => match failure? {
            Failure::Exit => (after(STEP), Stage::Ended),
            Failure::OutOfMemory | Failure::Evicted | Failure::NodeLost => {
                (after(Duration::from_secs(3)), Stage::Ended)
            }
            Failure::Unschedulable | Failure::Image | Failure::Refused => return None,
        },
        Stage::Ended => {
            // A scheduler's process starts again.
            let is_again = pod["spec"]["restartPolicy"] == "Always" && !is_over(pod);
            return is_again.then(|| (after(TROUBLE), Stage::Placed));
        }
    };
    Some(next)
}

fn role(pod: &Value) -> &str {
    pod["metadata"]["labels"][names::ROLE].as_str().unwrap_or_default()
}

/// Whether a pod has ended, or a job.
pub(crate) fn is_over(pod: &Value) -> bool {
    ["Succeeded", "Failed"].iter().any(|it| pod["status"]["phase"] == *it)
}

/// Writes what a pod has become.
fn enter(server: &Server, pod: &Value, stage: Stage, failure: Option<Failure>) {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let own = role(pod);
    let is_leader = own == "scheduler";
    let time = whole(server.now());
    let container = |state: Value| json!([{ "name": own, "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0 }]);
    let ended = |reason: &str, code: i32| json!({ "terminated": { "reason": reason, "exitCode": code, "finishedAt": time } });
    let status = match (stage, failure) {
        (Stage::New, _) => return,
        (Stage::Going, _) => {
            server.change(|store, _| store.remove((kinds::POD, name)));
            return;
        }
        (Stage::Kept, Some(Failure::Unschedulable)) => json!({
            "phase": "Pending",
            "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/2 nodes are available",
            }],
        }),
        (Stage::Kept, _) => json!({
            "phase": "Pending",
            "containerStatuses":
                container(json!({ "waiting": { "reason": "ErrImagePull", "message": "no" } })),
        }),
        (Stage::Placed, _) => {
            place(server, &name);
            json!({ "phase": "Pending" })
        }
        (Stage::Running, _) => json!({
            "phase": "Running",
            "podIP": "10.0.0.1",
            "containerStatuses": container(json!({ "running": { "startedAt": time } })),
        }),
        (Stage::Ended, Some(Failure::NodeLost)) => {
            let deletion = crate::store::Deletion::default();
            // It may be gone already.
            drop(server.change(|store, now| store.delete(kinds::POD, &name, &deletion, now)));
            return;
        }
        (Stage::Ended, Some(Failure::Evicted)) => {
            json!({ "phase": "Failed", "reason": "Evicted", "message": "the node lacks memory" })
        }
        (Stage::Ended, Some(Failure::Refused)) => {
            json!({ "phase": "Failed", "reason": "OutOfcpu", "message": "the node has no cores" })
        }
        (Stage::Ended, None) => {
            json!({ "phase": "Succeeded", "containerStatuses": container(ended("Completed", 0)) })
        }
        (Stage::Ended, failure) => {
            let is_memory = failure == Some(Failure::OutOfMemory);
            let ended = if is_memory { ended("OOMKilled", 137) } else { ended("Error", 1) };
            if is_leader {
                let words = json!({ "reason": "CrashLoopBackOff", "message": "back-off" });
                json!({
                    "phase": "Running",
                    "containerStatuses": container(json!({ "waiting": words })),
                })
            } else {
                json!({ "phase": "Failed", "containerStatuses": container(ended) })
            }
        }
    };
    write(server, &name, &json!({ "status": status }));
}

fn place(server: &Server, name: &str) {
    write(server, name, &json!({ "spec": { "nodeName": "n1" } }));
}

fn write(server: &Server, name: &str, patch: &Value) {
    // It may be gone by now.
    drop(server.change(|store, _| {
        let mut patch = patch.clone();
        if patch["status"].is_object() {
            // A status is replaced whole.
            let there = store.get(kinds::POD, name).map(|it| it["status"].clone());
            for key in there.iter().filter_map(Value::as_object).flat_map(|it| it.keys()) {
                if patch["status"][key].is_null() {
                    patch["status"][key] = Value::Null;
                }
            }
        }
        store.merge(kinds::POD, name, &patch)
    }));
}
