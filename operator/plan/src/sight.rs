//! What a cluster has and what it should have: from here on a spec is followed, or only what is there goes on.

use ebbtide_api::{Cluster, ClusterStatus};
use jiff::Timestamp;

use crate::children::Children;
use crate::lifetime::{self, Idle};
use crate::scaling::{self, Target};
use crate::{Change, Observed, Site, gone, status};

pub(crate) struct Sight<'a> {
    cluster: &'a Cluster,
    observed: &'a Observed,
    site: &'a Site,
    now: Timestamp,
    pub(crate) children: Children,
    pub(crate) idle: Idle,
    pub(crate) targets: Vec<Target>,
}

impl<'a> Sight<'a> {
    /// With an image, pods of another one go whatever they do.
    pub(crate) fn of(
        cluster: &'a Cluster,
        observed: &'a Observed,
        site: &'a Site,
        image: Option<&str>,
        now: Timestamp,
    ) -> Self {
        let children = Children::sort(cluster, observed, image, now);
        let idle = lifetime::idle(cluster, observed, now);
        let targets = scaling::targets(cluster, &children, observed, &idle, now);
        Self { cluster, observed, site, now, children, idle, targets }
    }

    /// Its end, when there was no work for long enough.
    pub(crate) fn end(&self) -> Option<Change> {
        self.idle.is_over.then(|| gone(self.cluster, "there was no work for too long"))
    }

    /// The workers that are not needed any more.
    pub(crate) fn fewer(&self) -> Vec<Change> {
        scaling::fewer(self.cluster, &self.children, &self.targets)
    }

    /// Its status with this image, one that its spec asks for and that it cannot have, and the key of its packages.
    pub(crate) fn status(
        &self,
        image: &str,
        other: Option<&str>,
        key: Option<String>,
    ) -> ClusterStatus {
        let Self { cluster, observed, site, now, children, idle, targets } = self;
        status::observed(&status::Facts {
            cluster,
            children,
            observed,
            site,
            image,
            other,
            key,
            idle,
            targets,
            now: *now,
        })
    }
}
