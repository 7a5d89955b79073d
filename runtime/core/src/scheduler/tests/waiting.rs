//! Tasks that wait behind others, and what is expected of those to come.

use std::time::Duration;

use super::{NOW, Play, group, join, joining, task};
use crate::message::{Attempt, FromWorker, ToWorker};
use crate::scheduler::{Effect, Event, Joining};
use crate::table::KINDS_MAX;
use crate::{AxisRelation, Group, GroupId, Input, JobId, Relation, TaskId, Time, WorkerId};

/// A job of one group for each of these kinds, with so many tasks each, the first group having this
/// number.
fn calls(first: u64, tasks: u32, kinds: &[Option<u64>]) -> Event {
    let groups = (first..).zip(kinds);
    let groups = groups.map(|(id, kind)| Group { kind: *kind, ..group(id, &[tasks], vec![]) });
    let groups: Vec<Group> = groups.collect();
    let targets = groups.iter().map(|group| group.id).collect();
    Event::Submitted { job: JobId(first), groups, targets, is_kept: false }
}

fn seconds(seconds: u64) -> Time {
    Time(Duration::from_secs(seconds))
}

impl Play {
    /// What workers were asked to give back.
    fn asked_back(&self) -> Vec<(WorkerId, TaskId, Attempt)> {
        let asked = self.others.iter().filter_map(|effect| {
            let Effect::Send(at, ToWorker::Retract(task, attempt)) = effect else { return None };
            Some((*at, *task, *attempt))
        });
        asked.collect()
    }

    fn give_back(&mut self, nth: usize) {
        let (at, task, attempt) = self.asked_back()[nth];
        self.at(0, Event::Worker(at, FromWorker::Retracted { task, attempt }));
    }

    /// Core-seconds of all that is to be done.
    fn core_seconds(&self, now: Time) -> u64 {
        let demand = self.scheduler.demand(now);
        demand.iter().map(|it| it.nanoseconds).sum::<u64>() / 1_000_000_000
    }
}

#[test]
fn what_waits_goes_to_a_worker_that_comes_and_has_nothing_to_do() {
    let mut play = Play::of([join(1, 2), calls(1, 4, &[None]), join(2, 1)]);
    let attempt = play.assigned[3].2;
    assert_eq!(play.asked_back(), [(WorkerId(1), task(1, 3), attempt)], "one core, one task");
    play.give_back(0);
    assert_eq!(play.assigned[4].0, WorkerId(2));
    assert_eq!(play.assigned[4].1, task(1, 3));
    // Said twice, it changes nothing.
    play.give_back(0);
    assert_eq!((play.assigned.len(), play.asked_back().len()), (5, 1));
    play.at(0, join(3, 4));
    assert_eq!(play.asked_back().len(), 2, "the last one that waits");
}

#[test]
fn what_has_begun_is_not_asked_for_again() {
    let mut play = Play::of([join(1, 1), calls(1, 2, &[None]), join(2, 1)]);
    let (at, task, attempt) = play.asked_back()[0];
    play.at(1, Event::Worker(at, FromWorker::Begun { task, attempt }));
    play.at(2, join(3, 1));
    assert_eq!((play.assigned.len(), play.asked_back().len()), (2, 1));
    // And it counts as having run.
    play.at(3, Event::WorkerLost(at));
    let lost = &play.scheduler.tasks[&task];
    assert_eq!((lost.losses, lost.waits), (1, 0));
}

#[test]
fn what_was_given_back_goes_where_there_is_room_when_the_idle_one_is_gone() {
    let mut play = Play::of([join(1, 1), calls(1, 2, &[None]), join(2, 1)]);
    play.at(0, Event::WorkerLost(WorkerId(2)));
    play.give_back(0);
    let (at, given, attempt) = play.assigned[2];
    assert_eq!((at, given), (WorkerId(1), task(1, 1)));
    assert_ne!(attempt, play.asked_back()[0].2, "another try");
}

#[test]
fn what_waits_beside_more_data_than_it_is_worth_stays() {
    let relation = Relation(vec![AxisRelation::Same { axis: 0 }]);
    let inputs = vec![Input { group: GroupId(1), relation }];
    let groups = vec![group(1, &[2], vec![]), group(2, &[2], inputs)];
    let job = Event::Submitted { job: JobId(1), groups, targets: vec![GroupId(2)], is_kept: false };
    let large = |id: u64| {
        let (name, memory_bytes) = (format!("w{id}"), 10_000_000_000);
        Event::WorkerJoined(WorkerId(id), Joining { name, memory_bytes, ..joining(1) })
    };
    let asked_with = |bytes: u64| {
        let mut play = Play::of([large(1), job.clone()]);
        for nth in 0..2 {
            let (at, task, attempt) = play.assigned[nth];
            let made = FromWorker::Finished { task, attempt, bytes, nanoseconds: 1_000_000_000 };
            play.at(0, Event::Worker(at, made));
        }
        assert_eq!(play.tasks()[2..], [task(2, 0), task(2, 1)]);
        play.at(0, large(2));
        play.asked_back().len()
    };
    // It would take a second, in which the network brings 100 MB.
    assert_eq!((asked_with(100_000_000), asked_with(100_000_001)), (1, 0));
}

#[test]
fn calls_of_one_kind_are_expected_to_take_as_long_as_those_before() {
    let mut play = Play::of([join(1, 1), calls(1, 1, &[Some(7)])]);
    assert_eq!(play.core_seconds(NOW), 1);
    let (at, done, attempt) = play.assigned[0];
    let took = FromWorker::Finished { task: done, attempt, bytes: 1, nanoseconds: 30_000_000_000 };
    play.at(30, Event::Worker(at, took));
    play.at(30, Event::Collected(done));
    play.at(30, calls(2, 1, &[Some(7), Some(7), Some(8), None]));
    assert_eq!(play.core_seconds(seconds(30)), 30 + 30 + 1 + 1);
}

#[test]
fn what_runs_for_long_tells_what_those_like_it_will_take() {
    let play = Play::of([join(1, 1), calls(1, 1, &[Some(7), Some(7), Some(7), None])]);
    assert_eq!(play.core_seconds(seconds(1)), 4);
    assert_eq!(play.core_seconds(seconds(3)), 2 + 2 + 2 + 1);
    // By the power of two below, so that it is not news at every look.
    assert_eq!(play.core_seconds(seconds(63)), 3 * 32 + 1);
    assert_eq!(play.core_seconds(seconds(64)), 3 * 64 + 1);
}

#[test]
fn one_that_runs_for_long_is_one_among_those_that_were_measured() {
    let mut play = Play::of([join(1, 1), calls(1, 12, &[None])]);
    for nth in 0..9 {
        let (at, task, attempt) = play.assigned[nth];
        let took = FromWorker::Finished { task, attempt, bytes: 1, nanoseconds: 1_000_000_000 };
        play.at(0, Event::Worker(at, took));
    }
    assert_eq!(play.core_seconds(seconds(1)), 3);
    // Nine took a second, and one takes eight of them, or eleven.
    assert_eq!(play.core_seconds(seconds(11)), 3 * (9 + 8) / 10);
}

#[test]
fn the_kinds_that_are_remembered_are_bounded() {
    let mut play = Play::of([join(1, 1)]);
    let kinds = KINDS_MAX as u64 + 1;
    for kind in 0..kinds {
        play.at(0, calls(kind, 1, &[Some(kind)]));
        let (at, task, attempt) = play.assigned[usize::try_from(kind).unwrap()];
        let took = FromWorker::Finished { task, attempt, bytes: 1, nanoseconds: 9_000_000_000 };
        play.at(0, Event::Worker(at, took));
        play.at(0, Event::Collected(task));
    }
    play.at(0, calls(kinds, 1, &[Some(0), Some(kinds - 1)]));
    assert_eq!(play.core_seconds(NOW), 1 + 9);
}
