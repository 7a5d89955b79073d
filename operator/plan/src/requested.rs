//! What the pods of a cluster ask for, as its status counts them.

use std::ops::AddAssign;

use ebbtide_api::Cluster;

/// Cores and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Requested {
    /// Cores.
    pub cpus: f64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

impl Requested {
    /// What the scheduler and the workers that live ask for, once anything was made of the spec.
    pub fn by(cluster: &Cluster) -> Self {
        let Some(status) = cluster.status.as_ref().filter(|it| it.image.is_some()) else {
            return Self::default();
        };
        let workers = cluster.spec.workers.iter().map(|group| {
            let counted = status.groups.iter().find(|it| it.name == group.name);
            let living =
                counted.map_or(0, |it| it.workers.starting.saturating_add(it.workers.ready));
            (&group.resources, u32::try_from(living).unwrap_or_default())
        });
        let scheduler = std::iter::once((&cluster.spec.scheduler.resources, 1));
        scheduler.chain(workers).fold(Self::default(), |mut sum, (each, pods)| {
            sum += Self {
                cpus: each.cpu().value().unwrap_or_default() * f64::from(pods),
                memory_bytes: each.memory_bytes().saturating_mul(u64::from(pods)),
            };
            sum
        })
    }
}

impl AddAssign for Requested {
    fn add_assign(&mut self, other: Self) {
        self.cpus += other.cpus;
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
    }
}
