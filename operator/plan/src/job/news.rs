//! What people who read a job's events are warned of.

use ebbtide_api::ClusterJobStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::INVALID;
use crate::job::ACCEPTED;
use crate::status::News;

/// What is new in the status of a job that has not ended: that an attempt went wrong, that nothing can be made of it.
pub fn news(before: Option<&ClusterJobStatus>, status: &ClusterJobStatus) -> Vec<News> {
    if status.phase.is_over() {
        return Vec::new();
    }
    let failed = status.failures.total;
    let is_lost = failed > before.map_or(0, |it| it.failures.total);
    let lost = is_lost.then(|| News {
        reason: "AttemptFailed".to_owned(),
        field: format!("status.failures.total={failed}"),
        note: status.message.clone().unwrap_or_default(),
    });
    let refused = status.conditions.iter().filter(|it| is_refusal(it) && !is_known(before, it));
    let refused = refused.map(|it| News {
        reason: it.reason.clone(),
        field: format!("metadata.generation={}", status.observed_generation.unwrap_or_default()),
        note: it.message.clone(),
    });
    lost.into_iter().chain(refused).collect()
}

fn is_refusal(it: &Condition) -> bool {
    it.type_ == ACCEPTED && it.status == "False"
}

/// Whether the status before said so. What an API server says of one refusal may have other numbers each time.
fn is_known(before: Option<&ClusterJobStatus>, it: &Condition) -> bool {
    let mut known = before.iter().flat_map(|it| &it.conditions).filter(|it| is_refusal(it));
    known.any(|known| {
        known.reason == it.reason && (it.reason != INVALID || known.message == it.message)
    })
}
