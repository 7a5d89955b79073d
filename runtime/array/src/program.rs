//! What the tasks of one group do, as data: kernels run it, workers carry it, the core ignores it.

use serde::{Deserialize, Serialize};

use crate::{BinaryOp, Call, DType, Distribution, Grid, ReduceOp};

/// What every task of a group does, at its own place.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Program {
    /// One chunk, element by element.
    Map(Map),
    /// One chunk, element by element, then over these axes, which stay with extent 1.
    Reduce {
        /// Makes the elements.
        map: Map,
        /// What is done with them.
        op: ReduceOp,
        /// Over which axes, ascending.
        axes: Vec<u8>,
    },
    /// A Python function of whole arrays, each given as its chunks in row-major order.
    Call {
        /// The function.
        call: Call,
        /// Type and chunks of each array.
        inputs: Vec<(DType, Grid)>,
    },
    /// Several chunks of equal shape, element by element, in the order of the inputs.
    Combine {
        /// What is done.
        op: ReduceOp,
        /// Type of the elements.
        dtype: DType,
    },
}

/// Elements of one chunk, by steps of which each is a register. The last is the result.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Map {
    /// Where the chunks lie; a task's place names one of them.
    pub grid: Grid,
    /// At least one step, each after those that it uses.
    pub steps: Vec<Step>,
}

/// One register of a [`Map`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Step {
    /// Elements of an input chunk.
    Input {
        /// Which input.
        input: u32,
        /// Type of its elements.
        dtype: DType,
        /// For each axis of the chunk, whether the input has it; it is repeated along the others.
        has_axis: Vec<bool>,
    },
    /// One element for all, little-endian.
    Scalar {
        /// Its type.
        dtype: DType,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Given elements of the whole array, row-major and little-endian: only one chunk has them.
    Constant {
        /// Their type.
        dtype: DType,
        /// The elements.
        bytes: Vec<u8>,
    },
    /// Random elements by their place in the whole array.
    Random {
        /// How they are distributed.
        distribution: Distribution,
        /// The generator's seed.
        seed: u64,
        /// Which of the generator's arrays this is.
        stream: u64,
    },
    /// Two registers.
    Binary {
        /// What is done.
        op: BinaryOp,
        /// Register on the left.
        left: u32,
        /// Register on the right.
        right: u32,
        /// Type of both and of the result.
        dtype: DType,
    },
    /// One register as another type.
    Cast {
        /// The register.
        from: u32,
        /// Its type.
        from_dtype: DType,
        /// The new type.
        dtype: DType,
    },
}

impl Program {
    /// Bytes for the wire.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a program is plain data")
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

impl Map {
    /// Type of the result.
    pub fn dtype(&self) -> DType {
        self.steps.last().expect("a map has at least one step").dtype()
    }
}

impl Step {
    /// Type of its elements.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Input { dtype, .. }
            | Self::Scalar { dtype, .. }
            | Self::Constant { dtype, .. }
            | Self::Binary { dtype, .. }
            | Self::Cast { dtype, .. } => *dtype,
            Self::Random { distribution: Distribution::Integers { .. }, .. } => DType::Int64,
            Self::Random { .. } => DType::Float64,
        }
    }

    /// Rough time for one element on one core, in picoseconds: what a 3 GHz core needed.
    pub fn picoseconds(&self) -> u64 {
        match self {
            Self::Random { distribution: Distribution::Normal, .. } => 10_000,
            Self::Random { .. } => 3_000,
            Self::Input { .. }
            | Self::Scalar { .. }
            | Self::Constant { .. }
            | Self::Binary { .. }
            | Self::Cast { .. } => 500,
        }
    }
}
