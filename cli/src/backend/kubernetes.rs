//! Clusters as objects of a Kubernetes API server.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use ebbtide_api::{Cluster, GROUP, names};
use futures::TryStreamExt as _;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Event, Pod, Secret};
use kube::api::{
    DeleteParams, ListParams, LogParams, Patch, PatchParams, Preconditions, WatchEvent, WatchParams,
};
use kube::core::error_boundary::InvalidObject;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::time::{Instant, sleep, timeout};

use crate::backend::{Kind, Listed, Scope};
use crate::story::Line;

/// Longest time for one request.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// How long a deletion may take.
pub(super) const DOWN_MAX: Duration = Duration::from_mins(2);

/// How long an operator may take to write certificates, and how often it is looked whether it has.
const RENEWAL_MAX: Duration = Duration::from_secs(20);
const RENEWAL_INTERVAL: Duration = Duration::from_millis(200);

const FIELD_MANAGER: &str = "ebbtide";

#[derive(Clone)]
pub(crate) struct Kubernetes {
    pub(super) client: Client,
    pub(super) namespace: String,
}

/// Kubernetes where there is a context for it, else this machine.
pub(super) fn default_kind() -> Kind {
    let set = env::var_os("KUBECONFIG").is_some_and(|it| !it.is_empty());
    let in_home =
        env::var_os("HOME").is_some_and(|home| Path::new(&home).join(".kube/config").exists());
    let inside = env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    if set || in_home || inside { Kind::Kubernetes } else { Kind::Local }
}

pub(super) async fn in_time<T>(
    what: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> anyhow::Result<T> {
    match timeout(REQUEST_MAX, request).await {
        Ok(Ok(answer)) => Ok(answer),
        // The server's own page, not an answer about an object.
        Ok(Err(kube::Error::Api(status))) if status.message.contains("page not found") => bail!(
            "{what}: this Kubernetes knows no clusters of {GROUP}; install the chart ebbtide first"
        ),
        Ok(Err(kube::Error::Api(status))) => bail!("{what}: {}", status.message),
        Ok(Err(error)) => Err(anyhow!(error).context(what.to_owned())),
        Err(_) => bail!("{what}: the API server did not answer within {REQUEST_MAX:?}"),
    }
}

/// Waits until an object differs from this version or is gone, or for a while.
pub(super) async fn changed<K: Clone + Debug + DeserializeOwned>(
    api: &Api<K>,
    name: &str,
    version: &str,
) -> anyhow::Result<()> {
    let params = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(20);
    let events = in_time("watch", api.watch(&params, version)).await?;
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.try_next().await.context("watch")? {
        if !matches!(event, WatchEvent::Bookmark(_)) {
            return Ok(());
        }
    }
    Ok(())
}

impl Kubernetes {
    pub(super) async fn connect(namespace: Option<String>) -> anyhow::Result<Self> {
        let config = Config::infer().await.context("no way to a Kubernetes API server")?;
        let client = Client::try_from(config).context("cannot use the kubectl context")?;
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        Ok(Self { client, namespace })
    }

    fn clusters(&self, namespace: &str) -> Api<Cluster> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(super) async fn apply(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let mut cluster = cluster.clone();
        cluster.status = None;
        let params = PatchParams::apply(FIELD_MANAGER);
        let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
        let clusters = self.clusters(&namespace);
        in_time("apply", clusters.patch(&name, &params, &Patch::Apply(&cluster))).await?;
        Ok(())
    }

    pub(crate) async fn get(&self, namespace: &str, name: &str) -> anyhow::Result<Cluster> {
        in_time("get", self.clusters(namespace).get(name)).await
    }

    pub(crate) async fn list<K>(&self, scope: Scope) -> anyhow::Result<Listed<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + DeserializeOwned,
    {
        let client = self.client.clone();
        let all: Api<DeserializeGuard<K>> = if scope.all_namespaces {
            Api::all(client)
        } else {
            Api::namespaced(client, &self.namespace)
        };
        let found = in_time("list", all.list(&ListParams::default())).await?.items;
        let mut listed = Listed { objects: Vec::new(), unreadable: Vec::new() };
        let kind = K::kind(&()).to_lowercase();
        for DeserializeGuard(read) in found {
            match read {
                Ok(object) => listed.objects.push(object),
                Err(InvalidObject { error, metadata }) => {
                    let name = metadata.name.unwrap_or_default();
                    listed.unreadable.push(format!("{kind} {name} cannot be read: {error}"));
                }
            }
        }
        Ok(listed)
    }

    pub(super) async fn next(
        &self,
        namespace: &str,
        name: &str,
        seen: Option<&Cluster>,
    ) -> anyhow::Result<Cluster> {
        let clusters = self.clusters(namespace);
        loop {
            let now = in_time("get", clusters.get(name)).await?;
            let is_news = seen.is_none_or(|seen| seen.status != now.status);
            if is_news && now.status.is_some() {
                return Ok(now);
            }
            let version = now.resource_version().unwrap_or_default();
            changed(&clusters, name, &version).await?;
        }
    }

    pub(super) async fn down(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let clusters = self.clusters(namespace);
        let cluster = self.get(namespace, name).await?;
        let uid = cluster.uid();
        // In the foreground: it is gone when everything that it owned is.
        let params = DeleteParams::foreground()
            .preconditions(Preconditions { uid: uid.clone(), resource_version: None });
        in_time("delete", clusters.delete(name, &params)).await?;
        let gone = async {
            loop {
                match in_time("get", clusters.get_opt(name)).await? {
                    Some(now) if now.uid() == uid => {
                        let version = now.resource_version().unwrap_or_default();
                        changed(&clusters, name, &version).await?;
                    }
                    _ => return anyhow::Ok(()),
                }
            }
        };
        timeout(DOWN_MAX, gone)
            .await
            .with_context(|| format!("{name} is not gone after {DOWN_MAX:?}"))?
    }

    /// A cluster, and what a client of it proves itself with.
    pub(crate) async fn credentials(
        &self,
        (namespace, name): (&str, &str),
    ) -> anyhow::Result<(Cluster, BTreeMap<String, ByteString>)> {
        let cluster = self.get(namespace, name).await?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let client = ebbtide_plan::client_secret(&cluster);
        let read = || in_time("read the client's credentials", secrets.get_opt(&client));
        let mut found = read().await?;
        let was_made = cluster.status.as_ref().is_some_and(|it| it.credentials.is_some());
        if found.is_none() && was_made {
            // Somebody deleted it.
            self.renew(namespace, name).await?;
            let asked_at = Instant::now();
            while found.is_none() && asked_at.elapsed() < RENEWAL_MAX {
                sleep(RENEWAL_INTERVAL).await;
                found = read().await?;
            }
        }
        let found =
            found.with_context(|| format!("there is no Secret {client} for its clients"))?;
        Ok((cluster, found.data.unwrap_or_default()))
    }

    /// Asks for other certificates of a cluster.
    async fn renew(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let wish = json!({ names::RENEW: Timestamp::now().to_string() });
        let patch = Patch::Merge(json!({ "metadata": { "annotations": wish } }));
        let (clusters, params) = (self.clusters(namespace), PatchParams::default());
        in_time("ask for other certificates", clusters.patch(name, &params, &patch)).await?;
        Ok(())
    }

    /// Carries a connection to a port of a cluster's scheduler, through the API server, to its end.
    pub(crate) async fn forward<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        (namespace, name): (&str, &str),
        mut local: S,
        port: u16,
    ) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = names::scheduler(name);
        let ports = [port];
        let forwarding = pods.portforward(&pod, &ports);
        let mut forwarder = in_time("forward a port", forwarding).await?;
        let stream = forwarder.take_stream(port);
        let mut remote = stream.context("the port is not forwarded")?;
        copy_bidirectional(&mut local, &mut remote).await?;
        drop(remote);
        Ok(forwarder.join().await?)
    }

    pub(super) async fn events(&self, cluster: &Cluster) -> anyhow::Result<Vec<Line>> {
        let namespace = cluster.namespace().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let of_pods = names::child(&cluster.name_any(), "");
        let uid = cluster.uid();
        let mut lines = Vec::new();
        for event in in_time("list events", events.list(&ListParams::default())).await?.items {
            let about = &event.involved_object;
            let who = about.name.clone().unwrap_or_default();
            let is_pods = about.kind.as_deref() == Some("Pod") && who.starts_with(&of_pods);
            if about.uid != uid && !is_pods {
                continue;
            }
            let who = if is_pods { who } else { "cluster".to_owned() };
            lines.push(line(who, &event));
        }
        // A cluster of this name that was there before had a story of its own.
        lines.retain(|line| cluster.creation_timestamp().is_none_or(|it| line.at >= it.0));
        Ok(lines)
    }

    pub(super) async fn logs(&self, cluster: &Cluster) -> anyhow::Result<Vec<(String, String)>> {
        let namespace = cluster.namespace().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let own = format!("{}={}", names::CLUSTER_UID, cluster.uid().unwrap_or_default());
        let found = in_time("list pods", pods.list(&ListParams::default().labels(&own))).await?;
        let params = LogParams { timestamps: true, ..LogParams::default() };
        let mut logs = Vec::new();
        for pod in found.items.iter().map(kube::ResourceExt::name_any) {
            // What has not started has said nothing.
            let log = in_time("read a log", pods.logs(&pod, &params)).await;
            let log = log.unwrap_or_else(|error| format!("{} {error:#}", Timestamp::now()));
            logs.push((pod, log));
        }
        Ok(logs)
    }

    pub(super) async fn is_there(&self, namespace: &str, name: &str) -> anyhow::Result<bool> {
        Ok(in_time("get", self.clusters(namespace).get_opt(name)).await?.is_some())
    }

    /// Whether it is certain that the cluster with this uid is gone.
    pub(crate) async fn is_gone(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let there = in_time("get", self.clusters(namespace).get_opt(name)).await;
        there.is_ok_and(|there| there.is_none_or(|it| it.uid().as_deref() != Some(uid)))
    }
}

/// An event, at the last time that it happened.
fn line(who: String, event: &Event) -> Line {
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let at = last
        .or_else(|| event.event_time.as_ref().map(|time| time.0))
        .or_else(|| event.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let words = [&event.reason, &event.message].map(|it| it.as_deref().unwrap_or_default());
    let times = event.count.filter(|count| *count > 1);
    let times = times.map(|count| format!(" ({count} times)")).unwrap_or_default();
    let text = format!("{}{times}", words.join(": ").replace('\n', " "));
    Line { at: at.unwrap_or_default(), who, text }
}
