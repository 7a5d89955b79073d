//! What cannot be made, and what people wrote that cannot be.

use std::collections::{BTreeMap, BTreeSet};

use ebbtide_api::status::{Cause, CauseCount};
use ebbtide_api::{ClusterStatus, Phase};
use ebbtide_contract::demand::Outcome;
use ebbtide_contract::view::WorkerView;
use serde_json::{Value, json};

use super::{World, at, cluster, group, site};
use crate::{Op, PENDING_CHANGE, Plan, Refusal, Site, Stage, Trouble, Unmade, check, plan};

/// One that works and is to grow, and what its status is when it cannot.
fn stuck(is_lasting: bool, stage: Stage) -> ClusterStatus {
    let mut world = World::new(cluster(|_| {}));
    world.step();
    world.run();
    world.step();
    let plan = plan(&world.cluster, &world.observed, &site(), at(60));
    assert_eq!(plan.status.phase, Phase::Ready);
    plan.stuck(&world.cluster, &Refusal { words: "no", is_lasting, at: stage }, &[], at(60))
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

/// What the groups of a cluster tell when some could not get all their pods.
fn causes(world: &World, unmade: &[Unmade]) -> Vec<Vec<(Cause, i32, String)>> {
    let plan = plan(&world.cluster, &world.observed, &site(), at(60));
    let why = Refusal { words: "the first one's", is_lasting: false, at: Stage::Pods };
    let status = plan.stuck(&world.cluster, &why, unmade, at(60));
    let causes = status.groups.into_iter().map(|it| it.causes);
    causes.map(|all| all.into_iter().map(|it| (it.cause, it.pods, it.message)).collect()).collect()
}

fn of_quota(group: &str, made: usize) -> Unmade {
    let words = "exceeded quota: small".to_owned();
    Unmade { group: group.to_owned(), made, words, is_lasting: false }
}

#[test]
fn each_group_tells_how_many_pods_it_lacks_and_who_refuses_them() {
    let mut world = World::new(cluster(|spec| {
        let mut many = group("many", 100);
        many["min"] = json!(100);
        spec["workers"] = json!([many, group("none", 9), group("one", 1)]);
        spec["workers"][2]["min"] = json!(1);
    }));
    let rejected = |words: &str, is_lasting| {
        let (group, words) = ("one".to_owned(), words.to_owned());
        Unmade { group, made: 0, words, is_lasting }
    };
    let told = causes(&world, &[of_quota("many", 8), of_quota("none", 0), rejected("no", true)]);
    let quota = |pods| vec![(Cause::Quota, pods, "exceeded quota: small".to_owned())];
    // Who lacks none tells nothing.
    assert_eq!(told, [quota(92), vec![], vec![(Cause::Rejected, 1, "no".to_owned())]]);
    let policy = causes(&world, &[rejected("violates PodSecurity \"restricted\"", true)]);
    assert_eq!(policy[2][0].0, Cause::Policy);
    // That the API server is away is no refusal.
    assert_eq!(causes(&world, &[rejected("no answer", false)]), vec![vec![]; 3]);
    world.step();
    let there = world.observed.pods.iter().filter(|it| it.name.contains("-many-")).count();
    assert!((50..92).contains(&there));
    let left = i32::try_from(92 - there).unwrap();
    assert_eq!(causes(&world, &[of_quota("many", 8)])[0], quota(left));
}

#[test]
fn a_refusal_is_told_once_and_beside_what_ails_the_pods_that_are_there() {
    let mut world = World::new(cluster(|spec| {
        spec["workers"] = json!([group("w", 100)]);
        spec["workers"][0]["min"] = json!(100);
    }));
    world.step();
    world.run();
    let mut before = plan(&world.cluster, &world.observed, &site(), at(60)).status;
    let refused = |world: &World| causes(world, &[of_quota("w", 0)]).remove(0);
    let first = refused(&world);
    assert_eq!(first.len(), 1);
    // The scheduler says nothing for a moment: the status is that of before, with what was refused then.
    let message = "of an earlier look".to_owned();
    before.groups[0].causes = vec![CauseCount { cause: Cause::Quota, pods: 1, message }];
    before.phase = Phase::Ready;
    world.cluster.status = Some(before);
    let demand = world.observed.demand.take();
    assert_eq!(refused(&world), first);
    world.observed.demand = demand;
    let kinds = [Cause::Image, Cause::Exit, Cause::Evicted, Cause::Unschedulable];
    let workers = world.observed.pods.iter_mut().filter(|it| it.name.contains("-w-"));
    for (pod, cause) in workers.zip(kinds) {
        pod.trouble = Some(Trouble { cause, message: cause.as_str().to_owned() });
    }
    let told: Vec<Cause> = refused(&world).into_iter().map(|it| it.0).collect();
    assert_eq!((told.len(), told[0]), (4, Cause::Quota));
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
    assert_eq!(tried(&world.step()), ["risk-2c6ef0-scheduler", "risk-2c6ef0-with-0"]);
    assert!(tried(&world.step()).is_empty());
    world.cluster.spec.min_workers = 2;
    world.cluster.metadata.generation = Some(5);
    world.step();
    world.run();
    // Of a group whose workers live, too.
    world.cluster.spec.workers[0].pod = world.cluster.spec.scheduler.pod.clone();
    world.cluster.metadata.generation = Some(6);
    assert!(tried(&world.step()).contains(&"risk-2c6ef0-w-0"));
}

#[test]
fn what_kubernetes_alone_knows_of_resources_is_tried() {
    let mut world = World::new(cluster(|spec| {
        spec["workers"][0]["resources"]["requests.nvidia.com/gpu"] = json!(1);
    }));
    assert_eq!(tried(&world.step()), ["risk-2c6ef0-w-0"]);
    for image in ["", " i", "a b", "a\n"] {
        let spec = cluster(|spec| {
            spec["environment"] = json!(null);
            spec["image"] = json!(image);
        });
        let refused = check(&spec.spec).unwrap_err();
        assert!(refused.starts_with("spec.image: ") && refused.contains("no image"), "{refused}");
    }
}

#[test]
fn a_cluster_that_runs_and_whose_spec_is_wrong_shrinks_and_ends_and_tells_what_there_is() {
    let mut world = World::whose_work_is_done();
    let before = world.after(1).status;
    let wrong = json!({ "annotations": { "k8s.v1.cni.cncf.io/networks": "a" } });
    world.cluster.spec.workers[0].pod = serde_json::from_value(wrong).unwrap();
    world.cluster.metadata.generation = Some(4);
    let refused = world.after(1);
    assert!(refused.changes.is_empty(), "{:?}", refused.changes);
    let ready = &refused.status.conditions[0];
    assert_eq!((refused.status.phase, &*ready.reason), (Phase::Degraded, "InvalidSpec"));
    assert!(before.workers.ready > 0 && refused.status.selector.is_some());
    assert_eq!(refused.status.workers, before.workers);
    assert_eq!(refused.status.replicas, before.replicas);
    let goes = |plan: &Plan| plan.changes.iter().any(|it| matches!(it.op, Op::Retire { .. }));
    assert!(after_looks(&mut world, 20, |_, plan| goes(plan)));
    // Nobody takes the place of what ends.
    world.observed.pods.clear();
    let pending = world.after(1);
    assert!(pending.changes.is_empty());
    assert!(after_looks(&mut world, 40, |world, _| world.is_gone));
}

/// Whether something comes about in so many looks, each as late as the one before has it.
fn after_looks(world: &mut World, looks: usize, is_so: impl Fn(&World, &Plan) -> bool) -> bool {
    let mut plan = world.step();
    (0..looks).any(|_| {
        let next = plan.next_look.expect("it looks again");
        plan = world.after(i64::try_from(next.as_secs()).unwrap() + 1);
        is_so(world, &plan)
    })
}

#[test]
fn nothing_is_said_of_next_pods_where_a_wrong_spec_has_none() {
    let mut world = World::whose_work_is_done();
    world.after(1);
    let pending = |plan: &Plan| {
        let mut all = plan.status.conditions.iter();
        all.find(|it| it.type_ == PENDING_CHANGE).map(|it| it.message.clone()).unwrap()
    };
    let other = json!({ "labels": { "team": "rates" } });
    world.cluster.spec.workers[0].pod = serde_json::from_value(other).unwrap();
    assert!(pending(&world.after(1)).ends_with("the next ones have these"));
    world.cluster.spec.workers[0].pod.annotations =
        [("k8s.v1.cni.cncf.io/networks".to_owned(), "a".to_owned())].into();
    let told = pending(&world.after(1));
    assert!(told.ends_with("none is made until the spec is right"), "{told}");
}

#[test]
fn what_a_scheduler_says_of_pods_that_are_not_its_own_does_nothing() {
    let mut world = World::whose_work_is_done();
    let demand = world.observed.demand.as_mut().unwrap();
    for name in ["other-123456-w-0", "risk-2c6ef0-scheduler", "risk-2c6ef0-v-0", "", "../x"] {
        demand.workers.insert(name.to_owned(), WorkerView::default());
        demand.retired.insert(name.to_owned(), Outcome::Released);
    }
    let pods = world.observed.pods.iter().map(|it| it.name.clone());
    let mine: BTreeSet<String> = pods.filter(|it| it.contains("-w-")).collect();
    for _ in 0..100 {
        let plan = world.after(1);
        for change in &plan.changes {
            let named: Vec<&String> = if let Op::Retire { workers, .. } = &change.op {
                workers.iter().collect()
            } else if let Op::DeletePod(pod) = &change.op {
                vec![&pod.name]
            } else {
                panic!("{change}")
            };
            assert!(named.into_iter().all(|it| mine.contains(it)), "{change}");
        }
    }
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
        let status = plan.stuck(&world.cluster, &refusal, &[], at(0));
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
    let scaling = wrong(|spec| spec["scaling"] = json!({ "targetSeconds": -5 }));
    assert!(scaling.starts_with("spec.scaling.targetSeconds: -5 must be from 1 to"), "{scaling}");
    let max = wrong(|spec| spec["workers"][0]["max"] = json!(10_001));
    assert!(max.contains("max 10001 from 1 to 10000"), "{max}");
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
