//! Computes expressions, in this process or on a cluster. Other Python threads run meanwhile, and
//! Ctrl-C cancels.

use std::ffi::OsString;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};
use std::{process, thread};

use ebbtide_array::Array;
use ebbtide_core::message::Failure;
use ebbtide_node::client::{self, ClientError, Endpoint};
use ebbtide_node::in_process::{ComputeError, InProcess, Progress, Watch};
use ebbtide_node::runner::{self, Interpreter};
use ebbtide_node::wire::WorkerInfo;
use pyo3::exceptions::{
    PyConnectionError, PyMemoryError, PyRuntimeError, PyTimeoutError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::expression::Expression;
use crate::{ConnectionLost, TaskFailed};

/// The engine of this process, started at the first computation, with the id of its process: a
/// fork has the memory but not the threads.
static ENGINE: Mutex<Option<(u32, InProcess)>> = Mutex::new(None);

/// How often a thread looks whether another one still computes.
const BUSY_INTERVAL: Duration = Duration::from_millis(1);

/// Tells a Python function of progress, and asks Python whether to stop.
struct PythonWatch {
    progress: Option<Py<PyAny>>,
    raised: Option<PyErr>,
    /// When nobody waits any longer.
    until: Option<Instant>,
}

impl PythonWatch {
    fn new(progress: Option<Py<PyAny>>) -> Self {
        Self { progress, raised: None, until: None }
    }

    fn keep(&mut self, result: PyResult<()>) {
        if let Err(error) = result {
            self.raised.get_or_insert(error);
        }
    }
}

impl Watch for PythonWatch {
    fn progress(&mut self, Progress { done, tasks, workers }: Progress) {
        if let Some(progress) = &self.progress {
            let told = Python::attach(|py| progress.call1(py, (done, tasks, workers)).map(|_| ()));
            self.keep(told);
        }
    }

    fn is_interrupted(&mut self) -> bool {
        #[expect(clippy::redundant_closure_for_method_calls, reason = "the method is for one life")]
        let checked = Python::attach(|py| py.check_signals());
        self.keep(checked);
        if self.until.is_some_and(|until| Instant::now() >= until) {
            self.keep(Err(PyTimeoutError::new_err("the result is not there yet")));
        }
        self.raised.is_some()
    }
}

fn arrays(expressions: &[PyRef<'_, Expression>]) -> Vec<Array> {
    expressions.iter().map(|expression| expression.0.clone()).collect()
}

fn to_python(py: Python<'_>, results: Vec<Vec<u8>>) -> Vec<Py<PyBytes>> {
    results.into_iter().map(|bytes| PyBytes::new(py, &bytes).unbind()).collect()
}

/// Computes expressions in this process. Their elements come as bytes, row-major.
#[pyfunction]
#[pyo3(signature = (expressions, progress=None))]
pub(crate) fn compute(
    py: Python<'_>,
    expressions: Vec<PyRef<'_, Expression>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Py<PyBytes>>> {
    let targets = arrays(&expressions);
    drop(expressions);
    let results = in_process(py, progress, |engine, watch| engine.compute(&targets, watch))?;
    Ok(to_python(py, results))
}

/// Computes expressions in this process and keeps them as long as what is returned lives.
#[pyfunction]
#[pyo3(signature = (expressions, progress=None))]
pub(crate) fn persist(
    py: Python<'_>,
    expressions: Vec<PyRef<'_, Expression>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Expression>> {
    let targets = arrays(&expressions);
    drop(expressions);
    let held = in_process(py, progress, |engine, watch| engine.persist(&targets, watch))?;
    Ok(held.into_iter().map(Expression).collect())
}

/// Ends the functions that still run for this process, with what they started.
#[pyfunction]
pub(crate) fn end_functions() {
    runner::end_all();
}

/// The engine of this process, as soon as no other thread computes with it.
fn engine(watch: &mut PythonWatch) -> Option<MutexGuard<'static, Option<(u32, InProcess)>>> {
    loop {
        match ENGINE.try_lock() {
            Ok(engine) => return Some(engine),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if watch.is_interrupted() => return None,
            Err(TryLockError::WouldBlock) => thread::sleep(BUSY_INTERVAL),
        }
    }
}

/// Lets the engine of this process do something, while other Python threads run.
fn in_process<T: Send>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&mut InProcess, &mut PythonWatch) -> Result<T, ComputeError> + Send,
) -> PyResult<T> {
    let mut watch = PythonWatch::new(progress);
    let interpreter: OsString = py.import("sys")?.getattr("executable")?.extract()?;
    py.detach(|| {
        let Some(mut engine) = engine(&mut watch) else { return Err(interrupted(&mut watch)) };
        let own = process::id();
        if engine.as_ref().is_none_or(|(started_by, _)| *started_by != own) {
            let started = InProcess::start(Interpreter::new(interpreter));
            let started = started.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
            // What a fork inherited cannot be ended: its threads are the parent's.
            std::mem::forget(engine.replace((own, started)));
        }
        let (_, engine) = engine.as_mut().expect("it was started above");
        work(engine, &mut watch).map_err(|error| match error {
            ComputeError::Interrupted => interrupted(&mut watch),
            ComputeError::Array(error) => PyValueError::new_err(error.to_string()),
            ComputeError::TooLarge(error) => PyMemoryError::new_err(error.to_string()),
            ComputeError::Failed(failure) => task_failed(failure),
        })
    })
}

/// With what the function raised, if it raised, for Python to read.
fn task_failed(failure: Failure) -> PyErr {
    TaskFailed::new_err((failure.error, failure.exception))
}

fn interrupted(watch: &mut PythonWatch) -> PyErr {
    watch.raised.take().unwrap_or_else(|| PyRuntimeError::new_err("interrupted"))
}

/// A connection to a cluster's scheduler.
#[pyclass(frozen, module = "ebbtide._native")]
pub(crate) struct Client(client::Client);

#[pymethods]
impl Client {
    /// Connects to the endpoint that `ebbtide endpoint` printed.
    #[staticmethod]
    fn connect(py: Python<'_>, endpoint: &str) -> PyResult<Self> {
        let endpoint: Endpoint = serde_json::from_str(endpoint)
            .map_err(|error| PyConnectionError::new_err(format!("no endpoint: {error}")))?;
        let connected = py.detach(|| client::Client::connect(&endpoint));
        connected.map(Self).map_err(|error| raise(error, None))
    }

    /// Computes expressions on the cluster. Their elements come as bytes, row-major.
    #[pyo3(signature = (expressions, progress=None))]
    fn compute(
        &self,
        py: Python<'_>,
        expressions: Vec<PyRef<'_, Expression>>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Vec<Py<PyBytes>>> {
        let targets = arrays(&expressions);
        drop(expressions);
        let mut watch = PythonWatch::new(progress);
        let results = py.detach(|| self.0.compute(&targets, &mut watch));
        let results = results.map_err(|error| raise(error, Some(&mut watch)))?;
        Ok(to_python(py, results))
    }

    /// Ends what is on its way, and whatever is asked for from now on, for this reason.
    fn close(&self, reason: &str) {
        self.0.close(reason);
    }

    /// Name, cores, memory for tasks and chunks, and peak memory of each worker, in bytes.
    fn workers(&self, py: Python<'_>) -> PyResult<Vec<(String, u32, u64, u64)>> {
        let mut watch = PythonWatch::new(None);
        let workers = py.detach(|| self.0.workers(&mut watch));
        let workers = workers.map_err(|error| raise(error, Some(&mut watch)))?;
        let parts = |it: WorkerInfo| (it.name, it.cores, it.memory_bytes, it.peak_bytes);
        Ok(workers.into_iter().map(parts).collect())
    }

    /// Asks for expressions whose chunks stay with the workers, and does not wait.
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]
    fn persist(&self, expressions: Vec<PyRef<'_, Expression>>) -> PyResult<Vec<Expression>> {
        let persisted = self.0.persist(&arrays(&expressions));
        let (_, held) = persisted.map_err(|error| raise(error, None))?;
        Ok(held.into_iter().map(Expression).collect())
    }

    /// Asks for expressions and does not wait.
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]
    fn submit(&self, expressions: Vec<PyRef<'_, Expression>>) -> PyResult<Job> {
        self.0.submit(&arrays(&expressions)).map(Job).map_err(|error| raise(error, None))
    }
}

/// A computation on its way. It is cancelled when nobody refers to it any more.
#[pyclass(frozen, module = "ebbtide._native")]
pub(crate) struct Job(client::Job);

#[pymethods]
impl Job {
    /// Whether it has ended, well or not.
    fn is_done(&self) -> bool {
        self.0.is_done()
    }

    /// Cancels it, if it has not ended.
    fn cancel(&self) {
        self.0.cancel();
    }

    /// Waits for at most so many seconds, or as long as it takes. Bytes come once.
    #[pyo3(signature = (seconds=None))]
    fn wait(&self, py: Python<'_>, seconds: Option<f64>) -> PyResult<Vec<Py<PyBytes>>> {
        let mut watch = PythonWatch::new(None);
        let limit = seconds.map(|it| Duration::try_from_secs_f64(it.max(0.0)));
        let limit = limit.transpose().map_err(|error| PyValueError::new_err(error.to_string()))?;
        watch.until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let results = py.detach(|| self.0.wait(&mut watch));
        let results = results.map_err(|error| raise(error, Some(&mut watch)))?;
        Ok(to_python(py, results))
    }
}

fn raise(error: ClientError, watch: Option<&mut PythonWatch>) -> PyErr {
    match (error, watch) {
        (ClientError::Interrupted, Some(watch)) => interrupted(watch),
        (ClientError::Array(error), _) => PyValueError::new_err(error.to_string()),
        (ClientError::TooLarge(error), _) => PyMemoryError::new_err(error.to_string()),
        (ClientError::Failed(failure), _) => task_failed(failure),
        (error, _) => ConnectionLost::new_err(error.to_string()),
    }
}
