//! Puts the parts together: the way to the API server, the contract's listener, and signals.

use std::process;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ebbtide_authority::Authority;
use ebbtide_contract::identity::Identity;
use ebbtide_listener::Schedulers;
use ebbtide_plan::{SchedulerAddress, Site};
use jiff::Timestamp;
use kube::Config;
use kube::client::ClientBuilder;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::authority::Keeper;
use crate::counted::Counted;
use crate::lease::Candidate;
use crate::metrics::Metrics;
use crate::operator::{Equipment, Operator, WATCH_SECONDS};
use crate::settings::{Settings, environments};

/// How often the operator mints its own certificate anew: long before one of thirty days ends.
const LEAF_INTERVAL: Duration = Duration::from_hours(24);

/// Runs until asked to end.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(operate(settings))
}

async fn operate(settings: Settings) -> anyhow::Result<()> {
    let mut config = Config::infer().await.context("no way to the API server")?;
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH_SECONDS) + 30));
    let metrics = Metrics::default();
    let way = ClientBuilder::try_from(config).context("cannot use the way to the API server")?;
    let client = way.with_layer(&Counted { metrics: metrics.clone() }).build();
    let http = TcpListener::bind(&settings.http).await.context("cannot serve metrics")?;
    tokio::spawn(metrics.clone().serve(http));
    let mut terminate = signal(SignalKind::terminate())?;
    let begun_at = Timestamp::now();
    let other_name = || format!("process-{}-{}", process::id(), begun_at.as_nanosecond());
    let identity = settings.pod_name.clone().unwrap_or_else(other_name);
    let candidate =
        Candidate::new(client.clone(), &settings.namespace, identity, Box::new(Timestamp::now));
    let mut lease = tokio::select! {
        held = candidate.acquire() => held,
        _ = terminate.recv() => return Ok(()),
    };
    metrics.is_leader.set(1);
    let keeper = tokio::select! {
        loaded = Keeper::load(&client, &settings.namespace, settings.authority_pause()) => loaded?,
        lost = lease.keep() => bail!(lost),
        _ = terminate.recv() => {
            lease.release().await;
            return Ok(());
        }
    };
    let site = Site {
        operator: settings.address.clone(),
        scheduler_address: SchedulerAddress::Services,
        monitoring: settings.monitoring_namespaces.clone(),
        environments: environments(settings.environments.as_deref())?,
    };
    let schedulers = Schedulers::default();
    let operator = Operator::new(Equipment {
        client,
        namespaces: settings.namespaces(),
        schedulers: schedulers.clone(),
        authority: keeper.authority(),
        site,
        pod_name: settings.pod_name.clone(),
        metrics: metrics.clone(),
        concurrency: settings.concurrency,
        clock: Box::new(Timestamp::now),
    });
    metrics.refresh_by(operator.figures());
    listen(&settings, keeper.authority(), schedulers, operator.news()).await?;
    tracing::info!(namespace = settings.namespace, "the operator is ready");
    let stop = async move { terminate.recv().await.unwrap_or_default() };
    // What is under way when the lease is lost is not waited for.
    tokio::select! {
        () = operator.work(stop) => {
            lease.release().await;
            Ok(())
        }
        lost = lease.keep() => bail!(lost),
        () = keeper.work() => bail!("nobody looks after the authority"),
    }
}

/// Accepts schedulers; what they say makes their cluster come up in the queue.
async fn listen(
    settings: &Settings,
    mut authority: watch::Receiver<Arc<Authority>>,
    schedulers: Schedulers,
    news: impl Fn(&str) + Clone + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let (configs, config) = watch::channel(identify(&authority.borrow_and_update())?);
    let listener = TcpListener::bind(&settings.listen)
        .await
        .with_context(|| format!("cannot listen on {}", settings.listen))?;
    tokio::spawn(ebbtide_listener::serve(listener, config, schedulers, news));
    tokio::spawn(async move {
        loop {
            // The time is up, or another one signs.
            if let Ok(Err(_)) = timeout(LEAF_INTERVAL, authority.changed()).await {
                // The operator ends.
                return;
            }
            match identify(&authority.borrow_and_update()) {
                Ok(config) => drop(configs.send_replace(config)),
                Err(error) => tracing::warn!(%error, "the operator keeps its old certificate"),
            }
        }
    });
    Ok(())
}

/// How the operator proves itself to schedulers, with a fresh certificate.
fn identify(authority: &Authority) -> anyhow::Result<Arc<ServerConfig>> {
    let proof = authority.proof(&Identity::Operator, Timestamp::now())?;
    Ok(Arc::new(proof.accept_schedulers()?))
}
