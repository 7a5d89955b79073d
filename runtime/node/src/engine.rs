//! One worker's core with its chunks, programs and threads; whoever drives it does the talking.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};

use ebbtide_array::program::Program;
use ebbtide_buffer::Buffer;
use ebbtide_core::message::{Failure, FromWorker};
use ebbtide_core::worker::{Effect, Event, Worker};
use ebbtide_core::{GroupId, Space, TaskId, WorkerId};

use crate::disk::{self, Done, Order};
use crate::store::{Held, Store};
use crate::threads::{Equipment, Ran, Run, RunError, Threads};

/// Longest result of a Python function that goes with the message that it is there.
const ALONG_BYTES_MAX: usize = 1 << 10;

/// What the driver must do.
pub(crate) enum Outcome {
    /// Say this to the scheduler.
    Say(FromWorker),
    /// Remember where a peer is.
    Introduce(WorkerId, String),
    /// Get a chunk from a peer.
    Fetch { chunk: TaskId, holder: WorkerId },
    /// Send a chunk to the scheduler.
    Deliver(TaskId, Arc<Buffer>),
}

/// What the engine's own threads have done.
pub(crate) enum Report {
    Ran(Ran),
    Disk(Done),
}

pub(crate) struct Engine {
    core: Worker,
    threads: Threads,
    programs: BTreeMap<GroupId, (Result<Arc<Program>, String>, Space)>,
    store: Store,
    disk: mpsc::Sender<Order>,
    /// What a thread just made, until the core says whether it is kept.
    made: Option<Buffer>,
}

impl Engine {
    pub(crate) fn start(
        cores: u32,
        memory_bytes: u64,
        equipment: &Equipment,
        report: impl Fn(Report) + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let store = Store::default();
        let done = report.clone();
        let done = move |it| done(Report::Disk(it));
        let ran = move |it| report(Report::Ran(it));
        Ok(Self {
            core: Worker::new(cores, memory_bytes),
            threads: Threads::start(cores, equipment, ran)?,
            programs: BTreeMap::new(),
            disk: disk::start(store.clone(), equipment.pool.clone(), done)?,
            store,
            made: None,
        })
    }

    /// The chunks that are here.
    pub(crate) fn store(&self) -> Store {
        self.store.clone()
    }

    /// Bytes of chunks and of what running tasks may take.
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.core.taken_bytes()
    }

    /// Takes an event and says what is to be done outside.
    pub(crate) fn handle(&mut self, event: Event) -> Vec<Outcome> {
        self.core.handle_event(event);
        self.drain()
    }

    /// Takes a fetched chunk.
    pub(crate) fn fetched(&mut self, chunk: TaskId, buffer: Buffer) -> Vec<Outcome> {
        let bytes = buffer.len() as u64;
        self.store.insert(chunk, buffer);
        self.handle(Event::Fetched { chunk, bytes })
    }

    /// Bytes of chunks on disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.core.disk_bytes()
    }

    /// What a Python function made, if a message tells that it is there and it is short. Most of such
    /// are for a client, and the scheduler need not ask.
    pub(crate) fn along(&self, message: &FromWorker) -> Option<Arc<Buffer>> {
        let FromWorker::Finished { task, .. } = message else { return None };
        let (program, _) = self.programs.get(&task.group)?;
        if !matches!(program.as_deref(), Ok(Program::Call { .. })) {
            return None;
        }
        match self.store.get(*task)? {
            Held::Memory(buffer) if buffer.len() <= ALONG_BYTES_MAX => Some(buffer),
            Held::Memory(_) | Held::Disk(..) => None,
        }
    }

    /// Takes what a thread did.
    pub(crate) fn take(&mut self, report: Report) -> Vec<Outcome> {
        match report {
            Report::Ran(ran) => self.ran(ran),
            Report::Disk(Done::Spilled { spill, is_on_disk }) => {
                self.handle(Event::Spilled { spill, is_on_disk })
            }
            Report::Disk(Done::Read(chunk, Ok(buffer))) => vec![Outcome::Deliver(chunk, buffer)],
            Report::Disk(Done::Read(chunk, Err(error))) => self.lose(chunk, &error),
        }
    }

    /// A chunk cannot be read from disk.
    pub(crate) fn lose(&mut self, chunk: TaskId, error: &std::io::Error) -> Vec<Outcome> {
        tracing::warn!(%error, %chunk, "a chunk is lost");
        self.handle(Event::Unreadable(chunk))
    }

    fn ran(&mut self, ran: Ran) -> Vec<Outcome> {
        let Ran { run, result, nanoseconds } = ran;
        match result {
            Ok(buffer) => {
                let bytes = buffer.len() as u64;
                self.made = Some(buffer);
                let outcomes = self.handle(Event::Executed { run, bytes, nanoseconds });
                self.made = None;
                outcomes
            }
            Err(RunError::Failed(failure)) => self.handle(Event::ExecutionFailed { run, failure }),
            Err(RunError::Unreadable(chunk, error)) => {
                let mut outcomes = self.lose(chunk, &error);
                let failure = Failure::new(error.to_string());
                outcomes.extend(self.handle(Event::ExecutionFailed { run, failure }));
                outcomes
            }
        }
    }

    fn drain(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Say(message) => outcomes.push(Outcome::Say(message)),
                Effect::Introduce(peer, address) => {
                    outcomes.push(Outcome::Introduce(peer, address));
                }
                Effect::Fetch { chunk, holder } => outcomes.push(Outcome::Fetch { chunk, holder }),
                Effect::Define(group) => {
                    let program = Program::decode(&group.program)
                        .map(Arc::new)
                        .map_err(|error| format!("a program of another version: {error}"));
                    self.programs.insert(group.id, (program, group.space));
                }
                Effect::Undefine(groups) => {
                    for group in groups {
                        self.programs.remove(&group);
                    }
                }
                Effect::Execute { run, task, inputs } => match self.prepare(task, &inputs) {
                    Ok((program, place, inputs)) => {
                        self.threads.run(Run { id: run, program, place, inputs });
                    }
                    Err(error) => {
                        let failure = Failure::new(error);
                        self.core.handle_event(Event::ExecutionFailed { run, failure });
                    }
                },
                Effect::Interrupt(run) => self.threads.interrupt(run),
                Effect::Keep { task, .. } => {
                    if let Some(made) = self.made.take() {
                        self.store.insert(task, made);
                    }
                }
                Effect::Spill { spill, chunk } => {
                    if let Some(Held::Memory(buffer)) = self.store.get(chunk) {
                        self.order(Order::Spill(spill, chunk, buffer));
                    }
                }
                Effect::Drop(chunk) => self.store.remove(chunk),
                Effect::Deliver(chunk) => match self.store.get(chunk) {
                    Some(Held::Memory(buffer)) => outcomes.push(Outcome::Deliver(chunk, buffer)),
                    Some(held) => self.order(Order::Read(chunk, held)),
                    None => outcomes.push(Outcome::Say(FromWorker::NotHere(chunk))),
                },
            }
        }
        outcomes
    }

    fn order(&self, order: Order) {
        self.disk.send(order).expect("the thread lives as long as its orders may come");
    }

    #[expect(clippy::type_complexity, reason = "the parts of a run, taken apart at once")]
    fn prepare(
        &self,
        task: TaskId,
        inputs: &[TaskId],
    ) -> Result<(Arc<Program>, Vec<u32>, Vec<(TaskId, Held)>), String> {
        let (program, space) =
            self.programs.get(&task.group).ok_or_else(|| format!("task {task} has no program"))?;
        let inputs = inputs
            .iter()
            .map(|input| {
                let held = self.store.get(*input);
                Ok((*input, held.ok_or_else(|| format!("input {input} is not here"))?))
            })
            .collect::<Result<_, String>>()?;
        Ok((Arc::clone(program.as_ref().map_err(Clone::clone)?), space.unravel(task.index), inputs))
    }
}
