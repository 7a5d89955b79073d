//! A job that runs again and again: which run is due, and which ones have been there for long enough.

use std::time::Duration;

use cronexpr::Crontab;
use ebbtide_api::job::{Concurrency, Schedule};
use ebbtide_api::{ClusterJob, ClusterJobStatus, JobPhase, names};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use crate::job::{JobChange, JobOp, JobPlan, is_going, named};
use crate::lifetime::since;
use crate::status::whole_seconds;

/// Runs that a status names.
const ACTIVE_MAX: usize = 64;

/// How far back a run that is late is looked for, the nearest first.
const BACK: [SignedDuration; 3] = [
    SignedDuration::from_hours(2),
    SignedDuration::from_hours(48),
    SignedDuration::from_hours(24 * 366),
];

/// Whether there are such times.
pub(super) fn check(schedule: &Schedule) -> Result<(), String> {
    crontab(schedule).map(drop)
}

fn crontab(schedule: &Schedule) -> Result<Crontab, String> {
    let Schedule { cron, time_zone, .. } = schedule;
    if jiff::tz::TimeZone::get(time_zone).is_err() {
        return Err(format!(
            "spec.schedule.timeZone: {time_zone:?} is no time zone; expected a name of the IANA \
             database, like Europe/London"
        ));
    }
    if cron.split_whitespace().count() != 5 {
        return Err(format!(
            "spec.schedule.cron: {cron:?} has not five parts; expected minute, hour, day of the month, \
             month and day of the week, like \"0 18 * * 1-5\""
        ));
    }
    cronexpr::parse_crontab(&format!("{cron} {time_zone}"))
        .map_err(|error| format!("spec.schedule.cron: {cron:?}: {error}"))
}

pub(super) fn plan(
    job: &ClusterJob,
    schedule: &Schedule,
    runs: &[ClusterJob],
    known: ClusterJobStatus,
    now: Timestamp,
) -> JobPlan {
    let crontab = match crontab(schedule) {
        Ok(crontab) => crontab,
        // Such a spec is not planned.
        Err(message) => {
            let status = ClusterJobStatus { message: Some(message), ..known };
            return JobPlan { changes: Vec::new(), status, next_look: None };
        }
    };
    let (over, active): (Vec<&ClusterJob>, Vec<&ClusterJob>) =
        runs.iter().partition(|it| phase(it).is_over());
    let made_at = job.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let last = known.last_schedule_time.as_ref().map_or(made_at, |time| time.0);
    let due = due(&crontab, last, now);
    let mut changes = old(schedule, &over);
    let is_late = |due: Timestamp| {
        let most = schedule.starting_deadline_seconds.map(|it| it.max(0).unsigned_abs());
        most.is_some_and(|most| since(due, now) > Duration::from_secs(most.into()))
    };
    if let Some(due) = due.filter(|it| !job.spec.suspend && !is_late(*it)) {
        changes.extend(start(job, schedule, &active, due));
    }
    let next = crontab.find_next(now).ok().map(|it| it.timestamp());
    let mut names: Vec<String> = active.iter().map(|it| it.name_any()).collect();
    names.truncate(ACTIVE_MAX);
    let status = ClusterJobStatus {
        phase: if job.spec.suspend { JobPhase::Suspended } else { JobPhase::Scheduled },
        message: next.filter(|_| !job.spec.suspend).map(|it| format!("the next run is at {it}")),
        // What was left out does not come later.
        last_schedule_time: due.and_then(whole_seconds).or(known.last_schedule_time),
        active: names,
        ..known
    };
    JobPlan { changes, status, next_look: next.map(|it| since(now, it)) }
}

fn phase(run: &ClusterJob) -> JobPhase {
    run.status.as_ref().map_or(JobPhase::Pending, |it| it.phase)
}

/// The last time for a run after one and until now. Of those before it nobody asks any more.
fn due(crontab: &Crontab, last: Timestamp, now: Timestamp) -> Option<Timestamp> {
    for back in BACK {
        let begin = now.checked_sub(back).map_or(last, |it| it.max(last));
        let times = crontab.iter_after(begin).ok()?;
        let times = times.map_while(Result::ok).map(|it| it.timestamp());
        let late = times.take_while(|it| *it <= now).last();
        if late.is_some() || begin == last {
            return late;
        }
    }
    None
}

/// What it takes that a run starts.
fn start(
    job: &ClusterJob,
    schedule: &Schedule,
    active: &[&ClusterJob],
    due: Timestamp,
) -> Vec<JobChange> {
    let name = names::run(&job.name_any(), due.as_second().div_euclid(60));
    let others: Vec<&&ClusterJob> = active.iter().filter(|it| it.name_any() != name).collect();
    let mut changes = Vec::new();
    match schedule.concurrency_policy {
        Concurrency::Forbid if !others.is_empty() => return changes,
        Concurrency::Allow | Concurrency::Forbid => {}
        Concurrency::Replace => {
            let others = others.into_iter().filter(|it| !is_going(**it));
            changes.extend(others.map(|it| JobChange {
                op: JobOp::DeleteJob(named(*it)),
                why: "another run replaces it",
            }));
        }
    }
    let mut spec = job.spec.clone();
    (spec.schedule, spec.suspend) = (None, false);
    let mut run = ClusterJob::new(&name, spec);
    run.metadata = crate::owned_by(job, name);
    let op = JobOp::CreateJob(Box::new(run));
    changes.push(JobChange { op, why: "it is time" });
    changes
}

/// Runs that ended and of which enough newer ones are there.
fn old(schedule: &Schedule, over: &[&ClusterJob]) -> Vec<JobChange> {
    let ended = |it: &&ClusterJob| {
        let at = it.status.as_ref().and_then(|status| status.ended_at.as_ref());
        at.map(|time| time.0)
    };
    let mut changes = Vec::new();
    for (kind, most) in [
        (JobPhase::Succeeded, schedule.successful_jobs_history_limit),
        (JobPhase::Failed, schedule.failed_jobs_history_limit),
    ] {
        let mut of_kind: Vec<&ClusterJob> =
            over.iter().filter(|it| phase(it) == kind).copied().collect();
        of_kind.sort_by_key(|it| std::cmp::Reverse(ended(it)));
        let most = usize::try_from(most).unwrap_or_default();
        let old = of_kind.into_iter().skip(most).filter(|it| !is_going(*it));
        changes.extend(old.map(|it| JobChange {
            op: JobOp::DeleteJob(named(it)),
            why: "enough newer runs are there",
        }));
    }
    changes
}
