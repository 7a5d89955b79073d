//! What cannot be made, and what people wrote that cannot be.

use std::collections::BTreeMap;

use ebbtide_api::{ClusterStatus, Phase};
use serde_json::{Value, json};

use super::{World, at, cluster, group, site};
use crate::{Op, Plan, Refusal, Site, Stage, check, plan};

/// One that works and is to grow, and what its status is when it cannot.
fn stuck(is_lasting: bool, stage: Stage) -> ClusterStatus {
    let mut world = World::new(cluster(|_| {}));
    world.step();
    world.run();
    world.step();
    let plan = plan(&world.cluster, &world.observed, &site(), at(60));
    assert_eq!(plan.status.phase, Phase::Ready);
    plan.stuck(&world.cluster, &Refusal { words: "no", is_lasting, at: stage }, at(60))
}

#[test]
fn what_only_does_not_grow_is_ready_and_what_a_person_must_see_to_is_degraded() {
    assert_eq!(stuck(false, Stage::Pods).phase, Phase::Ready);
    assert_eq!(stuck(false, Stage::Others).phase, Phase::Starting);
    for stage in [Stage::Trials, Stage::Others, Stage::Pods] {
        assert_eq!(stuck(true, stage).phase, Phase::Degraded);
    }
    let status = stuck(true, Stage::Pods);
    let conditions = status.conditions.iter().map(|it| (it.type_.as_str(), it.reason.as_str()));
    let conditions: Vec<_> = conditions.collect();
    assert_eq!(conditions, [("Ready", "Rejected"), ("PendingChange", "UpToDate")]);
    assert_eq!(status.message.as_deref(), Some("no"));
}

fn tried(plan: &Plan) -> Vec<&str> {
    let pods = plan.changes.iter().filter_map(|it| {
        let Op::TryPod(pod) = &it.op else { return None };
        pod.metadata.name.as_deref()
    });
    pods.collect()
}

#[test]
fn settings_that_are_new_are_tried_once_before_anything_is_made() {
    let settings = json!({ "priorityClassName": "batch" });
    let mut world = World::new(cluster(|spec| {
        let mut with = group("with", 3);
        with["pod"] = settings.clone();
        spec["workers"] = json!([group("w", 4), with]);
    }));
    let first = world.step();
    assert_eq!(tried(&first), ["risk-2c6ef0-with-0"]);
    assert!(matches!(first.changes[0].op, Op::TryPod(_)));
    world.run();
    assert!(tried(&world.step()).is_empty());
    world.cluster.spec.scheduler.pod = serde_json::from_value(settings).unwrap();
    world.cluster.metadata.generation = Some(4);
    // The scheduler is there: the next one is what the change is about.
    assert_eq!(tried(&world.step()), ["risk-2c6ef0-with-0"]);
    assert!(tried(&world.step()).is_empty());
}

#[test]
fn settings_are_tried_until_the_api_server_has_taken_them() {
    let with_settings = || {
        World::new(cluster(|spec| {
            spec["workers"][0]["pod"] = json!({ "priorityClassName": "batch" });
        }))
    };
    for (is_lasting, judged) in [(true, Some(3)), (false, None)] {
        let mut world = with_settings();
        let plan = plan(&world.cluster, &world.observed, &site(), at(0));
        let refusal = Refusal { words: "no", is_lasting, at: Stage::Trials };
        let status = plan.stuck(&world.cluster, &refusal, at(0));
        assert_eq!(status.observed_generation, judged);
        world.cluster.status = Some(status);
        assert_eq!(tried(&world.step()), ["risk-2c6ef0-w-0"]);
        assert!(tried(&world.step()).is_empty());
    }
    let mut world = with_settings();
    let unpacked = Site { environments: BTreeMap::new(), ..site() };
    let plan = plan(&world.cluster, &world.observed, &unpacked, at(0));
    assert!(tried(&plan).is_empty());
    assert_eq!(plan.status.observed_generation, Some(3));
    world.cluster.status = Some(plan.status);
    assert_eq!(tried(&world.step()), ["risk-2c6ef0-w-0"]);
}

#[test]
fn groups_get_their_pods_in_turns() {
    let mut world = World::new(cluster(|spec| {
        let (mut many, mut one) = (group("many", 100), group("one", 2));
        many["min"] = json!(100);
        one["min"] = json!(2);
        spec["workers"] = json!([many, one]);
    }));
    let plan = world.step();
    let groups = |group: &str| {
        let of_group = |op: &Op| matches!(op, Op::CreatePod(pod) if pod.metadata.name.as_ref().unwrap().contains(group));
        plan.changes.iter().filter(|it| of_group(&it.op)).count()
    };
    assert_eq!((groups("many"), groups("one")), (62, 2));
}

#[test]
fn what_would_take_a_cluster_away_at_once_and_keys_that_are_none_are_refused() {
    let wrong = |change: fn(&mut Value)| check(&cluster(change).spec).unwrap_err();
    let idle = wrong(|spec| spec["lifetime"] = json!({ "idle": { "after": "0s" } }));
    assert!(idle.starts_with("spec.lifetime.idle.after: 0s would take"), "{idle}");
    let access = wrong(|spec| {
        spec["access"] = json!({ "namespaces": { "matchLabels": { "a b": "c" } } });
    });
    assert!(access.contains("matchLabels: \"a b\" is no key; expected"), "{access}");
    for key in ["a b", "", "a/", "/a", "A.b/c", "a..b/c", "-a", "a_", "a/b/c"] {
        for field in ["labels", "annotations", "nodeSelector"] {
            // Of annotations the domain may be written in any letters.
            if (key, field) == ("A.b/c", "annotations") {
                continue;
            }
            let spec = cluster(|spec| {
                let pairs = serde_json::Map::from_iter([(key.to_owned(), json!("v"))]);
                spec["scheduler"] = json!({ "pod": { field: pairs } });
            });
            let error = check(&spec.spec).unwrap_err();
            assert!(
                error.starts_with("spec.scheduler.pod") && error.contains("is no key"),
                "{error}"
            );
        }
    }
    for key in ["a", "a.b/c_d.e-f", "node.kubernetes.io/instance-type", "0/0"] {
        let spec = cluster(|spec| {
            let pairs = serde_json::Map::from_iter([(key.to_owned(), json!("v"))]);
            spec["scheduler"] = json!({ "pod": { "nodeSelector": pairs } });
        });
        assert_eq!(check(&spec.spec), Ok(()), "{key}");
    }
}
