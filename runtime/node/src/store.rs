//! The chunks of one worker, in memory and on disk, for its engine and for whoever it lends them to.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ebbtide_buffer::{Buffer, Pool};
use ebbtide_core::TaskId;

use crate::disk::Extent;

#[derive(Clone, Debug, Default)]
pub(crate) struct Store(Arc<Mutex<BTreeMap<TaskId, Held>>>);

/// A chunk as it is held.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    Memory(Arc<Buffer>),
    Disk(Arc<Extent>),
}

impl Held {
    /// Its bytes. Takes its time when they are on disk.
    pub(crate) fn read(&self, pool: &Pool) -> io::Result<Arc<Buffer>> {
        match self {
            Self::Memory(buffer) => Ok(Arc::clone(buffer)),
            Self::Disk(extent) => extent.read(pool).map(Arc::new),
        }
    }
}

impl Store {
    pub(crate) fn get(&self, chunk: TaskId) -> Option<Held> {
        self.lock().get(&chunk).cloned()
    }

    pub(crate) fn insert(&self, chunk: TaskId, buffer: Buffer) {
        let replaced = self.lock().insert(chunk, Held::Memory(Arc::new(buffer)));
        drop(replaced);
    }

    /// A chunk is on disk now, if it still is the one that was written.
    pub(crate) fn spilled(&self, chunk: TaskId, written: &Arc<Buffer>, extent: Extent) {
        let mut chunks = self.lock();
        let Some(held) = chunks.get_mut(&chunk) else { return };
        if matches!(held, Held::Memory(buffer) if Arc::ptr_eq(buffer, written)) {
            *held = Held::Disk(Arc::new(extent));
        }
    }

    pub(crate) fn remove(&self, chunk: TaskId) {
        let removed = self.lock().remove(&chunk);
        // Outside the lock: giving memory back takes time.
        drop(removed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskId, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
