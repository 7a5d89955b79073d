//! What earlier operators made is left as it is. Each release adds what it makes, and nobody changes it.

use std::collections::BTreeMap;

use ebbtide_api::{ClusterStatus, names};
use ebbtide_contract::view::WorkerView;
use serde_json::{Value, json};

use super::{World, at, cluster, site};
use crate::{ChildSeen, PodPhase, PodSeen, plan};

/// A cluster with one worker, as an operator of some time left it.
struct Left {
    children: [&'static str; 6],
    /// What the last three say: a policy and two Services.
    says: [&'static str; 3],
    /// Names, roles, and from which settings they were made.
    pods: [(&'static str, &'static str, &'static str); 2],
    image: Option<&'static str>,
    status: Value,
}

fn all() -> [Left; 2] {
    let children = [
        "risk-2c6ef0-scheduler-certificate-a24a7f55f278dd49",
        "risk-2c6ef0-worker-certificate-a24a7f55f278dd49",
        "risk-2c6ef0-client-certificate-a24a7f55f278dd49",
        "risk-2c6ef0-ingress",
        "risk-2c6ef0-scheduler",
        "risk-2c6ef0-scheduler-pod",
    ];
    let pods = [
        ("risk-2c6ef0-scheduler", "scheduler", "01fc182d85f273af"),
        ("risk-2c6ef0-w-0", "worker", "99c2b8c0e5de7f75"),
    ];
    let says = ["fccae9c49ad3fa41", "6950ff4673ed8bf3", "2ae8312049ede589"];
    let image = "registry/env@sha256:1";
    let status = json!({ "phase": "Ready", "observedGeneration": 3, "image": image });
    let mut begun = status.clone();
    begun["startedAt"] = json!("2026-11-01T00:00:00Z");
    [
        // Before pods told their image.
        Left { children, says, pods, image: None, status },
        Left { children, says, pods, image: Some(image), status: begun },
    ]
}

fn as_it_was(left: &Left) -> World {
    let mut world = World::new(cluster(|spec| spec["workers"][0]["min"] = 1.into()));
    world.cluster.status = Some(serde_json::from_value(left.status.clone()).unwrap());
    let children = left.children.map(str::to_owned);
    let observed = &mut world.observed;
    observed.secrets.extend(children[..3].iter().cloned());
    let seen = |says: &str| ChildSeen { uid: Some("u-p".to_owned()), says: Some(says.to_owned()) };
    observed.network_policies.insert(children[3].clone(), seen(left.says[0]));
    let services = children[4..].iter().zip(&left.says[1..]);
    observed.services.extend(services.map(|(name, says)| (name.clone(), seen(says))));
    let pods = left.pods.iter().map(|(name, role, made_from)| {
        let mut labels = BTreeMap::from([(names::ROLE.to_owned(), (*role).to_owned())]);
        if *role == "worker" {
            labels.insert(names::WORKER_GROUP.to_owned(), "w".to_owned());
            labels.insert(names::INDEX.to_owned(), "0".to_owned());
        }
        PodSeen {
            name: (*name).to_owned(),
            uid: format!("u-{name}"),
            labels,
            made_from: Some((*made_from).to_owned()),
            image: left.image.map(str::to_owned),
            phase: PodPhase::Running,
            ..PodSeen::default()
        }
    });
    observed.pods.extend(pods);
    world
}

#[test]
fn what_an_earlier_operator_made_is_left_as_it_is() {
    for left in all() {
        let mut world = as_it_was(&left);
        // The operator of now begins, and then hears the scheduler.
        let before = plan(&world.cluster, &world.observed, &site(), at(0));
        assert!(before.changes.is_empty(), "{:?}", before.changes);
        let demand = world.observed.demand.get_or_insert_default();
        demand.workers.insert(left.pods[1].0.to_owned(), WorkerView::default());
        let plan = plan(&world.cluster, &world.observed, &site(), at(1));
        assert!(plan.changes.is_empty(), "{:?}", plan.changes);
        let ClusterStatus { conditions, image, started_at, .. } = plan.status;
        assert_eq!(conditions[1].reason, "UpToDate");
        assert!(image.as_deref() == left.status["image"].as_str() && started_at.is_some());
    }
}

#[test]
fn what_an_earlier_operator_made_and_has_not_begun_is_left_as_it_is() {
    for left in all() {
        let mut world = as_it_was(&left);
        world.cluster.status = None;
        world.observed.pods.iter_mut().for_each(|it| it.phase = PodPhase::Pending);
        let plan = plan(&world.cluster, &world.observed, &site(), at(0));
        let told = plan.changes.iter().map(ToString::to_string);
        let of_pods: Vec<String> = told.filter(|it| it.contains(" pod ")).collect();
        assert!(of_pods.is_empty(), "{of_pods:?}");
    }
}
