//! What the operator counts, and where it is served.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// What is served is text as OpenMetrics has it.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How often an operator that has nothing to do goes round.
pub(crate) const ROUND: Duration = Duration::from_secs(10);

/// How long one that works may go without: whoever asks for its health counts some refusals more.
const STILL_MAX: Duration = Duration::from_mins(1);

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($label:ident: $kind:ty),+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
        pub(crate) struct $name { $(pub(crate) $label: $kind),+ }
    };
}

labels!(/// How a reconcile ended.
    Outcome { outcome: &'static str });
labels!(/// What went wrong.
    Class { class: &'static str });
labels!(/// What was changed.
    Kind { kind: &'static str });
labels!(/// What was asked of the API server, and what it said.
    Request { verb: &'static str, resource: String, code: String });
labels!(/// What was asked of the API server.
    Verb { verb: &'static str });
labels!(/// What is watched.
    Resource { resource: String });
labels!(/// What clusters do.
    Phase { phase: &'static str });
labels!(/// What a namespace's clusters or jobs do. (Whoever scrapes calls the operator's own `namespace`.)
    PhaseIn { cluster_namespace: String, phase: &'static str });
labels!(/// Why a namespace's clusters are not ready.
    ReasonIn { cluster_namespace: String, reason: String });
labels!(/// Whose clusters.
    Namespace { cluster_namespace: String });
labels!(/// How far workers are.
    State { state: &'static str });
labels!(/// Why what a scheduler said was not heard.
    Reason { reason: &'static str });

/// Makes histograms of seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seconds(f64, f64, u16);

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(self.0, self.1, self.2))
    }
}

/// From a millisecond to 32 seconds.
const SHORT: Seconds = Seconds(0.001, 2.0, 16);

/// From a tenth of a second to 27 hours.
const LONG: Seconds = Seconds(0.1, 4.0, 11);

/// Brings up to date what is looked up only when somebody asks.
type Refresh = Box<dyn Fn(&Metrics) + Send + Sync>;

/// What an operator counts.
#[derive(Clone)]
pub struct Metrics {
    pub(crate) reconciles: Family<Outcome, Counter>,
    pub(crate) reconcile_errors: Family<Class, Counter>,
    pub(crate) reconcile_seconds: Histogram,
    pub(crate) queue_depth: Gauge,
    pub(crate) queue_wait_seconds: Histogram,
    pub(crate) changes: Family<Kind, Counter>,
    pub(crate) api_requests: Family<Request, Counter>,
    pub(crate) api_request_seconds: Family<Verb, Histogram, Seconds>,
    pub(crate) watch_age_seconds: Family<Resource, Gauge<f64, AtomicU64>>,
    pub(crate) clusters: Family<PhaseIn, Gauge>,
    pub(crate) clusters_not_ready: Family<ReasonIn, Gauge>,
    pub(crate) jobs: Family<PhaseIn, Gauge>,
    pub(crate) phase_seconds: Family<Phase, Histogram, Seconds>,
    pub(crate) workers: Family<State, Gauge>,
    pub(crate) requested_cpus: Family<Namespace, Gauge<f64, AtomicU64>>,
    pub(crate) requested_memory_bytes: Family<Namespace, Gauge>,
    pub(crate) schedulers: Gauge,
    pub(crate) demands_refused: Family<Reason, Counter>,
    pub(crate) is_leader: Gauge,
    /// When the operator last went round, if it works.
    round: Arc<Mutex<Option<Instant>>>,
    /// When each watch was opened, by resource and namespace.
    watches: Arc<Mutex<BTreeMap<(String, String), Instant>>>,
    refresh: Arc<OnceLock<Refresh>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            reconciles: Family::default(),
            reconcile_errors: Family::default(),
            reconcile_seconds: SHORT.new_metric(),
            queue_depth: Gauge::default(),
            queue_wait_seconds: SHORT.new_metric(),
            changes: Family::default(),
            api_requests: Family::default(),
            api_request_seconds: Family::new_with_constructor(SHORT),
            watch_age_seconds: Family::default(),
            clusters: Family::default(),
            clusters_not_ready: Family::default(),
            jobs: Family::default(),
            phase_seconds: Family::new_with_constructor(LONG),
            workers: Family::default(),
            requested_cpus: Family::default(),
            requested_memory_bytes: Family::default(),
            schedulers: Gauge::default(),
            demands_refused: Family::default(),
            is_leader: Gauge::default(),
            round: Arc::default(),
            watches: Arc::default(),
            refresh: Arc::default(),
        }
    }
}

impl Metrics {
    /// Calls this from now on before anybody is told what was counted.
    pub(crate) fn refresh_by(&self, refresh: Refresh) {
        // One operator works in a process.
        let _: Result<(), Refresh> = self.refresh.set(refresh);
    }

    /// The operator goes round.
    pub(crate) fn goes_round(&self) {
        *self.round.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether the operator goes on, or waits to begin: what /healthz tells.
    ///
    /// # Errors
    ///
    /// It stands still, and since when.
    pub fn health(&self) -> Result<(), String> {
        let round = *self.round.lock().unwrap_or_else(PoisonError::into_inner);
        match round.map(|at| at.elapsed()).filter(|still| *still > STILL_MAX) {
            Some(still) => Err(format!("the operator has stood still for {} s", still.as_secs())),
            None => Ok(()),
        }
    }

    /// A watch was opened.
    pub(crate) fn watch_is_open(&self, namespace: &str, resource: &str) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.insert((resource.to_owned(), namespace.to_owned()), Instant::now());
    }

    fn tell_watches(&self) {
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut oldest = BTreeMap::new();
        for ((resource, _), opened_at) in watches.iter() {
            let oldest = oldest.entry(resource).or_insert(opened_at);
            *oldest = opened_at.min(oldest);
        }
        for (resource, opened_at) in oldest {
            let resource = Resource { resource: resource.clone() };
            let age = self.watch_age_seconds.get_or_create(&resource);
            age.set(opened_at.elapsed().as_secs_f64());
        }
    }

    /// Everything that is served.
    fn registry(&self) -> Registry {
        let mut all = Registry::default();
        let it = all.sub_registry_with_prefix("ebbtide_operator");
        let counted = self.clone();
        it.register(
            "reconciles",
            "Looks at clusters and jobs, by how they ended",
            counted.reconciles,
        );
        it.register("reconcile_errors", "What went wrong in them", counted.reconcile_errors);
        it.register("reconcile_seconds", "How long they took", counted.reconcile_seconds);
        it.register("queue_depth", "Clusters and jobs that wait for a look", counted.queue_depth);
        it.register("queue_wait_seconds", "How long each waited", counted.queue_wait_seconds);
        it.register("changes", "Changes that were made, by kind", counted.changes);
        it.register("api_requests", "Requests to the API server", counted.api_requests);
        let name = "api_request_seconds";
        it.register(name, "How long it took to answer", counted.api_request_seconds);
        let name = "watch_age_seconds";
        it.register(
            name,
            "Time since the watch was opened that was opened longest ago",
            counted.watch_age_seconds,
        );
        it.register("clusters", "Clusters, by what they do", counted.clusters);
        let name = "clusters_not_ready";
        it.register(name, "Clusters that are not ready, by the reason", counted.clusters_not_ready);
        it.register("jobs", "Jobs, by what they do", counted.jobs);
        it.register("phase_seconds", "How long clusters did so", counted.phase_seconds);
        it.register("workers", "Workers of all clusters, by how far they are", counted.workers);
        it.register("requested_cpus", "Cores that pods ask for", counted.requested_cpus);
        let name = "requested_memory_bytes";
        it.register(name, "Memory that pods ask for", counted.requested_memory_bytes);
        it.register("schedulers", "Schedulers that are connected", counted.schedulers);
        let name = "demands_refused";
        it.register(name, "Lines of schedulers that were not heard", counted.demands_refused);
        it.register("is_leader", "Whether this operator holds the lease", counted.is_leader);
        all
    }

    /// Serves /healthz and /metrics until the process ends.
    pub(crate) async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let of_health = self.clone();
        let process = Process::default();
        let mut registry = self.registry();
        process.register(&mut registry);
        // Whoever asks meanwhile is told all of it, too.
        let shared = Arc::new(Mutex::new((self, process, registry)));
        let metrics = move || {
            let shared = Arc::clone(&shared);
            async move {
                let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let (metrics, process, registry) = &*shared;
                if let Some(refresh) = metrics.refresh.get() {
                    refresh(metrics);
                }
                metrics.tell_watches();
                process.refresh();
                let mut text = String::new();
                let encoded = encode(&mut text, registry).map_err(|error| error.to_string());
                encoded.map(|()| ([(CONTENT_TYPE, FORMAT)], text))
            }
        };
        let health = move || {
            let health = of_health.health();
            async move { health.map(|()| "ok").map_err(|why| (StatusCode::SERVICE_UNAVAILABLE, why)) }
        };
        let router = Router::new().route("/healthz", get(health)).route("/metrics", get(metrics));
        axum::serve(listener, router).await
    }
}

/// What Prometheus knows every process by.
#[derive(Debug, Default)]
struct Process {
    cpu: Counter<f64, AtomicU64>,
    memory: Gauge,
    started: Gauge<f64, AtomicU64>,
    counted: Mutex<f64>,
}

impl Process {
    fn register(&self, registry: &mut Registry) {
        self.started.set(Timestamp::now().as_duration().as_secs_f64());
        let started = self.started.clone();
        registry.register("process_cpu_seconds", "CPU time of the process", self.cpu.clone());
        let memory = self.memory.clone();
        registry.register("process_resident_memory_bytes", "Memory of the process", memory);
        registry.register("process_start_time_seconds", "When the process began", started);
    }

    fn refresh(&self) {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        self.cpu.inc_by((seconds - *counted).max(0.0));
        *counted = seconds.max(*counted);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|it| it.trim().split(' ').next()?.parse::<i64>().ok());
        self.memory.set(kibibytes.unwrap_or_default().saturating_mul(1024));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use prometheus_client::encoding::text::encode;

    use super::{Class, Metrics, Outcome, Phase, Reason, Request, Resource, State, Verb};

    /// The names under which everything is found, of each family one.
    fn served() -> BTreeSet<String> {
        let metrics = Metrics::default();
        metrics.reconciles.get_or_create(&Outcome { outcome: "success" }).inc();
        metrics.reconcile_errors.get_or_create(&Class { class: "panic" }).inc();
        let request = Request { verb: "get", resource: "pods".to_owned(), code: "200".to_owned() };
        metrics.api_requests.get_or_create(&request).inc();
        metrics.api_request_seconds.get_or_create(&Verb { verb: "get" }).observe(1.0);
        metrics.watch_is_open("", "pods");
        metrics.tell_watches();
        metrics.watch_age_seconds.get_or_create(&Resource { resource: "pods".to_owned() }).set(1.0);
        let cluster_namespace = "n".to_owned();
        let place = || cluster_namespace.clone();
        let phase = super::PhaseIn { cluster_namespace: place(), phase: "Ready" };
        metrics.clusters.get_or_create(&phase).set(1);
        metrics.jobs.get_or_create(&phase).set(1);
        let reason = "Quota".to_owned();
        let reason = super::ReasonIn { cluster_namespace: place(), reason };
        metrics.clusters_not_ready.get_or_create(&reason).set(1);
        let namespace = super::Namespace { cluster_namespace: place() };
        metrics.requested_cpus.get_or_create(&namespace).set(1.0);
        metrics.requested_memory_bytes.get_or_create(&namespace).set(1);
        metrics.phase_seconds.get_or_create(&Phase { phase: "Ready" }).observe(1.0);
        metrics.workers.get_or_create(&State { state: "ready" }).set(1);
        metrics.demands_refused.get_or_create(&Reason { reason: "line" }).inc();
        metrics.changes.get_or_create(&super::Kind { kind: "create pod" }).inc();
        let mut text = String::new();
        encode(&mut text, &metrics.registry()).unwrap();
        let name = |line: &str| line.split(['{', ' ']).next().unwrap_or_default().to_owned();
        text.lines().filter(|it| !it.starts_with('#')).map(name).collect()
    }

    #[test]
    fn alerts_and_dashboards_ask_for_what_is_served() {
        let served = served();
        for file in ["alerts.yaml", "dashboard.json"] {
            let path = format!("{}/../../charts/ebbtide/files/{file}", env!("CARGO_MANIFEST_DIR"));
            let text = fs::read_to_string(path).unwrap();
            let is_part = |it: char| it.is_ascii_alphanumeric() || it == '_';
            let asked: BTreeSet<&str> = text
                .split(|it| !is_part(it))
                .filter(|it| it.starts_with("ebbtide_operator_"))
                .collect();
            assert!(asked.len() > 5, "{file} asks for {asked:?}");
            for name in asked {
                assert!(served.contains(name), "{file} asks for {name}; there are {served:#?}");
            }
        }
    }
}
