//! Memory for chunks: aligned, recycled, counted. Knows nothing of what is in it.
//!
//! Fresh memory is dear: the kernel clears each page at its first touch, which costs several times
//! what filling it again costs. A [`Pool`] therefore keeps what its buffers give back.
#![expect(unsafe_code, reason = "allocates aligned memory and lends it as slices")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Every buffer starts at a multiple of this: a cache line, and the widest vector register.
const ALIGN: usize = 64;

/// Lends buffers and keeps those that come back, up to a limit.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shelf>);

#[derive(Debug)]
struct Shelf {
    kept_bytes_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: usize,
    by_capacity: BTreeMap<usize, Vec<Block>>,
}

/// Some bytes that go back to their pool. What is in a new one is not said.
pub struct Buffer {
    block: Option<Block>,
    length: usize,
    shelf: Arc<Shelf>,
}

#[derive(Debug)]
struct Block {
    /// What was allocated; the block itself begins at the next multiple of [`ALIGN`].
    allocated: NonNull<u8>,
    capacity: usize,
}

// SAFETY: a block owns its memory alone, like a `Vec<u8>`.
unsafe impl Send for Block {}
// SAFETY: a shared block can only be read.
unsafe impl Sync for Block {}

impl Pool {
    /// A pool that keeps at most so many bytes that nobody uses.
    pub fn new(kept_bytes_max: usize) -> Self {
        Self(Arc::new(Shelf { kept_bytes_max, kept: Mutex::default() }))
    }

    /// A buffer of this length.
    pub fn take(&self, length: usize) -> Buffer {
        let capacity = capacity(length);
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let block = kept.by_capacity.get_mut(&capacity).and_then(Vec::pop);
        if block.is_some() {
            kept.bytes -= capacity;
        }
        drop(kept);
        let block = block.unwrap_or_else(|| Block::new(capacity));
        Buffer { block: Some(block), length, shelf: Arc::clone(&self.0) }
    }

    /// A buffer with a copy of these bytes.
    pub fn copy(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.take(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Bytes that nobody uses.
    pub fn kept_bytes(&self) -> usize {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

/// Capacities grow in steps of a quarter, so that a buffer fits many lengths and wastes at most
/// a fifth.
fn capacity(length: usize) -> usize {
    let length = length.max(ALIGN).next_multiple_of(ALIGN);
    let step = (length.next_power_of_two() / 8).max(ALIGN);
    length.next_multiple_of(step)
}

impl Block {
    /// Some room more instead of a larger alignment: for that, the allocator would clear memory
    /// itself, and touch each page before anybody uses it.
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity + ALIGN, 1).expect("a capacity is a length rounded up")
    }

    fn start(&self) -> *mut u8 {
        let allocated = self.allocated.as_ptr();
        allocated.wrapping_add(allocated.align_offset(ALIGN))
    }

    fn new(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: a layout is never empty.
        let allocated = unsafe { alloc_zeroed(layout) };
        let Some(allocated) = NonNull::new(allocated) else { handle_alloc_error(layout) };
        Self { allocated, capacity }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `allocated` came from `alloc_zeroed` with this very layout.
        unsafe { dealloc(self.allocated.as_ptr(), Self::layout(self.capacity)) }
    }
}

impl Buffer {
    fn block(&self) -> &Block {
        self.block.as_ref().expect("a buffer has its block until it is dropped")
    }

    /// Its elements. The length must be a multiple of theirs.
    pub fn elements<T: bytemuck::Pod>(&self) -> &[T] {
        bytemuck::cast_slice(self)
    }

    /// Its elements, to be written.
    pub fn elements_mut<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block has at least `length` bytes, all of them initialised when it was made.
        unsafe { std::slice::from_raw_parts(self.block().start(), self.length) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.block().start(), self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(block) = self.block.take() else { return };
        let mut kept = self.shelf.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + block.capacity <= self.shelf.kept_bytes_max {
            kept.bytes += block.capacity;
            kept.by_capacity.entry(block.capacity).or_default().push(block);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::{ALIGN, Pool, capacity};

    #[test]
    fn a_buffer_comes_back_and_is_lent_again() {
        let pool = Pool::new(1 << 20);
        let first = pool.take(1000);
        let start = first.as_ptr();
        drop(first);
        assert_eq!(pool.kept_bytes(), capacity(1000));
        assert_eq!(pool.take(1000).as_ptr(), start);
    }

    #[test]
    fn memory_that_nobody_has_touched_takes_none() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let before = resident();
        let buffer = Pool::new(0).take(1 << 30);
        assert!(resident() < before + (64 << 20));
        assert_eq!(buffer[buffer.len() - 1], 0);
    }

    #[test]
    fn a_pool_keeps_no_more_than_it_may() {
        let pool = Pool::new(100);
        drop(pool.take(1000));
        assert_eq!(pool.kept_bytes(), 0);
    }

    #[test]
    fn buffers_are_aligned_and_have_room() {
        for length in (0..5000).chain([1 << 20, (1 << 20) + 1]) {
            let capacity = capacity(length);
            assert!(length <= capacity && capacity <= length + length / 4 + ALIGN, "{length}");
            assert_eq!(Pool::new(0).take(length).as_ptr().addr() % ALIGN, 0);
        }
    }
}
