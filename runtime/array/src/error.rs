//! What is wrong with an expression, in words for the person who wrote it.

use ebbtide_core::GroupError;

use crate::DType;

/// An expression that means nothing.
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
    /// More axes than an array may have.
    #[error("an array of {0} axes; at most {max} are possible", max = crate::AXES_MAX)]
    TooManyAxes(usize),
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
    /// More chunks than anybody would wait for.
    #[error("shape {shape:?} in chunks of {chunks:?} has too many chunks; use larger chunks")]
    TooManyChunks {
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
    /// A source that is cut along the axis that is taken from.
    #[error(
        "take: the array is in {chunks} chunks along axis {axis}; give it one there, with \
         rechunk"
    )]
    TakeChunks {
        /// The axis.
        axis: u8,
        /// Chunks along it.
        chunks: usize,
    },
    /// A range that leaves the array.
    #[error("elements {first} to {last} are outside axis {axis} of extent {extent}")]
    Range {
        /// The axis.
        axis: usize,
        /// First element.
        first: u64,
        /// Last element.
        last: u64,
        /// Extent of the axis.
        extent: u64,
    },
    /// What was kept is not there any more.
    #[error("what was persisted is no longer kept: its cluster or its computation ended")]
    NotHeld,
    /// What is kept elsewhere.
    #[error("an array was persisted on another cluster; compute it there")]
    HeldElsewhere,
    /// A chunk too large to travel.
    #[error("{op}: a chunk has {bytes} bytes; at most 4 GiB are taken: use smaller chunks")]
    ChunkTooLarge {
        /// The operation.
        op: String,
        /// Bytes of its largest chunk.
        bytes: u64,
    },
    /// A number that is not what an operation takes.
    #[error("{op}: {what}")]
    Argument {
        /// The operation.
        op: &'static str,
        /// What is wrong and what is expected.
        what: String,
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
