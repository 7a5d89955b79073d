//! One operator at work: watches, the queue of clusters, and what every look may use.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;

use ebbtide_api::{Cluster, ClusterJob, Guarded, JobPhase, Phase, Unread, WorkerCounts, names};
use ebbtide_authority::Authority;
use ebbtide_listener::Schedulers;
use ebbtide_plan::queue::{Key, Queue};
use ebbtide_plan::requested::Requested;
use ebbtide_plan::unreadable::UNREADABLE;
use ebbtide_plan::{Site, ready};
use futures::stream::{BoxStream, SelectAll};
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use kube::core::NamespaceResourceScope;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until};

use crate::known::{Known, Scope, Watched, by_cluster, key, slim_cluster, slim_job};
use crate::metrics::{Metrics, Namespace, PhaseIn, ROUND, Reason, ReasonIn, State};
use crate::observe::Beliefs;
use crate::reconcile::{Context, look};
use crate::slim::{SlimPod, client_of, slim};
use crate::trace::Traces;

/// A watch that says nothing for so long is opened anew: the server ends it, the client notices.
pub(crate) const WATCH_SECONDS: u32 = 60;

/// Clusters and jobs of a list that come at once: somebody's may take a megabyte each.
const PAGE: u32 = 8;

/// The same of what clusters have, which is smaller and more.
const PAGE_OF_OURS: u32 = 100;

/// The reason why a cluster is not ready at which nobody has looked yet, or at which each look fails.
const NOT_SEEN: &str = "NotSeen";

/// Tells the time of the calendar.
pub type Clock = Box<dyn Fn() -> Timestamp + Send + Sync>;

/// What an operator works with.
pub struct Equipment {
    /// The way to the API server.
    pub client: Client,
    /// The namespaces that it works in; none: all.
    pub namespaces: Vec<String>,
    /// What schedulers say.
    pub schedulers: Schedulers,
    /// Who signs certificates, as it is now.
    pub authority: watch::Receiver<Arc<Authority>>,
    /// What is the same for every cluster.
    pub site: Site,
    /// Name of this pod, for events.
    pub pod_name: Option<String>,
    /// Clusters that are worked on at once.
    pub concurrency: u16,
    /// What it counts.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
}

/// An operator that is ready to work.
pub struct Operator {
    context: Arc<Context>,
    namespaces: Vec<String>,
    news: mpsc::UnboundedSender<Key>,
    heard: mpsc::UnboundedReceiver<Key>,
    concurrency: u16,
}

/// The clusters to look at, as watches tell it.
type Touched = BoxStream<'static, Vec<Key>>;

impl Operator {
    /// One that knows nothing yet.
    pub fn new(equipment: Equipment) -> Self {
        let Equipment { client, schedulers, authority, site, pod_name, metrics, clock, .. } =
            equipment;
        let (news, heard) = mpsc::unbounded_channel();
        let reporter = Reporter { controller: "ebbtide-operator".to_owned(), instance: pod_name };
        let context = Context {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            clusters: Arc::default(),
            jobs: Arc::default(),
            pods: Arc::default(),
            services: Arc::default(),
            policies: Arc::default(),
            schedulers,
            authority,
            site,
            beliefs: Beliefs::default(),
            metrics,
            traces: Traces::new(Timestamp::now()),
            clock,
        };
        let Equipment { namespaces, concurrency, .. } = equipment;
        Self { context: Arc::new(context), namespaces, news, heard, concurrency }
    }

    /// What is to be called with the uid of a cluster of which its scheduler told something new.
    pub fn news(&self) -> impl Fn(&str) + Clone + Send + Sync + 'static {
        let (clusters, news) = (Arc::clone(&self.context.clusters), self.news.clone());
        move |uid: &str| {
            for key in clusters.named(uid) {
                // The queue is gone only when the operator ends.
                let _: Result<(), _> = news.send(key);
            }
        }
    }

    /// What brings up to date what is not counted but looked up.
    pub(crate) fn figures(&self) -> Box<dyn Fn(&Metrics) + Send + Sync> {
        let context = Arc::clone(&self.context);
        Box::new(move |metrics| tell(metrics, &context))
    }

    /// Works until `stop` is ready, and then ends what it has begun.
    pub async fn work(self, stop: impl Future<Output = ()> + Send + 'static) {
        let mut watches = watches(&self.context, &self.namespaces);
        let Self { context, mut heard, concurrency, .. } = self;
        let mut queue = Queue::new(usize::from(concurrency));
        let mut looks = JoinSet::new();
        let mut stop = Box::pin(stop);
        let begin = Instant::now();
        let now = || begin.elapsed();
        let mut authority = context.authority.clone();
        let mut round = interval(ROUND);
        loop {
            context.metrics.goes_round();
            while let Some((key, waited)) = queue.next(now()) {
                context.metrics.queue_wait_seconds.observe(waited.as_secs_f64());
                looks.spawn(look(Arc::clone(&context), key));
            }
            context.metrics.queue_depth.set(i64::try_from(queue.depth()).unwrap_or(i64::MAX));
            tokio::select! {
                () = &mut stop => break,
                Some(touched) = watches.next() => {
                    for key in &touched {
                        queue.add(key, now());
                    }
                }
                Some(key) = heard.recv() => queue.add(&key, now()),
                Ok(()) = authority.changed() => {
                    // Everybody's Secrets are renewed.
                    for cluster in context.clusters.all(&None) {
                        queue.add(&key(&*cluster), now());
                    }
                }
                Some(Ok((key, next))) = looks.join_next() => {
                    if let Some(held) = next.held {
                        queue.hold(&key, now() + held);
                    }
                    queue.done(&key);
                    if let Some(at) = next.again.and_then(|after| now().checked_add(after)) {
                        queue.add_later(&key, at);
                    }
                }
                () = until(queue.wake_at().map(|at| begin + at)) => {}
                _ = round.tick() => {}
            }
        }
        while looks.join_next().await.is_some() {}
    }
}

/// What there is of all clusters and jobs together.
fn tell(metrics: &Metrics, context: &Context) {
    let Context { clusters, jobs, schedulers, .. } = context;
    let mut namespaces = BTreeMap::<String, Tenant>::new();
    let mut workers = WorkerCounts::default();
    for guarded in clusters.all(&None) {
        let tenant = namespaces.entry(guarded.namespace().unwrap_or_default()).or_default();
        tenant.take(guarded.0.as_ref());
        let status = guarded.0.as_ref().ok().and_then(|it| it.status.as_ref());
        workers += status.map(|it| it.workers).unwrap_or_default();
    }
    // A namespace that has none any more is not told of for ever.
    metrics.clusters.clear();
    metrics.clusters_not_ready.clear();
    metrics.requested_cpus.clear();
    metrics.requested_memory_bytes.clear();
    for (namespace, tenant) in namespaces {
        tenant.tell(metrics, &namespace);
    }
    tell_of_jobs(metrics, jobs);
    for (state, count) in [
        ("desired", workers.desired),
        ("starting", workers.starting),
        ("ready", workers.ready),
        ("retiring", workers.retiring),
        ("failed", workers.failed),
    ] {
        metrics.workers.get_or_create(&State { state }).set(i64::from(count));
    }
    metrics.schedulers.set(i64::try_from(schedulers.connected()).unwrap_or(i64::MAX));
    for (reason, count) in schedulers.refused() {
        let counter = metrics.demands_refused.get_or_create(&Reason { reason });
        counter.inc_by(count.saturating_sub(counter.get()));
    }
}

fn tell_of_jobs(metrics: &Metrics, jobs: &Known<Guarded<ClusterJob>>) {
    let mut namespaces = BTreeMap::<String, [i64; JobPhase::ALL.len()]>::new();
    for guarded in jobs.all(&None) {
        let phases = namespaces.entry(guarded.namespace().unwrap_or_default()).or_default();
        if let Ok(job) = &guarded.0 {
            phases[job.status.as_ref().map_or(JobPhase::Pending, |it| it.phase) as usize] += 1;
        }
    }
    metrics.jobs.clear();
    for (cluster_namespace, phases) in namespaces {
        for phase in JobPhase::ALL {
            let labels =
                PhaseIn { cluster_namespace: cluster_namespace.clone(), phase: phase.as_str() };
            metrics.jobs.get_or_create(&labels).set(phases[phase as usize]);
        }
    }
}

/// What the clusters of a namespace do and ask for.
#[derive(Default)]
struct Tenant {
    phases: [i64; Phase::ALL.len()],
    /// Why those are not ready that are not, as their statuses tell.
    reasons: BTreeMap<String, i64>,
    requested: Requested,
}

impl Tenant {
    fn take(&mut self, cluster: Result<&Cluster, &Unread>) {
        let Ok(cluster) = cluster else {
            return self.count(Phase::Degraded, Some(UNREADABLE));
        };
        self.requested += Requested::by(cluster);
        let Some(status) = &cluster.status else {
            return self.count(Phase::Starting, Some(NOT_SEEN));
        };
        let lack = ready(status).filter(|it| it.status == "False").map(|it| &*it.reason);
        self.count(status.phase, lack);
    }

    fn count(&mut self, phase: Phase, lack: Option<&str>) {
        self.phases[phase as usize] += 1;
        if let Some(reason) = lack {
            *self.reasons.entry(reason.to_owned()).or_default() += 1;
        }
    }

    fn tell(self, metrics: &Metrics, namespace: &str) {
        let whose = || namespace.to_owned();
        for phase in Phase::ALL {
            let labels = PhaseIn { cluster_namespace: whose(), phase: phase.as_str() };
            metrics.clusters.get_or_create(&labels).set(self.phases[phase as usize]);
        }
        for (reason, count) in self.reasons {
            let labels = ReasonIn { cluster_namespace: whose(), reason };
            metrics.clusters_not_ready.get_or_create(&labels).set(count);
        }
        let labels = Namespace { cluster_namespace: whose() };
        metrics.requested_cpus.get_or_create(&labels).set(self.requested.cpus);
        let bytes = i64::try_from(self.requested.memory_bytes).unwrap_or(i64::MAX);
        metrics.requested_memory_bytes.get_or_create(&labels).set(bytes);
    }
}

/// Waits until then, or for ever.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// All watches: of each kind one for all namespaces, or one for each of some.
fn watches(context: &Arc<Context>, namespaces: &[String]) -> SelectAll<Touched> {
    let managed = format!("{}={}", names::MANAGED_BY, names::MANAGER);
    let everything = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    let ours = everything.clone().labels(&managed).page_size(PAGE_OF_OURS);
    let scopes: Vec<Scope> = match namespaces {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    let (client, known) = (&context.client, context);
    for scope in &scopes {
        for resource in ["clusters", "clusterjobs", "pods", "services", "networkpolicies"] {
            context.metrics.watch_is_open(scope.as_deref().unwrap_or_default(), resource);
        }
    }
    let mut all = SelectAll::new();
    for scope in scopes {
        let clusters = events(client, &scope, &everything).modify(slim_cluster);
        all.push(taken(clusters, &known.clusters, &scope, context, of_phase));
        let jobs = events(client, &scope, &everything).modify(slim_job);
        all.push(taken(jobs, &known.jobs, &scope, context, nobody_else));
        let pods = events(client, &scope, &ours).modify(SlimPod::slim);
        all.push(taken(pods, &known.pods, &scope, context, of_client));
        let services = events(client, &scope, &ours).modify(slim);
        all.push(taken(services, &known.services, &scope, context, nobody_else));
        let policies = events(client, &scope, &ours).modify(slim);
        all.push(taken(policies, &known.policies, &scope, context, nobody_else));
    }
    all
}

/// What happens to a kind in a scope.
fn events<K>(
    client: &Client,
    scope: &Scope,
    config: &watcher::Config,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + use<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api = match scope {
        None => Api::<K>::all(client.clone()),
        Some(namespace) => Api::namespaced(client.clone(), namespace),
    };
    watcher(api, config.clone()).default_backoff()
}

/// Jobs have to do with the phase of the cluster that they are on, whoever made it; and a cluster with its
/// own, as long as others wrote it.
fn of_phase(context: &Context, cluster: &Guarded<Cluster>, is_created: bool) -> Vec<Key> {
    let own = key(cluster);
    let uid = cluster.meta().uid.as_deref().unwrap_or_default();
    if is_created {
        context.beliefs.came(&own, uid);
    }
    let is_news = !context.beliefs.has_written(&own, uid);
    let jobs = context.jobs.named(&by_cluster(&own.namespace, &own.name));
    jobs.into_iter().chain(is_news.then_some(own)).collect()
}

/// The program of a job needs what its cluster has for clients.
fn of_client(context: &Context, pod: &SlimPod, _: bool) -> Vec<Key> {
    let named = client_of(pod).map(|uid| context.clusters.named(uid)).unwrap_or_default();
    named.into_iter().filter(|it| Some(&it.namespace) == pod.metadata.namespace.as_ref()).collect()
}

fn nobody_else<K>(_: &Context, _: &K, _: bool) -> Vec<Key> {
    Vec::new()
}

/// Takes in what happens. Gives what is to be looked at: all of a scope when it is known for the first
/// time what they have, and who else has to do with it, told also whether it was created just now.
fn taken<K: Watched + Clone + 'static>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static,
    known: &Arc<Known<K>>,
    scope: &Scope,
    context: &Arc<Context>,
    others: fn(&Context, &K, bool) -> Vec<Key>,
) -> Touched {
    let (known, scope, context) = (Arc::clone(known), scope.clone(), Arc::clone(context));
    let taken = events.map(move |event| match event {
        Ok(event) => {
            let is_first = matches!(event, Event::InitDone) && !known.has_listed_scope(&scope);
            let mut touched: Vec<Key> = match &event {
                Event::Apply(object) => others(&context, object, known.get(&key(object)).is_none()),
                Event::Delete(object) | Event::InitApply(object) => others(&context, object, false),
                Event::Init | Event::InitDone => Vec::new(),
            };
            let is_list = matches!(event, Event::InitDone);
            touched.extend(known.take(&scope, event));
            if is_first {
                touched.extend(context.clusters.all(&scope).iter().map(|it| key(&**it)));
            }
            if is_list {
                // What a list no longer has may be a job's: they are few, and looked at for nothing.
                touched.extend(context.jobs.all(&scope).iter().map(|it| key(&**it)));
            }
            touched
        }
        Err(error) => {
            tracing::warn!(%error, "the API server cannot be watched");
            Vec::new()
        }
    });
    taken.boxed()
}
