//! Carries the plan out as processes on this machine: pods become processes, Secrets files, the
//! Service an address on the loopback network. Needs no Kubernetes and no rights.

mod environment;
mod process;
pub mod settings;
pub mod state;
pub mod supervisor;
