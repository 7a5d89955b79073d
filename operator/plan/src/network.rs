//! Who may connect to whom: the network policy and the Services of a cluster.

use std::collections::BTreeMap;

use ebbtide_api::{Cluster, names};
use ebbtide_contract::port;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use crate::{Change, Observed, Op, metadata};

pub(crate) fn due(cluster: &Cluster, observed: &Observed) -> Vec<Change> {
    let mut changes = Vec::new();
    let why = "the cluster has none";
    if !observed.has_network_policy {
        let op = Op::CreateNetworkPolicy(Box::new(policy(cluster)));
        changes.push(Change { op, why });
    }
    let services = services(cluster);
    let missing = services.into_iter().filter(|it| !observed.services.contains(&it.name_any()));
    changes.extend(missing.map(|it| Change { op: Op::CreateService(Box::new(it)), why }));
    changes
}

/// Ingress is closed but for the cluster's own pods, and for clients of its namespace on the port
/// that asks for a certificate and the token. Egress stays open: people read their own stores.
fn policy(cluster: &Cluster) -> NetworkPolicy {
    let own = own_labels(cluster);
    let from = |labels: Option<BTreeMap<String, String>>| {
        let selector = LabelSelector { match_labels: labels, ..LabelSelector::default() };
        Some(vec![NetworkPolicyPeer {
            pod_selector: Some(selector),
            ..NetworkPolicyPeer::default()
        }])
    };
    let among = NetworkPolicyIngressRule {
        from: from(Some(own.clone())),
        ports: Some(vec![tcp(port::SCHEDULER), tcp(port::WORKER)]),
    };
    let clients =
        NetworkPolicyIngressRule { from: from(None), ports: Some(vec![tcp(port::SCHEDULER)]) };
    NetworkPolicy {
        metadata: metadata(cluster, names::child(&cluster.name_any(), "ingress")),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(own),
                ..LabelSelector::default()
            }),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![among, clients]),
            egress: None,
        }),
    }
}

/// Two ways to the scheduler. The one with an address of its own opens when every node's proxy has
/// heard of the pod, which may be a second later (kube-proxy's `minSyncPeriod`). The headless one
/// opens as soon as DNS has, unless an answer from before is kept there for some seconds.
fn services(cluster: &Cluster) -> [Service; 2] {
    let name = cluster.name_any();
    [
        service(cluster, names::scheduler(&name), None),
        service(cluster, names::scheduler_pod(&name), Some("None".to_owned())),
    ]
}

fn service(cluster: &Cluster, name: String, cluster_ip: Option<String>) -> Service {
    let mut selector = own_labels(cluster);
    selector.insert(names::ROLE.to_owned(), "scheduler".to_owned());
    Service {
        metadata: metadata(cluster, name),
        spec: Some(ServiceSpec {
            cluster_ip,
            selector: Some(selector),
            ports: Some(vec![ServicePort {
                name: Some("scheduler".to_owned()),
                port: i32::from(port::SCHEDULER),
                target_port: Some(IntOrString::Int(i32::from(port::SCHEDULER))),
                ..ServicePort::default()
            }]),
            // Workers and clients try until the scheduler answers; readiness would come later.
            publish_not_ready_addresses: Some(true),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn own_labels(cluster: &Cluster) -> BTreeMap<String, String> {
    BTreeMap::from([(names::CLUSTER_UID.to_owned(), cluster.uid().unwrap_or_default())])
}

fn tcp(port: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(port))),
        protocol: Some("TCP".to_owned()),
        end_port: None,
    }
}
