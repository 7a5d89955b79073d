//! A job that runs again and again: which run is due, and which ones have been there for long enough.

use std::time::Duration;

use cronexpr::Crontab;
use ebbtide_api::job::{Concurrency, Named, Schedule};
use ebbtide_api::{ClusterJob, ClusterJobStatus, JobPhase, names};
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use crate::is_going;
use crate::job::{JobChange, JobObserved, JobOp, JobPlan, condition, in_seconds, named};
use crate::lifetime::since;
use crate::status::{bounded, whole_seconds};

/// The condition whose message has the times by which runs are started.
const SCHEDULED: &str = "Scheduled";

/// Runs that a status names.
const ACTIVE_MAX: usize = 64;

/// Minutes by which clocks are put back at most.
const CLOCK_BACK_MAX: usize = 180;

/// Shorter than any two times of a schedule are apart.
const MOMENT: SignedDuration = SignedDuration::from_secs(1);

/// The longest wait for a run: the calendar may be put right meanwhile.
const LOOK_MAX: Duration = Duration::from_mins(10);

/// How far back a run that is late is looked for, the nearest first.
const BACK: [SignedDuration; 3] = [
    SignedDuration::from_hours(2),
    SignedDuration::from_hours(48),
    SignedDuration::from_hours(24 * 366),
];

/// The times of a schedule: on a clock, and which one.
struct Times {
    /// On a clock without a time zone, as if it were that of UTC.
    crontab: Crontab,
    zone: TimeZone,
}

/// Whether there are such times.
pub(super) fn check(schedule: &Schedule) -> Result<(), String> {
    let times = Times::of(schedule)?;
    let begin = DateTime::constant(2026, 1, 1, 0, 0, 0, 0);
    let never = || format!("spec.schedule.cron: {:?} never comes", schedule.cron);
    times.next_on_clock(begin).map(drop).ok_or_else(never)
}

impl Times {
    fn of(schedule: &Schedule) -> Result<Self, String> {
        let Schedule { cron, time_zone, .. } = schedule;
        let zone = TimeZone::get(time_zone).map_err(|_| {
            format!(
                "spec.schedule.timeZone: {time_zone:?} is no time zone; expected a name of the IANA \
                 database, like Europe/London"
            )
        })?;
        let parts: Vec<&str> = cron.split_whitespace().collect();
        if parts.len() != 5 {
            return Err(format!(
                "spec.schedule.cron: {cron:?} has not five parts; expected minute, hour, day of the \
                 month, month and day of the week, like \"0 18 * * 1-5\""
            ));
        }
        let crontab =
            cronexpr::parse_crontab(&format!("{} UTC", parts.join(" "))).map_err(|error| {
                format!("spec.schedule.cron: {cron:?}: {}", in_line(&error.to_string()))
            })?;
        Ok(Self { crontab, zone })
    }

    fn next_on_clock(&self, after: DateTime) -> Option<DateTime> {
        let after = TimeZone::UTC.to_timestamp(after).ok()?;
        let next = self.crontab.find_next(after).ok()?;
        Some(TimeZone::UTC.to_datetime(next.timestamp()))
    }

    /// The next time after one. Each time on the clock comes once: the first time where it comes twice,
    /// and as much later as the clock is put forward where it is left out.
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let mut clock = self.zone.to_datetime(after);
        for _ in 0..CLOCK_BACK_MAX {
            clock = self.next_on_clock(clock)?;
            let at = self.zone.to_ambiguous_timestamp(clock).compatible().ok()?;
            if at > after {
                // Times that a clock leaves out come among those that it does not.
                let others = [self.left_out(after), self.beyond(clock, at)];
                return others.into_iter().flatten().chain([at]).min();
            }
        }
        None
    }

    /// The next time after one that the clock left out when it was put forward last.
    fn left_out(&self, after: Timestamp) -> Option<Timestamp> {
        let (before, end) = self.last_change(after)?;
        let clock = self.next_on_clock(before.to_datetime(after)).filter(|it| *it < end)?;
        before.to_timestamp(clock).ok()
    }

    /// The first time on a clock after those that it leaves out, if this is one of them, which comes at that time.
    fn beyond(&self, clock: DateTime, at: Timestamp) -> Option<Timestamp> {
        let (_, end) = self.last_change(at)?;
        let first = self.next_on_clock(end.checked_sub(MOMENT).ok()?).filter(|_| clock < end)?;
        self.zone.to_ambiguous_timestamp(first).compatible().ok()
    }

    /// The last change of the clock until a time: what it showed before, and from what it went on.
    fn last_change(&self, until: Timestamp) -> Option<(Offset, DateTime)> {
        let change = self.zone.preceding(until.checked_add(MOMENT).ok()?).next()?;
        let before = self.zone.to_offset(change.timestamp().checked_sub(MOMENT).ok()?);
        Some((before, change.offset().to_datetime(change.timestamp())))
    }

    /// The last time for a run after one and until now. Of those before it nobody asks any more.
    fn due(&self, last: Timestamp, now: Timestamp) -> Option<Timestamp> {
        for back in BACK {
            let begin = now.checked_sub(back).map_or(last, |it| it.max(last));
            let times = std::iter::successors(self.next(begin), |it| self.next(*it));
            let late = times.take_while(|it| *it <= now).last();
            if late.is_some() || begin == last {
                return late;
            }
        }
        None
    }
}

/// A message of several lines in one, without what points into the text above it.
fn in_line(message: &str) -> String {
    let is_pointer = |it: &&str| it.chars().any(char::is_alphanumeric);
    message.split_whitespace().filter(is_pointer).collect::<Vec<_>>().join(" ")
}

/// The times of a schedule, in words.
fn words(schedule: &Schedule) -> String {
    let parts = schedule.cron.split_whitespace().chain([schedule.time_zone.as_str()]);
    bounded(&parts.collect::<Vec<_>>().join(" "))
}

pub(super) fn plan(
    job: &ClusterJob,
    schedule: &Schedule,
    (observed, refused): (&JobObserved, Option<&str>),
    known: ClusterJobStatus,
    now: Timestamp,
) -> JobPlan {
    let JobObserved { runs, unread_runs, .. } = observed;
    let (over, active): (Vec<&ClusterJob>, Vec<&ClusterJob>) =
        runs.iter().partition(|it| phase(it).is_over());
    let made_at = job.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let last = known.last_schedule_time.as_ref().map_or(made_at, |time| time.0);
    let words = words(schedule);
    let told = job.status.iter().flat_map(|it| &it.conditions).find(|it| it.type_ == SCHEDULED);
    let is_another = told.is_some_and(|it| it.message != words);
    // A calendar that was ahead once is not waited for, and nobody asked for the times that were before a change.
    let last = if is_another { now } else { last };
    let (last, anew) = (last.min(now), (last > now || is_another).then_some(now));
    let times = Times::of(schedule).ok().filter(|_| refused.is_none());
    let due = times.as_ref().and_then(|it| it.due(last, now));
    let mut changes = old(schedule, &over);
    let is_late = |due: Timestamp| {
        schedule.starting_deadline_seconds.is_some_and(|it| since(due, now) > in_seconds(it))
    };
    match due.filter(|_| !job.spec.suspend) {
        Some(due) if is_late(due) => changes.push(left_out(run_at(job, due), "it is too late")),
        Some(due) => changes.extend(start(job, schedule, (&active, unread_runs), due)),
        None => {}
    }
    let next = times.as_ref().and_then(|it| it.next(now));
    let told = next.filter(|_| !job.spec.suspend).map(|it| format!("the next run is at {it}"));
    let unread = unread_runs.iter().map(|it| it.name.clone());
    let mut names: Vec<String> = active.iter().map(|it| it.name_any()).chain(unread).collect();
    names.truncate(ACTIVE_MAX);
    let scheduled = (times.is_some() && !job.spec.suspend, "Times", &*words);
    let scheduled = condition(job, SCHEDULED, scheduled, now);
    let status = ClusterJobStatus {
        phase: match (job.spec.suspend, refused) {
            (true, _) => JobPhase::Suspended,
            (false, Some(_)) => JobPhase::Pending,
            (false, None) => JobPhase::Scheduled,
        },
        message: refused.map(bounded).or(told),
        // What was left out does not come later.
        last_schedule_time: due.or(anew).and_then(whole_seconds).or(known.last_schedule_time),
        conditions: known.conditions.iter().cloned().chain([scheduled]).collect(),
        active: names,
        ..known
    };
    JobPlan { changes, status, next_look: next.map(|it| since(now, it).min(LOOK_MAX)) }
}

/// The name of the run at this time.
fn run_at(job: &ClusterJob, due: Timestamp) -> String {
    names::run(&job.name_any(), due.as_second().div_euclid(60))
}

fn left_out(name: String, why: &'static str) -> JobChange {
    JobChange { op: JobOp::LeaveOut(name), why }
}

fn phase(run: &ClusterJob) -> JobPhase {
    run.status.as_ref().map_or(JobPhase::Pending, |it| it.phase)
}

/// What it takes that a run starts.
fn start(
    job: &ClusterJob,
    schedule: &Schedule,
    (active, unread): (&[&ClusterJob], &[Named]),
    due: Timestamp,
) -> Vec<JobChange> {
    let name = run_at(job, due);
    let others =
        active.iter().filter(|it| it.name_any() != name).map(|it| (named(*it), is_going(*it)));
    // What cannot be read may run.
    let unread = unread.iter().filter(|it| it.name != name).map(|it| (it.clone(), false));
    let others: Vec<(Named, bool)> = others.chain(unread).collect();
    let mut changes = Vec::new();
    match schedule.concurrency_policy {
        Concurrency::Forbid if !others.is_empty() => {
            return vec![left_out(name, "the one before has not ended")];
        }
        Concurrency::Allow | Concurrency::Forbid => {}
        Concurrency::Replace => {
            let others = others.into_iter().filter(|(_, is_going)| !is_going);
            changes.extend(others.map(|(it, _)| JobChange {
                op: JobOp::DeleteJob(it),
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
