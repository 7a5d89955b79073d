//! Which Secrets a cluster needs, and when what they hold is renewed. What that is is minted elsewhere.

use std::time::Duration;

use ebbtide_api::{Cluster, ClusterStatus, names};
use ebbtide_contract::identity::{Identity, Role};
use ebbtide_contract::tls::LEAF_LIFE;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use kube::core::ObjectMeta;
use serde::Serialize;

use crate::{Change, Observed, Op, Plan, metadata};

/// How often leaves are renewed: two more times before one of them ends.
const RENEWED_EVERY: Duration = Duration::from_secs(LEAF_LIFE.as_secs() / 3);

/// A Secret that is due: the authorities' certificates, a leaf for an identity and its key.
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
    named(cluster, &format!("{}-certificate", role.as_str()))
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

/// What is due of a cluster's Secrets.
pub(crate) struct Due {
    pub(crate) changes: Vec<Change>,
    /// What they hold then, as the status tells it.
    pub(crate) edition: String,
    /// When that is no longer what they should hold.
    pub(crate) next_look: Option<Duration>,
}

/// Nobody may read Secrets to see what is in them: the status remembers which edition was written, and they
/// are written anew when another is due. That they are there is made sure of when pods need them.
pub(crate) fn due(cluster: &Cluster, observed: &Observed, is_needed: bool, now: Timestamp) -> Due {
    let age = cluster.creation_timestamp().map_or(Duration::ZERO, |it| {
        now.duration_since(it.0).max(SignedDuration::ZERO).unsigned_abs()
    });
    let told = cluster.status.as_ref().and_then(|status| status.credentials.as_ref());
    let turn = age.as_secs() / RENEWED_EVERY.as_secs();
    // An operator whose clock is a little behind does not go back; what one far ahead made is of no use.
    let others = told.and_then(|it| turn_of(it, &observed.authority));
    let turn = turn.max(others.filter(|it| *it <= turn + 1).unwrap_or_default());
    let asked = cluster.annotations().get(names::RENEW).map(|it| names::fingerprint(it));
    let asked = asked.map(|asked| format!("-{asked}")).unwrap_or_default();
    let edition = format!("{}-{turn}{asked}", observed.authority);
    let changes = match told {
        Some(told) if *told != edition => {
            let renewed = |it| Change {
                op: Op::RenewSecret(Box::new(it)),
                why: "its certificates are to be renewed",
            };
            wanted(cluster).map(renewed).collect()
        }
        Some(_) if !is_needed => Vec::new(),
        _ => {
            let missing = wanted(cluster).filter(|it| !observed.secrets.contains(&it.name));
            let created =
                |it| Change { op: Op::CreateSecret(Box::new(it)), why: "the cluster has none" };
            missing.map(created).collect()
        }
    };
    let next_turn = RENEWED_EVERY.saturating_mul(u32::try_from(turn + 1).unwrap_or(u32::MAX));
    Due { changes, edition, next_look: next_turn.checked_sub(age) }
}

/// The plan of a cluster of which nothing can be made: what runs of it has its certificates renewed.
pub(crate) fn renewal(
    cluster: &Cluster,
    observed: &Observed,
    status: ClusterStatus,
    now: Timestamp,
) -> Plan {
    let told = cluster.status.as_ref().and_then(|status| status.credentials.as_ref());
    if told.is_none() {
        return Plan { changes: Vec::new(), status, next_look: None };
    }
    let Due { changes, edition, next_look } = due(cluster, observed, false, now);
    let status = ClusterStatus { credentials: Some(edition), ..status };
    Plan { changes, status, next_look }
}

/// How often what an edition of this authority names was renewed.
fn turn_of(edition: &str, authority: &str) -> Option<u64> {
    edition.strip_prefix(authority)?.split('-').nth(1)?.parse().ok()
}

fn wanted(cluster: &Cluster) -> impl Iterator<Item = SecretWanted> {
    let uid = cluster.uid().unwrap_or_default();
    let roles = [(Role::Scheduler, true), (Role::Worker, false), (Role::Client, true)];
    roles.into_iter().map(move |(role, has_token)| {
        let name = credentials(cluster, role);
        let metadata = metadata(cluster, name.clone());
        SecretWanted { name, metadata, identity: Identity::member(&uid, role), has_token }
    })
}
