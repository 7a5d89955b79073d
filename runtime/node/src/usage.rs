//! How much memory this process and those that it started have had, as the kernel counts it.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most that any of the processes for Python functions has had, in bytes.
static RUNNER_PEAK: AtomicU64 = AtomicU64::new(0);

/// Takes note of a process for Python functions.
pub(crate) fn note_runner(pid: u32) {
    RUNNER_PEAK.fetch_max(high_water(&pid.to_string()), Ordering::Relaxed);
}

/// The most memory that this process has had, and one of its processes for Python functions.
pub(crate) fn peak_bytes() -> u64 {
    high_water("self") + RUNNER_PEAK.load(Ordering::Relaxed)
}

/// `VmHWM`: the peak of the resident set.
fn high_water(process: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}
