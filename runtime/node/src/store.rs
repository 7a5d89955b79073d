//! The chunks of one worker, for its engine and for whoever it lends them to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ebbtide_buffer::Buffer;
use ebbtide_core::TaskId;

#[derive(Clone, Debug, Default)]
pub(crate) struct Store(Arc<Mutex<BTreeMap<TaskId, Arc<Buffer>>>>);

impl Store {
    pub(crate) fn get(&self, chunk: TaskId) -> Option<Arc<Buffer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&chunk).map(Arc::clone)
    }

    pub(crate) fn insert(&self, chunk: TaskId, buffer: Buffer) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(chunk, Arc::new(buffer));
    }

    pub(crate) fn remove(&self, chunk: TaskId) {
        let removed = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&chunk);
        // Outside the lock: giving memory back takes time.
        drop(removed);
    }
}
