//! What this process may use and how it was started, from its environment.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZero;
use std::path::PathBuf;
use std::{env, fs, thread};

use ebbtide_contract::tls::{self, Credentials, CredentialsError, Current};
use ebbtide_contract::variable;

/// Part of the memory limit that chunks and tasks may take. The rest is for the program itself,
/// frames on their way, and what the allocator loses.
const CHUNKS_PART: f64 = 0.75;

/// Part of the chunks' memory that may lie idle for the next ones, beside it: less than a quarter of
/// what is left for everything but chunks and tasks.
const POOL_PART: f64 = 0.0625;

/// A setting that is missing or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A variable that is not set.
    #[error("{0} is not set; the operator sets it on every scheduler and worker")]
    Missing(&'static str),
    /// A variable that cannot be read.
    #[error("{name} is {value:?}; expected {expected}")]
    Unreadable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Credentials that cannot be used.
    #[error("the credentials cannot be used")]
    Credentials(#[from] CredentialsError),
}

/// What schedulers and workers are started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `metadata.uid` of the cluster.
    pub cluster_uid: String,
    /// Name of this pod.
    pub pod_name: String,
    /// Address at which peers reach this process.
    pub pod_ip: String,
    /// Where what proves who this process is lies, as it is now.
    folder: PathBuf,
}

impl Settings {
    /// Reads the environment.
    pub fn from_env() -> Result<Self, SettingsError> {
        Ok(Self {
            cluster_uid: required(variable::CLUSTER_UID)?,
            pod_name: required(variable::POD_NAME)?,
            pod_ip: required(variable::POD_IP)?,
            folder: PathBuf::from(required(variable::CREDENTIALS)?),
        })
    }

    /// Address to listen on: everywhere in a pod, whose network is its own and where the API
    /// server's port-forward comes from the loopback interface; nowhere else on a machine that
    /// others share.
    pub fn listen_ip(&self) -> IpAddr {
        match self.pod_ip.parse::<IpAddr>() {
            Ok(ip) if ip.is_loopback() => ip,
            Ok(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
            Ok(IpAddr::V4(_)) | Err(_) => Ipv4Addr::UNSPECIFIED.into(),
        }
    }

    /// Something made of the credentials, that changes with them.
    pub(crate) fn current<T>(
        &self,
        make: impl Fn(&Credentials) -> Result<T, CredentialsError> + Send + Sync + 'static,
    ) -> Result<Current<T>, SettingsError> {
        Ok(Current::new(&self.folder, make)?)
    }

    /// The token that clients must present now.
    pub(crate) fn token(&self) -> Result<String, SettingsError> {
        Ok(tls::token(&self.folder)?)
    }
}

/// A variable that must be there.
pub fn required(name: &'static str) -> Result<String, SettingsError> {
    env::var(name).ok().filter(|value| !value.is_empty()).ok_or(SettingsError::Missing(name))
}

fn number(name: &'static str) -> Result<Option<u64>, SettingsError> {
    let Ok(value) = env::var(name) else { return Ok(None) };
    let expected = "a whole number of at least 1";
    match value.parse() {
        Ok(number) if number > 0 => Ok(Some(number)),
        _ => Err(SettingsError::Unreadable { name, value, expected }),
    }
}

/// Kernel threads of a worker: its CPU limit.
pub fn worker_cores() -> Result<u32, SettingsError> {
    let cores = number(variable::CORES)?.and_then(|cores| u32::try_from(cores).ok());
    Ok(cores.unwrap_or_else(self::cores))
}

/// Bytes that a worker's chunks and tasks may take.
pub fn worker_memory_bytes() -> Result<u64, SettingsError> {
    Ok(number(variable::MEMORY_BYTES)?.map_or_else(memory_bytes, chunks_bytes))
}

/// What a worker has beside cores and memory, by kind.
pub fn worker_resources() -> Result<BTreeMap<String, u64>, SettingsError> {
    let name = variable::RESOURCES;
    let Ok(value) = env::var(name) else { return Ok(BTreeMap::new()) };
    let expected = "a JSON object of whole numbers";
    serde_json::from_str(&value).map_err(|_| SettingsError::Unreadable { name, value, expected })
}

/// Bytes that the chunks and tasks of a process with this memory limit may take.
pub fn chunks_bytes(limit: u64) -> u64 {
    part(limit, CHUNKS_PART)
}

/// Threads of a process without a limit: the processors that it may run on.
pub fn cores() -> u32 {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    u32::try_from(cores).unwrap_or(u32::MAX)
}

/// Bytes that chunks may take in a process without a limit: their part of what is available now.
pub fn memory_bytes() -> u64 {
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    part(available.unwrap_or(1 << 20).saturating_mul(1024), CHUNKS_PART)
}

/// Bytes of idle buffers that a pool may keep.
pub fn pool_bytes(memory_bytes: u64) -> usize {
    usize::try_from(part(memory_bytes, POOL_PART)).unwrap_or(usize::MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of a whole is not negative and not larger than the whole"
)]
fn part(whole: u64, part: f64) -> u64 {
    (whole as f64 * part) as u64
}
