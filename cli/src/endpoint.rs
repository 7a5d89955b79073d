//! The way from a client on this machine to a scheduler: an address it can dial, kept open.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use ebbtide_api::Engine;
use ebbtide_contract::tls::file;
use ebbtide_contract::{dask, port, variable};
use ebbtide_local::state::State;
use ebbtide_node::client::{Address, Endpoint};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::ByteString;
use kube::ResourceExt as _;
use tokio::io::{AsyncReadExt as _, stdin};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use crate::backend::{Backend, Kubernetes, local};
use crate::{node, output};

/// Names that are tried for a new folder.
const FOLDERS_MAX: u32 = 100;

/// How often a cluster of this machine is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a scheduler may take to answer a job's program, and one attempt to reach it.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const DIAL_MAX: Duration = Duration::from_secs(2);

/// Prints the endpoint as one line of JSON and keeps the way open until standard input ends or the
/// cluster is gone.
pub(crate) async fn serve(backend: &Backend, namespace: &str, name: &str) -> anyhow::Result<()> {
    let way = Way::open(backend, (namespace, name)).await?;
    output::line(&serde_json::to_string(&way.endpoint())?)?;
    tokio::select! {
        closed = closed() => closed,
        // What lies in the folder goes with us.
        _ = node::asked_to_end() => Ok(()),
        error = way.hold() => Err(error),
    }
}

/// A way to a cluster's scheduler.
pub(crate) enum Way<'a> {
    /// Through the API server, as long as it is held open.
    Relay(Relay<'a>),
    /// Straight there, on this machine.
    Straight { cluster: (&'a str, &'a str), endpoint: Endpoint },
}

impl<'a> Way<'a> {
    /// Finds the way, or says why there is none.
    pub(crate) async fn open(
        backend: &'a Backend,
        cluster: (&'a str, &'a str),
    ) -> anyhow::Result<Self> {
        let (namespace, name) = cluster;
        let opened = match backend {
            Backend::Kubernetes(kubernetes) => {
                Relay::open(kubernetes, cluster).await.map(Self::Relay)
            }
            Backend::Local { .. } => local::endpoint(namespace, name)
                .map(|endpoint| Self::Straight { cluster, endpoint }),
        };
        match opened {
            Ok(way) => Ok(way),
            Err(error) => Err(why(backend, cluster, error).await),
        }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        match self {
            Self::Relay(relay) => relay.endpoint(),
            Self::Straight { endpoint, .. } => endpoint.clone(),
        }
    }

    /// What a program must know that computes with Dask and knows nothing of Ebbtide.
    pub(crate) fn variables_of_dask(&self) -> [(&'static str, String); 3] {
        let Endpoint { address, cluster_uid, credentials, .. } = self.endpoint();
        let address = match address {
            Address::Tcp(address) => address,
            Address::Unix(path) => path.display().to_string(),
        };
        [
            (dask::SCHEDULER_ADDRESS, dask::address(&address)),
            (variable::CLUSTER_UID, cluster_uid),
            (variable::CREDENTIALS, credentials.display().to_string()),
        ]
    }

    /// Keeps it open, and ends when the cluster is gone, with words that say so.
    pub(crate) async fn hold(&self) -> anyhow::Error {
        match self {
            Self::Relay(relay) => relay.hold().await,
            Self::Straight { cluster: (namespace, name), endpoint } => {
                local_end(namespace, name, &endpoint.cluster_uid).await;
                gone(name)
            }
        }
    }
}

/// A socket of this machine that leads to a scheduler, and a client's credentials beside it.
pub(crate) struct Relay<'a> {
    kubernetes: &'a Kubernetes,
    /// Namespace and name.
    cluster: (&'a str, &'a str),
    uid: String,
    engine: Engine,
    socket: Socket,
}

impl<'a> Relay<'a> {
    async fn open(kubernetes: &'a Kubernetes, cluster: (&'a str, &'a str)) -> anyhow::Result<Self> {
        let socket = Socket::bind()?;
        let (found, credentials) = kubernetes.credentials(cluster).await?;
        socket.keep(&credentials)?;
        let (uid, engine) = (found.uid().unwrap_or_default(), found.spec.engine);
        Ok(Self { kubernetes, cluster, uid, engine, socket })
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint {
            name: self.cluster.1.to_owned(),
            cluster_uid: self.uid.clone(),
            engine: self.engine.as_str().to_owned(),
            address: Address::Unix(self.socket.path()),
            credentials: self.socket.folder.clone(),
        }
    }

    async fn hold(&self) -> anyhow::Error {
        let mut carried = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.socket.listener.accept() => match accepted {
                    Ok((stream, _)) => carried.push(self.carry(stream)),
                    Err(error) => return error.into(),
                },
                Some(ended) = carried.next() => if let Err(error) = ended {
                    let (namespace, name) = self.cluster;
                    output::tell(&format!("{name}: {error:#}"));
                    if self.kubernetes.is_gone(namespace, name, &self.uid).await {
                        return gone(name);
                    }
                }
            }
        }
    }

    /// Carries a connection of the client's, through the API server. They are few: at each one the
    /// credentials are written as they are now. Who was refused with older ones dials again with these.
    async fn carry(&self, local: UnixStream) -> anyhow::Result<()> {
        match self.kubernetes.credentials(self.cluster).await {
            Ok((found, credentials)) if found.uid().as_ref() == Some(&self.uid) => {
                self.socket.keep(&credentials)?;
            }
            Ok(_) => {}
            Err(error) => output::tell(&format!("{}: {error:#}", self.cluster.1)),
        }
        self.kubernetes.forward(self.cluster, local, port::SCHEDULER).await
    }
}

/// The way of a job's program to its cluster: its pod has the address and the credentials. None outside
/// of such a pod, and for another cluster.
pub(crate) async fn inside(name: &str) -> anyhow::Result<Option<Endpoint>> {
    let [cluster, uid, folder, addresses] =
        [variable::CLUSTER, variable::CLUSTER_UID, variable::CREDENTIALS, variable::SCHEDULER]
            .map(|it| env::var(it).ok());
    let (Some(uid), Some(folder), Some(addresses)) = (uid, folder, addresses) else {
        return Ok(None);
    };
    if cluster.as_deref() != Some(name) {
        return Ok(None);
    }
    Ok(Some(Endpoint {
        name: name.to_owned(),
        cluster_uid: uid,
        engine: env::var(variable::ENGINE)
            .unwrap_or_else(|_| Engine::default().as_str().to_owned()),
        credentials: PathBuf::from(folder),
        address: Address::Tcp(answering(name, &addresses).await?),
    }))
}

/// The first of several addresses at which somebody listens. A new Service may lead nowhere for a
/// moment.
async fn answering(name: &str, addresses: &str) -> anyhow::Result<String> {
    let started_at = Instant::now();
    while started_at.elapsed() < ANSWER_MAX {
        for address in addresses.split(',') {
            let dialed = timeout(DIAL_MAX, TcpStream::connect(address)).await;
            if matches!(dialed, Ok(Ok(_))) {
                return Ok(address.to_owned());
            }
        }
        sleep(LOOK_INTERVAL).await;
    }
    Err(anyhow!("cluster {name} does not answer at {addresses}"))
}

/// Prints an endpoint of a job's pod and waits until standard input ends.
pub(crate) async fn hold(endpoint: &Endpoint) -> anyhow::Result<()> {
    output::line(&serde_json::to_string(endpoint)?)?;
    closed().await
}

/// Why a cluster cannot be reached: what its status says, if it says something.
async fn why(
    backend: &Backend,
    (namespace, name): (&str, &str),
    error: anyhow::Error,
) -> anyhow::Error {
    let status = backend.get(namespace, name).await.ok().and_then(|cluster| cluster.status);
    match status.and_then(|status| status.message) {
        Some(message) => anyhow!("cluster {name} does not answer: {message}"),
        None => error,
    }
}

fn gone(name: &str) -> anyhow::Error {
    anyhow!("cluster {name} is gone: it was deleted")
}

/// Ready when the cluster of this machine with this uid has ended.
async fn local_end(namespace: &str, name: &str, uid: &str) {
    let state = State::of(namespace, name);
    while state.cluster().is_some_and(|it| it.uid().as_deref() == Some(uid))
        && state.supervisor().is_some()
    {
        sleep(LOOK_INTERVAL).await;
    }
}

/// Ready when whoever started this process closes its standard input or ends.
async fn closed() -> anyhow::Result<()> {
    let mut rest = Vec::new();
    stdin().read_to_end(&mut rest).await?;
    Ok(())
}

/// A socket in a folder that only this user can enter.
struct Socket {
    folder: PathBuf,
    listener: UnixListener,
}

impl Socket {
    fn bind() -> anyhow::Result<Self> {
        let folder = Self::folder()?;
        let listener = UnixListener::bind(folder.join("scheduler"))?;
        Ok(Self { folder, listener })
    }

    /// A new folder. Others of the same process id may be there: of another container, or of a
    /// process that was killed.
    fn folder() -> anyhow::Result<PathBuf> {
        let name = format!("ebbtide-{}", std::process::id());
        let mut names = (0..FOLDERS_MAX).map(|nth| match nth {
            0 => env::temp_dir().join(&name),
            _ => env::temp_dir().join(format!("{name}-{nth}")),
        });
        let made = names.find_map(|folder| match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => None,
            made => Some((folder, made)),
        });
        let (folder, made) = made.with_context(|| format!("too many folders {name}-…"))?;
        made.with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    fn path(&self) -> PathBuf {
        self.folder.join("scheduler")
    }

    /// Writes what differs from before, each file whole or not at all.
    fn keep(&self, files: &BTreeMap<String, ByteString>) -> anyhow::Result<()> {
        for name in [file::AUTHORITY, file::CERTIFICATE, file::KEY, file::TOKEN] {
            let found = files.get(name);
            let ByteString(bytes) = found.with_context(|| format!("its Secret has no {name}"))?;
            let path = self.folder.join(name);
            if fs::read(&path).ok().as_ref() == Some(bytes) {
                continue;
            }
            let draft = self.folder.join(format!("{name}.draft"));
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft);
            file.and_then(|mut file| file.write_all(bytes))
                .and_then(|()| fs::rename(&draft, &path))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::debug!(%error, "the socket's folder cannot be removed");
        }
    }
}
