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
pub(crate) fn leaf_secret(cluster: &str, role: Role) -> String {
    names::child(cluster, role.as_str())
}

/// The Secret with a client's certificate.
pub fn client_secret(cluster: &str) -> String {
    leaf_secret(cluster, Role::Client)
}

/// The Secret with the token.
pub fn token_secret(cluster: &str) -> String {
    names::child(cluster, "token")
}

pub(crate) fn due(cluster: &Cluster, observed: &Observed) -> Vec<Change> {
    let (name, uid) = (cluster.name_any(), cluster.uid().unwrap_or_default());
    let leaf = |role| (leaf_secret(&name, role), Content::Leaf(Identity::member(&uid, role)));
    [
        leaf(Role::Scheduler),
        leaf(Role::Worker),
        leaf(Role::Client),
        (token_secret(&name), Content::Token),
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
