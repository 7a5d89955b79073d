//! Computes expressions, in this process or on a cluster. Other Python threads run meanwhile, and
//! Ctrl-C cancels.

use std::sync::{Mutex, PoisonError};

use ebbtide_array::Array;
use ebbtide_node::client::{self, ClientError, Endpoint};
use ebbtide_node::in_process::{ComputeError, InProcess, Watch};
use pyo3::exceptions::{PyConnectionError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::expression::Expression;
use crate::{ConnectionLost, TaskFailed};

/// The engine of this process, started at the first computation.
static ENGINE: Mutex<Option<InProcess>> = Mutex::new(None);

/// Tells a Python function of progress, and asks Python whether to stop.
struct PythonWatch {
    progress: Option<Py<PyAny>>,
    raised: Option<PyErr>,
}

impl PythonWatch {
    fn new(progress: Option<Py<PyAny>>) -> Self {
        Self { progress, raised: None }
    }

    fn keep(&mut self, result: PyResult<()>) {
        if let Err(error) = result {
            self.raised.get_or_insert(error);
        }
    }
}

impl Watch for PythonWatch {
    fn progress(&mut self, done: u64, tasks: u64) {
        if let Some(progress) = &self.progress {
            let told = Python::attach(|py| progress.call1(py, (done, tasks)).map(|_| ()));
            self.keep(told);
        }
    }

    fn is_interrupted(&mut self) -> bool {
        #[expect(clippy::redundant_closure_for_method_calls, reason = "the method is for one life")]
        let checked = Python::attach(|py| py.check_signals());
        self.keep(checked);
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
    let mut watch = PythonWatch::new(progress);
    let results = py.detach(|| {
        let mut engine = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
        if engine.is_none() {
            let started = InProcess::start();
            *engine = Some(started.map_err(|error| PyRuntimeError::new_err(error.to_string()))?);
        }
        let engine = engine.as_mut().expect("it was started above");
        engine.compute(&targets, &mut watch).map_err(|error| match error {
            ComputeError::Interrupted => interrupted(&mut watch),
            ComputeError::Array(error) => PyValueError::new_err(error.to_string()),
            ComputeError::Failed(error) => TaskFailed::new_err(error),
        })
    })?;
    Ok(to_python(py, results))
}

fn interrupted(watch: &mut PythonWatch) -> PyErr {
    watch.raised.take().unwrap_or_else(|| PyRuntimeError::new_err("interrupted"))
}

/// A connection to a cluster's scheduler.
#[pyclass(frozen, module = "ebbtide._native")]
pub(crate) struct Client(Mutex<client::Client>);

#[pymethods]
impl Client {
    /// Connects to the endpoint that `ebbtide endpoint` printed.
    #[staticmethod]
    fn connect(py: Python<'_>, endpoint: &str) -> PyResult<Self> {
        let endpoint: Endpoint = serde_json::from_str(endpoint)
            .map_err(|error| PyConnectionError::new_err(format!("no endpoint: {error}")))?;
        let connected = py.detach(|| client::Client::connect(&endpoint));
        connected.map(|client| Self(Mutex::new(client))).map_err(|error| raise(error, None))
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
        let results = py.detach(|| {
            let mut client = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            client.compute(&targets, &mut watch).map_err(|error| raise(error, Some(&mut watch)))
        })?;
        Ok(to_python(py, results))
    }
}

fn raise(error: ClientError, watch: Option<&mut PythonWatch>) -> PyErr {
    match (error, watch) {
        (ClientError::Interrupted, Some(watch)) => interrupted(watch),
        (ClientError::Failed(error), _) => TaskFailed::new_err(error),
        (error, _) => ConnectionLost::new_err(error.to_string()),
    }
}
