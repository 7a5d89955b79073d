//! What is decided while less is known than there is: no scheduler is heard, no Secret is read.

use std::time::Duration;

use ebbtide_api::Phase;

use super::{World, at, cluster, site};
use crate::{Change, Op, Trouble, plan};

#[test]
fn a_cluster_whose_scheduler_dials_anew_stays_ready_for_a_while_and_then_says_that_it_waits() {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 1.into()));
    world.step();
    world.run();
    let ready = world.after(1).status;
    assert_eq!(ready.phase, Phase::Ready);
    // Another operator: it knows what watches show, and no scheduler is connected yet.
    world.observed.demand = None;
    world.observed.secrets.clear();
    let silent = |world: &mut World, seconds| {
        world.observed.silent_for = Duration::from_secs(seconds);
        plan(&world.cluster, &world.observed, &site(), at(world.seconds))
    };
    let soon = silent(&mut world, 3);
    assert!(soon.changes.is_empty(), "no Secret is written: {:?}", soon.changes);
    assert_eq!((soon.status, soon.next_look), (ready, Some(Duration::from_secs(7))));
    assert_eq!(silent(&mut world, 10).status.phase, Phase::Starting);
    world.observed.pods[0].trouble = Trouble::ended("Error", 1, "");
    assert_ne!(silent(&mut world, 1).status.phase, Phase::Ready, "it has crashed");
    world.observed.pods[0].trouble = None;
    world.observed.pods[0].is_deleting = true;
    assert_ne!(silent(&mut world, 1).status.phase, Phase::Ready, "it goes");
}

#[test]
fn work_that_came_and_went_while_no_scheduler_was_heard_puts_the_end_off() {
    let mut world = World::new(cluster(|_| ()));
    world.step();
    world.run();
    world.after(1);
    world.seconds += 25 * 60;
    // Another operator: nothing was heard on its connection before.
    let plan_with = |world: &mut World, jobs| {
        world.observed.demand.as_mut().unwrap().jobs = jobs;
        plan(&world.cluster, &world.observed, &site(), at(world.seconds))
    };
    assert_eq!(plan_with(&mut world, 1).changes.len(), 0, "a job came");
    let over = plan_with(&mut world, 0);
    assert!(matches!(over.changes[..], [Change { op: Op::DeleteCluster { .. }, .. }]));
}

#[test]
fn a_scheduler_that_says_nothing_for_a_while_has_not_been_idle_meanwhile() {
    let mut world = World::new(cluster(|spec| spec["engine"] = "dask".into()));
    world.step();
    world.run();
    world.after(1);
    world.seconds += 20 * 60;
    world.observed.heard_ago = Duration::from_secs(7);
    let soon = plan(&world.cluster, &world.observed, &site(), at(world.seconds));
    assert_eq!((soon.changes.len(), soon.next_look), (0, Some(Duration::from_secs(7))));
    world.observed.heard_ago = Duration::from_secs(10);
    world.after(1);
    world.observed.heard_ago = Duration::ZERO;
    assert_eq!(world.after(1).changes.len(), 0, "the time begins anew");
    world.seconds += 20 * 60;
    let over = plan(&world.cluster, &world.observed, &site(), at(world.seconds));
    assert!(matches!(over.changes[..], [Change { op: Op::DeleteCluster { .. }, .. }]));
}

#[test]
fn workers_of_a_scheduler_that_says_nothing_stay() {
    let mut world = World::whose_work_is_done();
    world.after(1);
    world.seconds += 60;
    let mut due_when_heard_ago = |seconds| {
        world.observed.heard_ago = Duration::from_secs(seconds);
        plan(&world.cluster, &world.observed, &site(), at(world.seconds)).changes
    };
    assert_eq!(due_when_heard_ago(10).len(), 0);
    assert!(matches!(due_when_heard_ago(0)[..], [Change { op: Op::Retire { .. }, .. }]));
}

#[test]
fn secrets_are_made_sure_of_while_a_pod_does_not_begin_and_nobody_knows_why() {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 1.into()));
    world.step();
    world.observed.secrets.clear();
    let due = |world: &World| {
        let plan = plan(&world.cluster, &world.observed, &site(), at(world.seconds));
        let is_secret = |it: &&Change| matches!(it.op, Op::CreateSecret(_));
        plan.changes.iter().filter(is_secret).count()
    };
    assert_eq!(due(&world), 3);
    for pod in &mut world.observed.pods {
        pod.trouble = Some(Trouble::unschedulable("0/2 nodes are available"));
    }
    assert_eq!(due(&world), 0, "it is known what they wait for");
    world.run();
    assert_eq!(due(&world), 0, "they run");
    world.observed.has_client_that_begins = true;
    assert_eq!(due(&world), 3, "the program of a job does not");
}
