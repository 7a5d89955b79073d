//! Kernel threads: programs in, chunks out. One task of one core at a time on each.

use std::collections::{BTreeMap, VecDeque};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::runner::{Interpreter, Runner};
use crate::store::Held;
use ebbtide_array::program::Program;
use ebbtide_array::{Call, DType, Grid};
use ebbtide_buffer::{Buffer, Pool};
use ebbtide_core::TaskId;
use ebbtide_core::message::Failure;
use ebbtide_core::worker::RunId;
use ebbtide_kernels::level::Level;

/// How long a process for Python functions waits for the next one.
const RUNNER_IDLE_MAX: Duration = Duration::from_secs(10);

/// An execution with everything that it needs.
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(crate) program: Arc<Program>,
    pub(crate) place: Vec<u32>,
    pub(crate) inputs: Vec<(TaskId, Held)>,
}

/// What became of a task.
pub(crate) struct Ran {
    pub(crate) run: RunId,
    pub(crate) result: Result<Buffer, RunError>,
    pub(crate) nanoseconds: u64,
}

/// Why a task has no chunk.
pub(crate) enum RunError {
    Failed(Failure),
    /// This input could not be read from disk.
    Unreadable(TaskId, std::io::Error),
}

/// What threads are started with.
#[derive(Clone)]
pub(crate) struct Equipment {
    pub(crate) level: Level,
    pub(crate) pool: Pool,
    pub(crate) interpreter: Interpreter,
}

/// The threads. They end when this is dropped and their last task is done.
pub(crate) struct Threads(Arc<Shared>);

#[derive(Default)]
struct Shared {
    work: Mutex<Work>,
    is_new: Condvar,
}

#[derive(Default)]
struct Work {
    queue: VecDeque<Run>,
    /// Executions that run, and those that wait and need not run any more.
    running: BTreeMap<RunId, Running>,
    is_over: bool,
}

#[derive(Default)]
struct Running {
    /// The way to the process that runs it for a thread, if one does.
    process: Option<Arc<UnixStream>>,
    is_interrupted: bool,
}

impl Threads {
    /// Starts `count` threads that hand what they made to `report`.
    pub(crate) fn start(
        count: u32,
        equipment: &Equipment,
        report: impl Fn(Ran) + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let threads = Self(Arc::default());
        for nth in 0..count {
            let (shared, equipment, report) =
                (Arc::clone(&threads.0), equipment.clone(), report.clone());
            thread::Builder::new().name(format!("kernel-{nth}")).spawn(move || {
                let mut thread = Thread { shared, equipment, runner: None };
                while let Some(run) = thread.next() {
                    report(thread.execute(run));
                }
            })?;
        }
        Ok(threads)
    }

    /// Hands a task to the next free thread.
    pub(crate) fn run(&self, run: Run) {
        self.0.lock().queue.push_back(run);
        self.0.is_new.notify_one();
    }

    /// Ends the process of an execution, if it has one. Kernels are short and run to their end.
    pub(crate) fn interrupt(&self, run: RunId) {
        let mut work = self.0.lock();
        let waits = work.queue.iter().any(|it| it.id == run);
        if waits || work.running.contains_key(&run) {
            let running = work.running.entry(run).or_default();
            running.is_interrupted = true;
            running.end_process();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.is_new.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Thread {
    shared: Arc<Shared>,
    equipment: Equipment,
    runner: Option<Runner>,
}

impl Thread {
    fn next(&mut self) -> Option<Run> {
        let shared = Arc::clone(&self.shared);
        let mut work = shared.lock();
        loop {
            if let Some(run) = work.queue.pop_front() {
                work.running.entry(run.id).or_default();
                return Some(run);
            }
            if work.is_over {
                return None;
            }
            if self.runner.is_none() {
                work = shared.is_new.wait(work).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = shared.is_new.wait_timeout(work, RUNNER_IDLE_MAX);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            work = woken;
            if timeout.timed_out() && work.queue.is_empty() {
                drop(work);
                self.runner = None;
                work = shared.lock();
            }
        }
    }

    fn execute(&mut self, run: Run) -> Ran {
        let Run { id, program, place, inputs } = run;
        let start = Instant::now();
        let result = self.read(&inputs).and_then(|inputs| {
            let borrowed: Vec<&Buffer> = inputs.iter().map(Arc::as_ref).collect();
            self.make(id, &program, &place, &borrowed).map_err(RunError::Failed)
        });
        self.shared.lock().running.remove(&id);
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ran { run: id, result, nanoseconds }
    }

    fn read(&self, inputs: &[(TaskId, Held)]) -> Result<Vec<Arc<Buffer>>, RunError> {
        let read = |(chunk, held): &(TaskId, Held)| {
            let bytes = held.read(&self.equipment.pool);
            bytes.map_err(|error| RunError::Unreadable(*chunk, error))
        };
        inputs.iter().map(read).collect()
    }

    fn make(
        &mut self,
        run: RunId,
        program: &Program,
        place: &[u32],
        inputs: &[&Buffer],
    ) -> Result<Buffer, Failure> {
        if let Program::Call { call, inputs: arrays } = program {
            return self.call(run, call, arrays, inputs);
        }
        let Equipment { level, pool, .. } = &self.equipment;
        let made = catch_unwind(AssertUnwindSafe(|| {
            ebbtide_kernels::execute(*level, program, place, inputs, pool)
        }));
        match made {
            Ok(chunk) => chunk.map_err(|error| Failure::new(error.to_string())),
            Err(_) => Err(Failure::new("a kernel panicked; this is a bug in ebbtide")),
        }
    }

    fn call(
        &mut self,
        run: RunId,
        call: &Call,
        arrays: &[(DType, Grid)],
        chunks: &[&Buffer],
    ) -> Result<Buffer, Failure> {
        let mut runner = match self.runner.take() {
            Some(runner) => runner,
            None => Runner::start(&self.equipment.interpreter)?,
        };
        self.lend(run, runner.socket());
        let result = runner.call(call, arrays, chunks, &self.equipment.pool);
        if let Some(running) = self.shared.lock().running.get_mut(&run) {
            running.process = None;
        }
        if !matches!(&result, Err(failure) if failure.is_crash) {
            self.runner = Some(runner);
        }
        result
    }

    /// Says which process an execution has, and ends it if that is no longer wanted.
    fn lend(&self, run: RunId, process: Arc<UnixStream>) {
        let mut work = self.shared.lock();
        let running = work.running.entry(run).or_default();
        running.process = Some(process);
        if running.is_interrupted {
            running.end_process();
        }
    }
}

impl Running {
    /// Whoever talks to the process finds the connection closed, and ends it.
    fn end_process(&self) {
        if let Some(process) = &self.process
            && let Err(error) = process.shutdown(Shutdown::Both)
        {
            tracing::debug!(%error, "a function's process has ended already");
        }
    }
}
