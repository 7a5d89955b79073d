use std::sync::Arc;

use super::{Effect, Event, Worker};
use crate::message::{Assignment, Attempt, FromWorker, ToWorker};
use crate::{Cost, Group, GroupId, Space, TaskId, WorkerId};

const THERE: WorkerId = WorkerId(2);

fn chunk(index: u32) -> TaskId {
    TaskId { group: GroupId(1), index }
}

fn worker(cores: u32, memory_bytes: u64) -> Worker {
    let mut worker = Worker::new(cores, memory_bytes);
    let cost = Cost { output_bytes: 10, scratch_bytes: 5, nanoseconds: 1 };
    let space = Space::new(vec![100]).unwrap();
    let group = Group { id: GroupId(1), space, inputs: vec![], cost, program: Arc::from([]) };
    worker.handle_event(Event::Scheduler(ToWorker::Define(vec![group])));
    effects(&mut worker);
    worker
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

fn executed(worker: &mut Worker, task: TaskId, attempt: u32) -> Vec<Effect> {
    let attempt = Attempt(attempt);
    worker.handle_event(Event::Executed { task, attempt, bytes: 10, nanoseconds: 3 });
    effects(worker)
}

fn execute(task: TaskId, attempt: u32, inputs: &[TaskId]) -> Effect {
    Effect::Execute { task, attempt: Attempt(attempt), inputs: inputs.to_vec() }
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
    assert_eq!(effects(&mut worker), [execute(chunk(1), 1, &[chunk(0)])]);
    let done = executed(&mut worker, chunk(1), 1);
    assert_eq!(done, [Effect::Drop(chunk(0)), finished(chunk(1), 1, 3)]);
    assert_eq!(worker.taken_bytes(), 10);
}

#[test]
fn an_assignment_that_comes_twice_runs_once() {
    let mut worker = worker(2, 1000);
    assert_eq!(assign(&mut worker, chunk(1), 1, &[]).len(), 1);
    assert_eq!(assign(&mut worker, chunk(1), 1, &[]), []);
    executed(&mut worker, chunk(1), 1);
    assert_eq!(assign(&mut worker, chunk(1), 1, &[]), [finished(chunk(1), 1, 0)]);
}

#[test]
fn a_chunk_of_a_later_attempt_survives_a_late_free() {
    let mut worker = worker(1, 1000);
    assign(&mut worker, chunk(1), 2, &[]);
    executed(&mut worker, chunk(1), 2);
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
    let done = executed(&mut worker, chunk(1), 1);
    assert_eq!(done, [finished(chunk(1), 1, 3)], "the finished chunk still takes its bytes");
    let free = ToWorker::Free(vec![(chunk(1), Attempt(1))]);
    worker.handle_event(Event::Scheduler(free));
    assert_eq!(effects(&mut worker), [Effect::Drop(chunk(1)), execute(chunk(3), 1, &[])]);
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

#[test]
fn what_belongs_to_a_forgotten_group_leaves_nothing_behind() {
    let mut worker = worker(1, 1000);
    assign(&mut worker, chunk(1), 1, &[]);
    executed(&mut worker, chunk(1), 1);
    assign(&mut worker, chunk(2), 1, &[]);
    worker.handle_event(Event::Scheduler(ToWorker::Forget(vec![GroupId(1)])));
    effects(&mut worker);
    assert_eq!(executed(&mut worker, chunk(2), 1), [Effect::Drop(chunk(2))]);
    assert_eq!(worker.taken_bytes(), 0);
}
