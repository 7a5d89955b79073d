//! Clusters as objects of a Kubernetes API server.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use ebbtide_api::{Cluster, GROUP, Guarded, Unread, names};
use ebbtide_plan::is_going;
use futures::TryStreamExt as _;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod, Secret};
use kube::api::{
    DeleteParams, ListParams, LogParams, Patch, PatchParams, Preconditions, WatchEvent, WatchParams,
};
use kube::config::Kubeconfig;
use kube::core::{NamespaceResourceScope, ObjectMeta};
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::time::{Instant, sleep, timeout};

use crate::backend::{Kind, Listed, Scope};
use crate::output;
use crate::story::Line;

/// Longest time for one request.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// How long a deletion may take.
pub(super) const DOWN_MAX: Duration = Duration::from_mins(2);

/// How long an operator may take to write certificates, and how often it is looked whether it has.
const RENEWAL_MAX: Duration = Duration::from_secs(20);
const RENEWAL_INTERVAL: Duration = Duration::from_millis(200);

/// How long an API server is left alone that has too much to do for a watch.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

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
    // What cannot be read is told of by whoever needs it.
    let has_context = match Kubeconfig::read() {
        Ok(read) => read.current_context.is_some_and(|it| !it.is_empty()),
        Err(_) => set || in_home,
    };
    if has_context || inside { Kind::Kubernetes } else { Kind::Local }
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
        Ok(Err(kube::Error::Api(status))) if what == "apply" && status.code == 409 => bail!(
            "{what}: {}\nwhoever is named has set it since; take it over with `kubectl apply --server-side \
             --field-manager={FIELD_MANAGER} --force-conflicts -f FILE`, or leave it out of the manifest",
            status.message
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
    let watch = async {
        match api.watch(&params, version).await {
            Err(kube::Error::Api(busy)) if [429, 503].contains(&busy.code) => Ok(None),
            events => events.map(Some),
        }
    };
    let Some(events) = in_time("watch", watch).await? else {
        sleep(BUSY_PAUSE).await;
        return Ok(());
    };
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.try_next().await.context("watch")? {
        if !matches!(event, WatchEvent::Bookmark(_)) {
            return Ok(());
        }
    }
    Ok(())
}

/// How an object is deleted: in the foreground, so that it is gone when everything that it owned is. Of one that cannot
/// be read nobody may take away the finalizer that this needs.
pub(super) fn way(is_readable: bool) -> DeleteParams {
    if is_readable { DeleteParams::foreground() } else { DeleteParams::background() }
}

/// Deletes this very object, and waits until it is gone.
pub(super) async fn delete<K>(
    api: &Api<K>,
    (name, uid): (&str, Option<String>),
    way: DeleteParams,
) -> anyhow::Result<()>
where
    K: Clone + Debug + DeserializeOwned + Resource,
{
    let params = way.preconditions(Preconditions { uid: uid.clone(), resource_version: None });
    in_time("delete", api.delete(name, &params)).await?;
    let gone = async {
        loop {
            match in_time("get", api.get_opt(name)).await? {
                Some(now) if now.uid() == uid => {
                    let version = now.resource_version().unwrap_or_default();
                    changed(api, name, &version).await?;
                }
                _ => return anyhow::Ok(()),
            }
        }
    };
    timeout(DOWN_MAX, gone)
        .await
        .with_context(|| format!("{name} is not gone after {DOWN_MAX:?}"))?
}

pub(crate) fn no_cluster(namespace: &str, name: &str) -> String {
    format!("there is no cluster {name} in namespace {namespace}")
}

/// What is said of an object that cannot be read.
fn unreadable<K: Resource<DynamicType = ()>>(unread: &Unread) -> String {
    let kind = K::kind(&()).to_lowercase();
    let name = unread.metadata.name.as_deref().unwrap_or_default();
    format!("{kind} {name} cannot be read: {unread}; correct it with `kubectl edit {kind} {name}`")
}

pub(super) fn readable<K: Resource<DynamicType = ()>>(
    Guarded(read): Guarded<K>,
) -> anyhow::Result<K> {
    read.map_err(|unread| anyhow!(unreadable::<K>(&unread)))
}

/// What a person wrote of a cluster: what a server adds is its own, and of another day.
fn as_written(cluster: &Cluster) -> serde_json::Result<Value> {
    // What a controller made is its own, under its own name alone.
    let mut owners = cluster.metadata.owner_references.clone().unwrap_or_default();
    owners.retain(|it| it.controller != Some(true));
    let metadata = ObjectMeta {
        owner_references: Some(owners).filter(|it| !it.is_empty()),
        uid: None,
        generation: None,
        resource_version: None,
        creation_timestamp: None,
        managed_fields: None,
        ..cluster.metadata.clone()
    };
    let spec = cluster.spec.clone();
    let mut wanted = serde_json::to_value(Cluster { metadata, spec, status: None })?;
    if cluster.spec.min_workers == 0
        && let Some(spec) = wanted["spec"].as_object_mut()
    {
        // It is `kubectl scale`'s, where the manifest asks for none.
        spec.remove("minWorkers");
    }
    Ok(wanted)
}

impl Kubernetes {
    pub(super) async fn connect(namespace: Option<String>) -> anyhow::Result<Self> {
        let config = Config::infer().await.context("no way to a Kubernetes API server")?;
        let client = Client::try_from(config).context("cannot use the kubectl context")?;
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        Ok(Self { client, namespace })
    }

    fn clusters(&self, namespace: &str) -> Api<Guarded<Cluster>> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(super) async fn apply(&self, cluster: &Cluster) -> anyhow::Result<bool> {
        let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
        let before = in_time("get", self.clusters(&namespace).get_opt(&name)).await?;
        let after = self.applied(cluster, &PatchParams::apply(FIELD_MANAGER)).await?;
        Ok(before.is_none_or(|it| it.uid() != after.uid()))
    }

    /// The cluster as it would be after [`Self::apply`].
    ///
    /// # Errors
    ///
    /// The API server would not take it.
    pub(super) async fn rehearse(&self, cluster: &Cluster) -> anyhow::Result<Cluster> {
        readable(self.applied(cluster, &PatchParams::apply(FIELD_MANAGER).dry_run()).await?)
    }

    async fn applied(
        &self,
        cluster: &Cluster,
        params: &PatchParams,
    ) -> anyhow::Result<Guarded<Cluster>> {
        let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
        let wanted = as_written(cluster)?;
        let clusters = self.clusters(&namespace);
        in_time("apply", clusters.patch(&name, params, &Patch::Apply(&wanted))).await
    }

    pub(super) async fn is_for(
        &self,
        namespace: &str,
        name: &str,
        run: &str,
    ) -> anyhow::Result<bool> {
        let there = in_time("get", self.clusters(namespace).get_opt(name)).await?;
        Ok(there.is_some_and(|it| it.annotations().get(names::RUN).is_some_and(|it| it == run)))
    }

    pub(crate) async fn get(&self, namespace: &str, name: &str) -> anyhow::Result<Cluster> {
        let there = in_time("get", self.clusters(namespace).get_opt(name)).await?;
        readable(there.with_context(|| no_cluster(namespace, name))?)
    }

    pub(crate) async fn list<K>(&self, scope: Scope) -> anyhow::Result<Listed<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + DeserializeOwned,
    {
        let client = self.client.clone();
        let all: Api<Guarded<K>> = if scope.all_namespaces {
            Api::all(client)
        } else {
            Api::namespaced(client, &self.namespace)
        };
        let found = in_time("list", all.list(&ListParams::default())).await?.items;
        let mut listed = Listed { objects: Vec::new(), unreadable: Vec::new() };
        for Guarded(read) in found {
            match read {
                Ok(object) => listed.objects.push(object),
                Err(unread) => listed.unreadable.push(unreadable::<K>(&unread)),
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
            let now = in_time("get", clusters.get_opt(name)).await?;
            let now = readable(now.with_context(|| no_cluster(namespace, name))?)?;
            let is_news = seen.is_none_or(|seen| seen.status != now.status);
            if is_news && now.status.is_some() {
                return Ok(now);
            }
            let version = now.resource_version().unwrap_or_default();
            changed(&clusters, name, &version).await?;
        }
    }

    pub(super) async fn down(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        // One that cannot be read goes like any other.
        let clusters = self.clusters(namespace);
        let cluster = in_time("get", clusters.get_opt(name)).await?;
        let cluster = cluster.with_context(|| no_cluster(namespace, name))?;
        delete(&clusters, (name, cluster.uid()), way(cluster.0.is_ok())).await
    }

    /// A cluster, and what a client of it proves itself with.
    pub(crate) async fn credentials(
        &self,
        (namespace, name): (&str, &str),
    ) -> anyhow::Result<(Cluster, BTreeMap<String, ByteString>)> {
        let cluster = self.get(namespace, name).await?;
        if is_going(&cluster) {
            bail!("cluster {name} is being deleted");
        }
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
        let name = cluster.name_any();
        let uid = cluster.uid();
        let mut lines = Vec::new();
        for event in in_time("list events", events.list(&ListParams::default())).await?.items {
            let about = &event.involved_object;
            let who = about.name.clone().unwrap_or_default();
            let is_pods = about.kind.as_deref() == Some("Pod") && names::is_child(&name, &who);
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
        let mut logs = Vec::new();
        for pod in &found.items {
            for Spoke { container, is_own, previous } in spoke(pod) {
                let (name, timestamps) = (pod.name_any(), true);
                let who = if is_own { name.clone() } else { format!("{name}/{container}") };
                let container = Some(container);
                let params = LogParams { container, previous, timestamps, ..LogParams::default() };
                match in_time("read its log", pods.logs(&name, &params)).await {
                    Ok(log) => logs.push((who, log)),
                    // What has not started has said nothing.
                    Err(error) => output::tell(&format!("{who}: {error:#}")),
                }
            }
        }
        Ok(logs)
    }

    pub(super) async fn is_there(&self, namespace: &str, name: &str) -> anyhow::Result<bool> {
        Ok(in_time("get", self.clusters(namespace).get_opt(name)).await?.is_some())
    }

    pub(super) async fn has(&self, namespace: &str, name: &str) -> anyhow::Result<bool> {
        let there = in_time("get", self.clusters(namespace).get_opt(name)).await?;
        Ok(there.map(readable).transpose()?.is_some_and(|it| !is_going(&it)))
    }

    /// Whether it is certain that the cluster with this uid is gone, or goes.
    pub(crate) async fn is_gone(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let there = in_time("get", self.clusters(namespace).get_opt(name)).await;
        let is_over = |it: Guarded<Cluster>| is_going(&it) || it.uid().as_deref() != Some(uid);
        there.is_ok_and(|there| there.is_none_or(is_over))
    }
}

/// A container of which there is a log.
struct Spoke {
    container: String,
    is_own: bool,
    /// Of the process before the present one.
    previous: bool,
}

/// What of a pod may have said something: init containers that have begun, and its own container, twice where
/// that was started again. What others put beside them is theirs.
fn spoke(pod: &Pod) -> Vec<Spoke> {
    let status = pod.status.as_ref();
    let begun = |it: &ContainerStatus| {
        let state = it.state.as_ref();
        state.is_some_and(|it| it.running.is_some() || it.terminated.is_some())
    };
    let inits = status.and_then(|it| it.init_container_statuses.as_ref()).into_iter().flatten();
    let inits = inits.filter(|it| begun(it) || it.restart_count > 0);
    let of_init = |it: &ContainerStatus| Spoke {
        container: it.name.clone(),
        is_own: false,
        previous: !begun(it),
    };
    let own = pod.labels().get(names::ROLE).cloned().unwrap_or_default();
    let mut known = status.and_then(|it| it.container_statuses.as_ref()).into_iter().flatten();
    let is_again = known.find(|it| it.name == own && it.restart_count > 0);
    let of_own = |previous| Spoke { container: own.clone(), is_own: true, previous };
    // Of one that is about to be started again, the present log is the one before.
    let is_there = is_again.is_none_or(begun);
    let own = is_again.map(|_| of_own(true)).into_iter().chain(is_there.then(|| of_own(false)));
    inits.map(of_init).chain(own).collect()
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{as_written, spoke};

    fn container(name: &str, state: &str, restarts: u32) -> Value {
        json!({
            "name": name, "image": "i", "imageID": "i", "ready": false,
            "state": { state: {} }, "restartCount": restarts,
        })
    }

    /// Containers of a pod with a log, and whether it is the one of the process before.
    fn logs(inits: &[Value], own: &[Value]) -> Vec<(String, bool)> {
        let pod = json!({
            "metadata": { "name": "p", "labels": { "ebbtide.dev/role": "worker" } },
            "status": { "initContainerStatuses": inits, "containerStatuses": own },
        });
        let pod = serde_json::from_value(pod).unwrap();
        spoke(&pod).into_iter().map(|it| (it.container, it.previous)).collect()
    }

    #[test]
    fn every_process_is_heard_that_said_something_and_none_of_others_containers() {
        let fetch = |state, restarts| container("fetch", state, restarts);
        let worker = |state, restarts| container("worker", state, restarts);
        let heard = |of: &[(&str, bool)]| -> Vec<(String, bool)> {
            of.iter().map(|(name, previous)| ((*name).to_owned(), *previous)).collect()
        };
        for (inits, own, expected) in [
            (vec![], vec![worker("running", 0)], heard(&[("worker", false)])),
            (
                vec![fetch("terminated", 0)],
                vec![container("mesh", "running", 3), worker("running", 1)],
                heard(&[("fetch", false), ("worker", true), ("worker", false)]),
            ),
            // Whose next try waits.
            (vec![], vec![worker("waiting", 2)], heard(&[("worker", true)])),
            (
                vec![fetch("waiting", 2), container("next", "waiting", 0)],
                vec![worker("waiting", 0)],
                heard(&[("fetch", true), ("worker", false)]),
            ),
        ] {
            assert_eq!(logs(&inits, &own), expected);
        }
    }

    #[test]
    fn of_a_manifest_everything_is_applied_that_a_person_may_write() {
        let group = json!({ "name": "w", "resources": { "cpu": "1", "memory": "1Gi" }, "max": 2 });
        let owner = json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "u" });
        let written = json!({
            "name": "risk", "namespace": "rates", "labels": { "a": "b" }, "annotations": { "c": "d" },
            "finalizers": ["team.example/audit"], "ownerReferences": [owner],
        });
        let mut printed = written.clone();
        let mut controller = printed["ownerReferences"][0].clone();
        controller["controller"] = json!(true);
        printed["ownerReferences"].as_array_mut().unwrap().push(controller);
        let added = json!({
            "uid": "1", "generation": 3, "resourceVersion": "7", "managedFields": [],
            "creationTimestamp": "2026-01-01T00:00:00Z",
        });
        printed.as_object_mut().unwrap().extend(added.as_object().unwrap().clone());
        let cluster = json!({
            "apiVersion": "ebbtide.dev/v1alpha1", "kind": "Cluster", "metadata": printed,
            "spec": { "image": "i", "workers": [group] }, "status": { "phase": "Ready" },
        });
        let wanted = as_written(&serde_json::from_value(cluster).unwrap()).unwrap();
        assert_eq!(wanted["metadata"], written);
        assert_eq!(
            (&wanted["status"], &wanted["spec"]["minWorkers"]),
            (&json!(null), &json!(null))
        );
    }
}
