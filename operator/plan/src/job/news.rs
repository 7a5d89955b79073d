//! What people who read a job's events are told.

use ebbtide_api::ClusterJobStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::INVALID;
use crate::job::ACCEPTED;

/// What is new in a status for whoever reads the events of a job, each with its reason: that it ended, that an attempt
/// went wrong, that nothing can be made of it.
pub fn news<'a>(
    before: Option<&ClusterJobStatus>,
    status: &'a ClusterJobStatus,
) -> Vec<(&'a str, &'a str)> {
    let message = status.message.as_deref().unwrap_or_default();
    let failed = |it: &ClusterJobStatus| it.failures.total;
    if status.phase.is_over() {
        let was_over = before.is_some_and(|it| it.phase == status.phase);
        return if was_over { Vec::new() } else { vec![(status.phase.as_str(), message)] };
    }
    let is_lost = failed(status) > before.map_or(0, failed);
    let refused = |it: &'a ClusterJobStatus| {
        it.conditions.iter().find(|it| it.type_ == ACCEPTED && it.status == "False")
    };
    // What an API server says of one refusal may have other numbers each time.
    let is_same = |known: &Condition, it: &Condition| {
        known.status == it.status
            && known.reason == it.reason
            && (it.reason != INVALID || known.message == it.message)
    };
    let is_known = |it: &Condition| {
        let mut known = before.iter().flat_map(|it| &it.conditions);
        known.any(|known| known.type_ == it.type_ && is_same(known, it))
    };
    let refused = refused(status).filter(|it| !is_known(it));
    let refused = refused.map(|it| (it.reason.as_str(), it.message.as_str()));
    is_lost.then_some(("AttemptFailed", message)).into_iter().chain(refused).collect()
}
