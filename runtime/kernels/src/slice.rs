//! A chunk of elements that lie in several chunks of another array.

use std::ops::Range;

use ebbtide_array::program::Slice;
use ebbtide_buffer::{Buffer, Pool};

use crate::KernelError;
use crate::map::{extent, item};

pub(crate) fn run(
    slice: &Slice,
    place: &[u32],
    inputs: &[&Buffer],
    pool: &Pool,
) -> Result<Buffer, KernelError> {
    let wrong = |_| KernelError::Program("a slice that does not fit its source");
    let (source, target) =
        (slice.source.space().map_err(wrong)?, slice.target.space().map_err(wrong)?);
    let relation = slice.relation();
    relation.check(&source, &target).map_err(|_| KernelError::Program("a slice out of range"))?;
    let is_inside = place.len() == target.extents().len()
        && place.iter().zip(target.extents()).all(|(at, extent)| at < extent);
    if !is_inside {
        return Err(KernelError::Program("a place outside its grid"));
    }
    let index = place.iter().zip(target.extents()).fold(0, |all, (at, extent)| all * extent + at);
    let needed = relation.producers(&source, &target, index);
    if needed.len() != inputs.len() {
        return Err(KernelError::Program("a missing input"));
    }
    let covers = slice.target.chunk(place);
    let shape: Vec<usize> = covers.iter().map(extent).collect();
    let item = item(slice.dtype);
    let mut output = pool.take(shape.iter().product::<usize>() * item);
    for (number, (producer, given)) in needed.into_iter().zip(inputs).enumerate() {
        let held = slice.source.chunk(&source.unravel(producer));
        let expected = held.iter().map(extent).product::<usize>() * item;
        if given.len() != expected {
            return Err(KernelError::Input { input: number, bytes: given.len(), expected });
        }
        copy(slice, &covers, &held, (given, item), &mut output);
    }
    Ok(output)
}

/// Copies what one chunk of the source has of a chunk of the result.
fn copy(
    slice: &Slice,
    covers: &[Range<u64>],
    held: &[Range<u64>],
    (given, item): (&[u8], usize),
    output: &mut [u8],
) {
    // Along each axis, which elements of the result lie in the source's chunk.
    let met = |axis: usize| -> Range<u64> {
        let (start, step) = slice.along[axis];
        let before = |end: u64| end.saturating_sub(start).div_ceil(step);
        before(held[axis].start).max(covers[axis].start)
            ..before(held[axis].end).min(covers[axis].end)
    };
    let meets: Vec<Range<u64>> = (0..covers.len()).map(met).collect();
    if meets.iter().any(Range::is_empty) && !meets.is_empty() {
        return;
    }
    let Some((last, outer)) = meets.split_last() else {
        output.copy_from_slice(given);
        return;
    };
    let axis = outer.len();
    let offset = |ranges: &[Range<u64>], at: &[u64]| -> u64 {
        ranges
            .iter()
            .zip(at)
            .fold(0, |all, (range, at)| all * (range.end - range.start) + at - range.start)
    };
    let rows: u64 = outer.iter().map(|range| range.end - range.start).product();
    let (_, step) = slice.along[axis];
    let mut place: Vec<u64> = meets.iter().map(|range| range.start).collect();
    for row in 0..rows {
        let mut rest = row;
        for (at, range) in place.iter_mut().zip(outer).rev() {
            let length = range.end - range.start;
            *at = range.start + rest % length;
            rest /= length;
        }
        place[axis] = last.start;
        let there: Vec<u64> =
            place.iter().zip(&slice.along).map(|(at, (start, step))| start + at * step).collect();
        let (to, from) = (bytes(offset(covers, &place), item), bytes(offset(held, &there), item));
        let count = extent(last);
        if step == 1 {
            output[to..to + count * item].copy_from_slice(&given[from..from + count * item]);
            continue;
        }
        let stride = bytes(step, item);
        for nth in 0..count {
            let (to, from) = (to + nth * item, from + nth * stride);
            output[to..to + item].copy_from_slice(&given[from..from + item]);
        }
    }
}

fn bytes(elements: u64, item: usize) -> usize {
    usize::try_from(elements).expect("an offset within a chunk") * item
}
