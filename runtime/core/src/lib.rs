//! Scheduler and worker as state machines: events in, effects out, time as an argument.
//!
//! Knows groups of tasks, ids, sizes and workers; never bytes, dtypes, sockets or clocks.
//! A task is one index of a [`Group`] and exists only while somebody is about to need it.

mod frontier;
pub mod group;
pub mod message;
pub mod scheduler;
mod table;
pub mod worker;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::group::{
    AxisRelation, Cost, Group, GroupError, Input, Overlap, Relation, Resources, Space,
};

/// Names a group for the life of one scheduler.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct GroupId(pub u64);

/// Names a connection of a worker; never reused.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct WorkerId(pub u64);

/// Names a job of a client; never reused.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct JobId(pub u64);

/// One task, and the chunk that it makes: an index of a group, counted in row-major order.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct TaskId {
    /// Its group.
    pub group: GroupId,
    /// Its place in the group's index space.
    pub index: u32,
}

/// Time since the process started. The shell makes it from its clock, a test from a number.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Time(pub Duration);

impl Time {
    /// This time and some more.
    pub fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(delay))
    }
}

/// A number of bytes as people read it.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut value = self.0 as f64;
        let mut unit = "bytes";
        for larger in units {
            if value < 1024.0 {
                break;
            }
            (value, unit) = (value / 1024.0, larger);
        }
        if unit == "bytes" { write!(f, "{} bytes", self.0) } else { write!(f, "{value:.1} {unit}") }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.group.0, self.index)
    }
}
