//! Decides what must change for one cluster. Reads nothing, writes nothing, knows no clock.
//!
//! [`plan`] takes what the user asked for and what was observed, and returns every change with its
//! reason and the status that the user will see. A spec that is refused is a plan without changes
//! and a condition that says why. Changes are in the order in which they must be applied; whoever
//! applies them stops at the first error and plans again from fresh reads.

pub mod change;
mod check;
mod children;
mod image;
pub mod job;
mod lifetime;
mod network;
mod pods;
pub mod queue;
mod refused;
pub mod requested;
mod scaling;
mod secrets;
mod settings;
mod sight;
mod slow;
mod status;
mod times;
mod trouble;
pub mod unreadable;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use ebbtide_api::{
    Cluster, ClusterSpec, ClusterStatus, Engine, EnvironmentSpec, WorkerGroup, names,
};
use ebbtide_contract::demand::{Group, SILENT_SECONDS};
use ebbtide_contract::view::Demand;
use ebbtide_environment::{Request, RequestError};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ObjectMeta;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;

pub use crate::check::check;
use crate::image::Image;
pub use crate::image::is_told_to_have_begun;
pub use crate::network::{restore_service, says_policy, says_service};
pub use crate::pods::{CREDENTIALS_PATH, JOB, OWN_VOLUMES, is_own_container, read_literal};
pub use crate::secrets::{SecretWanted, client_secret};
use crate::sight::Sight;
pub use crate::status::{News, PENDING_CHANGE, is_urgent, news, ready};
pub use crate::trouble::Trouble;

/// The reason of a cluster of whose spec nothing can be made.
const INVALID: &str = "InvalidSpec";

/// How long until it is made sure again that a pod which does not begin has its Secret.
const SECRET_LOOK: Duration = Duration::from_secs(61);

/// What is the same for every cluster of an installation.
#[derive(Clone, Debug)]
pub struct Site {
    /// `host:port` at which schedulers reach the operator.
    pub operator: String,
    /// Where a scheduler is reached.
    pub scheduler_address: SchedulerAddress,
    /// Namespaces whose pods may read the metrics of schedulers and workers.
    pub monitoring: Vec<String>,
    /// For each package list, by its key: the image that holds it, or why there can be none.
    pub environments: BTreeMap<String, Result<String, String>>,
}

/// Where a scheduler is reached.
#[derive(Clone, Debug)]
pub enum SchedulerAddress {
    /// By the names of its Services in DNS.
    Services,
    /// At this `host:port`.
    Fixed(String),
}

/// What was read. It may be out of date, and parts may be missing.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Names of the Secrets that exist and are this cluster's.
    pub secrets: BTreeSet<String>,
    /// The edition of the authority: what it signs with, and whom everybody is to believe.
    pub authority: String,
    /// The Services that exist and are this cluster's, by their names.
    pub services: BTreeMap<String, ChildSeen>,
    /// The network policies that exist and are this cluster's, by their names.
    pub network_policies: BTreeMap<String, ChildSeen>,
    /// The pods of this cluster.
    pub pods: Vec<PodSeen>,
    /// Whether the program of a job on this cluster is about to begin: its pod needs the client's Secret.
    pub has_client_that_begins: bool,
    /// What the scheduler says, while it is connected.
    pub demand: Option<Demand>,
    /// How long the scheduler has not been connected.
    pub silent_for: Duration,
    /// How long ago there was work, as far as the scheduler told on its present connection.
    pub busy_ago: Option<Duration>,
    /// How long ago the scheduler said what it says.
    pub heard_ago: Duration,
}

impl Observed {
    /// What the scheduler says, unless it says nothing any more: it may stand still over work that came.
    pub(crate) fn heard(&self) -> Option<&Demand> {
        self.demand.as_ref().filter(|_| self.heard_ago < Duration::from_secs(SILENT_SECONDS))
    }

    /// For how long there may have been work already that nobody heard of. Our own scheduler tells at once; one of
    /// Dask's may stand still over it, and tells every two seconds that it does not.
    pub(crate) fn unheard(&self, cluster: &Cluster) -> Duration {
        match cluster.spec.engine {
            Engine::Ebbtide => Duration::ZERO,
            Engine::Dask => self.heard_ago,
        }
    }
}

/// What is seen of a pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PodSeen {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// The settings that it was made from, as the annotation [`names::MADE_FROM`] has them.
    pub made_from: Option<String>,
    /// The image that it was made with, as the annotation [`names::IMAGE`] has it.
    pub image: Option<String>,
    /// The digest of the image that its own container runs.
    pub image_digest: Option<String>,
    /// Whether it is being deleted.
    pub is_deleting: bool,
    /// How far it is.
    pub phase: PodPhase,
    /// When it was created.
    pub created_at: Option<Timestamp>,
    /// When it ended, by its node's clock.
    pub ended_at: Option<Timestamp>,
    /// How long ago the last news of it came.
    pub told_for: Duration,
    /// Since when it has a node, or its process runs there. Not known: since it was created.
    pub stage_since: Option<Timestamp>,
    /// When its process was started again in the same pod.
    pub restarted_at: Option<Timestamp>,
    /// Why it cannot start, or ended.
    pub trouble: Option<Trouble>,
    /// With what its process ended.
    pub exit_code: Option<i32>,
}

impl PodSeen {
    /// Whether it runs, stays, and has no trouble.
    pub(crate) fn is_well(&self) -> bool {
        self.phase == PodPhase::Running && !self.is_deleting && self.trouble.is_none()
    }

    /// Whether it has not begun, and nothing is known that keeps it: a Secret may be missing.
    pub fn is_beginning(&self) -> bool {
        self.phase == PodPhase::Pending && !self.is_deleting && self.trouble.is_none()
    }
}

/// A Service or a network policy as it was observed. Nothing more is known of what was made a moment ago.
#[derive(Clone, Debug, Default)]
pub struct ChildSeen {
    /// `metadata.uid`.
    pub uid: Option<String>,
    /// What it says, as [`says_service`] or [`says_policy`] has it.
    pub says: Option<String>,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PodPhase {
    /// Not running yet.
    #[default]
    Pending,
    /// Running.
    Running,
    /// Ended and not started again.
    Ended,
}

/// Everything that one reconcile will do.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// In the order in which to apply them.
    pub changes: Vec<Change>,
    /// Written once, after the changes.
    pub status: ClusterStatus,
    /// When to look again even if nothing happens.
    #[serde(skip)]
    pub next_look: Option<Duration>,
}

impl Plan {
    /// The plan, with each pod that it makes telling which look made it.
    #[must_use]
    pub fn traced(mut self, trace: &str) -> Self {
        for change in &mut self.changes {
            if let Op::CreatePod(pod) = &mut change.op {
                pods::trace(pod, trace);
            }
        }
        self
    }

    /// The status when one of the changes could not be made, nor pods of these groups.
    pub fn stuck(
        &self,
        cluster: &Cluster,
        why: &Refusal<'_>,
        unmade: &[Unmade],
        now: Timestamp,
    ) -> ClusterStatus {
        let status = status::stuck(cluster, &self.status, (why, unmade), now);
        times::timed(cluster.status.as_ref(), status, now)
    }

    /// The plan when certificates could not be renewed: nothing else comes of it but that it is told, and tried
    /// again.
    #[must_use]
    pub fn without_renewal(self, cluster: &Cluster, error: &str) -> Self {
        let written = cluster.status.as_ref().and_then(|it| it.credentials.clone());
        let message = Some(status::bounded(error));
        let is_renewal = |it: &Change| matches!(it.op, Op::RenewSecret(_));
        let changes = self.changes.into_iter().filter(|it| !is_renewal(it)).collect();
        let status = ClusterStatus { credentials: written, message, ..self.status };
        Self { changes, status, ..self }
    }
}

/// Why a change could not be made.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// In the API server's words, or ours.
    pub words: &'a str,
    /// Whether a person must change something: another try alone does not help.
    pub is_lasting: bool,
    /// How far it came.
    pub at: Stage,
}

/// That pods of a group could not be made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unmade {
    /// Name of the group.
    pub group: String,
    /// How many of its pods were made before.
    pub made: usize,
    /// Why no more, in the API server's words, or ours.
    pub words: String,
    /// Whether a person must change something.
    pub is_lasting: bool,
}

/// How much of a plan was done when something could not be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Nothing.
    Trials,
    /// A part.
    Others,
    /// Everything but that pods were made.
    Pods,
}

/// One write.
#[derive(Debug, Serialize)]
pub struct Change {
    /// What to write.
    pub op: Op,
    /// Shown in the log, the event and the snapshot.
    pub why: &'static str,
}

/// The writes that the planner can ask for. That something exists already, or is gone already, is
/// success: names are decided here, and deletions carry the uid.
#[derive(Debug, Serialize)]
pub enum Op {
    /// Mint what the Secret is to hold and create it.
    CreateSecret(Box<SecretWanted>),
    /// Mint what the Secret is to hold and write it over what it holds. Create it if there is none.
    RenewSecret(Box<SecretWanted>),
    /// Create this policy.
    CreateNetworkPolicy(Box<NetworkPolicy>),
    /// Delete this very policy.
    DeleteNetworkPolicy(ObjectRef),
    /// Have this network policy, which is there, say again what it should.
    RestoreNetworkPolicy(Box<NetworkPolicy>),
    /// Have this Service, which is there, say again what it should.
    RestoreService(Box<Service>),
    /// Create this Service.
    CreateService(Box<Service>),
    /// Ask the API server whether it would take this pod, and create none.
    TryPod(Box<Pod>),
    /// Create this pod.
    CreatePod(Box<Pod>),
    /// Delete this very pod.
    DeletePod(ObjectRef),
    /// Ask the scheduler to do without these workers.
    Retire {
        /// Their names.
        workers: Vec<String>,
        /// How long handing over may take, in seconds.
        deadline_seconds: u64,
    },
    /// Delete the cluster itself.
    DeleteCluster {
        /// Its uid.
        uid: String,
    },
}

/// Names one object for as long as it lives. A name alone may by now be another one's.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ObjectRef {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`, sent as the deletion's precondition.
    pub uid: String,
}

/// Plans one step towards `cluster.spec`.
pub fn plan(cluster: &Cluster, observed: &Observed, site: &Site, now: Timestamp) -> Plan {
    let left = lifetime::left(cluster, now);
    let plan = if left.is_some_and(|it| it.is_zero()) && !is_going(cluster) {
        let changes = vec![gone(cluster, "it is as old as it may become")];
        Plan { changes, status: status::expired(cluster, now), next_look: None }
    } else {
        step(cluster, observed, site, now)
    };
    let plan = status::patient(cluster, observed, plan);
    let plan = status::steady(cluster, plan);
    let plan = status::mindful(cluster, plan);
    let next_look = plan.next_look.into_iter().chain(left.filter(|it| !it.is_zero())).min();
    let status = times::timed(cluster.status.as_ref(), plan.status, now);
    Plan { status, next_look, ..plan }
}

/// Whether an object is being deleted. None comes back from that.
pub fn is_going(object: &impl Resource) -> bool {
    object.meta().deletion_timestamp.is_some()
}

fn gone(cluster: &Cluster, why: &'static str) -> Change {
    Change { op: Op::DeleteCluster { uid: cluster.uid().unwrap_or_default() }, why }
}

fn step(cluster: &Cluster, observed: &Observed, site: &Site, now: Timestamp) -> Plan {
    if is_going(cluster) {
        // Its children go with it: they carry owner references.
        return Plan {
            changes: Vec::new(),
            status: status::deleting(cluster, now),
            next_look: None,
        };
    }
    let kept = image::kept(cluster, observed, now);
    let is_open = kept.is_none();
    let (image, key, other) = match image::of(cluster, kept, site) {
        Image::Known { image, key, other } => (image, key, other),
        Image::NotPacked { key, message } => {
            let why = (image::NOT_PACKED, &*message);
            return refused::nothing(cluster, observed, (why, Some(&key)), now);
        }
        Image::Refused { message, runs: None } => {
            return refused::nothing(cluster, observed, ((INVALID, &message), None), now);
        }
        Image::Refused { message, runs: Some(image) } => {
            return refused::only_less(cluster, observed, site, (&image, &message), now);
        }
    };
    let due = is_open.then_some(image.as_str());
    let sight = Sight::of(cluster, observed, site, due, now);
    let Sight { children, idle, targets, .. } = &sight;

    let mut changes = Vec::new();
    let (mut are_more_due, mut secret_look, mut credentials) = (false, None, None);
    if let Some(end) = sight.end() {
        changes.push(end);
    } else {
        let made = pods::Context { cluster, site, image: &image };
        let workers = pods::workers_due(&made, children, targets);
        are_more_due = workers.len() == pods::AT_ONCE_MAX;
        let scheduler = pods::scheduler_due(&made, children);
        changes.extend(pods::untried(&made, children));
        // Nobody may read Secrets to see whether they are there: they are made sure of before pods.
        let waits =
            observed.has_client_that_begins || observed.pods.iter().any(PodSeen::is_beginning);
        let is_needed = scheduler.is_some() || !workers.is_empty() || waits;
        let secrets = secrets::due(cluster, observed, is_needed, now);
        changes.extend(secrets.changes);
        credentials = Some(secrets.edition);
        secret_look = waits.then_some(SECRET_LOOK).into_iter().chain(secrets.next_look).min();
        changes.extend(network::due(cluster, observed, site));
        changes.extend(children.clear_away());
        // What goes makes room, under a quota too, for what comes.
        changes.extend(sight.fewer());
        changes.extend(scheduler);
        changes.extend(workers);
    }
    let status = sight.status(&image, other.as_deref(), key);
    let status = ClusterStatus { credentials, ..status };
    let at_once = are_more_due.then_some(Duration::from_secs(1));
    let image_look = image::next_look(cluster, observed, now);
    let slow_look = slow::next_look(observed, now);
    let looks = [children.next_look, idle.next_look, at_once, secret_look, image_look, slow_look];
    let looks = looks.into_iter().chain(targets.iter().map(|it| it.next_look));
    Plan { changes, status, next_look: looks.flatten().min() }
}

/// The key of the package list that a cluster asks for.
pub fn request(environment: &EnvironmentSpec) -> Result<Request, RequestError> {
    Request::new(&environment.python, environment.packages.iter().map(String::as_str))
}

/// The worker groups of a cluster, as its scheduler must know them.
pub fn groups(spec: &ClusterSpec) -> Vec<Group> {
    let group = |it: &WorkerGroup| Group {
        name: it.name.clone(),
        memory_bytes: it.resources.memory_bytes(),
        resources: it.resources.others(),
        target_seconds: u32::try_from(spec.scaling.target_seconds).unwrap_or(1),
    };
    spec.workers.iter().map(group).collect()
}

/// Each `host:port` at which a cluster's scheduler is reached, the one that lasts first.
fn scheduler_addresses(cluster: &Cluster, site: &Site) -> Vec<String> {
    let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
    let of_service =
        |service| format!("{service}.{namespace}.svc:{}", ebbtide_contract::port::SCHEDULER);
    match &site.scheduler_address {
        SchedulerAddress::Fixed(address) => vec![address.clone()],
        SchedulerAddress::Services => {
            vec![of_service(names::scheduler(&name)), of_service(names::scheduler_pod(&name))]
        }
    }
}

/// Metadata of a child: owned, labelled, named.
fn metadata(cluster: &Cluster, name: String) -> ObjectMeta {
    let labels = ebbtide_api::labels(&cluster.uid().unwrap_or_default());
    ObjectMeta { labels: Some(labels), ..owned_by(cluster, name) }
}

/// Metadata of what goes with its owner, and for which a foreground deletion of that waits.
fn owned_by(owner: &impl Resource<DynamicType = ()>, name: String) -> ObjectMeta {
    let reference = owner.controller_owner_ref(&());
    let reference = reference.map(|it| OwnerReference { block_owner_deletion: Some(true), ..it });
    ObjectMeta {
        name: Some(name),
        namespace: owner.meta().namespace.clone(),
        owner_references: reference.map(|it| vec![it]),
        ..ObjectMeta::default()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.op {
            Op::CreateSecret(secret) => write!(f, "create secret {}", secret.name)?,
            Op::RenewSecret(secret) => write!(f, "renew secret {}", secret.name)?,
            Op::CreateNetworkPolicy(policy) => {
                write!(f, "create network policy {}", policy.name_any())?;
            }
            Op::DeleteNetworkPolicy(policy) => write!(f, "delete network policy {}", policy.name)?,
            Op::RestoreNetworkPolicy(policy) => {
                write!(f, "restore network policy {}", policy.name_any())?;
            }
            Op::RestoreService(service) => write!(f, "restore service {}", service.name_any())?,
            Op::CreateService(service) => write!(f, "create service {}", service.name_any())?,
            Op::TryPod(pod) => write!(f, "try pod {}", pod.name_any())?,
            Op::CreatePod(pod) => write!(f, "create pod {}", pod.name_any())?,
            Op::DeletePod(pod) => write!(f, "delete pod {}", pod.name)?,
            Op::Retire { workers, .. } => write!(f, "retire {}", workers.join(", "))?,
            Op::DeleteCluster { .. } => write!(f, "delete the cluster")?,
        }
        write!(f, ": {}", self.why)
    }
}

#[cfg(test)]
mod tests;
