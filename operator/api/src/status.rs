//! What a cluster is, as its status tells.

use std::ops::AddAssign;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

/// Longest message of a status, in characters.
pub const MESSAGE_MAX: usize = 1024;

/// Most causes that a group tells.
pub const CAUSES_MAX: usize = 4;

/// What the cluster is.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// What the cluster is doing. `Starting`: its parts are being made. `Ready`: the scheduler answers and the
    /// least number of workers is there. `Degraded`: somebody must change something, the message says what.
    /// `Deleting`: it is going.
    #[serde(default, deserialize_with = "known")]
    pub phase: Phase,
    /// Since when it does so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_since: Option<MicroTime>,
    /// How long it did what it did before.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["phase".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "those_known")]
    #[schemars(length(max = 8))]
    pub phases: Vec<PhaseTime>,
    /// What it waits for, or what goes wrong beside it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MESSAGE_MAX))]
    pub message: Option<String>,
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the scheduler answers and `min` workers are registered. `PendingChange`: pods run that
    /// were made from other settings.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// How many workers there are.
    #[serde(default)]
    pub workers: WorkerCounts,
    /// Workers of the first group that live, for `kubectl scale` and other autoscalers.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub replicas: i32,
    /// Labels of their pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// The same for each group, and why some of its pods cannot work or are not made.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub groups: Vec<GroupStatus>,
    /// Where programs inside the Kubernetes cluster reach the scheduler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub scheduler_address: Option<String>,
    /// Key of the package list: what an administrator packs an image under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub environment_key: Option<String>,
    /// When its scheduler answered for the first time. Until then its image or environment can be
    /// corrected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Image that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
    /// Digest of the image that its scheduler runs: the same name may be another image's tomorrow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub image_digest: Option<String>,
    /// Which certificates its Secrets hold: the authority's edition and how often they were renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub credentials: Option<String>,
    /// Since when there has been no work, as far as the scheduler said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Time>,
    /// How many jobs had ever come when there last was no work: tells whether some came and went while
    /// nobody listened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub jobs: Option<i64>,
}

/// Something that this version knows, or that another one wrote.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written<T> {
    Known(T),
    Other(IgnoredAny),
}

impl<T> Written<T> {
    fn known(self) -> Option<T> {
        match self {
            Self::Known(it) => Some(it),
            Self::Other(_) => None,
        }
    }
}

/// What another version wrote that this one does not know is not there: a status is written anew anyway.
fn known<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Written::deserialize(deserializer)?.known().unwrap_or_default())
}

fn those_known<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let all = Vec::<Written<T>>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(Written::known).collect())
}

/// What a cluster is doing.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Phase {
    /// Its parts are being made.
    #[default]
    Starting,
    /// The scheduler answers and the least number of workers is there.
    Ready,
    /// Something must be changed by a person: see the message.
    Degraded,
    /// It is going.
    Deleting,
}

/// How long a cluster was in a phase, all stays together.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseTime {
    /// The phase.
    pub phase: Phase,
    /// How long, in milliseconds.
    #[schemars(range(min = 0))]
    pub milliseconds: i64,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Starting, Self::Ready, Self::Degraded, Self::Deleting];

    /// As the status has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::Ready => "Ready",
            Self::Degraded => "Degraded",
            Self::Deleting => "Deleting",
        }
    }
}

/// How many workers there are.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerCounts {
    /// What the queue asks for, within `min` and `max`.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub desired: i32,
    /// Pods that are not registered yet.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub starting: i32,
    /// Registered with the scheduler.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub ready: i32,
    /// Handing over what they hold.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub retiring: i32,
    /// Ended, and not made again yet.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failed: i32,
}

impl AddAssign for WorkerCounts {
    fn add_assign(&mut self, other: Self) {
        self.desired = self.desired.saturating_add(other.desired);
        self.starting = self.starting.saturating_add(other.starting);
        self.ready = self.ready.saturating_add(other.ready);
        self.retiring = self.retiring.saturating_add(other.retiring);
        self.failed = self.failed.saturating_add(other.failed);
    }
}

/// What there is of a group of workers.
#[derive(Clone, Debug, Default, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// Name of the group.
    pub name: String,
    /// How many workers there are.
    #[serde(flatten)]
    pub workers: WorkerCounts,
    /// Since when there has been no work for this group, as far as the scheduler said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Time>,
    /// Why some of its pods cannot work or are not made, the commonest first.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["cause".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "those_known")]
    #[schemars(length(max = CAUSES_MAX))]
    pub causes: Vec<CauseCount>,
}

impl GroupStatus {
    /// The same without the causes of pods that are not made.
    #[must_use]
    pub fn without_unmade(mut self) -> Self {
        self.causes.retain(|it| !it.cause.is_of_unmade());
        self
    }
}

/// How many pods cannot work, or are not made, for one cause.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CauseCount {
    /// The cause.
    pub cause: Cause,
    /// How many pods.
    #[schemars(range(min = 1))]
    pub pods: i32,
    /// What is said of one of them, by whoever runs or refuses it.
    #[schemars(length(max = MESSAGE_MAX))]
    pub message: String,
}

/// Why a pod cannot work, or is not made.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum Cause {
    /// No node has room for it, or none may take it.
    Unschedulable,
    /// Its image cannot be pulled.
    Image,
    /// It refers to something that is not there, or has a command that cannot be started.
    Configuration,
    /// It used more memory than it has.
    OutOfMemory,
    /// A process of it ended with an error.
    Exit,
    /// Its node had to get rid of it.
    Evicted,
    /// Its node is gone, or goes.
    NodeLost,
    /// Its node refused it.
    Refused,
    /// A quota of its namespace has no room for it: it is made when there is.
    Quota,
    /// A rule of its namespace or of the Kubernetes cluster does not allow it.
    Policy,
    /// The API server does not take its settings, or something that is another's has its name.
    Rejected,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Unschedulable,
        Self::Image,
        Self::Configuration,
        Self::OutOfMemory,
        Self::Exit,
        Self::Evicted,
        Self::NodeLost,
        Self::Refused,
        Self::Quota,
        Self::Policy,
        Self::Rejected,
    ];

    /// Whether it is one of pods that are not made.
    pub fn is_of_unmade(self) -> bool {
        matches!(self, Self::Quota | Self::Policy | Self::Rejected)
    }

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unschedulable => "Unschedulable",
            Self::Image => "Image",
            Self::Configuration => "Configuration",
            Self::OutOfMemory => "OutOfMemory",
            Self::Exit => "Exit",
            Self::Evicted => "Evicted",
            Self::NodeLost => "NodeLost",
            Self::Refused => "Refused",
            Self::Quota => "Quota",
            Self::Policy => "Policy",
            Self::Rejected => "Rejected",
        }
    }
}
