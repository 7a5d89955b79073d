//! A seeded world for the state machines of the core: the same seed gives the same trace.
//!
//! Scheduler and workers are the real ones. The world delays, doubles and loses what they say,
//! kills workers, makes others slow or silent, and knows what every chunk should be.

pub mod job;
mod random;
pub mod world;
