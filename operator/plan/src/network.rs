//! Who may connect to whom: the network policy and the Services of a cluster.

use std::collections::BTreeMap;

use ebbtide_api::{Cluster, names};
use ebbtide_contract::port;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use serde_json::json;

use crate::{Change, ChildSeen, ObjectRef, Observed, Op, Site, metadata};

const POLICY_EDITED: &str = "a network policy of it says something else than it should";
const SERVICE_EDITED: &str = "a Service of it says something else than it should";

/// How the name of the policy begins that says who else may reach the cluster.
const ACCESS: &str = "access-";

/// What is due: first what is missing or says something else than it should, so that nothing is closed for a moment
/// that stays open, then what is open no more. A policy that is to say something else has another name.
pub(crate) fn due(cluster: &Cluster, observed: &Observed, site: &Site) -> Vec<Change> {
    let missing = "the cluster has none";
    let wanted: Vec<NetworkPolicy> =
        std::iter::once(policy(cluster)).chain(access(cluster, site)).collect();
    let there = &observed.network_policies;
    let is_wanted = |name: &String| wanted.iter().any(|it| it.name_any() == *name);
    let is_of_access = |name: &String| {
        let says = name.rsplit('-').next().unwrap_or_default();
        *name == names::child(&cluster.name_any(), &format!("{ACCESS}{says}"))
    };
    let others = there.iter().filter(|(name, _)| is_of_access(name) && !is_wanted(name));
    let others = others.filter_map(|(name, seen)| {
        let of = ObjectRef { name: name.clone(), uid: seen.uid.clone()? };
        Some(Change { op: Op::DeleteNetworkPolicy(of), why: "others may reach the cluster now" })
    });
    let others: Vec<Change> = others.collect();
    let policies = wanted.into_iter().filter_map(|it| match there.get(&it.name_any()) {
        None => Some(Change { op: Op::CreateNetworkPolicy(Box::new(it)), why: missing }),
        Some(seen) => seen
            .differs(it.spec.as_ref().map(says_policy).as_deref())
            .then(|| Change { op: Op::RestoreNetworkPolicy(Box::new(it)), why: POLICY_EDITED }),
    });
    let there = &observed.services;
    let services = services(cluster).into_iter().filter_map(|it| match there.get(&it.name_any()) {
        None => Some(Change { op: Op::CreateService(Box::new(it)), why: missing }),
        Some(seen) => seen
            .differs(it.spec.as_ref().map(says_service).as_deref())
            .then(|| Change { op: Op::RestoreService(Box::new(it)), why: SERVICE_EDITED }),
    });
    policies.chain(services).chain(others).collect()
}

impl ChildSeen {
    /// Whether it is known to say something else than this.
    fn differs(&self, says: Option<&str>) -> bool {
        self.says.is_some() && self.says.as_deref() != says
    }
}

/// What a network policy says, as short as can be compared.
pub fn says_policy(spec: &NetworkPolicySpec) -> String {
    // It has a form in JSON, in which an API server fills in nothing.
    names::fingerprint(&serde_json::to_string(spec).unwrap_or_default())
}

/// What a Service says, as short as can be compared: whom it leads to, where, and who is led. What an API server
/// fills in is as if it had been there.
pub fn says_service(spec: &ServiceSpec) -> String {
    let protocol = |it: &ServicePort| it.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let ports = spec.ports.iter().flatten();
    let ports: Vec<_> = ports.map(|it| (it.port, &it.target_port, protocol(it))).collect();
    let said = json!({
        "type": spec.type_.as_deref().unwrap_or("ClusterIP"),
        "isHeadless": spec.cluster_ip.as_deref() == Some("None"),
        "selector": spec.selector,
        "ports": ports,
        "unready": spec.publish_not_ready_addresses.unwrap_or_default(),
        "external": (&spec.external_ips, &spec.external_name),
        "affinity": spec.session_affinity.as_deref().unwrap_or("None"),
        "within": spec.internal_traffic_policy.as_deref().unwrap_or("Cluster"),
    });
    names::fingerprint(&said.to_string())
}

/// Has a Service say what another says, as far as [`says_service`] goes: its addresses stay.
pub fn restore_service(spec: &mut ServiceSpec, wanted: &ServiceSpec) {
    *spec = ServiceSpec {
        cluster_ip: spec.cluster_ip.take(),
        cluster_ips: spec.cluster_ips.take(),
        ip_families: spec.ip_families.take(),
        ip_family_policy: spec.ip_family_policy.take(),
        ..wanted.clone()
    };
}

/// What is open beyond the namespace: the clients' port to whom the spec names, and metrics to whom the site
/// does.
fn access(cluster: &Cluster, site: &Site) -> Option<NetworkPolicy> {
    let from = |selector: LabelSelector, port: u16| NetworkPolicyIngressRule {
        from: Some(vec![NetworkPolicyPeer {
            namespace_selector: Some(selector),
            ..NetworkPolicyPeer::default()
        }]),
        ports: Some(vec![tcp(port)]),
    };
    let clients = cluster.spec.access.as_ref().map(|access| {
        let match_labels = Some(access.namespaces.match_labels.clone());
        from(LabelSelector { match_labels, ..LabelSelector::default() }, port::SCHEDULER)
    });
    let monitoring = (!site.monitoring.is_empty()).then(|| {
        let named = LabelSelectorRequirement {
            key: "kubernetes.io/metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(site.monitoring.clone()),
        };
        let match_expressions = Some(vec![named]);
        from(LabelSelector { match_expressions, ..LabelSelector::default() }, port::HTTP)
    });
    let rules: Vec<_> = clients.into_iter().chain(monitoring).collect();
    if rules.is_empty() {
        return None;
    }
    let spec = ingress(cluster, rules);
    let name = names::child(&cluster.name_any(), &format!("{ACCESS}{}", says_policy(&spec)));
    Some(NetworkPolicy { metadata: metadata(cluster, name), spec: Some(spec) })
}

fn ingress(cluster: &Cluster, rules: Vec<NetworkPolicyIngressRule>) -> NetworkPolicySpec {
    NetworkPolicySpec {
        pod_selector: Some(LabelSelector {
            match_labels: Some(own_labels(cluster)),
            ..LabelSelector::default()
        }),
        policy_types: Some(vec!["Ingress".to_owned()]),
        ingress: Some(rules),
        egress: None,
    }
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
        from: from(Some(own)),
        ports: Some(vec![tcp(port::SCHEDULER), tcp(port::WORKER)]),
    };
    let clients =
        NetworkPolicyIngressRule { from: from(None), ports: Some(vec![tcp(port::SCHEDULER)]) };
    NetworkPolicy {
        metadata: metadata(cluster, names::child(&cluster.name_any(), "ingress")),
        spec: Some(ingress(cluster, vec![among, clients])),
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
