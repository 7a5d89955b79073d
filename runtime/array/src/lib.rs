//! Arrays as values: dtypes, shapes, chunk grids, expressions, and their lowering to task groups.
//!
//! An [`Array`] is an expression that knows its shape, dtype and chunks. A [`graph::Graph`] is what
//! travels; [`lower::lower`] turns it into [`ebbtide_core::Group`]s whose programs the kernels run.
//! Nothing here computes an element.

mod dtype;
mod error;
mod expression;
pub mod graph;
mod grid;
pub mod lower;
pub mod program;

pub use crate::dtype::{DType, Kind};
pub use crate::error::ArrayError;
pub use crate::expression::{
    AXES_MAX, Array, BinaryOp, CALL_INPUTS_MAX, Call, CompareOp, Distribution, Node, Op, ReduceOp,
};
pub use crate::grid::{Grid, auto_chunks, broadcast};
pub use crate::lower::CHUNK_BYTES_MAX;
