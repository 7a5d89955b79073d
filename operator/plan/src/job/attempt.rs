//! How far the present attempt of a job is, and what went wrong when it went wrong.

use std::time::Duration;

use ebbtide_api::job::{Failures, Retries};
use ebbtide_api::status::Cause;
use ebbtide_api::{ClusterJob, ClusterJobStatus, names};
use jiff::Timestamp;
use kube::ResourceExt as _;

use crate::job::{JobObserved, in_seconds};
use crate::lifetime::since;
use crate::{PodPhase, PodSeen};

/// Longest wait before another attempt.
const BACKOFF_MAX: Duration = Duration::from_mins(10);

/// How far an attempt is.
pub(super) enum Ended<'a> {
    /// It has no pod yet.
    NotBegun,
    /// Its pod is there and has not ended.
    Not(&'a PodSeen),
    /// The program ended with exit code 0.
    Well(&'a PodSeen),
    /// It went wrong.
    Badly(Lost),
}

impl Ended<'_> {
    /// Whether its program may have begun.
    pub(super) fn has_begun(&self) -> bool {
        match self {
            Self::NotBegun => false,
            Self::Not(pod) => pod.phase != PodPhase::Pending || pod.is_deleting,
            Self::Well(_) | Self::Badly(_) => true,
        }
    }
}

/// What went wrong.
pub(super) struct Lost {
    pub(super) kind: Kind,
    pub(super) message: String,
    pub(super) exit_code: Option<i32>,
}

/// Whose fault it was.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Exit,
    OutOfMemory,
    Lost,
}

impl Kind {
    /// Where it is counted, and how often it may be.
    pub(super) fn of<'a>(
        self,
        failures: &'a mut Failures,
        retries: &Retries,
    ) -> (&'a mut i32, i32) {
        match self {
            Self::Exit => (&mut failures.exit, retries.exit),
            Self::OutOfMemory => (&mut failures.out_of_memory, retries.out_of_memory),
            Self::Lost => (&mut failures.lost, retries.lost),
        }
    }

    /// As a reason of a condition.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Exit => "Exit",
            Self::OutOfMemory => "OutOfMemory",
            Self::Lost => "Lost",
        }
    }
}

/// How far the attempt with this number is.
pub(super) fn attempt<'a>(
    job: &ClusterJob,
    nth: u32,
    observed: &'a JobObserved,
    known: &ClusterJobStatus,
) -> Ended<'a> {
    let name = names::attempt(&job.name_any(), nth);
    let Some(pod) = observed.pods.iter().find(|it| it.name == name) else {
        let was_there = known.pod.as_ref().is_some_and(|it| it.name == name);
        return if was_there { Ended::Badly(gone(&name)) } else { Ended::NotBegun };
    };
    // Another one of its name: somebody took the one away that was known.
    if known.pod.as_ref().is_some_and(|it| it.name == name && it.uid != pod.uid) {
        return Ended::Badly(gone(&name));
    }
    // One that was stopped when the job was suspended is none of its attempts, however it ended.
    let was_stopped = pod.is_deleting && known.pod.is_none();
    if pod.phase != PodPhase::Ended || was_stopped {
        return Ended::Not(pod);
    }
    match (&pod.trouble, pod.exit_code) {
        (None, Some(0)) => Ended::Well(pod),
        _ => Ended::Badly(why(pod, observed)),
    }
}

fn gone(name: &str) -> Lost {
    let message = format!("{name}: its pod is gone");
    Lost { kind: Kind::Lost, message, exit_code: None }
}

fn why(pod: &PodSeen, observed: &JobObserved) -> Lost {
    let (has_cluster, has_scheduler) =
        (observed.has_cluster_of(pod), observed.has_scheduler_of(pod));
    let cause = pod.trouble.as_ref().map(|it| it.cause);
    let kind = match cause {
        // Who deletes it ends its program, and so does a cluster that goes.
        _ if pod.is_deleting || !has_cluster => Kind::Lost,
        Some(Cause::OutOfMemory) => Kind::OutOfMemory,
        Some(
            Cause::Evicted
            | Cause::NodeLost
            | Cause::Refused
            | Cause::Unschedulable
            | Cause::Quota
            | Cause::Policy
            | Cause::Rejected,
        )
        | None => Kind::Lost,
        Some(Cause::Exit) if !has_scheduler => Kind::Lost,
        Some(Cause::Exit | Cause::Configuration | Cause::Image) => Kind::Exit,
    };
    let told = pod.trouble.as_ref().map_or("it ended, and nobody says how", |it| &it.message);
    let told = match (has_cluster, kind) {
        (false, _) => "the cluster that it computes on is gone",
        (true, Kind::Lost) if cause == Some(Cause::Exit) && !pod.is_deleting => {
            "the scheduler that it computes with is gone"
        }
        (true, _) => told,
    };
    let (message, exit_code) = (format!("{}: {told}", pod.name), pod.exit_code);
    Lost { kind, message, exit_code }
}

/// How much longer to wait before the next attempt: twice as long after each failure.
pub(super) fn backoff(job: &ClusterJob, known: &ClusterJobStatus, now: Timestamp) -> Duration {
    let Some(failed_at) = &known.failed_at else { return Duration::ZERO };
    let first = in_seconds(job.spec.retries.backoff_seconds);
    let doubled = known.failures.total.saturating_sub(1).clamp(0, 16);
    let whole = first.saturating_mul(1 << doubled).min(BACKOFF_MAX);
    whole.saturating_sub(since(failed_at.0, now))
}
