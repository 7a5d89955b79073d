//! A result as it comes in, chunk by chunk.

use ebbtide_array::Array;
use ebbtide_kernels::assemble;

/// The whole of one array, filled as its chunks arrive.
#[derive(Debug)]
pub struct Whole {
    array: Array,
    bytes: Vec<u8>,
}

impl Whole {
    /// Room for an array.
    pub fn new(array: &Array) -> Self {
        let elements: u64 = array.shape().iter().product();
        let bytes = elements.saturating_mul(array.dtype().item_bytes());
        let bytes = usize::try_from(bytes).expect("a result is to fit this machine's memory");
        Self { array: array.clone(), bytes: vec![0; bytes] }
    }

    /// Puts a chunk, by its number in row-major order, where it belongs. A chunk that is not of
    /// this array changes nothing.
    pub fn put(&mut self, index: u32, chunk: &[u8]) {
        let grid = &self.array.node().grid;
        let Ok(space) = grid.space() else { return };
        if index >= space.tasks() {
            return;
        }
        let at = grid.chunk(&space.unravel(index));
        let item = self.array.dtype().item_bytes();
        let elements: u64 = at.iter().map(|range| range.end - range.start).product();
        if chunk.len() as u64 == elements * item {
            let item = usize::try_from(item).expect("an element is small");
            assemble::place(&mut self.bytes, &self.array.shape(), chunk, &at, item);
        }
    }

    /// The elements, row-major and little-endian.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
