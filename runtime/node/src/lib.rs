//! The shell of the runtime: sockets, TLS, threads and clocks around the core's state machines.

pub mod client;
pub mod dask;
mod disk;
mod engine;
mod frame;
mod http;
pub mod in_process;
mod link;
mod metered;
mod operator;
pub mod result;
pub mod runner;
pub mod scheduler;
pub mod settings;
mod store;
mod threads;
mod usage;
pub mod wire;
pub mod worker;

pub use crate::frame::FrameError;
