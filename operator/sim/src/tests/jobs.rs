//! Jobs with a schedule.

use serde_json::{Value, json};

use crate::kinds;
use crate::lives::{job, within};
use crate::store::Store;
use crate::world::{Conditions, World};

/// The runs that a job tells to be at work.
fn active(store: &Store) -> Vec<Value> {
    let job = store.get(kinds::CLUSTER_JOB, "nightly").unwrap();
    job["status"]["active"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_schedule_tells_which_of_its_runs_is_at_work_until_that_ends() {
    within(|| async {
        let world = World::new(&Conditions::quiet());
        let mut nightly = job(false);
        nightly["spec"]["schedule"] = json!({ "cron": "* * * * *" });
        world.apply_a(kinds::CLUSTER_JOB, &nightly);
        for _ in 0..2 {
            world.until("a run is told", |store| active(store).len() == 1).await.unwrap();
            let [run] = &world.server.look(active)[..] else { panic!("one run") };
            let run = run.as_str().unwrap().to_owned();
            let phase = |store: &Store| {
                let run = store.get(kinds::CLUSTER_JOB, &run);
                run.map(|it| it["status"]["phase"].clone()).unwrap_or_default()
            };
            world
                .until("it has ended, and is told no more", |store| {
                    phase(store) == "Succeeded" && active(store).is_empty()
                })
                .await
                .unwrap();
        }
    });
}
