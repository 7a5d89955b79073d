//! What the tasks of one group do, as data: kernels run it, workers carry it, the core ignores it.

use std::cmp::Ordering;

use ebbtide_core::{AxisRelation, Overlap, Relation};
use serde::{Deserialize, Serialize};

use crate::{BinaryOp, Call, CompareOp, DType, Distribution, Grid, ReduceOp};

/// Rounds in which a quantile is found: digits of an element's order.
pub const ROUNDS: u8 = 6;

/// Bits of each digit but the last, which has what is left of 64.
pub const DIGIT_BITS: u32 = 11;

/// Bytes of a histogram: for each of two ranks a count for each digit, and a count of NaN.
pub const HISTOGRAM_BYTES: u64 = (2 * (1 << DIGIT_BITS) + 1) * 8;

/// Bytes of the state between rounds: counts of numbers and of NaN, and for two ranks the digits found and the rank
/// that is left among the elements that have them.
pub const STATE_BYTES: u64 = 6 * 8;

/// Elements that a map makes at once, as long as its axes allow: registers stay in the second-level
/// cache.
const PORTION: u64 = 4096;

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
    /// Part of another array, or the same cut otherwise: given the chunks that overlap it.
    Slice(Slice),
    /// How many elements have each digit of their order, among those that agree with the digits
    /// found so far. Inputs: those of the map, then the state of the round before, if any.
    Histogram {
        /// Makes the elements, of `float64`.
        map: Map,
        /// Which digit, most significant first.
        round: u8,
    },
    /// The digits of the wanted elements: from a histogram and the state before it, if any.
    Narrow {
        /// The quantile, bits of `f64` in [0, 1].
        q: u64,
        /// Which digit.
        round: u8,
    },
    /// The quantile, once every digit is known.
    Interpolate {
        /// The quantile, bits of `f64`.
        q: u64,
    },
    /// The largest elements, in descending order.
    TopK {
        /// Makes the elements.
        map: Map,
        /// How many.
        k: u64,
    },
    /// The largest elements of several such chunks.
    MergeTopK {
        /// Type of the elements.
        dtype: DType,
        /// How many.
        k: u64,
    },
    /// Several chunks of equal shape, element by element, in the order of the inputs.
    Combine {
        /// What is done.
        op: ReduceOp,
        /// Type of the elements.
        dtype: DType,
    },
}

/// Which elements of an array are another's, and where its chunks lie.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Slice {
    /// Type of the elements.
    pub dtype: DType,
    /// Where the chunks of the source lie.
    pub source: Grid,
    /// Where those of the result lie.
    pub target: Grid,
    /// For each axis, where the first element lies and how far apart they are.
    pub along: Vec<(u64, u64)>,
}

/// Elements of one chunk, by steps of which each fills a register. The last is the result.
///
/// Steps run over axes of their own: those of the result, and in their places those that a
/// reduction ends. A register has some of the axes and one element along the others.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Map {
    /// Where the chunks lie along all axes. One that is not the result's has one chunk.
    pub grid: Grid,
    /// Which of the axes are the result's, ascending; a task's place names a chunk along them.
    pub kept: Vec<u8>,
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
        /// For each axis of the map, whether the input has it.
        has_axis: Vec<bool>,
    },
    /// One element for all, little-endian.
    Scalar {
        /// Its type.
        dtype: DType,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Given elements of a whole array, row-major and little-endian: only one chunk has them.
    Constant {
        /// Their type.
        dtype: DType,
        /// The elements.
        bytes: Vec<u8>,
        /// For each axis of the map, whether the array has it.
        has_axis: Vec<bool>,
    },
    /// Random elements by their place in their own array.
    Random {
        /// How they are distributed.
        distribution: Distribution,
        /// The generator's seed.
        seed: u64,
        /// Which of the generator's arrays this is.
        stream: u64,
        /// For each axis of the map, whether the array has it.
        has_axis: Vec<bool>,
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
    /// Two registers, compared.
    Compare {
        /// What is asked.
        op: CompareOp,
        /// Register on the left.
        left: u32,
        /// Register on the right.
        right: u32,
        /// Type of both.
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
    /// Elements of an input chunk that is whole along one of its axes, at the places along it that
    /// a register names.
    Take {
        /// Which input.
        input: u32,
        /// Type of its elements.
        dtype: DType,
        /// The places, of `int64`, negative ones counted from the end.
        index: u32,
        /// Extent of the axis along which they count.
        extent: u64,
        /// Axes of the map that the input has before that axis.
        before: Vec<u8>,
        /// Axes of the map that the input has behind it: all behind those of the index.
        after: Vec<u8>,
    },
    /// One register over some of its axes, of which each is whole in every chunk.
    Reduce {
        /// What is done.
        op: ReduceOp,
        /// The register.
        from: u32,
        /// Over which axes of the map, ascending; never the first.
        axes: Vec<u8>,
        /// Type of the elements.
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

impl Slice {
    /// Which chunks of the source each chunk of the result needs.
    pub fn relation(&self) -> Relation {
        let overlap = |(axis, (start, step)): (usize, &(u64, u64))| {
            AxisRelation::Overlap(Overlap {
                axis: u8::try_from(axis).expect("an array has at most 255 axes"),
                producer_ends: self.source.ends(axis).into(),
                consumer_ends: self.target.ends(axis).into(),
                start: *start,
                step: *step,
            })
        };
        Relation(self.along.iter().enumerate().map(overlap).collect())
    }
}

impl Map {
    /// Type of the result.
    pub fn dtype(&self) -> DType {
        self.steps.last().expect("a map has at least one step").dtype()
    }

    /// For each register, which axes of the map it has. None where a step names what is not there.
    pub fn register_axes(&self) -> Option<Vec<Vec<bool>>> {
        let axes = self.grid.axes();
        let mut registers: Vec<Vec<bool>> = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let register = |at: &u32| registers.get(*at as usize);
            let has_axis = match step {
                Step::Input { has_axis, .. }
                | Step::Constant { has_axis, .. }
                | Step::Random { has_axis, .. } => has_axis.clone(),
                Step::Scalar { .. } => vec![false; axes],
                Step::Binary { left, right, .. } | Step::Compare { left, right, .. } => {
                    let (left, right) = (register(left)?, register(right)?);
                    left.iter().zip(right).map(|(left, right)| left | right).collect()
                }
                Step::Cast { from, .. } => register(from)?.clone(),
                Step::Take { index, before, after, .. } => {
                    let mut has_axis = register(index)?.clone();
                    for axis in before.iter().chain(after) {
                        *has_axis.get_mut(usize::from(*axis))? = true;
                    }
                    has_axis
                }
                Step::Reduce { from, axes, .. } => {
                    let mut has_axis = register(from)?.clone();
                    for axis in axes {
                        *has_axis.get_mut(usize::from(*axis))? = false;
                    }
                    has_axis
                }
            };
            if has_axis.len() != axes {
                return None;
            }
            registers.push(has_axis);
        }
        Some(registers)
    }

    /// The first axis that is not the result's: what lies before it may be made in any portions.
    pub fn first_ended(&self) -> usize {
        let ended = (0..self.grid.axes()).find(|axis| !self.keeps(*axis));
        ended.unwrap_or_else(|| self.grid.axes())
    }

    /// How a chunk of these extents is made, whose registers have these axes: the axis along which
    /// portions are cut, with everything behind it whole and everything before it one by one, and how
    /// many elements along it make a portion.
    pub fn portion(&self, extents: &[u64], registers: &[Vec<bool>]) -> (usize, u64) {
        let last = self.first_ended().min(extents.len()).saturating_sub(1);
        let result = self.result_axes(extents.len());
        let behind = |axis: usize| -> u64 {
            let of = |has: &Vec<bool>| elements(&extents[axis + 1..], &has[axis + 1..]);
            registers.iter().chain([&result]).map(of).max().unwrap_or(1).max(1)
        };
        let axis = (0..last).find(|axis| behind(*axis) <= PORTION).unwrap_or(last);
        let Some(extent) = extents.get(axis) else { return (axis, 1) };
        (axis, (*extent).min((PORTION / behind(axis)).max(1)))
    }

    /// Bytes of the registers of a portion of a chunk of these extents, and of the two beside them.
    pub fn register_bytes(&self, extents: &[u64], registers: &[Vec<bool>]) -> u64 {
        let (cut, along) = self.portion(extents, registers);
        let of_portion = extents.iter().enumerate().map(|(axis, extent)| match axis.cmp(&cut) {
            Ordering::Less => 1,
            Ordering::Equal => along,
            Ordering::Greater => *extent,
        });
        let of_portion: Vec<u64> = of_portion.collect();
        let of_result = elements(&of_portion, &self.result_axes(extents.len()));
        let sizes = registers.iter().map(|has| elements(&of_portion, has));
        let spare = sizes.clone().chain([of_result]).max().unwrap_or(1).saturating_mul(2);
        sizes.chain([spare]).fold(0, u64::saturating_add).saturating_mul(8)
    }

    fn result_axes(&self, axes: usize) -> Vec<bool> {
        (0..axes).map(|axis| self.keeps(axis)).collect()
    }

    fn keeps(&self, axis: usize) -> bool {
        self.kept.iter().any(|it| usize::from(*it) == axis)
    }

    /// The place of a chunk along all axes.
    pub fn place(&self, place: &[u32]) -> Vec<u32> {
        let mut along_all = vec![0; self.grid.axes()];
        for (axis, at) in self.kept.iter().zip(place) {
            along_all[usize::from(*axis)] = *at;
        }
        along_all
    }
}

/// How many elements of these extents there are along the axes that something has.
pub(crate) fn elements(extents: &[u64], has_axis: &[bool]) -> u64 {
    let had = extents.iter().zip(has_axis).filter(|(_, has)| **has);
    had.map(|(extent, _)| *extent).fold(1, u64::saturating_mul)
}

impl Step {
    /// Type of its elements.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Input { dtype, .. }
            | Self::Scalar { dtype, .. }
            | Self::Constant { dtype, .. }
            | Self::Binary { dtype, .. }
            | Self::Take { dtype, .. }
            | Self::Reduce { dtype, .. }
            | Self::Cast { dtype, .. } => *dtype,
            Self::Compare { .. } => DType::Bool,
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
            | Self::Compare { .. }
            | Self::Take { .. }
            | Self::Reduce { .. }
            | Self::Cast { .. } => 500,
        }
    }
}
