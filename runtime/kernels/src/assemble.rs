//! The whole array from its chunks, row-major.

use std::ops::Range;

/// Copies a chunk to where it lies in the whole array.
pub fn place(whole: &mut [u8], shape: &[u64], chunk: &[u8], at: &[Range<u64>], item_bytes: usize) {
    let Some((last, outer)) = at.split_last() else {
        whole.copy_from_slice(chunk);
        return;
    };
    let size = |extent: u64| usize::try_from(extent).expect("an array in memory");
    let row = size(last.end - last.start) * item_bytes;
    if row == 0 {
        return;
    }
    for (nth, row_bytes) in chunk.chunks_exact(row).enumerate() {
        let (mut rest, mut offset, mut stride) = (nth as u64, last.start, shape[outer.len()]);
        for (range, extent) in outer.iter().zip(shape).rev() {
            let length = range.end - range.start;
            offset += (range.start + rest % length) * stride;
            rest /= length;
            stride *= extent;
        }
        let start = size(offset) * item_bytes;
        whole[start..start + row].copy_from_slice(row_bytes);
    }
}
