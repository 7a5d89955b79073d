//! What a cluster of this machine leaves on disk while it lives, for whoever asks about it.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ebbtide_api::Cluster;
use kube::ResourceExt as _;
use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The cluster as it was asked for, with its status.
const CLUSTER: &str = "cluster.json";
/// How a client reaches it.
const ENDPOINT: &str = "endpoint.json";
/// Held while a cluster is started.
const LOCK: &str = ".lock";
/// The supervisor's process id.
const PID: &str = "pid";

/// The folder of one cluster. Only its owner can read it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct State(PathBuf);

impl State {
    /// The folder of the cluster with this name.
    pub fn of(namespace: &str, name: &str) -> Self {
        Self(root().join(namespace).join(name))
    }

    /// Every cluster of this machine and user.
    pub fn all() -> Vec<Self> {
        let folders = |path: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
        };
        let mut all: Vec<PathBuf> =
            folders(&root()).iter().flat_map(|namespace| folders(namespace)).collect();
        all.sort();
        all.into_iter().map(Self).collect()
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Makes the folder.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    /// Removes everything.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.0)
    }

    /// The cluster, if there is one.
    pub fn cluster(&self) -> Option<Cluster> {
        self.read(CLUSTER)
    }

    /// Writes the cluster with its status.
    pub fn write_cluster(&self, cluster: &Cluster) -> io::Result<()> {
        self.write(CLUSTER, &serde_json::to_vec_pretty(cluster)?)
    }

    /// How a client reaches it, once it can.
    pub fn endpoint<T: DeserializeOwned>(&self) -> Option<T> {
        self.read(ENDPOINT)
    }

    /// Writes how a client reaches it.
    pub fn write_endpoint(&self, endpoint: &impl Serialize) -> io::Result<()> {
        self.write(ENDPOINT, &serde_json::to_vec(endpoint)?)
    }

    /// Says which process is the supervisor.
    pub fn write_pid(&self, pid: u32) -> io::Result<()> {
        self.write(PID, pid.to_string().as_bytes())
    }

    /// Keeps others from starting clusters until it is dropped.
    pub fn lock() -> io::Result<File> {
        let root = root();
        DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(root.join(LOCK))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// The supervisor's process id, if it lives. An id that by now is another program's is not it.
    pub fn supervisor(&self) -> Option<i32> {
        let pid = fs::read_to_string(self.0.join(PID)).ok()?.parse().ok()?;
        self.is_supervisor(pid).then_some(pid)
    }

    /// Whether the process with this id is the supervisor, and has not ended.
    pub fn is_supervisor(&self, pid: i32) -> bool {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let folder = self.0.as_os_str().as_encoded_bytes();
        command.split(|byte| *byte == 0).any(|argument| argument == folder)
    }

    /// Writes a file that only its owner can read, whole or not at all.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (path, draft) = (self.0.join(name), self.0.join(format!("{name}.draft")));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(bytes)?;
        fs::rename(draft, path)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.0.join(name)).ok()?).ok()
    }

    /// Namespace and name, for messages.
    pub fn title(&self) -> String {
        self.cluster().map_or_else(
            || self.0.display().to_string(),
            |cluster| format!("{}/{}", cluster.namespace().unwrap_or_default(), cluster.name_any()),
        )
    }
}

/// `$XDG_STATE_HOME/ebbtide/clusters`.
fn root() -> PathBuf {
    folder("XDG_STATE_HOME", ".local/state").join("ebbtide").join("clusters")
}

/// A folder of the XDG base directory specification.
pub(crate) fn folder(variable: &str, below_home: &str) -> PathBuf {
    let set = env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || env::var_os("HOME").map_or_else(env::temp_dir, PathBuf::from);
    set.unwrap_or_else(|| home().join(below_home))
}
