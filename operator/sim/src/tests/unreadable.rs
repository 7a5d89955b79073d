//! Objects that were stored under another definition.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::step;
use crate::faults::{Fault, WRITE_FAULTS, WriteFault};
use crate::kinds;
use crate::lives::{cluster, is_ready, within};
use crate::store::Store;
use crate::world::{Conditions, World};

/// Writes until both are told of and the readable one is ready, and some.
const WRITES: usize = 16;

fn odd() -> Value {
    let mut odd = cluster("1Gi");
    odd["metadata"]["name"] = json!("odd");
    odd["spec"]["workers"][0]["max"] = json!("three");
    odd
}

fn odd_job() -> Value {
    let metadata = json!({ "name": "odd-job", "namespace": "default" });
    json!({ "metadata": metadata, "spec": { "retries": "many" } })
}

/// What the status of an object says is wrong.
fn told(store: &Store, kind: kinds::Kind, name: &str) -> Option<String> {
    let object = store.get(kind, name).ok()?;
    let conditions = object["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|it| it["reason"] == "Unreadable")?;
    condition["message"].as_str().map(str::to_owned)
}

fn are_told(store: &Store) -> bool {
    let is_told = |kind, name, field: &str| {
        told(store, kind, name).is_some_and(|it| it.contains(&format!("{field}: invalid type")))
    };
    is_told(kinds::CLUSTER, "odd", "spec.workers[0].max")
        && is_told(kinds::CLUSTER_JOB, "odd-job", "spec.retries")
}

async fn both_beside_one_that_is_well(conditions: &Conditions) -> World {
    let world = World::new(conditions);
    world.apply(&odd());
    world.apply_a(kinds::CLUSTER_JOB, &odd_job());
    world.apply(&cluster("1Gi"));
    world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
    world.until("the others tell why", are_told).await.unwrap();
    world
}

#[test]
fn an_object_that_cannot_be_read_is_told_once_and_keeps_nobody_else_from_anything() {
    within(|| async {
        let world = both_beside_one_that_is_well(&Conditions::quiet()).await;
        world.rest(Duration::from_hours(1)).await.unwrap();
        world.restart(0);
        world.rest(Duration::from_mins(2)).await.unwrap();
        assert_eq!(world.server.look(events), 2);
        // Somebody mends it.
        let mut mended = odd();
        mended["spec"] = cluster("1Gi")["spec"].clone();
        world.apply(&mended);
        let is_ready = |store: &Store| {
            let odd = store.get(kinds::CLUSTER, "odd");
            let is_ready = odd.is_ok_and(|it| it["status"]["phase"] == "Ready");
            is_ready && told(store, kinds::CLUSTER, "odd").is_none()
        };
        world.until("the other is ready, too", is_ready).await.unwrap();
        world.rest(Duration::from_mins(2)).await.unwrap();
    });
}

#[test]
fn a_status_that_cannot_be_read_for_a_while_is_told_of_and_then_no_more() {
    within(|| async {
        let world = World::new(&Conditions::quiet());
        let groups = |groups: Value| {
            let status = json!({ "status": { "groups": groups } });
            world.server.change(|store, _| store.merge(kinds::CLUSTER, "risk", &status).is_ok())
        };
        world.apply(&cluster("1Gi"));
        world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
        assert!(groups(json!("three")));
        let is_told = |store: &Store| {
            told(store, kinds::CLUSTER, "risk").is_some_and(|it| it.contains("status.groups"))
        };
        world.until("it is told", is_told).await.unwrap();
        assert!(groups(json!(null)));
        world.until("it is ready again", |store| is_ready(store, 1)).await.unwrap();
        assert_eq!(world.server.look(|store| told(store, kinds::CLUSTER, "risk")), None);
        world.rest(Duration::from_mins(2)).await.unwrap();
    });
}

/// How many events tell of what cannot be read.
fn events(store: &Store) -> usize {
    store.list(kinds::EVENT).filter(|it| it["reason"] == "Unreadable").count()
}

#[test]
fn an_event_tells_of_it_whose_words_are_many_and_whose_status_takes_none() {
    within(|| async {
        let faults = vec![Fault::Write(0, WriteFault::Refused(422))];
        let world = World::new(&Conditions { faults, ..Conditions::quiet() });
        let mut long = odd();
        // Of three bytes each.
        long["spec"]["workers"][0]["max"] = json!("€".repeat(2000));
        world.apply(&long);
        world.until("an event tells of it", |store| events(store) == 1).await.unwrap();
        assert_eq!(world.server.counts().writes, 2);
        world.rest(Duration::from_mins(2)).await.unwrap();
        assert_eq!(world.server.look(events), 1);
    });
}

#[test]
fn whoever_keeps_writing_what_cannot_be_read_is_told_of_it_now_and_then() {
    within(|| async {
        let world = World::new(&Conditions::quiet());
        let edits = 120;
        for nth in 0..edits {
            let mut another = odd();
            another["spec"]["workers"][0]["max"] = json!(format!("three-{nth}"));
            world.apply(&another);
            sleep(Duration::from_secs(1)).await;
        }
        let last = format!("three-{}", edits - 1);
        let is_told =
            |store: &Store| told(store, kinds::CLUSTER, "odd").is_some_and(|it| it.contains(&last));
        world.until("the last one is told", is_told).await.unwrap();
        let (writes, events) = (world.server.counts().writes, world.server.look(events));
        assert!(writes - events < edits / 2, "{writes} writes, {events} of them events");
        assert!(events < edits / 6, "{events} events");
    });
}

#[test]
fn what_cannot_be_read_is_told_of_whichever_write_goes_wrong() {
    for nth in (0..WRITES).step_by(step(1).min(WRITES)) {
        // A definition that forgives nothing is told of by the event alone.
        for fault in WRITE_FAULTS.into_iter().filter(|it| *it != WriteFault::Refused(422)) {
            within(|| async move {
                let faults = vec![Fault::Write(nth, fault)];
                let conditions = Conditions { faults, ..Conditions::quiet() };
                let world = both_beside_one_that_is_well(&conditions).await;
                world.rest(Duration::from_mins(2)).await.unwrap();
            });
        }
    }
}

/// A job on the cluster `risk`.
fn job_on_risk(deadline: u64) -> Value {
    let metadata = json!({ "name": "report", "namespace": "default" });
    let on = json!({ "name": "risk" });
    json!({ "metadata": metadata, "spec": {
        "clusterRef": on, "script": "print(1)", "activeDeadlineSeconds": deadline,
    } })
}

#[test]
fn a_job_on_a_cluster_that_cannot_be_read_any_more_goes_on_and_ends() {
    for (deadline, expected) in [(3600, "Succeeded"), (5, "Failed")] {
        within(|| async move {
            let world = World::new(&Conditions::quiet());
            world.apply(&cluster("1Gi"));
            world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
            world.apply_a(kinds::CLUSTER_JOB, &job_on_risk(deadline));
            let is_in = |phase| {
                move |store: &Store| {
                    store
                        .get(kinds::CLUSTER_JOB, "report")
                        .is_ok_and(|it| it["status"]["phase"] == phase)
                }
            };
            world.until("it runs", is_in("Running")).await.unwrap();
            let odd = json!({ "spec": { "workers": odd()["spec"]["workers"] } });
            world.server.change(|store, _| store.merge(kinds::CLUSTER, "risk", &odd).is_ok());
            world.until("it has ended", is_in(expected)).await.unwrap();
            let failures = world.server.look(|store| {
                store
                    .get(kinds::CLUSTER_JOB, "report")
                    .map(|it| it["status"]["failures"]["total"].clone())
            });
            assert_eq!(failures, Ok(json!(0)));
            world.rest(Duration::from_mins(2)).await.unwrap();
        });
    }
}
