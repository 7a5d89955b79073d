//! Several operators, of which one works.

use std::sync::Arc;
use std::time::Duration;

use ebbtide_controller::lease::LEASE;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::faults::WriteFault;
use crate::kinds;
use crate::lives::{cluster, is_ready, within};
use crate::store::Store;
use crate::world::{Conditions, World};

fn two() -> Conditions {
    Conditions { operators: 2, has_lease: true, ..Conditions::quiet() }
}

/// A world with a cluster that is ready under one of two operators.
async fn ready_under_two() -> World {
    let world = World::new(&two());
    world.apply(&cluster("1Gi"));
    world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
    world
}

/// How long a cluster is not looked after when its operator ends in some way.
fn gap(end: impl FnOnce(&World, usize)) -> Duration {
    within(|| async move {
        let world = ready_under_two().await;
        let &[first] = &world.at_work()[..] else { panic!("{:?}", world.at_work()) };
        // In the middle between two renewals.
        sleep(Duration::from_millis(2500)).await;
        end(&world, first);
        let begin = Instant::now();
        world.queue(3);
        let are_made = |store: &Store| store.list(kinds::POD).count() == 4;
        world.until("its workers are made", are_made).await.unwrap();
        assert_ne!(world.at_work(), [first]);
        let gap = begin.elapsed();
        world.until("it has grown", |store| is_ready(store, 3)).await.unwrap();
        gap
    })
}

#[test]
fn a_standby_takes_over_when_the_lease_of_a_killed_operator_is_over() {
    let gap = gap(World::kill);
    assert!(gap < LEASE + Duration::from_secs(2), "{gap:?}");
}

#[test]
fn an_operator_that_is_stopped_hands_over_at_once() {
    let gap = gap(World::stop);
    assert!(gap < Duration::from_secs(1), "{gap:?}");
}

#[test]
fn an_operator_that_cannot_renew_stops_before_another_begins() {
    within(|| async {
        let world = ready_under_two().await;
        let first = world.at_work()[0];
        world.server.cut_leases_of(first);
        let begin = Instant::now();
        while world.at_work() != [1 - first] {
            assert!(world.at_work().len() < 2 && begin.elapsed() < 2 * LEASE);
            sleep(Duration::from_millis(10)).await;
        }
        world.rest(Duration::from_mins(1)).await.unwrap();
    });
}

/// The version of the only lease.
fn version(world: &World) -> Option<String> {
    world.server.look(|store| {
        let mut all = store.list(kinds::LEASE);
        Some(all.next()?["metadata"]["resourceVersion"].as_str()?.to_owned())
    })
}

/// Waits until the lease is written.
async fn written(world: &World) {
    let (before, begin) = (version(world), Instant::now());
    while version(world) == before {
        assert!(begin.elapsed() < LEASE);
        sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn an_operator_works_on_when_one_renewal_meets_a_fault_or_somebody_edits_its_lease() {
    within(|| async {
        let world = ready_under_two().await;
        let &[first] = &world.at_work()[..] else { panic!("{:?}", world.at_work()) };
        let touch = json!({ "metadata": { "labels": { "touched": "yes" } } });
        let faults = [
            WriteFault::Broken,
            WriteFault::Lost,
            WriteFault::Hangs,
            WriteFault::Refused(409),
            WriteFault::Refused(503),
        ];
        for fault in faults {
            world.server.meet_a_lease_of(first, fault);
            for _ in 0..2000 {
                sleep(Duration::from_millis(10)).await;
                assert_eq!(world.at_work(), [first], "{fault:?}");
            }
            let is_done = world.server.change(|store, _| {
                let name = |it: &Arc<Value>| it["metadata"]["name"].as_str().map(str::to_owned);
                let only = store.list(kinds::LEASE).find_map(name).unwrap();
                store.merge(kinds::LEASE, &only, &touch).is_ok()
            });
            assert!(is_done);
        }
        world.rest(Duration::from_mins(1)).await.unwrap();
        assert_eq!(world.at_work(), [first]);
    });
}

#[test]
fn an_operator_that_is_stopped_in_the_middle_of_a_renewal_hands_over_at_once() {
    within(|| async {
        let world = ready_under_two().await;
        let &[first] = &world.at_work()[..] else { panic!("{:?}", world.at_work()) };
        world.server.meet_a_lease_of(first, WriteFault::Lost);
        written(&world).await;
        world.stop(first);
        let begin = Instant::now();
        while world.at_work() != [1 - first] {
            assert!(begin.elapsed() < Duration::from_secs(1));
            sleep(Duration::from_millis(10)).await;
        }
    });
}
