//! Who may reach a cluster over the network.

use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{World, at, cluster, site};
use crate::{ChildSeen, Observed, Op, Plan, Site, plan};

fn opened(team: &str) -> Value {
    json!({ "namespaces": { "matchLabels": { "team": team } } })
}

fn policies(plan: &Plan) -> Vec<String> {
    let told = plan.changes.iter().filter_map(|it| {
        if let Op::CreateNetworkPolicy(policy) = &it.op {
            Some(format!("+{}", policy.name_any()))
        } else if let Op::DeleteNetworkPolicy(policy) = &it.op {
            Some(format!("-{}", policy.name))
        } else {
            None
        }
    });
    told.collect()
}

#[test]
fn who_else_may_reach_a_cluster_is_a_policy_of_its_own_that_comes_before_the_last_one_goes() {
    let mut world = World::new(cluster(|_| ()));
    assert_eq!(policies(&world.step()).len(), 1);
    let mut reach = |access: Option<Value>| {
        world.cluster.spec.access = access.map(|it| serde_json::from_value(it).unwrap());
        let first = policies(&world.step());
        assert_eq!(policies(&world.step()), [""; 0], "it rests");
        first
    };
    let came = reach(Some(opened("rates")));
    let changed = reach(Some(opened("risk")));
    let closed = reach(None);
    let [came] = &came[..] else { panic!("{came:?}") };
    let [next, gone] = &changed[..] else { panic!("{changed:?}") };
    assert_eq!(gone[1..], came[1..]);
    assert!(next.starts_with("+risk-2c6ef0-access-") && gone.starts_with('-'));
    assert_eq!(closed, [format!("-{}", &next[1..])]);
    assert_eq!(world.observed.network_policies.len(), 1);
}

#[test]
fn what_is_open_is_the_clients_port_to_them_and_metrics_to_where_the_site_watches() {
    let mut site: Site = site();
    site.monitoring = vec!["monitoring".to_owned()];
    let open = cluster(|spec| spec["access"] = opened("rates"));
    let plan = plan(&open, &Observed::default(), &site, at(0));
    let mut created = plan.changes.iter().filter_map(|it| {
        if let Op::CreateNetworkPolicy(policy) = &it.op { Some(policy) } else { None }
    });
    let access = created.find(|it| it.name_any().contains("access"));
    let spec = json!(access.unwrap().spec);
    let from = |peer: Value, port: u16| {
        json!({ "from": [{ "namespaceSelector": peer }],
            "ports": [{ "port": port, "protocol": "TCP" }] })
    };
    let named = json!({ "key": "kubernetes.io/metadata.name", "operator": "In",
        "values": ["monitoring"] });
    assert_eq!(
        spec["ingress"],
        json!([
            from(json!({ "matchLabels": { "team": "rates" } }), 8786),
            from(json!({ "matchExpressions": [named] }), 8787),
        ])
    );
    assert_eq!(spec["podSelector"], json!({ "matchLabels": { "ebbtide.dev/cluster-uid": "u-1" } }));
}

#[test]
fn a_policy_of_a_cluster_that_others_made_stays() {
    let mut world = World::new(cluster(|_| ()));
    world.step();
    for theirs in ["theirs", "risk-2c6ef0-egress", "access-1"] {
        let seen = ChildSeen { uid: Some(String::new()), says: None };
        world.observed.network_policies.insert(theirs.to_owned(), seen);
    }
    assert_eq!(policies(&world.step()), [""; 0]);
}

#[test]
fn labels_that_no_namespace_can_have_are_refused_by_name() {
    for (labels, words) in [
        (json!({}), "spec.access.namespaces.matchLabels: give a label that the namespaces have"),
        (json!({ "team": "no team" }), "spec.access.namespaces.matchLabels: team: \"no team\""),
    ] {
        let wrong = cluster(|spec| {
            spec["access"] = json!({ "namespaces": { "matchLabels": labels } });
        });
        let plan = plan(&wrong, &Observed::default(), &site(), at(0));
        assert!(plan.changes.is_empty() && plan.status.message.unwrap().contains(words));
    }
}
