//! Keeps one cluster of this machine as its plan says: observe, plan, apply, record.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs, io};

use ebbtide_api::status::Cause;
use ebbtide_api::{Cluster, ClusterStatus, Phase};
use ebbtide_authority::{Authority, AuthorityError};
use ebbtide_contract::identity::Identity;
use ebbtide_contract::log;
use ebbtide_contract::tls::CredentialsError;
use ebbtide_contract::{exit, port};
use ebbtide_listener::Schedulers;
use ebbtide_plan::{
    Change, ChildSeen, Observed, Op, Plan, PodPhase, PodSeen, SchedulerAddress, SecretWanted, Site,
    Trouble, client_secret, plan, request,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use rustls::ServerConfig;
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::environment;
use crate::process::{self, Sandbox};
use crate::state::State;

/// Longest time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_mins(1);

/// How often processes that should be running are looked at.
const EXIT_INTERVAL: Duration = Duration::from_millis(100);

/// How long a process may take to end when it is asked to.
const END_MAX: Duration = Duration::from_secs(5);

/// Why a cluster of this machine ended other than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Nothing to supervise.
    #[error("{0} holds no cluster")]
    NoCluster(PathBuf),
    /// Its packages cannot be had, as its status tells.
    #[error("there is no environment for it")]
    NoEnvironment,
    /// A file or process.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it did not work.
        source: io::Error,
    },
    /// Certificates.
    #[error("cannot mint credentials")]
    Authority(#[from] AuthorityError),
    /// Certificates that TLS refuses.
    #[error("cannot use the minted credentials")]
    Credentials(#[from] CredentialsError),
}

struct Supervisor {
    cluster: Cluster,
    state: State,
    site: Site,
    environment: Option<PathBuf>,
    program: PathBuf,
    authority: Authority,
    schedulers: Schedulers,
    network: [u8; 3],
    next_host: u8,
    next_uid: u64,
    processes: BTreeMap<String, Process>,
    network_policies: BTreeMap<String, ChildSeen>,
    /// How the supervisor proves itself to its scheduler.
    configs: watch::Sender<Arc<ServerConfig>>,
    services: BTreeMap<String, ChildSeen>,
}

/// A pod that is a process.
struct Process {
    seen: PodSeen,
    /// The last part of its address.
    host: Option<u8>,
    child: Option<Child>,
}

/// Supervises the cluster in this folder until it is deleted or `stop` is ready.
pub async fn run(state: State, stop: impl Future<Output = ()>) -> Result<(), SupervisorError> {
    let cluster = state.cluster();
    let cluster = cluster.ok_or_else(|| SupervisorError::NoCluster(state.folder().to_owned()))?;
    tokio::pin!(stop);
    let started = tokio::select! {
        started = Supervisor::start(cluster, state.clone()) => Some(started?),
        () = &mut stop => None,
    };
    let mut ended = Ok(());
    if let Some(mut supervisor) = started {
        ended = tokio::select! {
            ended = supervisor.reconcile() => ended,
            () = stop => Ok(()),
        };
        if ended.is_ok() {
            supervisor.goes();
        }
        supervisor.end_all().await;
    }
    // After a failure the log stays, for whoever asks why.
    ended?;
    state.remove().map_err(system("remove the cluster's folder"))
}

fn system(what: &'static str) -> impl Fn(io::Error) -> SupervisorError {
    move |source| SupervisorError::System { what, source }
}

impl Supervisor {
    /// Tells whoever asks for the cluster from now on that it is not there to stay.
    fn goes(&mut self) {
        let status = self.cluster.status.get_or_insert_default();
        (status.phase, status.message) = (Phase::Deleting, Some("it is being deleted".to_owned()));
        if let Err(error) = self.state.write_cluster(&self.cluster) {
            tracing::warn!(%error, "nobody is told that it goes");
        }
    }

    async fn start(mut cluster: Cluster, state: State) -> Result<Self, SupervisorError> {
        let packages = cluster.spec.environment.as_ref().and_then(|it| request(it).ok());
        let step = if packages.is_some_and(|it| !environment::is_made(&it)) {
            "making the environment; the first time takes a while"
        } else {
            "its processes start"
        };
        cluster.status = Some(ClusterStatus {
            message: Some(step.to_owned()),
            observed_generation: cluster.metadata.generation,
            ..ClusterStatus::default()
        });
        state.write_cluster(&cluster).map_err(system("write the status"))?;
        let uid = cluster.uid().unwrap_or_default();
        let authority = Authority::create(Timestamp::now())?;
        let (configs, _) = watch::channel(identify(&authority)?);
        let network = network(&uid);
        let scheduler = Ipv4Addr::new(network[0], network[1], network[2], 1);
        let mut site = Site {
            operator: String::new(),
            scheduler_address: SchedulerAddress::Fixed(format!("{scheduler}:{}", port::SCHEDULER)),
            monitoring: Vec::new(),
            environments: BTreeMap::new(),
        };
        let environment = prepare(&cluster, &mut site).await;
        let program = env::current_exe().map_err(system("find this program"))?;
        Ok(Self {
            cluster,
            state,
            site,
            environment,
            program,
            authority,
            schedulers: Schedulers::default(),
            network,
            next_host: 2,
            next_uid: 0,
            processes: BTreeMap::new(),
            network_policies: BTreeMap::new(),
            configs,
            services: BTreeMap::new(),
        })
    }

    /// Accepts the scheduler and tells of news about it.
    async fn listen(&mut self) -> Result<mpsc::Receiver<()>, SupervisorError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(system("listen on the loopback network"))?;
        let address = listener.local_addr().map_err(system("find its own address"))?;
        self.site.operator = address.to_string();
        let (sender, news) = mpsc::channel(1);
        let tell = move |_: &str| {
            // One waiting piece of news is enough: everything is read again.
            let _: Result<(), _> = sender.try_send(());
        };
        let (config, schedulers) = (self.configs.subscribe(), self.schedulers.clone());
        tokio::spawn(ebbtide_listener::serve(listener, config, schedulers, tell));
        Ok(news)
    }

    async fn reconcile(&mut self) -> Result<(), SupervisorError> {
        let mut news = self.listen().await?;
        loop {
            self.watch_processes();
            let observed = self.observe();
            let plan = plan(&self.cluster, &observed, &self.site, Timestamp::now());
            if self.apply(&plan).await? == Applied::Gone {
                return Ok(());
            }
            self.record(&plan)?;
            if self.environment.is_none() {
                // Whoever asks again may have what it lacked.
                return Err(SupervisorError::NoEnvironment);
            }
            let wait = if self.processes.is_empty() { LOOK_INTERVAL } else { EXIT_INTERVAL };
            let wait = plan.next_look.map_or(wait, |look| look.min(wait));
            tokio::select! {
                Some(()) = news.recv() => {}
                () = sleep(wait) => {}
            }
        }
    }

    fn observe(&self) -> Observed {
        let uid = self.cluster.uid().unwrap_or_default();
        self.schedulers.tell_groups(&uid, &ebbtide_plan::groups(&self.cluster.spec));
        let secrets = fs::read_dir(self.secrets()).into_iter().flatten().flatten();
        let secrets: BTreeSet<String> =
            secrets.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        Observed {
            secrets,
            authority: self.authority.edition().to_owned(),
            services: self.services.clone(),
            network_policies: self.network_policies.clone(),
            pods: self.processes.values().map(|process| process.seen.clone()).collect(),
            has_client_that_begins: false,
            demand: self.schedulers.demand(&uid),
            silent_for: self.schedulers.silent_for(&uid),
            busy_ago: self.schedulers.busy_ago(&uid),
            heard_ago: self.schedulers.heard_ago(&uid),
        }
    }

    async fn apply(&mut self, plan: &Plan) -> Result<Applied, SupervisorError> {
        for change in &plan.changes {
            tracing::info!("{change}");
            let Change { op, .. } = change;
            match op {
                Op::CreateSecret(secret) => self.write_secret(secret)?,
                Op::RenewSecret(secret) => {
                    self.write_secret(secret)?;
                    self.configs.send_replace(identify(&self.authority)?);
                }
                // The loopback network is this machine's own; certificates keep strangers out.
                Op::CreateNetworkPolicy(policy) => {
                    let seen = ChildSeen { uid: Some(String::new()), says: None };
                    self.network_policies.insert(policy.name_any(), seen);
                }
                Op::DeleteNetworkPolicy(policy) => {
                    self.network_policies.remove(&policy.name);
                }
                Op::CreateService(service) => {
                    self.services.insert(service.name_any(), ChildSeen::default());
                }
                // Nobody can have edited what is in nobody's reach, and no server judges pods.
                Op::RestoreNetworkPolicy(_) | Op::RestoreService(_) | Op::TryPod(_) => {}
                Op::CreatePod(pod) => self.create_pod(pod),
                Op::DeletePod(pod) => self.delete_pod(&pod.name, &pod.uid).await,
                Op::Retire { workers, deadline_seconds } => {
                    let uid = self.cluster.uid().unwrap_or_default();
                    self.schedulers.retire(&uid, workers, *deadline_seconds);
                }
                Op::DeleteCluster { .. } => return Ok(Applied::Gone),
            }
        }
        Ok(Applied::Done)
    }

    fn record(&mut self, plan: &Plan) -> Result<(), SupervisorError> {
        if plan.status.phase == Phase::Ready && self.state.endpoint::<IgnoredAny>().is_none() {
            self.write_endpoint()?;
        }
        if self.cluster.status.as_ref() != Some(&plan.status) {
            self.cluster.status = Some(plan.status.clone());
            self.state.write_cluster(&self.cluster).map_err(system("write the status"))?;
        }
        Ok(())
    }

    fn secrets(&self) -> PathBuf {
        self.state.folder().join("secrets")
    }

    fn write_secret(&self, secret: &SecretWanted) -> Result<(), SupervisorError> {
        let now = Timestamp::now();
        let files = self.authority.credentials(&secret.identity, secret.has_token, now)?;
        let folder = self.secrets().join(&secret.name);
        fs::create_dir_all(folder).map_err(system("create a folder for credentials"))?;
        for (name, text) in files {
            let path = format!("secrets/{}/{name}", secret.name);
            self.state.write(&path, text.as_bytes()).map_err(system("write credentials"))?;
        }
        Ok(())
    }

    fn write_endpoint(&self) -> Result<(), SupervisorError> {
        let SchedulerAddress::Fixed(address) = &self.site.scheduler_address else { return Ok(()) };
        let name = self.cluster.name_any();
        let endpoint = json!({
            "name": name,
            "clusterUid": self.cluster.uid().unwrap_or_default(),
            "engine": self.cluster.spec.engine,
            "address": { "tcp": address },
            "credentials": self.secrets().join(client_secret(&self.cluster)),
        });
        self.state.write_endpoint(&endpoint).map_err(system("write the endpoint"))
    }

    fn create_pod(&mut self, pod: &Pod) {
        let is_scheduler =
            pod.name_any() == ebbtide_api::names::scheduler(&self.cluster.name_any());
        let host = if is_scheduler { Some(1) } else { self.free_host() };
        self.next_uid += 1;
        let mut seen = PodSeen {
            name: pod.name_any(),
            uid: self.next_uid.to_string(),
            labels: pod.labels().clone(),
            made_from: pod.annotations().get(ebbtide_api::names::MADE_FROM).cloned(),
            image: pod.annotations().get(ebbtide_api::names::IMAGE).cloned(),
            phase: PodPhase::Running,
            created_at: Some(Timestamp::now()),
            ..PodSeen::default()
        };
        let [a, b, c] = self.network;
        let sandbox = Sandbox {
            secrets: &self.secrets(),
            pods: &self.state.folder().join("pods"),
            ip: Ipv4Addr::new(a, b, c, host.unwrap_or_default()),
            program: &self.program,
            environment: self.environment.as_deref(),
        };
        let started = match host {
            Some(_) => process::start(pod, &sandbox),
            None => Err(io::Error::other("253 workers are as many as this machine can have")),
        };
        let child = started.map_err(|error| {
            (seen.phase, seen.ended_at) = (PodPhase::Ended, Some(Timestamp::now()));
            let message = format!("cannot be started: {error}");
            seen.trouble = Some(Trouble { cause: Cause::Configuration, message });
        });
        self.processes.insert(pod.name_any(), Process { seen, host, child: child.ok() });
    }

    /// Addresses of pods: .1 is the scheduler's, workers take turns at those of the others that are
    /// free.
    fn free_host(&mut self) -> Option<u8> {
        let taken: BTreeSet<u8> = self.processes.values().filter_map(|it| it.host).collect();
        let host =
            (self.next_host..=254).chain(2..self.next_host).find(|it| !taken.contains(it))?;
        self.next_host = if host == 254 { 2 } else { host + 1 };
        Some(host)
    }

    async fn delete_pod(&mut self, name: &str, uid: &str) {
        if self.processes.get(name).is_some_and(|process| process.seen.uid == uid)
            && let Some(process) = self.processes.remove(name)
        {
            end(process).await;
        }
    }

    async fn end_all(&mut self) {
        let processes = std::mem::take(&mut self.processes);
        futures::future::join_all(processes.into_values().map(end)).await;
    }

    fn watch_processes(&mut self) {
        for process in self.processes.values_mut() {
            let Some(child) = &mut process.child else { continue };
            if let Ok(Some(status)) = child.try_wait() {
                process.child = None;
                process.seen.phase = PodPhase::Ended;
                process.seen.ended_at = Some(Timestamp::now());
                if status.code() != Some(i32::from(exit::DONE)) {
                    let folder = self.state.folder().join("pods").join(&process.seen.name);
                    let message = format!("{status}: {}", last_words(&folder));
                    process.seen.trouble = Some(Trouble { cause: Cause::Exit, message });
                }
            }
        }
    }
}

/// How a supervisor proves itself, with a fresh certificate.
fn identify(authority: &Authority) -> Result<Arc<ServerConfig>, SupervisorError> {
    let proof = authority.proof(&Identity::Operator, Timestamp::now())?;
    Ok(Arc::new(proof.accept_schedulers()?))
}

#[derive(Eq, PartialEq)]
enum Applied {
    Done,
    Gone,
}

/// Makes the environment that a cluster asks for and enters it, or why there is none, into the
/// catalogue.
async fn prepare(cluster: &Cluster, site: &mut Site) -> Option<PathBuf> {
    // A list that cannot be read is refused by the plan, in the same words as on Kubernetes.
    let request = request(cluster.spec.environment.as_ref()?).ok()?;
    let made = environment::make(&request).await;
    let entry = made.as_ref().map(|path| path.display().to_string());
    site.environments.insert(request.key().to_string(), entry.map_err(ToString::to_string));
    made.ok()
}

/// A part of 127.0.0.0/8 for one cluster, told apart from 65,000 others by the cluster's uid.
fn network(uid: &str) -> [u8; 3] {
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, ..] = hash.to_le_bytes();
    [127, a.clamp(1, 254), b]
}

async fn end(mut process: Process) {
    let Some(child) = &mut process.child else { return };
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok())
        && let Some(pid) = rustix::process::Pid::from_raw(pid)
        && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
    {
        tracing::debug!(%error, "the process has ended already");
    }
    if timeout(END_MAX, child.wait()).await.is_err()
        && let Err(error) = child.kill().await
    {
        tracing::warn!(%error, "a process cannot be ended");
    }
}

/// The last line of a process's log.
fn last_words(folder: &Path) -> String {
    let said = fs::read_to_string(folder.join("log")).unwrap_or_default();
    log::last_words(&said).unwrap_or_else(|| "it said nothing".to_owned())
}
