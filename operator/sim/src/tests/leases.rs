//! Several operators, of which one works.

use std::sync::Arc;
use std::time::Duration;

use ebbtide_controller::lease::LEASE;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

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

#[test]
fn an_operator_works_on_whose_renewal_nobody_answered_or_whose_lease_somebody_edited() {
    within(|| async {
        let world = ready_under_two().await;
        let at_work = world.at_work();
        for _ in 0..2 {
            world.server.lose_an_answer_about_leases_to(at_work[0]);
            let touch = json!({ "metadata": { "labels": { "touched": "yes" } } });
            for _ in 0..1000 {
                sleep(Duration::from_millis(10)).await;
                assert_eq!(world.at_work(), at_work);
            }
            let all = world.server.look(|store| {
                let name = |it: &Arc<Value>| it["metadata"]["name"].as_str().map(str::to_owned);
                store.list(kinds::LEASE).filter_map(name).collect::<Vec<_>>()
            });
            for name in all {
                assert!(
                    world
                        .server
                        .change(|store, _| store.merge(kinds::LEASE, &name, &touch).is_ok())
                );
            }
        }
        world.rest(Duration::from_mins(1)).await.unwrap();
        assert_eq!(world.at_work(), at_work);
    });
}
