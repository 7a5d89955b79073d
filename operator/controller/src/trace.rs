//! A name for each look, by which what the log says of it, and the pods that it made, are found together.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;

/// Names that no other operator gives, nor this one twice.
pub(crate) struct Traces {
    begun: i128,
    given: AtomicU64,
}

impl Traces {
    /// Those of an operator that began then.
    pub(crate) fn new(begun_at: Timestamp) -> Self {
        Self { begun: begun_at.as_nanosecond(), given: AtomicU64::new(1) }
    }

    /// As W3C Trace Context writes them: 32 hexadecimal digits, not all of them zero.
    pub(crate) fn next(&self) -> String {
        format!("{:016x}{:016x}", self.begun, self.given.fetch_add(1, Ordering::Relaxed))
    }
}
