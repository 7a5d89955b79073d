//! When what a cluster's Secrets hold is written anew.

use std::time::Duration;

use ebbtide_api::{Phase, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::{World, at, cluster, site};
use crate::{Op, Plan, Refusal, Stage, plan};

/// A third of a leaf's life, in seconds.
const TURN: i64 = 10 * 24 * 3600;

/// A cluster that is ready and has rest.
fn at_rest() -> World {
    let mut world = World::new(cluster(|spec| {
        spec["workers"][0]["min"] = 1.into();
        spec["lifetime"] = json!({ "idle": { "after": "9000h" } });
    }));
    world.cluster.metadata.creation_timestamp = Some(Time(at(0)));
    world.observed.authority = "a1".to_owned();
    world.step();
    world.run();
    assert_eq!(world.after(1).status.phase, Phase::Ready);
    assert!(world.after(1).changes.is_empty());
    world
}

fn renewed(plan: &Plan) -> usize {
    assert!(plan.changes.iter().all(|it| matches!(it.op, Op::RenewSecret(_))), "{plan:?}");
    plan.changes.len()
}

#[test]
fn certificates_are_renewed_each_time_that_a_third_of_their_life_is_over() {
    let mut world = at_rest();
    let quiet = world.after(1);
    assert_eq!(quiet.next_look, Some(Duration::from_secs(TURN.unsigned_abs() - 3)));
    assert_eq!(quiet.status.credentials.as_deref(), Some("a1-0"));
    for turn in 1..4 {
        let due = world.after(TURN);
        assert_eq!((renewed(&due), due.status.phase), (3, Phase::Ready));
        assert_eq!(due.status.credentials, Some(format!("a1-{turn}")));
        assert_eq!(renewed(&world.after(1)), 0);
    }
}

#[test]
fn certificates_are_renewed_once_for_another_authority_and_once_for_each_wish() {
    let mut world = at_rest();
    world.observed.authority = "b2".to_owned();
    assert_eq!([renewed(&world.after(1)), renewed(&world.after(1))], [3, 0]);
    for wish in ["now", "again"] {
        let wish = (names::RENEW.to_owned(), wish.to_owned());
        world.cluster.metadata.annotations.get_or_insert_default().extend([wish]);
        assert_eq!([renewed(&world.after(1)), renewed(&world.after(1))], [3, 0]);
    }
}

#[test]
fn what_could_not_be_renewed_is_tried_again() {
    let mut world = at_rest();
    world.observed.authority = "b2".to_owned();
    let due = |world: &World| plan(&world.cluster, &world.observed, &site(), at(10));
    let without = due(&world).without_renewal(&world.cluster, "forbidden");
    assert!(without.changes.is_empty() && without.status.phase == Phase::Ready);
    assert_eq!(without.status.credentials.as_deref(), Some("a1-0"));
    assert_eq!(without.status.message.as_deref(), Some("forbidden"));
    world.cluster.status = Some(without.status);
    assert_eq!(renewed(&due(&world)), 3);
    // What else could not be done is no reason to renew again.
    let no_room = Refusal { words: "no room", is_lasting: false, at: Stage::Pods };
    let stuck = due(&world).stuck(&world.cluster, &no_room, &[], at(10));
    assert_eq!(stuck.credentials.as_deref(), Some("b2-0"));
    world.cluster.status = Some(stuck);
    assert_eq!(renewed(&world.after(20)), 0);
}

#[test]
fn it_is_not_forgotten_what_was_written_while_a_spec_is_refused_or_nobody_is_heard() {
    let mut world = at_rest();
    let right = world.cluster.spec.clone();
    world.cluster.spec.environment.as_mut().unwrap().packages = vec!["numpy=>1".to_owned()];
    let refused = world.after(1);
    assert_eq!((renewed(&refused), refused.status.phase), (0, Phase::Degraded));
    assert_eq!(refused.status.credentials.as_deref(), Some("a1-0"));
    // What runs goes on.
    world.observed.authority = "b1".to_owned();
    assert_eq!([renewed(&world.after(1)), renewed(&world.after(1))], [3, 0]);
    world.cluster.spec = right;
    world.after(1);
    let demand = world.observed.demand.take();
    world.observed.authority = "b2".to_owned();
    let silent = world.after(1);
    assert_eq!(renewed(&silent), 3);
    assert_eq!(silent.status.credentials.as_deref(), Some("b2-0"));
    world.observed.demand = demand;
    assert_eq!(renewed(&world.after(1)), 0);
}

#[test]
fn an_operator_whose_clock_is_behind_renews_nothing_that_one_ahead_of_it_has_renewed() {
    let mut world = at_rest();
    assert_eq!(renewed(&world.after(TURN)), 3);
    assert_eq!(renewed(&world.after(-600)), 0);
    assert_eq!(world.cluster.status.unwrap().credentials.as_deref(), Some("a1-1"));

    // But one that is far ahead makes what nobody takes.
    let mut world = at_rest();
    assert_eq!(renewed(&world.after(4 * TURN)), 3);
    assert_eq!(renewed(&world.after(-4 * TURN)), 3);
}
