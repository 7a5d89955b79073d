//! Tasks that wait behind others, and what is expected of those to come.

use std::time::Duration;

use super::{COST, NOW, Play, group, job, join, joining, offer, task};
use crate::message::{Attempt, FromWorker, ToWorker};
use crate::scheduler::{Effect, Event, Joining};
use crate::table::KINDS_MAX;
use crate::{
    AxisRelation, Cost, Group, GroupId, Input, JobId, Relation, Resources, TaskId, Time, WorkerId,
};

/// A job of one group for each of these kinds, with so many tasks each, the first group having this
/// number.
fn calls(first: u64, tasks: u32, kinds: &[Option<u64>]) -> Event {
    let groups = (first..).zip(kinds);
    let groups = groups.map(|(id, kind)| Group { kind: *kind, ..group(id, &[tasks], vec![]) });
    let groups: Vec<Group> = groups.collect();
    let targets = groups.iter().map(|group| group.id).collect();
    Event::Submitted { job: JobId(first), groups, targets, is_kept: false }
}

/// A worker with one core and much memory.
fn large(id: u64) -> Event {
    let (name, memory_bytes) = (format!("w{id}"), 10_000_000_000);
    Event::WorkerJoined(WorkerId(id), Joining { name, memory_bytes, ..joining(1) })
}

/// Two tasks at a large worker, one behind the other, each with an input there of so many bytes.
fn beside(bytes: u64) -> Play {
    let relation = Relation(vec![AxisRelation::Same { axis: 0 }]);
    let inputs = vec![Input { group: GroupId(1), relation }];
    let groups = vec![group(1, &[2], vec![]), group(2, &[2], inputs)];
    let job = Event::Submitted { job: JobId(1), groups, targets: vec![GroupId(2)], is_kept: false };
    let mut play = Play::of([large(1), job]);
    for nth in 0..2 {
        let (at, task, attempt) = play.assigned[nth];
        let made = FromWorker::Finished { task, attempt, bytes, nanoseconds: 1_000_000_000 };
        play.at(0, Event::Worker(at, made));
    }
    play
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

    fn beat(&mut self, seconds: u64, worker: u64) {
        self.at(seconds, Event::Worker(WorkerId(worker), FromWorker::Heartbeat));
    }

    /// The `nth` assignment is over, at a time and after a time.
    fn took(&mut self, nth: usize, seconds: u64, nanoseconds: u64) {
        let (at, task, attempt) = self.assigned[nth];
        let took = FromWorker::Finished { task, attempt, bytes: 1, nanoseconds };
        self.at(seconds, Event::Worker(at, took));
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
    play.beat(0, 2);
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
    // But the other one, which may not run after all.
    let asked: Vec<TaskId> = play.asked_back().iter().map(|(_, task, _)| *task).collect();
    assert_eq!(asked, [super::task(1, 1), super::task(1, 0)]);
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
    let asked_with = |bytes: u64| {
        let mut play = beside(bytes);
        assert_eq!(play.tasks()[2..], [task(2, 0), task(2, 1)]);
        play.at(0, large(2));
        let asked = play.asked_back().len();
        if asked == 1 {
            // It does not go back to its inputs.
            play.give_back(0);
            assert_eq!(play.assigned[4].0, WorkerId(2));
        }
        asked
    };
    // It would take a second, in which the network brings 100 MB.
    assert_eq!((asked_with(100_000_000), asked_with(100_000_001)), (1, 0));
}

#[test]
fn calls_of_one_kind_are_expected_to_take_as_long_as_those_before() {
    let mut play = Play::of([join(1, 1), calls(1, 1, &[Some(7)])]);
    assert_eq!(play.core_seconds(NOW), 1);
    play.took(0, 30, 30_000_000_000);
    play.at(30, Event::Collected(task(1, 0)));
    play.at(30, calls(2, 1, &[Some(7), Some(7), Some(8), None]));
    assert_eq!(play.core_seconds(seconds(30)), 30 + 30 + 1 + 1);
    // Within the target of ten seconds a core is all that one of them takes.
    play.at(30, Event::Offered(vec![offer("w", 10_000, Resources::new())]));
    assert_eq!(play.core_seconds(seconds(30)), 10 + 10 + 1 + 1);
}

#[test]
fn what_runs_for_long_tells_what_those_like_it_will_take() {
    let mut play = Play::of([join(1, 1), calls(1, 1, &[Some(7), Some(7), Some(7), None])]);
    let mut after = |seconds: u64| {
        play.beat(seconds, 1);
        play.core_seconds(self::seconds(seconds))
    };
    assert_eq!(after(1), 4);
    assert_eq!(after(3), 2 + 2 + 2 + 1);
    // By the power of two below, so that it is not news at every look.
    assert_eq!(after(63), 3 * 32 + 1);
    assert_eq!(after(64), 3 * 64 + 1);
    // What runs where nobody is heard may be over.
    assert_eq!(play.core_seconds(seconds(69)), 4);
}

#[test]
fn one_that_runs_for_long_tells_nothing_when_one_that_began_later_is_over() {
    let mut play = Play::of([join(1, 2), calls(1, 9, &[None])]);
    play.took(1, 0, 1_000_000_000);
    play.beat(8, 1);
    assert_eq!(play.core_seconds(seconds(8)), 8 * (1 + 8 + 8) / 3, "two run since the beginning");
    play.took(2, 8, 1_000_000_000);
    play.took(3, 9, 1_000_000_000);
    assert_eq!(play.core_seconds(seconds(9)), 6);
}

#[test]
fn one_that_runs_for_long_is_one_among_those_that_were_measured() {
    let mut play = Play::of([join(1, 1), calls(1, 12, &[None])]);
    for nth in 0..9 {
        play.took(nth, 0, 1_000_000_000);
    }
    assert_eq!(play.core_seconds(seconds(1)), 3);
    play.beat(11, 1);
    // Nine took a second, and one takes eight of them, or eleven.
    assert_eq!(play.core_seconds(seconds(11)), 3 * (9 + 8) / 10);
}

#[test]
fn the_kinds_that_are_remembered_are_bounded() {
    let mut play = Play::of([join(1, 1)]);
    let kinds = KINDS_MAX as u64 + 1;
    for kind in 0..kinds {
        play.at(0, calls(kind, 1, &[Some(kind)]));
        play.took(usize::try_from(kind).unwrap(), 0, 9_000_000_000);
        play.at(0, Event::Collected(task(kind, 0)));
    }
    // The first one went.
    play.at(0, calls(kinds, 1, &[Some(0), Some(1), Some(kinds - 1)]));
    assert_eq!(play.core_seconds(NOW), 1 + 9 + 9);
}

#[test]
fn nothing_waits_behind_what_takes_longer_than_it_should() {
    // Calls that took a millisecond: two workers have many of them in hand.
    let mut play = Play::of([join(1, 1), calls(1, 1, &[Some(7)])]);
    play.took(0, 0, 1_000_000);
    play.at(0, calls(2, 50, &[Some(7)]));
    play.at(0, join(2, 1));
    let at =
        |play: &Play, worker| play.assigned.iter().filter(|it| it.0 == WorkerId(worker)).count();
    let (first, second) = (at(&play, 1), at(&play, 2));
    assert!(first > 10 && second > 10, "{first} {second}");
    // The one that runs at the first worker takes three seconds, and the second worker is busy, too.
    let asked = play.asked_back().len();
    play.beat(3, 1);
    assert_eq!(
        play.asked_back().len() - asked,
        first - 2,
        "all but the one that is over and the one that runs"
    );
    for nth in asked..play.asked_back().len() {
        play.give_back(nth);
    }
    assert_eq!(at(&play, 1), first, "nothing more comes to it");
}

#[test]
fn what_waits_does_not_take_the_room_that_another_task_waits_for() {
    let large = Joining { name: "large".to_owned(), memory_bytes: 1000, ..joining(2) };
    let of = |id: u64, tasks: u32, bytes: u64| job(id, tasks, (bytes, Resources::new()));
    let mut play =
        Play::of([Event::WorkerJoined(WorkerId(1), large), of(1, 1, 900), of(2, 1, 900)]);
    // The second one waits until the first is over, and so does a core.
    assert_eq!(play.tasks(), [task(1, 0)]);
    let small = Joining { name: "small".to_owned(), memory_bytes: 500, ..joining(1) };
    play.at(0, Event::WorkerJoined(WorkerId(2), small));
    play.at(0, of(3, 2, 50));
    assert_eq!(play.tasks()[1..], [task(3, 0), task(3, 1)]);
    assert_eq!(play.asked_back(), []);
}

#[test]
fn what_nobody_asked_for_is_not_taken_back() {
    let mut play = Play::of([join(1, 1), calls(1, 1, &[None])]);
    let (at, task, attempt) = play.assigned[0];
    play.at(0, Event::Worker(at, FromWorker::Retracted { task, attempt }));
    assert_eq!(play.assigned.len(), 1);
}

#[test]
fn a_worker_with_a_free_core_is_not_asked_for_what_it_runs() {
    let mut play = Play::of([join(1, 2), calls(1, 1, &[None])]);
    play.beat(9, 1);
    assert_eq!(play.asked_back(), []);
}

#[test]
fn what_waits_behind_late_tasks_moves_with_its_inputs_when_that_takes_less_than_they_took() {
    let mut play = beside(300_000_000);
    // A second is expected of each, and three take its inputs to another worker.
    play.beat(2, 1);
    assert_eq!(play.asked_back(), []);
    play.beat(3, 1);
    let asked: Vec<TaskId> = play.asked_back().iter().map(|(_, task, _)| *task).collect();
    assert_eq!(asked, [task(2, 1)]);
}

#[test]
fn who_has_a_free_core_and_no_memory_for_what_waits_there_gets_nothing_from_others() {
    let of = |id: u64, scratch_bytes: u64| {
        let cost = Cost { output_bytes: 0, scratch_bytes, ..COST };
        let groups = vec![Group { cost, ..group(id, &[1], vec![]) }];
        Event::Submitted { job: JobId(id), groups, targets: vec![GroupId(id)], is_kept: false }
    };
    let worker = |id: u64| {
        let name = format!("w{id}");
        Event::WorkerJoined(WorkerId(id), Joining { name, memory_bytes: 100, ..joining(3) })
    };
    // At each a long one runs with two short ones, and one waits that needs the memory of the long one.
    let mut play = Play::of([worker(1), worker(2)]);
    for id in 0..8 {
        let scratch_bytes = if (2..6).contains(&id) { 0 } else { 60 };
        play.at(0, of(id, scratch_bytes));
    }
    let places = |play: &Play| play.assigned.iter().map(|it| it.0.0).collect::<Vec<u64>>();
    assert_eq!(places(&play), [1, 2, 1, 2, 1, 2, 1, 2]);
    for nth in 2..6 {
        play.took(nth, 0, 1);
    }
    play.at(0, of(9, 10));
    for worker in [1, 2] {
        play.beat(1, worker);
    }
    assert_eq!(play.asked_back(), []);
}
