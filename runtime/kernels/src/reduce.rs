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
        let (folds, mut open) = (folds(extent.div_ceil(BLOCK)), Vec::new());
        for (nth, result) in to.iter_mut().enumerate().take(outer) {
            let elements = &from[nth * extent..(nth + 1) * extent];
            *result = contiguous::<T, F>(elements, &folds, &mut open);
        }
        return;
    }
    if inner == 0 {
        return;
    }
    let (folds, mut open) = (folds(extent.div_ceil(ROWS)), Vec::new());
    for nth in 0..outer {
        let rows = &from[nth * extent * inner..(nth + 1) * extent * inner];
        let result = &mut to[nth * inner..(nth + 1) * inner];
        strided::<T, F>(rows, result, &folds, &mut open);
    }
}

/// For each leaf of a balanced tree, how many subtrees end with it: so often the last two of what is
/// open are folded. A tree of `n` leaves has `n / 2`, rounded up, on its left. Written as a list, so
/// that nothing that runs over elements is a recursion, which is compiled for no level.
fn folds(leaves: usize) -> Vec<u8> {
    fn mark(leaves: &mut [u8]) {
        if leaves.len() > 1 {
            let (left, right) = leaves.split_at_mut(leaves.len().div_ceil(2));
            mark(left);
            mark(right);
            right[right.len() - 1] += 1;
        }
    }
    let mut folds = vec![0; leaves];
    mark(&mut folds);
    folds
}

#[inline(always)]
fn contiguous<T: Pod, F: Fold<T>>(elements: &[T], folds: &[u8], open: &mut Vec<T>) -> T {
    open.clear();
    for (elements, count) in elements.chunks(BLOCK).zip(folds) {
        let mut top = block::<T, F>(elements);
        for _ in 0..*count {
            top = F::fold(open.pop().expect("a right subtree has a left one"), top);
        }
        open.push(top);
    }
    open[0]
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

/// Folds rows as long as `result`. `open` has room for subtrees that are not folded yet.
#[inline(always)]
fn strided<T: Pod, F: Fold<T>>(rows: &[T], result: &mut [T], folds: &[u8], open: &mut Vec<Vec<T>>) {
    let inner = result.len();
    let mut depth = 0;
    for (rows, count) in rows.chunks(ROWS * inner).zip(folds) {
        if open.len() == depth {
            open.push(vec![F::NEUTRAL; inner]);
        }
        open[depth].fill(F::NEUTRAL);
        for row in rows.chunks_exact(inner) {
            for (top, element) in open[depth].iter_mut().zip(row) {
                *top = F::fold(*top, *element);
            }
        }
        for _ in 0..*count {
            let (left, right) = open.split_at_mut(depth);
            for (left, right) in left[depth - 1].iter_mut().zip(&right[0]) {
                *left = F::fold(*left, *right);
            }
            depth -= 1;
        }
        depth += 1;
    }
    result.copy_from_slice(&open[0]);
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, ROWS, Sum, block, contiguous, folds, strided};

    /// The tree as its definition has it.
    fn tree(leaves: &[f64]) -> f64 {
        if let [leaf] = leaves {
            return *leaf;
        }
        let (left, right) = leaves.split_at(leaves.len().div_ceil(2));
        tree(left) + tree(right)
    }

    fn elements(count: usize) -> Vec<f64> {
        (0..count).map(|nth| 1.0 / (nth as f64 + 1.0)).collect()
    }

    #[test]
    fn elements_side_by_side_are_folded_as_a_balanced_tree_of_blocks() {
        for count in [1, 511, 512, 513, 1500, 3 * BLOCK, 11 * BLOCK + 7] {
            let elements = elements(count);
            let blocks: Vec<f64> = elements.chunks(BLOCK).map(block::<f64, Sum>).collect();
            let folds = folds(count.div_ceil(BLOCK));
            let sum = contiguous::<f64, Sum>(&elements, &folds, &mut Vec::new());
            assert_eq!(sum.to_bits(), tree(&blocks).to_bits(), "{count}");
        }
    }

    #[test]
    fn rows_are_folded_as_a_balanced_tree_of_a_few() {
        for count in [1, 7, 8, 9, 24, 100, 1000] {
            let rows = elements(count * 3);
            let mut sums = [0.0; 3];
            strided::<f64, Sum>(&rows, &mut sums, &folds(count.div_ceil(ROWS)), &mut Vec::new());
            for (at, sum) in sums.iter().enumerate() {
                let column: Vec<f64> = rows.chunks(3).map(|row| row[at]).collect();
                let leaves = column.chunks(ROWS).map(|it| it.iter().fold(-0.0, |all, it| all + it));
                assert_eq!(sum.to_bits(), tree(&leaves.collect::<Vec<f64>>()).to_bits(), "{count}");
            }
        }
    }
}
