//! What is said of an object that was stored under another definition. Nothing is done with it until somebody corrects
//! it.

use ebbtide_api::{ClusterJobStatus, ClusterStatus, Phase, Unread};
use jiff::Timestamp;

use crate::job::ACCEPTED;
use crate::status::{READY, bounded, condition_after, with_ready};
use crate::times::timed;

/// The reason of conditions and events of what cannot be read.
pub const UNREADABLE: &str = "Unreadable";

/// What is wrong with it, and what to do.
pub fn words(unread: &Unread) -> String {
    format!("it is left as it is until this is corrected: {unread}")
}

/// The status of a cluster that cannot be read: what it was, and why nothing happens. None if there is nothing to
/// say that it does not say.
pub fn cluster_status(unread: &Unread, now: Timestamp) -> Option<ClusterStatus> {
    let before: ClusterStatus = unread.status();
    let (words, generation) = (words(unread), unread.metadata.generation);
    let told = (READY, false, (UNREADABLE, &*words));
    let ready = condition_after(&before.conditions, generation, told, now);
    let next = ClusterStatus {
        phase: Phase::Degraded,
        message: Some(bounded(&words)),
        observed_generation: generation,
        conditions: with_ready(ready, &before.conditions),
        ..before.clone()
    };
    let next = timed(Some(&before), next, now);
    (next != before && !is_going(unread)).then_some(next)
}

/// The same of a job. What one that has ended says stays.
pub fn job_status(unread: &Unread, now: Timestamp) -> Option<ClusterJobStatus> {
    let before: ClusterJobStatus = unread.status();
    let (words, generation) = (words(unread), unread.metadata.generation);
    let told = (ACCEPTED, false, (UNREADABLE, &*words));
    let next = ClusterJobStatus {
        message: Some(bounded(&words)),
        observed_generation: generation,
        conditions: vec![condition_after(&before.conditions, generation, told, now)],
        ..before.clone()
    };
    (next != before && !before.phase.is_over() && !is_going(unread)).then_some(next)
}

fn is_going(unread: &Unread) -> bool {
    unread.metadata.deletion_timestamp.is_some()
}

#[cfg(test)]
mod tests {
    use ebbtide_api::{ClusterJobStatus, ClusterStatus, JobPhase, Phase, Unread};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use serde_json::{Value, json};

    use super::{cluster_status, job_status};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn unread(status: Value) -> Unread {
        let metadata = ObjectMeta { generation: Some(4), ..ObjectMeta::default() };
        Unread { metadata, error: "spec.workers: expected a list".to_owned(), status }
    }

    #[test]
    fn a_cluster_s_status_tells_why_nothing_happens_and_forgets_nothing() {
        let before = ClusterStatus {
            phase: Phase::Ready,
            replicas: 3,
            image: Some("i".to_owned()),
            ..ClusterStatus::default()
        };
        let told = cluster_status(&unread(json!(before)), NOW).unwrap();
        let expected = "it is left as it is until this is corrected: spec.workers: expected a list";
        assert_eq!((told.phase, told.message.as_deref()), (Phase::Degraded, Some(expected)));
        let ready = &told.conditions[0];
        assert_eq!(
            (&*ready.type_, &*ready.status, &*ready.reason),
            ("Ready", "False", "Unreadable")
        );
        assert_eq!(
            (told.replicas, &told.image, told.observed_generation),
            (3, &before.image, Some(4))
        );
    }

    #[test]
    fn what_was_told_of_and_what_goes_is_not_told_of_again() {
        for broken in [json!({ "groups": "three" }), json!(null), json!({ "phase": "Odd" })] {
            let told = cluster_status(&unread(broken), NOW).unwrap();
            assert_eq!(cluster_status(&unread(json!(told)), NOW), None);
            let told = job_status(&unread(json!(null)), NOW).unwrap();
            assert_eq!(job_status(&unread(json!(told)), NOW), None);
        }
        let mut going = unread(json!(null));
        going.metadata.deletion_timestamp = Some(Time(NOW));
        assert_eq!((cluster_status(&going, NOW), job_status(&going, NOW)), (None, None));
        let ended = ClusterJobStatus { phase: JobPhase::Failed, ..ClusterJobStatus::default() };
        assert_eq!(job_status(&unread(json!(ended)), NOW), None);
    }
}
