//! What the operator and an engine agree on, and nothing that either keeps to itself.
//!
//! An engine is a scheduler and workers that are started with the [`variable`]s below, prove who
//! they are with certificates that carry an [`identity::Identity`], and push [`demand`] to the
//! operator over one connection.

pub mod demand;
pub mod identity;
pub mod log;
pub mod tls;
pub mod view;

/// Environment variables that the operator sets on every scheduler and worker.
pub mod variable {
    /// Name of the cluster, for messages to people.
    pub const CLUSTER: &str = "EBBTIDE_CLUSTER";
    /// Which engine the cluster runs: `ebbtide` or `dask`. Not set: `ebbtide`.
    pub const ENGINE: &str = "EBBTIDE_ENGINE";
    /// `metadata.uid` of the cluster: part of every identity.
    pub const CLUSTER_UID: &str = "EBBTIDE_CLUSTER_UID";
    /// Folder with `ca.crt`, `tls.crt` and `tls.key`, and for schedulers and clients `token`.
    pub const CREDENTIALS: &str = "EBBTIDE_CREDENTIALS";
    /// Each `host:port` at which the scheduler may be reached, separated by commas.
    pub const SCHEDULER: &str = "EBBTIDE_SCHEDULER";
    /// `host:port` of the operator's Service, which the scheduler dials.
    pub const OPERATOR: &str = "EBBTIDE_OPERATOR";
    /// Name of this pod: the name under which a worker registers.
    pub const POD_NAME: &str = "EBBTIDE_POD_NAME";
    /// Which look of the operator made this pod, as its log names it. Not set where no operator's does.
    pub const TRACE: &str = "EBBTIDE_TRACE";
    /// Address of this pod, on which it listens and at which its peers reach it.
    pub const POD_IP: &str = "EBBTIDE_POD_IP";
    /// Worker group of this worker.
    pub const GROUP: &str = "EBBTIDE_GROUP";
    /// What this worker has beside cores and memory: a JSON object of amounts by kind.
    pub const RESOURCES: &str = "EBBTIDE_RESOURCES";
    /// Memory limit of this container, in bytes.
    pub const MEMORY_BYTES: &str = "EBBTIDE_MEMORY_BYTES";
    /// CPU limit of this container, in whole cores, rounded up: its number of kernel threads.
    pub const CORES: &str = "EBBTIDE_CORES";
}

/// TCP ports, the same in every pod.
pub mod port {
    /// Workers and clients reach the scheduler here.
    pub const SCHEDULER: u16 = 8786;
    /// Workers reach each other here.
    pub const WORKER: u16 = 8788;
    /// `/healthz` and `/metrics` of schedulers and workers.
    pub const HTTP: u16 = 8787;
    /// Schedulers reach the operator here.
    pub const OPERATOR: u16 = 7443;
}

/// What programs are told that compute with Dask and know nothing of Ebbtide.
pub mod dask {
    /// The variable in which Dask looks for its scheduler.
    pub const SCHEDULER_ADDRESS: &str = "DASK_SCHEDULER_ADDRESS";

    /// What to write there: `host:port`, or the path of a socket of this machine, in Dask's way.
    pub fn address(of: &str) -> String {
        format!("ebbtide://{of}")
    }
}

/// Exit codes of schedulers and workers.
pub mod exit {
    /// Ended because it was asked to.
    pub const DONE: u8 = 0;
    /// Started with settings that cannot work; starting it again changes nothing.
    pub const MISCONFIGURED: u8 = 64;
    /// Lost its scheduler for longer than it may wait.
    pub const ABANDONED: u8 = 75;
    /// Where Kubernetes looks for the last words of a container. Elsewhere there is no such file.
    pub const WORDS: &str = "/dev/termination-log";
}
