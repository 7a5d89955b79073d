//! The world itself: a clock, a network, workers that fail, and one client.

mod faults;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Write as _;
use std::time::Duration;

use ebbtide_core::message::{Failure, FromWorker, ToWorker};
use ebbtide_core::scheduler::{self, Joining, Offer, Scheduler};
use ebbtide_core::worker::{self, RunId, SpillId, Worker};
use ebbtide_core::{GroupId, JobId, TaskId, Time, WorkerId};

use crate::job::{GPU, SimJob, make};
use crate::random::Random;

/// Steps after which a world that has not come to rest never will.
const STEPS_MAX: u32 = 50_000;

/// Workers that may be lost: one task may not lose more than the scheduler bears.
const LOSSES_MAX: u32 = scheduler::LOSSES_MAX;

/// How long a worker waits for one that sends nothing.
const SILENCE_MAX: Duration = Duration::from_secs(20);

const CHUNK_BYTES: u64 = 10;

const KEPT: JobId = JobId(1);

const JOB: JobId = JobId(2);

#[derive(Debug)]
enum Happening {
    ToScheduler(WorkerId, FromWorker),
    ToWorker(WorkerId, ToWorker),
    /// A task's chunk, or why there is none.
    Executed {
        at: WorkerId,
        run: RunId,
        made: Result<u64, Failure>,
    },
    /// A chunk, or that it is not where it should be.
    Arrived {
        at: WorkerId,
        chunk: TaskId,
        holder: WorkerId,
        value: Option<u64>,
    },
    /// A chunk is on disk, or there was no room.
    Spilled {
        at: WorkerId,
        spill: SpillId,
        is_on_disk: bool,
    },
    /// An execution could not read this input.
    Unreadable {
        at: WorkerId,
        run: RunId,
        chunk: TaskId,
    },
    Collected(WorkerId, TaskId, u64),
    /// The operator takes a worker away.
    Taken(WorkerId),
    Heartbeat(WorkerId),
}

struct SimWorker {
    joining: Joining,
    core: Worker,
    values: BTreeMap<TaskId, u64>,
    /// Chunks on their way to disk or there: each may be read wrongly.
    spilled: BTreeSet<TaskId>,
    /// What an execution just made.
    made: Option<(RunId, u64)>,
    /// What each execution takes of it.
    running: BTreeMap<RunId, u64>,
    /// Milliseconds that a task takes at most.
    slowness: u32,
    is_silent: bool,
}

/// One run from a seed.
pub struct World {
    random: Random,
    scheduler: Scheduler,
    workers: BTreeMap<WorkerId, SimWorker>,
    now: Time,
    due: BinaryHeap<Reverse<(Time, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    next: u64,
    /// When the last message of a connection arrives: TCP keeps their order.
    last_to_scheduler: BTreeMap<WorkerId, Time>,
    last_to_worker: BTreeMap<WorkerId, Time>,
    next_worker: u64,
    /// The name that a worker got with its next connection.
    renamed: BTreeMap<WorkerId, WorkerId>,
    /// Kinds of workers that may come.
    kinds: Vec<Offer>,
    /// What one task of each group takes of its worker.
    resources: BTreeMap<GroupId, u64>,
    lost: u32,
    /// How often tasks of each group are tried again, and how often each failed.
    retries: BTreeMap<GroupId, u32>,
    failed: BTreeMap<TaskId, u32>,
    answers: BTreeMap<TaskId, u64>,
    wanted: BTreeSet<TaskId>,
    collected: BTreeSet<TaskId>,
    is_done: bool,
    trace: String,
}

/// What went wrong, with the whole trace.
#[derive(Debug)]
pub struct Wrong {
    /// What should not be.
    pub what: String,
    /// Everything that happened.
    pub trace: String,
}

impl World {
    /// A world with a job of its own, and a few workers.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let job = SimJob::random(&mut random);
        let mut world = Self {
            answers: job.answers(),
            wanted: job.wanted().into_iter().collect(),
            random,
            scheduler: Scheduler::default(),
            workers: BTreeMap::new(),
            now: Time::default(),
            due: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            next: 0,
            last_to_scheduler: BTreeMap::new(),
            last_to_worker: BTreeMap::new(),
            next_worker: 0,
            renamed: BTreeMap::new(),
            kinds: Vec::new(),
            resources: job.resources(),
            lost: 0,
            retries: job.retries(),
            failed: BTreeMap::new(),
            collected: BTreeSet::new(),
            is_done: false,
            trace: String::new(),
        };
        world.offer(job.needed_bytes());
        for _ in 0..=world.random.roll(3) {
            world.join();
        }
        let SimJob { groups, targets, kept } = job;
        if let Some((groups, targets)) = kept {
            let submitted =
                scheduler::Event::Submitted { job: KEPT, groups, targets, is_kept: true };
            world.tell_scheduler(submitted);
        }
        let submitted = scheduler::Event::Submitted { job: JOB, groups, targets, is_kept: false };
        world.tell_scheduler(submitted);
        // The client lets go of what is kept: that it is needed keeps it.
        world.tell_scheduler(scheduler::Event::Cancelled(KEPT));
        world
    }

    /// Runs until the job is done and nothing is left to happen. Gives the trace.
    pub fn run(mut self) -> Result<String, Wrong> {
        for _ in 0..STEPS_MAX {
            if let Err(what) = self.step() {
                return Err(Wrong { what, trace: self.trace });
            }
            if self.is_done && self.is_quiet() {
                return match self.check_rest() {
                    Ok(()) => Ok(self.trace),
                    Err(what) => Err(Wrong { what, trace: self.trace }),
                };
            }
        }
        Err(Wrong { what: "it never comes to rest".to_owned(), trace: self.trace })
    }

    /// Only heartbeats are left.
    fn is_quiet(&self) -> bool {
        self.happenings.values().all(|it| matches!(it, Happening::Heartbeat(_)))
    }

    fn check_rest(&self) -> Result<(), String> {
        if self.collected != self.wanted {
            return Err("the job is done without all of its result".to_owned());
        }
        if !self.scheduler.demand(self.now).is_empty() {
            return Err(format!("demand is left: {:?}", self.scheduler.demand(self.now)));
        }
        for (id, worker) in &self.workers {
            let bytes = worker.core.taken_bytes() + worker.core.disk_bytes();
            if bytes != 0 || !worker.values.is_empty() {
                let chunks = &worker.values;
                return Err(format!("worker {id:?} is left with {bytes} bytes, chunks {chunks:?}"));
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.disturb();
        let due = self.scheduler.poll_timeout().map(|(at, _)| at);
        let next = self.due.peek().map(|Reverse((at, _))| *at);
        match (due, next) {
            (Some(due), next) if next.is_none_or(|next| due <= next) => {
                self.now = self.now.max(due);
                self.log("timeout");
                self.scheduler.handle_timeout(self.now);
                self.scheduler.check();
                self.drain_scheduler();
            }
            (_, Some(_)) => {
                let Some(Reverse((at, id))) = self.due.pop() else { return Ok(()) };
                let Some(happening) = self.happenings.remove(&id) else { return Ok(()) };
                self.now = self.now.max(at);
                self.happen(happening)?;
            }
            (_, None) if self.workers.is_empty() => self.join(),
            (_, None) => return Err("nothing is left to happen and the job is not done".to_owned()),
        }
        Ok(())
    }

    /// What a worker is called now.
    fn now_named(&self, mut worker: WorkerId) -> WorkerId {
        while let Some(next) = self.renamed.get(&worker) {
            worker = *next;
        }
        worker
    }

    fn join(&mut self) {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        let cores = 1 + self.random.roll(3);
        let nth = self.random.roll(u32::try_from(self.kinds.len()).expect("a few kinds"));
        let Offer { memory_bytes, resources, .. } = self.kinds[nth as usize].clone();
        let slowness = if self.random.once_in(4) { 30_000 } else { 100 };
        let (name, address) = (format!("w{}", id.0), String::new());
        let joining = Joining { name, address, cores, memory_bytes, resources, incarnation: 1 };
        let worker = SimWorker {
            joining: joining.clone(),
            core: Worker::new(cores, memory_bytes),
            values: BTreeMap::new(),
            spilled: BTreeSet::new(),
            made: None,
            running: BTreeMap::new(),
            slowness,
            is_silent: false,
        };
        self.workers.insert(id, worker);
        self.schedule(Duration::from_secs(2), Happening::Heartbeat(id));
        self.tell_scheduler(scheduler::Event::WorkerJoined(id, joining));
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        if !matches!(happening, Happening::Heartbeat(_)) {
            self.log(&format!("{happening:?}"));
        }
        match happening {
            Happening::ToScheduler(from, message) => {
                self.tell_scheduler(scheduler::Event::Worker(from, message));
            }
            Happening::ToWorker(to, message) => {
                self.tell_worker(to, worker::Event::Scheduler(message))?;
            }
            Happening::Executed { at, run, made } => {
                let at = self.now_named(at);
                if let Some(worker) = self.workers.get_mut(&at) {
                    worker.running.remove(&run);
                    let event = match made {
                        Ok(value) => {
                            worker.made = Some((run, value));
                            let (bytes, nanoseconds) = (CHUNK_BYTES, 1_000_000);
                            worker::Event::Executed { run, bytes, nanoseconds }
                        }
                        Err(failure) => worker::Event::ExecutionFailed { run, failure },
                    };
                    self.tell_worker(at, event)?;
                }
            }
            Happening::Arrived { at, chunk, holder, value } => {
                let at = self.now_named(at);
                if let Some(worker) = self.workers.get_mut(&at) {
                    let event = match value {
                        Some(value) => {
                            worker.values.insert(chunk, value);
                            worker::Event::Fetched { chunk, bytes: CHUNK_BYTES }
                        }
                        None => worker::Event::FetchFailed { chunk, holder },
                    };
                    self.tell_worker(at, event)?;
                }
            }
            Happening::Spilled { at, spill, is_on_disk } => {
                let at = self.now_named(at);
                self.tell_worker(at, worker::Event::Spilled { spill, is_on_disk })?;
            }
            Happening::Unreadable { at, run, chunk } => {
                let at = self.now_named(at);
                if let Some(worker) = self.workers.get_mut(&at) {
                    worker.running.remove(&run);
                }
                self.tell_worker(at, worker::Event::Unreadable(chunk))?;
                let failure = Failure::new("an input could not be read");
                self.tell_worker(at, worker::Event::ExecutionFailed { run, failure })?;
            }
            Happening::Collected(from, chunk, value) => {
                // What a worker sent before it was lost has arrived or has not.
                if self.workers.contains_key(&from) {
                    if self.answers.get(&chunk) != Some(&value) {
                        return Err(format!("chunk {chunk} is wrong"));
                    }
                    self.collected.insert(chunk);
                    self.tell_scheduler(scheduler::Event::Collected(chunk));
                }
            }
            Happening::Taken(worker) => self.take(worker)?,
            Happening::Heartbeat(from) => {
                if self.workers.get(&from).is_some_and(|worker| !worker.is_silent) {
                    self.tell_scheduler(scheduler::Event::Worker(from, FromWorker::Heartbeat));
                    self.schedule(Duration::from_secs(2), Happening::Heartbeat(from));
                }
            }
        }
        Ok(())
    }

    /// Whether a task's program may fail once more: as often as it is tried again.
    fn may_fail(&self, task: TaskId) -> bool {
        let failed = self.failed.get(&task).copied().unwrap_or_default();
        self.retries.get(&task.group).is_some_and(|retries| failed < *retries)
    }

    /// Whether the scheduler counts on a chunk.
    fn is_needed(&self, chunk: TaskId) -> bool {
        self.scheduler.chunk_bytes(chunk).is_some()
            && !self.workers.values().any(|it| it.values.contains_key(&chunk))
    }

    fn tell_scheduler(&mut self, event: scheduler::Event) {
        self.scheduler.handle_event(event, self.now);
        self.scheduler.check();
        self.drain_scheduler();
    }

    fn drain_scheduler(&mut self) {
        while let Some(effect) = self.scheduler.poll_effect() {
            self.log(&format!("  scheduler: {effect:?}"));
            match effect {
                scheduler::Effect::Send(to, message) => {
                    self.send_to_worker(to, message.clone());
                    if self.random.once_in(10) {
                        self.send_to_worker(to, message);
                    }
                }
                scheduler::Effect::Disconnect(worker, _) => {
                    self.workers.remove(&worker);
                }
                scheduler::Effect::JobDone(job) => self.is_done |= job == JOB,
                scheduler::Effect::JobFailed(_, error) => {
                    self.log(&error.error);
                }
                scheduler::Effect::Released(worker) => {
                    // The operator may be away and never take it.
                    if !self.random.once_in(3) {
                        let delay = Duration::from_millis(u64::from(self.random.roll(5000)));
                        self.schedule(delay, Happening::Taken(worker));
                    }
                }
                scheduler::Effect::Kept(_) => {}
            }
        }
    }

    fn tell_worker(&mut self, at: WorkerId, event: worker::Event) -> Result<(), String> {
        let Some(worker) = self.workers.get_mut(&at) else { return Ok(()) };
        worker.core.handle_event(event);
        while let Some(effect) = self.workers.get_mut(&at).and_then(|it| it.core.poll_effect()) {
            self.log(&format!("  {at:?}: {effect:?}"));
            self.carry_out(at, effect)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, at: WorkerId, effect: worker::Effect) -> Result<(), String> {
        let worker = self.workers.get_mut(&at).expect("it just said so");
        match effect {
            worker::Effect::Say(message) => {
                if !worker.is_silent {
                    self.send_to_scheduler(at, message.clone());
                    if self.random.once_in(10) {
                        self.send_to_scheduler(at, message);
                    }
                }
            }
            worker::Effect::Execute { run, task, inputs } => {
                self.execute(at, (run, task), &inputs)?;
            }
            worker::Effect::Fetch { chunk, holder } => {
                let held = self.workers.get(&holder);
                // Who is silent is waited for.
                let is_silent = held.is_some_and(|it| it.is_silent);
                let value = held.and_then(|it| it.values.get(&chunk).copied());
                let value = value.filter(|_| !is_silent);
                let delay = if is_silent { SILENCE_MAX } else { self.delay() };
                self.schedule(delay, Happening::Arrived { at, chunk, holder, value });
            }
            worker::Effect::Keep { run, task } => {
                let made = worker.made.take().filter(|(by, _)| *by == run);
                let (_, value) = made.ok_or_else(|| format!("{run:?} made nothing to keep"))?;
                worker.values.insert(task, value);
            }
            worker::Effect::Spill { spill, chunk } => {
                if !worker.values.contains_key(&chunk) {
                    return Err(format!("{chunk} goes to disk from nowhere"));
                }
                worker.spilled.insert(chunk);
                let is_on_disk = !self.random.once_in(8);
                let delay = self.delay();
                self.schedule(delay, Happening::Spilled { at, spill, is_on_disk });
            }
            worker::Effect::Drop(chunk) => {
                worker.values.remove(&chunk);
                worker.spilled.remove(&chunk);
            }
            worker::Effect::Deliver(chunk) => {
                let value = worker.values.get(&chunk).copied();
                let value = value.ok_or_else(|| format!("{chunk} is delivered from nowhere"))?;
                if !worker.is_silent {
                    let delay = self.delay();
                    self.schedule(delay, Happening::Collected(at, chunk, value));
                }
            }
            worker::Effect::Interrupt(run) => {
                worker.running.remove(&run);
            }
            worker::Effect::Define(_)
            | worker::Effect::Undefine(_)
            | worker::Effect::Introduce(..) => {}
        }
        Ok(())
    }

    /// How an execution ends, and when.
    fn execute(
        &mut self,
        at: WorkerId,
        (run, task): (RunId, TaskId),
        inputs: &[TaskId],
    ) -> Result<(), String> {
        let worker = self.workers.get_mut(&at).expect("it just said so");
        worker.running.insert(run, self.resources[&task.group]);
        let there = worker.joining.resources.get(GPU).copied().unwrap_or_default();
        if worker.running.values().sum::<u64>() > there {
            return Err(format!("{task} takes what {at:?} has given to others"));
        }
        let on_disk = inputs.iter().copied().find(|it| worker.spilled.contains(it));
        let inputs: Option<Vec<u64>> =
            inputs.iter().map(|input| worker.values.get(input).copied()).collect();
        let inputs = inputs.ok_or_else(|| format!("{task} runs without its inputs"))?;
        let slowness = worker.slowness;
        let time = Duration::from_millis(u64::from(1 + self.random.roll(slowness)));
        if let Some(chunk) = on_disk
            && self.random.once_in(20)
        {
            self.schedule(time, Happening::Unreadable { at, run, chunk });
            return Ok(());
        }
        let value = make(task, &inputs);
        let made = if self.lost < LOSSES_MAX && self.random.once_in(100) {
            self.lost += 1;
            Err(Failure { is_crash: true, ..Failure::new("it crashed") })
        } else if self.may_fail(task) && self.random.once_in(20) {
            *self.failed.entry(task).or_default() += 1;
            Err(Failure::new("it failed"))
        } else {
            Ok(value)
        };
        self.schedule(time, Happening::Executed { at, run, made });
        Ok(())
    }

    fn send_to_scheduler(&mut self, from: WorkerId, message: FromWorker) {
        let arrival = self.now.after(self.delay());
        let last = self.last_to_scheduler.entry(from).or_default();
        *last = (*last).max(arrival);
        let at = *last;
        self.schedule_at(at, Happening::ToScheduler(from, message));
    }

    fn send_to_worker(&mut self, to: WorkerId, message: ToWorker) {
        let arrival = self.now.after(self.delay());
        let last = self.last_to_worker.entry(to).or_default();
        *last = (*last).max(arrival);
        let at = *last;
        self.schedule_at(at, Happening::ToWorker(to, message));
    }

    fn delay(&mut self) -> Duration {
        Duration::from_millis(u64::from(self.random.roll(500)))
    }

    fn schedule(&mut self, delay: Duration, happening: Happening) {
        self.schedule_at(self.now.after(delay), happening);
    }

    fn schedule_at(&mut self, at: Time, happening: Happening) {
        self.due.push(Reverse((at, self.next)));
        self.happenings.insert(self.next, happening);
        self.next += 1;
    }

    fn log(&mut self, line: &str) {
        let milliseconds = self.now.0.as_millis();
        writeln!(self.trace, "{milliseconds:>8} {line}").expect("a String takes any write");
    }
}

#[cfg(test)]
mod tests {
    use super::World;

    #[test]
    fn every_world_gives_the_right_answer_and_comes_to_rest() {
        // More of them for a long look, fewer for a mutant.
        let seeds = std::env::var("EBBTIDE_SIM_SEEDS").ok().and_then(|it| it.parse().ok());
        for seed in 0..seeds.unwrap_or(500) {
            if let Err(wrong) = World::new(seed).run() {
                let last: Vec<&str> = wrong.trace.lines().rev().take(60).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                panic!("seed {seed}: {}\n{}", wrong.what, last.join("\n"));
            }
        }
    }

    #[test]
    fn every_fault_happens_in_some_world() {
        let traces: String = (0..200).map(|seed| World::new(seed).run().unwrap()).collect();
        let faults = [
            " dies",
            " falls silent",
            " comes back as ",
            "it crashed",
            "it failed",
            " is to retire",
            "scheduler: Released(",
            "scheduler: Kept(",
            "Taken(",
            "it has come back",
            "is_on_disk: true",
            "is_on_disk: false",
            "Unreadable {",
            "InputMissing {",
            "NotHere(",
            "Retracted {",
            "Begun {",
        ];
        for fault in faults {
            assert!(traces.contains(fault), "no world has {fault:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_trace() {
        let trace = |seed| World::new(seed).run().unwrap();
        assert_eq!(trace(7), trace(7));
        assert_ne!(trace(7), trace(8));
    }
}
