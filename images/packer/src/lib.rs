//! What environments take beside pure decisions: programs, downloads, registries.

pub mod resolve;
pub mod uv;
