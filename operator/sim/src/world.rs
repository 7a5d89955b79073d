//! A namespace with operators, nodes and schedulers, in a time that passes as fast as it can.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebbtide_api::names;
use ebbtide_authority::Authority;
use ebbtide_contract::tls::file;
use ebbtide_controller::lease::Candidate;
use ebbtide_controller::metrics::Metrics;
use ebbtide_controller::operator::{Equipment, Operator};
use ebbtide_listener::Schedulers;
use ebbtide_plan::{SchedulerAddress, Site};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{self, AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::engines::{Engines, Way};
use crate::faults::Fault;
use crate::kinds::{self, Kind};
use crate::nodes::{Failure, Nodes};
use crate::oracle::{Heard, judge};
use crate::server::{Counts, Server};
use crate::store::{Deletion, Store};

/// How long an operator that ended is away.
const RESTART: Duration = Duration::from_secs(1);

/// The longest time that a world may take to become what it should be.
const PATIENCE: Duration = Duration::from_mins(10);

/// The authority of all worlds, and the one after it: making them is dear.
static AUTHORITIES: LazyLock<[Arc<Authority>; 2]> = LazyLock::new(|| {
    let now = Timestamp::from_second(1_000_000).expect("it is in the calendar");
    [(); 2].map(|()| Arc::new(Authority::create(now).expect("an authority can be made")))
});

/// How a world begins.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// What goes wrong on the way to the API server.
    pub faults: Vec<Fault>,
    /// What befalls one of the pods.
    pub failure: Option<(usize, Failure)>,
    /// How many operators there are.
    pub operators: usize,
    /// Whether they agree by a lease on which of them works.
    pub has_lease: bool,
    /// Whether nobody but the operators makes or takes away children.
    pub is_whole: bool,
    /// Worker groups of the cluster.
    pub groups: usize,
    /// Whether there is no room for more workers for a while.
    pub is_tight: bool,
    /// Whether another authority takes over while there is work.
    pub is_renewed: bool,
    /// Whether its image was wrong at first.
    pub is_corrected: bool,
    /// By how many seconds the clock of each operator is wrong.
    pub skews: [i64; 2],
    /// Whether somebody may delete the cluster at any moment.
    pub is_cut_short: bool,
    /// Whether jobs are lived through, and not clusters alone.
    pub has_jobs: bool,
}

/// A world that goes on by itself.
pub struct World {
    /// The API server.
    pub server: Server,
    shared: Arc<Shared>,
    surroundings: JoinHandle<()>,
}

struct Shared {
    engines: Mutex<Engines>,
    operators: Mutex<Vec<Option<Running>>>,
    heard: Heard,
    lives: Mutex<usize>,
    has_lease: bool,
    skews: [i64; 2],
    authority: watch::Sender<Arc<Authority>>,
    /// What the operator that began last counts.
    metrics: Mutex<Metrics>,
}

struct Running {
    life: usize,
    task: AbortHandle,
    /// Says that it shall end well.
    stop: Option<oneshot::Sender<()>>,
    is_at_work: Arc<AtomicBool>,
    schedulers: Schedulers,
    news: Box<dyn Fn(&str) + Send>,
}

impl Conditions {
    /// One operator, and nothing goes wrong.
    pub fn quiet() -> Self {
        let (faults, failure) = (Vec::new(), None);
        Self {
            faults,
            failure,
            operators: 1,
            has_lease: false,
            is_whole: true,
            groups: 1,
            is_tight: false,
            is_renewed: false,
            is_corrected: false,
            skews: [0; 2],
            is_cut_short: false,
            has_jobs: false,
        }
    }
}

impl World {
    /// A world without clusters. It must be made inside a [`tokio::task::LocalSet`].
    pub fn new(conditions: &Conditions) -> Self {
        let (server, crashed) = Server::new(conditions.faults.clone());
        let heard: Heard = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::new(Shared {
            engines: Mutex::new(Engines::default()),
            operators: Mutex::new((0..conditions.operators).map(|_| None).collect()),
            heard: Arc::clone(&heard),
            lives: Mutex::new(0),
            has_lease: conditions.has_lease,
            skews: conditions.skews,
            authority: watch::channel(Arc::clone(&AUTHORITIES[0])).0,
            metrics: Mutex::default(),
        });
        let is_whole = conditions.is_whole;
        server.watch_over(Box::new(move |store, asked| judge(store, asked, &heard, is_whole)));
        let nodes = Nodes::new(conditions.failure);
        for who in 0..conditions.operators {
            shared.start(&server, who);
        }
        let around = surround(server.clone(), Arc::clone(&shared), nodes, crashed);
        let surroundings = task::spawn_local(around);
        Self { server, shared, surroundings }
    }

    /// Lets so many tasks wait in every cluster.
    pub fn queue(&self, tasks: u64) {
        lock(&self.shared.engines).tasks = tasks;
        self.server.log(&format!("{tasks} tasks wait"));
        self.server.wake();
    }

    /// Has another authority sign, and everybody believe in it alone.
    pub fn renew(&self) {
        self.server.log("another authority signs");
        self.shared.authority.send_replace(Arc::clone(&AUTHORITIES[1]));
    }

    /// Whether all Secrets hold what the authority of now gave.
    pub fn is_renewed(&self, store: &Store) -> bool {
        let believed = self.shared.authority.borrow().believed().as_bytes().to_vec();
        let believed = serde_json::to_value(ByteString(believed)).unwrap_or_default();
        let mut secrets = store.list(kinds::SECRET).peekable();
        secrets.peek().is_some() && secrets.all(|it| it["data"][file::AUTHORITY] == believed)
    }

    /// Whether the operator that began last goes on: what whoever looks after its process is told.
    pub fn health(&self) -> Result<(), String> {
        lock(&self.shared.metrics).health()
    }

    /// Takes an operator away in the middle of whatever it does.
    pub fn kill(&self, who: usize) {
        self.server.log(&format!("operator {who} is killed"));
        self.shared.end(who);
    }

    /// Another process in the place of an operator that ended.
    pub fn restart(&self, who: usize) {
        self.kill(who);
        self.shared.start(&self.server, who);
    }

    /// Asks an operator to end.
    pub fn stop(&self, who: usize) {
        self.server.log(&format!("operator {who} is stopped"));
        let mut operators = lock(&self.shared.operators);
        let stop = operators[who].as_mut().and_then(|it| it.stop.take());
        // It may have ended already.
        let _: Option<Result<(), ()>> = stop.map(|it| it.send(()));
    }

    /// The operators that work.
    pub fn at_work(&self) -> Vec<usize> {
        let operators = lock(&self.shared.operators);
        let is_at_work = |it: &Running| it.is_at_work.load(Ordering::Relaxed);
        let working = operators.iter().enumerate();
        working.filter(|(_, it)| it.as_ref().is_some_and(is_at_work)).map(|(who, _)| who).collect()
    }

    /// Creates a cluster, or changes one as `kubectl apply` does.
    pub fn apply(&self, cluster: &Value) {
        self.apply_a(kinds::CLUSTER, cluster);
    }

    /// The same of another kind.
    pub fn apply_a(&self, kind: Kind, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        self.server.log(&format!("somebody applies {} {name}", kind.name));
        let done = self.server.change(|store, now| {
            if store.get(kind, name).is_ok() {
                store.merge(kind, name, &json!({ "spec": object["spec"] }))
            } else {
                store.create(kind, object.clone(), now)
            }
        });
        assert!(done.is_ok(), "{done:?}");
    }

    /// Deletes an object of a kind, if it is there.
    pub fn delete_a(&self, kind: Kind, name: &str, deletion: &Deletion) {
        drop(self.server.change(|store, now| store.delete(kind, name, deletion, now)));
    }

    /// Waits until the objects are as they should be.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Store) -> bool) -> Result<(), String> {
        let mut changes = self.server.changes();
        let waiting = async {
            loop {
                changes.borrow_and_update();
                if self.server.look(&is_so) || self.server.wrong().is_some() {
                    return;
                }
                // The server lives as long as its world.
                drop(changes.changed().await);
            }
        };
        let waited = timeout(PATIENCE, waiting).await;
        self.server.log(&format!("{what}: {}", waited.is_ok()));
        match (self.server.wrong(), waited) {
            (Some(wrong), _) => Err(wrong),
            (None, Ok(())) => Ok(()),
            (None, Err(_)) => Err(format!("it never came that {what}")),
        }
    }

    /// Lets time pass in which nobody asks for anything: operators read and write nothing.
    pub async fn rest(&self, time: Duration) -> Result<(), String> {
        let counted = || {
            let Counts { writes, lists, .. } = self.server.counts();
            (writes, lists)
        };
        let (before, after) = loop {
            let begin = Instant::now();
            // What is under way comes to its end.
            sleep(Duration::from_secs(90)).await;
            let before = counted();
            sleep(time).await;
            // Who lost everything for a while reads it again.
            if !self.server.was_away_since(begin) {
                break (before, counted());
            }
        };
        match self.server.wrong() {
            Some(wrong) => Err(wrong),
            None if before == after => Ok(()),
            None => Err(format!("no rest: writes and lists went from {before:?} to {after:?}")),
        }
    }

    /// The children of every cluster, told from those of other worlds by nothing that chance
    /// decides, and how often each is there.
    pub fn children(&self) -> BTreeMap<String, usize> {
        self.server.look(|store| {
            let mut children = BTreeMap::new();
            let uids: Vec<String> = store
                .list(kinds::CLUSTER)
                .chain(store.list(kinds::CLUSTER_JOB))
                .filter_map(|it| it["metadata"]["uid"].as_str().map(str::to_owned))
                .collect();
            for kind in [kinds::POD, kinds::SECRET, kinds::SERVICE, kinds::NETWORK_POLICY] {
                for object in store.list(kind) {
                    *children.entry(normal(kind, object, &uids)).or_default() += 1;
                }
            }
            children
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.surroundings.abort();
        let count = lock(&self.shared.operators).len();
        (0..count).for_each(|who| self.shared.end(who));
    }
}

impl Shared {
    fn start(&self, server: &Server, who: usize) {
        let (schedulers, metrics) = (Schedulers::default(), Metrics::default());
        *lock(&self.metrics) = metrics.clone();
        let (clock, skew) = (server.clone(), SignedDuration::from_secs(self.skews[who]));
        let operator = Operator::new(Equipment {
            client: server.client(who),
            namespaces: Vec::new(),
            schedulers: schedulers.clone(),
            authority: self.authority.subscribe(),
            site: Site {
                operator: "operator:7443".to_owned(),
                scheduler_address: SchedulerAddress::Services,
                monitoring: Vec::new(),
                environments: BTreeMap::new(),
            },
            pod_name: None,
            concurrency: 32,
            metrics,
            clock: Box::new(move || clock.time_of_a_look() + skew),
        });
        let news = Box::new(operator.news());
        let (stop, stopped) = oneshot::channel();
        let stopped = async move { stopped.await.unwrap_or_default() };
        let is_at_work = Arc::new(AtomicBool::new(false));
        let work = if self.has_lease {
            let clock = server.clone();
            let clock = Box::new(move || clock.now() + skew);
            let name = format!("operator-{who}");
            let candidate = Candidate::new(server.client(who), "default", name, clock);
            let (server, is_at_work) = (server.clone(), Arc::clone(&is_at_work));
            task::spawn_local(compete(server, candidate, operator, stopped, is_at_work))
        } else {
            is_at_work.store(true, Ordering::Relaxed);
            task::spawn_local(operator.work(stopped))
        };
        let task = work.abort_handle();
        let life = {
            let mut lives = lock(&self.lives);
            *lives += 1;
            *lives
        };
        let mut heard = lock(&self.heard);
        let count = heard.len().max(who + 1);
        heard.resize_with(count, Schedulers::default);
        heard[who] = schedulers.clone();
        server.log(&format!("operator {who} starts"));
        lock(&self.operators)[who] =
            Some(Running { life, task, stop: Some(stop), is_at_work, schedulers, news });
    }

    fn end(&self, who: usize) {
        if let Some(running) = lock(&self.operators)[who].take() {
            running.task.abort();
        }
    }

    /// The operator that schedulers reach: the first that is there.
    fn step_engines(&self, server: &Server, now: Instant) -> Option<Instant> {
        let operators = lock(&self.operators);
        let is_at_work = |it: &&Running| it.is_at_work.load(Ordering::Relaxed);
        let running = operators.iter().flatten().find(is_at_work);
        let way =
            running.map(|it| Way { life: it.life, schedulers: &it.schedulers, news: &it.news });
        lock(&self.engines).step(server, way, now)
    }
}

/// An operator that works while it holds the lease.
async fn compete(
    server: Server,
    candidate: Candidate,
    operator: Operator,
    stopped: impl Future<Output = ()> + Send + 'static,
    is_at_work: Arc<AtomicBool>,
) {
    let mut held = candidate.acquire().await;
    server.log("the operator with the lease begins");
    is_at_work.store(true, Ordering::Relaxed);
    server.wake();
    let lost = tokio::select! {
        () = operator.work(stopped) => None,
        lost = held.keep() => Some(lost),
    };
    is_at_work.store(false, Ordering::Relaxed);
    server.log(&format!("the operator with the lease ends: {lost:?}"));
    if lost.is_none() {
        held.release().await;
    }
}

/// Everything but the operators.
async fn surround(
    server: Server,
    shared: Arc<Shared>,
    mut nodes: Nodes,
    mut crashed: mpsc::UnboundedReceiver<usize>,
) {
    let mut changes = server.changes();
    let mut restarts: BTreeMap<Instant, usize> = BTreeMap::new();
    loop {
        changes.borrow_and_update();
        let now = Instant::now();
        while let Some((at, who)) = restarts.first_key_value().map(|(at, who)| (*at, *who))
            && at <= now
        {
            restarts.remove(&at);
            shared.start(&server, who);
        }
        let due = [nodes.step(&server, now), shared.step_engines(&server, now)];
        let due = due.into_iter().flatten().chain(restarts.keys().copied()).min();
        let due = due.unwrap_or_else(|| now + Duration::from_hours(1));
        tokio::select! {
            _ = changes.changed() => {}
            () = sleep_until(due.max(now + Duration::from_millis(1))) => {}
            Some(who) = crashed.recv() => {
                server.log(&format!("operator {who} ends"));
                shared.end(who);
                restarts.insert(Instant::now() + RESTART, who);
            }
        }
    }
}

/// An object without what chance decides: uids, times, versions, and which index a worker has.
fn normal(kind: Kind, object: &Value, uids: &[String]) -> String {
    let metadata = &object["metadata"];
    let labels = &metadata["labels"];
    let index = labels[names::INDEX].as_str().map(|index| format!("-{index}"));
    let name = metadata["name"].as_str().unwrap_or_default();
    let name = index.as_ref().and_then(|it| name.strip_suffix(it.as_str())).unwrap_or(name);
    let mut spec = object["spec"].clone();
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("nodeName");
    }
    let keys: Vec<&String> =
        object["data"].as_object().into_iter().flat_map(|it| it.keys()).collect();
    let owners = &metadata["ownerReferences"];
    let mut annotations = metadata["annotations"].clone();
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.remove(names::TRACE);
    }
    let mut labels = labels.clone();
    labels[names::INDEX] = Value::Null;
    let text = json!([kind.plural, name, labels, annotations, owners, spec, keys]).to_string();
    uids.iter().fold(text, |text, uid| {
        let name = names::of_life("x", uid, "x");
        let life = name.rsplit('-').next().unwrap_or_default();
        text.replace(uid, "UID").replace(life, "LIFE")
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
