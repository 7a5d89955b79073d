//! Which clusters there are, as their pods show it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ebbtide_api::names;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Volume;
use kube::core::ObjectMeta;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Deserialize;
use tokio::sync::{oneshot, watch};

use crate::session::{self, Way};

/// What is so in a cluster, as its scheduler would know it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) workers: BTreeSet<String>,
    pub(crate) tasks: u64,
    pub(crate) jobs: u64,
    pub(crate) is_hostile: bool,
}

/// One cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) namespace: String,
    pub(crate) state: watch::Sender<State>,
    /// Who waits for its next pod.
    pub(crate) waits: Option<oneshot::Sender<Instant>>,
    pods: BTreeSet<String>,
    is_spoken_for: bool,
}

/// All of them, by uid.
pub(crate) struct Clusters {
    client: Client,
    operator: String,
    namespaces: String,
    addresses: AtomicU32,
    known: Mutex<BTreeMap<String, Cluster>>,
}

/// What is read of a pod.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
struct SeenPod {
    metadata: ObjectMeta,
    spec: Option<SeenSpec>,
    status: Option<SeenStatus>,
}

#[derive(Clone, Debug, Deserialize)]
struct SeenSpec {
    #[serde(default)]
    volumes: Vec<Volume>,
}

#[derive(Clone, Debug, Deserialize)]
struct SeenStatus {
    phase: Option<String>,
}

impl SeenPod {
    fn is_running(&self) -> bool {
        let phase = self.status.as_ref().and_then(|it| it.phase.as_deref());
        phase == Some("Running") && self.metadata.deletion_timestamp.is_none()
    }

    /// The Secret with its credentials.
    fn secret(&self) -> Option<String> {
        let volumes = self.spec.iter().flat_map(|it| &it.volumes);
        let mut sources =
            volumes.filter_map(|it| it.projected.as_ref()?.sources.as_ref()).flatten();
        sources.find_map(|it| Some(it.secret.as_ref()?.name.clone()))
    }
}

impl Clusters {
    pub(crate) fn new(client: Client, operator: String, namespaces: String) -> Self {
        let (addresses, known) = (AtomicU32::new(1), Mutex::new(BTreeMap::new()));
        Self { client, operator, namespaces, addresses, known }
    }

    /// An address of this machine that nobody had before.
    fn address(&self) -> Ipv4Addr {
        let number = self.addresses.fetch_add(1, Ordering::Relaxed);
        let process = (std::process::id() % 250) as u8 + 2;
        let [.., high, low] = number.to_be_bytes();
        Ipv4Addr::new(127, process, high, low)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Cluster>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what happens to pods until the process ends.
    pub(crate) async fn watch(self: Arc<Self>) {
        let managed = format!("{}={}", names::MANAGED_BY, names::MANAGER);
        let pods: Api<SeenPod> = Api::all(self.client.clone());
        let events = watcher(pods, watcher::Config::default().labels(&managed)).default_backoff();
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => self.take(&pod, true),
                Ok(Event::Delete(pod)) => self.take(&pod, false),
                // After an error it begins anew by itself.
                Ok(Event::Init | Event::InitDone) | Err(_) => {}
            }
        }
    }

    fn take(&self, pod: &SeenPod, is_there: bool) {
        let Some(uid) = pod.labels().get(names::CLUSTER_UID) else { return };
        let namespace = pod.namespace().unwrap_or_default();
        if !namespace.starts_with(&self.namespaces) {
            return;
        }
        let (name, is_running) = (pod.name_any(), is_there && pod.is_running());
        let is_worker = pod.labels().get(names::ROLE).is_some_and(|it| it == "worker");
        let mut known = self.lock();
        let cluster = known.entry(uid.clone()).or_insert_with(|| Cluster {
            namespace,
            state: watch::Sender::default(),
            waits: None,
            pods: BTreeSet::new(),
            is_spoken_for: false,
        });
        if !is_there {
            cluster.pods.remove(&name);
        } else if cluster.pods.insert(name.clone())
            && let Some(waits) = cluster.waits.take()
        {
            // Whoever asked may have stopped waiting.
            let _: Result<(), Instant> = waits.send(Instant::now());
        }
        if is_worker {
            cluster.state.send_if_modified(|state| {
                if is_running { state.workers.insert(name) } else { state.workers.remove(&name) }
            });
        } else if is_running && !cluster.is_spoken_for {
            cluster.is_spoken_for = true;
            let way = Way {
                client: self.client.clone(),
                operator: self.operator.clone(),
                address: self.address(),
                namespace: cluster.namespace.clone(),
                secret: pod.secret().unwrap_or_default(),
            };
            tokio::spawn(session::speak(way, cluster.state.subscribe()));
        }
        if cluster.pods.is_empty() {
            known.remove(uid);
        }
    }
}
