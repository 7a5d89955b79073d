//! All reads of one reconcile.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebbtide_api::{Cluster, ClusterJob, ClusterStatus, names};
use ebbtide_plan::queue::Key;
use ebbtide_plan::{ChildSeen, Observed, PodSeen};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::time::Instant;

use crate::known::{clients_of, key, slim_metadata};
use crate::reconcile::Context;
use crate::slim::seen;

/// How soon it is looked again after something was not there that was to be written or deleted.
const MISSED_LOOK: Duration = Duration::from_secs(5);

/// How long it is believed that a Secret that was created or found is still there. One that somebody
/// deletes comes back after that.
const SECRET_BELIEF: Duration = Duration::from_mins(1);

/// How long it is believed that something is there that was created or written and no watch has shown
/// yet.
const CREATED_BELIEF: Duration = Duration::from_secs(10);

/// How long it is believed that a definition has not changed that keeps less of a status than was written.
const KEPT_BELIEF: Duration = Duration::from_hours(1);

/// How long a status waits that says no more than other counts: pods come and go in numbers.
const STATUS_WAIT: Duration = Duration::from_secs(1);

/// Statuses of one cluster that may be written in a row, and how long until there may be one more.
const STATUSES: u32 = 6;
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Events of one cluster that may be told in a row, and how long until there may be one more.
const EVENTS: u32 = 8;
const EVENT_EVERY: Duration = Duration::from_secs(30);

/// Things of one cluster that may be set right in a row, and how long until there may be one more: somebody else
/// may want them otherwise.
const RESTORED: u32 = 8;
const RESTORED_EVERY: Duration = Duration::from_secs(30);

/// What this operator knows of clusters and jobs that no watch shows.
#[derive(Debug, Default)]
pub(crate) struct Beliefs(Mutex<BTreeMap<Key, Belief>>);

/// What is believed of one cluster.
#[derive(Debug, Default)]
struct Belief {
    uid: String,
    /// What was made or found, and since when that is known.
    there: BTreeMap<String, Instant>,
    /// What of it says something else than it was made with, by the doing of the API server itself.
    says: BTreeMap<String, String>,
    /// How often in a row something went wrong.
    failures: u32,
    /// Whether something was not there any more that was to be written or deleted.
    has_missed: bool,
    /// The status that was written last, until a watch shows it.
    written: Option<Written>,
    /// Whether any was.
    has_written: bool,
    /// Since when another status waits to be written, and that status.
    waits_since: Option<Instant>,
    waiting: Option<ClusterStatus>,
    /// Of statuses that are not urgent, and of those that are.
    statuses: [Allowance; 2],
    events: Allowance,
    restored: Allowance,
    /// Whether a watch told that it was created, and nobody has looked at it since.
    is_new: bool,
    /// Pods that were created and that no watch has shown yet.
    pods: BTreeMap<String, (PodSeen, Instant)>,
    /// A job as it was written last.
    job: Option<ClusterJob>,
}

/// A status that was written.
#[derive(Debug)]
struct Written {
    status: ClusterStatus,
    /// What the API server kept of it: less, if its definition is an older one.
    kept: Option<ClusterStatus>,
    /// Which version of the cluster that made, and of which generation.
    version: (Option<String>, Option<i64>),
    at: Instant,
}

/// How often something may be done: a stock that fills up again.
#[derive(Debug, Default)]
struct Allowance {
    used: f64,
    at: Option<Instant>,
}

impl Allowance {
    /// How long to wait, of a stock of so many that gets one back every so often. Takes one if there
    /// is nothing to wait for.
    fn take(&mut self, stock: u32, every: Duration) -> Duration {
        let now = Instant::now();
        let back = self.at.map_or(0.0, |at| now.duration_since(at).div_duration_f64(every));
        self.used = (self.used - back).max(0.0);
        self.at = Some(now);
        let over = self.used + 1.0 - f64::from(stock);
        if over > 0.0 {
            return every.mul_f64(over);
        }
        self.used += 1.0;
        Duration::ZERO
    }
}

impl Beliefs {
    /// Something of a cluster was created or found.
    pub(crate) fn learn(&self, cluster: &Cluster, what: String) {
        let uid = cluster.metadata.uid.clone().unwrap_or_default();
        let mut all = self.lock();
        let belief = all.entry(key(cluster)).or_default();
        belief.be_about(&uid);
        belief.there.insert(what, Instant::now());
    }

    /// Something of a cluster was created, and says this, where it should say that. What an API server makes of it
    /// is nobody's edit.
    pub(crate) fn says(&self, cluster: &Cluster, what: &str, [says, asked]: [Option<String>; 2]) {
        let mut all = self.lock();
        let belief = all.entry(key(cluster)).or_default();
        belief.be_about(cluster.metadata.uid.as_deref().unwrap_or_default());
        match says.filter(|says| asked.as_ref() != Some(says)) {
            Some(says) => belief.says.insert(what.to_owned(), says),
            None => belief.says.remove(what),
        };
    }

    /// What is there, with what it says unless that is the API server's doing.
    fn child(
        &self,
        key: &Key,
        what: &str,
        (uid, says): (Option<String>, Option<&String>),
    ) -> ChildSeen {
        let all = self.lock();
        let made = all.get(key).and_then(|it| it.says.get(what));
        ChildSeen { uid, says: says.filter(|it| made != Some(it)).cloned() }
    }

    /// Something of a cluster was deleted.
    pub(crate) fn unlearn(&self, cluster: &Cluster, what: &str) {
        if let Some(belief) = self.lock().get_mut(&key(cluster)) {
            belief.there.remove(what);
        }
    }

    /// What is believed about a cluster, and how much longer. What is too old is forgotten: creating it
    /// again finds out.
    fn recall(&self, key: &Key, uid: &str) -> BTreeMap<String, Duration> {
        let mut all = self.lock();
        let Some(belief) = all.get_mut(key) else { return BTreeMap::new() };
        belief.be_about(uid);
        let rest = |what: &str, since: Instant| {
            let is_secret = what.starts_with(SECRET);
            let belief = if is_secret { SECRET_BELIEF } else { CREATED_BELIEF };
            belief.saturating_sub(since.elapsed())
        };
        belief.there.retain(|what, since| !rest(what, *since).is_zero());
        belief.there.iter().map(|(what, since)| (what.clone(), rest(what, *since))).collect()
    }

    /// A status of a cluster was written, and this is what the cluster is now.
    pub(crate) fn wrote(&self, status: &ClusterStatus, cluster: Cluster) {
        let uid = cluster.metadata.uid.clone().unwrap_or_default();
        let mut all = self.lock();
        let belief = all.entry(key(&cluster)).or_default();
        belief.be_about(&uid);
        belief.written = Some(Written {
            status: status.clone(),
            kept: cluster.status,
            version: (cluster.metadata.resource_version, cluster.metadata.generation),
            at: Instant::now(),
        });
        belief.has_written = true;
        (belief.waits_since, belief.waiting) = (None, None);
    }

    /// Whether this operator has written a status of a cluster. Until then what a watch shows of its status
    /// is news: the list before it may have been from before what another one wrote.
    pub(crate) fn has_written(&self, key: &Key, uid: &str) -> bool {
        self.lock().get(key).is_some_and(|it| it.uid == uid && it.has_written)
    }

    /// A status of a cluster waits to be written.
    pub(crate) fn waits(&self, cluster: &Cluster, status: &ClusterStatus) {
        let mut all = self.lock();
        all.entry(key(cluster)).or_default().waiting = Some(status.clone());
    }

    /// A cluster as the plan must know it: since when there was no work is decided from, though it is
    /// not written yet.
    pub(crate) fn as_planned(&self, key: &Key, cluster: &Cluster) -> Cluster {
        let mut cluster = cluster.clone();
        let all = self.lock();
        let waiting = all.get(key).and_then(|it| it.waiting.as_ref());
        if let (Some(status), Some(waiting)) = (&mut cluster.status, waiting) {
            status.idle_since.clone_from(&waiting.idle_since);
            status.jobs = waiting.jobs;
            status.credentials.clone_from(&waiting.credentials);
            for group in &mut status.groups {
                if let Some(planned) = waiting.groups.iter().find(|it| it.name == group.name) {
                    group.idle_since.clone_from(&planned.idle_since);
                }
            }
        }
        cluster
    }

    /// How long a status that is not urgent waits for others, from the first time that this is asked.
    pub(crate) fn wait_of_status(&self, cluster: &Cluster) -> Duration {
        let mut all = self.lock();
        let belief = all.entry(key(cluster)).or_default();
        belief.be_about(cluster.metadata.uid.as_deref().unwrap_or_default());
        let since = *belief.waits_since.get_or_insert_with(Instant::now);
        STATUS_WAIT.saturating_sub(since.elapsed())
    }

    /// How long a cluster's status must wait because so many were written of late; zero takes one.
    pub(crate) fn status_allowance(&self, key: &Key, is_urgent: bool) -> Duration {
        let mut all = self.lock();
        let statuses = &mut all.entry(key.clone()).or_default().statuses;
        statuses[usize::from(is_urgent)].take(STATUSES, STATUS_EVERY)
    }

    /// Whether another thing of a cluster may be set right that somebody edited.
    pub(crate) fn may_restore(&self, cluster: &Cluster) -> bool {
        let mut all = self.lock();
        let belief = all.entry(key(cluster)).or_default();
        belief.restored.take(RESTORED, RESTORED_EVERY).is_zero()
    }

    /// Whether another event of a cluster may be told.
    pub(crate) fn may_tell(&self, key: &Key) -> bool {
        let mut all = self.lock();
        all.entry(key.clone()).or_default().events.take(EVENTS, EVENT_EVERY).is_zero()
    }

    /// A watch told that a cluster was created.
    pub(crate) fn came(&self, key: &Key, uid: &str) {
        let mut all = self.lock();
        let belief = all.entry(key.clone()).or_default();
        belief.be_about(uid);
        belief.is_new = true;
    }

    /// Whether a watch told that a cluster was created, and this is the first look at it.
    pub(crate) fn begins(&self, cluster: &Cluster) -> bool {
        let mut all = self.lock();
        let belief = all.entry(key(cluster)).or_default();
        belief.be_about(cluster.metadata.uid.as_deref().unwrap_or_default());
        mem::take(&mut belief.is_new)
    }

    /// A pod was created.
    pub(crate) fn made(&self, cluster: &Cluster, pod: &Pod) {
        let mut all = self.lock();
        let belief = all.entry(key(cluster)).or_default();
        belief.be_about(cluster.metadata.uid.as_deref().unwrap_or_default());
        let seen = PodSeen {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            labels: pod.labels().clone(),
            made_from: pod.annotations().get(names::MADE_FROM).cloned(),
            image: pod.annotations().get(names::IMAGE).cloned(),
            created_at: pod.creation_timestamp().map(|time| time.0),
            ..PodSeen::default()
        };
        belief.pods.insert(seen.name.clone(), (seen, Instant::now()));
    }

    /// Pods that were created of late and that no watch has shown yet, and how much longer they are
    /// believed in.
    fn made_unseen(&self, key: &Key, shown: &[PodSeen]) -> Vec<(PodSeen, Duration)> {
        let mut all = self.lock();
        let Some(belief) = all.get_mut(key) else { return Vec::new() };
        let rest = |since: &Instant| CREATED_BELIEF.saturating_sub(since.elapsed());
        belief.pods.retain(|name, (_, since)| {
            !rest(since).is_zero() && shown.iter().all(|it| it.name != *name)
        });
        belief.pods.values().map(|(pod, since)| (pod.clone(), rest(since))).collect()
    }

    /// A cluster with the status that was written last, if no watch has shown it yet or an older definition
    /// keeps less of it: writing it again would change nothing.
    pub(crate) fn with_written(&self, key: &Key, cluster: &Cluster) -> Cluster {
        let mut cluster = cluster.clone();
        let mut all = self.lock();
        let Some(belief) = all.get_mut(key) else { return cluster };
        belief.be_about(cluster.metadata.uid.as_deref().unwrap_or_default());
        let is_news = |it: &Written| {
            let shown = cluster.status.as_ref();
            let belief = if shown == it.kept.as_ref() { KEPT_BELIEF } else { CREATED_BELIEF };
            shown != Some(&it.status) && it.at.elapsed() < belief
        };
        belief.written = belief.written.take().filter(is_news);
        if let Some(written) = &belief.written {
            let (version, generation) = &written.version;
            if cluster.status != written.kept && cluster.metadata.generation == *generation {
                cluster.metadata.resource_version.clone_from(version);
            }
            cluster.status = Some(written.status.clone());
        }
        cluster
    }

    /// Somebody else wrote a cluster's status: what was written before is there no more.
    pub(crate) fn overwritten(&self, key: &Key) {
        self.lock().entry(key.clone()).or_default().written = None;
    }

    /// The status of a job was written.
    pub(crate) fn wrote_job(&self, key: &Key, mut job: ClusterJob) {
        slim_metadata(&mut job.metadata);
        self.lock().entry(key.clone()).or_default().job = Some(job);
    }

    /// A job as it was written last, if no watch has shown that yet or anything later.
    pub(crate) fn newest(&self, key: &Key, shown: &ClusterJob) -> ClusterJob {
        let version = |it: &ClusterJob| -> Option<u64> { it.resource_version()?.parse().ok() };
        let mut all = self.lock();
        let written = all.get_mut(key).map(|it| &mut it.job);
        let is_newer = |it: &ClusterJob| it.uid() == shown.uid() && version(it) > version(shown);
        let newest = written.and_then(|it| {
            *it = it.take().filter(is_newer);
            it.clone()
        });
        newest.unwrap_or_else(|| shown.clone())
    }

    /// A look at a cluster or job went wrong. Gives how often in a row one did before.
    pub(crate) fn failed(&self, key: &Key) -> u32 {
        let mut all = self.lock();
        let failures = &mut all.entry(key.clone()).or_default().failures;
        *failures = failures.saturating_add(1);
        *failures - 1
    }

    /// Something was not there that was to be written or deleted. Most likely that comes to be known.
    pub(crate) fn missed(&self, key: &Key) {
        self.lock().entry(key.clone()).or_default().has_missed = true;
    }

    /// A look at a cluster or job went well. Gives when to see whether what was not there is known to be gone.
    pub(crate) fn succeeded(&self, key: &Key) -> Option<Duration> {
        let mut all = self.lock();
        let belief = all.get_mut(key)?;
        belief.failures = 0;
        mem::take(&mut belief.has_missed).then_some(MISSED_LOOK)
    }

    /// A cluster is gone.
    pub(crate) fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Belief>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Belief {
    /// What is known of an earlier cluster of the name is not of this one.
    fn be_about(&mut self, uid: &str) {
        if self.uid != uid {
            self.there.clear();
            self.says.clear();
            (self.written, self.has_written, self.is_new) = (None, false, false);
            (self.waits_since, self.waiting) = (None, None);
            self.pods.clear();
            uid.clone_into(&mut self.uid);
        }
    }
}

pub(crate) fn secret(name: &str) -> String {
    format!("{SECRET}{name}")
}

pub(crate) fn network_policy(name: &str) -> String {
    format!("{NETWORK_POLICY}{name}")
}

pub(crate) fn service(name: &str) -> String {
    format!("{SERVICE}{name}")
}

const SECRET: &str = "secret/";
const SERVICE: &str = "service/";
const NETWORK_POLICY: &str = "network policy/";

/// Reads what is known of a cluster. Pods, Services and policy come from the caches, demand from the
/// scheduler's own connection, Secrets from what this operator made, so that a cluster that is as it
/// should be costs the API server nothing. Gives also when to look again because something is believed
/// to be there that no watch shows: somebody may have taken it away.
pub(crate) fn observe(
    context: &Context,
    key: &Key,
    cluster: &Cluster,
) -> (Observed, Option<Duration>) {
    let uid = cluster.metadata.uid.as_deref().unwrap_or_default();
    let namespace = key.namespace.as_str();
    let known = context.beliefs.recall(key, uid);
    let services = context.services.of(namespace, uid);
    let mut services: BTreeMap<String, ChildSeen> = services
        .iter()
        .map(|it| {
            let what = service(&it.name_any());
            (it.name_any(), context.beliefs.child(key, &what, (it.uid(), it.says.as_ref())))
        })
        .collect();
    let policies = context.policies.of(namespace, uid);
    let mut network_policies: BTreeMap<String, ChildSeen> = policies
        .iter()
        .map(|it| {
            let what = network_policy(&it.name_any());
            (it.name_any(), context.beliefs.child(key, &what, (it.uid(), it.says.as_ref())))
        })
        .collect();
    let mut pods: Vec<PodSeen> =
        context.pods.of(namespace, uid).iter().map(|pod| seen(pod)).collect();
    let (mut secrets, mut doubts) = (BTreeSet::new(), Vec::new());
    for (what, rest) in known {
        let is_news = if let Some(name) = what.strip_prefix(SECRET) {
            secrets.insert(name.to_owned());
            false
        } else if let Some(name) = what.strip_prefix(SERVICE) {
            believed(&mut services, name)
        } else if let Some(name) = what.strip_prefix(NETWORK_POLICY) {
            believed(&mut network_policies, name)
        } else {
            false
        };
        doubts.extend(is_news.then_some(rest));
    }
    let clients = context.pods.of(namespace, &clients_of(uid));
    for (pod, rest) in context.beliefs.made_unseen(key, &pods) {
        pods.push(pod);
        doubts.push(rest);
    }
    let observed = Observed {
        secrets,
        authority: context.authority.borrow().edition().to_owned(),
        services,
        network_policies,
        pods,
        has_client_that_begins: clients.iter().any(|it| seen(it).is_beginning()),
        demand: context.schedulers.demand(uid),
        silent_for: context.schedulers.silent_for(uid),
        busy_ago: context.schedulers.busy_ago(uid),
        heard_ago: context.schedulers.heard_ago(uid),
    };
    (observed, doubts.into_iter().min())
}

/// Takes for there what no watch shows. Tells whether that is so.
fn believed(there: &mut BTreeMap<String, ChildSeen>, name: &str) -> bool {
    let is_news = !there.contains_key(name);
    there.entry(name.to_owned()).or_default();
    is_news
}

#[cfg(test)]
mod tests {
    use ebbtide_api::{Cluster, ClusterStatus, Phase};
    use serde_json::json;

    use super::Beliefs;
    use crate::known::key;

    #[test]
    fn a_status_that_was_written_is_known_before_a_watch_shows_it_and_of_this_cluster_alone() {
        let spec = json!({
            "image": "image@sha256:1",
            "workers": [{ "name": "w", "resources": { "cpu": "1", "memory": "1Gi" }, "max": 1 }],
        });
        let mut cluster = Cluster::new("risk", serde_json::from_value(spec).unwrap());
        cluster.metadata.uid = Some("u-1".to_owned());
        let (beliefs, key) = (Beliefs::default(), key(&cluster));
        let written = ClusterStatus { phase: Phase::Ready, ..ClusterStatus::default() };
        beliefs.wrote(&written, Cluster { status: Some(written.clone()), ..cluster.clone() });
        assert_eq!(beliefs.with_written(&key, &cluster).status, Some(written));
        cluster.metadata.uid = Some("u-2".to_owned());
        assert_eq!(beliefs.with_written(&key, &cluster).status, None);
    }
}
