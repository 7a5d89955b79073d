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
            let shape: Vec<usize> = map.grid.chunk(place).iter().map(map::extent).collect();
            reduce::run(level, (*op, map.dtype()), elements, (shape, axes), pool)
        }
        Program::Call { .. } => Err(KernelError::Program("a Python function is no kernel")),
        Program::Combine { op, dtype } => combine::run(level, (*op, *dtype), inputs, pool),
    }
}

#[cfg(test)]
mod tests;
