mod waiting;

use std::sync::Arc;
use std::time::Duration;

use super::place::READY_MAX;
use super::{Demand, Effect, Event, Joining, LOSSES_MAX, Offer, SILENCE_MAX, Scheduler};
use crate::message::{Attempt, Failure, FromWorker, ToWorker};
use crate::{
    AxisRelation, Cost, Group, GroupId, Input, JobId, Relation, Resources, Space, TaskId, Time,
    WorkerId,
};

const NOW: Time = Time(Duration::ZERO);

const COST: Cost = Cost { output_bytes: 100, scratch_bytes: 0, nanoseconds: 1_000_000_000 };

fn group(id: u64, extents: &[u32], inputs: Vec<Input>) -> Group {
    let space = Space::new(extents.to_vec()).unwrap();
    let (name, program) = (format!("group {id}"), Arc::from([]));
    let resources = Resources::new();
    let (id, kind) = (GroupId(id), None);
    Group { id, name, space, inputs, cost: COST, resources, retries: 0, kind, program }
}

/// `leaves` tasks and one that needs them all.
fn tree(leaves: u32) -> Event {
    let all = Input { group: GroupId(1), relation: Relation(vec![AxisRelation::All]) };
    let groups = vec![group(1, &[leaves], vec![]), group(2, &[], vec![all])];
    Event::Submitted { job: JobId(1), groups, targets: vec![GroupId(2)], is_kept: false }
}

fn joining(cores: u32) -> Joining {
    Joining {
        name: "w".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        cores,
        memory_bytes: 10_000,
        resources: Resources::new(),
        incarnation: 1,
    }
}

fn join(id: u64, cores: u32) -> Event {
    Event::WorkerJoined(WorkerId(id), Joining { name: format!("w{id}"), ..joining(cores) })
}

fn task(group: u64, index: u32) -> TaskId {
    TaskId { group: GroupId(group), index }
}

#[derive(Default)]
struct Play {
    scheduler: Scheduler,
    assigned: Vec<(WorkerId, TaskId, Attempt)>,
    others: Vec<Effect>,
}

impl Play {
    fn of(events: impl IntoIterator<Item = Event>) -> Self {
        let mut play = Self::default();
        for event in events {
            play.at(0, event);
        }
        play
    }

    fn at(&mut self, seconds: u64, event: Event) {
        self.scheduler.handle_event(event, Time(Duration::from_secs(seconds)));
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.scheduler.poll_effect() {
            match &effect {
                Effect::Send(to, ToWorker::Assign(it)) => {
                    self.assigned.push((*to, it.task, it.attempt));
                }
                Effect::Send(_, ToWorker::Define(_) | ToWorker::Peer { .. }) => (),
                Effect::Send(..)
                | Effect::Disconnect(..)
                | Effect::JobDone(_)
                | Effect::JobFailed(..)
                | Effect::Released(_)
                | Effect::Kept(_) => self.others.push(effect),
            }
        }
    }

    fn finish(&mut self, nth: usize) {
        let (worker, task, attempt) = self.assigned[nth];
        let said = FromWorker::Finished { task, attempt, bytes: 100, nanoseconds: 1 };
        self.at(0, Event::Worker(worker, said));
    }

    fn tasks(&self) -> Vec<TaskId> {
        self.assigned.iter().map(|(_, task, _)| *task).collect()
    }
}

#[test]
fn a_job_runs_from_its_leaves_to_its_target_and_is_delivered() {
    let mut play = Play::of([join(1, 1), tree(2)]);
    play.finish(0);
    play.finish(1);
    play.finish(2);
    assert_eq!(play.tasks(), [task(1, 0), task(1, 1), task(2, 0)]);
    play.at(0, Event::Collected(task(2, 0)));
    assert!(play.others.contains(&Effect::JobDone(JobId(1))), "{:?}", play.others);
    assert_eq!(play.scheduler.demand(NOW), []);
}

#[test]
fn an_answer_from_an_attempt_that_no_longer_counts_changes_nothing() {
    let mut play = Play::of([join(1, 1), tree(1)]);
    let (worker, task, attempt) = play.assigned[0];
    let stale = Attempt(attempt.0 - 1);
    let said = FromWorker::Finished { task, attempt: stale, bytes: 100, nanoseconds: 1 };
    play.at(0, Event::Worker(worker, said));
    assert_eq!(play.tasks().len(), 1, "the target must wait for the attempt that counts");
}

#[test]
fn the_chunks_of_a_lost_worker_are_made_again_where_they_are_needed() {
    let mut play = Play::of([join(1, 1), tree(2)]);
    play.finish(0);
    play.at(0, join(2, 1));
    play.at(0, Event::WorkerLost(WorkerId(1)));
    let again: Vec<TaskId> = play
        .assigned
        .iter()
        .filter(|(worker, ..)| *worker == WorkerId(2))
        .map(|(_, task, _)| *task)
        .collect();
    assert!(again.contains(&task(1, 0)) && again.contains(&task(1, 1)), "{again:?}");
}

#[test]
fn a_task_that_keeps_losing_its_worker_fails_its_job_by_name() {
    let mut play = Play::of([tree(1)]);
    for id in 1..=4 {
        play.at(0, join(id, 1));
        play.at(0, Event::WorkerLost(WorkerId(id)));
    }
    let failed = play.others.iter().find_map(|effect| {
        if let Effect::JobFailed(_, error) = effect { Some(error.error.as_str()) } else { None }
    });
    assert!(failed.is_some_and(|error| error.contains("task 1.0 was lost")), "{failed:?}");
}

#[test]
fn a_silent_worker_is_disconnected_when_its_time_is_up() {
    let mut play = Play::of([join(1, 1), tree(1)]);
    let (due, why) = play.scheduler.poll_timeout().unwrap();
    assert_eq!((due, why), (Time(super::SILENCE_MAX), "a worker is silent"));
    play.scheduler.handle_timeout(due);
    play.drain();
    assert!(matches!(play.others[..], [Effect::Disconnect(WorkerId(1), _)]));
}

#[test]
fn a_worker_that_holds_nothing_is_released_and_gets_no_more_work() {
    let mut play = Play::of([join(1, 1)]);
    let deadline = Time(Duration::from_mins(1));
    play.at(0, Event::Retire(WorkerId(1), deadline));
    assert_eq!(play.others, [Effect::Released(WorkerId(1))]);
    play.at(0, tree(1));
    assert_eq!(play.assigned, []);
}

#[test]
fn a_worker_that_was_released_says_so_to_whoever_asks_again() {
    let mut play = Play::of([join(1, 1)]);
    for _ in 0..2 {
        play.at(0, Event::Retire(WorkerId(1), Time::default()));
    }
    assert_eq!(play.others, [Effect::Released(WorkerId(1)), Effect::Released(WorkerId(1))]);
}

#[test]
fn a_released_worker_that_nobody_takes_away_works_on() {
    let mut play = Play::of([join(1, 1)]);
    play.at(0, Event::Retire(WorkerId(1), Time::default()));
    play.at(0, tree(1));
    // Who asks again hears of it, and is waited for.
    play.at(0, Event::Retire(WorkerId(1), Time(SILENCE_MAX)));
    // It lives meanwhile.
    for seconds in 1..30 {
        play.at(seconds, Event::Worker(WorkerId(1), FromWorker::Heartbeat));
    }
    assert_eq!(play.assigned, []);
    play.scheduler.handle_timeout(Time(super::RELEASED_MAX));
    play.drain();
    assert!(!play.assigned.is_empty());
}

#[test]
fn asking_again_does_not_put_off_the_deadline() {
    let mut play = Play::of([join(1, 1), tree(1)]);
    for seconds in 0..5 {
        play.at(seconds, Event::Retire(WorkerId(1), Time(Duration::from_secs(seconds + 3))));
    }
    assert_eq!(play.others, [Effect::Kept(WorkerId(1))]);
}

#[test]
fn a_worker_that_is_not_empty_in_time_works_on() {
    let mut play = Play::of([join(1, 1), tree(1)]);
    let deadline = Time(Duration::from_secs(5));
    play.at(0, Event::Retire(WorkerId(1), deadline));
    play.scheduler.handle_timeout(deadline);
    play.drain();
    assert_eq!(play.others, [Effect::Kept(WorkerId(1))]);
}

#[test]
fn demand_counts_what_waits_and_what_runs() {
    let play = Play::of([tree(9)]);
    let all = Demand { fits: vec![], tasks: 10, assigned: 0, nanoseconds: 10_000_000_000 };
    assert_eq!(play.scheduler.demand(NOW), [all]);
}

#[test]
fn work_in_hand_stays_within_the_memory_of_a_worker() {
    let small = Joining { memory_bytes: 250, ..joining(8) };
    let groups = vec![group(1, &[9], vec![])];
    let nine =
        Event::Submitted { job: JobId(1), groups, targets: vec![GroupId(1)], is_kept: false };
    let play = Play::of([Event::WorkerJoined(WorkerId(1), small), nine]);
    assert_eq!(play.assigned.len(), 2);
}

#[test]
fn groups_that_make_no_job_are_refused() {
    let stray = Input { group: GroupId(9), relation: Relation(vec![]) };
    let groups = vec![group(1, &[2], vec![stray])];
    let job = Event::Submitted { job: JobId(1), groups, targets: vec![GroupId(1)], is_kept: false };
    let play = Play::of([job]);
    assert!(matches!(play.others[..], [Effect::JobFailed(JobId(1), _)]));
}

fn failed(nth: u32, is_crash: bool) -> FromWorker {
    let failure = Failure { error: "no".to_owned(), exception: vec![7], is_crash };
    FromWorker::Failed { task: task(1, 0), attempt: Attempt(nth), failure }
}

fn one(retries: u32) -> Event {
    let groups = vec![Group { retries, ..group(1, &[1], vec![]) }];
    Event::Submitted { job: JobId(1), groups, targets: vec![GroupId(1)], is_kept: false }
}

#[test]
fn a_program_that_fails_is_tried_again_as_often_as_it_may() {
    let mut play = Play::of([join(1, 1), one(2)]);
    for nth in 1..=3 {
        assert_eq!(play.assigned.len(), nth);
        let nth = u32::try_from(nth).unwrap();
        play.at(0, Event::Worker(WorkerId(1), failed(nth, false)));
    }
    let failure =
        Failure { error: "no (tried 3 times)".to_owned(), exception: vec![7], is_crash: false };
    assert!(play.others.contains(&Effect::JobFailed(JobId(1), failure)));
}

#[test]
fn a_process_that_crashes_is_started_again_even_without_retries() {
    let mut play = Play::of([join(1, 1), one(0)]);
    for nth in 1..=LOSSES_MAX {
        play.at(0, Event::Worker(WorkerId(1), failed(nth, true)));
    }
    assert_eq!(play.assigned.len(), 4);
    play.at(0, Event::Worker(WorkerId(1), failed(4, true)));
    assert!(play.others.iter().any(|it| matches!(it, Effect::JobFailed(..))));
}

#[test]
fn a_task_that_fits_no_worker_is_refused_before_it_starts_with_the_numbers() {
    let small = Event::WorkerJoined(WorkerId(1), Joining { memory_bytes: 1000, ..joining(1) });
    let nobody_else = Event::Offered(vec![]);
    for events in [[nobody_else.clone(), small.clone(), tree(10)], [nobody_else, tree(10), small]] {
        let play = Play::of(events);
        let [Effect::JobFailed(JobId(1), failure)] = &play.others[..] else {
            panic!("{:?}", play.others)
        };
        assert_eq!(
            failure.error,
            "group 2: one task needs 1.1 KiB of memory (1000 bytes for inputs, 100 bytes for its \
             output, 0 bytes beside them), and the largest worker has 1000 bytes for tasks and \
             chunks; use smaller chunks, or workers with more memory"
        );
        assert_eq!(play.assigned, []);
    }
}

/// Three chunks that are kept, and a job that needs them all.
fn kept_and_used() -> [Event; 2] {
    let kept = vec![group(1, &[3], vec![])];
    let all = Input { group: GroupId(1), relation: Relation(vec![AxisRelation::All]) };
    let user = vec![group(2, &[], vec![all])];
    [
        Event::Submitted { job: JobId(1), groups: kept, targets: vec![GroupId(1)], is_kept: true },
        Event::Submitted { job: JobId(2), groups: user, targets: vec![GroupId(2)], is_kept: false },
    ]
}

#[test]
fn what_is_kept_stays_until_its_job_and_every_user_are_over() {
    let [kept, user] = kept_and_used();
    let mut play = Play::of([join(1, 3), kept]);
    (0..3).for_each(|nth| play.finish(nth));
    assert_eq!(play.others, [Effect::JobDone(JobId(1))]);
    play.at(0, user);
    assert_eq!(play.tasks().last(), Some(&task(2, 0)), "nothing is made again");
    play.at(0, Event::Cancelled(JobId(1)));
    assert_eq!(play.others.len(), 1, "a user still needs it");
    play.finish(3);
    play.at(0, Event::Collected(task(2, 0)));
    let forget = |id| Effect::Send(WorkerId(1), ToWorker::Forget(vec![GroupId(id)]));
    assert!(play.others.contains(&Effect::JobDone(JobId(2))) && play.others.contains(&forget(1)));
    assert_eq!(play.scheduler.demand(NOW), []);
}

#[test]
fn what_is_kept_is_made_again_when_its_worker_is_lost() {
    let [kept, _] = kept_and_used();
    let mut play = Play::of([join(1, 3), kept]);
    (0..3).for_each(|nth| play.finish(nth));
    play.at(0, join(2, 3));
    play.at(0, Event::WorkerLost(WorkerId(1)));
    assert_eq!(play.assigned.len(), 6);
    assert!(play.assigned[3..].iter().all(|(worker, ..)| *worker == WorkerId(2)));
}

#[test]
fn a_failure_of_what_is_kept_fails_its_users_too() {
    let [kept, user] = kept_and_used();
    let mut play = Play::of([join(1, 3), kept, user]);
    play.at(0, Event::Worker(WorkerId(1), failed(1, false)));
    let failed: Vec<JobId> = play
        .others
        .iter()
        .filter_map(|it| if let Effect::JobFailed(job, _) = it { Some(*job) } else { None })
        .collect();
    assert_eq!(failed, [JobId(2), JobId(1)]);
}

#[test]
fn chunks_of_another_job_that_are_not_kept_are_no_input() {
    let [_, user] = kept_and_used();
    let play = Play::of([tree(3), user]);
    assert!(matches!(play.others[..], [Effect::JobFailed(JobId(2), _)]));
}

fn named(id: u64, name: &str, incarnation: u64) -> Event {
    let joining = Joining { name: name.to_owned(), incarnation, ..joining(1) };
    Event::WorkerJoined(WorkerId(id), joining)
}

#[test]
fn of_two_connections_of_one_worker_the_later_one_counts() {
    let mut play = Play::of([named(1, "w", 5), tree(1)]);
    assert_eq!(play.assigned[0].0, WorkerId(1));
    play.at(0, named(2, "w", 5));
    assert!(play.others.contains(&Effect::Disconnect(WorkerId(1), "it has come back")));
    let (worker, again, _) = play.assigned[1];
    assert_eq!((worker, again), (WorkerId(2), task(1, 0)));
    play.at(0, named(3, "w", 4));
    assert!(play.others.contains(&Effect::Disconnect(WorkerId(3), "a later one has its name")));
    assert_eq!(play.scheduler.workers().map(|(id, _)| id).collect::<Vec<_>>(), [WorkerId(2)]);
}

#[test]
fn a_scheduler_that_stood_still_gives_everybody_time_to_be_heard() {
    let mut play = Play::of([join(1, 1), join(2, 1)]);
    let late = SILENCE_MAX + Duration::from_secs(30);
    play.scheduler.handle_timeout(Time(late));
    play.at(32 + SILENCE_MAX.as_secs(), Event::Worker(WorkerId(1), FromWorker::Heartbeat));
    assert_eq!(play.others, []);
    play.scheduler.handle_timeout(Time(late + SILENCE_MAX / 2));
    play.drain();
    assert_eq!(play.others, [Effect::Disconnect(WorkerId(2), "it was silent for too long")]);
}

#[test]
fn work_that_comes_while_every_worker_is_to_go_keeps_those_that_hold_something() {
    let [kept, user] = kept_and_used();
    let mut play = Play::of([join(1, 3), kept]);
    (0..3).for_each(|nth| play.finish(nth));
    play.at(0, Event::Retire(WorkerId(1), Time(Duration::from_secs(100))));
    assert!(!play.others.contains(&Effect::Kept(WorkerId(1))));
    play.at(1, user);
    assert!(play.others.contains(&Effect::Kept(WorkerId(1))));
    assert_eq!(play.tasks().last(), Some(&task(2, 0)));
}

#[test]
fn a_task_that_only_waited_on_a_lost_worker_is_not_blamed() {
    let groups = vec![group(1, &[2], vec![])];
    let two = Event::Submitted { job: JobId(1), groups, targets: vec![GroupId(1)], is_kept: false };
    let mut play = Play::of([two]);
    for id in 1..=u64::from(LOSSES_MAX) {
        play.at(0, join(id, 1));
        // Both were given to it, and it has one core.
        assert_eq!(play.scheduler.demand(NOW)[0].assigned, 2);
        play.at(0, Event::WorkerLost(WorkerId(id)));
    }
    play.at(0, join(9, 1));
    let first = play.assigned.len() - 2;
    assert_eq!(play.tasks()[first..], [task(1, 0), task(1, 1)]);
    play.finish(first);
    // The second one has never run: it may lose as many workers again.
    play.at(0, Event::WorkerLost(WorkerId(9)));
    assert!(!play.others.iter().any(|it| matches!(it, Effect::JobFailed(..))), "{:?}", play.others);
}

#[test]
fn inputs_that_others_hold_count_where_a_task_goes() {
    let same =
        Input { group: GroupId(1), relation: Relation(vec![AxisRelation::Same { axis: 0 }]) };
    let groups = vec![group(1, &[4], vec![]), group(2, &[4], vec![same])];
    let job = Event::Submitted { job: JobId(1), groups, targets: vec![GroupId(2)], is_kept: false };
    let mut play = Play::of([join(1, 4), job]);
    // A second worker that takes two such tasks, and only one with an input from elsewhere.
    let small = Joining { name: "small".to_owned(), memory_bytes: 250, ..joining(4) };
    play.at(0, Event::Retire(WorkerId(1), Time(Duration::from_secs(100))));
    play.at(0, Event::WorkerJoined(WorkerId(2), small));
    (0..4).for_each(|nth| play.finish(nth));
    let at_small = play.assigned.iter().filter(|(at, ..)| *at == WorkerId(2)).count();
    assert_eq!(at_small, 1, "{:?}", play.assigned);
}

fn gpus(count: u64) -> Resources {
    Resources::from([("gpu".to_owned(), count)])
}

fn join_with(id: u64, memory_bytes: u64, resources: Resources) -> Event {
    let joining = Joining { name: format!("w{id}"), memory_bytes, resources, ..joining(8) };
    Event::WorkerJoined(WorkerId(id), joining)
}

/// A job of so many tasks that take so much each.
fn job(id: u64, tasks: u32, (output_bytes, resources): (u64, Resources)) -> Event {
    let cost = Cost { output_bytes, ..COST };
    let groups = vec![Group { cost, resources, ..group(id, &[tasks], vec![]) }];
    Event::Submitted { job: JobId(id), groups, targets: vec![GroupId(id)], is_kept: false }
}

fn offer(name: &str, memory_bytes: u64, resources: Resources) -> Offer {
    let target = Duration::from_secs(10);
    Offer { name: name.to_owned(), memory_bytes, resources, target }
}

#[test]
fn tasks_take_no_more_of_a_resource_than_their_worker_has() {
    let mut play = Play::of([
        join_with(1, 10_000, Resources::new()),
        join_with(2, 10_000, gpus(3)),
        job(1, 5, (100, gpus(2))),
    ]);
    assert_eq!(play.assigned.len(), 1);
    for nth in 0..5 {
        play.finish(nth);
    }
    assert!(play.assigned.iter().all(|(at, ..)| *at == WorkerId(2)), "{:?}", play.assigned);
    assert_eq!(play.assigned.len(), 5);
}

#[test]
fn what_waits_for_another_kind_of_worker_holds_up_nothing_else() {
    let mut play = Play::of([
        Event::Offered(vec![offer("plain", 10_000, Resources::new()), offer("gpu", 200, gpus(1))]),
        join_with(1, 10_000, Resources::new()),
        job(1, 100_000, (100, gpus(1))),
        job(2, 3, (100, Resources::new())),
    ]);
    assert_eq!(play.tasks(), [task(2, 0), task(2, 1), task(2, 2)]);
    assert!(play.scheduler.tasks.len() <= READY_MAX + 3, "{}", play.scheduler.tasks.len());
    play.at(0, join_with(2, 200, gpus(1)));
    assert_eq!(play.assigned.last().map(|(at, it, _)| (*at, *it)), Some((WorkerId(2), task(1, 0))));
}

#[test]
fn a_task_waits_for_a_worker_that_is_large_enough() {
    let offers = vec![offer("small", 100, gpus(0)), offer("large", 1000, gpus(0))];
    let mut play = Play::of([
        Event::Offered(offers),
        join_with(1, 100, Resources::new()),
        job(1, 1, (900, Resources::new())),
    ]);
    assert_eq!((&play.assigned[..], &play.others[..]), (&[][..], &[][..]));
    play.at(0, join_with(2, 1000, Resources::new()));
    assert_eq!(play.assigned[0].0, WorkerId(2));
}

#[test]
fn no_later_task_takes_the_room_that_an_earlier_one_waits_for() {
    let mut play = Play::of([
        join_with(1, 100, Resources::new()),
        join_with(2, 1000, Resources::new()),
        job(1, 2, (900, Resources::new())),
        job(2, 30, (10, Resources::new())),
    ]);
    let at_large = |play: &Play| play.assigned.iter().filter(|it| it.0 == WorkerId(2)).count();
    assert_eq!((at_large(&play), play.assigned.len()), (1, 11));
    play.finish(0);
    play.at(0, Event::Collected(task(1, 0)));
    let (at, next, _) = play.assigned[11];
    assert_eq!((at, next), (WorkerId(2), task(1, 1)));
}

#[test]
fn demand_tells_which_kinds_of_workers_can_take_it() {
    let plain = offer("plain", 500, Resources::new());
    let play = Play::of([
        Event::Offered(vec![plain, offer("gpu", 1000, gpus(1))]),
        job(1, 3, (100, Resources::new())),
        job(2, 2, (800, Resources::new())),
        job(3, 1, (100, gpus(1))),
    ]);
    let demand = play.scheduler.demand(NOW);
    let told: Vec<(String, u64)> = demand.iter().map(|it| (it.fits.join(" "), it.tasks)).collect();
    assert_eq!(told, [("plain gpu".to_owned(), 3), ("gpu".to_owned(), 3)]);
}

#[test]
fn what_no_kind_of_worker_has_is_refused_by_name() {
    let offers = Event::Offered(vec![offer("plain", 500, gpus(1))]);
    for events in [[offers.clone(), job(1, 1, (100, gpus(2)))], [job(1, 1, (100, gpus(2))), offers]]
    {
        let play = Play::of(events);
        let [Effect::JobFailed(JobId(1), failure)] = &play.others[..] else {
            panic!("{:?}", play.others)
        };
        assert_eq!(
            failure.error,
            "group 1: one task needs gpu: 2, and no worker that is here or may come has it; use a \
             cluster with a worker group whose resources have it"
        );
    }
}

#[test]
fn nothing_is_refused_before_it_is_known_who_may_come() {
    let mut play = Play::of([join_with(1, 500, Resources::new()), job(1, 1, (100, gpus(1)))]);
    assert_eq!(play.others, []);
    play.at(0, Event::Offered(vec![offer("plain", 500, Resources::new())]));
    assert!(matches!(play.others[..], [Effect::JobFailed(JobId(1), _)]), "{:?}", play.others);
}

#[test]
fn what_is_done_needs_no_worker_any_more() {
    let large = offer("large", 1000, Resources::new());
    let mut play = Play::of([
        Event::Offered(vec![large]),
        join_with(1, 1000, Resources::new()),
        Event::Submitted {
            job: JobId(1),
            groups: vec![
                Group { cost: Cost { scratch_bytes: 800, ..COST }, ..group(1, &[1], vec![]) },
                group(2, &[9], vec![]),
            ],
            targets: vec![GroupId(1), GroupId(2)],
            is_kept: false,
        },
    ]);
    play.finish(0);
    play.at(0, Event::Offered(vec![offer("small", 200, Resources::new())]));
    play.at(0, join_with(2, 200, Resources::new()));
    assert!(!play.others.iter().any(|it| matches!(it, Effect::JobFailed(..))), "{:?}", play.others);
}

#[test]
fn an_empty_worker_goes_though_work_waits_that_it_cannot_take() {
    let retire = |id| Event::Retire(WorkerId(id), Time(Duration::from_secs(100)));
    let mut play = Play::of([
        Event::Offered(vec![offer("plain", 500, gpus(0)), offer("gpu", 500, gpus(1))]),
        join_with(1, 500, Resources::new()),
        job(1, 1, (100, gpus(1))),
        retire(1),
    ]);
    assert_eq!(play.others, [Effect::Released(WorkerId(1))]);
    // Another that can take it works on, whoever stays beside it.
    play.at(0, join_with(2, 500, Resources::new()));
    play.at(0, join_with(3, 500, gpus(1)));
    play.finish(0);
    play.at(0, retire(3));
    play.at(0, job(2, 1, (100, gpus(1))));
    assert_eq!(play.assigned.last().map(|it| it.0), Some(WorkerId(3)));
    assert!(play.others.contains(&Effect::Kept(WorkerId(3))), "{:?}", play.others);
}
