//! A result as it comes in, chunk by chunk.

use std::collections::BTreeSet;

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
    /// Chunks that are here.
    here: BTreeSet<u32>,
}

impl Whole {
    /// Room for an array, or that this machine has none.
    pub fn new(array: &Array) -> Result<Self, TooLarge> {
        let too_large = || TooLarge(Bytes(array.bytes()));
        let length = usize::try_from(array.bytes()).map_err(|_| too_large())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| too_large())?;
        bytes.resize(length, 0);
        Ok(Self { array: array.clone(), bytes, here: BTreeSet::new() })
    }

    /// Puts a chunk, by its number in row-major order, where it belongs. A chunk that is not of
    /// this array changes nothing.
    pub fn put(&mut self, index: u32, chunk: &[u8]) {
        if self.array.dtype() == DType::Object {
            self.bytes = chunk.to_vec();
            self.here.insert(0);
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
            self.here.insert(index);
        }
    }

    /// Whether every chunk is here.
    pub fn is_complete(&self) -> bool {
        let space = self.array.node().grid.space();
        space.is_ok_and(|space| self.here.len() == space.tasks() as usize)
    }

    /// The elements, row-major and little-endian; of an object, the object.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_array::{Array, Distribution};

    use super::Whole;

    #[test]
    fn a_result_is_complete_when_each_chunk_came_whatever_came_twice() {
        let array = Array::random(Distribution::Uniform, (1, 0), &[5], Some(&[2])).unwrap();
        let mut whole = Whole::new(&array).unwrap();
        for (index, length) in [(0, 16), (0, 16), (1, 8), (3, 16), (2, 8)] {
            assert!(!whole.is_complete());
            whole.put(index, &vec![0; length]);
        }
        assert!(!whole.is_complete(), "the second chunk had the wrong length");
        whole.put(1, &[0; 16]);
        assert!(whole.is_complete());
    }
}
