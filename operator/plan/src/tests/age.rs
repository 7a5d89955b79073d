//! How old a cluster may become, whatever it does.

use std::time::Duration;

use ebbtide_api::{Cluster, Phase};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use serde_json::{Value, json};

use super::{World, at, cluster};
use crate::{Change, Op, Plan};

const HOUR: i64 = 3_600;

/// One that came at second 0 and may be there for an hour.
fn bounded(change: impl FnOnce(&mut Value)) -> Cluster {
    let mut made = cluster(|spec| {
        spec["lifetime"] = json!({ "max": { "after": "1h" } });
        change(spec);
    });
    made.metadata.creation_timestamp = Some(Time(at(0)));
    made
}

fn is_deleted(plan: &Plan) -> bool {
    plan.changes.iter().any(|it| matches!(it.op, Op::DeleteCluster { .. }))
}

#[test]
fn a_cluster_that_is_never_idle_goes_when_it_is_as_old_as_it_may_become() {
    let mut world = World::new(bounded(|_| ()));
    world.step();
    world.run();
    world.after(1);
    world.queue(1_000, 40.0);
    let busy = world.after(HOUR - 2);
    assert!(!is_deleted(&busy));
    assert_eq!(busy.next_look, Some(Duration::from_secs(1)));
    let over = world.after(1);
    assert!(matches!(over.changes[..], [Change { op: Op::DeleteCluster { .. }, .. }]));
    assert_eq!((over.status.phase, over.next_look), (Phase::Deleting, None));
    let ready = &over.status.conditions[0];
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "Expired"));
    assert_eq!(over.status.message.as_deref(), Some("it is as old as spec.lifetime.max.after"));
}

#[test]
fn so_does_one_of_which_nothing_can_be_made_and_one_that_nobody_hears() {
    let unpacked = bounded(|spec| spec["environment"]["packages"] = json!(["polars"]));
    let mut world = World::new(unpacked);
    let refused = world.after(HOUR - 10);
    assert_eq!(refused.status.phase, Phase::Degraded);
    assert_eq!(refused.next_look, Some(Duration::from_secs(10)));
    assert!(is_deleted(&world.after(10)));
    let mut world = World::new(bounded(|_| ()));
    world.step();
    assert!(is_deleted(&world.after(HOUR)));
}

#[test]
fn who_lets_it_become_older_in_time_keeps_it() {
    let mut world = World::new(bounded(|_| ()));
    world.step();
    world.cluster.spec.lifetime.max = None;
    assert!(!is_deleted(&world.after(HOUR)));
}

#[test]
fn a_cluster_that_is_made_for_a_job_goes_with_it() {
    let mut made = bounded(|_| ());
    let job = json!({ "apiVersion": "ebbtide.dev/v1alpha1", "kind": "ClusterJob", "name": "nightly",
        "uid": "j-1", "controller": true });
    let owner: OwnerReference = serde_json::from_value(job).unwrap();
    made.metadata.owner_references = Some(vec![owner]);
    let mut world = World::new(made);
    world.step();
    assert!(!is_deleted(&world.after(HOUR)));
}
