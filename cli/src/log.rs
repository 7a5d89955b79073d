//! What this program logs: for people, or as JSON where it is a process of a cluster.

use std::env;
use std::io::{self, Write};

use ebbtide_contract::log::Origin;
use tracing_subscriber::EnvFilter;

/// Standard error, with the origin of each line.
struct Stamped(Origin);

impl Write for Stamped {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(&self.0.stamp(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Has everything logged from now on.
pub(crate) fn begin(is_process: bool) {
    let quiet = if is_process { "info" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(quiet));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    if is_process {
        let origin = Origin::of(|name| env::var(name).ok());
        log.json().flatten_event(true).with_writer(move || Stamped(origin.clone())).init();
    } else {
        log.with_writer(io::stderr).init();
    }
}
