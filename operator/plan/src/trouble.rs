//! Why a pod cannot work, from the words of Kubernetes.

use ebbtide_api::status::Cause;

use crate::Refusal;

/// Why a pod cannot work.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trouble {
    /// The cause.
    pub cause: Cause,
    /// What is said of it, by whoever runs it.
    pub message: String,
}

impl Trouble {
    /// No node takes the pod.
    pub fn unschedulable(message: &str) -> Self {
        Self { cause: Cause::Unschedulable, message: format!("Unschedulable: {message}") }
    }

    /// A container waits for this reason. The usual steps of a start are no trouble.
    pub fn waiting(reason: &str, message: &str) -> Option<Self> {
        let cause = match reason {
            "ContainerCreating" | "PodInitializing" => return None,
            "CrashLoopBackOff" => Cause::Exit,
            _ if reason.contains("Image") || reason == "RegistryUnavailable" => Cause::Image,
            _ => Cause::Configuration,
        };
        Some(Self { cause, message: joined(reason, message) })
    }

    /// A container ended. That it did what it should is no trouble.
    pub fn ended(reason: &str, exit_code: i32, message: &str) -> Option<Self> {
        let cause = match reason {
            _ if exit_code == 0 => return None,
            "OOMKilled" => Cause::OutOfMemory,
            "StartError" | "ContainerCannotRun" => Cause::Configuration,
            // Its node began anew, and knows no more of it.
            "ContainerStatusUnknown" | "Unknown" => Cause::NodeLost,
            _ => Cause::Exit,
        };
        let message = joined(&format!("exit code {exit_code}"), message);
        Some(Self { cause, message: joined(reason, &message) })
    }

    /// A pod as a whole failed.
    pub fn failed(reason: &str, message: &str) -> Self {
        let cause = match reason {
            "Evicted" | "Preempting" | "Preempted" => Cause::Evicted,
            "NodeLost" | "NodeShutdown" | "Terminated" | "Shutdown" => Cause::NodeLost,
            "DeadlineExceeded" => Cause::Exit,
            _ => Cause::Refused,
        };
        Self { cause, message: joined(reason, message) }
    }

    /// Said of a container that people named.
    #[must_use]
    pub fn of(self, container: &str) -> Self {
        Self { message: format!("{container}: {}", self.message), ..self }
    }

    /// Whether it may come by itself, like a node with room.
    pub(crate) fn may_pass(&self) -> bool {
        self.cause == Cause::Unschedulable
    }
}

/// Reasons that a person must see to: another try alone does not help.
pub(crate) const LASTING: [&str; 2] = [REJECTED, Cause::Policy.as_str()];

/// The API server does not take what a manifest asks for.
pub(crate) const REJECTED: &str = Cause::Rejected.as_str();

/// Why a change could not be made, as a reason of a condition.
pub(crate) fn refusal(why: &Refusal<'_>) -> &'static str {
    refused(why.words, why.is_lasting).map_or("ApplyFailed", Cause::as_str)
}

/// Why somebody does not take what is to be made, if that is why it is not.
pub(crate) fn refused(words: &str, is_lasting: bool) -> Option<Cause> {
    let causes = [
        ("exceeded quota", Cause::Quota),
        ("status unknown for quota", Cause::Quota),
        ("violates PodSecurity", Cause::Policy),
        ("denied", Cause::Policy),
    ];
    let known = causes.into_iter().find(|(said, _)| words.contains(said)).map(|(_, cause)| cause);
    known.or_else(|| is_lasting.then_some(Cause::Rejected))
}

fn joined(first: &str, second: &str) -> String {
    let second = second.trim();
    if second.is_empty() { first.to_owned() } else { format!("{first}: {second}") }
}

#[cfg(test)]
mod tests {
    use ebbtide_api::status::Cause;

    use super::{Trouble, refusal};
    use crate::{Refusal, Stage};

    #[test]
    fn what_kubernetes_says_has_a_cause() {
        let waiting = |reason| Trouble::waiting(reason, "words").map(|it| it.cause);
        assert_eq!(waiting("PodInitializing"), None);
        for reason in ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"]
        {
            assert_eq!(waiting(reason), Some(Cause::Image));
        }
        assert_eq!(waiting("CreateContainerConfigError"), Some(Cause::Configuration));
        assert_eq!(waiting("CrashLoopBackOff"), Some(Cause::Exit));
        let ended =
            |reason, code| Trouble::ended(reason, code, " ").map(|it| (it.cause, it.message));
        let of = |cause, message: &str| Some((cause, message.to_owned()));
        assert_eq!(ended("Completed", 0), None);
        assert_eq!(ended("OOMKilled", 137), of(Cause::OutOfMemory, "OOMKilled: exit code 137"));
        assert_eq!(ended("StartError", 128), of(Cause::Configuration, "StartError: exit code 128"));
        assert_eq!(ended("Error", 1), of(Cause::Exit, "Error: exit code 1"));
        assert_eq!(ended("Unknown", 255), of(Cause::NodeLost, "Unknown: exit code 255"));
        let failed = |reason| Trouble::failed(reason, "").cause;
        assert_eq!(failed("Evicted"), Cause::Evicted);
        assert_eq!(failed("NodeLost"), Cause::NodeLost);
        assert_eq!(failed("OutOfcpu"), Cause::Refused);
    }

    #[test]
    fn every_cause_is_in_the_table_for_people_on_call() {
        let table = include_str!("../../../docs/on-call.md");
        for cause in Cause::ALL {
            assert!(table.contains(&format!("`{}`", cause.as_str())), "{cause:?}");
        }
    }

    #[test]
    fn what_the_api_server_refuses_has_a_reason() {
        let at = Stage::Pods;
        let reason = |words, is_lasting| refusal(&Refusal { words, is_lasting, at });
        let quota = "pods \"w\" is forbidden: exceeded quota: small, requested: pods=1";
        assert_eq!(reason(quota, true), "Quota");
        assert_eq!(reason("violates PodSecurity \"restricted:latest\"", true), "Policy");
        assert_eq!(reason("ValidatingAdmissionPolicy 'x' denied request: no", true), "Policy");
        assert_eq!(reason("Pod \"w\" is invalid: spec.tolerations[0]", true), "Rejected");
        assert_eq!(reason("the API server did not answer within 15s", false), "ApplyFailed");
    }
}
