//! What the API server does not take, however often it is asked.

use std::time::Duration;

use ebbtide_api::names;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::at_work;
use crate::kinds;
use crate::lives::{is_ready, job, status, with_groups, within};
use crate::store::Store;
use crate::world::{Conditions, World};

fn with_settings(mut manifest: Value, group: usize) -> Value {
    manifest["spec"]["workers"][group]["pod"] = json!({ "tolerations": [{ "operator": "Foo" }] });
    manifest
}

fn is_degraded(store: &Store) -> bool {
    let status = status(store);
    status["phase"] == "Degraded"
        && status["message"].to_string().contains("spec.tolerations[0].operator")
        && status["conditions"][0]["reason"] == "Rejected"
}

fn count(store: &Store, kind: kinds::Kind) -> usize {
    store.list(kind).count()
}

/// What a group of the cluster tells of its pods.
fn causes(store: &Store, group: usize) -> Value {
    status(store)["groups"][group]["causes"].clone()
}

#[test]
fn of_a_cluster_with_settings_that_nobody_takes_nothing_is_made_and_corrected_it_is_ready() {
    within(|| async {
        let world = World::new(&Conditions::quiet());
        // Of a group that nobody needs yet.
        world.server.admit(|it| it.untaken = Some((names::WORKER_GROUP, "more")));
        world.apply(&with_settings(with_groups("1Gi", 2), 1));
        world.until("it is told", is_degraded).await.unwrap();
        sleep(Duration::from_mins(5)).await;
        for kind in [kinds::POD, kinds::SECRET, kinds::SERVICE, kinds::NETWORK_POLICY] {
            assert_eq!(
                world.server.look(|store| count(store, kind)),
                0,
                "{}",
                world.server.trace()
            );
        }
        // Whoever needs no pod has none refused.
        assert!(world.server.look(|store| causes(store, 1).is_null()));
        world.server.admit(|it| it.untaken = None);
        world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
        world.rest(Duration::from_mins(5)).await.unwrap();
        // At first, and after each longer wait.
        let tries = world.server.trace().matches("Try pods risk").count();
        assert!((5..20).contains(&tries), "{tries}");
    });
}

#[test]
fn a_group_whose_settings_nobody_takes_tells_how_many_pods_it_lacks() {
    within(|| async {
        let world = World::new(&Conditions::quiet());
        world.server.admit(|it| it.untaken = Some((names::WORKER_GROUP, "more")));
        let mut manifest = with_settings(with_groups("1Gi", 2), 1);
        manifest["spec"]["workers"][1]["min"] = json!(2);
        world.apply(&manifest);
        world.until("it is told", is_degraded).await.unwrap();
        let told = world.server.look(|store| causes(store, 1));
        assert_eq!((&told[0]["cause"], &told[0]["pods"]), (&json!("Rejected"), &json!(2)));
        assert!(world.server.look(|store| causes(store, 0).is_null()));
    });
}

#[test]
fn a_cluster_that_works_tells_that_its_new_settings_are_not_taken_and_works_on() {
    within(|| async {
        let world = World::new(&Conditions::quiet());
        world.apply(&with_groups("1Gi", 2));
        world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
        world.server.admit(|it| it.untaken = Some((names::WORKER_GROUP, "more")));
        world.apply(&with_settings(with_groups("1Gi", 2), 1));
        world.until("it is told", is_degraded).await.unwrap();
        world.queue(3);
        let workers = |store: &Store| status(store)["workers"]["ready"].as_u64();
        world.until("its other group grows", |store| workers(store) == Some(3)).await.unwrap();
        assert!(world.server.look(is_degraded));
    });
}

#[test]
fn a_group_whose_pods_nobody_takes_keeps_no_other_from_growing() {
    within(|| async {
        let world = World::new(&Conditions::quiet());
        let mut manifest = with_groups("1Gi", 2);
        for group in [0, 1] {
            manifest["spec"]["workers"][group]["min"] = json!(40);
            manifest["spec"]["workers"][group]["max"] = json!(40);
        }
        world.server.admit(|it| it.untaken = Some((names::WORKER_GROUP, "w")));
        world.apply(&manifest);
        // In the first looks, not a few in each that fails.
        sleep(Duration::from_secs(5)).await;
        let of_other = |pod: &Value| pod["metadata"]["labels"][names::WORKER_GROUP] == "more";
        let made =
            world.server.look(|store| store.list(kinds::POD).filter(|pod| of_other(pod)).count());
        assert_eq!(made, 40, "{}", world.server.trace());
        assert!(world.server.look(|store| status(store)["phase"] == "Degraded"));
        let told = world.server.look(|store| causes(store, 0));
        assert_eq!((&told[0]["cause"], &told[0]["pods"]), (&json!("Rejected"), &json!(40)));
        assert!(world.server.look(|store| causes(store, 1).is_null()));
    });
}

#[test]
fn what_has_no_room_to_grow_is_ready_and_says_so() {
    within(|| async {
        let world = at_work().await;
        world.server.admit(|it| it.quota = Some(2));
        world.queue(3);
        let is_told = |store: &Store| status(store)["message"].to_string().contains("quota");
        world.until("it is told", is_told).await.unwrap();
        assert!(world.server.look(|store| is_ready(store, 1)));
        let lacks = |store: &Store, pods: u32| {
            let told = causes(store, 0);
            told[0]["cause"] == "Quota" && told[0]["pods"] == pods
        };
        world.until("it tells how many", |store| lacks(store, 2)).await.unwrap();
        world.server.admit(|it| it.quota = Some(3));
        world.until("it tells how many are left", |store| lacks(store, 1)).await.unwrap();
        world.server.admit(|it| it.quota = None);
        world.until("it has grown", |store| is_ready(store, 3)).await.unwrap();
        world.until("nothing ails it", |store| causes(store, 0).is_null()).await.unwrap();
        world.rest(Duration::from_mins(5)).await.unwrap();
    });
}

#[test]
fn a_job_whose_pod_nobody_takes_has_no_cluster_and_begins_when_it_is_taken() {
    within(|| async {
        let world = World::new(&Conditions { has_jobs: true, ..Conditions::quiet() });
        world.server.admit(|it| it.untaken = Some((names::ROLE, "job")));
        world.apply_a(kinds::CLUSTER_JOB, &job(false));
        let of_job = |store: &Store| {
            let job = store.get(kinds::CLUSTER_JOB, "nightly");
            job.map(|it| it["status"].clone()).unwrap_or_default()
        };
        let is_told = |store: &Store| {
            let accepted = &of_job(store)["conditions"][0];
            accepted["status"] == "False" && accepted["reason"] == "Rejected"
        };
        world.until("it is told", is_told).await.unwrap();
        sleep(Duration::from_mins(5)).await;
        assert_eq!(world.server.trace().matches("Create clusters").count(), 0);
        world.server.admit(|it| it.untaken = None);
        let has_ended = |store: &Store| of_job(store)["phase"] == "Succeeded";
        world.until("it has ended well", has_ended).await.unwrap();
    });
}

#[test]
fn a_job_whose_pod_is_not_taken_any_more_gives_its_cluster_back() {
    within(|| async {
        let world = World::new(&Conditions { has_jobs: true, ..Conditions::quiet() });
        world.apply_a(kinds::CLUSTER_JOB, &job(false));
        let has_cluster = |store: &Store| count(store, kinds::CLUSTER) == 1;
        world.until("its cluster is there", has_cluster).await.unwrap();
        world.server.admit(|it| it.untaken = Some((names::ROLE, "job")));
        sleep(Duration::from_secs(20)).await;
        assert!(world.server.look(has_cluster), "for a moment it may be anybody's fault");
        let is_gone = |store: &Store| count(store, kinds::CLUSTER) == 0;
        world.until("its cluster is gone", is_gone).await.unwrap();
        sleep(Duration::from_mins(5)).await;
        assert!(world.server.look(is_gone));
    });
}
