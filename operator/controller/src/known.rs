//! What watches have shown, by the cluster whose it is.
//!
//! A list is compared with what was known: whatever came, went or changed while nobody watched
//! makes its own cluster come up in the queue, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use ebbtide_api::job::SCRIPT_MAX;
use ebbtide_api::{Cluster, ClusterJob, Guarded, SPEC_MAX, Unread, names};
use ebbtide_plan::queue::{Key, Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde_json::json;

use crate::slim::{SlimPod, SlimPolicy, SlimService, client_of};

/// The longest wish for new credentials that is kept as it was written, in bytes.
const WISH_MAX: usize = 64;

/// The longest spec of a job that is kept, in bytes of JSON: that of its cluster, and a program with what is written
/// otherwise in JSON.
const JOB_MAX: usize = CLUSTER_MAX + 2 * SCRIPT_MAX;

/// The longest spec of a cluster that is kept: one that is a little too long is told to be, and ends when it is idle.
const CLUSTER_MAX: usize = 2 * SPEC_MAX;

/// What one watch is about: a namespace, or all of them.
pub(crate) type Scope = Option<String>;

/// A cluster or a job and its uid, or what else is looked up by.
type Whose = (Key, String);

/// An object that is watched.
pub(crate) trait Watched: Resource<DynamicType = ()> + Send + Sync {
    /// The clusters and jobs whose it is.
    fn whose(&self) -> Vec<Whose>;

    /// Whether they are to be looked at when this becomes that.
    fn matters(&self, next: &Self) -> bool {
        self.meta().resource_version != next.meta().resource_version
    }
}

impl Watched for Guarded<Cluster> {
    fn whose(&self) -> Vec<Whose> {
        vec![(key(self), self.uid().unwrap_or_default())]
    }

    /// A written status is no reason to look again, whoever wrote it, unless it is one that can be read at last.
    fn matters(&self, next: &Self) -> bool {
        let decided = |it: &Self| {
            let wish = it.annotations().get(names::RENEW).cloned();
            (it.0.is_ok(), it.meta().uid.clone(), it.meta().generation, wish)
        };
        decided(self) != decided(next)
    }
}

impl Watched for Guarded<ClusterJob> {
    /// Its own, its owner's when it is the run of a schedule, and found by the cluster that it is on.
    fn whose(&self) -> Vec<Whose> {
        let own = (key(self), self.uid().unwrap_or_default());
        let cluster = self.0.as_ref().ok().and_then(|job| Some((key(self), on(job)?)));
        std::iter::once(own).chain(owners(self)).chain(cluster).collect()
    }

    fn matters(&self, next: &Self) -> bool {
        let decided = |it: &Self| {
            let status = it.0.as_ref().ok().and_then(|job| job.status.as_ref());
            let far = status.map(|it| (it.phase, it.failures.total));
            (it.meta().uid.clone(), it.meta().generation, far)
        };
        decided(self) != decided(next)
    }
}

/// Leaves out of metadata what nobody here asks for: whoever may write there may write much.
pub(crate) fn slim_metadata(meta: &mut ObjectMeta) {
    (meta.managed_fields, meta.annotations, meta.labels) = (None, None, None);
    shrink(&mut meta.owner_references);
}

/// Gives back the room that a list has for more.
pub(crate) fn shrink<T>(list: &mut Option<Vec<T>>) {
    if let Some(list) = list {
        list.shrink_to_fit();
    }
}

/// What is kept of an object whose spec would take others' room: it counts as one that cannot be read.
fn without_bulk<S: Serialize>(
    metadata: &ObjectMeta,
    spec: &impl Serialize,
    status: Option<&S>,
    most: usize,
) -> Option<Unread> {
    let bytes = size(spec);
    (bytes > most).then(|| Unread {
        metadata: metadata.clone(),
        error: format!(
            "spec: it is {bytes} bytes long, expected at most {most}: put long values into a ConfigMap"
        ),
        status: json!(status),
    })
}

/// How long it is as JSON, in bytes.
fn size(object: &impl Serialize) -> usize {
    struct Length(usize);
    impl io::Write for Length {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut length = Length(0);
    // What came as JSON can be written so.
    serde_json::to_writer(&mut length, object).map_or(usize::MAX, |()| length.0)
}

/// The same of a cluster, whose wish for new credentials stays.
pub(crate) fn slim_cluster(cluster: &mut Guarded<Cluster>) {
    let meta = cluster.meta_mut();
    let wish = meta.annotations.as_mut().and_then(|it| it.remove(names::RENEW));
    slim_metadata(meta);
    let short = wish.map(|it| if it.len() > WISH_MAX { names::fingerprint(&it) } else { it });
    meta.annotations = short.map(|it| BTreeMap::from([(names::RENEW.to_owned(), it)]));
    if let Ok(Cluster { metadata, spec, status }) = &cluster.0
        && let Some(unread) = without_bulk(metadata, spec, status.as_ref(), CLUSTER_MAX)
    {
        cluster.0 = Err(unread);
    }
}

/// Leaves out of a job what nobody here asks for: of one that has ended not even its program.
pub(crate) fn slim_job(job: &mut Guarded<ClusterJob>) {
    slim_metadata(job.meta_mut());
    if let Ok(job) = &mut job.0
        && job.status.as_ref().is_some_and(|it| it.phase.is_over())
    {
        job.spec.script = None;
        (job.spec.command, job.spec.args) = (Vec::new(), Vec::new());
    }
    if let Ok(ClusterJob { metadata, spec, status }) = &job.0
        && let Some(unread) = without_bulk(metadata, spec, status.as_ref(), JOB_MAX)
    {
        job.0 = Err(unread);
    }
}

fn on(job: &ClusterJob) -> Option<String> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    job.cluster_name().map(|name| by_cluster(namespace, name))
}

/// What jobs on a cluster are looked up by; no uid is like this.
pub(crate) fn by_cluster(namespace: &str, name: &str) -> String {
    format!("cluster {namespace}/{name}")
}

/// What the pods of programs that use a cluster are looked up by; no uid is like this.
pub(crate) fn clients_of(uid: &str) -> String {
    format!("clients of {uid}")
}

impl Watched for SlimPod {
    /// Its owner's, and found by the cluster that its program uses, if it is a job's.
    fn whose(&self) -> Vec<Whose> {
        let mut owners = owners(self);
        let client = client_of(self).zip(owners.first());
        let client = client.map(|(uid, (key, _))| (key.clone(), clients_of(uid)));
        owners.extend(client);
        owners
    }
}

impl Watched for SlimService {
    fn whose(&self) -> Vec<Whose> {
        owners(self)
    }
}

impl Watched for SlimPolicy {
    fn whose(&self) -> Vec<Whose> {
        owners(self)
    }
}

/// Name and namespace of a cluster or a job.
pub(crate) fn key<K: Resource<DynamicType = ()>>(object: &K) -> Key {
    let meta = object.meta();
    let text = |it: &Option<String>| it.clone().unwrap_or_default();
    let kind = kind(&K::kind(&())).unwrap_or(Kind::Cluster);
    Key { namespace: text(&meta.namespace), kind, name: text(&meta.name) }
}

/// The kind that has this name in the API.
fn kind(name: &str) -> Option<Kind> {
    [(Cluster::kind(&()), Kind::Cluster), (ClusterJob::kind(&()), Kind::ClusterJob)]
        .into_iter()
        .find_map(|(it, kind)| (it == name).then_some(kind))
}

fn owners(object: &impl Resource<DynamicType = ()>) -> Vec<Whose> {
    let namespace = object.meta().namespace.clone().unwrap_or_default();
    let is_ours = |it: &&OwnerReference| {
        it.api_version.split_once('/').is_some_and(|(group, _)| group == Cluster::group(&()))
    };
    let owners = object.meta().owner_references.iter().flatten().filter(is_ours);
    owners
        .filter_map(|it| {
            let (namespace, name) = (namespace.clone(), it.name.clone());
            Some((Key { namespace, kind: kind(&it.kind)?, name }, it.uid.clone()))
        })
        .collect()
}

/// Objects of a kind.
#[derive(Debug)]
pub(crate) struct Known<K>(RwLock<Index<K>>);

#[derive(Debug)]
struct Index<K> {
    /// By namespace and name.
    objects: BTreeMap<(String, String), Arc<K>>,
    /// Where a cluster's objects are, by its uid.
    of: BTreeMap<String, BTreeSet<(String, String)>>,
    /// Lists that are under way.
    coming: BTreeMap<Scope, Vec<K>>,
    /// What was listed at least once.
    listed: BTreeSet<Scope>,
}

impl<K> Default for Known<K> {
    fn default() -> Self {
        Self(RwLock::new(Index {
            objects: BTreeMap::new(),
            of: BTreeMap::new(),
            coming: BTreeMap::new(),
            listed: BTreeSet::new(),
        }))
    }
}

impl<K: Watched> Known<K> {
    /// The object of a name.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        let place = (key.namespace.clone(), key.name.clone());
        self.read().objects.get(&place).map(Arc::clone)
    }

    /// The objects of the cluster or job with this uid. What names it as its owner from another namespace is
    /// somebody's trick.
    pub(crate) fn of(&self, namespace: &str, uid: &str) -> Vec<Arc<K>> {
        let index = self.read();
        let places = index.of.get(uid).into_iter().flatten();
        let places = places.filter(|it| it.0 == namespace);
        places.filter_map(|place| index.objects.get(place).map(Arc::clone)).collect()
    }

    /// The names of what has this uid or is looked up by this, wherever.
    pub(crate) fn named(&self, uid: &str) -> Vec<Key> {
        let places = self.read().of.get(uid).cloned().unwrap_or_default();
        let kind = kind(&K::kind(&())).unwrap_or(Kind::Cluster);
        places.into_iter().map(|(namespace, name)| Key { namespace, kind, name }).collect()
    }

    /// Everything that is known in a scope.
    pub(crate) fn all(&self, scope: &Scope) -> Vec<Arc<K>> {
        let index = self.read();
        index.within(scope).filter_map(|it| index.objects.get(it).map(Arc::clone)).collect()
    }

    /// Whether what is in a namespace is known.
    pub(crate) fn has_listed(&self, namespace: &str) -> bool {
        [None, Some(namespace.to_owned())].iter().any(|it| self.has_listed_scope(it))
    }

    /// Whether a watch has shown everything once.
    pub(crate) fn has_listed_scope(&self, scope: &Scope) -> bool {
        self.read().listed.contains(scope)
    }

    /// Takes in what a watch shows. Gives the clusters to look at.
    pub(crate) fn take(&self, scope: &Scope, event: Event<K>) -> BTreeSet<Key> {
        let mut index = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut touched = BTreeSet::new();
        match event {
            Event::Apply(object) => index.put(object, &mut touched),
            Event::Delete(object) => index.remove(&place(&object), &mut touched),
            Event::Init => drop(index.coming.insert(scope.clone(), Vec::new())),
            Event::InitApply(object) => {
                index.coming.entry(scope.clone()).or_default().push(object);
            }
            Event::InitDone => {
                let list = index.coming.remove(scope).unwrap_or_default();
                let there: BTreeSet<(String, String)> = list.iter().map(place).collect();
                let gone: Vec<(String, String)> =
                    index.within(scope).filter(|it| !there.contains(*it)).cloned().collect();
                for place in &gone {
                    index.remove(place, &mut touched);
                }
                for object in list {
                    index.put(object, &mut touched);
                }
                index.listed.insert(scope.clone());
            }
        }
        touched
    }

    fn read(&self) -> RwLockReadGuard<'_, Index<K>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Watched> Index<K> {
    fn within<'a>(&'a self, scope: &'a Scope) -> impl Iterator<Item = &'a (String, String)> {
        let is_within =
            move |it: &&(String, String)| scope.as_ref().is_none_or(|namespace| it.0 == *namespace);
        self.objects.keys().filter(is_within)
    }

    fn put(&mut self, object: K, touched: &mut BTreeSet<Key>) {
        let (place, object) = (place(&object), Arc::new(object));
        let before = self.objects.insert(place.clone(), Arc::clone(&object));
        let matters = before.as_ref().is_none_or(|before| before.matters(&object));
        for (key, uid) in before.iter().flat_map(|it| it.whose()) {
            self.leave(&uid, &place);
            if matters {
                touched.insert(key);
            }
        }
        for (key, uid) in object.whose() {
            self.of.entry(uid).or_default().insert(place.clone());
            if matters {
                touched.insert(key);
            }
        }
    }

    fn remove(&mut self, place: &(String, String), touched: &mut BTreeSet<Key>) {
        let before = self.objects.remove(place);
        for (key, uid) in before.iter().flat_map(|it| it.whose()) {
            self.leave(&uid, place);
            touched.insert(key);
        }
    }

    fn leave(&mut self, uid: &str, place: &(String, String)) {
        if let Some(places) = self.of.get_mut(uid) {
            places.remove(place);
            if places.is_empty() {
                self.of.remove(uid);
            }
        }
    }
}

fn place(object: &impl Resource<DynamicType = ()>) -> (String, String) {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use ebbtide_api::{Cluster, Guarded, names};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
    use kube::runtime::watcher::Event;
    use kube::{Resource as _, ResourceExt as _};
    use serde_json::json;

    use super::{Key, Known, SlimPod, SlimService, clients_of, slim_cluster};

    type Child = SlimService;

    fn child(namespace: &str, name: &str, owner: &str, version: u32) -> Child {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            resource_version: Some(version.to_string()),
            owner_references: Some(vec![OwnerReference {
                api_version: Cluster::api_version(&()).into_owned(),
                kind: Cluster::kind(&()).into_owned(),
                name: owner.to_owned(),
                uid: format!("uid-{namespace}-{owner}"),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        };
        Child { metadata, says: None }
    }

    fn list(known: &Known<Child>, scope: Option<&str>, objects: &[Child]) -> BTreeSet<String> {
        let scope = scope.map(str::to_owned);
        known.take(&scope, Event::Init);
        for object in objects {
            let touched = known.take(&scope, Event::InitApply(object.clone()));
            assert_eq!(touched, BTreeSet::new(), "a list counts when it is whole");
        }
        names(&known.take(&scope, Event::InitDone))
    }

    fn names(keys: &BTreeSet<Key>) -> BTreeSet<String> {
        keys.iter().map(Key::to_string).collect()
    }

    fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn of_a_cluster_s_annotations_nothing_is_kept_but_the_wish_for_new_credentials_and_that_short()
    {
        let slimmed = |wish: &str| {
            let metadata = json!({
                "name": "risk",
                "annotations": { names::RENEW: wish, "much": "much".repeat(50_000) },
                "labels": { "much": "more" },
                "managedFields": [{ "manager": "kubectl" }],
            });
            let mut cluster: Guarded<Cluster> =
                serde_json::from_value(json!({ "metadata": metadata, "spec": {} })).unwrap();
            slim_cluster(&mut cluster);
            assert_eq!((&cluster.meta().managed_fields, &cluster.meta().labels), (&None, &None));
            cluster.annotations().clone()
        };
        assert_eq!(
            slimmed("today"),
            BTreeMap::from([(names::RENEW.to_owned(), "today".to_owned())])
        );
        let [one, other] = ["a", "b"].map(|end| slimmed(&format!("{}{end}", "long".repeat(99))));
        assert!(one.len() == 1 && one[names::RENEW].len() <= 64);
        assert_ne!(one, other);
    }

    #[test]
    fn a_list_brings_up_the_clusters_of_what_came_went_or_changed_and_no_other() {
        let known = Known::default();
        let [a, b, c] = ["a", "b", "c"].map(|it| child("n", &format!("of-{it}"), it, 1));
        assert!(!known.has_listed("n"));
        assert_eq!(list(&known, None, &[a.clone(), b, c]), set(["n/a", "n/b", "n/c"]));
        assert!(known.has_listed("n"));
        let (changed, new) = (child("n", "of-c", "c", 2), child("n", "of-d", "d", 3));
        assert_eq!(list(&known, None, &[a, changed, new]), set(["n/b", "n/c", "n/d"]));
        assert_eq!((known.of("n", "uid-n-b").len(), known.of("n", "uid-n-d").len()), (0, 1));
    }

    #[test]
    fn a_list_of_one_namespace_says_nothing_of_another() {
        let known = Known::default();
        let (here, there) = (child("here", "of-a", "a", 1), child("there", "of-a", "a", 1));
        assert_eq!(list(&known, Some("here"), &[here]), set(["here/a"]));
        assert_eq!(list(&known, Some("there"), &[there]), set(["there/a"]));
        assert_eq!(list(&known, Some("here"), &[]), set(["here/a"]));
        assert_eq!(
            (known.of("here", "uid-here-a").len(), known.of("there", "uid-there-a").len()),
            (0, 1)
        );
        assert!(known.has_listed("there") && !known.has_listed("elsewhere"));
    }

    #[test]
    fn what_names_a_cluster_of_another_namespace_as_its_owner_is_not_its_own() {
        let known = Known::default();
        let mut trick = child("theirs", "of-a", "a", 1);
        trick.metadata.owner_references.as_mut().unwrap()[0].uid = "uid-n-a".to_owned();
        list(&known, None, &[child("n", "of-a", "a", 1), trick]);
        let own = known.of("n", "uid-n-a");
        assert_eq!(own.len(), 1);
        assert_eq!(own[0].metadata.namespace.as_deref(), Some("n"));
    }

    #[test]
    fn what_changes_hands_is_news_for_both_and_what_comes_again_for_nobody() {
        let (known, scope) = (Known::default(), None);
        let take = |event| names(&known.take(&scope, event));
        assert_eq!(take(Event::Apply(child("n", "it", "a", 1))), set(["n/a"]));
        assert_eq!(take(Event::Apply(child("n", "it", "a", 1))), set([]));
        assert_eq!(take(Event::Apply(child("n", "it", "b", 2))), set(["n/a", "n/b"]));
        assert_eq!(known.of("n", "uid-n-a").len(), 0);
        assert_eq!(take(Event::Delete(child("n", "it", "b", 3))), set(["n/b"]));
        assert_eq!(take(Event::Delete(child("n", "it", "b", 3))), set([]));
    }

    #[test]
    fn what_is_so_long_that_others_would_have_no_room_is_not_kept() {
        let cluster = |bytes: usize| {
            let variable = json!({ "name": "A", "value": "x".repeat(bytes) });
            let worker = json!({
                "name": "w", "max": 1, "resources": { "cpu": "1", "memory": "1Gi" },
                "pod": { "env": [variable] },
            });
            let spec = json!({ "image": "i", "workers": [worker] });
            let metadata = json!({ "name": "a", "namespace": "b" });
            let status = json!({ "phase": "Ready" });
            let raw = json!({ "metadata": metadata, "spec": spec, "status": status });
            let mut cluster: Guarded<Cluster> = serde_json::from_value(raw).unwrap();
            slim_cluster(&mut cluster);
            cluster
        };
        assert!(cluster(200_000).0.is_ok());
        let unread = cluster(300_000).0.unwrap_err();
        assert!(unread.error.starts_with("spec: it is 300"), "{unread}");
        assert_eq!(unread.status["phase"], "Ready");
        assert_eq!(unread.metadata.name.as_deref(), Some("a"));
    }

    #[test]
    fn the_pod_of_a_program_is_found_by_the_cluster_that_it_uses() {
        let owner = json!({
            "apiVersion": "ebbtide.dev/v1alpha1", "kind": "ClusterJob", "name": "j", "uid": "j-1",
        });
        let labels = json!({ names::ROLE: "job", names::CLUSTER_UID: "c-1" });
        let metadata = json!({
            "name": "p", "namespace": "n", "labels": labels, "ownerReferences": [owner],
        });
        let pod: SlimPod = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
        let known = Known::default();
        known.take(&None, Event::Apply(pod));
        for (whose, count) in [("j-1".to_owned(), 1), (clients_of("c-1"), 1), ("c-1".to_owned(), 0)]
        {
            assert_eq!(known.of("n", &whose).len(), count, "{whose}");
        }
    }
}
