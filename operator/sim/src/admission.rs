//! Which pods an API server does not take.

use serde_json::Value;

use crate::kinds;
use crate::request::Verb;
use crate::store::{Refusal, Store};

/// Which it takes: all, if nothing is said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Admission {
    /// How many pods there may be.
    pub quota: Option<usize>,
    /// The label by which it knows pods that it does not take.
    pub untaken: Option<(&'static str, &'static str)>,
}

impl Admission {
    /// Why a pod is not taken, if it is not.
    pub(crate) fn refusal(self, store: &Store, verb: Verb, pod: &Value) -> Option<Refusal> {
        if !matches!(verb, Verb::Try | Verb::Create) {
            return None;
        }
        if self.untaken.is_some_and(|(key, value)| pod["metadata"]["labels"][key] == value) {
            return Some(Refusal {
                code: 422,
                reason: "Invalid",
                message: "Pod is invalid: spec.tolerations[0].operator".to_owned(),
            });
        }
        self.quota.filter(|quota| store.list(kinds::POD).count() >= *quota).map(|_| Refusal {
            code: 403,
            reason: "Forbidden",
            message: "pods is forbidden: exceeded quota: small".to_owned(),
        })
    }
}
