//! Which Secrets a cluster needs. What they hold is minted elsewhere.

use ebbtide_api::{Cluster, names};
use ebbtide_contract::identity::{Identity, Role};
use kube::ResourceExt as _;
use kube::core::ObjectMeta;
use serde::Serialize;

use crate::{Change, Observed, Op, metadata};

/// A Secret that is due: the authority's certificate, a leaf for an identity and its key.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SecretWanted {
    /// Its name.
    pub name: String,
    /// Its owner and labels.
    pub metadata: ObjectMeta,
    /// Whose leaf.
    pub identity: Identity,
    /// Whether it holds the token that clients present to the scheduler, too.
    pub has_token: bool,
}

/// The Secret with what proves that somebody has this role.
pub(crate) fn credentials(cluster: &Cluster, role: Role) -> String {
    named(cluster, &format!("{}-credentials", role.as_str()))
}

/// The Secret with everything that a client needs.
pub fn client_secret(cluster: &Cluster) -> String {
    credentials(cluster, Role::Client)
}

/// A Secret's name has the cluster's uid in it: one that exists is this very cluster's, and nobody
/// has to be allowed to read it to find that out.
fn named(cluster: &Cluster, what: &str) -> String {
    names::of_life(&cluster.name_any(), &cluster.uid().unwrap_or_default(), what)
}

pub(crate) fn due(cluster: &Cluster, observed: &Observed) -> Vec<Change> {
    let uid = cluster.uid().unwrap_or_default();
    [(Role::Scheduler, true), (Role::Worker, false), (Role::Client, true)]
        .into_iter()
        .map(|(role, has_token)| (credentials(cluster, role), role, has_token))
        .filter(|(name, ..)| !observed.secrets.contains(name))
        .map(|(name, role, has_token)| {
            let metadata = metadata(cluster, name.clone());
            let identity = Identity::member(&uid, role);
            let wanted = SecretWanted { name, metadata, identity, has_token };
            Change { op: Op::CreateSecret(Box::new(wanted)), why: "the cluster has none" }
        })
        .collect()
}
