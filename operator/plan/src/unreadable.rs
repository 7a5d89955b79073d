//! What is said of an object that was stored under another definition. Nothing is done with it until somebody corrects
//! it, and nothing that its status says is forgotten.

use ebbtide_api::{ClusterStatus, JobPhase, Phase, Unread};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Deserialize as _;
use serde_json::{Map, Value, json};

use crate::job::ACCEPTED;
use crate::status::{READY, bounded, condition_after};
use crate::times::timed;

/// The reason of conditions and events of what cannot be read.
pub const UNREADABLE: &str = "Unreadable";

/// What is wrong with it, and what to do.
pub fn words(unread: &Unread) -> String {
    format!("it is left as it is until this is corrected: {unread}")
}

/// What the status of a cluster that cannot be read is to say, field by field: why nothing happens. None if it says
/// so.
pub fn cluster_patch(unread: &Unread, now: Timestamp) -> Option<Value> {
    let mut told = told(unread, READY, now);
    let phase = json!(Phase::Degraded);
    if unread.status["phase"] != phase {
        let before = Option::<ClusterStatus>::deserialize(&unread.status);
        let next = ClusterStatus { phase: Phase::Degraded, ..ClusterStatus::default() };
        let next = timed(before.as_ref().ok().and_then(Option::as_ref), next, now);
        told.insert("phaseSince".to_owned(), json!(next.phase_since));
        if before.is_ok() {
            told.insert("phases".to_owned(), json!(next.phases));
        }
    }
    told.insert("phase".to_owned(), phase);
    news(unread, told)
}

/// The same of a job. What one says stays that has ended; so does the message of one whose phase is none that is known
/// here: it may have.
pub fn job_patch(unread: &Unread, now: Timestamp) -> Option<Value> {
    if has_ended(unread) {
        return None;
    }
    let mut told = told(unread, ACCEPTED, now);
    if job_phase(unread).is_some_and(|it| it.is_err()) {
        told.remove("message");
    }
    news(unread, told)
}

/// Whether a job that cannot be read is known to have ended.
pub fn has_ended(unread: &Unread) -> bool {
    job_phase(unread).is_some_and(|it| it.is_ok_and(JobPhase::is_over))
}

/// The phase that it tells, or that it is none that is known here.
fn job_phase(unread: &Unread) -> Option<serde_json::Result<JobPhase>> {
    unread.status.get("phase").map(JobPhase::deserialize)
}

/// Why nothing happens, as a message and as this condition.
fn told(unread: &Unread, kind: &str, now: Timestamp) -> Map<String, Value> {
    let (words, generation) = (words(unread), unread.metadata.generation);
    let conditions = unread.status["conditions"].as_array().into_iter().flatten();
    let (same, others): (Vec<&Value>, Vec<&Value>) = conditions.partition(|it| it["type"] == kind);
    let known: Vec<Condition> =
        same.into_iter().filter_map(|it| Condition::deserialize(it).ok()).collect();
    let condition = condition_after(&known, generation, (kind, false, (UNREADABLE, &*words)), now);
    let conditions = std::iter::once(json!(condition)).chain(others.into_iter().cloned());
    let fields = [
        ("message", json!(bounded(&words))),
        ("observedGeneration", json!(generation)),
        ("conditions", conditions.collect()),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

/// What is told, if a status does not say it and its object stays.
fn news(unread: &Unread, told: Map<String, Value>) -> Option<Value> {
    let says = |(field, value): (&String, &Value)| unread.status.get(field) == Some(value);
    let is_going = unread.metadata.deletion_timestamp.is_some();
    (!is_going && !told.iter().all(says)).then_some(Value::Object(told))
}

#[cfg(test)]
mod tests {
    use ebbtide_api::{ClusterStatus, Phase, Unread};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::{cluster_patch, job_patch};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;
    const WORDS: &str =
        "it is left as it is until this is corrected: spec.workers: expected a list";

    fn unread(status: Value) -> Unread {
        let metadata = ObjectMeta { generation: Some(4), ..ObjectMeta::default() };
        Unread { metadata, error: "spec.workers: expected a list".to_owned(), status }
    }

    /// A status after a merge patch.
    fn merged(mut status: Value, patch: &Value) -> Value {
        for (field, value) in patch.as_object().unwrap() {
            status[field] = value.clone();
        }
        status
    }

    #[test]
    fn a_cluster_s_status_tells_why_nothing_happens_and_forgets_nothing() {
        let before = json!({
            "phase": "Ready", "phaseSince": "1969-12-31T23:59:50Z", "replicas": 3, "image": "i",
            "conditions": [{
                "type": "PendingChange", "status": "False", "reason": "UpToDate", "message": "",
                "lastTransitionTime": "1969-12-31T23:00:00Z",
            }],
        });
        let told = merged(before.clone(), &cluster_patch(&unread(before), NOW).unwrap());
        let told = ClusterStatus::deserialize(told).unwrap();
        assert_eq!((told.phase, told.message.as_deref()), (Phase::Degraded, Some(WORDS)));
        let [ready, pending] = &told.conditions[..] else { panic!("{:?}", told.conditions) };
        let expected = ("Ready", "False", "Unreadable");
        assert_eq!((&*ready.type_, &*ready.status, &*ready.reason), expected);
        assert_eq!(pending.type_, "PendingChange");
        let kept = (told.replicas, told.image.as_deref(), told.observed_generation);
        assert_eq!(kept, (3, Some("i"), Some(4)));
        assert_eq!((told.phases[0].phase, told.phases[0].milliseconds), (Phase::Ready, 10_000));
    }

    #[test]
    fn of_a_status_that_cannot_be_read_itself_nothing_is_touched_but_what_is_told() {
        let conditions = json!(["odd", { "type": "Odd", "lastTransitionTime": "yesterday" }]);
        let odd = json!({ "groups": "three", "image": 7, "later": true, "conditions": conditions });
        for (patch, phase) in
            [(cluster_patch as fn(&_, _) -> _, json!("Degraded")), (job_patch, json!(null))]
        {
            let told = merged(odd.clone(), &patch(&unread(odd.clone()), NOW).unwrap());
            assert_eq!((&told["message"], &told["phase"]), (&json!(WORDS), &phase));
            assert_eq!(
                told["conditions"].as_array().unwrap()[1..],
                *conditions.as_array().unwrap()
            );
            for field in ["groups", "image", "later"] {
                assert_eq!(told[field], odd[field], "{field}");
            }
        }
    }

    #[test]
    fn what_was_told_of_and_what_goes_is_not_told_of_again() {
        for status in [
            json!(null),
            json!({ "groups": "three" }),
            json!({ "conditions": ["odd"] }),
            json!({ "phase": "Running", "phaseSince": "1969-12-31T23:59:50Z" }),
            json!({ "phase": "Pending" }),
        ] {
            for patch in [cluster_patch, job_patch] {
                let told = merged(status.clone(), &patch(&unread(status.clone()), NOW).unwrap());
                let later = Timestamp::from_second(60).unwrap();
                assert_eq!(patch(&unread(told), later), None, "{status}");
                let mut going = unread(status.clone());
                going.metadata.deletion_timestamp = Some(Time(NOW));
                assert_eq!(patch(&going, NOW), None);
            }
        }
    }

    #[test]
    fn what_a_job_says_stays_that_has_ended_or_may_have() {
        for phase in ["Failed", "Succeeded"] {
            let ended = json!({ "phase": phase, "failures": "many" });
            assert_eq!(job_patch(&unread(ended), NOW), None);
        }
        let odd = json!({ "phase": "Odd", "message": "it had its reasons" });
        let told = merged(odd.clone(), &job_patch(&unread(odd), NOW).unwrap());
        assert_eq!(
            (&told["phase"], &told["message"]),
            (&json!("Odd"), &json!("it had its reasons"))
        );
        assert_eq!(told["conditions"][0]["reason"], "Unreadable");
    }

    #[test]
    fn since_when_it_is_so_is_told_whatever_else_can_be_read() {
        let odd =
            json!({ "phase": "Ready", "phaseSince": "1969-12-31T20:00:00Z", "groups": "three" });
        let told = merged(odd.clone(), &cluster_patch(&unread(odd), NOW).unwrap());
        assert_eq!(told["phaseSince"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(told.get("phases"), None);
    }
}
