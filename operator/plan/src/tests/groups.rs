//! Several worker groups in one cluster.

use ebbtide_api::{Cluster, Phase};
use ebbtide_contract::demand::Outcome;
use serde_json::json;

use super::{World, cluster, group};
use crate::{Op, Plan, Trouble};

fn two() -> Cluster {
    cluster(|spec| {
        let mut big = group("big", 3);
        big["resources"]["nvidia.com/gpu"] = json!(2);
        big["resources"]["memory"] = json!("64Gi");
        spec["workers"] = json!([group("w", 4), big]);
    })
}

fn running(cluster: Cluster) -> World {
    let mut world = World::new(cluster);
    world.step();
    world.run();
    world
}

fn desired(plan: &Plan) -> Vec<i32> {
    plan.status.groups.iter().map(|it| it.workers.desired).collect()
}

#[test]
fn the_scheduler_is_told_what_the_workers_of_each_group_have() {
    let told = serde_json::to_value(crate::groups(&two().spec)).unwrap();
    let (small, big) = (4_u64 << 30, 64_u64 << 30);
    assert_eq!(
        told,
        json!([
            { "name": "w", "memoryBytes": small, "resources": {}, "targetSeconds": 10 },
            {
                "name": "big",
                "memoryBytes": big,
                "resources": { "nvidia.com/gpu": 2 },
                "targetSeconds": 10,
            },
        ])
    );
}

#[test]
fn work_goes_to_the_first_group_that_can_take_it_and_no_other_comes_for_it() {
    let mut world = running(two());
    world.queue_for(&["w", "big"], 9, 1e6);
    assert_eq!(desired(&world.after(1)), [4, 0]);
    world.queue_for(&["big"], 2, 30.0);
    assert_eq!(desired(&world.after(1)), [4, 2]);
}

#[test]
fn a_group_without_work_goes_while_the_others_work_on() {
    let mut world = running(two());
    world.queue_for(&["w", "big"], 9, 10.0);
    world.queue_for(&["big"], 1, 1.0);
    world.after(1);
    world.run();
    world.queue_for(&["big"], 0, 0.0);
    assert_eq!(desired(&world.after(1)), [1, 1]);
    assert_eq!(desired(&world.after(29)), [1, 1]);
    let plan = world.after(1);
    assert!(matches!(&plan.changes[..], [it] if matches!(it.op, Op::Retire { .. })), "{plan:?}");
    assert_eq!(desired(&world.after(1)), [1, 0]);
}

#[test]
fn work_that_no_group_can_take_asks_for_nobody_is_told_and_keeps_the_cluster() {
    let mut world = running(two());
    world.queue_for(&[], 5, 1.0);
    world.queue_for(&["gone"], 2, 1.0);
    let status = world.after(1).status;
    assert_eq!((status.phase, status.workers.desired, status.idle_since), (Phase::Ready, 0, None));
    assert_eq!(
        status.message.unwrap(),
        "7 tasks wait for more memory or other resources than a worker of any group has"
    );
}

#[test]
fn a_group_that_no_node_takes_is_told_beside_one_that_works() {
    let mut world = running(two());
    world.queue_for(&["w", "big"], 9, 10.0);
    world.after(1);
    world.run();
    world.queue_for(&["big"], 1, 1.0);
    world.after(1);
    let last = world.observed.pods.last_mut().unwrap();
    last.trouble = Some(Trouble::unschedulable("0/2 nodes have a gpu"));
    let status = world.after(1).status;
    assert_eq!((status.phase, status.groups[0].workers.ready), (Phase::Starting, 1));
    assert!(status.message.unwrap().contains("-big-0: Unschedulable: 0/2 nodes have a gpu"));
    assert!(status.groups[0].causes.is_empty() && status.groups[1].causes.len() == 1);
    // Without work for it nobody misses it.
    world.queue_for(&["big"], 0, 0.0);
    assert_eq!(world.after(1).status.phase, Phase::Ready);
}

#[test]
fn the_least_number_from_outside_is_the_first_group_s_alone() {
    let mut spec = two();
    spec.spec.min_workers = 2;
    let mut world = running(spec);
    let status = world.after(1).status;
    let desired: Vec<i32> = status.groups.iter().map(|it| it.workers.desired).collect();
    assert_eq!((desired, status.replicas, status.workers.ready), (vec![2, 0], 2, 2));
}

/// A worker of each group: the first has been idle for long enough, the other is needed.
fn one_idle() -> World {
    let mut world = running(two());
    world.queue_for(&["w"], 1, 1.0);
    world.after(1);
    world.run();
    world.queue_for(&["w"], 0, 0.0);
    world.queue_for(&["big"], 1, 1.0);
    world.after(1);
    world.run();
    world.seconds += 31;
    world
}

#[test]
fn what_goes_comes_before_what_comes_that_may_need_its_room() {
    let mut world = one_idle();
    world.queue_for(&["big"], 9, 60.0);
    let kinds: Vec<&str> = world
        .after(0)
        .changes
        .iter()
        .map(|it| if matches!(it.op, Op::Retire { .. }) { "retire" } else { it.why })
        .collect();
    let more = "fewer workers than are asked for";
    assert_eq!(kinds, ["retire", more, more]);
}

#[test]
fn a_worker_that_its_scheduler_kept_is_not_asked_again_while_that_is_fresh() {
    let mut world = one_idle();
    let demand = world.observed.demand.as_mut().unwrap();
    let kept = demand.workers.keys().map(|it| (it.clone(), Outcome::Kept));
    demand.retired = kept.collect();
    let plan = world.after(0);
    assert!(plan.changes.is_empty(), "{:?}", plan.changes);
    assert_eq!(plan.next_look.map(|it| it.as_secs()), Some(10));
    world.observed.demand.as_mut().unwrap().retired.clear();
    assert!(matches!(&world.after(10).changes[..], [it] if matches!(it.op, Op::Retire { .. })));
}
