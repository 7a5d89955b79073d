//! What an API server keeps: objects with versions, and everything that ever happened to them.
//!
//! Pure: time and uids come from counters and arguments. One namespace stands for all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kinds::{self, Kind};

/// Longest note of an event, in bytes.
const NOTE_MAX: usize = 1024;

/// Tells an object.
pub type Key = (Kind, String);

/// Something that happened to an object.
#[derive(Clone, Debug)]
pub struct Happened {
    /// The version of everything after it.
    pub version: u64,
    /// Which object.
    pub key: Key,
    /// As it was before, if it was there.
    pub before: Option<Arc<Value>>,
    /// As it is then, if it still is. A last version of it has `before`.
    pub after: Option<Arc<Value>>,
}

/// Why a request is refused, as the API server says it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// In a word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What a deletion asks for.
#[derive(Clone, Debug, Default)]
pub struct Deletion {
    /// The uid that the object must have.
    pub uid: Option<String>,
    /// The version that the object must have.
    pub resource_version: Option<String>,
    /// Whether what it owns goes first.
    pub is_foreground: bool,
    /// Seconds that a pod has to end.
    pub grace_seconds: Option<i64>,
}

/// All objects of a namespace, and their history.
#[derive(Debug, Default)]
pub struct Store {
    objects: BTreeMap<Key, Arc<Value>>,
    history: Vec<Happened>,
    version: u64,
    uids: u64,
    /// The first version from which a watch may begin.
    compacted: u64,
    /// Fields of a cluster's status, and causes, that its definition does not have.
    undefined: BTreeSet<String>,
}

/// Of metadata what nobody else writes.
const SERVERS_OWN: [&str; 6] = [
    "name",
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

const FOREGROUND: &str = "foregroundDeletion";

/// Seconds that a pod has to end, unless somebody says otherwise.
const GRACE_SECONDS: i64 = 30;

impl Store {
    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The first version from which a watch may begin.
    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Takes a field of a cluster's status, or a cause that it may tell, out of the definition.
    pub fn undefine(&mut self, word: &str) {
        self.undefined.insert(word.to_owned());
    }

    /// Forgets how things became what they are.
    pub fn compact(&mut self) {
        self.compacted = self.version;
        self.history.clear();
    }

    /// One object.
    pub fn get(&self, kind: Kind, name: &str) -> Result<&Arc<Value>, Refusal> {
        self.objects.get(&(kind, name.to_owned())).ok_or_else(|| not_found(kind, name))
    }

    /// All objects of a kind, by name.
    pub fn list(&self, kind: Kind) -> impl Iterator<Item = &Arc<Value>> {
        let of_kind = self.objects.range((kind, String::new())..);
        of_kind.take_while(move |((it, _), _)| *it == kind).map(|(_, object)| object)
    }

    /// What happened after a version.
    pub fn since(&self, version: u64) -> &[Happened] {
        let from = self.history.partition_point(|it| it.version <= version);
        &self.history[from..]
    }

    /// The objects of a kind as they were so many of its changes ago, and the version of that time.
    pub fn list_of_old(&self, kind: Kind, changes_ago: usize) -> (Vec<Arc<Value>>, u64) {
        let mut objects = self.objects.clone();
        let undone = self.history.iter().rev().filter(|it| it.key.0 == kind).take(changes_ago);
        let mut version = self.version;
        for happened in undone {
            version = happened.version - 1;
            match &happened.before {
                Some(before) => objects.insert(happened.key.clone(), Arc::clone(before)),
                None => objects.remove(&happened.key),
            };
        }
        let of_kind = objects.into_iter().filter(|((it, _), _)| *it == kind);
        (of_kind.map(|(_, object)| object).collect(), version)
    }

    /// Creates an object.
    pub fn create(
        &mut self,
        kind: Kind,
        mut object: Value,
        now: Timestamp,
    ) -> Result<Arc<Value>, Refusal> {
        let name = self.new_name(kind, &object)?;
        self.uids += 1;
        let metadata = metadata_mut(&mut object);
        metadata.insert("name".to_owned(), json!(name));
        metadata.insert("uid".to_owned(), json!(format!("uid-{:08}", self.uids)));
        metadata.insert("creationTimestamp".to_owned(), json!(whole(now)));
        for given in ["deletionTimestamp", "deletionGracePeriodSeconds", "managedFields"] {
            metadata.remove(given);
        }
        if kind.has_generation {
            metadata.insert("generation".to_owned(), json!(1));
        }
        object["apiVersion"] = json!(kind.api_version());
        object["kind"] = json!(kind.name);
        match kind {
            kinds::SECRET => take_string_data(&mut object),
            kinds::POD => object["status"] = json!({ "phase": "Pending" }),
            kinds::CLUSTER | kinds::CLUSTER_JOB => {
                drop(object.as_object_mut().map(|it| it.remove("status")));
            }
            _ => {}
        }
        Ok(self.put((kind, name), object))
    }

    /// Replaces an object, or its status alone.
    pub fn replace(
        &mut self,
        kind: Kind,
        name: &str,
        object: &Value,
        is_status: bool,
    ) -> Result<Arc<Value>, Refusal> {
        let there = Arc::clone(self.get(kind, name)?);
        let is_blind = object["metadata"]["resourceVersion"].is_null();
        if is_blind && matches!(kind, kinds::CLUSTER | kinds::CLUSTER_JOB | kinds::LEASE) {
            let why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
            return Err(invalid(kind, name, why));
        }
        check_same(kind, name, &there, object)?;
        let mut next = if is_status { Value::clone(&there) } else { object.clone() };
        if is_status {
            next["status"] = object["status"].clone();
            if kind == kinds::CLUSTER
                && let Some(status) = next["status"].as_object_mut()
            {
                status.retain(|field, _| !self.undefined.contains(field));
                let groups = status.get("groups").and_then(Value::as_array).into_iter().flatten();
                let causes = groups.filter_map(|it| it["causes"].as_array()).flatten();
                let mut causes = causes.filter_map(|it| it["cause"].as_str());
                if let Some(cause) = causes.find(|it| self.undefined.contains(*it)) {
                    let why = format!("status.groups.causes.cause: Unsupported value: {cause:?}");
                    return Err(invalid(kind, name, &why));
                }
            }
        } else {
            for kept in SERVERS_OWN {
                next["metadata"][kept] = there["metadata"][kept].clone();
            }
            next["status"] = there["status"].clone();
        }
        if kind == kinds::SECRET {
            take_string_data(&mut next);
        }
        check_finalizers(kind, name, &there, &next)?;
        Ok(self.update((kind, name.to_owned()), &there, next))
    }

    /// What [`Self::create`] would be asked for, if there is none of its name.
    pub fn try_create(&mut self, kind: Kind, object: &Value) -> Result<Arc<Value>, Refusal> {
        self.new_name(kind, object).map(|_| Arc::new(object.clone()))
    }

    fn new_name(&mut self, kind: Kind, object: &Value) -> Result<String, Refusal> {
        let name = self.name(object).ok_or_else(|| {
            invalid(kind, "", "metadata.name: Required value: name or generateName")
        })?;
        if kind == kinds::EVENT && object["note"].as_str().is_some_and(|it| it.len() > NOTE_MAX) {
            let why = format!("note: Invalid value: can have at most {NOTE_MAX} bytes");
            return Err(invalid(kind, &name, &why));
        }
        if !self.objects.contains_key(&(kind, name.clone())) {
            return Ok(name);
        }
        Err(Refusal {
            code: 409,
            reason: "AlreadyExists",
            message: format!("{} \"{name}\" already exists", kind.resource()),
        })
    }

    /// Merges a document into an object, as RFC 7396 has it.
    pub fn merge(&mut self, kind: Kind, name: &str, patch: &Value) -> Result<Arc<Value>, Refusal> {
        let there = Arc::clone(self.get(kind, name)?);
        check_same(kind, name, &there, patch)?;
        let mut next = Value::clone(&there);
        merge(&mut next, patch);
        for kept in SERVERS_OWN {
            next["metadata"][kept] = there["metadata"][kept].clone();
        }
        check_finalizers(kind, name, &there, &next)?;
        Ok(self.update((kind, name.to_owned()), &there, next))
    }

    /// Deletes an object, or marks it when something has to come first. Gives what is left of it.
    pub fn delete(
        &mut self,
        kind: Kind,
        name: &str,
        deletion: &Deletion,
        now: Timestamp,
    ) -> Result<Arc<Value>, Refusal> {
        let there = Arc::clone(self.get(kind, name)?);
        let differs = |wanted: &Option<String>, field: &str| {
            wanted.as_ref().is_some_and(|it| there["metadata"][field].as_str() != Some(it))
        };
        if differs(&deletion.uid, "uid") || differs(&deletion.resource_version, "resourceVersion") {
            return Err(conflict(kind, name, "the precondition does not hold"));
        }
        let mut next = Value::clone(&there);
        let is_placed = there["spec"]["nodeName"].is_string();
        let is_over = ["Succeeded", "Failed"].iter().any(|it| there["status"]["phase"] == *it);
        let grace = match kind {
            kinds::POD if is_placed && !is_over => {
                let own = there["spec"]["terminationGracePeriodSeconds"].as_i64();
                deletion.grace_seconds.or(own).unwrap_or(GRACE_SECONDS)
            }
            _ => 0,
        };
        if deletion.is_foreground {
            add_finalizer(&mut next);
        }
        let waits = grace > 0 || !finalizers(&next).is_empty();
        if !waits && kind != kinds::POD {
            return Ok(self.remove((kind, name.to_owned())));
        }
        if next["metadata"]["deletionTimestamp"].is_null() {
            let metadata = metadata_mut(&mut next);
            metadata.insert("deletionTimestamp".to_owned(), json!(whole(now)));
            metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
            if let Some(generation) = next["metadata"]["generation"].as_i64() {
                next["metadata"]["generation"] = json!(generation + 1);
            }
        } else if next["metadata"]["deletionGracePeriodSeconds"].as_i64() > Some(grace) {
            next["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        }
        if !waits {
            // A pod is marked before it goes, even when it goes at once.
            self.put((kind, name.to_owned()), next);
            return Ok(self.remove((kind, name.to_owned())));
        }
        Ok(self.update((kind, name.to_owned()), &there, next))
    }

    /// Deletes everything of a kind that is meant, as somebody may.
    pub fn delete_all(&mut self, kind: Kind, is_meant: impl Fn(&Value) -> bool, now: Timestamp) {
        let name = |it: &Arc<Value>| it["metadata"]["name"].as_str().map(str::to_owned);
        let meant = self.list(kind).filter(|it| is_meant(it));
        let names: Vec<String> = meant.filter_map(name).collect();
        for name in names {
            drop(self.delete(kind, &name, &Deletion::default(), now));
        }
    }

    /// Takes an object away, whatever it waits for: a kubelet that has ended a pod.
    pub fn remove(&mut self, key: Key) -> Arc<Value> {
        let before = self.objects.remove(&key).unwrap_or_default();
        self.version += 1;
        let mut last = Value::clone(&before);
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let last = Arc::new(last);
        let happened =
            Happened { version: self.version, key, before: Some(Arc::clone(&last)), after: None };
        self.history.push(happened);
        last
    }

    /// One round of the garbage collector: deletes what belongs to nobody any more, and ends
    /// foreground deletions of which nothing is left. False when there was nothing to do.
    pub fn collect_garbage(&mut self, now: Timestamp) -> bool {
        let owners = |object: &Value| -> Vec<String> {
            let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
            owners.filter_map(|it| it["uid"].as_str().map(str::to_owned)).collect()
        };
        let uid =
            |object: &Value| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let alive: BTreeMap<String, bool> = self
            .objects
            .values()
            .map(|it| (uid(it), finalizers(it).iter().any(|it| it == FOREGROUND)))
            .collect();
        let is_due = |object: &Value| {
            let owners = owners(object);
            let is_going = object["metadata"]["deletionTimestamp"].is_string();
            !owners.is_empty()
                && !is_going
                && owners.iter().all(|it| alive.get(it).is_none_or(|is_foreground| *is_foreground))
        };
        let is_owner = |object: &Value| {
            let uid = uid(object);
            self.objects.values().any(|it| owners(it).contains(&uid))
        };
        let due = self.objects.iter().find(|(_, object)| is_due(object)).map(|(key, object)| {
            // Whose owner waits goes like that owner.
            let waits = owners(object).iter().any(|it| alive.contains_key(it));
            (
                key.clone(),
                Deletion { is_foreground: waits && is_owner(object), ..Deletion::default() },
            )
        });
        if let Some(((kind, name), deletion)) = due {
            return self.delete(kind, &name, &deletion, now).is_ok();
        }
        let is_free = |object: &Value| alive[&uid(object)] && !is_owner(object);
        let free = self.objects.iter().find(|(_, object)| is_free(object));
        let Some((key, there)) = free.map(|(key, it)| (key.clone(), Arc::clone(it))) else {
            return false;
        };
        let mut next = Value::clone(&there);
        let mut others = finalizers(&next);
        others.retain(|it| it != FOREGROUND);
        next["metadata"]["finalizers"] = json!(others);
        self.update(key, &there, next);
        true
    }

    fn name(&mut self, object: &Value) -> Option<String> {
        let metadata = &object["metadata"];
        if let Some(name) = metadata["name"].as_str() {
            return Some(name.to_owned());
        }
        let prefix = metadata["generateName"].as_str()?;
        Some(format!("{prefix}{:05}", self.uids))
    }

    /// Writes a next version, unless nothing differs. What is going goes when nothing holds it.
    fn update(&mut self, key: Key, there: &Arc<Value>, mut next: Value) -> Arc<Value> {
        prune(&mut next);
        if next == **there {
            return Arc::clone(there);
        }
        let generation = there["metadata"]["generation"].as_i64();
        if let Some(generation) = generation.filter(|_| next["spec"] != there["spec"]) {
            next["metadata"]["generation"] = json!(generation + 1);
        }
        // Of a pod that has time left its kubelet says when it is gone.
        if next["metadata"]["deletionGracePeriodSeconds"] == 0 && finalizers(&next).is_empty() {
            return self.remove(key);
        }
        self.put(key, next)
    }

    fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        self.version += 1;
        prune(&mut object);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        let before = self.objects.insert(key.clone(), Arc::clone(&object));
        let after = Some(Arc::clone(&object));
        let happened = Happened { version: self.version, key, before, after };
        self.history.push(happened);
        object
    }
}

/// A time as objects have it.
pub fn whole(at: Timestamp) -> String {
    let seconds = Timestamp::from_second(at.as_second()).unwrap_or(at);
    seconds.to_string()
}

/// The names of whoever must agree before an object goes.
pub fn finalizers(object: &Value) -> Vec<String> {
    let finalizers = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    finalizers.filter_map(|it| it.as_str().map(str::to_owned)).collect()
}

fn add_finalizer(object: &mut Value) {
    let mut all = finalizers(object);
    if !all.iter().any(|it| it == FOREGROUND) {
        all.push(FOREGROUND.to_owned());
    }
    object["metadata"]["finalizers"] = json!(all);
}

fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"].as_object_mut().expect("it is an object since a line ago")
}

/// Leaves out what says nothing.
fn prune(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(some) => some.is_empty(),
        Value::Object(some) => some.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    metadata_mut(object).retain(|_, value| !is_empty(value));
}

fn take_string_data(object: &mut Value) {
    let Some(text) = object.as_object_mut().and_then(|it| it.remove("stringData")) else { return };
    let text = text.as_object().into_iter().flatten();
    let encode =
        |it: &Value| k8s_openapi::ByteString(it.as_str().unwrap_or_default().as_bytes().to_vec());
    for (key, value) in text {
        object["data"][key] = serde_json::to_value(encode(value)).unwrap_or_default();
    }
}

fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        into.clone_from(patch);
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            drop(into.as_object_mut().map(|it| it.remove(key)));
        } else {
            merge(&mut into[key], value);
        }
    }
}

fn check_same(kind: Kind, name: &str, there: &Value, given: &Value) -> Result<(), Refusal> {
    for field in ["uid", "resourceVersion"] {
        let given = &given["metadata"][field];
        if !given.is_null() && *given != there["metadata"][field] {
            return Err(conflict(kind, name, "the object has been modified"));
        }
    }
    Ok(())
}

/// Whether nobody wants to hold what is going already.
fn check_finalizers(kind: Kind, name: &str, there: &Value, next: &Value) -> Result<(), Refusal> {
    let held = finalizers(there);
    let is_going = there["metadata"]["deletionTimestamp"].is_string();
    if is_going && finalizers(next).iter().any(|it| !held.contains(it)) {
        let why = "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted";
        return Err(invalid(kind, name, why));
    }
    Ok(())
}

fn not_found(kind: Kind, name: &str) -> Refusal {
    let message = format!("{} \"{name}\" not found", kind.resource());
    Refusal { code: 404, reason: "NotFound", message }
}

fn conflict(kind: Kind, name: &str, why: &str) -> Refusal {
    let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.resource());
    Refusal { code: 409, reason: "Conflict", message }
}

fn invalid(kind: Kind, name: &str, why: &str) -> Refusal {
    let message = format!("{} \"{name}\" is invalid: {why}", kind.name);
    Refusal { code: 422, reason: "Invalid", message }
}
