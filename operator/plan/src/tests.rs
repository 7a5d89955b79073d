mod access;
mod age;
mod groups;
mod refusals;
mod renewal;
mod troubles;
mod unheard;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use ebbtide_api::status::Cause;
use ebbtide_api::{Cluster, Phase, names};
use ebbtide_contract::demand::Outcome;
use ebbtide_contract::view::{Queue, WorkerView};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::{
    ChildSeen, Observed, Op, Plan, PodPhase, PodSeen, SchedulerAddress, Site, Trouble, plan,
    says_policy, says_service,
};

const KEY: &str = "8c2aeba76bf85828ecd6dd46a2ca218c46ad1b13c9b828b278b557b39c265910";

pub(crate) fn cluster(change: impl FnOnce(&mut Value)) -> Cluster {
    let mut spec = json!({
        "environment": { "python": "3.11", "packages": ["pandas", "numpy"] },
        "workers": [{ "name": "w", "resources": { "cpu": "2", "memory": "4Gi" }, "max": 4 }],
    });
    change(&mut spec);
    let mut cluster = Cluster::new("risk", serde_json::from_value(spec).unwrap());
    cluster.metadata.namespace = Some("rates".to_owned());
    cluster.metadata.uid = Some("u-1".to_owned());
    cluster.metadata.generation = Some(3);
    cluster
}

fn site() -> Site {
    Site {
        operator: "ebbtide-operator.ebbtide.svc:7443".to_owned(),
        scheduler_address: SchedulerAddress::Services,
        monitoring: Vec::new(),
        environments: BTreeMap::from([(KEY.to_owned(), Ok("registry/env@sha256:1".to_owned()))]),
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

/// A namespace in which whatever is planned happens at once.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) observed: Observed,
    seconds: i64,
    told: String,
    is_gone: bool,
    uids: u32,
}

impl World {
    pub(crate) fn new(cluster: Cluster) -> Self {
        let observed = Observed::default();
        Self { cluster, observed, seconds: 0, told: String::new(), is_gone: false, uids: 0 }
    }

    pub(crate) fn step(&mut self) -> Plan {
        let plan = plan(&self.cluster, &self.observed, &site(), at(self.seconds));
        for change in &plan.changes {
            writeln!(self.told, "{:>5}s {change}", self.seconds).unwrap();
            self.carry_out(&change.op);
        }
        let workers = plan.status.workers;
        writeln!(self.told, "{:>5}s = {:?} {workers:?}", self.seconds, plan.status.phase).unwrap();
        self.cluster.status = Some(plan.status.clone());
        plan
    }

    fn carry_out(&mut self, op: &Op) {
        match op {
            Op::CreateSecret(secret) | Op::RenewSecret(secret) => {
                self.observed.secrets.insert(secret.name.clone());
            }
            Op::CreateNetworkPolicy(policy) | Op::RestoreNetworkPolicy(policy) => {
                let says = policy.spec.as_ref().map(says_policy);
                let seen = ChildSeen { uid: Some(policy.name_any()), says };
                self.observed.network_policies.insert(policy.name_any(), seen);
            }
            Op::DeleteNetworkPolicy(policy) => {
                assert_eq!(policy.name, policy.uid);
                self.observed.network_policies.remove(&policy.name);
            }
            Op::CreateService(service) | Op::RestoreService(service) => {
                let says = service.spec.as_ref().map(says_service);
                let seen = ChildSeen { uid: Some(service.name_any()), says };
                self.observed.services.insert(service.name_any(), seen);
            }
            Op::TryPod(_) => {}
            Op::CreatePod(pod) => {
                self.uids += 1;
                self.observed.pods.push(PodSeen {
                    name: pod.name_any(),
                    uid: self.uids.to_string(),
                    labels: pod.labels().clone(),
                    made_from: pod.annotations().get(names::MADE_FROM).cloned(),
                    image: pod.annotations().get(names::IMAGE).cloned(),
                    ..PodSeen::default()
                });
            }
            Op::DeletePod(gone) => {
                self.observed.pods.retain(|pod| pod.uid != gone.uid);
                if let Some(demand) = &mut self.observed.demand {
                    demand.workers.remove(&gone.name);
                    demand.retired.remove(&gone.name);
                }
            }
            Op::Retire { workers, .. } => {
                let demand = self.observed.demand.as_mut().unwrap();
                let released = workers.iter().map(|name| (name.clone(), Outcome::Released));
                demand.retired.extend(released);
            }
            Op::DeleteCluster { .. } => self.is_gone = true,
        }
    }

    /// Everything that was created runs, and workers register.
    pub(crate) fn run(&mut self) {
        let demand = self.observed.demand.get_or_insert_default();
        for pod in &mut self.observed.pods {
            pod.phase = PodPhase::Running;
            if pod.labels[names::ROLE] == "worker" {
                demand.workers.insert(pod.name.clone(), WorkerView::default());
            }
        }
    }

    pub(crate) fn queue(&mut self, tasks: u64, core_seconds: f64) {
        self.queue_for(&["w"], tasks, core_seconds);
    }

    fn queue_for(&mut self, groups: &[&str], tasks: u64, core_seconds: f64) {
        let queues = &mut self.observed.demand.as_mut().unwrap().queues;
        let fits: BTreeSet<String> = groups.iter().map(|&it| it.to_owned()).collect();
        if tasks == 0 {
            queues.remove(&fits);
        } else {
            queues.insert(fits, Queue { tasks, core_seconds, running: 0 });
        }
    }

    fn after(&mut self, seconds: i64) -> Plan {
        self.seconds += seconds;
        self.step()
    }

    /// One in which work has just brought workers, and is done.
    fn whose_work_is_done() -> Self {
        let mut world = Self::new(cluster(|_| ()));
        world.step();
        world.run();
        world.after(1);
        world.queue(1000, 55.0);
        world.after(1);
        world.run();
        world.after(1);
        world.queue(0, 0.0);
        world
    }
}

#[test]
fn a_cluster_rises_with_its_queue_and_ebbs_when_it_is_done() {
    let mut world = World::whose_work_is_done();
    world.after(60);
    world.after(29);
    world.after(1);
    world.after(1);
    world.after(1139);
    assert!(!world.is_gone);
    world.after(30);
    assert!(world.is_gone);
    insta::assert_snapshot!(world.told);
}

#[test]
fn everything_a_new_cluster_gets() {
    let plan = plan(
        &cluster(|spec| spec["workers"][0]["min"] = 1.into()),
        &Observed::default(),
        &site(),
        at(0),
    );
    insta::assert_yaml_snapshot!(plan);
}

#[test]
fn no_pod_comes_before_its_secrets_and_policy() {
    let plan = plan(
        &cluster(|spec| spec["workers"][0]["min"] = 2.into()),
        &Observed::default(),
        &site(),
        at(0),
    );
    let first_pod = plan.changes.iter().position(|it| matches!(it.op, Op::CreatePod(_))).unwrap();
    let later = &plan.changes[first_pod..];
    assert!(later.iter().all(|it| matches!(it.op, Op::CreatePod(_))));
    assert_eq!((first_pod, later.len()), (6, 3));
}

#[test]
fn a_cluster_as_it_should_be_is_left_alone() {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 2.into()));
    world.step();
    world.run();
    let plan = world.after(1);
    assert!(plan.changes.is_empty(), "{:?}", plan.changes);
    assert_eq!(plan.status.phase, Phase::Ready);
    let again = world.after(0);
    assert_eq!(again.status, plan.status);
}

#[test]
fn a_package_list_that_is_not_packed_names_its_key_and_the_remedy() {
    let unknown = cluster(|spec| spec["environment"]["packages"] = json!(["zarr"]));
    let plan = plan(&unknown, &Observed::default(), &site(), at(0));
    assert!(plan.changes.is_empty());
    insta::assert_snapshot!(plan.status.message.unwrap());
}

#[test]
fn a_requirement_that_cannot_be_read_creates_nothing() {
    let wrong = cluster(|spec| spec["environment"]["packages"] = json!(["numpy=>1"]));
    let plan = plan(&wrong, &Observed::default(), &site(), at(0));
    assert!(plan.changes.is_empty() && plan.status.phase == Phase::Degraded);
    assert!(plan.status.message.unwrap().contains("\"numpy=>1\""));
}

fn group(name: &str, max: i32) -> Value {
    json!({ "name": name, "resources": { "cpu": 2, "memory": "4Gi" }, "max": max })
}

#[test]
fn a_spec_that_no_server_checked_is_refused_in_words() {
    for (change, words) in [
        (json!([]), "expected 1 to 16 groups, not 0"),
        (json!([group("a", 1), group("b", 1), group("a", 2)]), "two groups have the name \"a\""),
        (
            json!([{ "name": "w", "resources": { "cpu": 1, "memory": "1Gi" }, "min": 3, "max": 2 }]),
            "min 3 is greater than max 2",
        ),
    ] {
        let wrong = cluster(|spec| spec["workers"] = change);
        let plan = plan(&wrong, &Observed::default(), &site(), at(0));
        let message = plan.status.message.unwrap();
        assert!(plan.changes.is_empty() && message.contains(words), "{message}");
    }
}

#[test]
fn silence_is_neither_idleness_nor_a_reason_to_shrink() {
    let mut world = World::new(cluster(|_| ()));
    world.step();
    world.run();
    world.queue(1000, 55.0);
    world.after(1);
    world.observed.demand = None;
    let plan = world.after(100_000);
    assert!(plan.changes.is_empty(), "{:?}", plan.changes);
    assert_eq!(plan.status.idle_since, None);
}

#[test]
fn a_worker_that_holds_something_is_never_deleted_before_it_is_released() {
    let mut world = World::new(cluster(|_| ()));
    world.step();
    world.run();
    world.queue(1000, 15.0);
    world.after(1);
    world.run();
    world.queue(0, 0.0);
    world.after(1);
    world.seconds += 40;
    let plan = plan(&world.cluster, &world.observed, &site(), at(world.seconds));
    assert!(matches!(&plan.changes[..], [it] if matches!(it.op, Op::Retire { .. })), "{plan:?}");
}

#[test]
fn a_pod_that_ended_gives_its_name_free_only_after_a_pause() {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 1.into()));
    world.step();
    world.run();
    let ended = at(1);
    let worker = world.observed.pods.iter_mut().find(|pod| pod.labels[names::ROLE] == "worker");
    let worker = worker.unwrap();
    (worker.phase, worker.ended_at) = (PodPhase::Ended, Some(ended));
    let plan = world.after(5);
    let whys: Vec<&str> = plan.changes.iter().map(|it| it.why).collect();
    assert_eq!(whys, ["fewer workers than are asked for"], "another index comes at once");
    assert_eq!(plan.next_look.map(|it| it.as_secs()), Some(6));
    let plan = world.after(6);
    assert_eq!(plan.changes[0].why, "it has ended");
}

#[test]
fn nobody_takes_the_place_of_a_pod_that_cannot_live_until_its_pause_is_over() {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 1.into()));
    world.step();
    world.run();
    let worker = world.observed.pods.iter_mut().find(|pod| pod.labels[names::ROLE] == "worker");
    let worker = worker.unwrap();
    (worker.phase, worker.created_at, worker.ended_at) =
        (PodPhase::Ended, Some(at(0)), Some(at(2)));
    let plan = world.after(3);
    assert!(plan.changes.is_empty(), "{plan:?}");
    assert_eq!(plan.next_look.map(|it| it.as_secs()), Some(9));
    let whys = |plan: &Plan| plan.changes.iter().map(|it| it.why).collect::<Vec<_>>();
    assert_eq!(whys(&world.after(9)), ["it has ended"]);
    assert_eq!(whys(&world.after(0)), ["fewer workers than are asked for"]);
}

#[test]
fn a_pod_that_is_not_ours_is_not_counted_and_not_touched() {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 1.into()));
    let labels = [(names::INDEX, "0"), (names::ROLE, "worker")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let stranger =
        PodSeen { name: "other".to_owned(), labels: labels.into(), ..PodSeen::default() };
    world.observed.pods.push(stranger);
    let plan = world.step();
    assert_eq!(plan.changes.iter().filter(|it| matches!(it.op, Op::CreatePod(_))).count(), 2);
    assert!(!plan.changes.iter().any(|it| matches!(it.op, Op::DeletePod(_))));
}

#[test]
fn workers_of_a_group_that_was_renamed_make_way_for_its_new_ones() {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 1.into()));
    world.step();
    world.run();
    world.cluster.spec.workers[0].name = "other".to_owned();
    let plan = world.after(1);
    let whys: Vec<&str> = plan.changes.iter().map(|it| it.why).collect();
    let retiring: Vec<(String, i32)> =
        plan.status.groups.iter().map(|it| (it.name.clone(), it.workers.retiring)).collect();
    assert_eq!(retiring, [("other".to_owned(), 0), ("w".to_owned(), 1)]);
    assert!(whys.contains(&"the spec has no such worker group"), "{whys:?}");
    assert!(whys.contains(&"fewer workers than are asked for"), "{whys:?}");
}

#[test]
fn so_many_pods_are_made_at_once_and_the_rest_after_them() {
    let mut world = World::new(cluster(|spec| {
        (spec["workers"][0]["min"], spec["workers"][0]["max"]) = (100.into(), 100.into());
    }));
    let plan = world.step();
    assert_eq!(world.observed.pods.len(), 65);
    assert_eq!(plan.next_look.map(|it| it.as_secs()), Some(1));
    world.after(1);
    assert_eq!(world.observed.pods.len(), 101);
}

#[test]
fn the_least_number_of_workers_can_be_scaled_from_outside() {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 1.into()));
    world.cluster.spec.min_workers = 3;
    world.step();
    world.run();
    let status = world.after(1).status;
    assert_eq!((status.workers.desired, status.replicas, status.phase), (3, 3, Phase::Ready));
    let selector = status.selector.unwrap();
    assert_eq!(selector, "ebbtide.dev/cluster-uid=u-1,ebbtide.dev/group=w");
    world.cluster.spec.min_workers = 5;
    let status = world.after(1).status;
    assert!(status.message.is_some_and(|it| it.starts_with("spec.minWorkers: 5 must be")));
}

#[test]
fn a_pod_that_waits_for_a_node_is_no_failure_and_is_told() {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 1.into()));
    world.step();
    for pod in &mut world.observed.pods {
        pod.trouble = Some(Trouble::unschedulable("no node has room"));
    }
    let status = world.after(1).status;
    assert_eq!(status.phase, Phase::Starting);
    assert!(status.message.is_some_and(|it| it.ends_with("Unschedulable: no node has room")));
    assert_eq!(status.conditions[0].reason, "Unschedulable");
    let causes = &status.groups[0].causes;
    assert_eq!((causes[0].cause, causes[0].pods), (Cause::Unschedulable, 1));
}

#[test]
fn the_queue_asks_for_as_many_workers_as_finish_it_in_time() {
    let many = [(0.1, 1), (20.0, 1), (20.1, 2), (79.0, 4), (1e18, 4)];
    // A task runs on one worker, however long it takes.
    let few = [(1, 1e18, 1), (2, 1e18, 2)];
    for (tasks, core_seconds, workers) in
        many.map(|(length, it)| (9, length, it)).into_iter().chain(few)
    {
        let mut world = World::new(cluster(|_| ()));
        world.step();
        world.run();
        world.queue(tasks, core_seconds);
        let desired = world.after(1).status.workers.desired;
        assert_eq!(desired, workers, "{tasks} tasks of {core_seconds} core-seconds");
    }
}

#[test]
fn a_cluster_that_is_going_gets_nothing_new() {
    let mut going = cluster(|_| ());
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0));
    going.metadata.deletion_timestamp = Some(now);
    let plan = plan(&going, &Observed::default(), &site(), at(1));
    assert!(plan.changes.is_empty() && plan.status.phase == Phase::Deleting);
    let ready = &plan.status.conditions[0];
    assert_eq!([&*ready.type_, &*ready.status, &*ready.reason], ["Ready", "False", "Deleting"]);
}

#[test]
fn a_clock_that_goes_back_ends_nothing() {
    let mut world = World::new(cluster(|_| ()));
    world.step();
    world.run();
    world.after(1);
    let before = at(0).checked_sub(SignedDuration::from_hours(9)).unwrap();
    let plan = plan(&world.cluster, &world.observed, &site(), before);
    assert!(plan.changes.is_empty(), "{:?}", plan.changes);
}

/// A world without work for long, with four workers of which the first holds a chunk.
fn idle_with_a_holder() -> World {
    let mut world = World::new(cluster(|_| ()));
    world.step();
    world.run();
    world.queue(1000, 79.0);
    world.after(1);
    world.run();
    world.queue(0, 0.0);
    let demand = world.observed.demand.as_mut().unwrap();
    for (name, worker) in &mut demand.workers {
        worker.held_bytes = u64::from(name.ends_with("-w-0"));
    }
    world.after(1);
    world.seconds += 40;
    world
}

fn retired(plan: &Plan) -> Vec<&str> {
    let asked = plan.changes.iter().filter_map(|it| {
        if let Op::Retire { workers, .. } = &it.op { Some(workers) } else { None }
    });
    asked.flatten().map(|name| name.rsplit_once('-').unwrap().1).collect()
}

#[test]
fn idle_workers_that_hold_chunks_stay_and_the_others_are_asked_once() {
    let mut world = idle_with_a_holder();
    let first = plan(&world.cluster, &world.observed, &site(), at(world.seconds));
    assert_eq!(retired(&first), ["3", "2", "1"]);
    let demand = world.observed.demand.as_mut().unwrap();
    demand.asked = demand.workers.keys().filter(|it| !it.ends_with("-w-0")).cloned().collect();
    let again = plan(&world.cluster, &world.observed, &site(), at(world.seconds));
    assert!(again.changes.is_empty(), "{:?}", again.changes);
    assert_eq!(again.status.workers.retiring, 3);
}

#[test]
fn more_workers_than_max_are_asked_whatever_they_hold() {
    let mut world = idle_with_a_holder();
    for worker in world.observed.demand.as_mut().unwrap().workers.values_mut() {
        worker.held_bytes = 1;
    }
    let spec = &mut world.cluster.spec.workers[0];
    (spec.min, spec.max) = (1, 3);
    let plan = plan(&world.cluster, &world.observed, &site(), at(world.seconds));
    assert_eq!(retired(&plan), ["3"]);
    assert_eq!(plan.changes[0].why, "there are more than max");
}

#[test]
fn work_that_nobody_looked_at_puts_the_end_off() {
    let mut world = World::new(cluster(|_| ()));
    world.step();
    world.run();
    world.after(1);
    world.seconds += 20 * 60;
    world.observed.busy_ago = Some(std::time::Duration::from_secs(3));
    let kept = plan(&world.cluster, &world.observed, &site(), at(world.seconds));
    assert!(kept.changes.is_empty(), "{:?}", kept.changes);
    world.observed.busy_ago = None;
    let over = plan(&world.cluster, &world.observed, &site(), at(world.seconds));
    assert!(matches!(over.changes[..], [crate::Change { op: Op::DeleteCluster { .. }, .. }]));
    assert_eq!(over.next_look, None, "its deletion is news");
}

#[test]
fn trouble_of_one_worker_is_told_and_degrades_only_a_cluster_that_lacks_workers() {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 1.into()));
    world.step();
    world.run();
    world.queue(1000, 39.0);
    world.after(1);
    let last = world.observed.pods.last_mut().unwrap();
    last.trouble = Trouble::ended("OOMKilled", 137, "");
    let status = world.after(1).status;
    assert_eq!(status.phase, Phase::Ready);
    assert!(status.message.is_some_and(|it| it.ends_with("OOMKilled: exit code 137")));
    world.observed.demand.as_mut().unwrap().workers.clear();
    let status = world.after(1).status;
    assert_eq!(status.phase, Phase::Degraded);
}

#[test]
fn a_message_of_any_length_fits_a_status() {
    let packages: Vec<String> = (0..500).map(|nth| format!("package-{nth}")).collect();
    let unknown = cluster(|spec| spec["environment"]["packages"] = json!(packages));
    let status = plan(&unknown, &Observed::default(), &site(), at(0)).status;
    let (message, key) = (status.message.unwrap(), status.environment_key.unwrap());
    assert!(message.chars().count() == ebbtide_api::MESSAGE_MAX && message.contains(&key));
    assert_eq!(status.conditions[0].message, message);
}

#[test]
fn what_did_not_start_is_made_again_when_its_settings_change_and_what_runs_stays() {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 2.into()));
    world.step();
    let deleted = |plan: &Plan| -> Vec<String> {
        let pods = plan.changes.iter().filter_map(|change| {
            let Op::DeletePod(pod) = &change.op else { return None };
            Some(pod.name.clone())
        });
        pods.collect()
    };
    let smaller = |memory: &str| json!({ "cpu": "1", "memory": memory });
    let set = |world: &mut World, resources: Value| {
        world.cluster.spec.workers[0].resources = serde_json::from_value(resources).unwrap();
    };
    // One runs, though nobody told the operator yet that it is registered; one waits for a node.
    world.observed.pods[0].phase = PodPhase::Running;
    world.observed.pods[1].phase = PodPhase::Running;
    let waiting = world.observed.pods[2].name.clone();
    set(&mut world, smaller("1Gi"));
    assert_eq!(deleted(&world.after(1)), [waiting]);
    world.after(1);
    world.run();
    set(&mut world, smaller("2Gi"));
    world.cluster.spec.scheduler.resources = serde_json::from_value(smaller("2Gi")).unwrap();
    let plan = world.after(1);
    assert!(plan.changes.is_empty());
    let condition = &plan.status.conditions[1];
    assert_eq!((&*condition.type_, &*condition.status), ("PendingChange", "True"));
    assert!(condition.message.starts_with("3 pods were made from other settings"));
    // A scheduler that starts again and again in the same pod counts as running.
    world.observed.demand = None;
    let leader = world.observed.pods[0].name.clone();
    world.observed.pods[0].trouble = Trouble::waiting("CrashLoopBackOff", "back-off");
    assert_eq!(deleted(&world.after(1)), [leader]);
    world.after(1);
    world.run();
    // A pod that an earlier operator made says nothing of it.
    world.observed.pods[0].made_from = None;
    world.observed.pods[0].phase = PodPhase::Pending;
    world.observed.demand = None;
    assert!(world.after(1).changes.is_empty());
}

#[test]
fn a_pod_with_old_settings_that_is_going_is_a_pending_change_until_it_is_gone() {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 1.into()));
    world.step();
    world.run();
    world.cluster.spec.workers[0].resources = serde_json::from_value(json!({
        "cpu": 1, "memory": "1Gi",
    }))
    .unwrap();
    let pending = |plan: Plan| plan.status.conditions[1].status.clone();
    world.observed.pods[1].is_deleting = true;
    assert_eq!(pending(world.after(1)), "True");
    world.observed.pods.remove(1);
    assert_eq!(pending(world.after(1)), "False");
}

mod releases;
