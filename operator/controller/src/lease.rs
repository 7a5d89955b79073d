//! Which of several operators works: the one that holds the lease, and renews it while it works.
//!
//! Time is judged by this process alone: a lease is over when its record has not changed for as long
//! as it says, seen from here. Every write carries the version that was read, so that of two that
//! see the same lease end one gets it. Who cannot renew in time stops before anybody else may begin.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client, ResourceExt as _};
use tokio::time::{Instant, sleep};

use crate::api_call::{CallError, call, call_within};
use crate::operator::Clock;

const NAME: &str = "ebbtide-operator";

/// How long a lease that nobody renews is respected.
pub const LEASE: Duration = Duration::from_secs(15);

/// How often the holder renews.
const RENEW: Duration = Duration::from_secs(3);

/// How long the holder works on without a renewal: it stops before the lease is over for others,
/// with time for a write that is on its way.
const RENEW_MAX: Duration = Duration::from_secs(10);

/// How long the holder waits for an answer before it tries again.
const TRY_MAX: Duration = Duration::from_secs(4);

/// How often others look, and the holder tries again what failed.
const LOOK: Duration = Duration::from_millis(500);

/// A wish to hold the lease.
pub struct Candidate {
    leases: Api<Lease>,
    identity: String,
    clock: Clock,
    seen: Option<Seen>,
}

/// The lease while it is held here.
pub struct Held {
    candidate: Candidate,
    record: Lease,
    renewed_at: Instant,
}

/// A record of somebody else, and since when it has been so.
#[derive(Clone, Debug)]
struct Seen {
    version: Option<String>,
    since: Instant,
}

impl Candidate {
    /// Wants the lease of the operators of this namespace, under a name that no other process has.
    pub fn new(client: Client, namespace: &str, identity: String, clock: Clock) -> Self {
        Self { leases: Api::namespaced(client, namespace), identity, clock, seen: None }
    }

    /// Waits until the lease is held here.
    pub async fn acquire(mut self) -> Held {
        loop {
            match self.try_to_acquire().await {
                Ok(Some((record, asked_at))) => {
                    tracing::info!(identity = self.identity, "this operator holds the lease");
                    return Held { candidate: self, record, renewed_at: asked_at };
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "the lease cannot be looked at"),
            }
            sleep(LOOK).await;
        }
    }

    /// The lease, and since when it is held for certain: when it was asked for.
    async fn try_to_acquire(&mut self) -> Result<Option<(Lease, Instant)>, CallError> {
        let there = call("read the lease", self.leases.get_opt(NAME)).await?;
        if !is_free(there.as_ref(), &self.identity, &mut self.seen, Instant::now()) {
            return Ok(None);
        }
        let taken = record(there.as_ref(), &self.identity, (self.clock)());
        let (params, asked_at) = (PostParams::default(), Instant::now());
        let written = match &there {
            None => call("create the lease", self.leases.create(&params, &taken)).await,
            Some(_) => call("take the lease", self.leases.replace(NAME, &params, &taken)).await,
        };
        match written {
            // An answer that took so long tells nothing: it may be somebody else's by now.
            Ok(_) if asked_at.elapsed() + LOOK > RENEW_MAX => Ok(None),
            Ok(record) => Ok(Some((record, asked_at))),
            // Somebody else was faster.
            Err(error) if error.is_conflict() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Held {
    /// Renews the lease until it is lost, and tells why.
    pub async fn keep(&mut self) -> String {
        loop {
            sleep(if self.renewed_at.elapsed() < RENEW { RENEW } else { LOOK }).await;
            let now = (self.candidate.clock)();
            let next = record(Some(&self.record), &self.candidate.identity, now);
            let asked_at = Instant::now();
            match self.write(&next).await {
                Ok(record) => (self.record, self.renewed_at) = (record, asked_at),
                // It was written, and the answer was lost; or somebody edited it.
                Err(error) if error.is_conflict() => match self.is_still_held().await {
                    Ok(true) => {}
                    Ok(false) => return format!("somebody else has taken the lease: {error}"),
                    Err(error) => tracing::warn!(%error, "the lease cannot be looked at"),
                },
                Err(error) => tracing::warn!(%error, "the lease cannot be renewed"),
            }
            if self.renewed_at.elapsed() + LOOK > RENEW_MAX {
                return format!("the lease was not renewed for {RENEW_MAX:?}");
            }
        }
    }

    /// Looks whether the lease is still held here, whoever wrote it last. That it is renews nothing.
    async fn is_still_held(&mut self) -> Result<bool, CallError> {
        let there = self.try_once("read the lease", self.candidate.leases.get_opt(NAME)).await?;
        let is_ours = |it: &Lease| {
            let holder = it.spec.as_ref().and_then(|it| it.holder_identity.as_ref());
            holder == Some(&self.candidate.identity)
        };
        let Some(there) = there.filter(is_ours) else { return Ok(false) };
        self.record = there;
        Ok(true)
    }

    /// Gives the lease to whoever wants it.
    pub async fn release(mut self) {
        let Err(error) = self.free().await else { return };
        // Its record is another one after a renewal whose answer was lost.
        let freed = match self.is_still_held().await {
            Ok(true) => self.free().await,
            Ok(false) => Ok(()),
            Err(_) => Err(error),
        };
        if let Err(error) = freed {
            tracing::warn!(%error, "the lease ends by itself");
        }
    }

    async fn free(&self) -> Result<(), CallError> {
        let mut free = self.record.clone();
        if let Some(spec) = &mut free.spec {
            spec.holder_identity = Some(String::new());
        }
        self.write(&free).await.map(drop)
    }

    async fn write(&self, next: &Lease) -> Result<Lease, CallError> {
        let params = PostParams::default();
        self.try_once("write the lease", self.candidate.leases.replace(NAME, &params, next)).await
    }

    /// Makes a call that ends before the lease does.
    async fn try_once<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CallError> {
        let rest = RENEW_MAX.saturating_sub(self.renewed_at.elapsed());
        call_within(rest.min(TRY_MAX), what, request).await
    }
}

/// Whether a lease may be taken.
fn is_free(there: Option<&Lease>, identity: &str, seen: &mut Option<Seen>, now: Instant) -> bool {
    let Some(there) = there else { return true };
    let spec = there.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.unwrap_or_default();
    // A process of this name that ended has left it.
    if holder.is_empty() || holder == identity {
        return true;
    }
    let version = there.resource_version();
    let known = seen.take().filter(|it| it.version == version);
    let known = known.unwrap_or(Seen { version, since: now });
    let seconds = spec.lease_duration_seconds.and_then(|it| u64::try_from(it).ok());
    let length = seconds.map_or(LEASE, Duration::from_secs).min(4 * LEASE);
    let is_over = now.duration_since(known.since) > length;
    *seen = Some(known);
    is_over
}

/// The record of a lease that is held from now on, or still.
fn record(there: Option<&Lease>, identity: &str, now: Timestamp) -> Lease {
    let before = there.and_then(|it| it.spec.clone()).unwrap_or_default();
    let is_same = before.holder_identity.as_deref() == Some(identity);
    let transitions = before.lease_transitions.unwrap_or_default();
    Lease {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            resource_version: there.and_then(kube::ResourceExt::resource_version),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(identity.to_owned()),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            renew_time: Some(MicroTime(now)),
            acquire_time: if is_same { before.acquire_time } else { Some(MicroTime(now)) },
            lease_transitions: Some(transitions.saturating_add(i32::from(!is_same))),
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use k8s_openapi::api::coordination::v1::Lease;
    use tokio::time::Instant;

    use super::{LEASE, is_free, record};

    fn held(version: u64) -> Lease {
        let mut lease = record(None, "other", Timestamp::UNIX_EPOCH);
        lease.metadata.resource_version = Some(version.to_string());
        lease
    }

    #[test]
    fn a_lease_is_over_when_its_record_has_not_changed_for_its_length_as_seen_from_here() {
        let begin = Instant::now();
        let mut seen = None;
        let mut look = |lease: &Lease, seconds: u64| {
            is_free(Some(lease), "me", &mut seen, begin + Duration::from_secs(seconds))
        };
        // Its times say that it was over long ago: another machine's clock.
        assert!(!look(&held(1), 0) && !look(&held(1), LEASE.as_secs()));
        assert!(!look(&held(2), LEASE.as_secs() + 1), "it was renewed");
        assert!(!look(&held(2), 2 * LEASE.as_secs()));
        assert!(look(&held(2), 2 * LEASE.as_secs() + 2));
    }

    #[test]
    fn a_lease_that_nobody_has_or_that_is_one_s_own_is_free_at_once() {
        let now = Instant::now();
        assert!(is_free(None, "me", &mut None, now));
        assert!(is_free(Some(&held(1)), "other", &mut None, now));
        let mut released = held(1);
        released.spec.as_mut().unwrap().holder_identity = Some(String::new());
        assert!(is_free(Some(&released), "me", &mut None, now));
    }

    #[test]
    fn who_takes_over_is_told_from_who_renews() {
        let now = Timestamp::UNIX_EPOCH;
        let spec = |lease: Lease| lease.spec.unwrap();
        let first = record(None, "a", now);
        assert_eq!(spec(first.clone()).lease_transitions, Some(1));
        assert_eq!(spec(record(Some(&first), "a", now)).lease_transitions, Some(1));
        assert_eq!(spec(record(Some(&first), "b", now)).lease_transitions, Some(2));
    }
}
