//! The processes that this one started for Python functions: how much memory they and it have had, as
//! the kernel counts it, and their end.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};

/// Processes for Python functions, and the most that one of them has had, in bytes.
static RUNNERS: Mutex<Runners> = Mutex::new(Runners { live: BTreeSet::new(), peak_bytes: 0 });

struct Runners {
    live: BTreeSet<u32>,
    peak_bytes: u64,
}

impl Runners {
    fn measure(&mut self) {
        let peaks = self.live.iter().map(|pid| high_water(&pid.to_string()));
        self.peak_bytes = peaks.fold(self.peak_bytes, u64::max);
    }
}

/// Counts a process for Python functions from now on.
pub(crate) fn watch(pid: u32) {
    runners().live.insert(pid);
}

/// A process for Python functions is about to end.
pub(crate) fn unwatch(pid: u32) {
    let mut runners = runners();
    runners.measure();
    runners.live.remove(&pid);
}

/// Ends every process for Python functions, with what it started. For when this process is about to
/// end: threads that wait for them find them gone.
pub(crate) fn end_all() {
    for pid in &runners().live {
        if let Some(group) = i32::try_from(*pid).ok().and_then(Pid::from_raw)
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(%error, pid, "a function's process has ended already");
        }
    }
}

/// The most memory that this process has had, and one of its processes for Python functions.
pub(crate) fn peak_bytes() -> u64 {
    let mut runners = runners();
    runners.measure();
    high_water("self") + runners.peak_bytes
}

fn runners() -> MutexGuard<'static, Runners> {
    RUNNERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `VmHWM`: the peak of the resident set.
fn high_water(process: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}
