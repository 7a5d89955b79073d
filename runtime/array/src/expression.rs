//! Array expressions: what is to be computed, with shape, dtype and chunks known at every node.

mod infer;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::expression::infer::infer;
pub(crate) use crate::expression::infer::without;
use crate::{ArrayError, DType, Grid, Kind, auto_chunks};

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

/// A question about two arrays, element by element. The answer is `bool`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum CompareOp {
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
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

/// Arrays that a function may be given: each comes to its process as a descriptor, all in one message.
pub const CALL_INPUTS_MAX: usize = 64;

/// Axes that an array may have: NumPy's own limit.
pub const AXES_MAX: usize = 64;

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
    /// Compared element by element.
    Compare(CompareOp),
    /// Converted element by element.
    Cast(DType),
    /// With another axis of extent 1 before this one.
    Expand {
        /// Where the new axis stands.
        axis: u8,
    },
    /// Elements of the first input at the places along an axis that the second one names.
    Take {
        /// The axis, for which the places' axes stand in the result.
        axis: u8,
    },
    /// Part of an array, or the same array in other chunks.
    Slice {
        /// For each axis, where the first element lies and how far apart they are.
        along: Vec<(u64, u64)>,
        /// Where the chunks of the result lie.
        grid: Grid,
    },
    /// A quantile over all elements, linear between the two nearest.
    Quantile {
        /// Which, bits of `f64` in [0, 1].
        q: u64,
    },
    /// The largest elements of an array with one axis, in descending order.
    TopK {
        /// How many.
        k: u64,
    },
    /// What a Python function makes of whole arrays, in one chunk.
    Call(Call),
    /// Chunks that an earlier job keeps.
    Held {
        /// Whose job: a number that no other client and engine has.
        session: u64,
        /// The job's number there.
        job: u64,
        /// Which of its targets.
        target: u32,
        /// Type of the elements.
        dtype: DType,
        /// Where the chunks lie.
        grid: Grid,
    },
    /// Over axes, which go.
    Reduce {
        /// What is done.
        op: ReduceOp,
        /// Over which axes, ascending.
        axes: Vec<u8>,
    },
}

/// A Python function, its arguments and what it promises.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Call {
    /// The function's name, for messages.
    pub name: String,
    /// Tells this call from others of the same function, which need not give the same.
    pub number: u64,
    /// The function, pickled by value.
    pub function: Vec<u8>,
    /// Its arguments, pickled; where one is an array, its number among the inputs.
    pub arguments: Vec<u8>,
    /// Version of the Python that pickled them: major and minor.
    pub python: (u8, u8),
    /// Type of what it returns: an array's, or an object.
    pub dtype: DType,
    /// Shape of what it returns.
    pub shape: Vec<u64>,
    /// Memory that its process may take, in bytes.
    pub memory_bytes: u64,
    /// What it takes of its worker beside cores and memory, by kind.
    pub resources: BTreeMap<String, u64>,
    /// How often it is tried again when it raises.
    pub retries: u32,
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
    /// What must live as long as anything refers to this array.
    #[expect(dead_code, reason = "held, not read")]
    guard: Option<Arc<dyn Any + Send + Sync>>,
}

/// An array that need not exist yet.
#[derive(Clone, Debug)]
pub struct Array(Arc<Node>);

impl Array {
    /// The array that `op` makes of `inputs`, or why there is none.
    pub fn new(op: Op, inputs: Vec<Self>) -> Result<Self, ArrayError> {
        let (dtype, grid) = infer(&op, &inputs)?;
        if grid.axes() > AXES_MAX {
            return Err(ArrayError::TooManyAxes(grid.axes()));
        }
        let elements = grid.shape().iter().try_fold(1_u64, |all, extent| all.checked_mul(*extent));
        if elements.and_then(|elements| elements.checked_mul(dtype.item_bytes())).is_none() {
            return Err(ArrayError::TooLarge(grid.shape()));
        }
        Ok(Self(Arc::new(Node { op, inputs, dtype, grid, guard: None })))
    }

    /// What target number `target` of a job of this `session` keeps of an array, as long as `guard`
    /// lives, which the array sees to.
    pub fn held(
        of: &Self,
        (session, job, target): (u64, u64, u32),
        guard: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let (dtype, grid) = (of.dtype(), of.0.grid.clone());
        let op = Op::Held { session, job, target, dtype, grid: grid.clone() };
        let inputs = Vec::new();
        Self(Arc::new(Node { op, inputs, dtype, grid, guard: Some(guard) }))
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
        let right = right.cast(to)?.aligned(left)?;
        Self::new(Op::Binary(op), vec![left.cast(to)?, right])
    }

    /// Compared element by element, after promotion.
    pub fn compare(op: CompareOp, left: &Self, right: &Self) -> Result<Self, ArrayError> {
        let (left_type, right_type) = (left.dtype(), right.dtype());
        let Some(to) = left_type.promote(right_type) else {
            let (left, right) = (left_type, right_type);
            return Err(ArrayError::Promote { op: op.name(), left, right });
        };
        let right = right.cast(to)?.aligned(left)?;
        Self::new(Op::Compare(op), vec![left.cast(to)?, right])
    }

    /// The same array in these chunks.
    pub fn rechunk(&self, chunks: &[u64]) -> Result<Self, ArrayError> {
        self.recut(Grid::regular(&self.shape(), chunks)?)
    }

    fn recut(&self, grid: Grid) -> Result<Self, ArrayError> {
        if grid == self.0.grid {
            return Ok(self.clone());
        }
        let along = vec![(0, 1); grid.axes()];
        Self::new(Op::Slice { along, grid }, vec![self.clone()])
    }

    /// The same array, cut as another is along the axes on which both have elements to meet.
    fn aligned(self, to: &Self) -> Result<Self, ArrayError> {
        let (own, other) = (&self.0.grid, &to.0.grid);
        let ends = (0..own.axes()).map(|axis| {
            let theirs = (axis + other.axes()).checked_sub(own.axes()).map(|it| other.ends(it));
            let mine = own.ends(axis);
            theirs.filter(|theirs| theirs.last() == mine.last()).unwrap_or(mine).to_vec()
        });
        let grid = Grid::from_ends(ends.collect());
        self.recut(grid)
    }

    /// With another axis of extent 1 before `axis`, which may be the number of axes.
    pub fn expand(&self, axis: usize) -> Result<Self, ArrayError> {
        let axis = u8::try_from(axis).unwrap_or(u8::MAX);
        Self::new(Op::Expand { axis }, vec![self.clone()])
    }

    /// The product of matrices over the last axis here and the last but one, or the only one,
    /// there.
    pub fn matmul(&self, right: &Self) -> Result<Self, ArrayError> {
        let (left_shape, right_shape) = (self.shape(), right.shape());
        let axes = right_shape.len();
        let inner = if axes == 1 { right_shape.first() } else { right_shape.iter().nth_back(1) };
        if left_shape.is_empty() || axes == 0 || axes > 2 || left_shape.last() != inner {
            let (left, right) = (left_shape, right_shape);
            return Err(ArrayError::Argument {
                op: "matmul",
                what: format!(
                    "shapes {left:?} and {right:?} do not go together; expected (…, n, k) with (k,) \
                     or (k, m)"
                ),
            });
        }
        let (left, right_dtype) = (self.dtype(), right.dtype());
        if left != right_dtype {
            return Err(ArrayError::Promote { op: "matmul", left, right: right_dtype });
        }
        if left == DType::Bool {
            let (dtype, expected) = (left, "int64 or float64");
            return Err(ArrayError::DType { op: "matmul", dtype, expected });
        }
        if axes == 1 {
            return Self::binary(BinaryOp::Multiply, self, right)?
                .reduce(ReduceOp::Sum, Some(&[-1]));
        }
        let left = self.expand(left_shape.len())?;
        let products = Self::binary(BinaryOp::Multiply, &left, right)?;
        products.reduce(ReduceOp::Sum, Some(&[-2]))
    }

    /// Elements at the places along an axis that `indices` of `int64` name, negative ones counted
    /// from the end. The axes of `indices` stand for the axis.
    pub fn take(&self, indices: &Self, axis: i64) -> Result<Self, ArrayError> {
        let axes = self.axes("take", Some(&[axis]))?;
        Self::new(Op::Take { axis: axes[0] }, vec![self.clone(), indices.clone()])
    }

    /// For each axis a range of elements: the first, how many, and how far apart.
    pub fn slice(&self, ranges: &[(u64, u64, u64)]) -> Result<Self, ArrayError> {
        let along: Vec<(u64, u64)> =
            ranges.iter().map(|(start, _, step)| (*start, *step)).collect();
        let grid = self.0.grid.sliced(ranges);
        if along.iter().all(|it| *it == (0, 1)) && grid == self.0.grid {
            return Ok(self.clone());
        }
        Self::new(Op::Slice { along, grid }, vec![self.clone()])
    }

    /// The quantile over all elements, linear between the two nearest; NaN if one is NaN.
    pub fn quantile(&self, q: f64) -> Result<Self, ArrayError> {
        Self::new(Op::Quantile { q: q.to_bits() }, vec![self.cast(DType::Float64)?])
    }

    /// The largest elements of an array with one axis, in descending order; NaN is the largest.
    pub fn topk(&self, k: u64) -> Result<Self, ArrayError> {
        Self::new(Op::TopK { k }, vec![self.clone()])
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
            Kind::Float | Kind::Complex | Kind::Object => self.dtype(),
        };
        Self::new(Op::Reduce { op, axes }, vec![self.cast(to)?])
    }

    /// The arithmetic mean over these axes, or over all, in `float64` for integers.
    pub fn mean(&self, axes: Option<&[i64]>) -> Result<Self, ArrayError> {
        let over = self.axes("mean", axes)?;
        let shape = self.shape();
        let count: u64 = over.iter().map(|axis| shape[usize::from(*axis)]).product();
        let sum = self.cast(DType::Float64)?.reduce(ReduceOp::Sum, axes)?;
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

    /// Bytes of all its elements; 0 for an object.
    pub fn bytes(&self) -> u64 {
        let elements: u64 = self.shape().iter().product();
        elements.saturating_mul(self.dtype().item_bytes())
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

impl Op {
    /// What people call it.
    pub fn name(&self) -> &str {
        match self {
            Self::Constant { .. } => "asarray",
            Self::Random { .. } => "random",
            Self::Binary(op) => op.name(),
            Self::Compare(op) => op.name(),
            Self::Cast(_) => "astype",
            Self::Expand { .. } => "expand_dims",
            Self::Take { .. } => "take",
            Self::Slice { .. } => "slice",
            Self::Quantile { .. } => "quantile",
            Self::TopK { .. } => "topk",
            Self::Call(call) => &call.name,
            Self::Held { .. } => "persist",
            Self::Reduce { op, .. } => op.name(),
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

impl CompareOp {
    /// The standard's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Less => "less",
            Self::LessEqual => "less_equal",
            Self::Greater => "greater",
            Self::GreaterEqual => "greater_equal",
            Self::Equal => "equal",
            Self::NotEqual => "not_equal",
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

#[cfg(test)]
mod tests;
