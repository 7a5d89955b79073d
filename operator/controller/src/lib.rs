//! The operator: keeps every Cluster of a Kubernetes as its plan says.

mod api_call;
mod apply;
mod authority;
mod counted;
mod jobs;
mod known;
pub mod lease;
pub mod metrics;
mod observe;
pub mod operator;
mod reconcile;
mod record;
pub mod run;
pub mod settings;
mod slim;
mod trace;
