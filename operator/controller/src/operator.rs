//! One operator at work: watches, the queue of clusters, and what every reconcile may use.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use ebbtide_api::names;
use ebbtide_authority::Authority;
use ebbtide_listener::Schedulers;
use ebbtide_plan::Site;
use futures::channel::mpsc::{self, UnboundedReceiver, UnboundedSender};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use kube::runtime::controller::{self, ReconcileRequest, trigger_owners, trigger_self};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{PredicateConfig, WatchStreamExt as _, applier, predicates, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};

use crate::metrics::Metrics;
use crate::observe::{Beliefs, PolicyMetadata, ServiceMetadata, SlimPod, slim};
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
    service_writer: Writer<ServiceMetadata>,
    policy_writer: Writer<PolicyMetadata>,
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
        let (services, service_writer) = reflector::store::<ServiceMetadata>();
        let (policies, policy_writer) = reflector::store::<PolicyMetadata>();
        let (kick, kicked) = mpsc::unbounded();
        let reporter = Reporter { controller: "ebbtide-operator".to_owned(), instance: pod_name };
        let context = Context {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            pods,
            services,
            policies,
            schedulers,
            authority,
            site,
            beliefs: Beliefs::default(),
            metrics,
            failures: Mutex::new(BTreeMap::new()),
            clock,
        };
        let context = Arc::new(context);
        Self {
            context,
            clusters,
            cluster_writer,
            pod_writer,
            service_writer,
            policy_writer,
            kick,
            kicked,
            concurrency,
        }
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
        let managed = format!("{}={}", names::MANAGED_BY, names::MANAGER);
        let watch = watch.labels(&managed);
        let look_at_all = LookAtAll { clusters: self.clusters.clone(), kick: self.kick };
        let pods = watcher(Api::<SlimPod>::all(client.clone()), watch.clone());
        let pods = children(pods.modify(SlimPod::slim), self.pod_writer, look_at_all.clone());
        let services = watcher(Api::<ServiceMetadata>::all(client.clone()), watch.clone());
        let services = children(services.modify(slim), self.service_writer, look_at_all.clone());
        let policies = watcher(Api::<PolicyMetadata>::all(client), watch);
        let policies = children(policies.modify(slim), self.policy_writer, look_at_all);
        let kicked = self.kicked;
        let queue = stream::select_all([
            trigger_self::<Guarded, _>(cluster_events, ()).boxed(),
            pods,
            services,
            policies,
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

/// Brings every cluster up in the queue.
#[derive(Clone)]
struct LookAtAll {
    clusters: Store<Guarded>,
    kick: UnboundedSender<ObjectRef<Guarded>>,
}

/// Keeps a store of what clusters have, and looks at the cluster of whatever changes.
fn children<K>(
    events: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
    writer: Writer<K>,
    look_at_all: LookAtAll,
) -> BoxStream<'static, Result<ReconcileRequest<Guarded>, watcher::Error>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let look = move |event: &Result<watcher::Event<K>, watcher::Error>| {
        // What went away before a list is in no event.
        if let Ok(watcher::Event::InitDone) = event {
            for cluster in look_at_all.clusters.state() {
                let kick = &look_at_all.kick;
                let _: Result<(), _> = kick.unbounded_send(ObjectRef::from_obj(&*cluster));
            }
        }
    };
    let events = events.default_backoff().reflect(writer).inspect(look).touched_objects();
    trigger_owners::<Guarded, _>(events, (), ()).boxed()
}
