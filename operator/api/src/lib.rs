//! The Cluster and ClusterJob resources: types, defaults, names and labels. Knows no client and decides nothing.

#![expect(unreachable_pub, reason = "the schema derive repeats each struct inside a function")]

mod amount;
pub mod change;
mod duration;
mod guarded;
pub mod job;
pub mod names;
pub mod pod;
mod resources;
pub mod status;
mod strict;

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::amount::{Amount, AmountError};
pub use crate::duration::{DurationError, Length};
pub use crate::guarded::{Guarded, Unread};
pub use crate::job::{ClusterJob, ClusterJobSpec, ClusterJobStatus, JobPhase};
pub use crate::pod::PodSettings;
pub use crate::resources::Resources;
pub use crate::status::{ClusterStatus, MESSAGE_MAX, Phase, WorkerCounts};
pub use crate::strict::check_fields;

/// Most worker groups of a cluster.
pub const GROUPS_MAX: usize = 16;

/// Longest spec of a cluster, in bytes of JSON: whoever works for many keeps them all.
pub const SPEC_MAX: usize = 128 << 10;

/// Most workers of a group.
pub const WORKERS_MAX: i32 = 10_000;

/// Longest time that is given in seconds: a day.
pub const SECONDS_MAX: i32 = 86_400;

/// API group of everything here.
pub const GROUP: &str = "ebbtide.dev";

/// What a cluster of this machine or namespace should be.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "ebbtide.dev",
    version = "v1alpha1",
    kind = "Cluster",
    plural = "clusters",
    namespaced,
    status = "ClusterStatus",
    scale(
        spec_replicas_path = ".spec.minWorkers",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    derive = "PartialEq",
    shortname = "ebb",
    category = "ebbtide",
    annotation("helm.sh/resource-policy", "keep"),
    validation = Rule::new("oldSelf.hasValue() || !self.metadata.name.matches('^[0-9]')")
        .optional_old_self(true)
        .message("metadata.name must begin with a letter: the cluster's Services have names that begin like it"),
    doc = "A compute cluster that lives as long as there is work: a scheduler, workers that follow the queue, and one environment for all of them.",
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "What the cluster is doing."
    ),
    printcolumn(
        name = "Workers",
        type_ = "integer",
        json_path = ".status.workers.ready",
        description = "Workers that are registered."
    ),
    printcolumn(
        name = "Wanted",
        type_ = "integer",
        json_path = ".status.workers.desired",
        description = "Workers that the queue asks for."
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = 1,
        description = "What the cluster waits for."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since the cluster was made."
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.image) != has(self.environment)")
    .message("give either image or environment: an image is used as it is, an environment is a package list that is looked up"))]
#[x_kube(validation = Rule::new("!has(self.minWorkers) || self.minWorkers <= self.workers[0].max")
    .message("minWorkers must not be greater than max of the first group")
    .field_path(".minWorkers"))]
pub struct ClusterSpec {
    /// Packages that everything in this cluster runs with. Give this or `image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<EnvironmentSpec>,
    /// Image that everything in this cluster runs, with Ebbtide installed. Give this or
    /// `environment`. A reference with a digest (`name@sha256:…`) is the same on every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// What computes: `ebbtide`, the chunked arrays and functions of this project, or `dask`, which
    /// needs `distributed` among the packages. Default: `ebbtide`.
    #[serde(default)]
    pub engine: Engine,
    /// The one process that plans and hands out work.
    #[serde(default)]
    pub scheduler: SchedulerSpec,
    /// Kinds of workers, sixteen at most. Work goes to the first group that can take it: write the
    /// one for most of the work first, those with more memory or with devices after it.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(min = 1, max = GROUPS_MAX))]
    pub workers: Vec<WorkerGroup>,
    /// Workers of the first group that are there even without work, if that is more than the group's
    /// own `min`: what `kubectl scale` and other autoscalers write. Default: 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = WORKERS_MAX))]
    pub min_workers: i32,
    /// Who may reach the scheduler over the network, beside the pods of the cluster's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// How the number of workers follows the queue.
    #[serde(default)]
    pub scaling: Scaling,
    /// When the cluster goes.
    #[serde(default)]
    pub lifetime: Lifetime,
}

/// What computes in a cluster.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// The chunked arrays and functions of this project.
    #[default]
    Ebbtide,
    /// Dask's own scheduler and workers, of the version that the environment has.
    Dask,
}

/// Who may reach the scheduler over the network. What they must prove stays the same: they need the
/// certificate and the token of the cluster's clients.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// Pods of these namespaces.
    pub namespaces: NamespaceSelector,
}

/// Namespaces by their labels.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceSelector {
    /// Labels that a namespace must have, all of them. Every namespace has its name as
    /// `kubernetes.io/metadata.name`.
    #[schemars(length(min = 1, max = 16))]
    pub match_labels: BTreeMap<String, String>,
}

/// A package list.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentSpec {
    /// Version of Python, like `"3.11"`. Write it in quotes: 3.10 without them is the number 3.1.
    #[schemars(length(min = 3, max = 8), regex(pattern = r"^[0-9]+\.[0-9]+$"))]
    pub python: String,
    /// Requirements as pip takes them, like `numpy` or `scipy>=1.14`.
    #[serde(default)]
    #[schemars(length(max = 512), inner(length(min = 1, max = 256)))]
    pub packages: Vec<String>,
}

/// The scheduler.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SchedulerSpec {
    /// What it may use. Default: 1 core and 1 GiB.
    #[serde(default = "scheduler_resources")]
    pub resources: Resources,
    /// What else its pod has.
    #[serde(default, skip_serializing_if = "PodSettings::is_empty")]
    pub pod: PodSettings,
}

/// A kind of worker.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.min) || self.min <= self.max")
    .message("min must not be greater than max")
    .field_path(".min"))]
pub struct WorkerGroup {
    /// Name of the group, part of its pods' names.
    #[schemars(length(min = 1, max = names::GROUP_MAX), regex(pattern = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// What each worker may use.
    pub resources: Resources,
    /// Workers that are there even without work. Default: 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = WORKERS_MAX))]
    pub min: i32,
    /// Workers at most.
    #[schemars(range(min = 1, max = WORKERS_MAX))]
    pub max: i32,
    /// What else each worker's pod has: variables, volumes, nodes.
    #[serde(default, skip_serializing_if = "PodSettings::is_empty")]
    pub pod: PodSettings,
}

/// How the number of workers follows the queue.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Scaling {
    /// Aim to finish the known queue in so many seconds. Default: 10.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = SECONDS_MAX))]
    pub target_seconds: i32,
    /// How fewer workers come about.
    #[serde(default)]
    pub down: ScaleDown,
}

/// How fewer workers come about.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleDown {
    /// How long there must be no work before workers are retired. Default: `30s`.
    #[serde(default = "thirty_seconds")]
    pub window: Length,
    /// How long a worker may take to hand over what it holds, in seconds. Default: 120.
    #[serde(default = "two_minutes")]
    #[schemars(range(min = 1, max = SECONDS_MAX))]
    pub retire_seconds: i32,
}

/// When the cluster goes.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[derive(Default)]
pub struct Lifetime {
    /// What happens when there is no work.
    #[serde(default)]
    pub idle: Idle,
    /// How long the cluster may be there, whatever it does. Default: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<MaxAge>,
}

/// How long a cluster may be there, whatever it does.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MaxAge {
    /// How long since it was created. Of a cluster that is made for a job: since the job began.
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("would take the cluster away at once; leave max out"))]
    pub after: Length,
    /// What happens then. Default: `Delete`.
    #[serde(default)]
    pub then: AtLast,
}

/// What happens when there is no work.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Idle {
    /// How long there must be no work. Default: `20m`.
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("would take the cluster away before it has work; give it as long as work may take to come"))]
    #[serde(default = "twenty_minutes")]
    pub after: Length,
    /// What happens then. Default: `Delete`.
    #[serde(default)]
    pub then: AtLast,
}

/// What becomes of a cluster whose time is up.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum AtLast {
    /// The cluster is deleted with everything that it made.
    #[default]
    Delete,
}

impl Engine {
    /// Its name in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ebbtide => "ebbtide",
            Self::Dask => "dask",
        }
    }
}

impl ClusterSpec {
    /// Each kind of pod: the field that describes it, what it may use, and what else it has.
    pub fn pods(&self) -> impl Iterator<Item = (String, &Resources, &PodSettings)> {
        let scheduler = &self.scheduler;
        let scheduler = ("spec.scheduler".to_owned(), &scheduler.resources, &scheduler.pod);
        let field = |group: &WorkerGroup| format!("spec.workers[{}]", group.name);
        let workers = self.workers.iter().map(move |it| (field(it), &it.resources, &it.pod));
        std::iter::once(scheduler).chain(workers)
    }

    /// Each worker group with the number of its workers that are there even without work.
    pub fn groups(&self) -> impl Iterator<Item = (&WorkerGroup, i32)> {
        let of_first = [self.min_workers].into_iter().chain(std::iter::repeat(0));
        self.workers.iter().zip(of_first).map(|(group, least)| (group, group.min.max(least)))
    }
}

impl Default for SchedulerSpec {
    fn default() -> Self {
        Self { resources: scheduler_resources(), pod: PodSettings::default() }
    }
}

impl Default for Scaling {
    fn default() -> Self {
        Self { target_seconds: ten(), down: ScaleDown::default() }
    }
}

impl Default for ScaleDown {
    fn default() -> Self {
        Self { window: thirty_seconds(), retire_seconds: two_minutes() }
    }
}

impl Default for Idle {
    fn default() -> Self {
        Self { after: twenty_minutes(), then: AtLast::Delete }
    }
}

fn scheduler_resources() -> Resources {
    Resources::new(Amount::from("1"), Amount::from("1Gi"))
}

fn ten() -> i32 {
    10
}

fn two_minutes() -> i32 {
    120
}

fn thirty_seconds() -> Length {
    Length::from_seconds(30)
}

fn twenty_minutes() -> Length {
    Length::from_seconds(20 * 60)
}

/// Labels of everything that belongs to a cluster.
pub fn labels(cluster_uid: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (names::MANAGED_BY.to_owned(), names::MANAGER.to_owned()),
        (names::CLUSTER_UID.to_owned(), cluster_uid.to_owned()),
    ])
}

#[cfg(test)]
mod tests;
