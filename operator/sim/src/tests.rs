mod jobs;
mod leases;
mod refusals;
mod unreadable;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ebbtide_api::names;
use ebbtide_contract::tls::LEAF_LIFE;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::faults::{EDITED, Edit, EventFault, Fault};
use crate::growth::come_and_go;
use crate::kinds::{self, Kind};
use crate::lives::{
    LISTS, all, cluster, is_ready, play, play_all, stale_after_a_crash, status, with_jobs, within,
};
use crate::nodes::Failure;
use crate::store::{Deletion, Store};
use crate::world::{Conditions, World};

/// One of so many worlds is played, or fewer of them for a mutant.
fn step(otherwise: usize) -> usize {
    let asked = std::env::var("EBBTIDE_WORLDS_STEP").ok().and_then(|it| it.parse().ok());
    asked.unwrap_or(otherwise)
}

/// One of so many of the worlds that are about something.
fn some_of(about: &str, step: usize) -> Vec<Conditions> {
    let (_, worlds) = all().unwrap().into_iter().find(|it| it.0 == about).unwrap();
    worlds.into_iter().step_by(step).collect()
}

#[test]
fn whatever_goes_wrong_once_the_end_is_right_and_nobody_is_hurt_on_the_way() {
    let expected = play(&Conditions::quiet()).unwrap();
    // `make worlds` plays all of them.
    let worlds = some_of("one fault", step(1));
    play_all(&worlds, &expected).unwrap();
}

#[test]
fn whatever_somebody_takes_away_or_edits_at_any_moment_is_as_it_was() {
    let expected = play(&meddled()).unwrap();
    let worlds = some_of("somebody who takes away or edits what clusters have", 1);
    play_all(&worlds, &expected).unwrap();
}

#[test]
fn a_cluster_that_somebody_deletes_at_any_moment_goes_and_the_next_one_is_whole() {
    let expected = play(&Conditions::quiet()).unwrap();
    let worlds = some_of("a cluster that somebody deletes", 4 * step(1));
    play_all(&worlds, &expected).unwrap();
}

#[test]
fn a_server_that_is_away_and_clocks_that_are_wrong_change_nothing_in_the_end() {
    let expected = play(&Conditions::quiet()).unwrap();
    let mut worlds =
        some_of("a server that is away, or somebody between read and write", 2 * step(1));
    worlds.extend(some_of("wrong clocks and one fault", 10 * step(1)));
    worlds.extend(some_of("two operators at once and one fault", 10 * step(1)));
    play_all(&worlds, &expected).unwrap();
}

#[test]
fn a_job_comes_to_its_end_once_whatever_goes_wrong_and_nothing_is_left_of_it() {
    let expected = play(&Conditions::quiet()).unwrap();
    let worlds: Vec<Conditions> = with_jobs().unwrap().into_iter().step_by(step(3)).collect();
    assert!(worlds.len() > 500);
    play_all(&worlds, &expected).unwrap();
}

#[test]
fn a_job_whose_pod_is_not_shown_yet_has_no_other_one() {
    let expected = play(&Conditions::quiet()).unwrap();
    let mut worlds = with_jobs().unwrap();
    // A crash, and a list of pods, which is the third one, from before it.
    worlds.retain(|it| matches!(it.faults[..], [_, Fault::List(nth, _)] if nth == LISTS + 2));
    assert!(worlds.len() > 10);
    play_all(&worlds, &expected).unwrap();
}

#[test]
fn a_look_that_panics_hurts_its_cluster_for_a_moment_and_nobody_else_and_is_made_again() {
    within(|| async {
        let world = World::new(&Conditions {
            faults: (0..20).map(|nth| Fault::Panic(2 * nth)).collect(),
            ..Conditions::quiet()
        });
        for nth in 0..8 {
            let mut cluster = cluster("1Gi");
            cluster["metadata"]["name"] = json!(format!("risk-{nth}"));
            world.apply(&cluster);
        }
        world.apply(&cluster("1Gi"));
        world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
        let are_ready = |store: &Store| {
            store.list(kinds::CLUSTER).filter(|it| it["status"]["phase"] == "Ready").count() == 9
        };
        world.until("all are ready", are_ready).await.unwrap();
        world.rest(Duration::from_mins(10)).await.unwrap();
    });
}

#[test]
fn another_authority_and_others_who_may_reach_it_hold_in_the_end_whatever_goes_wrong_once() {
    let expected = play(&Conditions::quiet()).unwrap();
    let worlds = some_of("another authority and one fault", step(3));
    assert!(worlds.len() > 100);
    play_all(&worlds, &expected).unwrap();
}

#[test]
fn an_image_that_is_corrected_before_anything_ran_is_what_runs_whatever_goes_wrong_once() {
    let expected = play(&Conditions::quiet()).unwrap();
    let worlds = some_of("an image that is corrected and one fault", step(1));
    assert!(worlds.len() > 100);
    play_all(&worlds, &expected).unwrap();
}

#[test]
fn under_a_definition_from_before_an_operator_works_and_comes_to_rest() {
    let fields = ["credentials", "idleSince", "jobs", "phaseSince", "phases", "startedAt", "Quota"];
    for undefined in [&fields[..], &fields[..1], &fields[3..4], &fields[5..6], &fields[6..]] {
        within(|| async move {
            let world = World::new(&Conditions::quiet());
            world.server.change(|store, _| undefined.iter().for_each(|it| store.undefine(it)));
            world.apply(&cluster("1Gi"));
            let has_pods = |store: &Store| store.list(kinds::POD).next().is_some();
            world.until("its first pod is made", has_pods).await.unwrap();
            let label = json!({ "metadata": { "labels": { "team": "rates" } } });
            let labelled = world.server.change(|it, _| it.merge(kinds::CLUSTER, "risk", &label));
            assert!(labelled.is_ok());
            world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
            world.rest(Duration::from_mins(10)).await.unwrap();
            let before = world.children();
            world.restart(0);
            world.rest(Duration::from_mins(10)).await.unwrap();
            assert_eq!(world.children(), before);
            world.server.admit(|it| it.quota = Some(2));
            world.queue(3);
            let is_told = |store: &Store| status(store)["message"].to_string().contains("quota");
            world.until("it is told that there is no room", is_told).await.unwrap();
            sleep(Duration::from_mins(2)).await;
            let writes = || world.server.trace().matches("Replace clusters").count();
            let before = writes();
            assert!(before > 0);
            sleep(Duration::from_mins(10)).await;
            assert_eq!(writes(), before);
            world.server.admit(|it| it.quota = None);
            world.until("it has grown", |store| is_ready(store, 3)).await.unwrap();
        });
    }
}

#[test]
fn a_list_of_clusters_from_before_a_crash_hides_nothing() {
    let quiet = Conditions::quiet();
    let expected = play(&quiet).unwrap();
    let mut worlds = stale_after_a_crash(&quiet, expected.counts);
    worlds.retain(|it| matches!(it.faults[..], [_, Fault::List(LISTS, _)]));
    assert!(worlds.len() > 100);
    play_all(&worlds, &expected).unwrap();
}

#[test]
fn every_pod_may_fail_in_every_way() {
    let expected = play(&Conditions::quiet()).unwrap();
    let groups = all().unwrap();
    // What happens is seen, or is in no event that anybody sees.
    let is_of_interest = |it: &Conditions| match it.faults[..] {
        [] => true,
        [Fault::Event(_, EventFault::Missed)] => it.failure == Some((0, Failure::NodeLost)),
        _ => false,
    };
    let worlds = groups.into_iter().flat_map(|(_, it)| it).filter(is_of_interest);
    let worlds: Vec<Conditions> = worlds.collect();
    assert!(worlds.len() > 60);
    play_all(&worlds, &expected).unwrap();
}

#[test]
fn two_operators_that_both_work_make_no_wrong_pod_and_leave_what_one_leaves() {
    let both = Conditions { operators: 2, ..Conditions::quiet() };
    let left = |conditions: Conditions| {
        within(|| async move {
            let world = World::new(&conditions);
            world.apply(&cluster("1Gi"));
            sleep(Duration::from_mins(1)).await;
            world.queue(3);
            sleep(Duration::from_mins(1)).await;
            world.queue(0);
            sleep(Duration::from_mins(2)).await;
            world.rest(Duration::from_mins(1)).await.unwrap();
            assert_eq!(world.server.look(|store| store.list(kinds::POD).count()), 2);
            world.children()
        })
    };
    assert_eq!(left(both), left(Conditions::quiet()));
}

#[test]
fn a_new_cluster_costs_the_api_server_its_pods_and_eight_requests() {
    within(|| async {
        let world = World::new(&Conditions::quiet());
        // With the watches open that every operator has.
        sleep(Duration::from_secs(1)).await;
        let before = world.server.counts().requests;
        let mut cluster = cluster("1Gi");
        cluster["spec"]["workers"][0]["min"] = json!(3);
        world.apply(&cluster);
        world.until("it is ready", |store| is_ready(store, 3)).await.unwrap();
        sleep(Duration::from_secs(10)).await;
        let (requests, pods) = (world.server.counts().requests - before, 4);
        assert!(requests <= pods + 8, "{requests} requests\n{}", world.server.trace());
    });
}

/// What is wrong with clusters that never become ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Odd {
    /// Nobody has an image of their packages.
    NoImage,
    /// They were stored under another definition.
    Unreadable,
    /// Whoever looks at one panics.
    Panics,
}

/// How long a cluster takes to become ready beside so many of another namespace that never do.
fn ready_beside(others: usize, odd: Odd) -> Duration {
    within(|| async move {
        let faults = if odd == Odd::Panics { vec![Fault::PanicOver("odd-")] } else { Vec::new() };
        let world = World::new(&Conditions { faults, ..Conditions::quiet() });
        sleep(Duration::from_secs(1)).await;
        for nth in 0..others {
            let mut other = cluster("1Gi");
            other["metadata"] = json!({ "name": format!("odd-{nth}"), "namespace": "crowd" });
            match odd {
                Odd::NoImage => {
                    other["spec"]["image"] = json!(null);
                    other["spec"]["environment"] =
                        json!({ "python": "3.11", "packages": ["nowhere"] });
                }
                Odd::Unreadable => other["spec"]["workers"] = json!("three"),
                Odd::Panics => {}
            }
            world.apply(&other);
        }
        let begin = Instant::now();
        world.apply(&cluster("1Gi"));
        world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
        let ready = begin.elapsed();
        let is_told = |it: &&Arc<Value>| it["status"]["phase"] == "Degraded";
        let told = |store: &Store| store.list(kinds::CLUSTER).filter(is_told).count();
        let are_told = |store: &Store| odd == Odd::Panics || told(store) == others;
        world.until("the others are told why", are_told).await.unwrap();
        sleep(Duration::from_mins(1)).await;
        let is_odd = |it: &Arc<Value>| name(it).starts_with("odd-");
        assert!(!world.server.look(|store| store.list(kinds::SECRET).any(is_odd)));
        ready
    })
}

#[test]
fn five_thousand_clusters_of_one_namespace_take_no_time_from_a_cluster_of_another() {
    let alone = ready_beside(0, Odd::NoImage);
    for (odd, others) in [(Odd::NoImage, 5_000), (Odd::Unreadable, 1_000), (Odd::Panics, 1_000)] {
        let beside = ready_beside(others / step(1), odd);
        assert!(beside < alone + alone / 10, "{odd:?}: {beside:?}, and {alone:?} alone");
    }
}

#[test]
fn nothing_is_left_of_clusters_that_came_and_went() {
    come_and_go(50, |_| ()).unwrap();
}

#[test]
fn an_operator_that_begins_writes_nothing_where_everything_is_as_it_should_be() {
    within(|| async {
        let world = at_work().await;
        sleep(Duration::from_mins(2)).await;
        let before = world.server.counts().writes;
        world.restart(0);
        sleep(Duration::from_mins(2)).await;
        let writes = world.server.counts().writes - before;
        assert_eq!(writes, 0, "{}", world.server.trace());
        world.queue(3);
        world.until("it has grown", |store| is_ready(store, 3)).await.unwrap();
    });
}

#[test]
fn nothing_is_read_or_written_in_an_idle_hour() {
    within(|| async {
        let world = at_work().await;
        world.rest(Duration::from_hours(1)).await.unwrap();
        assert_eq!(world.health(), Ok(()));
    });
}

#[test]
fn whatever_happens_to_a_cluster_it_has_few_events() {
    within(|| async {
        let world = at_work().await;
        let begin = Instant::now();
        for _ in 0..40 {
            world.server.change(|store, _| Edit::Label.all(store, kinds::SERVICE));
            sleep(Duration::from_secs(2)).await;
            world.delete_a(kinds::POD, &names::scheduler("risk"), &Deletion::default());
            world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
        }
        let trace = world.server.trace();
        let told = trace.matches("Create events").count() + trace.matches("Merge events").count();
        let most = 8 + begin.elapsed().as_secs() / 30 + 1;
        assert!(told as u64 <= most && told > 8, "{told} events, {most} at most");
    });
}

#[test]
fn an_operator_that_stands_still_is_not_healthy() {
    within(|| async {
        let world = at_work().await;
        // It ends, and its process does not.
        world.kill(0);
        sleep(Duration::from_mins(2)).await;
        assert_eq!(world.health(), Err("the operator has stood still for 120 s".to_owned()));
    });
}

#[test]
fn another_authority_reaches_every_secret_once_and_no_pod_is_touched() {
    within(|| async {
        let world = at_work().await;
        sleep(Duration::from_mins(5)).await;
        let (children, before) = (world.children(), world.server.counts().writes);
        world.renew();
        world.until("it is renewed", |store| world.is_renewed(store)).await.unwrap();
        world.rest(Duration::from_mins(5)).await.unwrap();
        // Three Secrets, a status and an event.
        assert_eq!(world.server.counts().writes - before, 5, "{}", world.server.trace());
        assert_eq!(world.children(), children);
        world.restart(0);
        world.rest(Duration::from_mins(5)).await.unwrap();
    });
}

/// A quiet world with a cluster that is ready.
async fn at_work() -> World {
    let world = World::new(&Conditions::quiet());
    world.apply(&cluster("1Gi"));
    world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
    world
}

/// How often Secrets were written over.
fn renewals(world: &World) -> usize {
    world.server.trace().matches("Replace secrets").count()
}

#[test]
fn what_cannot_be_made_for_want_of_room_has_nobody_s_certificates_renewed_again_and_again() {
    within(|| async {
        let world = at_work().await;
        world.server.admit(|it| it.quota = Some(2));
        world.queue(3);
        sleep(Duration::from_secs(10)).await;
        world.renew();
        sleep(Duration::from_mins(10)).await;
        assert!(world.server.look(|store| world.is_renewed(store)));
        assert_eq!(renewals(&world), 3, "{}", world.server.trace());
        world.server.admit(|it| it.quota = None);
        world.until("it has grown", |store| is_ready(store, 3)).await.unwrap();
    });
}

#[test]
fn a_wish_for_other_certificates_is_heard_at_once() {
    within(|| async {
        let world = at_work().await;
        sleep(Duration::from_mins(5)).await;
        let wish = json!({ "metadata": { "annotations": { names::RENEW: "now" } } });
        let wished = world.server.change(|store, _| store.merge(kinds::CLUSTER, "risk", &wish));
        assert!(wished.is_ok());
        sleep(Duration::from_millis(100)).await;
        assert_eq!(renewals(&world), 3, "{}", world.server.trace());
        world.rest(Duration::from_mins(5)).await.unwrap();
    });
}

#[test]
fn certificates_are_renewed_long_before_they_end() {
    within(|| async {
        let world = World::new(&Conditions::quiet());
        let mut cluster = cluster("1Gi");
        cluster["spec"]["lifetime"]["idle"]["after"] = json!("9000h");
        world.apply(&cluster);
        world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
        let leaves = |store: &Store| -> Vec<String> {
            store.list(kinds::SECRET).map(|it| it["data"]["tls.crt"].to_string()).collect()
        };
        let before = world.server.look(leaves);
        sleep(LEAF_LIFE / 2).await;
        let after = world.server.look(leaves);
        assert!(before.len() == 3 && after.iter().all(|it| !before.contains(it)));
    });
}

/// Takes away everything of a kind that clusters have.
fn take_away(world: &World, kind: Kind) {
    world.server.change(|store, now| store.delete_all(kind, |_| true, now));
}

fn meddled() -> Conditions {
    Conditions { is_whole: false, ..Conditions::quiet() }
}

/// One with a cluster that has been ready for a while, and what there is.
async fn settled() -> (World, BTreeMap<String, usize>) {
    let world = World::new(&meddled());
    world.apply(&cluster("1Gi"));
    world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
    sleep(Duration::from_mins(5)).await;
    let before = world.children();
    (world, before)
}

#[test]
fn what_somebody_takes_away_comes_back() {
    for kind in [kinds::POD, kinds::SERVICE, kinds::NETWORK_POLICY] {
        within(|| async move {
            let (world, before) = settled().await;
            take_away(&world, kind);
            sleep(Duration::from_secs(2)).await;
            world.until("it is ready again", |store| is_ready(store, 1)).await.unwrap();
            assert_eq!(world.children(), before, "{}", kind.plural);
            world.rest(Duration::from_mins(1)).await.unwrap();
        });
    }
}

#[test]
fn what_somebody_edits_is_as_it_was_and_told() {
    for (kind, edit) in EDITED {
        within(|| async move {
            let (world, before) = settled().await;
            world.server.change(|store, _| edit.all(store, kind));
            sleep(Duration::from_secs(2)).await;
            world.until("it is ready again", |store| is_ready(store, 1)).await.unwrap();
            world.rest(Duration::from_mins(1)).await.unwrap();
            assert_eq!(world.children(), before, "{edit:?} of {}", kind.plural);
            let is_told =
                |store: &Store| store.list(kinds::EVENT).any(|it| it["reason"] == "Restoring");
            assert_eq!(world.server.look(is_told), edit == Edit::Spec, "{}", kind.plural);
        });
    }
}

#[test]
fn a_pod_that_lost_its_label_is_told_and_left_at_work_until_it_has_it_again() {
    within(|| async {
        let (world, before) = settled().await;
        world.server.change(|store, _| Edit::Label.all(store, kinds::POD));
        let is_told = |store: &Store| {
            let cluster = store.get(kinds::CLUSTER, "risk");
            cluster.is_ok_and(|it| it["status"]["message"].to_string().contains("lacks the label"))
        };
        world.until("it is told", is_told).await.unwrap();
        let label = json!({ "metadata": { "labels": { names::MANAGED_BY: names::MANAGER } } });
        world.server.change(|store, _| {
            let pods: Vec<String> = store.list(kinds::POD).map(|it| name(it)).collect();
            for it in &pods {
                store.merge(kinds::POD, it, &label).unwrap();
            }
        });
        world.until("it is ready again", |store| is_ready(store, 1)).await.unwrap();
        assert_eq!(world.children(), before);
        world.rest(Duration::from_mins(1)).await.unwrap();
    });
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

#[test]
fn secrets_that_somebody_takes_away_come_back_before_the_next_pod_with_the_same_token() {
    within(|| async {
        let world = at_work().await;
        sleep(Duration::from_mins(5)).await;
        let token = |store: &Store| {
            let secrets: Vec<String> =
                store.list(kinds::SECRET).map(|it| it["data"]["token"].to_string()).collect();
            secrets.into_iter().find(|it| it != "null")
        };
        let (before, kept) = (world.children(), world.server.look(token));
        take_away(&world, kinds::SECRET);
        // The judge of this world lets no pod come without them.
        take_away(&world, kinds::POD);
        sleep(Duration::from_secs(2)).await;
        world.until("it is ready again", |store| is_ready(store, 1)).await.unwrap();
        assert_eq!((world.children(), world.server.look(token)), (before, kept.clone()));
        assert!(kept.is_some());
    });
}

#[test]
fn what_has_the_name_of_a_child_and_is_another_s_is_not_touched_and_told() {
    let name = "risk-2c6ef0-scheduler";
    for kind in [kinds::SERVICE, kinds::POD] {
        within(|| async move {
            let world = World::new(&meddled());
            let theirs = json!({ "metadata": { "name": name }, "spec": { "theirs": true } });
            let created = world.server.change(|store, now| store.create(kind, theirs, now));
            world.apply(&cluster("1Gi"));
            let is_told = |store: &Store| {
                let cluster = store.get(kinds::CLUSTER, "risk");
                let message = cluster.map(|it| it["status"]["message"].to_string());
                message.is_ok_and(|it| it.contains("exists and is not this cluster's"))
            };
            world.until("it is told", is_told).await.unwrap();
            sleep(Duration::from_mins(5)).await;
            let there = world.server.look(|store| store.get(kind, name).cloned());
            let (there, created) = (there.unwrap(), created.unwrap());
            assert_eq!(there["metadata"]["uid"], created["metadata"]["uid"]);
            assert_eq!(there["spec"]["theirs"], true);
            world.server.change(|store, _| drop(store.remove((kind, name.to_owned()))));
            world.until("it is ready", |store| is_ready(store, 1)).await.unwrap();
        });
    }
}
