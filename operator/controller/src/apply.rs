//! All writes of one reconcile: step by step, one match, stopped by an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ebbtide_api::{Cluster, names};
use ebbtide_authority::AuthorityError;
use ebbtide_plan::queue::Key;
use ebbtide_plan::{
    Change, ObjectRef, Op, SecretWanted, restore_service, says_policy, says_service,
};
use futures::{FutureExt as _, StreamExt as _, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api_call::{CallError, call};
use crate::known::key;
use crate::metrics::Kind;
use crate::observe;
use crate::reconcile::Context;

/// Why a change was not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("cannot mint credentials")]
    Mint(#[from] AuthorityError),
    #[error("{kind} {name} exists and is not this cluster's; remove or rename it")]
    Foreign { kind: &'static str, name: String },
    #[error(
        "{kind} {name} lacks the label {}: {}; give it back, or delete the {kind}",
        names::MANAGED_BY,
        names::MANAGER
    )]
    Unlabelled { kind: &'static str, name: String },
    #[error("somebody keeps changing {kind} {name}; it is set right again in a while")]
    Fought { kind: &'static str, name: String },
    #[error("{kind} {name} is of an earlier cluster of this name and is about to go")]
    Earlier { kind: &'static str, name: String },
    #[error(
        "the certificates cannot be renewed: {source}; when the Secret {name} is deleted, it comes back"
    )]
    Renewal { name: String, source: CallError },
}

/// What was done and what was not.
pub(crate) struct Applied {
    /// Whether every Secret that was to be renewed was.
    pub(crate) renewed: Result<(), ApplyError>,
    /// Whether everything else that was due was done.
    pub(crate) others: Result<(), ApplyError>,
}

/// Pods of one cluster that are created at once.
const PODS_AT_ONCE: usize = 8;

/// Applies changes. Renewals stand alone: what they cannot do keeps nothing else from being done, and what
/// else cannot be done does not make them due again.
pub(crate) async fn apply(context: &Context, cluster: &Cluster, changes: &[Change]) -> Applied {
    let is_renewal = |it: &&Change| matches!(it.op, Op::RenewSecret(_));
    let mut renewed = Ok(());
    for change in changes.iter().filter(is_renewal) {
        renewed = renewed.and(carry_out(context, cluster, change).await);
    }
    Applied { renewed, others: apply_others(context, cluster, changes).await }
}

/// In their order: what pods need at once, then everything else that is no pod, then the pods, several at a
/// time. After an error nothing more is begun, and the first one is told.
async fn apply_others(
    context: &Context,
    cluster: &Cluster,
    changes: &[Change],
) -> Result<(), ApplyError> {
    let step = |change: &Change| match change.op {
        Op::RenewSecret(_) => Step::Done,
        Op::CreateSecret(_)
        | Op::CreateNetworkPolicy(_)
        | Op::RestoreNetworkPolicy(_)
        | Op::CreateService(_)
        | Op::RestoreService(_) => Step::Needed,
        Op::CreatePod(_) => Step::Pods,
        Op::DeleteNetworkPolicy(_)
        | Op::DeletePod(_)
        | Op::Retire { .. }
        | Op::DeleteCluster { .. } => Step::Others,
    };
    let failed = AtomicBool::new(false);
    for (now, at_once) in
        [(Step::Needed, PODS_AT_ONCE), (Step::Others, 1), (Step::Pods, PODS_AT_ONCE)]
    {
        let mut due = Vec::new();
        for change in changes.iter().filter(|it| step(it) == now) {
            let failed = &failed;
            let carried_out = async move {
                // After an error nothing more is begun.
                if failed.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let done = carry_out(context, cluster, change).await;
                failed.fetch_or(done.is_err(), Ordering::Relaxed);
                done
            };
            due.push(carried_out.boxed());
        }
        let done: Vec<Result<(), ApplyError>> = stream::iter(due).buffered(at_once).collect().await;
        done.into_iter().collect::<Result<(), ApplyError>>()?;
    }
    Ok(())
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Step {
    Done,
    Needed,
    Others,
    Pods,
}

async fn carry_out(
    context: &Context,
    cluster: &Cluster,
    change: &Change,
) -> Result<(), ApplyError> {
    let uid = cluster.uid().unwrap_or_default();
    tracing::info!("{change}");
    let kind = match &change.op {
        Op::CreateSecret(wanted) => {
            write_secret(context, cluster, &mint(context, wanted)?, false).await?;
            "create secret"
        }
        Op::RenewSecret(wanted) => {
            let renewed = write_secret(context, cluster, &mint(context, wanted)?, true).await;
            let name = || wanted.name.clone();
            renewed.map_err(|source| ApplyError::Renewal { name: name(), source })?;
            "renew secret"
        }
        Op::CreateNetworkPolicy(policy) => {
            let made = create(context, cluster, "network policy", &**policy).await?;
            believe(context, cluster, &**policy, made.as_ref());
            "create network policy"
        }
        Op::RestoreNetworkPolicy(policy) => {
            let made = restore(context, cluster, "network policy", &**policy).await?;
            believe(context, cluster, &**policy, Some(&made));
            "restore network policy"
        }
        Op::DeleteNetworkPolicy(ObjectRef { name, uid }) => {
            let what = "delete a network policy";
            delete::<NetworkPolicy>(context, &key(cluster), what, (name, uid)).await?;
            context.beliefs.unlearn(cluster, &observe::network_policy(name));
            "delete network policy"
        }
        Op::CreateService(service) => {
            let made = create(context, cluster, "service", &**service).await?;
            believe(context, cluster, &**service, made.as_ref());
            "create service"
        }
        Op::RestoreService(service) => {
            let made = restore(context, cluster, "service", &**service).await?;
            believe(context, cluster, &**service, Some(&made));
            "restore service"
        }
        Op::CreatePod(pod) => {
            if let Some(made) = create_pod(context, cluster, pod).await? {
                context.beliefs.made(cluster, &made);
            }
            "create pod"
        }
        Op::DeletePod(pod) => {
            delete::<Pod>(context, &key(cluster), "delete a pod", (&pod.name, &pod.uid)).await?;
            "delete pod"
        }
        Op::Retire { workers, deadline_seconds } => {
            context.schedulers.retire(&uid, workers, *deadline_seconds);
            "retire"
        }
        Op::DeleteCluster { uid } => {
            let what = "delete the cluster";
            // Somebody may just have let it stay.
            let only = Preconditions {
                uid: Some(uid.clone()),
                resource_version: cluster.resource_version(),
            };
            delete_only::<Cluster>(context, &key(cluster), what, (&cluster.name_any(), only))
                .await?;
            "delete cluster"
        }
    };
    context.metrics.changes.get_or_create(&Kind { kind }).inc();
    Ok(())
}

/// What was made of something that was wanted is there, and says this.
fn believe<K: Restored>(context: &Context, cluster: &Cluster, wanted: &K, made: Option<&K>) {
    let what = K::known_as(&wanted.name_any());
    if let Some(made) = made {
        context.beliefs.says(cluster, &what, [made.says(), wanted.says()]);
    }
    context.beliefs.learn(cluster, what);
}

/// What can say something else than it should, and be set right where it is.
trait Restored: Child + Serialize {
    /// What it is believed in by.
    fn known_as(name: &str) -> String;
    fn says(&self) -> Option<String>;
    fn restore(&mut self, wanted: &Self);
}

impl Restored for NetworkPolicy {
    fn known_as(name: &str) -> String {
        observe::network_policy(name)
    }

    fn says(&self) -> Option<String> {
        self.spec.as_ref().map(says_policy)
    }

    fn restore(&mut self, wanted: &Self) {
        self.spec.clone_from(&wanted.spec);
    }
}

impl Restored for Service {
    fn known_as(name: &str) -> String {
        observe::service(name)
    }

    fn says(&self) -> Option<String> {
        self.spec.as_ref().map(says_service)
    }

    fn restore(&mut self, wanted: &Self) {
        if let Some(wanted) = &wanted.spec {
            restore_service(self.spec.get_or_insert_default(), wanted);
        }
    }
}

/// Has something of ours say again what it should, and watches show it.
async fn restore<K: Restored>(
    context: &Context,
    cluster: &Cluster,
    kind: &'static str,
    wanted: &K,
) -> Result<K, ApplyError> {
    let (name, namespace) = (wanted.name_any(), cluster.namespace().unwrap_or_default());
    if !context.beliefs.may_restore(cluster) {
        return Err(ApplyError::Fought { kind, name });
    }
    let api: Api<K> = Api::namespaced(context.client.clone(), &namespace);
    let mut there = call("read a child", api.get(&name)).await?;
    if !is_owned(there.meta(), cluster) {
        return Err(ApplyError::Foreign { kind, name });
    }
    there.restore(wanted);
    there.labels_mut().extend(wanted.labels().clone());
    let made = call("restore a child", api.replace(&name, &PostParams::default(), &there)).await?;
    if is_shown(made.meta()) { Ok(made) } else { Err(ApplyError::Unlabelled { kind, name }) }
}

/// Whether an object is a cluster's or a job's own.
pub(crate) fn is_owned(child: &ObjectMeta, owner: &impl Resource) -> bool {
    let uid = owner.meta().uid.clone();
    child.owner_references.iter().flatten().any(|it| uid.as_ref() == Some(&it.uid))
}

/// Whether watches show it.
fn is_shown(child: &ObjectMeta) -> bool {
    let manager = child.labels.as_ref().and_then(|it| it.get(names::MANAGED_BY));
    manager.is_some_and(|it| it == names::MANAGER)
}

/// What is made in a namespace and taken away.
pub(crate) trait Child:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + std::fmt::Debug
    + DeserializeOwned
{
}

impl<K> Child for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
{
}

/// Deletes this very object and nothing that has its name by now. That it is gone already is success.
pub(crate) async fn delete<K: Child>(
    context: &Context,
    key: &Key,
    what: &'static str,
    (name, uid): (&str, &str),
) -> Result<(), CallError> {
    let only = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    delete_only::<K>(context, key, what, (name, only)).await
}

async fn delete_only<K: Child>(
    context: &Context,
    key: &Key,
    what: &'static str,
    (name, only): (&str, Preconditions),
) -> Result<(), CallError> {
    let api: Api<K> = Api::namespaced(context.client.clone(), &key.namespace);
    let only = DeleteParams::background().preconditions(only);
    match call(what, api.delete(name, &only)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_gone() => {
            context.beliefs.missed(key);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// What came of a creation.
pub(crate) enum Made<K> {
    /// It is new.
    New(K),
    /// Something of its name is there already, and this is known of it.
    There(Box<ObjectMeta>),
}

/// Creates an object in its namespace.
pub(crate) async fn made<K: Child + Serialize>(
    context: &Context,
    what: &'static str,
    object: &K,
) -> Result<Made<K>, CallError> {
    let namespace = object.meta().namespace.as_deref().unwrap_or_default();
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    match call(what, api.create(&PostParams::default(), object)).await {
        Ok(made) => Ok(Made::New(made)),
        Err(error) if error.is_already_there() => {
            let there = call("read a child", api.get_metadata(&object.name_any())).await?;
            Ok(Made::There(Box::new(there.metadata)))
        }
        Err(error) => Err(error),
    }
}

/// Creates a child. That it is there already is success if it is ours, and gives what it was made if it had to be
/// set right.
async fn create<K: Restored>(
    context: &Context,
    cluster: &Cluster,
    kind: &'static str,
    child: &K,
) -> Result<Option<K>, ApplyError> {
    let there = match made(context, "create a child", child).await? {
        Made::New(made) => return Ok(Some(made)),
        Made::There(there) => there,
    };
    judge(&there, cluster, kind, child)?;
    if is_shown(&there) {
        return Ok(None);
    }
    restore(context, cluster, kind, child).await.map(Some)
}

/// The same of a pod, which may be at work: one that no watch shows is left alone.
async fn create_pod(
    context: &Context,
    cluster: &Cluster,
    pod: &Pod,
) -> Result<Option<Pod>, ApplyError> {
    let there = match made(context, "create a child", pod).await? {
        Made::New(made) => return Ok(Some(made)),
        Made::There(there) => there,
    };
    judge(&there, cluster, "pod", pod)?;
    let unlabelled = || ApplyError::Unlabelled { kind: "pod", name: pod.name_any() };
    is_shown(&there).then_some(None).ok_or_else(unlabelled)
}

/// Whether what has the name of a child is ours.
fn judge<K: Child>(
    there: &ObjectMeta,
    cluster: &Cluster,
    kind: &'static str,
    child: &K,
) -> Result<(), ApplyError> {
    let (ours, name) = (cluster.name_any(), child.name_any());
    let mut owners = there.owner_references.iter().flatten();
    if is_owned(there, cluster) {
        Ok(())
    } else if owners.any(|it| it.kind == Cluster::kind(&()) && it.name == ours) {
        // The garbage collector takes what has no owner any more.
        Err(ApplyError::Earlier { kind, name })
    } else {
        Err(ApplyError::Foreign { kind, name })
    }
}

/// Creates a Secret, or writes over the one that is there, whatever that is, without reading it. Its name is
/// this cluster's alone: that one to be created is there already is success.
async fn write_secret(
    context: &Context,
    cluster: &Cluster,
    minted: &Secret,
    is_renewal: bool,
) -> Result<(), CallError> {
    let (name, params) = (minted.name_any(), PostParams::default());
    let namespace = cluster.namespace().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    let mut is_renewed = false;
    if is_renewal {
        match call("renew a secret", secrets.replace(&name, &params, minted)).await {
            Err(error) if !error.is_gone() => return Err(error),
            replaced => is_renewed = replaced.is_ok(),
        }
    }
    if !is_renewed {
        match call("create a secret", secrets.create(&params, minted)).await {
            // One that came meanwhile is not the renewed one.
            Err(error) if is_renewal || !error.is_already_there() => return Err(error),
            _ => {}
        }
    }
    context.beliefs.learn(cluster, observe::secret(&name));
    Ok(())
}

fn mint(context: &Context, wanted: &SecretWanted) -> Result<Secret, ApplyError> {
    let now = (context.clock)();
    let authority = Arc::clone(&context.authority.borrow());
    let data = authority.credentials(&wanted.identity, wanted.has_token, now)?;
    Ok(Secret { metadata: wanted.metadata.clone(), string_data: Some(data), ..Secret::default() })
}
