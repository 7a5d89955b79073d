use std::sync::Arc;

use super::{Effect, Event, RunId, SpillId, Worker};
use crate::message::{Assignment, Attempt, Failure, FromWorker, ToWorker};
use crate::{Cost, Group, GroupId, Resources, Space, TaskId, WorkerId};

const THERE: WorkerId = WorkerId(2);

fn chunk(index: u32) -> TaskId {
    TaskId { group: GroupId(1), index }
}

fn worker(cores: u32, memory_bytes: u64) -> Worker {
    let mut worker = Worker::new(cores, memory_bytes);
    define(&mut worker);
    worker
}

fn define(worker: &mut Worker) {
    let cost = Cost { output_bytes: 10, scratch_bytes: 5, nanoseconds: 1 };
    let space = Space::new(vec![100]).unwrap();
    let (name, program) = ("group".to_owned(), Arc::from([]));
    let resources = Resources::new();
    let (id, inputs, retries, kind) = (GroupId(1), vec![], 0, None);
    let group = Group { id, name, space, inputs, cost, resources, retries, kind, program };
    worker.handle_event(Event::Scheduler(ToWorker::Define(vec![group])));
    effects(worker);
}

fn effects(worker: &mut Worker) -> Vec<Effect> {
    std::iter::from_fn(|| worker.poll_effect()).collect()
}

fn assign(worker: &mut Worker, task: TaskId, attempt: u32, inputs: &[TaskId]) -> Vec<Effect> {
    let inputs = inputs.iter().map(|input| (*input, THERE)).collect();
    let assignment = Assignment { task, attempt: Attempt(attempt), inputs };
    worker.handle_event(Event::Scheduler(ToWorker::Assign(assignment)));
    effects(worker)
}

fn executed(worker: &mut Worker, run: u64) -> Vec<Effect> {
    worker.handle_event(Event::Executed { run: RunId(run), bytes: 10, nanoseconds: 3 });
    effects(worker)
}

fn execute(run: u64, task: TaskId, inputs: &[TaskId]) -> Effect {
    Effect::Execute { run: RunId(run), task, inputs: inputs.to_vec() }
}

fn keep(run: u64, task: TaskId) -> Effect {
    Effect::Keep { run: RunId(run), task }
}

fn finished(task: TaskId, attempt: u32, nanoseconds: u64) -> Effect {
    let attempt = Attempt(attempt);
    Effect::Say(FromWorker::Finished { task, attempt, bytes: 10, nanoseconds })
}

#[test]
fn a_task_runs_when_its_inputs_are_here_and_they_go_when_it_is_done() {
    let mut worker = worker(1, 1000);
    let fetch = assign(&mut worker, chunk(1), 1, &[chunk(0)]);
    assert_eq!(fetch, [Effect::Fetch { chunk: chunk(0), holder: THERE }]);
    worker.handle_event(Event::Fetched { chunk: chunk(0), bytes: 10 });
    assert_eq!(effects(&mut worker), [execute(0, chunk(1), &[chunk(0)])]);
    let done = executed(&mut worker, 0);
    assert_eq!(done, [Effect::Drop(chunk(0)), keep(0, chunk(1)), finished(chunk(1), 1, 3)]);
    assert_eq!(worker.taken_bytes(), 10);
}

#[test]
fn an_assignment_that_comes_twice_runs_once() {
    let mut worker = worker(2, 1000);
    assert_eq!(assign(&mut worker, chunk(1), 1, &[]).len(), 1);
    assert_eq!(assign(&mut worker, chunk(1), 1, &[]), []);
    executed(&mut worker, 0);
    assert_eq!(assign(&mut worker, chunk(1), 1, &[]), [finished(chunk(1), 1, 0)]);
}

#[test]
fn a_chunk_of_a_later_attempt_survives_a_late_free() {
    let mut worker = worker(1, 1000);
    assign(&mut worker, chunk(1), 2, &[]);
    executed(&mut worker, 0);
    let free = |attempt| Event::Scheduler(ToWorker::Free(vec![(chunk(1), Attempt(attempt))]));
    worker.handle_event(free(1));
    assert_eq!(effects(&mut worker), []);
    worker.handle_event(free(2));
    assert_eq!(effects(&mut worker), [Effect::Drop(chunk(1))]);
    assert_eq!(worker.taken_bytes(), 0);
}

#[test]
fn tasks_run_only_while_their_memory_is_free() {
    let mut worker = worker(4, 30);
    assign(&mut worker, chunk(1), 1, &[]);
    assign(&mut worker, chunk(2), 1, &[]);
    assert_eq!(assign(&mut worker, chunk(3), 1, &[]), []);
    let done = executed(&mut worker, 0);
    assert_eq!(
        done,
        [keep(0, chunk(1)), finished(chunk(1), 1, 3)],
        "the finished chunk still takes its bytes"
    );
    let free = ToWorker::Free(vec![(chunk(1), Attempt(1))]);
    worker.handle_event(Event::Scheduler(free));
    assert_eq!(effects(&mut worker), [Effect::Drop(chunk(1)), execute(2, chunk(3), &[])]);
}

#[test]
fn an_input_that_cannot_be_had_gives_its_tasks_back() {
    let mut worker = worker(1, 1000);
    assign(&mut worker, chunk(1), 7, &[chunk(0)]);
    worker.handle_event(Event::FetchFailed { chunk: chunk(0), holder: THERE });
    let said = FromWorker::InputMissing {
        task: chunk(1),
        attempt: Attempt(7),
        input: chunk(0),
        holder: THERE,
    };
    assert_eq!(effects(&mut worker), [Effect::Say(said)]);
}

fn retract(worker: &mut Worker, task: TaskId, attempt: u32) -> Vec<Effect> {
    worker.handle_event(Event::Scheduler(ToWorker::Retract(task, Attempt(attempt))));
    effects(worker)
}

fn retracted(task: TaskId, attempt: u32) -> Effect {
    Effect::Say(FromWorker::Retracted { task, attempt: Attempt(attempt) })
}

#[test]
fn what_was_given_back_and_comes_again_runs_once_however_many_cores_are_free() {
    let mut worker = worker(2, 1000);
    for index in 1..=3 {
        assign(&mut worker, chunk(index), 1, &[]);
    }
    assert_eq!(retract(&mut worker, chunk(3), 1), [retracted(chunk(3), 1)]);
    assign(&mut worker, chunk(3), 2, &[]);
    assert!(executed(&mut worker, 0).contains(&execute(2, chunk(3), &[])));
    assert_eq!(executed(&mut worker, 1), [keep(1, chunk(2)), finished(chunk(2), 1, 3)]);
}

#[test]
fn what_waits_is_given_back_and_what_runs_is_not() {
    let mut worker = worker(1, 1000);
    assign(&mut worker, chunk(1), 1, &[]);
    assign(&mut worker, chunk(2), 2, &[]);
    let runs = FromWorker::Begun { task: chunk(1), attempt: Attempt(1) };
    assert_eq!(retract(&mut worker, chunk(1), 1), [Effect::Say(runs)]);
    assert_eq!(retract(&mut worker, chunk(2), 1), [], "that was another try");
    assert_eq!(retract(&mut worker, chunk(2), 2), [retracted(chunk(2), 2)]);
    assert_eq!(retract(&mut worker, chunk(2), 2), []);
    // It comes again, and runs once.
    assign(&mut worker, chunk(2), 3, &[]);
    let next = [keep(0, chunk(1)), finished(chunk(1), 1, 3), execute(1, chunk(2), &[])];
    assert_eq!(executed(&mut worker, 0), next);
    assert_eq!(executed(&mut worker, 1), [keep(1, chunk(2)), finished(chunk(2), 3, 3)]);
    assert_eq!(worker.taken_bytes(), 20);
}

#[test]
fn an_input_of_what_was_given_back_leaves_nothing_behind() {
    let mut worker = worker(1, 1000);
    assign(&mut worker, chunk(2), 1, &[chunk(0), chunk(1)]);
    worker.handle_event(Event::Fetched { chunk: chunk(0), bytes: 10 });
    effects(&mut worker);
    let given = [Effect::Drop(chunk(0)), retracted(chunk(2), 1)];
    assert_eq!(retract(&mut worker, chunk(2), 1), given);
    worker.handle_event(Event::Fetched { chunk: chunk(1), bytes: 10 });
    assert_eq!(effects(&mut worker), [Effect::Drop(chunk(1))]);
    assert_eq!(worker.taken_bytes(), 0);
}

#[test]
fn what_belongs_to_a_forgotten_group_leaves_nothing_behind() {
    let mut worker = worker(1, 1000);
    assign(&mut worker, chunk(1), 1, &[]);
    executed(&mut worker, 0);
    assign(&mut worker, chunk(2), 1, &[]);
    worker.handle_event(Event::Scheduler(ToWorker::Forget(vec![GroupId(1)])));
    effects(&mut worker);
    assert_eq!(executed(&mut worker, 1), []);
    assert_eq!(worker.taken_bytes(), 0);
}

#[test]
fn a_task_that_runs_for_a_job_that_is_over_is_interrupted() {
    let mut worker = worker(1, 1000);
    assign(&mut worker, chunk(0), 1, &[]);
    assign(&mut worker, chunk(1), 2, &[]);
    worker.handle_event(Event::Scheduler(ToWorker::Forget(vec![GroupId(1)])));
    let forgotten = effects(&mut worker);
    assert_eq!(forgotten, [Effect::Interrupt(RunId(0)), Effect::Undefine(vec![GroupId(1)])]);
}

#[test]
fn an_execution_from_before_a_new_connection_counts_for_nobody() {
    let mut worker = worker(2, 1000);
    assign(&mut worker, chunk(0), 1, &[]);
    worker.handle_event(Event::Reconnected);
    effects(&mut worker);
    define(&mut worker);
    assert_eq!(assign(&mut worker, chunk(0), 1, &[]), [execute(1, chunk(0), &[])]);
    assert_eq!(executed(&mut worker, 0), []);
    assert_eq!(executed(&mut worker, 1), [keep(1, chunk(0)), finished(chunk(0), 1, 3)]);
    assert_eq!(worker.taken_bytes(), 10);
}

/// A worker with one core that holds chunks 1 to 3 of ten bytes each and may have 30 bytes.
fn full() -> Worker {
    let mut worker = worker(1, 1000);
    for index in 1..=3 {
        assign(&mut worker, chunk(index), 1, &[]);
        executed(&mut worker, u64::from(index) - 1);
    }
    worker.memory_bytes = 30;
    worker
}

fn spilled(worker: &mut Worker, spill: u64, is_on_disk: bool) -> Vec<Effect> {
    worker.handle_event(Event::Spilled { spill: SpillId(spill), is_on_disk });
    effects(worker)
}

fn spill(nth: u64, chunk: TaskId) -> Effect {
    Effect::Spill { spill: SpillId(nth), chunk }
}

fn on_disk(bytes: u64) -> Effect {
    Effect::Say(FromWorker::OnDisk { bytes })
}

#[test]
fn chunks_go_to_disk_before_a_task_that_would_not_fit_runs() {
    let mut worker = full();
    // Its input stays: 15 bytes and three quarters of 30 leave room for nothing else.
    let leaving = assign(&mut worker, chunk(4), 1, &[chunk(2)]);
    assert_eq!(leaving, [spill(0, chunk(1)), spill(1, chunk(3))]);
    assert_eq!(spilled(&mut worker, 0, true), [on_disk(10)]);
    let run = execute(3, chunk(4), &[chunk(2)]);
    assert_eq!(spilled(&mut worker, 1, true), [run, on_disk(20)]);
    assert_eq!((worker.taken_bytes(), worker.disk_bytes()), (25, 20));
}

#[test]
fn a_task_that_reads_its_input_from_disk_counts_it() {
    let mut worker = full();
    assign(&mut worker, chunk(4), 1, &[chunk(2)]);
    spilled(&mut worker, 0, true);
    spilled(&mut worker, 1, true);
    executed(&mut worker, 3);
    worker.memory_bytes = 1000;
    let taken = worker.taken_bytes();
    assign(&mut worker, chunk(5), 1, &[chunk(1)]);
    assert_eq!(worker.taken_bytes(), taken + 15 + 10);
}

#[test]
fn a_task_runs_over_the_limit_when_nothing_can_leave() {
    let mut worker = full();
    assign(&mut worker, chunk(4), 1, &[]);
    for nth in 0..2 {
        assert_eq!(spilled(&mut worker, nth, false), []);
    }
    assert_eq!(spilled(&mut worker, 2, false), [execute(3, chunk(4), &[])]);
    assert_eq!(worker.taken_bytes(), 45);
}

#[test]
fn a_chunk_that_is_let_go_on_its_way_to_disk_is_gone() {
    let mut worker = full();
    assign(&mut worker, chunk(4), 1, &[chunk(2)]);
    worker.handle_event(Event::Scheduler(ToWorker::Free(vec![(chunk(1), Attempt(1))])));
    assert_eq!(effects(&mut worker), [Effect::Drop(chunk(1))]);
    assert_eq!(spilled(&mut worker, 0, true), []);
    assert_eq!((worker.taken_bytes(), worker.disk_bytes()), (20, 0));
}

#[test]
fn an_unreadable_chunk_is_made_again_and_its_users_wait_for_it() {
    let mut worker = full();
    assign(&mut worker, chunk(4), 1, &[chunk(2)]);
    spilled(&mut worker, 0, true);
    spilled(&mut worker, 1, true);
    executed(&mut worker, 3);
    worker.memory_bytes = 1000;
    assign(&mut worker, chunk(5), 7, &[chunk(1)]);
    worker.handle_event(Event::Unreadable(chunk(1)));
    let missing = FromWorker::InputMissing {
        task: chunk(5),
        attempt: Attempt(7),
        input: chunk(1),
        holder: THERE,
    };
    let said = [Effect::Say(missing), Effect::Drop(chunk(1))];
    let said = [&said[..], &[Effect::Say(FromWorker::NotHere(chunk(1))), on_disk(10)]].concat();
    assert_eq!(effects(&mut worker), said);
    let failure = Failure::new("it could not read");
    worker.handle_event(Event::ExecutionFailed { run: RunId(4), failure });
    assert_eq!(effects(&mut worker), []);
}
