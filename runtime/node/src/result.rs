//! A result as it comes in, chunk by chunk.

use ebbtide_array::{Array, DType};
use ebbtide_core::Bytes;
use ebbtide_kernels::assemble;

/// A result that does not fit this machine's memory.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a result of {0} does not fit the memory here; compute a part or a summary of it")]
pub struct TooLarge(pub Bytes);

/// The whole of one array, filled as its chunks arrive.
#[derive(Debug)]
pub struct Whole {
    array: Array,
    bytes: Vec<u8>,
}

impl Whole {
    /// Room for an array, or that this machine has none.
    pub fn new(array: &Array) -> Result<Self, TooLarge> {
        let too_large = || TooLarge(Bytes(array.bytes()));
        let length = usize::try_from(array.bytes()).map_err(|_| too_large())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| too_large())?;
        bytes.resize(length, 0);
        Ok(Self { array: array.clone(), bytes })
    }

    /// Puts a chunk, by its number in row-major order, where it belongs. A chunk that is not of
    /// this array changes nothing.
    pub fn put(&mut self, index: u32, chunk: &[u8]) {
        if self.array.dtype() == DType::Object {
            self.bytes = chunk.to_vec();
            return;
        }
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

    /// The elements, row-major and little-endian; of an object, the object.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
