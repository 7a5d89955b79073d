//! Kernel threads: programs in, chunks out. One task of one core at a time on each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use ebbtide_array::program::Program;
use ebbtide_buffer::{Buffer, Pool};
use ebbtide_core::TaskId;
use ebbtide_core::message::Attempt;
use ebbtide_kernels::level::Level;

/// A task with everything that it needs.
pub(crate) struct Run {
    pub(crate) task: TaskId,
    pub(crate) attempt: Attempt,
    pub(crate) program: Arc<Program>,
    pub(crate) place: Vec<u32>,
    pub(crate) inputs: Vec<Arc<Buffer>>,
}

/// What became of a task.
pub(crate) struct Ran {
    pub(crate) task: TaskId,
    pub(crate) attempt: Attempt,
    pub(crate) result: Result<Buffer, String>,
    pub(crate) nanoseconds: u64,
}

/// The threads. They end when this is dropped and their last task is done.
pub(crate) struct Threads {
    queue: mpsc::Sender<Run>,
}

impl Threads {
    /// Starts `count` threads that hand what they made to `report`.
    pub(crate) fn start(
        count: u32,
        level: Level,
        pool: &Pool,
        report: impl Fn(Ran) + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let (queue, runs) = mpsc::channel::<Run>();
        let runs = Arc::new(Mutex::new(runs));
        for nth in 0..count {
            let (runs, pool, report) = (Arc::clone(&runs), pool.clone(), report.clone());
            thread::Builder::new().name(format!("kernel-{nth}")).spawn(move || {
                loop {
                    let next = runs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(run) = next else { return };
                    report(execute(level, run, &pool));
                }
            })?;
        }
        Ok(Self { queue })
    }

    /// Hands a task to the next free thread.
    pub(crate) fn run(&self, run: Run) {
        self.queue.send(run).expect("the threads wait as long as this lives");
    }
}

fn execute(level: Level, run: Run, pool: &Pool) -> Ran {
    let Run { task, attempt, program, place, inputs } = run;
    let start = Instant::now();
    let borrowed: Vec<&Buffer> = inputs.iter().map(Arc::as_ref).collect();
    let result = catch_unwind(AssertUnwindSafe(|| {
        ebbtide_kernels::execute(level, &program, &place, &borrowed, pool)
    }));
    let result = match result {
        Ok(chunk) => chunk.map_err(|error| error.to_string()),
        Err(_) => Err(format!("task {task}: the kernel panicked; this is a bug in ebbtide")),
    };
    let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ran { task, attempt, result, nanoseconds }
}
