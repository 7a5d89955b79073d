mod attempts;
mod schedule;

use std::collections::BTreeMap;
use std::time::Duration;

use ebbtide_api::job::{Named, SCRIPT_MAX};
use ebbtide_api::status::Cause;
use ebbtide_api::{Cluster, ClusterJob, JobPhase, Phase, names};
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{JobObserved, JobOp, JobPlan, check, plan};
use crate::{PodPhase, PodSeen, SchedulerAddress, Site, Trouble};

const BEGIN: i64 = 1_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(BEGIN + seconds).unwrap()
}

fn site() -> Site {
    Site {
        operator: "operator:7443".to_owned(),
        scheduler_address: SchedulerAddress::Services,
        monitoring: Vec::new(),
        environments: BTreeMap::new(),
    }
}

fn cluster_spec() -> Value {
    let resources = json!({ "cpu": "1", "memory": "1Gi" });
    json!({ "image": "image@sha256:1", "workers": [{ "name": "w", "resources": resources, "max": 2 }] })
}

/// A job with a cluster of its own and these fields beside it.
fn job(fields: &Value) -> ClusterJob {
    let mut spec = json!({ "cluster": cluster_spec(), "script": "print(1)" });
    for (key, value) in fields.as_object().unwrap() {
        spec[key] = value.clone();
        if value.is_null() {
            spec.as_object_mut().unwrap().remove(key);
        }
    }
    let mut job = ClusterJob::new("nightly", serde_json::from_value(spec).unwrap());
    job.metadata.namespace = Some("rates".to_owned());
    job.metadata.uid = Some("job-uid".to_owned());
    job.metadata.generation = Some(1);
    job.metadata.creation_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
    job
}

/// What is done when an attempt finds no cluster.
fn begun(nth: u32) -> Vec<String> {
    let pod = names::attempt("nightly", nth);
    vec![
        format!("try pod {pod}: a cluster is to be made for it"),
        "create cluster nightly: the job has none".to_owned(),
    ]
}

/// A world of one job: what there is, and what the plans make of it.
struct World {
    job: ClusterJob,
    observed: JobObserved,
    now: i64,
}

impl World {
    fn new(fields: &Value) -> Self {
        Self { job: job(fields), observed: JobObserved::default(), now: 0 }
    }

    fn plan(&self) -> JobPlan {
        plan(&self.job, &self.observed, &site(), at(self.now))
    }

    /// Looks until nothing is due at once, as an operator does. Gives what was changed.
    fn step(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..5 {
            let JobPlan { changes, status, next_look } = self.plan();
            let is_new = self.job.status.as_ref() != Some(&status);
            self.job.status = Some(status);
            for change in changes {
                told.push(change.to_string());
                self.apply(change.op);
            }
            if next_look != Some(Duration::ZERO) && !is_new {
                break;
            }
        }
        told
    }

    fn apply(&mut self, op: JobOp) {
        match op {
            JobOp::CreateCluster(mut cluster) => {
                cluster.metadata.uid = Some(format!("cluster-{}", self.now));
                self.observed.cluster = Some(*cluster);
            }
            JobOp::TryPod(_) | JobOp::LeaveOut(_) => {}
            JobOp::DeleteCluster(_) => self.observed.cluster = None,
            JobOp::CreatePod(pod) => self.observed.pods.push(PodSeen {
                name: pod.name_any(),
                uid: format!("pod-{}", self.now),
                labels: pod.labels().clone(),
                ..PodSeen::default()
            }),
            JobOp::DeletePod(pod) => self.observed.pods.retain(|it| it.uid != pod.uid),
            JobOp::CreateJob(run) => self.observed.runs.push(*run),
            JobOp::DeleteJob(run) => self.observed.runs.retain(|it| it.name_any() != run.name),
        }
    }

    fn cluster_is(&mut self, phase: Phase) {
        let cluster = self.observed.cluster.as_mut().unwrap();
        let mut status = cluster.status.clone().unwrap_or_default();
        status.phase = phase;
        cluster.status = Some(status);
        let is_new = self.observed.schedulers.is_empty() && phase == Phase::Ready;
        let works = || PodSeen { phase: PodPhase::Running, ..PodSeen::default() };
        self.observed.schedulers.extend(is_new.then(works));
        self.observed.is_scheduler_heard |= is_new;
    }

    fn last_pod(&mut self) -> &mut PodSeen {
        self.observed.pods.last_mut().unwrap()
    }

    fn pod_ends(&mut self, exit_code: i32, trouble: Option<Trouble>) {
        let pod = self.last_pod();
        (pod.phase, pod.exit_code, pod.trouble) = (PodPhase::Ended, Some(exit_code), trouble);
    }

    fn fails(&mut self) {
        self.pod_ends(3, Trouble::ended("Error", 3, ""));
    }

    /// Up to the moment at which the first attempt runs.
    fn running(fields: &Value) -> Self {
        let mut world = Self::new(fields);
        world.step();
        world.cluster_is(Phase::Ready);
        world.step();
        world.last_pod().phase = PodPhase::Running;
        world.step();
        assert_eq!(world.phase(), JobPhase::Running, "{:?}", world.job.status);
        world
    }

    fn phase(&self) -> JobPhase {
        self.job.status.as_ref().unwrap().phase
    }

    fn message(&self) -> String {
        self.job.status.as_ref().unwrap().message.clone().unwrap_or_default()
    }
}

#[test]
fn a_job_has_its_cluster_then_its_pod_and_when_it_ends_its_cluster_goes() {
    let mut world = World::new(&json!({}));
    assert_eq!(world.step(), begun(0));
    assert_eq!(world.message(), "cluster nightly: it starts");
    world.cluster_is(Phase::Starting);
    assert_eq!(world.step(), Vec::<String>::new(), "no pod before the cluster answers");
    world.cluster_is(Phase::Ready);
    let pod = names::attempt("nightly", 0);
    assert_eq!(world.step(), [format!("create pod {pod}: its cluster is ready")]);
    world.last_pod().phase = PodPhase::Running;
    assert_eq!((world.step(), world.phase()), (vec![], JobPhase::Running));
    world.pod_ends(0, None);
    assert_eq!(world.step(), ["delete cluster nightly: the job has ended"]);
    assert_eq!(world.phase(), JobPhase::Succeeded);
    assert_eq!(world.observed.pods.len(), 1, "its pod stays, to be read");
    let conditions = world.job.status.clone().unwrap().conditions;
    let told: Vec<_> =
        conditions.iter().map(|it| (it.type_.as_str(), it.status.as_str())).collect();
    assert_eq!(told, [("Accepted", "True"), ("Complete", "True"), ("Failed", "False")]);
    world.now = 1_000_000;
    assert_eq!(world.step(), Vec::<String>::new(), "for ever");
}

#[test]
fn the_end_is_written_before_the_cluster_goes_and_a_failure_before_the_next_attempt() {
    let mut world = World::running(&json!({ "retries": { "exit": 1, "backoffSeconds": 0 } }));
    world.fails();
    let plan = world.plan();
    assert_eq!((plan.changes.len(), plan.status.failures.total), (0, 1));
    // An operator that crashes here counts it once.
    assert_eq!(world.plan().status.failures.total, 1);
    world.step();
    world.last_pod().phase = PodPhase::Running;
    world.step();
    world.pod_ends(0, None);
    let plan = world.plan();
    assert_eq!((plan.changes.len(), plan.status.phase), (0, JobPhase::Succeeded));
}

#[test]
fn what_goes_wrong_is_tried_again_as_often_as_its_kind_allows_and_later_each_time() {
    let mut world = World::running(&json!({ "retries": { "exit": 2, "backoffSeconds": 10 } }));
    for (nth, wait) in [(1, 10), (2, 20)] {
        world.fails();
        assert_eq!(world.step(), Vec::<String>::new());
        assert!(world.message().starts_with(&format!("attempt {nth} went wrong, another")));
        world.now += wait - 1;
        assert_eq!(world.step(), Vec::<String>::new());
        world.now += 1;
        let pod = names::attempt("nightly", nth);
        assert_eq!(world.step(), [format!("create pod {pod}: the attempt before went wrong")]);
        world.last_pod().phase = PodPhase::Running;
        world.step();
    }
    world.fails();
    assert_eq!(world.step(), ["delete cluster nightly: the job has ended"]);
    let status = world.job.status.clone().unwrap();
    assert_eq!((status.phase, status.exit_code), (JobPhase::Failed, Some(3)));
    assert!(status.message.unwrap().starts_with("attempt 3 went wrong: "));
    let failed = status.conditions.iter().find(|it| it.type_ == "Failed").unwrap();
    assert_eq!((failed.status.as_str(), failed.reason.as_str()), ("True", "Exit"));
}

#[test]
fn what_is_not_its_own_fault_counts_apart() {
    let evicted = |world: &mut World| {
        let pod = world.last_pod();
        (pod.phase, pod.exit_code) = (PodPhase::Ended, None);
        pod.trouble = Some(Trouble::failed("Evicted", "the node lacks memory"));
    };
    let deleted = |world: &mut World| drop(world.observed.pods.pop());
    let taken = |world: &mut World| {
        // The cluster goes, its program is ended, and says that by its exit code.
        world.observed.cluster = None;
        world.fails();
    };
    let another = |world: &mut World| world.last_pod().uid = "another".to_owned();
    for lost in [&evicted as &dyn Fn(&mut World), &deleted, &taken, &another] {
        let mut world = World::running(&json!({}));
        lost(&mut world);
        world.step();
        let failures = world.job.status.as_ref().unwrap().failures;
        assert_eq!((failures.total, failures.lost), (1, 1));
        assert_ne!(world.phase(), JobPhase::Failed, "three are allowed");
    }
    let mut world = World::running(&json!({}));
    world.pod_ends(137, Trouble::ended("OOMKilled", 137, ""));
    world.step();
    let status = world.job.status.clone().unwrap();
    assert_eq!((status.phase, status.failures.out_of_memory), (JobPhase::Failed, 1));
}

#[test]
fn a_program_whose_cluster_is_gone_ends_and_the_next_attempt_has_another_cluster() {
    let mut world = World::running(&json!({ "retries": { "backoffSeconds": 0 } }));
    world.observed.cluster = None;
    world.now = 5;
    let gone = names::attempt("nightly", 0);
    let told = world.step();
    let expected = format!("delete pod {gone}: the cluster that it computes on is gone");
    assert_eq!(told, [vec![expected], begun(1)].concat());
    world.cluster_is(Phase::Ready);
    let next = names::attempt("nightly", 1);
    assert_eq!(world.step(), [format!("create pod {next}: the attempt before went wrong")]);
    assert_eq!(world.last_pod().labels[names::CLUSTER_UID], "cluster-5");
}

#[test]
fn a_cluster_that_is_another_s_is_never_taken_nor_deleted() {
    let mut world = World::new(&json!({}));
    let mut foreign = Cluster::new("nightly", serde_json::from_value(cluster_spec()).unwrap());
    foreign.metadata.uid = Some("foreign".to_owned());
    world.observed.cluster = Some(foreign);
    world.cluster_is(Phase::Ready);
    assert_eq!(world.step(), Vec::<String>::new());
    assert!(world.message().contains("is not this job's"), "{}", world.message());
    world.job.spec.suspend = true;
    assert_eq!(world.step(), Vec::<String>::new());
}

#[test]
fn a_job_on_a_cluster_that_is_there_waits_for_it_and_leaves_it() {
    let fields = json!({ "cluster": null, "clusterRef": { "name": "shared" } });
    let mut world = World::new(&fields);
    assert_eq!(world.step(), Vec::<String>::new());
    assert_eq!(world.message(), "there is no cluster shared; it waits for one");
    let mut shared = Cluster::new("shared", serde_json::from_value(cluster_spec()).unwrap());
    shared.metadata.uid = Some("shared-uid".to_owned());
    world.observed.cluster = Some(shared);
    world.cluster_is(Phase::Ready);
    assert_eq!(world.step().len(), 1);
    world.last_pod().phase = PodPhase::Running;
    world.step();
    world.pod_ends(0, None);
    assert_eq!((world.step(), world.phase()), (vec![], JobPhase::Succeeded));
}

#[test]
fn a_job_that_takes_too_long_fails_with_all_that_it_has() {
    for is_running in [true, false] {
        let fields = json!({ "activeDeadlineSeconds": 60 });
        let mut world = if is_running { World::running(&fields) } else { World::new(&fields) };
        world.step();
        assert_eq!(world.plan().next_look, Some(Duration::from_mins(1)));
        world.now = 60;
        let told = world.step();
        assert_eq!(told.len(), if is_running { 2 } else { 1 }, "{told:?}");
        assert_eq!(world.phase(), JobPhase::Failed);
        let waited = ", and its program had not begun: cluster nightly: it starts";
        let told = "it took longer than spec.activeDeadlineSeconds, 60 s";
        assert_eq!(world.message(), format!("{told}{}", if is_running { "" } else { waited }));
    }
}

#[test]
fn a_deadline_says_that_nothing_began_only_where_nothing_began() {
    let late = |change: &dyn Fn(&mut World)| {
        let mut world =
            World::running(&json!({ "activeDeadlineSeconds": 60, "retries": { "exit": 1 } }));
        change(&mut world);
        world.now = 60;
        world.step();
        world.message()
    };
    let told = "it took longer than spec.activeDeadlineSeconds, 60 s";
    // It runs and is being deleted; it failed, and waits for its next attempt.
    assert_eq!(late(&|world| world.last_pod().is_deleting = true), told);
    let failed = |world: &mut World| {
        world.fails();
        world.step();
    };
    assert_eq!(late(&failed), told);
}

#[test]
fn what_bounds_its_cluster_bounds_a_job() {
    let mut world = World::running(&json!({ "activeDeadlineSeconds": 600 }));
    let max = json!({ "after": "2m" });
    let spec = world.job.spec.cluster.as_mut().unwrap();
    spec.lifetime.max = Some(serde_json::from_value(max).unwrap());
    assert_eq!(world.plan().next_look, Some(Duration::from_mins(2)));
    world.now = 120;
    assert_eq!(world.step().len(), 2, "pod and cluster");
    assert_eq!(world.message(), "it took longer than spec.cluster.lifetime.max.after, 120 s");
}

#[test]
fn a_job_that_ended_in_time_has_not_taken_too_long_though_nobody_looked() {
    let mut world = World::running(&json!({ "activeDeadlineSeconds": 60 }));
    world.pod_ends(0, None);
    world.now = 600;
    world.step();
    assert_eq!(world.phase(), JobPhase::Succeeded);
}

#[test]
fn a_suspended_job_has_nothing_and_begins_again_where_it_is_let_go_on() {
    let mut world = World::running(&json!({}));
    world.job.spec.suspend = true;
    assert_eq!(world.step().len(), 2, "pod and cluster");
    assert_eq!((world.phase(), world.observed.pods.len()), (JobPhase::Suspended, 0));
    world.job.spec.suspend = false;
    world.now = 100;
    assert_eq!(world.step(), begun(0));
    world.cluster_is(Phase::Ready);
    world.step();
    let status = world.job.status.clone().unwrap();
    assert_eq!(
        (status.failures.total, world.last_pod().name.clone()),
        (0, names::attempt("nightly", 0))
    );
    assert_eq!(status.started_at.unwrap().0, at(100));
}

#[test]
fn a_pod_on_its_way_out_when_a_job_goes_on_is_none_of_its_attempts() {
    let mut world = World::running(&json!({}));
    world.job.spec.suspend = true;
    let pods = world.observed.pods.clone();
    world.step();
    // It takes its time to end.
    world.observed.pods = pods;
    world.last_pod().is_deleting = true;
    world.job.spec.suspend = false;
    assert_eq!(world.step(), Vec::<String>::new(), "never two of a name");
    world.observed.pods.clear();
    world.step();
    world.cluster_is(Phase::Ready);
    world.step();
    let status = world.job.status.clone().unwrap();
    assert_eq!((status.failures.total, world.observed.pods.len()), (0, 1));
}

#[test]
fn a_job_goes_when_it_has_been_there_for_long_enough_and_not_before_its_cluster() {
    let mut world = World::running(&json!({ "ttlSecondsAfterFinished": 30 }));
    world.pod_ends(0, None);
    let cluster = world.observed.cluster.clone();
    world.step();
    assert_eq!(world.plan().next_look, Some(Duration::from_secs(30)));
    // It takes its time to go.
    world.observed.cluster = cluster;
    world.now = 30;
    let told = [
        "delete cluster nightly: the job has ended",
        "delete job nightly: it ended long enough ago",
    ];
    assert_eq!(world.step()[..2], told);
}

#[test]
fn a_job_of_whose_spec_nothing_can_be_made_any_more_comes_to_its_end_as_it_is() {
    let spoil = |world: &mut World| world.job.spec.cluster.as_mut().unwrap().workers[0].min = 7;
    let mut world = World::running(&json!({ "activeDeadlineSeconds": 60 }));
    spoil(&mut world);
    world.step();
    assert_eq!(world.phase(), JobPhase::Running);
    world.pod_ends(0, None);
    assert_eq!(world.step(), ["delete cluster nightly: the job has ended"]);
    assert_eq!(world.phase(), JobPhase::Succeeded);

    let mut world = World::running(&json!({ "activeDeadlineSeconds": 60 }));
    spoil(&mut world);
    world.now = 60;
    assert_eq!((world.step().len(), world.phase()), (2, JobPhase::Failed));

    let mut world = World::running(&json!({}));
    spoil(&mut world);
    world.job.spec.suspend = true;
    assert_eq!((world.step().len(), world.phase()), (2, JobPhase::Suspended));
}

#[test]
fn what_an_attempt_came_to_by_itself_counts_though_the_job_is_suspended_and_nothing_else_does() {
    let mut world = World::running(&json!({}));
    world.fails();
    world.job.spec.suspend = true;
    world.step();
    assert_eq!(world.phase(), JobPhase::Failed);
    // One that was stopped may still have said that all went well.
    for exit_code in [0, 143] {
        let mut world = World::running(&json!({}));
        let pods = world.observed.pods.clone();
        world.job.spec.suspend = true;
        world.step();
        world.observed.pods = pods;
        world.pod_ends(exit_code, Trouble::ended("Error", exit_code, ""));
        world.last_pod().is_deleting = true;
        assert_eq!((world.step(), world.phase()), (vec![], JobPhase::Suspended));
        world.job.spec.suspend = false;
        world.step();
        let known = world.job.status.clone().unwrap();
        assert_eq!((known.phase, known.failures.total), (JobPhase::Pending, 0));
    }
}

#[test]
fn a_program_on_a_cluster_of_others_has_nothing_that_they_may_not_have() {
    let source = json!({ "name": "vendor" });
    let key = json!({ "name": "vendor", "key": "k" });
    for (pod, field) in [
        (json!({ "env": [{ "name": "A", "valueFrom": { "secretKeyRef": key } }] }), "env"),
        (json!({ "envFrom": [{ "secretRef": source }] }), "envFrom"),
        (json!({ "volumes": [{ "name": "v", "secret": { "secretName": "a" } }] }), "volumes"),
        (json!({ "serviceAccountName": "rates-s3" }), "serviceAccountName"),
        (
            json!({ "initContainers": [{ "name": "i", "envFrom": [{ "secretRef": source }] }] }),
            "initContainers",
        ),
    ] {
        let on = json!({ "cluster": null, "clusterRef": { "name": "shared" }, "pod": pod });
        let told = check(&job(&on)).unwrap_err();
        assert!(told.starts_with(&format!("spec.pod.{field}: with clusterRef ")), "{told}");
        assert_eq!(check(&job(&json!({ "pod": pod }))), Ok(()));
    }
    let free = json!({ "env": [{ "name": "A", "value": "1" }],
        "volumes": [{ "name": "v", "emptyDir": {} }], "imagePullSecrets": [source] });
    let on = json!({ "cluster": null, "clusterRef": { "name": "shared" }, "pod": free });
    assert_eq!(check(&job(&on)), Ok(()));
}

#[test]
fn no_idle_time_ends_the_cluster_of_a_job() {
    let mut world = World::new(&json!({}));
    world.step();
    let mut cluster = world.observed.cluster.unwrap();
    cluster.metadata.uid = Some("uid".to_owned());
    assert!(super::is_made_for_job(&cluster));
    let demand = ebbtide_contract::view::Demand::default();
    let observed = crate::Observed { demand: Some(demand), ..crate::Observed::default() };
    let status = json!({ "idleSince": "1970-01-02T00:00:00Z", "phase": "Ready" });
    cluster.status = Some(serde_json::from_value(status).unwrap());
    let ops = |cluster: &Cluster| {
        let changes = crate::plan(cluster, &observed, &site(), at(0)).changes;
        changes.iter().any(|it| matches!(it.op, crate::Op::DeleteCluster { .. }))
    };
    assert!(!ops(&cluster));
    cluster.metadata.owner_references = None;
    assert!(ops(&cluster));
}

#[test]
fn a_spec_of_which_nothing_can_be_made_is_told_and_mended() {
    for (fields, told) in [
        (json!({ "clusterRef": { "name": "a" } }), "spec: give either cluster or clusterRef"),
        (
            json!({ "cluster": null, "clusterRef": { "name": "../x" } }),
            "spec.clusterRef.name: \"../x\" is no name",
        ),
        (json!({ "command": ["a"] }), "spec: give either command or script"),
        (json!({ "script": "é".repeat(SCRIPT_MAX - 1) }), "spec.script: it is 262142 bytes long"),
        (json!({ "pod": { "labels": { "ebbtide.dev/role": "x" } } }), "spec.pod.labels: "),
        (
            json!({ "pod": { "volumes": [{ "name": "ebbtide-script", "emptyDir": {} }] } }),
            "spec.pod.volumes: ebbtide-script is Ebbtide's own",
        ),
        (
            json!({ "schedule": { "cron": "* * * * *", "timeZone": "Mars/Base" } }),
            "spec.schedule.timeZone: ",
        ),
        (json!({ "schedule": { "cron": "0 18 * * 9" } }), "spec.schedule.cron: \"0 18 * * 9\": "),
        (
            json!({ "schedule": { "cron": "@daily" } }),
            "spec.schedule.cron: \"@daily\" has not five",
        ),
    ] {
        let mut world = World::new(&fields);
        assert_eq!(world.step(), Vec::<String>::new(), "{told}");
        assert!(world.message().starts_with(told), "{} is not {told}", world.message());
        let accepted = world.job.status.clone().unwrap().conditions.remove(0);
        assert_eq!((accepted.status.as_str(), accepted.reason.as_str()), ("False", "InvalidSpec"));
        world.job.spec = job(&json!({})).spec;
        assert_eq!(world.step(), begun(0), "mended");
    }
    let mut spec = job(&json!({}));
    spec.spec.cluster.as_mut().unwrap().workers[0].min = 7;
    let told = "spec.cluster.workers[w]: min 7 is greater than max 2";
    assert_eq!(check(&spec), Err(told.to_owned()));
}

#[test]
fn the_pod_of_a_job_may_do_as_little_as_any_and_has_a_client_s_credentials() {
    let mut world =
        World::new(&json!({ "args": ["--seed", "7", "pa$$word", "$(EBBTIDE_CLUSTER)"] }));
    world.step();
    world.cluster_is(Phase::Ready);
    let changes = world.plan().changes;
    insta::assert_yaml_snapshot!("pod_of_a_job", changes);
}

#[test]
fn a_program_that_knows_only_dask_is_told_where_its_scheduler_is() {
    let told = |engine: &str| {
        let mut cluster = cluster_spec();
        cluster["engine"] = json!(engine);
        let mut world = World::new(&json!({ "cluster": cluster }));
        world.step();
        world.cluster_is(Phase::Ready);
        let changes = world.plan().changes.into_iter();
        let mut pods = changes
            .filter_map(|it| if let JobOp::CreatePod(pod) = it.op { pod.spec } else { None });
        let env = pods.next().unwrap().containers.remove(0).env.unwrap();
        env.into_iter().find(|it| it.name == "DASK_SCHEDULER_ADDRESS").and_then(|it| it.value)
    };
    let address = format!("ebbtide://{}.rates.svc:8786", names::scheduler("nightly"));
    assert_eq!([told("dask"), told("ebbtide")], [Some(address), None]);
}

#[test]
fn what_a_job_waits_for_is_said_with_the_words_of_its_pod_or_cluster() {
    let mut world = World::new(&json!({}));
    world.step();
    let cluster = world.observed.cluster.as_mut().unwrap();
    let status = json!({ "phase": "Starting", "message": "nightly-w-0: Unschedulable: 0/2 nodes" });
    cluster.status = Some(serde_json::from_value(status).unwrap());
    world.step();
    assert_eq!(world.message(), "cluster nightly: nightly-w-0: Unschedulable: 0/2 nodes");
    world.cluster_is(Phase::Ready);
    world.step();
    world.last_pod().trouble =
        Some(Trouble { cause: Cause::Image, message: "ErrImagePull: no".to_owned() });
    world.step();
    assert_eq!(world.message(), format!("{}: ErrImagePull: no", names::attempt("nightly", 0)));
    let known = world.job.status.clone().unwrap();
    let pod = Named { name: names::attempt("nightly", 0), uid: "pod-0".to_owned() };
    assert_eq!(known.pod, Some(pod));
}
