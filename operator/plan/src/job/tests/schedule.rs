//! Runs that come by a schedule.

use std::time::Duration;

use ebbtide_api::JobPhase;
use ebbtide_api::job::Named;
use jiff::Timestamp;
use serde_json::json;

use super::{JobObserved, JobOp, World, at, job, plan, site};
use crate::job::{JobChange, stuck};
use crate::{Refusal, Stage};

#[test]
fn a_schedule_starts_a_run_at_its_time_once_and_none_for_what_is_long_gone() {
    // 1970-01-12 13:46:40 UTC.
    let mut world = World::new(&json!({ "schedule": { "cron": "0 * * * *" } }));
    assert_eq!((world.step(), world.phase()), (vec![], JobPhase::Scheduled));
    assert_eq!(world.message(), "the next run is at 1970-01-12T14:00:00Z");
    assert_eq!(world.plan().next_look, Some(Duration::from_mins(10)));
    world.now = 801;
    assert_eq!(world.step(), ["create job nightly-16680: it is time"]);
    let run = &world.observed.runs[0];
    assert_eq!((&run.spec.schedule, run.spec.suspend), (&None, false));
    assert_eq!(run.cluster_name(), Some("nightly-16680"));
    assert_eq!(world.job.status.as_ref().unwrap().active, ["nightly-16680"]);
    // A whole day later the last run is due, and none of those before.
    world.observed.runs.clear();
    world.now += 24 * 3600;
    assert_eq!(world.step(), ["create job nightly-18120: it is time"]);
}

#[test]
fn times_are_those_of_the_time_zone_whatever_its_clocks_do() {
    let fields = json!({ "schedule": { "cron": "0 18 * * 1-5", "timeZone": "Europe/London" } });
    for (from, next) in [
        ("2026-01-05T00:00:00Z", "2026-01-05T18:00:00Z"),
        ("2026-07-03T18:00:00Z", "2026-07-06T17:00:00Z"),
        ("2026-10-23T20:00:00Z", "2026-10-26T18:00:00Z"),
    ] {
        let job = job(&fields);
        let planned = plan(&job, &JobObserved::default(), &site(), from.parse().unwrap());
        assert_eq!(planned.status.message, Some(format!("the next run is at {next}")));
    }
}

#[test]
fn parts_of_a_time_may_stand_in_columns() {
    for cron in ["0  18 * *  1-5", "0 18 * * 1-5 ", "0\t18 * * 1-5"] {
        let job = job(&json!({ "schedule": { "cron": cron } }));
        let planned = plan(&job, &JobObserved::default(), &site(), at(0));
        assert!(planned.status.message.unwrap().starts_with("the next run is at "), "{cron}");
    }
}

#[test]
fn a_time_that_a_clock_leaves_out_or_shows_twice_comes_once() {
    let times = |cron: &str, zone: &str, from: &str, count: usize| {
        let fields = json!({ "schedule": { "cron": cron, "timeZone": zone } });
        let job = job(&fields);
        let mut now: Timestamp = from.parse().unwrap();
        let mut told = Vec::new();
        for _ in 0..count {
            let planned = plan(&job, &JobObserved::default(), &site(), now);
            let message = planned.status.message.unwrap();
            now = message.strip_prefix("the next run is at ").unwrap().parse().unwrap();
            told.push(now.to_string());
        }
        told
    };
    // In London clocks go from 1:00 to 2:00 on 29 March, and from 2:00 to 1:00 on 25 October 2026.
    assert_eq!(
        times("30 1 * * *", "Europe/London", "2026-03-28T12:00:00Z", 2),
        ["2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"]
    );
    assert_eq!(
        times("30 1 * * *", "Europe/London", "2026-10-24T12:00:00Z", 2),
        ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
    );
    assert_eq!(
        times("*/30 * * * *", "Europe/London", "2026-10-25T00:00:00Z", 3),
        ["2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z", "2026-10-25T02:30:00Z"]
    );
    // None of several is lost, and none is told late.
    let from = "2026-03-29T00:59:00Z";
    assert_eq!(
        times("0,30 1 * * *", "Europe/London", from, 3),
        ["2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z", "2026-03-30T00:00:00Z"]
    );
    assert_eq!(
        times("*/20 1,3 * * *", "Europe/London", from, 4),
        ["01:00", "01:20", "01:40", "02:00"].map(|it| format!("2026-03-29T{it}:00Z"))
    );
    assert_eq!(
        times("15 1 * * *", "Europe/London", "2026-03-29T01:05:00Z", 2),
        ["2026-03-29T01:15:00Z", "2026-03-30T00:15:00Z"]
    );
    assert_eq!(
        times("20,35 2 * * *", "Australia/Lord_Howe", "2026-10-03T15:00:00Z", 3),
        ["2026-10-03T15:35:00Z", "2026-10-03T15:50:00Z", "2026-10-04T15:20:00Z"]
    );
    // By half an hour, at two in the morning.
    for cron in ["0 5 * 4 0#1", "0 5 * * *", "* * * * *", "45 1 * * *"] {
        for from in ["2026-04-04T14:59:00Z", "2026-10-03T15:29:00Z"] {
            let told = times(cron, "Australia/Lord_Howe", from, 3);
            assert!(told.is_sorted(), "{told:?}");
        }
    }
}

#[test]
fn a_calendar_that_was_ahead_once_is_not_waited_for() {
    let mut world = World::new(&json!({ "schedule": { "cron": "0 * * * *" } }));
    world.now = 1_000_000;
    world.step();
    world.observed.runs.clear();
    world.now = 801;
    world.step();
    assert!(world.plan().next_look.unwrap() <= Duration::from_mins(10));
    world.now += 3600;
    assert_eq!(world.step().len(), 1);
}

#[test]
fn runs_that_would_meet_are_let_be_left_out_or_replaced() {
    let changes = |policy: &str| {
        let cron = json!({ "cron": "* * * * *", "concurrencyPolicy": policy });
        let mut world = World::new(&json!({ "schedule": cron }));
        world.now = 60;
        world.step();
        world.now = 120;
        let told = world.step();
        // What was left out does not come when there is room again.
        world.observed.runs.clear();
        assert_eq!(world.step(), Vec::<String>::new());
        told
    };
    let new = "create job nightly-16668: it is time";
    assert_eq!(changes("Allow"), [new]);
    assert_eq!(changes("Forbid"), ["leave out nightly-16668: the one before has not ended"]);
    assert_eq!(changes("Replace"), ["delete job nightly-16667: another run replaces it", new]);
}

#[test]
fn a_run_that_cannot_be_read_counts_as_one_that_is_at_work() {
    for (policy, expected) in [
        ("Allow", vec!["create job nightly-16667: it is time"]),
        ("Forbid", vec!["leave out nightly-16667: the one before has not ended"]),
        (
            "Replace",
            vec!["delete job odd: another run replaces it", "create job nightly-16667: it is time"],
        ),
    ] {
        let cron = json!({ "cron": "* * * * *", "concurrencyPolicy": policy });
        let mut world = World::new(&json!({ "schedule": cron }));
        let odd = Named { name: "odd".to_owned(), uid: "u".to_owned() };
        world.observed.unread_runs = vec![odd];
        world.now = 60;
        let planned = world.plan();
        let told: Vec<String> = planned.changes.iter().map(ToString::to_string).collect();
        assert_eq!(told, expected, "{policy}");
        assert_eq!(planned.status.active, ["odd"]);
    }
}

#[test]
fn a_schedule_that_is_changed_starts_nothing_for_times_before_that() {
    let schedule = |cron: &str, zone: &str| json!({ "cron": cron, "timeZone": zone });
    let begin = schedule("0 18 * * *", "Europe/London");
    for (next, runs_at) in [
        (schedule("0 9 * * *", "Europe/London"), "1970-01-14T08:00:00Z"),
        (schedule("0 18 * * *", "Asia/Kolkata"), "1970-01-13T12:30:00Z"),
    ] {
        let mut world = World::new(&json!({ "schedule": begin }));
        let until = |world: &mut World, at: &str| {
            let at: Timestamp = at.parse().unwrap();
            world.now = at.as_second() - super::BEGIN;
            world.step()
        };
        assert_eq!(until(&mut world, "1970-01-12T17:00:30Z").len(), 1);
        assert_eq!(until(&mut world, "1970-01-13T12:29:00Z"), Vec::<String>::new());
        world.observed.runs.clear();
        world.job.spec.schedule = job(&json!({ "schedule": next })).spec.schedule;
        assert_eq!(until(&mut world, "1970-01-13T12:29:30Z"), Vec::<String>::new(), "{next}");
        assert_eq!(world.message(), format!("the next run is at {runs_at}"));
        // What else is changed makes none of its times another's.
        world.job.spec.args = vec!["more".to_owned()];
        assert_eq!(until(&mut world, &runs_at.replace(":00Z", ":40Z")).len(), 1, "{next}");
    }
}

#[test]
fn a_change_that_could_not_be_carried_out_in_the_look_that_saw_it_starts_nothing_either() {
    let mut world = World::new(&json!({ "schedule": { "cron": "0 18 * * *" } }));
    world.now = 15 * 3600;
    assert_eq!(world.step().len(), 1);
    world.now += 16 * 3600;
    world.step();
    world.job.spec.schedule = job(&json!({ "schedule": { "cron": "0 9 * * *" } })).spec.schedule;
    let failed = JobChange {
        op: JobOp::DeleteJob(Named { name: "old".to_owned(), uid: "u".to_owned() }),
        why: "enough newer runs are there",
    };
    let why = Refusal { words: "no", is_lasting: false, at: Stage::Others };
    let planned = world.plan().status;
    let (status, _) =
        stuck((&world.job, &world.observed), &planned, (&failed, &why), at(world.now));
    world.job.status = Some(status);
    world.observed.runs.clear();
    world.now += 60;
    assert_eq!(world.step(), Vec::<String>::new());
}

#[test]
fn a_run_that_is_too_late_or_came_while_the_schedule_was_suspended_is_left_out() {
    let cron = json!({ "cron": "0 * * * *", "startingDeadlineSeconds": 100 });
    let mut world = World::new(&json!({ "schedule": cron }));
    world.now = 800 + 101;
    assert_eq!(world.step(), ["leave out nightly-16680: it is too late"]);
    assert_eq!(world.step(), Vec::<String>::new());
    let mut world = World::new(&json!({ "schedule": { "cron": "0 * * * *" }, "suspend": true }));
    world.now = 900;
    assert_eq!((world.step(), world.phase()), (vec![], JobPhase::Suspended));
    world.job.spec.suspend = false;
    assert_eq!((world.step(), world.phase()), (vec![], JobPhase::Scheduled));
}

#[test]
fn of_runs_that_ended_the_newest_stay() {
    let cron = json!({ "cron": "0 0 1 1 *", "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0 });
    let mut world = World::new(&json!({ "schedule": cron }));
    let run = |name: &str, phase: &str, ended: i64| {
        let mut run = job(&json!({}));
        run.metadata.name = Some(name.to_owned());
        let status = json!({ "phase": phase, "endedAt": at(ended).to_string() });
        run.status = Some(serde_json::from_value(status).unwrap());
        run
    };
    world.observed.runs = vec![
        run("old", "Succeeded", 1),
        run("new", "Succeeded", 2),
        run("bad", "Failed", 3),
        run("active", "Running", 0),
    ];
    let told = [
        "delete job old: enough newer runs are there",
        "delete job bad: enough newer runs are there",
    ];
    assert_eq!(world.step(), told);
}
