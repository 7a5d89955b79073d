//! How a job, or an attempt of it, comes to its end.

use std::time::Duration;

use ebbtide_api::{ClusterJob, ClusterJobStatus, JobPhase};
use jiff::Timestamp;

use crate::job::attempt::Lost;
use crate::job::{JobPlan, condition, in_seconds};
use crate::status::{bounded, whole_seconds};

/// How long a job may take, and the field that says so.
pub(super) fn limit(job: &ClusterJob) -> Option<(Duration, &'static str)> {
    let own = job.spec.active_deadline_seconds.map(in_seconds);
    let of_cluster = job.spec.cluster.as_ref().and_then(|it| it.lifetime.max.as_ref());
    let limits = [
        own.map(|it| (it, "spec.activeDeadlineSeconds")),
        of_cluster.map(|it| (it.after.as_duration(), "spec.cluster.lifetime.max.after")),
    ];
    limits.into_iter().flatten().min()
}

/// The end, which is written before anything follows from it.
pub(super) fn over(
    job: &ClusterJob,
    known: ClusterJobStatus,
    phase: JobPhase,
    (reason, message): (&str, &str),
    now: Timestamp,
) -> JobPlan {
    let is = |it| (phase == it, reason, message);
    let conditions = [
        condition(job, "Complete", is(JobPhase::Succeeded), now),
        condition(job, "Failed", is(JobPhase::Failed), now),
    ];
    let status = ClusterJobStatus {
        phase,
        message: Some(bounded(message)),
        conditions: known.conditions.iter().cloned().chain(conditions).collect(),
        ended_at: whole_seconds(now),
        ..known
    };
    JobPlan { changes: Vec::new(), status, next_look: Some(Duration::ZERO) }
}

/// An attempt went wrong: it counts, and another one follows or not.
pub(super) fn after_failure(
    job: &ClusterJob,
    known: ClusterJobStatus,
    lost: &Lost,
    now: Timestamp,
) -> JobPlan {
    let mut failures = known.failures;
    failures.total = failures.total.saturating_add(1);
    let (count, most) = lost.kind.of(&mut failures, &job.spec.retries);
    *count = count.saturating_add(1);
    let is_last = *count > most;
    let nth = failures.total;
    let known = ClusterJobStatus {
        failures,
        failed_at: whole_seconds(now),
        exit_code: lost.exit_code.or(known.exit_code),
        ..known
    };
    if is_last {
        let message = format!("attempt {nth} went wrong: {}", lost.message);
        return over(job, known, JobPhase::Failed, (lost.kind.reason(), &message), now);
    }
    let message = format!("attempt {nth} went wrong, another one follows: {}", lost.message);
    let status = ClusterJobStatus {
        phase: JobPhase::Pending,
        message: Some(bounded(&message)),
        pod: None,
        ..known
    };
    JobPlan { changes: Vec::new(), status, next_look: Some(Duration::ZERO) }
}

/// One that took too long, and what it waited for if its program never began.
pub(super) fn late(
    job: &ClusterJob,
    known: ClusterJobStatus,
    limit: Option<(Duration, &'static str)>,
    waits: Option<String>,
    now: Timestamp,
) -> JobPlan {
    let (length, field) = limit.unwrap_or_default();
    let waits = waits.map(|it| format!(", and its program had not begun: {it}"));
    let waits = waits.unwrap_or_default();
    let message = format!("it took longer than {field}, {} s{waits}", length.as_secs());
    over(job, known, JobPhase::Failed, ("DeadlineExceeded", &message), now)
}
