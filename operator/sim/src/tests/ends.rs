//! What a cluster leaves behind.

use serde_json::json;

use crate::kinds;
use crate::lives::{cluster, is_ready, job, within};
use crate::store::Store;
use crate::world::{Conditions, World};

/// Whether the cluster went after everything of it.
fn was_last(world: &World) -> bool {
    let of_clusters = [kinds::POD, kinds::SECRET, kinds::SERVICE, kinds::NETWORK_POLICY];
    world.server.look(|store| {
        let went = store.since(0).iter().filter(|it| it.after.is_none());
        let kinds: Vec<_> = went.map(|it| it.key.0).collect();
        let children = kinds.iter().rposition(|it| of_clusters.contains(it));
        children.is_some() && children < kinds.iter().rposition(|it| *it == kinds::CLUSTER)
    })
}

#[test]
fn a_cluster_that_nobody_uses_is_there_until_nothing_of_it_is() {
    within(|| async {
        let world = World::new(&Conditions::quiet());
        let mut unused = cluster("1Gi");
        unused["spec"]["lifetime"]["idle"]["after"] = json!("5m");
        world.apply(&unused);
        world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
        let is_gone =
            |store: &Store| has_none(store, kinds::CLUSTER) && has_none(store, kinds::POD);
        world.until("it is gone", is_gone).await.unwrap();
        assert!(was_last(&world), "{}", world.server.trace());
    });
}

#[test]
fn the_cluster_of_a_job_that_ended_is_there_until_nothing_of_it_is() {
    within(|| async {
        let world = World::new(&Conditions::quiet());
        world.apply_a(kinds::CLUSTER_JOB, &job(false));
        let is_gone = |store: &Store| {
            store.list(kinds::CLUSTER_JOB).all(|it| it["status"]["phase"] == "Succeeded")
                && has_none(store, kinds::CLUSTER)
                && has_none(store, kinds::SECRET)
        };
        world.until("it has ended", is_gone).await.unwrap();
        assert!(was_last(&world), "{}", world.server.trace());
    });
}

fn has_none(store: &Store, kind: kinds::Kind) -> bool {
    store.list(kind).next().is_none()
}
