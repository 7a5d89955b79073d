//! Array expressions: what is to be computed, with shape, dtype and chunks known at every node.

use std::sync::Arc;

use ebbtide_core::GroupError;
use serde::{Deserialize, Serialize};

use crate::{DType, Grid, Kind, auto_chunks, broadcast};

/// An operation of two arrays, element by element.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum BinaryOp {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`, always in floating point
    Divide,
}

/// An operation over axes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum ReduceOp {
    /// The sum.
    Sum,
    /// The product.
    Prod,
}

/// How random elements are distributed. Bounds and parameters are bits of `f64`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Distribution {
    /// Uniform in [0, 1), multiples of 2⁻⁵³.
    Uniform,
    /// Normal with mean 0 and standard deviation 1.
    Normal,
    /// Integers in [low, high).
    Integers {
        /// Smallest value.
        low: i64,
        /// One more than the largest value.
        high: i64,
    },
}

/// What a node does with its inputs.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Op {
    /// Given elements, row-major and little-endian.
    Constant {
        /// Their type.
        dtype: DType,
        /// Where they lie: one chunk.
        shape: Vec<u64>,
        /// The elements.
        bytes: Vec<u8>,
    },
    /// Random elements, each a function of seed, stream and place.
    Random {
        /// How they are distributed.
        distribution: Distribution,
        /// The generator's seed.
        seed: u64,
        /// Which of the generator's arrays this is.
        stream: u64,
        /// Where they lie.
        grid: Grid,
    },
    /// Element by element.
    Binary(BinaryOp),
    /// Converted element by element.
    Cast(DType),
    /// Over axes, which go.
    Reduce {
        /// What is done.
        op: ReduceOp,
        /// Over which axes, ascending.
        axes: Vec<u8>,
    },
}

/// One operation of an expression.
#[derive(Debug)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// With what.
    pub inputs: Vec<Array>,
    /// Type of its elements.
    pub dtype: DType,
    /// Where its chunks lie.
    pub grid: Grid,
}

/// An array that need not exist yet.
#[derive(Clone, Debug)]
pub struct Array(Arc<Node>);

/// An expression that means nothing. Texts are for the person who wrote it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ArrayError {
    /// Shapes that do not go together.
    #[error(
        "{op}: shapes {left:?} and {right:?} do not broadcast; \
         extents must be equal or 1, counted from the last axis"
    )]
    Broadcast {
        /// The operation.
        op: &'static str,
        /// Shape on the left.
        left: Vec<u64>,
        /// Shape on the right.
        right: Vec<u64>,
    },
    /// Types that do not go together.
    #[error("{op}: {left} and {right} do not promote; convert one of them with astype")]
    Promote {
        /// The operation.
        op: &'static str,
        /// Type on the left.
        left: DType,
        /// Type on the right.
        right: DType,
    },
    /// A type that the operation does not take.
    #[error("{op}: {dtype} is not supported; convert to {expected} with astype")]
    DType {
        /// The operation.
        op: &'static str,
        /// The type.
        dtype: DType,
        /// What it takes.
        expected: &'static str,
    },
    /// An axis that is not there.
    #[error("{op}: axis {axis} is out of range for an array of {axes} axes")]
    Axis {
        /// The operation.
        op: &'static str,
        /// The axis.
        axis: i64,
        /// How many there are.
        axes: usize,
    },
    /// An axis that is named twice.
    #[error("{op}: axis {axis} is named twice")]
    AxisTwice {
        /// The operation.
        op: &'static str,
        /// The axis.
        axis: i64,
    },
    /// Chunks that do not fit the shape.
    #[error(
        "chunks {chunks:?} do not fit the shape {shape:?}; expected one extent of at least 1 for each axis"
    )]
    Chunks {
        /// The shape.
        shape: Vec<u64>,
        /// The chunks.
        chunks: Vec<u64>,
    },
    /// Chunks of two arrays that do not lie alike.
    #[error("{op}: the chunks of the arrays do not lie alike; give both the same chunks")]
    ChunksDiffer {
        /// The operation.
        op: &'static str,
    },
    /// Bounds without an integer between them.
    #[error("integers: low {low} must be less than high {high}")]
    Bounds {
        /// Smallest value.
        low: i64,
        /// One more than the largest value.
        high: i64,
    },
    /// Elements that do not fill the shape.
    #[error("{bytes} bytes do not fill the shape {shape:?} of {dtype}")]
    Constant {
        /// How many were given.
        bytes: usize,
        /// The shape.
        shape: Vec<u64>,
        /// The type.
        dtype: DType,
    },
    /// A node with another number of inputs than its operation takes.
    #[error("an operation has {0} inputs, which it does not take")]
    Inputs(usize),
    /// A shape too large to count.
    #[error("an array of shape {0:?} has more bytes than can be counted")]
    TooLarge(Vec<u64>),
    /// More chunks than can be scheduled.
    #[error(transparent)]
    Group(#[from] GroupError),
}

impl Array {
    /// The array that `op` makes of `inputs`, or why there is none.
    pub fn new(op: Op, inputs: Vec<Self>) -> Result<Self, ArrayError> {
        let (dtype, grid) = infer(&op, &inputs)?;
        let elements = grid.shape().iter().try_fold(1_u64, |all, extent| all.checked_mul(*extent));
        if elements.and_then(|elements| elements.checked_mul(dtype.item_bytes())).is_none() {
            return Err(ArrayError::TooLarge(grid.shape()));
        }
        Ok(Self(Arc::new(Node { op, inputs, dtype, grid })))
    }

    /// Given elements in one chunk, row-major and little-endian.
    pub fn constant(dtype: DType, shape: Vec<u64>, bytes: Vec<u8>) -> Result<Self, ArrayError> {
        Self::new(Op::Constant { dtype, shape, bytes }, Vec::new())
    }

    /// Random elements. Chunks are automatic where none are given.
    pub fn random(
        distribution: Distribution,
        (seed, stream): (u64, u64),
        shape: &[u64],
        chunks: Option<&[u64]>,
    ) -> Result<Self, ArrayError> {
        let auto = auto_chunks(shape, 8);
        let grid = Grid::regular(shape, chunks.unwrap_or(&auto))?;
        Self::new(Op::Random { distribution, seed, stream, grid }, Vec::new())
    }

    /// Element by element, after promotion; integers divide as `float64`.
    pub fn binary(op: BinaryOp, left: &Self, right: &Self) -> Result<Self, ArrayError> {
        let (left_type, right_type) = (left.dtype(), right.dtype());
        let Some(promoted) = left_type.promote(right_type) else {
            let (left, right) = (left_type, right_type);
            return Err(ArrayError::Promote { op: op.name(), left, right });
        };
        let is_integer = matches!(promoted.kind(), Kind::Signed | Kind::Unsigned);
        let to = if is_integer && op == BinaryOp::Divide { DType::Float64 } else { promoted };
        Self::new(Op::Binary(op), vec![left.cast(to)?, right.cast(to)?])
    }

    /// The same elements as another type.
    pub fn cast(&self, to: DType) -> Result<Self, ArrayError> {
        if self.dtype() == to {
            return Ok(self.clone());
        }
        Self::new(Op::Cast(to), vec![self.clone()])
    }

    /// Over these axes, negative ones counted from the end, or over all. Small integers and
    /// booleans are summed as `int64`.
    pub fn reduce(&self, op: ReduceOp, axes: Option<&[i64]>) -> Result<Self, ArrayError> {
        let axes = self.axes(op.name(), axes)?;
        let to = match self.dtype().kind() {
            Kind::Bool | Kind::Signed => DType::Int64,
            Kind::Unsigned => DType::UInt64,
            Kind::Float | Kind::Complex => self.dtype(),
        };
        Self::new(Op::Reduce { op, axes }, vec![self.cast(to)?])
    }

    /// The arithmetic mean over these axes, or over all, in `float64` for integers.
    pub fn mean(&self, axes: Option<&[i64]>) -> Result<Self, ArrayError> {
        let over = self.axes("mean", axes)?;
        let shape = self.shape();
        let count: u64 = over.iter().map(|axis| shape[usize::from(*axis)]).product();
        let sum = self.reduce(ReduceOp::Sum, axes)?.cast(DType::Float64)?;
        let bytes = (count as f64).to_le_bytes().to_vec();
        Self::binary(BinaryOp::Divide, &sum, &Self::constant(DType::Float64, vec![], bytes)?)
    }

    /// The operation that makes it.
    pub fn node(&self) -> &Node {
        &self.0
    }

    /// Type of its elements.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Extent of each axis.
    pub fn shape(&self) -> Vec<u64> {
        self.0.grid.shape()
    }

    /// Tells this very node from every other one that lives.
    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    fn axes(&self, op: &'static str, axes: Option<&[i64]>) -> Result<Vec<u8>, ArrayError> {
        let count = self.0.grid.axes();
        let Some(axes) = axes else {
            return Ok((0..count).filter_map(|axis| u8::try_from(axis).ok()).collect());
        };
        let signed = i64::try_from(count).unwrap_or(i64::MAX);
        let mut counted = Vec::new();
        for axis in axes {
            let from_start = if *axis < 0 { axis + signed } else { *axis };
            let known = u8::try_from(from_start).ok().filter(|at| usize::from(*at) < count);
            let known = known.ok_or(ArrayError::Axis { op, axis: *axis, axes: count })?;
            if counted.contains(&known) {
                return Err(ArrayError::AxisTwice { op, axis: *axis });
            }
            counted.push(known);
        }
        counted.sort_unstable();
        Ok(counted)
    }
}

impl Drop for Node {
    /// Without recursion: expressions may be thousands of operations deep.
    fn drop(&mut self) {
        let mut orphans = std::mem::take(&mut self.inputs);
        while let Some(orphan) = orphans.pop() {
            if let Some(mut node) = Arc::into_inner(orphan.0) {
                orphans.append(&mut node.inputs);
            }
        }
    }
}

impl BinaryOp {
    /// The standard's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Subtract => "subtract",
            Self::Multiply => "multiply",
            Self::Divide => "divide",
        }
    }
}

impl ReduceOp {
    /// The standard's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Prod => "prod",
        }
    }
}

/// Type and chunks of what `op` makes of `inputs`. Trusts nothing: expressions come over the wire.
fn infer(op: &Op, inputs: &[Array]) -> Result<(DType, Grid), ArrayError> {
    match (op, inputs) {
        (Op::Constant { dtype, shape, bytes }, []) => {
            supported("asarray", *dtype)?;
            let elements =
                shape.iter().try_fold(dtype.item_bytes(), |all, it| all.checked_mul(*it));
            if elements != Some(bytes.len() as u64) {
                let (bytes, shape) = (bytes.len(), shape.clone());
                return Err(ArrayError::Constant { bytes, shape, dtype: *dtype });
            }
            let whole: Vec<u64> = shape.iter().map(|extent| (*extent).max(1)).collect();
            Ok((*dtype, Grid::regular(shape, &whole)?))
        }
        (Op::Random { distribution, grid, .. }, []) => {
            grid.space()?;
            match *distribution {
                Distribution::Integers { low, high } if low >= high => {
                    Err(ArrayError::Bounds { low, high })
                }
                Distribution::Integers { .. } => Ok((DType::Int64, grid.clone())),
                Distribution::Uniform | Distribution::Normal => Ok((DType::Float64, grid.clone())),
            }
        }
        (Op::Binary(op), [left, right]) => {
            let (name, dtype) = (op.name(), left.dtype());
            supported(name, dtype)?;
            if dtype != right.dtype() || dtype == DType::Bool {
                let (left, right) = (dtype, right.dtype());
                return Err(ArrayError::Promote { op: name, left, right });
            }
            if *op == BinaryOp::Divide && dtype.kind() != Kind::Float {
                return Err(ArrayError::DType { op: name, dtype, expected: "float64" });
            }
            Ok((dtype, broadcast_grids(name, left, right)?))
        }
        (Op::Cast(to), [from]) => {
            supported("astype", *to)?;
            supported("astype", from.dtype())?;
            Ok((*to, from.node().grid.clone()))
        }
        (Op::Reduce { op, axes }, [from]) => {
            let dtype = from.dtype();
            if !matches!(dtype, DType::Int64 | DType::Float64) {
                return Err(ArrayError::DType { op: op.name(), dtype, expected: "float64" });
            }
            let grid = &from.node().grid;
            let ascending = axes.windows(2).all(|pair| pair[0] < pair[1]);
            match axes.last() {
                Some(last) if !ascending || usize::from(*last) >= grid.axes() => {
                    let (op, axis) = (op.name(), i64::from(*last));
                    Err(ArrayError::Axis { op, axis, axes: grid.axes() })
                }
                _ => Ok((dtype, without(grid, axes))),
            }
        }
        (
            Op::Constant { .. }
            | Op::Random { .. }
            | Op::Binary(_)
            | Op::Cast(_)
            | Op::Reduce { .. },
            _,
        ) => Err(ArrayError::Inputs(inputs.len())),
    }
}

fn supported(op: &'static str, dtype: DType) -> Result<(), ArrayError> {
    if dtype.has_kernels() {
        return Ok(());
    }
    Err(ArrayError::DType { op, dtype, expected: "float64, int64 or bool" })
}

/// The grid without these axes.
pub(crate) fn without(grid: &Grid, axes: &[u8]) -> Grid {
    let kept = (0..grid.axes()).filter(|axis| !axes.iter().any(|it| usize::from(*it) == *axis));
    Grid::from_ends(kept.map(|axis| grid.ends(axis).to_vec()).collect())
}

fn broadcast_grids(op: &'static str, left: &Array, right: &Array) -> Result<Grid, ArrayError> {
    let (left_shape, right_shape) = (left.shape(), right.shape());
    let Some(shape) = broadcast(&left_shape, &right_shape) else {
        return Err(ArrayError::Broadcast { op, left: left_shape, right: right_shape });
    };
    let ends = |array: &Array, axis: usize| -> Option<Vec<u64>> {
        let grid = &array.node().grid;
        let axis = (axis + grid.axes()).checked_sub(shape.len())?;
        let ends = grid.ends(axis).to_vec();
        (ends != [1]).then_some(ends)
    };
    let axes = (0..shape.len()).map(|axis| match (ends(left, axis), ends(right, axis)) {
        (Some(a), Some(b)) if a != b => Err(ArrayError::ChunksDiffer { op }),
        (Some(ends), _) | (None, Some(ends)) => Ok(ends),
        (None, None) => Ok(vec![1]),
    });
    Ok(Grid::from_ends(axes.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests;
