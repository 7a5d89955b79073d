//! The same scheduler and worker without a cluster: in this process, over threads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use ebbtide_array::graph::Graph;
use ebbtide_array::lower::{Lowered, lower};
use ebbtide_array::{Array, ArrayError};
use ebbtide_buffer::Pool;
use ebbtide_core::message::Failure;
use ebbtide_core::scheduler::{self, Effect, Joining, Scheduler};
use ebbtide_core::{GroupId, JobId, Resources, TaskId, Time, WorkerId, worker};
use ebbtide_kernels::level::{Level, TooOld};

use crate::client::session;
use crate::engine::{Engine, Outcome, Report};
use crate::result::{TooLarge, Whole};
use crate::runner::Interpreter;
use crate::settings;
use crate::threads::Equipment;

const SELF: WorkerId = WorkerId(0);

/// How often a computation asks whether it is still wanted.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(20);

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A scheduler and one worker in this process.
pub struct InProcess {
    scheduler: Scheduler,
    engine: Engine,
    reports: mpsc::Receiver<Report>,
    started_at: Instant,
    next_job: u64,
    next_group: GroupId,
    session: u64,
    /// The groups of what each job keeps.
    kept: BTreeMap<JobId, Vec<GroupId>>,
    /// Jobs that nobody refers to any more.
    dropped: (mpsc::Sender<JobId>, mpsc::Receiver<JobId>),
}

/// Takes a chunk of a result.
type Put<'a> = dyn FnMut(TaskId, &[u8]) + 'a;

/// Lets what a job keeps go when nobody refers to it.
struct Kept {
    job: JobId,
    dropped: mpsc::Sender<JobId>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The engine may have ended before.
        let _: Result<(), _> = self.dropped.send(self.job);
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// The expression means nothing or cannot be scheduled.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// The result is too large for this machine.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// A task failed.
    #[error("{}", .0.error)]
    Failed(Failure),
    /// The caller no longer wants it.
    #[error("the computation was interrupted")]
    Interrupted,
}

/// Why nothing can be computed here.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The processor is too old.
    #[error(transparent)]
    Processor(#[from] TooOld),
    /// The threads cannot be started.
    #[error("cannot start threads")]
    Threads(#[from] std::io::Error),
}

/// How far a computation is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// Tasks that are done.
    pub done: u64,
    /// All its tasks.
    pub tasks: u64,
    /// Workers that are registered.
    pub workers: u64,
}

/// Who watches a computation.
pub trait Watch {
    /// Tells how far it is.
    fn progress(&mut self, progress: Progress);
    /// Whether to stop.
    fn is_interrupted(&mut self) -> bool;
}

impl InProcess {
    /// Starts a thread for each core that this process may use.
    /// Python functions run in processes of this interpreter.
    pub fn start(interpreter: Interpreter) -> Result<Self, StartError> {
        let memory_bytes = settings::memory_bytes();
        let cores = settings::cores();
        let pool = Pool::new(settings::pool_bytes(memory_bytes));
        let (sender, reports) = mpsc::channel();
        let report = move |it| {
            // Nobody listens any more when the process ends.
            let _: Result<(), _> = sender.send(it);
        };
        let equipment = Equipment { level: Level::detect()?, pool, interpreter };
        let engine = Engine::start(cores, memory_bytes, &equipment, report)?;
        let mut scheduler = Scheduler::default();
        let joining = Joining {
            name: "this process".to_owned(),
            address: String::new(),
            cores,
            memory_bytes,
            resources: Resources::new(),
            incarnation: 0,
        };
        let nobody_else = scheduler::Event::Offered(Vec::new());
        for event in [scheduler::Event::WorkerJoined(SELF, joining), nobody_else] {
            scheduler.handle_event(event, Time::default());
        }
        let started_at = Instant::now();
        Ok(Self {
            scheduler,
            engine,
            reports,
            started_at,
            next_job: 0,
            next_group: GroupId(0),
            session: session(),
            kept: BTreeMap::new(),
            dropped: mpsc::channel(),
        })
    }

    /// Computes arrays. Their bytes come in the same order.
    pub fn compute(
        &mut self,
        targets: &[Array],
        watch: &mut dyn Watch,
    ) -> Result<Vec<Vec<u8>>, ComputeError> {
        let (job, lowered) = self.lower(targets)?;
        let groups = lowered.targets.clone();
        let wholes: Result<Vec<Whole>, TooLarge> = targets.iter().map(Whole::new).collect();
        let mut wholes = wholes?;
        let mut put = |chunk: TaskId, bytes: &[u8]| {
            for (group, whole) in groups.iter().zip(&mut wholes) {
                if *group == chunk.group {
                    whole.put(chunk.index, bytes);
                }
            }
        };
        self.finish(job, lowered, false, (&mut put, watch))?;
        Ok(wholes.into_iter().map(Whole::into_bytes).collect())
    }

    /// Computes arrays and keeps them here as long as the returned ones live.
    pub fn persist(
        &mut self,
        targets: &[Array],
        watch: &mut dyn Watch,
    ) -> Result<Vec<Array>, ComputeError> {
        let (job, lowered) = self.lower(targets)?;
        let groups = lowered.targets.clone();
        self.finish(job, lowered, true, (&mut |_, _| (), watch))?;
        self.kept.insert(job, groups);
        let guard = Arc::new(Kept { job, dropped: self.dropped.0.clone() });
        let held = targets.iter().zip(0..).map(|(array, target)| {
            Array::held(array, (self.session, job.0, target), Arc::<Kept>::clone(&guard))
        });
        Ok(held.collect())
    }

    fn lower(&mut self, targets: &[Array]) -> Result<(JobId, Lowered), ComputeError> {
        while let Ok(dropped) = self.dropped.1.try_recv() {
            self.kept.remove(&dropped);
            self.tell(scheduler::Event::Cancelled(dropped));
        }
        let graph = Graph::of(targets);
        if !graph.is_of_session(self.session) {
            return Err(ArrayError::HeldElsewhere.into());
        }
        // Equal parts are one from here on, as on a cluster.
        let targets = graph.arrays();
        let targets = targets.map_err(|error| Failure::new(error.to_string()));
        let targets = targets.map_err(ComputeError::Failed)?;
        let held = |_, job, target: u32, _: &Array| {
            self.kept.get(&JobId(job))?.get(target as usize).copied()
        };
        let lowered = lower(&targets, self.next_group, &held)?;
        self.next_group = GroupId(self.next_group.0 + lowered.groups.len() as u64);
        let job = JobId(self.next_job);
        self.next_job += 1;
        Ok((job, lowered))
    }

    fn finish(
        &mut self,
        job: JobId,
        lowered: Lowered,
        is_kept: bool,
        (put, watch): (&mut Put<'_>, &mut dyn Watch),
    ) -> Result<(), ComputeError> {
        let Lowered { groups, targets } = lowered;
        self.tell(scheduler::Event::Submitted { job, groups, targets, is_kept });
        let mut told_at = Instant::now();
        loop {
            if self.settle(job, put)? {
                return Ok(());
            }
            match self.reports.recv_timeout(INTERRUPT_INTERVAL) {
                Ok(report) => {
                    let outcomes = self.engine.take(report);
                    self.carry_out(outcomes, put);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(ComputeError::Failed(Failure::new("the kernel threads ended")));
                }
            }
            if watch.is_interrupted() {
                self.tell(scheduler::Event::Cancelled(job));
                self.settle(job, &mut |_, _| ())?;
                return Err(ComputeError::Interrupted);
            }
            if told_at.elapsed() >= PROGRESS_INTERVAL {
                told_at = Instant::now();
                let (done, tasks) = self.scheduler.progress(job);
                watch.progress(Progress { done, tasks, workers: 1 });
            }
        }
    }

    fn tell(&mut self, event: scheduler::Event) {
        self.scheduler.handle_event(event, Time(self.started_at.elapsed()));
    }

    /// Carries messages between scheduler and worker until both wait. True when the job is done.
    fn settle(
        &mut self,
        job: JobId,
        put: &mut dyn FnMut(TaskId, &[u8]),
    ) -> Result<bool, ComputeError> {
        let (mut is_done, mut failure) = (false, None);
        while let Some(effect) = self.scheduler.poll_effect() {
            match effect {
                Effect::Send(_, message) => {
                    let outcomes = self.engine.handle(worker::Event::Scheduler(message));
                    self.carry_out(outcomes, put);
                }
                Effect::JobDone(done) => is_done |= done == job,
                // What is to be told to the worker after it is told all the same.
                Effect::JobFailed(failed, error) if failed == job => failure = Some(error),
                Effect::JobFailed(..)
                | Effect::Disconnect(..)
                | Effect::Released(_)
                | Effect::Kept(_) => {}
            }
        }
        failure.map_or(Ok(is_done), |error| Err(ComputeError::Failed(error)))
    }

    fn carry_out(&mut self, outcomes: Vec<Outcome>, put: &mut dyn FnMut(TaskId, &[u8])) {
        for outcome in outcomes {
            match outcome {
                Outcome::Say(message) => self.tell(scheduler::Event::Worker(SELF, message)),
                Outcome::Deliver(chunk, bytes) => {
                    put(chunk, &bytes);
                    self.tell(scheduler::Event::Collected(chunk));
                }
                Outcome::Introduce(..) | Outcome::Fetch { .. } => {
                    unreachable!("the only worker has no peers")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_array::{Array, DType, Distribution, ReduceOp};

    use super::{ComputeError, InProcess, Progress, Watch};
    use crate::runner::Interpreter;

    struct Patient;

    impl Watch for Patient {
        fn progress(&mut self, _: Progress) {}
        fn is_interrupted(&mut self) -> bool {
            false
        }
    }

    struct Impatient;

    impl Watch for Impatient {
        fn progress(&mut self, _: Progress) {}
        fn is_interrupted(&mut self) -> bool {
            true
        }
    }

    fn start() -> InProcess {
        InProcess::start(Interpreter::default()).unwrap()
    }

    fn mean(shape: &[u64], chunks: &[u64]) -> Array {
        let normal = Array::random(Distribution::Normal, (7, 0), shape, Some(chunks)).unwrap();
        normal.mean(None).unwrap()
    }

    #[test]
    fn a_sum_of_one_is_one() {
        let one = Array::constant(DType::Int64, vec![1], 1_i64.to_le_bytes().to_vec()).unwrap();
        let sum = one.reduce(ReduceOp::Sum, None).unwrap();
        let bytes = start().compute(&[sum], &mut Patient).unwrap();
        assert_eq!(bytes, [1_i64.to_le_bytes().to_vec()]);
    }

    #[test]
    fn the_same_expression_gives_the_same_bits_every_time() {
        let mean = mean(&[1000, 1000], &[77, 130]);
        let mut engine = start();
        let first = engine.compute(std::slice::from_ref(&mean), &mut Patient).unwrap();
        for _ in 0..5 {
            let mut other = start();
            let again = other.compute(std::slice::from_ref(&mean), &mut Patient).unwrap();
            assert_eq!(again, first);
        }
    }

    #[test]
    fn an_interrupted_computation_leaves_the_process_able_to_compute() {
        let mut engine = start();
        let interrupted = engine.compute(&[mean(&[1 << 24], &[1 << 16])], &mut Impatient);
        assert!(matches!(interrupted, Err(ComputeError::Interrupted)));
        engine.compute(&[mean(&[10], &[3])], &mut Patient).unwrap();
    }
}
