//! One operator at work: watches, the queue of clusters, and what every reconcile may use.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ebbtide_api::names;
use ebbtide_authority::Authority;
use ebbtide_listener::Schedulers;
use ebbtide_plan::Site;
use futures::channel::mpsc::{self, UnboundedReceiver, UnboundedSender};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use kube::runtime::controller::{self, ReconcileRequest, trigger_owners, trigger_self};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{PredicateConfig, WatchStreamExt as _, applier, predicates, watcher};
use kube::{Api, Client, ResourceExt as _};

use crate::metrics::Metrics;
use crate::observe::{Beliefs, SlimPod};
use crate::reconcile::{self, Context, Guarded};

/// A watch that says nothing for so long is opened anew: the server ends it, the client notices.
pub(crate) const WATCH_SECONDS: u32 = 60;

/// Tells the time of the calendar.
pub type Clock = Box<dyn Fn() -> Timestamp + Send + Sync>;

/// What an operator works with.
pub struct Equipment {
    /// The way to the API server.
    pub client: Client,
    /// What schedulers say.
    pub schedulers: Schedulers,
    /// Who signs certificates.
    pub authority: Arc<Authority>,
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
    clusters: Store<Guarded>,
    cluster_writer: Writer<Guarded>,
    pod_writer: Writer<SlimPod>,
    kick: UnboundedSender<ObjectRef<Guarded>>,
    kicked: UnboundedReceiver<ObjectRef<Guarded>>,
    concurrency: u16,
}

impl Operator {
    /// One that knows nothing yet.
    pub fn new(equipment: Equipment) -> Self {
        let Equipment {
            client,
            schedulers,
            authority,
            site,
            pod_name,
            concurrency,
            metrics,
            clock,
        } = equipment;
        let (clusters, cluster_writer) = reflector::store::<Guarded>();
        let (pods, pod_writer) = reflector::store::<SlimPod>();
        let (kick, kicked) = mpsc::unbounded();
        let reporter = Reporter { controller: "ebbtide-operator".to_owned(), instance: pod_name };
        let context = Context {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            pods,
            schedulers,
            authority,
            site,
            beliefs: Beliefs::default(),
            metrics,
            failures: Mutex::new(BTreeMap::new()),
            clock,
        };
        let context = Arc::new(context);
        Self { context, clusters, cluster_writer, pod_writer, kick, kicked, concurrency }
    }

    /// What is to be called with the uid of a cluster of which its scheduler told something new.
    pub fn news(&self) -> impl Fn(&str) + Clone + Send + Sync + 'static {
        let (clusters, kick) = (self.clusters.clone(), self.kick.clone());
        move |uid: &str| {
            let named = clusters.find(|cluster| cluster.uid().as_deref() == Some(uid));
            if let Some(cluster) = named {
                // The queue is gone only when the operator ends.
                let _: Result<(), _> = kick.unbounded_send(ObjectRef::from_obj(&*cluster));
            }
        }
    }

    /// Works until `stop` is ready, and then ends what it has begun.
    pub async fn work(self, stop: impl Future<Output = ()> + Send + 'static) {
        let client = self.context.client.clone();
        let watch = watcher::Config::default().timeout(WATCH_SECONDS);
        let cluster_events = watcher(Api::<Guarded>::all(client.clone()), watch.clone())
            .default_backoff()
            .reflect(self.cluster_writer)
            .applied_objects()
            // A written status is no reason to look again, whoever wrote it.
            .predicate_filter(predicates::generation, PredicateConfig::default());
        let (known, kick) = (self.clusters.clone(), self.kick.clone());
        let look_at_all = move |event: &Result<watcher::Event<SlimPod>, watcher::Error>| {
            // What went away before a list is in no event.
            if let Ok(watcher::Event::InitDone) = event {
                for cluster in known.state() {
                    let _: Result<(), _> = kick.unbounded_send(ObjectRef::from_obj(&*cluster));
                }
            }
        };
        let managed = format!("{}={}", names::MANAGED_BY, names::MANAGER);
        let pod_events = watcher(Api::<SlimPod>::all(client), watch.labels(&managed))
            .modify(SlimPod::slim)
            .default_backoff()
            .reflect(self.pod_writer)
            .inspect(look_at_all)
            .touched_objects();
        let kicked = self.kicked;
        let queue = stream::select_all([
            trigger_self::<Guarded, _>(cluster_events, ()).boxed(),
            trigger_owners::<Guarded, _>(pod_events, (), ()).boxed(),
            kicked.map(|cluster| Ok::<_, watcher::Error>(ReconcileRequest::from(cluster))).boxed(),
        ]);
        applier(
            |cluster, context| Box::pin(reconcile::reconcile(cluster, context)),
            reconcile::retry,
            self.context,
            self.clusters,
            queue.take_until(Box::pin(stop)),
            controller::Config::default().concurrency(self.concurrency),
        )
        .for_each(|done| async move {
            match done {
                // A reconcile that failed has told so; a cluster that is gone needs none.
                Ok(_)
                | Err(
                    controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_),
                ) => {}
                Err(error) => tracing::warn!(%error, "the API server cannot be watched"),
            }
        })
        .await;
    }
}
