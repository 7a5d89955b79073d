//! All writes of one reconcile: step by step, one match, stopped by an error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use ebbtide_api::{Cluster, names};
use ebbtide_authority::AuthorityError;
use ebbtide_plan::queue::Key;
use ebbtide_plan::{
    Change, ObjectRef, Op, SecretWanted, Stage, Unmade, is_going, restore_service, says_policy,
    says_service,
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
    #[error("the cluster is gone")]
    Gone,
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

impl ApplyError {
    /// Whether a person must change something.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Call(error) => error.is_lasting(),
            Self::Foreign { .. } | Self::Unlabelled { .. } => true,
            Self::Gone
            | Self::Mint(_)
            | Self::Fought { .. }
            | Self::Earlier { .. }
            | Self::Renewal { .. } => false,
        }
    }

    /// Whether somebody does not take what was to be made.
    fn is_refusal(&self) -> bool {
        self.is_lasting() || matches!(self, Self::Call(error) if error.is_of_quota())
    }
}

/// What was done and what was not.
pub(crate) struct Applied {
    /// Whether every Secret that was to be renewed was.
    pub(crate) renewed: Result<(), ApplyError>,
    /// What else was due and was not done.
    pub(crate) failed: Option<Failed>,
}

/// What was not done.
pub(crate) struct Failed {
    /// How far it came.
    pub(crate) at: Stage,
    /// What a person must see to, or what went wrong first.
    pub(crate) error: ApplyError,
    /// What became of the groups of which a pod could not be made.
    pub(crate) unmade: Vec<Unmade>,
}

/// What came of a change, if it was begun.
type Came<'a> = (&'a Change, Option<Result<(), ApplyError>>);

/// Pods of one cluster that are created at once.
const PODS_AT_ONCE: usize = 8;

/// Applies changes. Renewals stand alone: what they cannot do keeps nothing else from being done, and what
/// else cannot be done does not make them due again. Of a cluster that has no pod yet nothing is made when the
/// API server would not take its pods.
pub(crate) async fn apply(
    context: &Context,
    cluster: &Cluster,
    changes: &[Change],
    is_new: bool,
) -> Applied {
    let makes_pods = changes.iter().any(|it| matches!(it.op, Op::CreatePod(_)));
    let begins = context.beliefs.begins(cluster) && is_new;
    let is_renewal = |it: &&Change| matches!(it.op, Op::RenewSecret(_));
    let mut renewed = Ok(());
    for change in changes.iter().filter(is_renewal) {
        renewed = renewed.and(carry_out(context, cluster, change).await);
    }
    let step = |now, at_once| apply_step(context, cluster, changes, (now, at_once));
    let mut pods = step(Step::Trials, PODS_AT_ONCE).await;
    if is_new && has_failed(&pods) {
        return Applied { renewed, failed: failed(pods, Stage::Trials) };
    }
    // What pods need at once, then everything else that is no pod.
    let mut others = step(Step::Needed, PODS_AT_ONCE).await;
    if !has_failed(&others) {
        others.extend(step(Step::Others, 1).await);
    }
    if has_failed(&others) {
        return Applied { renewed, failed: failed(others, Stage::Others) };
    }
    if makes_pods
        && !begins
        && let Err(error) = still_there(context, cluster).await
    {
        let unmade = unmade(&pods);
        let tried = failed(pods, Stage::Pods).map(|it| it.error).filter(ApplyError::is_lasting);
        let error = if matches!(error, ApplyError::Gone) { error } else { tried.unwrap_or(error) };
        return Applied { renewed, failed: Some(Failed { at: Stage::Pods, error, unmade }) };
    }
    pods.extend(step(Step::Pods, PODS_AT_ONCE).await);
    Applied { renewed, failed: failed(pods, Stage::Pods) }
}

/// Looks whether a cluster is there and stays. Of one that is gone the watch of pods may tell first what the garbage
/// collector takes: nothing comes in its place.
async fn still_there(context: &Context, cluster: &Cluster) -> Result<(), ApplyError> {
    let namespace = cluster.namespace().unwrap_or_default();
    let api: Api<Cluster> = Api::namespaced(context.client.clone(), &namespace);
    let name = cluster.name_any();
    let there = call("look for the cluster", api.get_metadata_opt(&name)).await?;
    let is_same = there.is_some_and(|it| it.uid() == cluster.uid() && !is_going(&it));
    is_same.then_some(()).ok_or(ApplyError::Gone)
}

fn has_failed(came: &[Came<'_>]) -> bool {
    came.iter().any(|(_, done)| matches!(done, Some(Err(_))))
}

fn failed(came: Vec<Came<'_>>, at: Stage) -> Option<Failed> {
    let unmade = unmade(&came);
    let errors = came.into_iter().filter_map(|(_, done)| done?.err());
    let error = errors.min_by_key(|it| !it.is_lasting())?;
    Some(Failed { at, error, unmade })
}

/// Each group that had a pod fail, with the first refusal, or what went wrong first.
fn unmade(came: &[Came<'_>]) -> Vec<Unmade> {
    let mut errors = BTreeMap::<&str, &ApplyError>::new();
    for (change, done) in came {
        let (Some(group), Some(Err(error))) = (group(change), done) else { continue };
        let known = errors.entry(group).or_insert(error);
        if error.is_refusal() && !known.is_refusal() {
            *known = error;
        }
    }
    let of_group = |(of, error): (&str, &ApplyError)| {
        let is_made = |(change, done): &&Came<'_>| {
            let is_pod = matches!(change.op, Op::CreatePod(_)) && group(change) == Some(of);
            is_pod && matches!(done, Some(Ok(())))
        };
        Unmade {
            group: of.to_owned(),
            made: came.iter().filter(is_made).count(),
            words: error.to_string(),
            is_lasting: error.is_lasting(),
        }
    };
    errors.into_iter().map(of_group).collect()
}

/// In their order, several at a time. After an error nothing more is begun, but pods of other groups.
async fn apply_step<'a>(
    context: &Context,
    cluster: &Cluster,
    changes: &'a [Change],
    (now, at_once): (Step, usize),
) -> Vec<Came<'a>> {
    let step = |change: &Change| match change.op {
        Op::RenewSecret(_) => Step::Done,
        Op::TryPod(_) => Step::Trials,
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
    let failed: Mutex<BTreeSet<Option<&str>>> = Mutex::default();
    let mut due = Vec::new();
    for change in changes.iter().filter(|it| step(it) == now) {
        let failed = &failed;
        let carried_out = async move {
            let group = group(change);
            let is_in_vain =
                |failed: &BTreeSet<_>| failed.contains(&group) || failed.contains(&None);
            let failed = || failed.lock().unwrap_or_else(PoisonError::into_inner);
            if is_in_vain(&failed()) {
                return (change, None);
            }
            let done = carry_out(context, cluster, change).await;
            if done.is_err() {
                failed().insert(group);
            }
            (change, Some(done))
        };
        due.push(carried_out.boxed());
    }
    stream::iter(due).buffered(at_once).collect().await
}

/// The worker group that a change makes a pod of.
fn group(change: &Change) -> Option<&str> {
    let (Op::CreatePod(pod) | Op::TryPod(pod)) = &change.op else { return None };
    pod.labels().get(names::WORKER_GROUP).map(String::as_str)
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Step {
    Done,
    Trials,
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
        Op::TryPod(pod) => try_child(context, cluster, pod).await.map(|()| "try pod")?,
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
    let there = match made(context, "make a pod", pod).await? {
        Made::New(made) => return Ok(Some(made)),
        Made::There(there) => there,
    };
    judge(&there, cluster, "pod", pod)?;
    let unlabelled = || ApplyError::Unlabelled { kind: "pod", name: pod.name_any() };
    is_shown(&there).then_some(None).ok_or_else(unlabelled)
}

async fn try_child(context: &Context, cluster: &Cluster, pod: &Pod) -> Result<(), ApplyError> {
    let there = try_pod(context, pod).await?;
    there.map_or(Ok(()), |it| judge(&it, cluster, "pod", pod))
}

/// Asks whether the API server would take a pod. That there is no room for it now is no refusal. Gives what is known
/// of the one that has its name.
pub(crate) async fn try_pod(
    context: &Context,
    pod: &Pod,
) -> Result<Option<Box<ObjectMeta>>, CallError> {
    let namespace = pod.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let only_tried = PostParams { dry_run: true, ..PostParams::default() };
    match call("make a pod", pods.create(&only_tried, pod)).await {
        Err(error) if error.is_already_there() => {
            let there = call("read a child", pods.get_metadata(&pod.name_any())).await?;
            Ok(Some(Box::new(there.metadata)))
        }
        Err(error) if !error.is_of_quota() => Err(error),
        _ => Ok(None),
    }
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
