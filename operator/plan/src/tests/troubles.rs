//! What is said of pods that end, and of those that take long.

use std::time::Duration;

use ebbtide_api::status::Cause;
use ebbtide_api::{ClusterStatus, Phase};

use super::{World, at, cluster};
use crate::{News, PodPhase, PodSeen, Refusal, Stage, Trouble, news};

/// A cluster that has one worker at least, and both its pods, which were made when it was.
fn begun() -> World {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 1.into()));
    world.step();
    for pod in &mut world.observed.pods {
        pod.created_at = Some(at(0));
    }
    world
}

fn worker(world: &mut World) -> &mut PodSeen {
    world.observed.pods.iter_mut().find(|it| it.name.ends_with("-w-0")).unwrap()
}

fn ends(world: &mut World, trouble: Option<Trouble>) {
    let now = at(world.seconds);
    let pod = worker(world);
    (pod.phase, pod.ended_at, pod.trouble) = (PodPhase::Ended, Some(now), trouble);
}

fn told(status: &ClusterStatus) -> (Phase, &str, &str) {
    (status.phase, &status.conditions[0].reason, status.message.as_deref().unwrap_or_default())
}

#[test]
fn what_ended_with_an_error_counts_as_degraded_until_the_cluster_is_ready_or_corrected() {
    let mut world = begun();
    world.run();
    assert_eq!(world.after(40).status.phase, Phase::Ready);
    ends(&mut world, Trouble::ended("OOMKilled", 137, ""));
    let before = world.after(1).status;
    assert_eq!((told(&before).0, told(&before).1), (Phase::Degraded, "OutOfMemory"));
    // It is cleared away, and another one starts.
    for _ in 0..3 {
        let status = world.after(11).status;
        assert_eq!(told(&status), told(&before));
    }
    let mut corrected = World::new(world.cluster.clone());
    corrected.observed = world.observed.clone();
    corrected.cluster.metadata.generation = Some(4);
    assert_eq!(corrected.after(60).status.phase, Phase::Starting);
    world.run();
    assert_eq!(world.after(1).status.phase, Phase::Ready);
}

#[test]
fn a_clock_that_is_wrong_neither_keeps_what_ended_nor_has_it_made_again_at_once() {
    for minutes in [-10, 0, 10] {
        let mut world = begun();
        world.run();
        world.after(5);
        ends(&mut world, Trouble::ended("Error", 1, ""));
        worker(&mut world).ended_at = Some(at(5 + 60 * minutes).max(at(0)));
        let plan = world.after(1);
        assert!(plan.changes.is_empty(), "{minutes}: it could not live: {:?}", plan.changes);
        worker(&mut world).told_for = Duration::from_secs(10);
        let plan = world.after(9);
        assert_eq!(plan.changes[0].why, "it has ended", "{minutes}");
    }
}

#[test]
fn of_what_takes_long_it_is_said_where_to_look() {
    let mut world = begun();
    let plan = world.after(10);
    assert_eq!(plan.next_look, Some(Duration::from_secs(50)));
    assert_eq!(told(&plan.status).2, "waiting for the scheduler to answer");
    let message = |world: &mut World| world.step().status.message.unwrap_or_default();
    world.seconds = 60;
    assert!(message(&mut world).contains("-scheduler has not begun: its image"));
    for pod in &mut world.observed.pods {
        pod.phase = PodPhase::Running;
    }
    assert!(message(&mut world).contains("-scheduler runs and has not reached the operator"));
    world.observed.pods[0].is_deleting = true;
    assert!(message(&mut world).contains("on a node that does not answer"));
    let mut world = begun();
    world.run();
    worker(&mut world).phase = PodPhase::Pending;
    world.observed.demand.as_mut().unwrap().workers.clear();
    assert_eq!(message(&mut world), "0 of 1 workers of w are registered");
    world.seconds = 60;
    assert!(message(&mut world).contains("registered; risk-2c6ef0-w-0 has not begun"));
    world.run();
    world.step();
    assert_eq!(world.step().next_look.filter(|it| *it < Duration::from_mins(1)), None);
}

#[test]
fn what_goes_wrong_is_told_once_with_its_reason() {
    let mut world = begun();
    world.run();
    let ready = world.after(40).status;
    ends(&mut world, Trouble::ended("OOMKilled", 137, ""));
    let hurt = world.after(1).status;
    let oom = News {
        reason: "OutOfMemory".to_owned(),
        field: "status.groups[w]".to_owned(),
        note: "w: OOMKilled: exit code 137".to_owned(),
    };
    assert_eq!(news(Some(&ready), &hurt), [oom]);
    assert_eq!(news(Some(&hurt), &hurt), []);
    let hurt_again = world.after(1).status;
    assert_eq!(news(Some(&hurt), &hurt_again), []);
    let mut world = begun();
    world.observed.pods[0].trouble = Trouble::waiting("ErrImagePull", "not found");
    let waits = world.step().status;
    let [News { reason, note, .. }] = &news(None, &waits)[..] else { panic!("{waits:?}") };
    assert_eq!(reason, Cause::Image.as_str());
    assert!(note.ends_with("ErrImagePull: not found"), "{note}");
    assert_eq!(news(None, &ready), []);
}

#[test]
fn what_comes_for_work_and_cannot_live_counts_as_degraded_until_it_works() {
    let mut world = World::new(cluster(|_| ()));
    world.step();
    world.run();
    world.after(1);
    world.queue(1000, 55.0);
    world.after(1);
    ends(&mut world, Trouble::ended("Error", 1, ""));
    for seconds in [1, 11, 1] {
        assert_eq!(told(&world.after(seconds).status).1, "Exit");
    }
    // The API server's hiccup is not why.
    let why = Refusal { words: "busy", is_lasting: false, at: Stage::Others };
    let plan = world.step();
    let status = plan.stuck(&world.cluster, &why, &[], at(world.seconds));
    assert_eq!((status.phase, &*status.conditions[0].reason), (Phase::Degraded, "Exit"));
    world.run();
    assert_eq!(world.after(1).status.phase, Phase::Ready);
}
