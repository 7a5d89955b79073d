//! The plan of a cluster whose spec nothing can be made of.

use ebbtide_api::{Cluster, ClusterStatus};
use ebbtide_environment::Key;
use jiff::Timestamp;

use crate::children::Children;
use crate::{INVALID, Observed, Plan, Site, gone, image, lifetime, scaling, secrets, status};

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
    let children = Children::sort(cluster, observed, None, now);
    let idle = lifetime::idle(cluster, observed, now);
    let targets = scaling::targets(cluster, &children, observed, &idle, now);
    let changes = if idle.is_over {
        vec![gone(cluster, "there was no work for too long")]
    } else {
        scaling::fewer(cluster, &children, &targets)
    };
    let status = status::observed(&status::Facts {
        cluster,
        children: &children,
        observed,
        site,
        image,
        other: None,
        key: image::key_of(cluster),
        idle: &idle,
        targets: &targets,
        now,
    });
    let status = status::degraded(cluster, (INVALID, message), status, now);
    let plan = secrets::renewal(cluster, observed, status, now);
    let looks = targets.iter().map(|it| it.next_look).chain([idle.next_look, plan.next_look]);
    Plan {
        next_look: looks.flatten().min(),
        changes: plan.changes.into_iter().chain(changes).collect(),
        ..plan
    }
}
