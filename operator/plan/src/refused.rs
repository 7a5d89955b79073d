//! The plan of a cluster whose spec nothing can be made of.

use ebbtide_api::{Cluster, ClusterStatus};
use ebbtide_environment::Key;
use jiff::Timestamp;

use crate::sight::Sight;
use crate::{INVALID, Observed, Plan, Site, image, secrets, status};

/// Nothing of it is there, or nothing can be told of what is. Certificates are renewed.
pub(crate) fn nothing(
    cluster: &Cluster,
    observed: &Observed,
    (why, key): ((&str, &str), Option<&Key>),
    now: Timestamp,
) -> Plan {
    let environment_key = key.map(ToString::to_string);
    let status = ClusterStatus { environment_key, ..ClusterStatus::default() };
    secrets::renewal(cluster, observed, status::degraded(cluster, why, status, now), now)
}

/// What is there goes on: it shrinks, it ends, and its certificates are renewed.
pub(crate) fn only_less(
    cluster: &Cluster,
    observed: &Observed,
    site: &Site,
    (image, message): (&str, &str),
    now: Timestamp,
) -> Plan {
    let sight = Sight::of(cluster, observed, site, None, now);
    let changes = sight.end().map_or_else(|| sight.fewer(), |end| vec![end]);
    let status = sight.status(image, None, image::key_of(cluster));
    let status = status::degraded(cluster, (INVALID, message), status, now);
    let plan = secrets::renewal(cluster, observed, status, now);
    let looks = sight.targets.iter().map(|it| it.next_look);
    let looks = looks.chain([sight.idle.next_look, plan.next_look]);
    Plan {
        next_look: looks.flatten().min(),
        changes: plan.changes.into_iter().chain(changes).collect(),
        ..plan
    }
}
