use std::collections::BTreeSet;
use std::time::Duration;

use ebbtide_api::{ClusterStatus, Phase};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::SILENCE;
use crate::tests::{World, cluster};
use crate::{Op, Plan, PodPhase, SchedulerAddress, Site};

/// A cluster whose first pods are made of the image `wrong`, and that is to have `right` now.
fn corrected() -> World {
    let mut world = World::new(cluster(|spec| {
        (spec["environment"], spec["image"]) = (Value::Null, json!("wrong"));
    }));
    world.step();
    assert_eq!(images(&world), ["wrong"]);
    world.cluster.spec.image = Some("right".to_owned());
    world
}

/// The images of the pods.
fn images(world: &World) -> Vec<&str> {
    let images = world.observed.pods.iter().map(|it| it.image.as_deref().unwrap());
    images.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The images of the pods that a plan makes.
fn made(plan: &Plan) -> Vec<&str> {
    let pods = plan.changes.iter().filter_map(|it| {
        let Op::CreatePod(pod) = &it.op else { return None };
        pod.spec.as_ref()?.containers[0].image.as_deref()
    });
    pods.collect()
}

fn status(world: &World) -> &ClusterStatus {
    world.cluster.status.as_ref().unwrap()
}

fn pods_run(world: &mut World) {
    world.observed.pods.iter_mut().for_each(|it| it.phase = PodPhase::Running);
}

#[test]
fn an_image_is_corrected_as_long_as_no_pod_runs() {
    let mut world = corrected();
    world.step();
    world.step();
    assert_eq!((images(&world), status(&world).image.as_deref()), (vec!["right"], Some("right")));
    assert_eq!(status(&world).started_at, None);
}

#[test]
fn a_scheduler_that_runs_is_waited_for_and_one_that_never_answers_is_made_again() {
    let mut world = corrected();
    pods_run(&mut world);
    world.observed.silent_for = SILENCE.saturating_sub(Duration::from_secs(2));
    let plan = world.step();
    assert_eq!((images(&world), plan.next_look), (vec!["wrong"], Some(Duration::from_secs(2))));
    world.observed.silent_for = SILENCE;
    world.step();
    world.step();
    assert_eq!(images(&world), ["right"]);
}

#[test]
fn a_scheduler_that_answers_and_had_nothing_to_do_is_made_again() {
    let mut world = corrected();
    world.run();
    world.step();
    assert_eq!(status(&world).started_at, None, "it is about to go");
    assert_eq!(status(&world).phase, Phase::Starting);
    world.observed.demand = None;
    world.step();
    world.run();
    world.step();
    assert_eq!(images(&world), ["right"]);
    assert!(status(&world).started_at.is_some());
}

#[test]
fn what_may_have_computed_keeps_its_image_and_so_does_what_comes_to_it() {
    let loses: [fn(&mut World); 2] = [
        |world| world.observed.demand.as_mut().unwrap().jobs = 1,
        |world| world.observed.demand.as_mut().unwrap().clients = 1,
    ];
    for may_lose in loses {
        let mut world = corrected();
        world.run();
        may_lose(&mut world);
        world.queue(9, 1e6);
        let plan = world.step();
        assert_eq!(made(&plan), ["wrong"; 4]);
        assert_eq!(status(&world).image.as_deref(), Some("wrong"));
        assert!(status(&world).started_at.is_some());
        let message = &status(&world).conditions[1].message;
        assert!(message.ends_with("if it has not, right follows"), "{message}");
        world.step();
        let pending = &status(&world).conditions[1];
        assert_eq!((&*pending.type_, &*pending.reason), ("PendingChange", "OtherImage"));
        assert!(pending.message.contains("for right delete the cluster"), "{pending:?}");
    }
}

#[test]
fn what_the_status_says_by_then_is_not_what_counts_but_what_the_scheduler_was_made_with() {
    for image in [None, Some("right".to_owned())] {
        let mut world = corrected();
        world.run();
        world.observed.demand.as_mut().unwrap().clients = 1;
        world.cluster.status.as_mut().unwrap().image = image;
        world.queue(9, 1e6);
        assert_eq!(made(&world.step()), ["wrong"; 4]);
    }
}

#[test]
fn pods_of_a_time_when_none_told_its_image_are_corrected_too_unless_they_run() {
    let of_old = || {
        let mut world = corrected();
        world.observed.pods.iter_mut().for_each(|it| it.image = None);
        world
    };
    let mut waits = of_old();
    waits.step();
    waits.step();
    assert_eq!(images(&waits), ["right"]);
    let mut runs = of_old();
    pods_run(&mut runs);
    runs.observed.silent_for = 2 * SILENCE;
    runs.step();
    assert_eq!(runs.observed.pods[0].image, None);
    assert_eq!(status(&runs).image.as_deref(), Some("wrong"));
}

#[test]
fn a_cluster_that_has_begun_keeps_its_image_whatever_its_package_list_leads_to() {
    let mut world = World::new(cluster(|_| ()));
    let key = crate::request(world.cluster.spec.environment.as_ref().unwrap()).unwrap();
    let site = |images: &[&str]| {
        let images = images.iter().map(|it| (key.key().to_string(), Ok((*it).to_owned())));
        Site {
            operator: "o".to_owned(),
            scheduler_address: SchedulerAddress::Services,
            monitoring: Vec::new(),
            environments: images.collect(),
        }
    };
    let at = jiff::Timestamp::UNIX_EPOCH;
    let look = |world: &mut World, images: &[&str]| {
        let plan = crate::plan(&world.cluster, &world.observed, &site(images), at);
        world.cluster.status = Some(plan.status.clone());
        plan
    };
    assert!(made(&look(&mut world, &["a"])).iter().all(|it| *it == "a"));
    // Nothing ran yet: what is packed now is what counts.
    assert_eq!(look(&mut world, &["b"]).status.image.as_deref(), Some("b"));
    world.cluster.status =
        Some(ClusterStatus { started_at: Some(Time(at)), ..status(&world).clone() });
    for images in [&["c"][..], &[]] {
        let plan = look(&mut world, images);
        assert_eq!((made(&plan)[0], plan.status.image.as_deref()), ("b", Some("b")));
        assert_eq!(plan.status.environment_key, Some(key.key().to_string()));
    }
    world.cluster.spec.workers.clear();
    let plan = look(&mut world, &["c"]);
    assert!(plan.changes.is_empty() && plan.status.started_at.is_some());
    assert_eq!(plan.status.image.as_deref(), Some("b"));
}

#[test]
fn a_package_list_that_nobody_packed_and_that_came_too_late_is_not_told_as_what_runs() {
    let mut world = corrected();
    world.run();
    world.observed.demand.as_mut().unwrap().clients = 1;
    let list = json!({ "python": "3.11", "packages": ["zarr"] });
    world.cluster.spec.image = None;
    world.cluster.spec.environment = serde_json::from_value(list).unwrap();
    world.step();
    let told = status(&world);
    assert_eq!((told.image.as_deref(), told.environment_key.as_ref()), (Some("wrong"), None));
    assert_eq!(told.conditions[1].reason, "OtherImage");
}
