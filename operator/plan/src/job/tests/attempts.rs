//! What is told of attempts.

use std::time::Duration;

use ebbtide_api::job::Named;
use ebbtide_api::status::{Cause, CauseCount, GroupStatus};
use ebbtide_api::{Cluster, JobPhase, Phase};
use serde_json::json;

use super::{JobObserved, World, at, cluster_spec};
use crate::PodPhase;
use crate::job::news;

#[test]
fn a_program_that_ended_before_anybody_saw_it_is_known_by_its_pod() {
    let mut world = World::new(&json!({}));
    world.step();
    world.cluster_is(Phase::Ready);
    world.step();
    world.job.status.as_mut().unwrap().pod = None;
    world.pod_ends(0, None);
    let status = world.plan().status;
    let seen = status.pod.map(|it| (it.name, it.uid));
    let pod = world.last_pod();
    assert_eq!(
        (status.phase, seen),
        (JobPhase::Succeeded, Some((pod.name.clone(), pod.uid.clone())))
    );
}

#[test]
fn another_attempt_tells_why_it_is_due_and_then_what_does_not_come_by_itself() {
    let on =
        json!({ "cluster": null, "clusterRef": { "name": "shared" }, "retries": { "exit": 2 } });
    let mut world = World::new(&on);
    let mut shared = Cluster::new("shared", serde_json::from_value(cluster_spec()).unwrap());
    shared.metadata.uid = Some("c-1".to_owned());
    world.observed.cluster = Some(shared);
    world.cluster_is(Phase::Ready);
    world.step();
    world.fails();
    world.step();
    assert!(world.message().starts_with("attempt 1 went wrong"), "{}", world.message());
    world.observed.cluster = None;
    world.now += 600;
    world.step();
    assert!(world.message().starts_with("there is no cluster shared"), "{}", world.message());
}

#[test]
fn what_does_not_pass_by_itself_is_told_though_an_attempt_went_wrong() {
    let mut world = World::running(&json!({ "retries": { "exit": 3, "backoffSeconds": 600 } }));
    world.fails();
    world.step();
    assert!(world.message().starts_with("attempt 1 went wrong"), "{}", world.message());
    world.cluster_is(Phase::Starting);
    world.step();
    assert!(world.message().starts_with("attempt 1 went wrong"), "{}", world.message());
    for _ in 0..2 {
        world.cluster_is(Phase::Degraded);
        world.step();
        let told = world.message();
        assert!(told.starts_with("attempt 1 went wrong"), "{told}");
        assert!(told.ends_with(": exit code 3; cluster nightly: it starts"), "{told}");
    }
    world.cluster_is(Phase::Ready);
    world.step();
    assert!(world.message().ends_with(": exit code 3"), "{}", world.message());
    world.observed.cluster.as_mut().unwrap().metadata.owner_references = None;
    world.step();
    assert!(
        world.message().contains(": exit code 3; cluster nightly is there and is not this job's")
    );
}

#[test]
fn on_a_cluster_that_cannot_be_read_a_job_goes_on_and_ends_in_time() {
    let unread = || {
        let mut world = World::running(&json!({ "activeDeadlineSeconds": 60 }));
        (world.observed.cluster, world.observed.is_cluster_unread) = (None, true);
        world
    };
    let mut world = unread();
    assert_eq!(world.step(), Vec::<String>::new());
    assert!(world.message().starts_with("cluster nightly cannot be read"), "{}", world.message());
    assert_eq!(world.plan().next_look, Some(Duration::from_mins(1)));
    world.now += 60;
    let pod = world.last_pod().name.clone();
    assert_eq!(world.step(), [format!("delete pod {pod}: the job has ended")]);
    assert_eq!(world.phase(), JobPhase::Failed);
    let mut world = unread();
    world.pod_ends(0, None);
    world.step();
    assert_eq!(world.phase(), JobPhase::Succeeded);
    // Whose fault it was is told when it can be.
    let mut world = unread();
    world.fails();
    world.step();
    assert_eq!((world.phase(), world.plan().status.failures.total), (JobPhase::Running, 0));
    world.now += 60;
    world.step();
    assert_eq!((world.phase(), world.plan().status.failures.total), (JobPhase::Failed, 0));
    let mut world = unread();
    let own = Named { name: "nightly".to_owned(), uid: "u".to_owned() };
    world.observed.unread_cluster = Some(own);
    world.job.spec.suspend = true;
    let told = world.plan().changes.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(told.last().unwrap(), "delete cluster nightly: the job is suspended");
    world.step();
    assert_eq!(world.phase(), JobPhase::Suspended);
}

#[test]
fn a_program_whose_scheduler_went_is_not_at_fault() {
    type Fate = fn(&mut JobObserved);
    let fates: [Fate; 6] = [
        |it| it.schedulers.clear(),
        |it| it.schedulers[0].is_deleting = true,
        |it| it.schedulers[0].phase = PodPhase::Ended,
        // Another one is there already, or the same one anew.
        |it| it.schedulers[0].created_at = Some(at(1)),
        |it| it.schedulers[0].restarted_at = Some(at(1)),
        // Its node is gone, and nobody has noticed but who listens.
        |it| it.is_scheduler_heard = false,
    ];
    for (nth, fate) in fates.into_iter().enumerate() {
        let mut world = World::running(&json!({}));
        world.last_pod().created_at = Some(at(0));
        fate(&mut world.observed);
        world.fails();
        world.step();
        let failures = world.job.status.as_ref().unwrap().failures;
        assert_eq!((failures.lost, failures.exit), (1, 0), "{nth}: {}", world.message());
        let told = world.message();
        assert!(told.contains("the scheduler that it computes with is gone"), "{told}");
    }
    let mut world = World::running(&json!({}));
    world.fails();
    world.step();
    assert_eq!(world.phase(), JobPhase::Failed, "its scheduler works: it is its own fault");
}

#[test]
fn a_job_says_what_its_pod_or_its_cluster_lacks() {
    let mut world = World::new(&json!({}));
    world.step();
    world.cluster_is(Phase::Ready);
    world.step();
    let pod = world.last_pod();
    pod.created_at = Some(at(0));
    let name = pod.name.clone();
    assert_eq!(world.message(), format!("{name} starts"));
    assert_eq!(world.plan().next_look, Some(Duration::from_mins(1)));
    world.now = 60;
    world.step();
    assert!(world.message().starts_with(&format!("{name} has not begun: its image")));
    world.last_pod().phase = PodPhase::Running;
    let status = world.observed.cluster.as_mut().unwrap().status.as_mut().unwrap();
    status.message = Some("w-0: Unschedulable: 0/12 nodes".to_owned());
    let cause = CauseCount {
        cause: Cause::Unschedulable,
        pods: 1,
        message: "Unschedulable: 0/12 nodes".to_owned(),
    };
    status.groups =
        vec![GroupStatus { name: "w".to_owned(), causes: vec![cause], ..GroupStatus::default() }];
    world.step();
    assert_eq!(world.message(), "cluster nightly: w: Unschedulable: 0/12 nodes");
    assert_eq!(world.phase(), JobPhase::Running);
    world.cluster_is(Phase::Starting);
    world.step();
    assert_eq!(world.message(), "cluster nightly: w-0: Unschedulable: 0/12 nodes");
}

#[test]
fn what_goes_wrong_before_the_end_is_news_once() {
    let mut world = World::running(&json!({ "retries": { "exit": 1, "backoffSeconds": 60 } }));
    let before = world.job.status.clone();
    assert_eq!(news(before.as_ref(), before.as_ref().unwrap()), []);
    world.fails();
    let told = |before: Option<&_>, status: &_| -> Vec<String> {
        let told = news(before, status);
        told.iter().map(|it| format!("{} of {}: {}", it.reason, it.field, it.note)).collect()
    };
    let plan = world.plan();
    assert_eq!(
        told(before.as_ref(), &plan.status),
        ["AttemptFailed of status.failures.total=1: attempt 1 went wrong, another one follows: \
             nightly-2a3b62-0: Error: exit code 3"]
    );
    world.step();
    let (before, status) = (Some(plan.status), world.job.status.clone().unwrap());
    assert_eq!(told(before.as_ref(), &status), Vec::<String>::new());

    let mut world = World::new(&json!({ "args": ["x".repeat(100_000)] }));
    world.step();
    let status = world.job.status.clone().unwrap();
    let news = told(None, &status);
    assert!(news[0].starts_with("InvalidSpec of metadata.generation=1: spec.args: "), "{news:?}");
    assert_eq!(told(Some(&status), &status), Vec::<String>::new());
    world.job.spec.args = vec!["x".repeat(200_000)];
    world.step();
    let other = world.job.status.clone().unwrap();
    assert_eq!(told(Some(&status), &other).len(), 1, "another mistake is another event");
}
