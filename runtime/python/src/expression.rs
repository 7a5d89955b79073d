//! Expressions as Python objects: each method makes one operation, or raises what is wrong with it.
#![expect(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]

use std::collections::BTreeMap;

use ebbtide_array::{
    Array, ArrayError, BinaryOp, Call, CompareOp, DType, Distribution, Op, ReduceOp,
};
use pyo3::exceptions::{PyIndexError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

/// One array expression.
#[pyclass(frozen, module = "ebbtide._native")]
pub(crate) struct Expression(pub(crate) Array);

/// The exception that a Python programmer expects for a mistake.
fn raise(error: ArrayError) -> PyErr {
    let message = error.to_string();
    match error {
        ArrayError::Promote { .. } | ArrayError::DType { .. } => PyTypeError::new_err(message),
        ArrayError::Axis { .. } | ArrayError::Range { .. } => PyIndexError::new_err(message),
        ArrayError::Broadcast { .. }
        | ArrayError::TooManyAxes(_)
        | ArrayError::AxisTwice { .. }
        | ArrayError::Chunks { .. }
        | ArrayError::TooManyChunks { .. }
        | ArrayError::ChunksDiffer { .. }
        | ArrayError::TakeChunks { .. }
        | ArrayError::NotHeld
        | ArrayError::HeldElsewhere
        | ArrayError::ChunkTooLarge { .. }
        | ArrayError::Argument { .. }
        | ArrayError::Bounds { .. }
        | ArrayError::Constant { .. }
        | ArrayError::Inputs(_)
        | ArrayError::TooLarge(_)
        | ArrayError::Group(_) => PyValueError::new_err(message),
    }
}

fn dtype(name: &str) -> PyResult<DType> {
    name.parse().map_err(PyTypeError::new_err)
}

#[pymethods]
impl Expression {
    #[staticmethod]
    fn constant(name: &str, shape: Vec<u64>, bytes: PyBackedBytes) -> PyResult<Self> {
        Array::constant(dtype(name)?, shape, bytes.to_vec()).map(Self).map_err(raise)
    }

    #[staticmethod]
    #[pyo3(signature = (distribution, key, shape, chunks=None, bounds=(0, 1)))]
    fn random(
        distribution: &str,
        key: (u64, u64),
        shape: Vec<u64>,
        chunks: Option<Vec<u64>>,
        bounds: (i64, i64),
    ) -> PyResult<Self> {
        let distribution = match distribution {
            "uniform" => Distribution::Uniform,
            "normal" => Distribution::Normal,
            "integers" => Distribution::Integers { low: bounds.0, high: bounds.1 },
            other => return Err(PyValueError::new_err(format!("no distribution {other:?}"))),
        };
        Array::random(distribution, key, &shape, chunks.as_deref()).map(Self).map_err(raise)
    }

    /// What a Python function makes of arrays: its name, number and Python version; function and
    /// arguments, pickled; dtype and shape of what it returns; bytes of memory, retries, and
    /// what it takes of other resources.
    #[staticmethod]
    fn call(
        title: (String, u64, (u8, u8)),
        pickled: (PyBackedBytes, PyBackedBytes),
        returns: (String, Vec<u64>),
        limits: (u64, u32, BTreeMap<String, u64>),
        inputs: Vec<PyRef<'_, Self>>,
    ) -> PyResult<Self> {
        let (name, number, python) = title;
        let call = Call {
            name,
            number,
            function: pickled.0.to_vec(),
            arguments: pickled.1.to_vec(),
            python,
            dtype: dtype(&returns.0)?,
            shape: returns.1,
            memory_bytes: limits.0,
            retries: limits.1,
            resources: limits.2,
        };
        let inputs = inputs.iter().map(|input| input.0.clone()).collect();
        Array::new(Op::Call(call), inputs).map(Self).map_err(raise)
    }

    fn binary(&self, op: &str, other: &Self) -> PyResult<Self> {
        let op = match op {
            "add" => BinaryOp::Add,
            "subtract" => BinaryOp::Subtract,
            "multiply" => BinaryOp::Multiply,
            "divide" => BinaryOp::Divide,
            other => return Err(PyValueError::new_err(format!("no operation {other:?}"))),
        };
        Array::binary(op, &self.0, &other.0).map(Self).map_err(raise)
    }

    fn compare(&self, op: &str, other: &Self) -> PyResult<Self> {
        let op = match op {
            "less" => CompareOp::Less,
            "less_equal" => CompareOp::LessEqual,
            "greater" => CompareOp::Greater,
            "greater_equal" => CompareOp::GreaterEqual,
            "equal" => CompareOp::Equal,
            "not_equal" => CompareOp::NotEqual,
            other => return Err(PyValueError::new_err(format!("no comparison {other:?}"))),
        };
        Array::compare(op, &self.0, &other.0).map(Self).map_err(raise)
    }

    fn matmul(&self, other: &Self) -> PyResult<Self> {
        self.0.matmul(&other.0).map(Self).map_err(raise)
    }

    fn take(&self, indices: &Self, axis: i64) -> PyResult<Self> {
        self.0.take(&indices.0, axis).map(Self).map_err(raise)
    }

    /// For each axis the first element, how many, and how far apart.
    fn slice(&self, ranges: Vec<(u64, u64, u64)>) -> PyResult<Self> {
        self.0.slice(&ranges).map(Self).map_err(raise)
    }

    fn rechunk(&self, chunks: Vec<u64>) -> PyResult<Self> {
        self.0.rechunk(&chunks).map(Self).map_err(raise)
    }

    fn quantile(&self, q: f64) -> PyResult<Self> {
        self.0.quantile(q).map(Self).map_err(raise)
    }

    fn topk(&self, k: u64) -> PyResult<Self> {
        self.0.topk(k).map(Self).map_err(raise)
    }

    #[pyo3(signature = (op, axes=None))]
    fn reduce(&self, op: &str, axes: Option<Vec<i64>>) -> PyResult<Self> {
        let axes = axes.as_deref();
        let reduced = match op {
            "sum" => self.0.reduce(ReduceOp::Sum, axes),
            "prod" => self.0.reduce(ReduceOp::Prod, axes),
            "mean" => self.0.mean(axes),
            other => return Err(PyValueError::new_err(format!("no reduction {other:?}"))),
        };
        reduced.map(Self).map_err(raise)
    }

    fn cast(&self, to: &str) -> PyResult<Self> {
        self.0.cast(dtype(to)?).map(Self).map_err(raise)
    }

    #[getter]
    fn shape(&self) -> Vec<u64> {
        self.0.shape()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.dtype().name()
    }

    /// Extents of the chunks along each axis.
    #[getter]
    fn chunks(&self) -> Vec<Vec<u64>> {
        let grid = &self.0.node().grid;
        let extents = |axis: usize| -> Vec<u64> {
            let ends = grid.ends(axis);
            let starts = std::iter::once(&0).chain(ends);
            ends.iter().zip(starts).map(|(end, start)| end - start).collect()
        };
        (0..grid.axes()).map(extents).collect()
    }
}
