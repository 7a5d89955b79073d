//! The kinds of objects that the model knows, as the API server has them.

/// A kind of object.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Kind {
    /// API group, empty for the core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// As in paths.
    pub plural: &'static str,
    /// As in objects.
    pub name: &'static str,
    /// Whether a change of its spec counts up `metadata.generation`.
    pub has_generation: bool,
}

const fn kind(
    group: &'static str,
    version: &'static str,
    (plural, name): (&'static str, &'static str),
    has_generation: bool,
) -> Kind {
    Kind { group, version, plural, name, has_generation }
}

/// Clusters.
pub const CLUSTER: Kind = kind("ebbtide.dev", "v1alpha1", ("clusters", "Cluster"), true);
/// Jobs on clusters.
pub const CLUSTER_JOB: Kind = kind("ebbtide.dev", "v1alpha1", ("clusterjobs", "ClusterJob"), true);
/// Pods.
pub const POD: Kind = kind("", "v1", ("pods", "Pod"), true);
/// Secrets.
pub const SECRET: Kind = kind("", "v1", ("secrets", "Secret"), false);
/// Services.
pub const SERVICE: Kind = kind("", "v1", ("services", "Service"), false);
/// Network policies.
pub const NETWORK_POLICY: Kind =
    kind("networking.k8s.io", "v1", ("networkpolicies", "NetworkPolicy"), true);
/// Settings, which nobody watches: to compare the model with a real server.
pub const CONFIG_MAP: Kind = kind("", "v1", ("configmaps", "ConfigMap"), false);
/// Events.
pub const EVENT: Kind = kind("events.k8s.io", "v1", ("events", "Event"), false);

/// Leases.
pub const LEASE: Kind = kind("coordination.k8s.io", "v1", ("leases", "Lease"), false);

/// All of them.
pub const ALL: [Kind; 9] =
    [CLUSTER, CLUSTER_JOB, POD, SECRET, SERVICE, NETWORK_POLICY, CONFIG_MAP, EVENT, LEASE];

impl Kind {
    /// The kind at a path.
    pub fn of(group: &str, version: &str, plural: &str) -> Option<Self> {
        let is_meant =
            |it: &Self| it.group == group && it.version == version && it.plural == plural;
        ALL.into_iter().find(is_meant)
    }

    /// `apiVersion` of its objects.
    pub fn api_version(self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// As messages name it.
    pub fn resource(self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}
