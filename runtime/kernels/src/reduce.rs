//! One chunk over some of its axes, in one order on every machine.
//!
//! Axes are reduced one after the other, last first. Along an axis whose elements lie side by side,
//! blocks of [`BLOCK`] go to [`LANES`] lanes, lane `j` taking elements `j`, `j + LANES`, …; the
//! lanes are folded in halves; blocks are folded as a balanced tree. Along any other axis, rows are
//! folded as a balanced tree with leaves of [`ROWS`] rows, taken in order.

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use ebbtide_array::{DType, ReduceOp};
use ebbtide_buffer::{Buffer, Pool};

use crate::KernelError;
use crate::level::{Kernel, Level};

const LANES: usize = 16;
const BLOCK: usize = 512;
const ROWS: usize = 8;

pub(crate) fn run(
    level: Level,
    (op, dtype): (ReduceOp, DType),
    mut elements: Buffer,
    (mut shape, axes): (Vec<usize>, &[u8]),
    pool: &Pool,
) -> Result<Buffer, KernelError> {
    for at in axes.iter().rev().map(|axis| usize::from(*axis)) {
        if at >= shape.len() {
            return Err(KernelError::Program("an axis that is not there"));
        }
        let outer: usize = shape[..at].iter().product();
        let inner: usize = shape[at + 1..].iter().product();
        let mut output = pool.take(outer * inner * 8);
        let extents = [outer, shape[at], inner];
        let (from, to) = (elements.elements::<u64>(), output.elements_mut::<u64>());
        level.run(Whole { op, dtype, from, extents, to })?;
        shape[at] = 1;
        elements = output;
    }
    Ok(elements)
}

/// A reduction of a whole chunk along one axis.
struct Whole<'a> {
    op: ReduceOp,
    dtype: DType,
    from: &'a [u64],
    extents: [usize; 3],
    to: &'a mut [u64],
}

impl Kernel for Whole<'_> {
    type Output = Result<(), KernelError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        axis(self.op, self.dtype, self.from, self.extents, self.to)
    }
}

/// Reduces along the middle of three axes.
#[inline(always)]
pub(crate) fn axis(
    op: ReduceOp,
    dtype: DType,
    from: &[u64],
    extents: [usize; 3],
    to: &mut [u64],
) -> Result<(), KernelError> {
    match (dtype, op) {
        (DType::Float64, ReduceOp::Sum) => along::<f64, Sum>(from, extents, to),
        (DType::Float64, ReduceOp::Prod) => along::<f64, Prod>(from, extents, to),
        (DType::Int64, ReduceOp::Sum) => along::<i64, Sum>(from, extents, to),
        (DType::Int64, ReduceOp::Prod) => along::<i64, Prod>(from, extents, to),
        _ => return Err(KernelError::Program("a reduction of a dtype without kernels")),
    }
    Ok(())
}

/// A fold and the value that changes nothing.
pub(crate) trait Fold<T> {
    const NEUTRAL: T;
    /// The result over no elements.
    const EMPTY: T;
    fn fold(left: T, right: T) -> T;
}

pub(crate) struct Sum;
pub(crate) struct Prod;

impl Fold<f64> for Sum {
    // Not +0: that would turn a sum of negative zeros into a positive one.
    const NEUTRAL: f64 = -0.0;
    const EMPTY: f64 = 0.0;
    #[inline(always)]
    fn fold(left: f64, right: f64) -> f64 {
        left + right
    }
}

impl Fold<f64> for Prod {
    const NEUTRAL: f64 = 1.0;
    const EMPTY: f64 = 1.0;
    #[inline(always)]
    fn fold(left: f64, right: f64) -> f64 {
        left * right
    }
}

impl Fold<i64> for Sum {
    const NEUTRAL: i64 = 0;
    const EMPTY: i64 = 0;
    #[inline(always)]
    fn fold(left: i64, right: i64) -> i64 {
        left.wrapping_add(right)
    }
}

impl Fold<i64> for Prod {
    const NEUTRAL: i64 = 1;
    const EMPTY: i64 = 1;
    #[inline(always)]
    fn fold(left: i64, right: i64) -> i64 {
        left.wrapping_mul(right)
    }
}

#[inline(always)]
fn along<T: Pod, F: Fold<T>>(from: &[u64], [outer, extent, inner]: [usize; 3], to: &mut [u64]) {
    let (from, to): (&[T], &mut [T]) = (cast_slice(from), cast_slice_mut(to));
    if extent == 0 {
        to.fill(F::EMPTY);
        return;
    }
    if inner == 1 {
        for (nth, result) in to.iter_mut().enumerate().take(outer) {
            *result = contiguous::<T, F>(&from[nth * extent..(nth + 1) * extent]);
        }
        return;
    }
    let mut spare = Vec::new();
    for nth in 0..outer {
        let rows = &from[nth * extent * inner..(nth + 1) * extent * inner];
        let result = &mut to[nth * inner..(nth + 1) * inner];
        strided::<T, F>(rows, inner, result, &mut spare);
    }
}

fn contiguous<T: Pod, F: Fold<T>>(elements: &[T]) -> T {
    if elements.len() <= BLOCK {
        return block::<T, F>(elements);
    }
    let blocks = elements.len().div_ceil(BLOCK);
    let (left, right) = elements.split_at(blocks.div_ceil(2) * BLOCK);
    F::fold(contiguous::<T, F>(left), contiguous::<T, F>(right))
}

#[inline(always)]
fn block<T: Pod, F: Fold<T>>(elements: &[T]) -> T {
    let mut lanes = [F::NEUTRAL; LANES];
    let rows = elements.chunks_exact(LANES);
    let rest = rows.remainder();
    for row in rows {
        for (lane, element) in lanes.iter_mut().zip(row) {
            *lane = F::fold(*lane, *element);
        }
    }
    for (lane, element) in lanes.iter_mut().zip(rest) {
        *lane = F::fold(*lane, *element);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = F::fold(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

fn strided<T: Pod, F: Fold<T>>(rows: &[T], inner: usize, result: &mut [T], spare: &mut Vec<T>) {
    if inner == 0 {
        return;
    }
    let count = rows.len() / inner;
    if count <= ROWS {
        result.fill(F::NEUTRAL);
        for row in rows.chunks_exact(inner) {
            for (result, element) in result.iter_mut().zip(row) {
                *result = F::fold(*result, *element);
            }
        }
        return;
    }
    let left = count.div_ceil(ROWS).div_ceil(2) * ROWS * inner;
    strided::<T, F>(&rows[..left], inner, result, spare);
    let start = spare.len();
    spare.resize(start + inner, F::NEUTRAL);
    let mut right = spare.split_off(start);
    strided::<T, F>(&rows[left..], inner, &mut right, spare);
    for (result, right) in result.iter_mut().zip(&right) {
        *result = F::fold(*result, *right);
    }
}
