//! Chunk functions: what a program makes of its inputs, the same to the bit on every machine.
//!
//! One arithmetic: sums run over a fixed number of lanes that are added in a fixed order, nothing
//! is contracted or reassociated, and elementary functions are our own or `libm`'s Rust, never the
//! system's. Wider registers change the speed and nothing else; [`level::Level`] says how wide.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for a level's features"
)]

pub mod assemble;
mod combine;
pub mod level;
mod map;
pub mod random;
mod reduce;
mod select;
mod slice;

use ebbtide_array::program::Program;
use ebbtide_buffer::{Buffer, Pool};

use crate::level::Level;

/// A program that a worker cannot run: another version's, or a broken one.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// An input that has other bytes than the program expects.
    #[error("input {input} has {bytes} bytes where {expected} were expected")]
    Input {
        /// Which input.
        input: usize,
        /// How many bytes it has.
        bytes: usize,
        /// How many it should have.
        expected: usize,
    },
    /// An index that names no element.
    #[error("take: index {index} is out of range for an axis of extent {extent}")]
    Index {
        /// The index.
        index: i64,
        /// Extent of the axis.
        extent: u64,
    },
    /// Something that no program of this version says.
    #[error("the program is not one of this version: {0}")]
    Program(&'static str),
}

/// Runs a program for the task at `place` of its group and returns the chunk that it makes.
pub fn execute(
    level: Level,
    program: &Program,
    place: &[u32],
    inputs: &[&Buffer],
    pool: &Pool,
) -> Result<Buffer, KernelError> {
    match program {
        Program::Map(map) => map::run(level, map, place, inputs, pool),
        Program::Reduce { map, op, axes } => {
            let elements = map::run(level, map, place, inputs, pool)?;
            let covered = map.grid.chunk(&map.place(place));
            let kept = map.kept.iter().map(|axis| map::extent(&covered[usize::from(*axis)]));
            let shape: Vec<usize> = kept.collect();
            reduce::run(level, (*op, map.dtype()), elements, (shape, axes), pool)
        }
        Program::Call { .. } => Err(KernelError::Program("a Python function is no kernel")),
        Program::Slice(slice) => slice::run(slice, place, inputs, pool),
        Program::Histogram { map, round } => {
            // The last input, which the map does not name, is the state of the round before.
            let state = if *round == 0 { None } else { inputs.last().copied() };
            let elements = map::run(level, map, place, inputs, pool)?;
            select::histogram(&elements, state, *round, pool)
        }
        Program::Narrow { q, round } => select::narrow(inputs, f64::from_bits(*q), *round, pool),
        Program::Interpolate { q } => select::interpolate(inputs, f64::from_bits(*q), pool),
        Program::TopK { map, k } => {
            let elements = map::run(level, map, place, inputs, pool)?;
            select::largest(&[&elements], map.dtype(), *k, pool)
        }
        Program::MergeTopK { dtype, k } => select::largest(inputs, *dtype, *k, pool),
        Program::Combine { op, dtype } => combine::run(level, (*op, *dtype), inputs, pool),
    }
}

#[cfg(test)]
mod tests;
