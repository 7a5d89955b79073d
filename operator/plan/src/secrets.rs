//! Which Secrets a cluster needs. What they hold is minted elsewhere.

use ebbtide_api::{Cluster, names};
use ebbtide_contract::identity::{Identity, Role};
use kube::ResourceExt as _;
use kube::core::ObjectMeta;
use serde::Serialize;

use crate::{Change, Observed, Op, metadata};

/// A Secret that is due.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SecretWanted {
    /// Its name.
    pub name: String,
    /// Its owner and labels.
    pub metadata: ObjectMeta,
    /// What it is to hold.
    pub content: Content,
}

/// What a Secret holds.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub enum Content {
    /// The authority's certificate, a leaf for this identity and its key.
    Leaf(Identity),
    /// A token that clients present.
    Token,
}

/// The Secret with what proves that a pod has this role.
pub(crate) fn leaf_secret(cluster: &Cluster, role: Role) -> String {
    named(cluster, role.as_str())
}

/// The Secret with a client's certificate.
pub fn client_secret(cluster: &Cluster) -> String {
    leaf_secret(cluster, Role::Client)
}

/// The Secret with the token.
pub fn token_secret(cluster: &Cluster) -> String {
    named(cluster, "token")
}

/// A Secret's name has the cluster's uid in it: one that exists is this very cluster's, and nobody
/// has to be allowed to read it to find that out.
fn named(cluster: &Cluster, what: &str) -> String {
    names::of_life(&cluster.name_any(), &cluster.uid().unwrap_or_default(), what)
}

pub(crate) fn due(cluster: &Cluster, observed: &Observed) -> Vec<Change> {
    let uid = cluster.uid().unwrap_or_default();
    let leaf = |role| (leaf_secret(cluster, role), Content::Leaf(Identity::member(&uid, role)));
    [
        leaf(Role::Scheduler),
        leaf(Role::Worker),
        leaf(Role::Client),
        (token_secret(cluster), Content::Token),
    ]
    .into_iter()
    .filter(|(name, _)| !observed.secrets.contains(name))
    .map(|(name, content)| {
        let metadata = metadata(cluster, name.clone());
        let op = Op::CreateSecret(Box::new(SecretWanted { name, metadata, content }));
        Change { op, why: "the cluster has none" }
    })
    .collect()
}
