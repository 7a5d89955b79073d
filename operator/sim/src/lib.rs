//! A model of the API server, and worlds in which the operator meets every fault.

mod admission;
mod answer;
pub mod engines;
pub mod faults;
pub mod growth;
pub mod kinds;
pub mod lives;
pub mod nodes;
pub mod oracle;
pub mod request;
pub mod server;
pub mod store;
pub mod world;

#[cfg(test)]
mod tests;
