//! Names and labels of what a cluster is made of. Two clusters of a namespace never share one.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// Label: who manages this.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const MANAGER: &str = "ebbtide";
/// Label: `metadata.uid` of the cluster.
pub const CLUSTER_UID: &str = "ebbtide.dev/cluster-uid";
/// Label: `scheduler` or `worker`.
pub const ROLE: &str = "ebbtide.dev/role";
/// Label: the worker group.
pub const WORKER_GROUP: &str = "ebbtide.dev/group";
/// Label: which of the group's workers.
pub const INDEX: &str = "ebbtide.dev/index";

/// Longest name of a pod that may also be a label and a host name.
const LENGTH_MAX: usize = 63;

/// Hexadecimal digits of the cluster's name in every child's name: 24 bits tell the clusters of a
/// namespace apart whose names begin alike, and the rest of the name tells most others.
const HASH_DIGITS: usize = 6;

/// The name of a child of the cluster with this name. `suffix` is at most 32 letters.
pub fn child(cluster: &str, suffix: &str) -> String {
    let digest = Sha256::digest(cluster);
    let hash = digest.iter().take(HASH_DIGITS / 2).fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes any write");
        text
    });
    let room = LENGTH_MAX - HASH_DIGITS - 2 - suffix.len();
    let readable: String = cluster.replace('.', "-").chars().take(room).collect();
    format!("{}-{hash}-{suffix}", readable.trim_end_matches('-'))
}

/// The scheduler's pod and Service.
pub fn scheduler(cluster: &str) -> String {
    child(cluster, "scheduler")
}

/// One of a group's workers.
pub fn worker(cluster: &str, group: &str, index: u32) -> String {
    child(cluster, &format!("{group}-{index}"))
}

#[cfg(test)]
mod tests {
    use super::{child, worker};

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
    fn clusters_whose_names_run_into_each_other_have_children_that_do_not() {
        assert_ne!(child("a", "b-scheduler"), child("a-b", "scheduler"));
        assert_ne!(child(&("x".repeat(60) + "1"), "s"), child(&("x".repeat(60) + "2"), "s"));
        assert_ne!(child("a.b", "s"), child("a-b", "s"));
    }
}
