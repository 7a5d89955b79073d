//! The ClusterJob resource: a program that runs to its end on a cluster of its own, or on one that is there.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Amount, ClusterSpec, MESSAGE_MAX, PodSettings, Resources};

/// Longest script, in bytes: it travels in its pod.
pub const SCRIPT_MAX: usize = 128 << 10;

/// Longest name of a job with a schedule: its runs have a suffix.
pub const SCHEDULED_NAME_MAX: usize = 240;

/// A program and what it computes on.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "ebbtide.dev",
    version = "v1alpha1",
    kind = "ClusterJob",
    plural = "clusterjobs",
    namespaced,
    status = "ClusterJobStatus",
    derive = "PartialEq",
    shortname = "ebbjob",
    category = "ebbtide",
    annotation("helm.sh/resource-policy", "keep"),
    validation = Rule::new("oldSelf.hasValue() || has(self.spec.clusterRef) || !self.metadata.name.matches('^[0-9]')")
        .optional_old_self(true)
        .message("metadata.name must begin with a letter: so do names of Services of the cluster that is made for the job"),
    doc = "A program that runs to its end, beside a cluster that is made for it and gone when it ends, or on a cluster that is there; once, or by a schedule.",
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "What the job is doing."
    ),
    printcolumn(
        name = "Failed",
        type_ = "integer",
        json_path = ".status.failures.total",
        description = "Attempts that went wrong."
    ),
    printcolumn(
        name = "Started",
        type_ = "date",
        json_path = ".status.startedAt",
        description = "Time since it began."
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = 1,
        description = "What the job waits for, or why it failed."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since the job was made."
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.cluster) != has(self.clusterRef)")
    .message("give either cluster or clusterRef: a cluster is made for the job and goes with it, a reference names one that is there"))]
#[x_kube(validation = Rule::new("has(self.command) != has(self.script)")
    .message("give either command or script: a command is run as it is, a script by Python"))]
#[x_kube(validation = Rule::new("has(self.schedule) == has(oldSelf.schedule)")
    .message("a schedule cannot come or go while the job is there; create another job")
    .field_path(".schedule"))]
#[x_kube(validation = Rule::new("has(self.clusterRef) == has(oldSelf.clusterRef) && (!has(self.clusterRef) || self.clusterRef == oldSelf.clusterRef)")
    .message("the cluster of a job cannot become another one; create another job")
    .field_path(".clusterRef"))]
pub struct ClusterJobSpec {
    /// The cluster that is made for this job, under the job's own name. It comes before the program
    /// starts, is gone when the job has ended, however it ends, and no idle time ends it before. Give
    /// this or `clusterRef`. A change holds for clusters that are made from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterSpec>,
    /// A cluster of this namespace, which stays. Give this or `cluster`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ref: Option<ClusterRef>,
    /// What to run, word by word. Give this or `script`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(max = 4096)))]
    pub command: Vec<String>,
    /// A Python program. Give this or `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = SCRIPT_MAX))]
    pub script: Option<String>,
    /// More words for the command, or the arguments of the script.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 4096)))]
    pub args: Vec<String>,
    /// What the program may use; the work itself is done by the cluster. Default: 1 core and 1 GiB.
    #[serde(default = "resources")]
    pub resources: Resources,
    /// What else its pod has: variables, volumes, nodes.
    #[serde(default, skip_serializing_if = "PodSettings::is_empty")]
    pub pod: PodSettings,
    /// How often it is tried again, by what went wrong.
    #[serde(default)]
    pub retries: Retries,
    /// How long the job may take from when it begins, in seconds, all its attempts together. Default:
    /// for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub active_deadline_seconds: Option<i32>,
    /// How long a job that has ended stays to be looked at, in seconds; then it is deleted. Default:
    /// for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<i32>,
    /// Whether the job has nothing for now: no pod and no cluster. What runs is stopped, and starts
    /// again from its beginning. With a schedule: no run is started.
    #[serde(default)]
    pub suspend: bool,
    /// When to run, again and again. Each run is a job of its own, named after this one and its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
}

/// A cluster of the same namespace.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How often a job is tried again, by what went wrong.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// When the program ends with another exit code than 0. Default: 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub exit: i32,
    /// When it needs more memory than it has: it would again. Default: 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub out_of_memory: i32,
    /// When it is not its own fault: its node, its cluster or the scheduler of that is gone, or its pod was
    /// evicted or deleted. Default: 3.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 100))]
    pub lost: i32,
    /// How long to wait before the second attempt, in seconds; each further wait is twice as long, ten
    /// minutes at most. Default: 10.
    #[serde(default = "ten")]
    #[schemars(range(min = 0, max = 600))]
    pub backoff_seconds: i32,
}

/// When to run, again and again.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Minute, hour, day of the month, month and day of the week, as crontab has them: `"0 18 * * 1-5"`
    /// is six in the evening from Monday to Friday.
    #[schemars(length(min = 9, max = 256))]
    pub cron: String,
    /// The time zone of these, by its name in the IANA database, like `Europe/London`. Default: `UTC`.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
    /// What happens when it is time for a run and the one before has not ended. Default: `Forbid`.
    #[serde(default)]
    pub concurrency_policy: Concurrency,
    /// How late a run may start, in seconds; one that is later is left out. Of several that are late
    /// only the last one starts. Default: as late as it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 31_536_000))]
    pub starting_deadline_seconds: Option<i32>,
    /// Runs that ended well and stay to be looked at. Default: 3.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 100))]
    pub successful_jobs_history_limit: i32,
    /// Runs that failed and stay to be looked at. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub failed_jobs_history_limit: i32,
}

/// What happens when it is time for a run and the one before has not ended.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Concurrency {
    /// The new one starts beside it.
    Allow,
    /// The new one is left out.
    #[default]
    Forbid,
    /// The old one is deleted.
    Replace,
}

/// What a job is.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterJobStatus {
    /// What the job is doing.
    #[serde(default)]
    pub phase: JobPhase,
    /// What it waits for, or why it failed, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MESSAGE_MAX))]
    pub message: Option<String>,
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Complete`: it ended well. `Failed`: it ended, and not well. `Accepted`: something can be made of
    /// its spec. `Scheduled`: the times that it runs by, as they were last seen.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// Attempts that went wrong.
    #[serde(default)]
    pub failures: Failures,
    /// The pod of the present attempt, or of the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Named>,
    /// The cluster that it computes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Named>,
    /// When it began, suspensions left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When its last attempt went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// Exit code of the last attempt that ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// With a schedule: the time of the last run that was started or left out, or when another schedule was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// With a schedule: runs that have not ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub active: Vec<String>,
}

/// What a job is doing.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum JobPhase {
    /// It waits: for its cluster, for room, for its next attempt, or for somebody to correct its spec.
    #[default]
    Pending,
    /// The program runs.
    Running,
    /// The program ended with exit code 0.
    Succeeded,
    /// It went wrong too often, or took too long.
    Failed,
    /// Somebody asked that it has nothing for now.
    Suspended,
    /// It runs when it is time.
    Scheduled,
}

/// Attempts that went wrong, by what went wrong.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failures {
    /// All of them.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub total: i32,
    /// The program ended with another exit code than 0.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub exit: i32,
    /// It needed more memory than it had.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub out_of_memory: i32,
    /// It was not its own fault.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub lost: i32,
}

/// An object, and which of those that have its name one after the other.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl ClusterJob {
    /// The name of the cluster that it computes on, unless it only makes other jobs.
    pub fn cluster_name(&self) -> Option<&str> {
        if self.spec.schedule.is_some() {
            return None;
        }
        let reference = self.spec.cluster_ref.as_ref().map(|it| it.name.as_str());
        reference.or(self.metadata.name.as_deref())
    }
}

impl Failures {
    /// How many there were: the number of the attempt after them, counted from 0.
    pub fn count(self) -> u32 {
        self.total.max(0).unsigned_abs()
    }
}

impl JobPhase {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Suspended,
        Self::Scheduled,
    ];

    /// As the status has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Suspended => "Suspended",
            Self::Scheduled => "Scheduled",
        }
    }

    /// Whether the job has ended.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

impl Default for Retries {
    fn default() -> Self {
        Self { exit: 0, out_of_memory: 0, lost: three(), backoff_seconds: ten() }
    }
}

fn resources() -> Resources {
    Resources::new(Amount::from("1"), Amount::from("1Gi"))
}

fn one() -> i32 {
    1
}

fn three() -> i32 {
    3
}

fn ten() -> i32 {
    10
}

fn utc() -> String {
    "UTC".to_owned()
}
