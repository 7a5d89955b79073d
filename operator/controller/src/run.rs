//! Puts the parts together: watches, the contract's listener, and the queue of clusters.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use ebbtide_api::names;
use ebbtide_authority::Authority;
use ebbtide_contract::identity::Identity;
use ebbtide_contract::tls::Credentials;
use ebbtide_listener::Schedulers;
use ebbtide_plan::{SchedulerAddress, Site};
use futures::channel::mpsc;
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use kube::runtime::controller::{self, ReconcileRequest, trigger_owners, trigger_self};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{PredicateConfig, WatchStreamExt as _, applier, predicates, watcher};
use kube::{Api, Client, Config, ResourceExt as _};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::authority;
use crate::metrics::Metrics;
use crate::observe::{Beliefs, SlimPod};
use crate::reconcile::{self, Context, Guarded};
use crate::settings::{Settings, environments};

/// A watch that says nothing for so long is opened anew: the server ends it, the client notices.
const WATCH_SECONDS: u32 = 60;

/// How often the operator mints its own certificate anew: long before one of thirty days ends.
const LEAF_INTERVAL: Duration = Duration::from_hours(24);

/// Runs until asked to end.
pub(crate) fn run(settings: Settings) -> anyhow::Result<()> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(operate(settings))
}

async fn operate(settings: Settings) -> anyhow::Result<()> {
    let mut config = Config::infer().await.context("no way to the API server")?;
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH_SECONDS) + 30));
    let client = Client::try_from(config).context("cannot use the way to the API server")?;
    let authority = Arc::new(authority::load(&client, &settings.namespace).await?);
    let site = Site {
        operator: settings.address.clone(),
        scheduler_address: SchedulerAddress::Services,
        environments: environments(settings.environments.as_deref())?,
    };
    let metrics = Metrics::default();
    let http = TcpListener::bind(&settings.http).await.context("cannot serve metrics")?;
    tokio::spawn(metrics.clone().serve(http));

    let (clusters, cluster_writer) = reflector::store::<Guarded>();
    let (pods, pod_writer) = reflector::store::<SlimPod>();
    let (kick, kicked) = mpsc::unbounded::<ObjectRef<Guarded>>();
    let schedulers = Schedulers::default();
    listen(&settings, &authority, &schedulers, clusters.clone(), kick).await?;

    let reporter =
        Reporter { controller: "ebbtide-operator".to_owned(), instance: settings.pod_name.clone() };
    let context = Arc::new(Context {
        client: client.clone(),
        pods,
        schedulers,
        authority,
        site,
        beliefs: Beliefs::default(),
        recorder: Recorder::new(client.clone(), reporter),
        metrics,
        failures: Mutex::new(BTreeMap::new()),
    });

    let watch = watcher::Config::default().timeout(WATCH_SECONDS);
    let cluster_events = watcher(Api::<Guarded>::all(client.clone()), watch.clone())
        .default_backoff()
        .reflect(cluster_writer)
        .applied_objects()
        // A written status is no reason to look again, whoever wrote it.
        .predicate_filter(predicates::generation, PredicateConfig::default());
    let managed = format!("{}={}", names::MANAGED_BY, names::MANAGER);
    let pod_events = watcher(Api::<SlimPod>::all(client), watch.labels(&managed))
        .modify(SlimPod::slim)
        .default_backoff()
        .reflect(pod_writer)
        .touched_objects();
    let queue = stream::select_all([
        trigger_self::<Guarded, _>(cluster_events, ()).boxed(),
        trigger_owners::<Guarded, _>(pod_events, (), ()).boxed(),
        kicked.map(|cluster| Ok::<_, watcher::Error>(ReconcileRequest::from(cluster))).boxed(),
    ]);
    let mut terminate = signal(SignalKind::terminate())?;
    let queue = queue.take_until(Box::pin(async move { terminate.recv().await }));
    tracing::info!(namespace = settings.namespace, "the operator is ready");
    applier(
        |cluster, context| Box::pin(reconcile::reconcile(cluster, context)),
        reconcile::retry,
        context,
        clusters,
        queue,
        controller::Config::default().concurrency(settings.concurrency),
    )
    .for_each(|done| async move {
        match done {
            // A reconcile that failed has told so; a cluster that is gone needs none.
            Ok(_)
            | Err(controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_)) =>
                {}
            Err(error) => tracing::warn!(%error, "the API server cannot be watched"),
        }
    })
    .await;
    Ok(())
}

/// Accepts schedulers; what they say makes their cluster come up in the queue.
async fn listen(
    settings: &Settings,
    authority: &Arc<Authority>,
    schedulers: &Schedulers,
    clusters: Store<Guarded>,
    kick: mpsc::UnboundedSender<ObjectRef<Guarded>>,
) -> anyhow::Result<()> {
    let (configs, config) = watch::channel(identify(authority)?);
    let listener = TcpListener::bind(&settings.listen)
        .await
        .with_context(|| format!("cannot listen on {}", settings.listen))?;
    let news = move |uid: &str| {
        let named = clusters.find(|cluster| cluster.uid().as_deref() == Some(uid));
        if let Some(cluster) = named {
            // The queue is gone only when the operator ends.
            let _: Result<(), _> = kick.unbounded_send(ObjectRef::from_obj(&*cluster));
        }
    };
    tokio::spawn(ebbtide_listener::serve(listener, config, schedulers.clone(), news));
    let authority = Arc::clone(authority);
    tokio::spawn(async move {
        loop {
            sleep(LEAF_INTERVAL).await;
            match identify(&authority) {
                Ok(config) => drop(configs.send_replace(config)),
                Err(error) => tracing::warn!(%error, "the operator keeps its old certificate"),
            }
        }
    });
    Ok(())
}

/// How the operator proves itself to schedulers, with a fresh certificate.
fn identify(authority: &Authority) -> anyhow::Result<Arc<ServerConfig>> {
    let leaf = authority.leaf(&Identity::Operator, Timestamp::now())?;
    let credentials = Credentials::from_pem(
        authority.certificate().as_bytes(),
        leaf.certificate.as_bytes(),
        leaf.key.as_bytes(),
    )?;
    Ok(Arc::new(credentials.accept_schedulers()?))
}
