//! Every call to the API server has a time limit and an error that says what was tried.

use std::time::Duration;

use tokio::time::timeout;

/// Longest time for one call.
const CALL_MAX: Duration = Duration::from_secs(15);

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The API server says no.
    #[error("cannot {what}: {}", words(source))]
    Refused { what: &'static str, source: kube::Error },
    /// No answer.
    #[error("cannot {what}: the API server did not answer within {within:?}")]
    Silent { what: &'static str, within: Duration },
}

/// What went wrong, for people: of an answer of the API server its message.
fn words(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error
        && !status.message.is_empty()
    {
        return status.message.clone();
    }
    error.to_string()
}

/// Awaits a call.
pub(crate) fn call<T>(
    what: &'static str,
    request: impl Future<Output = kube::Result<T>>,
) -> impl Future<Output = Result<T, CallError>> {
    call_within(CALL_MAX, what, request)
}

/// Awaits a call for so long.
pub(crate) async fn call_within<T>(
    within: Duration,
    what: &'static str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    match timeout(within, request).await {
        Ok(answer) => answer.map_err(|source| CallError::Refused { what, source }),
        Err(_) => Err(CallError::Silent { what, within }),
    }
}

impl CallError {
    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Refused { source: kube::Error::Api(status), .. } => Some(status),
            Self::Refused { .. } | Self::Silent { .. } => None,
        }
    }

    /// Somebody wrote in between.
    pub(crate) fn is_conflict(&self) -> bool {
        self.status().is_some_and(|status| status.code == 409)
    }

    /// What was to be written is not as its definition says.
    pub(crate) fn is_invalid(&self) -> bool {
        self.status().is_some_and(|status| status.code == 422)
    }

    /// The namespace goes, and everything in it.
    pub(crate) fn is_for_nothing(&self) -> bool {
        let causes = self.status().and_then(|it| it.details.as_ref()).map(|it| &it.causes);
        causes.into_iter().flatten().any(|it| it.reason == "NamespaceTerminating")
    }

    /// There is no room for more now, or it is not known yet.
    pub(crate) fn is_of_quota(&self) -> bool {
        self.is_forbidden(&["exceeded quota", "status unknown for quota"])
    }

    fn is_forbidden(&self, words: &[&str]) -> bool {
        self.status().is_some_and(|it| {
            it.code == 403 && words.iter().any(|words| it.message.contains(words))
        })
    }

    /// Whether what was asked for can never be: another try alone does not help. A namespace has its account
    /// `default` a moment after it is made, and whether the operator has its rights is no manifest's matter.
    pub(crate) fn is_lasting(&self) -> bool {
        self.status().is_some_and(|it| matches!(it.code, 400 | 403 | 422))
            && !self.is_for_nothing()
            && !self.is_of_quota()
            && !self
                .is_forbidden(&["serviceaccount \"default\" not found", "is forbidden: User \""])
    }

    /// Something of this name is there already.
    pub(crate) fn is_already_there(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_already_exists)
    }

    /// What went wrong, in a word.
    pub(crate) fn class(&self) -> &'static str {
        let Some(status) = self.status() else {
            return if matches!(self, Self::Silent { .. }) { "timeout" } else { "connection" };
        };
        match status.code {
            403 => "forbidden",
            409 => "conflict",
            422 => "invalid",
            429 => "throttled",
            500.. => "server",
            _ => "refused",
        }
    }

    /// It is gone. A conflict says less: its name may be another's by now, or somebody wrote between;
    /// whoever meets one looks again.
    pub(crate) fn is_gone(&self) -> bool {
        self.status().is_some_and(|status| status.code == 404)
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::CallError;

    fn refused(code: u16, message: &str) -> CallError {
        let status = Status::failure(message, "Forbidden").with_code(code);
        CallError::Refused { what: "create a child", source: kube::Error::Api(Box::new(status)) }
    }

    #[test]
    fn what_the_api_server_refuses_is_told_in_its_words_and_nothing_else() {
        let message = "pods \"a\" is forbidden: exceeded quota: none";
        assert_eq!(refused(403, message).to_string(), format!("cannot create a child: {message}"));
    }

    #[test]
    fn only_what_its_author_must_change_is_lasting() {
        for (code, message) in [
            (400, "admission webhook \"a\" denied the request"),
            (403, "pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\""),
            (
                403,
                "pods \"a\" is forbidden: error looking up service account a/b: serviceaccount \"b\" not found",
            ),
            (422, "Pod \"a\" is invalid: spec.tolerations[0].operator: Unsupported value"),
        ] {
            assert!(refused(code, message).is_lasting(), "{message}");
        }
        for (code, message) in [
            (403, "pods \"a\" is forbidden: exceeded quota: few, requested: pods=1"),
            (403, "pods \"a\" is forbidden: status unknown for quota: few, resources: pods"),
            (
                403,
                "pods \"a\" is forbidden: error looking up service account a/default: serviceaccount \"default\" not found",
            ),
            (
                403,
                "pods is forbidden: User \"system:serviceaccount:a:b\" cannot create resource \"pods\"",
            ),
            (409, "object is being deleted: pods \"a\" already exists"),
            (429, "too many requests"),
            (500, "Internal error occurred: failed calling webhook \"a\""),
        ] {
            assert!(!refused(code, message).is_lasting(), "{message}");
        }
    }
}
