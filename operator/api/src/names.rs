//! Names and labels of what a cluster is made of. Two clusters of a namespace never share one.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// Label: who manages this.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const MANAGER: &str = "ebbtide";
/// Label: `metadata.uid` of the cluster.
pub const CLUSTER_UID: &str = "ebbtide.dev/cluster-uid";
/// Label: the cluster's name, for people: as [`label`] has it. What decides goes by [`CLUSTER_UID`].
pub const CLUSTER: &str = "ebbtide.dev/cluster";
/// Label: the job's name, for people.
pub const JOB: &str = "ebbtide.dev/job";
/// Label: `metadata.uid` of the job.
pub const JOB_UID: &str = "ebbtide.dev/job-uid";
/// Label: `scheduler`, `worker` or `job`.
pub const ROLE: &str = "ebbtide.dev/role";
/// Label: the worker group.
pub const WORKER_GROUP: &str = "ebbtide.dev/group";
/// Label: which of the group's workers.
pub const INDEX: &str = "ebbtide.dev/index";

/// Annotation: which settings a pod was made from.
pub const MADE_FROM: &str = "ebbtide.dev/made-from";
/// Annotation: the image that a pod was made with, whatever others make of it.
pub const IMAGE: &str = "ebbtide.dev/image";
/// Annotation: the program that a job's pod runs, which it reads as a file.
pub const SCRIPT: &str = "ebbtide.dev/script";

/// Annotation: which look of the operator made a pod, as the operator's log names it.
pub const TRACE: &str = "ebbtide.dev/trace";

/// Annotation of a cluster: a value that it did not have before has its certificates renewed. Of the Secret
/// that keeps the authority: has the authority replaced.
pub const RENEW: &str = "ebbtide.dev/renew";

/// Annotation of a cluster: the run of a script that asked for it last, and takes it along if it made it.
pub const RUN: &str = "ebbtide.dev/run";

/// Longest name of a worker group.
pub(crate) const GROUP_MAX: usize = 20;

/// Longest name of a pod that may also be a label and a host name.
const LENGTH_MAX: usize = 63;

/// Hexadecimal digits of the cluster's name in every child's name: 24 bits tell the clusters of a
/// namespace apart whose names begin alike, and the rest of the name tells most others.
const HASH_DIGITS: usize = 6;

/// Hexadecimal digits of its uid in what belongs to one life of a cluster: 64 bits, which nobody
/// guesses before the cluster is there.
const LIFE_DIGITS: usize = 16;

/// Longest name of an object.
const NAME_MAX: usize = 253;

/// Whether this can be the name of a cluster or job: a DNS subdomain, as Kubernetes has it.
pub fn check_object(name: &str) -> Result<(), String> {
    let is_right = name.len() <= NAME_MAX && name.split('.').all(is_label);
    is_right.then_some(()).ok_or_else(|| {
        format!(
            "{name:?} is no name; expected lower-case letters, digits, '-' and '.', \
             beginning and ending with a letter or digit, {NAME_MAX} at most"
        )
    })
}

/// Whether this can be the name of a cluster, whose Services have names that begin like it.
pub fn check_cluster(name: &str) -> Result<(), String> {
    check_object(name)?;
    let is_right = name.starts_with(|it: char| it.is_ascii_lowercase());
    is_right.then_some(()).ok_or_else(|| {
        format!("{name:?} is no name of a cluster; expected one that begins with a letter")
    })
}

/// Whether this can be a namespace's name: a DNS label.
pub fn check_namespace(name: &str) -> Result<(), String> {
    let is_right = name.len() <= LENGTH_MAX && is_label(name);
    is_right.then_some(()).ok_or_else(|| {
        format!(
            "{name:?} is no name of a namespace; expected lower-case letters, digits and '-', \
             beginning and ending with a letter or digit, {LENGTH_MAX} at most"
        )
    })
}

/// Whether this can be a worker group's name.
pub fn check_group(name: &str) -> Result<(), String> {
    let begins = name.bytes().next().is_some_and(|it| it.is_ascii_lowercase());
    let is_right = begins && name.len() <= GROUP_MAX && is_label(name);
    is_right.then_some(()).ok_or_else(|| {
        format!(
            "{name:?} is no name of a worker group; expected lower-case letters, digits and '-', \
             beginning with a letter, ending with a letter or digit, {GROUP_MAX} at most"
        )
    })
}

fn is_label(text: &str) -> bool {
    let is_inner = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|it| it.is_some_and(|it| *it != b'-')) && text.bytes().all(is_inner)
}

/// The name of a child of the cluster with this name. `suffix` is at most 32 letters.
pub fn child(cluster: &str, suffix: &str) -> String {
    let hash = hash(cluster, HASH_DIGITS);
    let room = LENGTH_MAX - HASH_DIGITS - 2 - suffix.len();
    let readable: String = cluster.replace('.', "-").chars().take(room).collect();
    format!("{}-{hash}-{suffix}", readable.trim_end_matches('-'))
}

/// Whether this is the name of a child of the cluster with this name.
pub fn is_child(cluster: &str, name: &str) -> bool {
    let (readable, mark) = (cluster.replace('.', "-"), format!("-{}-", hash(cluster, HASH_DIGITS)));
    name.match_indices(&mark).any(|(at, _)| at > 0 && readable.starts_with(&name[..at]))
}

/// The name of a child that another cluster of the same name, earlier or later, does not have.
pub fn of_life(cluster: &str, uid: &str, what: &str) -> String {
    child(cluster, &format!("{what}-{}", hash(uid, LIFE_DIGITS)))
}

/// Tells one text from another in an annotation.
pub fn fingerprint(text: &str) -> String {
    hash(text, LIFE_DIGITS)
}

fn hash(text: &str, digits: usize) -> String {
    Sha256::digest(text).iter().take(digits / 2).fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes any write");
        text
    })
}

/// The name of a cluster or job as a label can have it: itself, or its beginning and a hash where it is too long.
pub fn label(name: &str) -> String {
    if name.len() <= LENGTH_MAX {
        return name.to_owned();
    }
    let readable: String = name.chars().take(LENGTH_MAX - HASH_DIGITS - 1).collect();
    format!("{}-{}", readable.trim_end_matches(['-', '.']), hash(name, HASH_DIGITS))
}

/// The scheduler's pod and Service.
pub fn scheduler(cluster: &str) -> String {
    child(cluster, "scheduler")
}

/// The Service whose name in DNS is the scheduler's pod itself.
pub fn scheduler_pod(cluster: &str) -> String {
    child(cluster, "scheduler-pod")
}

/// One of a group's workers.
pub fn worker(cluster: &str, group: &str, index: u32) -> String {
    child(cluster, &format!("{group}-{index}"))
}

/// The pod of a job's attempt, counted from 0. Begins with a digit where those of clusters, of whatever
/// name, begin with a letter.
pub fn attempt(job: &str, nth: u32) -> String {
    child(job, &nth.to_string())
}

/// The run of a job with a schedule that is due at a time, in minutes since 1970.
pub fn run(job: &str, minute: i64) -> String {
    format!("{job}-{minute}")
}

#[cfg(test)]
mod tests {
    use super::{
        attempt, check_cluster, check_group, check_namespace, check_object, child, is_child, label,
        of_life, scheduler, worker,
    };

    #[test]
    fn children_of_whatever_name_are_known_by_it_and_others_are_not() {
        let long = "l".repeat(200);
        for cluster in ["risk", "a.b", "team-1.risk-2c6ef0-x", &long] {
            for name in [scheduler(cluster), worker(cluster, "general", 7), child(cluster, "x")] {
                assert!(is_child(cluster, &name), "{name}");
                assert!(!is_child("other", &name) && !is_child(&format!("{cluster}s"), &name));
            }
            assert!(!is_child(cluster, cluster) && !is_child(cluster, "x"));
        }
    }

    #[test]
    fn names_that_kubernetes_would_refuse_are_refused() {
        for name in ["", ".", "..", "/home", "a/b", "A", "a.", "-a", "a-", "a..b", "a b"] {
            assert!(check_object(name).is_err(), "{name}");
            assert!(check_namespace(name).is_err(), "{name}");
            assert!(check_group(name).is_err(), "{name}");
        }
        assert_eq!((check_object("a.b-1"), check_cluster("a.b-1")), (Ok(()), Ok(())));
        assert_eq!(check_object("2026-risk"), Ok(()));
        assert!(check_cluster("2026-risk").is_err() && check_cluster("a..b").is_err());
        assert_eq!(check_namespace("team-1"), Ok(()));
        assert!(check_namespace("a.b").is_err() && check_group("1a").is_err());
        assert!(check_group(&"x".repeat(21)).is_err() && check_object(&"x".repeat(254)).is_err());
    }

    #[test]
    fn a_name_of_any_length_gives_names_that_kubernetes_takes() {
        for cluster in ["a".to_owned(), "a.b".to_owned(), "x".repeat(253), "x-".repeat(100) + "x"] {
            let name = worker(&cluster, "a-group-of-20-letter", 9_999);
            assert!(name.len() <= 63, "{name}");
            assert!(
                name.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
            );
            assert!(
                !name.starts_with('-') && !name.ends_with('-') && !name.contains('.'),
                "{name}"
            );
        }
    }

    #[test]
    fn a_name_is_its_own_label_and_a_long_one_has_one_that_no_other_has() {
        assert_eq!(label("team-1.risk"), "team-1.risk");
        let (long, other) = ("x.".repeat(60) + "x", "x.".repeat(61) + "x");
        for name in [&long, &other] {
            let label = label(name);
            assert!(label.len() <= 63 && check_object(&label).is_ok(), "{label}");
        }
        assert_ne!(label(&long), label(&other));
    }

    #[test]
    fn an_attempt_of_a_job_never_has_the_name_of_a_worker_of_the_cluster_with_the_job_s_name() {
        for group in ["1", "0", "1-0"] {
            assert!(check_group(group).is_err(), "{group}");
        }
        assert_eq!(attempt("a", 1).rsplit('-').next(), Some("1"));
        assert_ne!(attempt("a", 10), worker("a", "1", 0));
    }

    #[test]
    fn clusters_whose_names_run_into_each_other_have_children_that_do_not() {
        assert_ne!(child("a", "b-scheduler"), child("a-b", "scheduler"));
        assert_ne!(child(&("x".repeat(60) + "1"), "s"), child(&("x".repeat(60) + "2"), "s"));
        assert_ne!(child("a.b", "s"), child("a-b", "s"));
        assert_ne!(of_life("a", "uid 1", "token"), of_life("a", "uid 2", "token"));
    }
}
