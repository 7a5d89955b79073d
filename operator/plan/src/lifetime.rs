//! How long there has been no work, and whether that is long enough. Silence is not idleness. And how old a
//! cluster may become.

use std::time::Duration;

use ebbtide_api::Cluster;
use ebbtide_contract::view::Demand;
use jiff::Timestamp;
use kube::ResourceExt as _;

use crate::{Observed, job};

/// How soon is looked again whether a scheduler says something.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Idle {
    /// Since when the scheduler says that there is no work.
    pub(crate) since: Option<Timestamp>,
    /// Whether the cluster's time is up.
    pub(crate) is_over: bool,
    pub(crate) next_look: Option<Duration>,
}

pub(crate) fn idle(cluster: &Cluster, observed: &Observed, now: Timestamp) -> Idle {
    let Some(demand) = observed.heard().filter(|it| !it.is_busy()) else {
        return Idle::default();
    };
    let known = cluster.status.as_ref().and_then(|status| status.idle_since.as_ref());
    let since = known.map_or(now, |time| time.0);
    // Work that came and went since then, and that nobody looked at.
    let busy_at = observed.busy_ago.and_then(|ago| now.checked_sub(ago).ok());
    let since = busy_at.map_or(since, |busy_at| busy_at.max(since));
    // Work that came and went while no scheduler was heard.
    let counted = cluster.status.as_ref().and_then(|status| status.jobs);
    let since = if counted.is_some_and(|it| it != jobs(demand)) { now } else { since };
    let length = idle_for(cluster, observed, since, now);
    let after = cluster.spec.lifetime.idle.after.as_duration();
    let rest = after.saturating_sub(length);
    if job::is_made_for_job(cluster) {
        // It goes with its job, and not before.
        return Idle { since: Some(since), is_over: false, next_look: None };
    }
    let is_over = rest.is_zero();
    // Between two lines no time goes by.
    let rest = rest.max(observed.unheard(cluster).min(AGAIN));
    Idle { since: Some(since), is_over, next_look: (!is_over).then_some(rest) }
}

/// How long until a cluster is as old as it may become.
pub(crate) fn left(cluster: &Cluster, now: Timestamp) -> Option<Duration> {
    let after = cluster.spec.lifetime.max.as_ref()?.after.as_duration();
    if after.is_zero() {
        // The plan refuses it.
        return None;
    }
    let created_at = cluster.creation_timestamp()?.0;
    let left = after.saturating_sub(since(created_at, now));
    // One that is made for a job goes with it, and the job is bound by it.
    (!job::is_made_for_job(cluster)).then_some(left)
}

/// How much of the time since then is known to have been without work.
pub(crate) fn idle_for(
    cluster: &Cluster,
    observed: &Observed,
    since: Timestamp,
    now: Timestamp,
) -> Duration {
    self::since(since, now).saturating_sub(observed.unheard(cluster))
}

/// How many jobs ever came, as a status has it.
pub(crate) fn jobs(demand: &Demand) -> i64 {
    i64::try_from(demand.jobs).unwrap_or(i64::MAX)
}

pub(crate) fn since(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(at)).unwrap_or_default()
}
