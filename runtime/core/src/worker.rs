//! A worker: assignments in, executions and fetches out. One owner, no locks, no clock, no bytes.
//!
//! A task waits until its inputs are here, then until its memory is free, then it runs. Chunks that
//! were fetched for a task go when no task here needs them; chunks that were made here go when the
//! scheduler says so, and to disk when nothing could run otherwise.

mod spill;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::message::{Assignment, Attempt, Failure, FromWorker, ToWorker};
use crate::{Cost, Group, GroupId, TaskId, WorkerId};

/// One execution of a task on this worker; never used again.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RunId(pub u64);

/// One try to bring a chunk to disk; never used again.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct SpillId(pub u64);

/// Something that happened outside.
#[derive(Clone, Debug)]
pub enum Event {
    /// The scheduler says something.
    Scheduler(ToWorker),
    /// A fetched chunk is here.
    Fetched {
        /// The chunk.
        chunk: TaskId,
        /// Its size.
        bytes: u64,
    },
    /// A chunk could not be fetched.
    FetchFailed {
        /// The chunk.
        chunk: TaskId,
        /// Who should have held it.
        holder: WorkerId,
    },
    /// A program ended and made a chunk, which is kept or let go as the effects say.
    Executed {
        /// The execution.
        run: RunId,
        /// Size of the chunk.
        bytes: u64,
        /// Time on one core.
        nanoseconds: u64,
    },
    /// A program failed.
    ExecutionFailed {
        /// The execution.
        run: RunId,
        /// Why.
        failure: Failure,
    },
    /// A chunk is on disk and no longer in memory, or there is no room for it.
    Spilled {
        /// The try.
        spill: SpillId,
        /// Whether it is on disk.
        is_on_disk: bool,
    },
    /// A chunk on disk is not what it was.
    Unreadable(TaskId),
    /// The connection to the scheduler is a new one, of another epoch: nothing that was said
    /// before holds any more.
    Reconnected,
}

/// Something that the shell must now do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Say this to the scheduler.
    Say(FromWorker),
    /// Tasks of this group may follow: prepare its program.
    Define(Group),
    /// Nothing of these groups will be asked for again.
    Undefine(Vec<GroupId>),
    /// A worker can be reached at this address.
    Introduce(WorkerId, String),
    /// Get a chunk from another worker.
    Fetch {
        /// The chunk.
        chunk: TaskId,
        /// Who holds it.
        holder: WorkerId,
    },
    /// Run a task: its inputs are here.
    Execute {
        /// The execution.
        run: RunId,
        /// The task.
        task: TaskId,
        /// Its inputs, in order.
        inputs: Vec<TaskId>,
    },
    /// Stop an execution, if that is possible: nobody wants it any more.
    Interrupt(RunId),
    /// Keep what an execution made as the chunk of its task. What is not kept is let go.
    Keep {
        /// The execution.
        run: RunId,
        /// The task.
        task: TaskId,
    },
    /// Bring a chunk to disk and let its memory go. Executions read it from there.
    Spill {
        /// The try.
        spill: SpillId,
        /// The chunk.
        chunk: TaskId,
    },
    /// Let a chunk go.
    Drop(TaskId),
    /// Send a chunk to the scheduler, for a client.
    Deliver(TaskId),
}

#[derive(Debug)]
struct Task {
    attempt: Attempt,
    inputs: Vec<(TaskId, WorkerId)>,
    cost: Cost,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting { missing: BTreeSet<TaskId> },
    Ready,
    Running(RunId),
}

#[derive(Debug)]
struct Chunk {
    bytes: u64,
    /// The attempt that made it here; none for a copy of another worker's.
    made_by: Option<Attempt>,
    /// Tasks here that will use it.
    users: u32,
    place: Place,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Memory,
    /// In memory until it is on disk.
    Leaving(SpillId),
    Disk,
}

/// The whole worker.
#[derive(Debug)]
pub struct Worker {
    cores: u32,
    memory_bytes: u64,
    costs: BTreeMap<GroupId, Cost>,
    tasks: BTreeMap<TaskId, Task>,
    ready: VecDeque<TaskId>,
    /// Executions, each with its task and the bytes that are set aside for it.
    running: BTreeMap<RunId, (TaskId, u64)>,
    next_run: u64,
    chunks: BTreeMap<TaskId, Chunk>,
    /// Chunks on their way here and the tasks that wait for them.
    fetching: BTreeMap<TaskId, BTreeSet<TaskId>>,
    taken_bytes: u64,
    /// Chunks on their way to disk.
    leaving: BTreeMap<SpillId, TaskId>,
    next_spill: u64,
    /// Whether there was no room on disk when it was last tried.
    is_disk_full: bool,
    disk_bytes: u64,
    /// What the scheduler knows of that.
    told_disk_bytes: u64,
    effects: VecDeque<Effect>,
}

impl Worker {
    /// A worker that runs `cores` tasks at once as long as chunks and tasks fit `memory_bytes`.
    pub fn new(cores: u32, memory_bytes: u64) -> Self {
        Self {
            cores,
            memory_bytes,
            costs: BTreeMap::new(),
            tasks: BTreeMap::new(),
            ready: VecDeque::new(),
            running: BTreeMap::new(),
            next_run: 0,
            chunks: BTreeMap::new(),
            fetching: BTreeMap::new(),
            taken_bytes: 0,
            leaving: BTreeMap::new(),
            next_spill: 0,
            is_disk_full: false,
            disk_bytes: 0,
            told_disk_bytes: 0,
            effects: VecDeque::new(),
        }
    }

    /// Takes one event to completion.
    pub fn handle_event(&mut self, event: Event) {
        match event {
            Event::Scheduler(message) => self.hear(message),
            Event::Fetched { chunk, bytes } => self.fetched(chunk, bytes),
            Event::FetchFailed { chunk, holder } => self.fetch_failed(chunk, holder),
            Event::Executed { run, bytes, nanoseconds } => {
                self.executed(run, (bytes, nanoseconds));
            }
            Event::ExecutionFailed { run, failure } => {
                if let Some((task, attempt)) = self.stop_running(run) {
                    self.say(FromWorker::Failed { task, attempt, failure });
                }
            }
            Event::Spilled { spill, is_on_disk } => self.spilled(spill, is_on_disk),
            Event::Unreadable(chunk) => self.lose(chunk),
            Event::Reconnected => self.forget_everything(),
        }
        self.admit();
        self.tell_disk_bytes();
    }

    /// The next thing to do, if any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Bytes of the chunks that are here and of what running tasks may take.
    pub fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    /// Bytes of the chunks that are on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    fn hear(&mut self, message: ToWorker) {
        match message {
            ToWorker::Define(groups) => {
                // There may be room again.
                self.is_disk_full = false;
                for group in groups {
                    self.costs.insert(group.id, group.cost);
                    self.effects.push_back(Effect::Define(group));
                }
            }
            ToWorker::Assign(assignment) => self.assign(assignment),
            ToWorker::Free(chunks) => {
                for (chunk, attempt) in chunks {
                    self.free(chunk, attempt);
                }
            }
            ToWorker::Forget(groups) => self.forget(&groups),
            ToWorker::Collect(chunk) => match self.chunks.get(&chunk) {
                Some(Chunk { made_by: Some(_), .. }) => {
                    self.effects.push_back(Effect::Deliver(chunk));
                }
                _ => self.say(FromWorker::NotHere(chunk)),
            },
            ToWorker::Retract(task, attempt) => self.retract(task, attempt),
            ToWorker::Peer { worker, address } => {
                self.effects.push_back(Effect::Introduce(worker, address));
            }
        }
    }

    fn assign(&mut self, Assignment { task, attempt, inputs }: Assignment) {
        let Some(cost) = self.costs.get(&task.group).copied() else { return };
        if self.tasks.get(&task).is_some_and(|known| attempt <= known.attempt) {
            return;
        }
        if let Some(chunk) = self.chunks.get_mut(&task) {
            // Here already: made by this very attempt, by one whose answer was lost, or elsewhere.
            chunk.made_by = chunk.made_by.max(Some(attempt));
            let bytes = chunk.bytes;
            self.say(FromWorker::Finished { task, attempt, bytes, nanoseconds: 0 });
            return;
        }
        if let Some(known) = self.tasks.get_mut(&task) {
            known.attempt = attempt;
            return;
        }
        let mut missing = BTreeSet::new();
        for (input, holder) in &inputs {
            if let Some(chunk) = self.chunks.get_mut(input) {
                chunk.users += 1;
            } else {
                missing.insert(*input);
                self.want(*input, *holder, task);
            }
        }
        let state = if missing.is_empty() {
            self.ready.push_back(task);
            State::Ready
        } else {
            State::Waiting { missing }
        };
        self.tasks.insert(task, Task { attempt, inputs, cost, state });
    }

    fn retract(&mut self, task: TaskId, attempt: Attempt) {
        let Some(known) = self.tasks.get(&task).filter(|it| it.attempt == attempt) else { return };
        if let State::Running(_) = known.state {
            self.say(FromWorker::Begun { task, attempt });
            return;
        }
        self.take_task(task);
        self.say(FromWorker::Retracted { task, attempt });
    }

    fn want(&mut self, chunk: TaskId, holder: WorkerId, task: TaskId) {
        // One that nobody waits for any more is still on its way.
        let waiting = self.fetching.entry(chunk).or_insert_with(|| {
            self.effects.push_back(Effect::Fetch { chunk, holder });
            BTreeSet::new()
        });
        waiting.insert(task);
    }

    fn fetched(&mut self, chunk: TaskId, bytes: u64) {
        if self.chunks.contains_key(&chunk) {
            // It was made here in the meantime.
            return;
        }
        if !self.fetching.contains_key(&chunk) {
            self.effects.push_back(Effect::Drop(chunk));
            return;
        }
        self.keep(chunk, Chunk { bytes, made_by: None, users: 0, place: Place::Memory });
        self.drop_unused(chunk);
    }

    /// A chunk is here: those who waited for it use it.
    fn keep(&mut self, chunk: TaskId, mut kept: Chunk) {
        for task in self.fetching.remove(&chunk).unwrap_or_default() {
            let Some(known) = self.tasks.get_mut(&task) else { continue };
            let uses = known.inputs.iter().filter(|(input, _)| *input == chunk).count();
            kept.users += u32::try_from(uses).expect("a task has fewer than 2³² inputs");
            let State::Waiting { missing } = &mut known.state else { continue };
            missing.remove(&chunk);
            if missing.is_empty() {
                known.state = State::Ready;
                self.ready.push_back(task);
            }
        }
        self.taken_bytes += kept.bytes;
        self.chunks.insert(chunk, kept);
    }

    fn fetch_failed(&mut self, chunk: TaskId, holder: WorkerId) {
        for task in self.fetching.remove(&chunk).unwrap_or_default() {
            let Some(attempt) = self.tasks.get(&task).map(|known| known.attempt) else { continue };
            self.take_task(task);
            self.say(FromWorker::InputMissing { task, attempt, input: chunk, holder });
        }
    }

    fn executed(&mut self, run: RunId, (bytes, nanoseconds): (u64, u64)) {
        let Some((task, attempt)) = self.stop_running(run) else { return };
        if let Some(copy) = self.chunks.get_mut(&task) {
            // It came from another worker in the meantime.
            copy.made_by = Some(attempt);
        } else {
            self.effects.push_back(Effect::Keep { run, task });
            self.keep(
                task,
                Chunk { bytes, made_by: Some(attempt), users: 0, place: Place::Memory },
            );
        }
        self.say(FromWorker::Finished { task, attempt, bytes, nanoseconds });
    }

    /// Runs what is ready, first come first served, while there are cores and memory.
    fn admit(&mut self) {
        while self.running.len() < self.cores as usize {
            let Some(task) = self.ready.front().copied() else { return };
            // It may have gone since, and come again.
            let known = self.tasks.get(&task).filter(|it| matches!(it.state, State::Ready));
            let Some(known) = known else {
                self.ready.pop_front();
                continue;
            };
            let inputs: Vec<TaskId> = known.inputs.iter().map(|(input, _)| *input).collect();
            let cost = known.cost;
            let needed = cost.output_bytes.saturating_add(cost.scratch_bytes);
            let needed = needed.saturating_add(self.bytes_to_read(&inputs));
            let fits = self.taken_bytes.saturating_add(needed) <= self.memory_bytes;
            if !fits && (!self.running.is_empty() || self.make_room(needed, &inputs)) {
                return;
            }
            self.ready.pop_front();
            let run = RunId(self.next_run);
            self.next_run += 1;
            if let Some(known) = self.tasks.get_mut(&task) {
                known.state = State::Running(run);
            }
            self.running.insert(run, (task, needed));
            self.taken_bytes += needed;
            self.effects.push_back(Effect::Execute { run, task, inputs });
        }
    }

    /// An execution is over. Its task and present attempt, if that still waits for this very one.
    fn stop_running(&mut self, run: RunId) -> Option<(TaskId, Attempt)> {
        let (task, reserved) = self.running.remove(&run)?;
        self.taken_bytes -= reserved;
        if !matches!(self.tasks.get(&task)?.state, State::Running(by) if by == run) {
            return None;
        }
        let taken = self.take_task(task)?;
        Some((task, taken.attempt))
    }

    /// Removes a task and its inputs' uses.
    fn take_task(&mut self, task: TaskId) -> Option<Task> {
        let taken = self.tasks.remove(&task)?;
        for (input, _) in &taken.inputs {
            if let Some(waiting) = self.fetching.get_mut(input) {
                waiting.remove(&task);
            } else if let Some(chunk) = self.chunks.get_mut(input) {
                chunk.users -= 1;
                self.drop_unused(*input);
            }
        }
        Some(taken)
    }

    /// Lets a copy go that no task here needs.
    fn drop_unused(&mut self, chunk: TaskId) {
        let is_unused = |it: &Chunk| it.made_by.is_none() && it.users == 0;
        if self.chunks.get(&chunk).is_some_and(is_unused) {
            self.drop_chunk(chunk);
        }
    }

    fn free(&mut self, chunk: TaskId, attempt: Attempt) {
        let Some(held) = self.chunks.get_mut(&chunk) else { return };
        if held.made_by.is_some_and(|made_by| made_by <= attempt) {
            // A task here may still use it: it stays as a copy until then.
            held.made_by = None;
            self.drop_unused(chunk);
        }
    }

    fn drop_chunk(&mut self, chunk: TaskId) {
        if let Some(dropped) = self.chunks.remove(&chunk) {
            self.vacate(&dropped);
            self.effects.push_back(Effect::Drop(chunk));
        }
    }

    fn forget(&mut self, groups: &[GroupId]) {
        let is_over = |task: &TaskId| groups.contains(&task.group);
        let tasks: Vec<TaskId> = self.tasks.keys().copied().filter(is_over).collect();
        for task in tasks {
            if let Some(Task { state: State::Running(run), .. }) = self.take_task(task) {
                self.effects.push_back(Effect::Interrupt(run));
            }
        }
        self.ready.retain(|task| !is_over(task));
        self.fetching.retain(|chunk, _| !is_over(chunk));
        let chunks: Vec<TaskId> = self.chunks.keys().copied().filter(is_over).collect();
        for chunk in chunks {
            self.drop_chunk(chunk);
        }
        self.costs.retain(|group, _| !groups.contains(group));
        self.effects.push_back(Effect::Undefine(groups.to_vec()));
    }

    /// Everything but executions, which end by themselves and then find no task.
    fn forget_everything(&mut self) {
        let mut groups: BTreeSet<GroupId> = self.costs.keys().copied().collect();
        groups.extend(self.chunks.keys().map(|chunk| chunk.group));
        groups.extend(self.fetching.keys().map(|chunk| chunk.group));
        let groups: Vec<GroupId> = groups.into_iter().collect();
        self.forget(&groups);
    }

    fn say(&mut self, message: FromWorker) {
        self.effects.push_back(Effect::Say(message));
    }
}

#[cfg(test)]
mod tests;
