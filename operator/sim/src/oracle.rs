//! What must hold at every write of an operator, whatever went wrong before.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ebbtide_api::names;
use ebbtide_contract::demand::Outcome;
use ebbtide_contract::view::Demand;
use ebbtide_listener::Schedulers;
use serde_json::Value;
use tokio::time::Instant;

use crate::kinds::{self, Kind};
use crate::nodes::is_over;
use crate::request::Verb;
use crate::server::Asked;
use crate::store::Store;

/// How long a write may take that was on its way.
const MOMENT: Duration = Duration::from_millis(100);

/// What each operator hears of schedulers, by its number.
pub type Heard = Arc<Mutex<Vec<Schedulers>>>;

/// Judges a write by what there is before it.
///
/// `is_whole`: nobody but the operators makes or takes away children.
pub fn judge(
    store: &Store,
    asked: &Asked<'_>,
    heard: &Heard,
    is_whole: bool,
) -> Result<(), String> {
    match (asked.verb, asked.kind) {
        (_, kinds::EVENT | kinds::LEASE)
        | (Verb::Get | Verb::Try, _)
        | (Verb::Create, kinds::SECRET | kinds::SERVICE | kinds::NETWORK_POLICY) => Ok(()),
        (Verb::Create, kinds::CLUSTER | kinds::CLUSTER_JOB) => for_a_job(asked.body),
        (Verb::Replace, kinds::SECRET | kinds::SERVICE | kinds::NETWORK_POLICY) => {
            of_the_same_owner(store, asked)
        }
        (Verb::Merge, kinds::CLUSTER | kinds::CLUSTER_JOB) => of_a_version(asked),
        (Verb::Replace, kinds::CLUSTER | kinds::CLUSTER_JOB) => {
            of_a_version(asked)?;
            if is_whole && asked.kind == kinds::CLUSTER {
                told_truly(store, asked)?;
            }
            Ok(())
        }
        (Verb::Create, kinds::POD) if label(asked.body, names::ROLE) == Some("job") => {
            only_one_attempt(store, asked.body)?;
            if is_whole { after_what_it_uses(store, asked.body) } else { Ok(()) }
        }
        (Verb::Create, kinds::POD) => {
            only_one_of_an_index(store, asked.body)?;
            of_one_that_is_there(asked)?;
            if is_whole { after_what_it_needs(store, asked.body) } else { Ok(()) }
        }
        (
            Verb::Delete,
            kinds::POD | kinds::NETWORK_POLICY | kinds::CLUSTER | kinds::CLUSTER_JOB,
        ) => {
            let uid = asked.body["preconditions"]["uid"].as_str();
            let uid = uid.ok_or_else(|| format!("{} is deleted by name alone", asked.name))?;
            let there = store.get(asked.kind, asked.name).ok();
            let meant = there.filter(|it| it["metadata"]["uid"] == uid);
            let Some(meant) = meant else { return Ok(()) };
            if matches!(asked.kind, kinds::CLUSTER | kinds::CLUSTER_JOB) {
                return after_its_job(store, meant);
            }
            ours(meant)?;
            if asked.kind == kinds::NETWORK_POLICY {
                return Ok(());
            }
            let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            not_at_work(store, meant, heard.get(asked.who))
        }
        (verb, kind) => Err(format!("{verb:?} of {} {}", kind.plural, asked.name)),
    }
}

/// Whether a cluster or a run is made for a job.
fn for_a_job(object: &Value) -> Result<(), String> {
    match object["metadata"]["ownerReferences"][0]["kind"].as_str() {
        Some("ClusterJob") => Ok(()),
        _ => Err(format!("{} is made for nobody", object["metadata"]["name"])),
    }
}

/// Whether no other attempt of a job is there that has not ended, and whether it is to have one.
fn only_one_attempt(store: &Store, pod: &Value) -> Result<(), String> {
    let name = &pod["metadata"]["name"];
    let of_job = |it: &&Arc<Value>| label(it, names::JOB_UID) == label(pod, names::JOB_UID);
    let twin = store.list(kinds::POD).filter(of_job).find(|it| !is_over(it));
    if let Some(twin) = twin.filter(|it| it["metadata"]["name"] != *name) {
        return Err(format!("{name} comes beside {}", twin["metadata"]["name"]));
    }
    let owner = &pod["metadata"]["ownerReferences"][0]["uid"];
    let job = store.list(kinds::CLUSTER_JOB).find(|it| it["metadata"]["uid"] == *owner);
    match job.and_then(|it| it["status"]["phase"].as_str()) {
        Some(phase @ ("Succeeded" | "Failed")) => {
            Err(format!("{name} comes, and the job has {phase}"))
        }
        _ => Ok(()),
    }
}

/// Whether what an attempt uses is there: its cluster, unless that goes, and the client's credentials.
fn after_what_it_uses(store: &Store, pod: &Value) -> Result<(), String> {
    let name = &pod["metadata"]["name"];
    let uid = label(pod, names::CLUSTER_UID).unwrap_or_default();
    let cluster = store.list(kinds::CLUSTER).find(|it| it["metadata"]["uid"] == uid);
    if cluster.is_none_or(|it| it["metadata"]["deletionTimestamp"].is_string()) {
        return Ok(());
    }
    has_secrets(store, pod, name)
}

/// Whether a cluster or a job is deleted whose job has ended, is to have nothing, or has a pod that is not taken.
fn after_its_job(store: &Store, object: &Value) -> Result<(), String> {
    let job_of =
        |uid: &Value| store.list(kinds::CLUSTER_JOB).find(|it| it["metadata"]["uid"] == *uid);
    let owner = || job_of(&object["metadata"]["ownerReferences"][0]["uid"]);
    let Some(job) = job_of(&object["metadata"]["uid"]).or_else(owner) else { return Ok(()) };
    let is_rejected = job["status"]["conditions"][0]["reason"] == "Rejected";
    if is_over(job) || is_rejected || job["spec"]["suspend"] == true {
        return Ok(());
    }
    Err(format!("{} is deleted, and its job goes on", object["metadata"]["name"]))
}

fn label<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object["metadata"]["labels"][name].as_str()
}

/// Whether a cluster that says of a child that it is another's is right.
fn told_truly(store: &Store, asked: &Asked<'_>) -> Result<(), String> {
    let message = asked.body["status"]["message"].as_str().unwrap_or_default();
    if message.contains("is not this cluster's") {
        return Err(format!("nobody else is here, and yet it says: {message}"));
    }
    let Some((child, _)) = message.split_once(" is of an earlier cluster") else { return Ok(()) };
    let (kind, name) = child.rsplit_once(' ').unwrap_or_default();
    let kind = match kind {
        "pod" => kinds::POD,
        "service" => kinds::SERVICE,
        _ => kinds::NETWORK_POLICY,
    };
    let uid = &asked.body["metadata"]["uid"];
    let there = store.get(kind, name).ok();
    match there.filter(|it| it["metadata"]["ownerReferences"][0]["uid"] == *uid) {
        Some(_) => Err(format!("{name} is this cluster's, and yet it says: {message}")),
        None => Ok(()),
    }
}

/// Whether a pod is made for a cluster that is there and stays, or did a moment ago: no write is quicker than what others do.
fn of_one_that_is_there(asked: &Asked<'_>) -> Result<(), String> {
    let owner = asked.body["metadata"]["ownerReferences"][0]["uid"].as_str().unwrap_or_default();
    match asked.gone.get(owner).map(Instant::elapsed).filter(|it| *it > MOMENT) {
        Some(ago) => Err(format!(
            "{} comes, and its cluster goes or is gone for {ago:?}",
            asked.body["metadata"]["name"]
        )),
        None => Ok(()),
    }
}

fn only_one_of_an_index(store: &Store, pod: &Value) -> Result<(), String> {
    let place = |pod: &Value| {
        [names::CLUSTER_UID, names::ROLE, names::WORKER_GROUP, names::INDEX]
            .map(|name| label(pod, name).map(str::to_owned))
    };
    let name = &pod["metadata"]["name"];
    let twin = store.list(kinds::POD).find(|it| place(it) == place(pod));
    match twin {
        // The server refuses another pod of one name.
        Some(twin) if twin["metadata"]["name"] != *name => {
            Err(format!("{name} has the index of {}", twin["metadata"]["name"]))
        }
        _ => Ok(()),
    }
}

fn after_what_it_needs(store: &Store, pod: &Value) -> Result<(), String> {
    let owner = &pod["metadata"]["ownerReferences"][0]["uid"];
    // The cluster may be gone by now, with all that it had.
    let is_there = |it: &&Arc<Value>| it["metadata"]["uid"] == *owner;
    let cluster = store.list(kinds::CLUSTER).find(is_there);
    if cluster.is_none_or(|it| it["metadata"]["deletionTimestamp"].is_string()) {
        return Ok(());
    }
    let has = |kind: Kind| {
        store.list(kind).any(|it| it["metadata"]["ownerReferences"][0]["uid"] == *owner)
    };
    let name = &pod["metadata"]["name"];
    if !has(kinds::NETWORK_POLICY) {
        return Err(format!("{name} comes before its network policy"));
    }
    if !has(kinds::SERVICE) {
        return Err(format!("{name} comes before its service"));
    }
    has_secrets(store, pod, name)
}

/// Whether a status is written over the one that was read.
fn of_a_version(asked: &Asked<'_>) -> Result<(), String> {
    let is_of_a_version = asked.body["metadata"]["resourceVersion"].is_string();
    let wrong = || format!("the status of {} is written over any other", asked.name);
    is_of_a_version.then_some(()).ok_or_else(wrong)
}

/// Whether what is written over was made for the same cluster.
fn of_the_same_owner(store: &Store, asked: &Asked<'_>) -> Result<(), String> {
    let Ok(there) = store.get(asked.kind, asked.name) else { return Ok(()) };
    let [before, after] = [&**there, asked.body].map(|it| &it["metadata"]["ownerReferences"]);
    let is_same = before.is_array() && before == after;
    is_same.then_some(()).ok_or_else(|| format!("{} is another's, and written over", asked.name))
}

fn has_secrets(store: &Store, pod: &Value, name: &Value) -> Result<(), String> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let sources = volumes.filter_map(|it| it["projected"]["sources"].as_array()).flatten();
    let mut secrets = sources.filter_map(|it| it["secret"]["name"].as_str());
    match secrets.find(|secret| store.get(kinds::SECRET, secret).is_err()) {
        Some(missing) => Err(format!("{name} comes before its secret {missing}")),
        None => Ok(()),
    }
}

/// Whether an object belongs to a cluster or job: one that has gone would have taken it along.
fn ours(object: &Value) -> Result<(), String> {
    let owner = object["metadata"]["ownerReferences"][0]["uid"].as_str().unwrap_or_default();
    let is_of_job = label(object, names::ROLE) == Some("job");
    let whose = if is_of_job { names::JOB_UID } else { names::CLUSTER_UID };
    if label(object, whose) == Some(owner) && !owner.is_empty() {
        return Ok(());
    }
    Err(format!("{} is deleted and is nobody's", object["metadata"]["name"]))
}

/// Whether a worker that works, as the operator was told, is not deleted before it was let go.
fn not_at_work(store: &Store, pod: &Value, schedulers: Option<&Schedulers>) -> Result<(), String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let uid = label(pod, names::CLUSTER_UID).unwrap_or_default();
    let is_going = pod["metadata"]["deletionTimestamp"].is_string();
    let Some(demand) = schedulers.and_then(|it| it.demand(uid)) else { return Ok(()) };
    let is_released = demand.retired.get(name) == Some(&Outcome::Released);
    let is_wrong = is_of_a_corrected_image(store, pod, uid, &demand);
    if demand.workers.contains_key(name) && !(is_released || is_going || is_wrong || is_over(pod)) {
        return Err(format!("{name} is deleted at work"));
    }
    Ok(())
}

/// Whether a pod is of an image that was corrected before its cluster began.
fn is_of_a_corrected_image(store: &Store, pod: &Value, uid: &str, demand: &Demand) -> bool {
    if demand.jobs > 0 || demand.clients > 0 {
        return false;
    }
    let cluster = store.list(kinds::CLUSTER).find(|it| it["metadata"]["uid"] == uid);
    cluster.is_some_and(|it| {
        let made_with = &pod["metadata"]["annotations"][names::IMAGE];
        it["status"]["startedAt"].is_null() && it["spec"]["image"] != *made_with
    })
}
