//! The life of a cluster, and every world in which it is lived.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ebbtide_api::names;
use serde_json::{Value, json};
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::faults::{EDITED, EVENT_FAULTS, EventFault, Fault, TAKEN, WRITE_FAULTS, WriteFault};
use crate::kinds::{self, Kind};
use crate::nodes::FAILURES;
use crate::server::Counts;
use crate::store::{Deletion, Store};
use crate::world::{Conditions, World};

/// Pods that may fail: the scheduler and the first worker.
const FAILING: usize = 2;

/// The same of a job with a cluster: the scheduler, a worker, and the program.
const FAILING_OF_JOBS: usize = 3;

/// What may be taken away of a job without an end that is another's.
const TAKEN_OF_JOBS: [Kind; 2] = [kinds::POD, kinds::CLUSTER];

/// Lists of an operator that begins: one of each kind that it watches.
pub(crate) const LISTS: usize = 5;

/// By how many changes a list may be out of date.
const STALE_MAX: usize = 4;

/// What there was at the end of a world.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Played {
    /// What was counted.
    pub counts: Counts,
    /// The children that were left, and how often each.
    pub children: Vec<String>,
}

/// Pods that there may be while there is no room for more.
const TIGHT: usize = 3;

/// How long there is none.
const TIGHT_TIME: Duration = Duration::from_secs(40);

/// A cluster whose workers have so much memory.
pub fn cluster(memory: &str) -> Value {
    with_groups(memory, 1)
}

/// The same with one group, or with a second one that comes when the first has all it may have.
pub(crate) fn with_groups(memory: &str, groups: usize) -> Value {
    let resources = json!({ "cpu": "1", "memory": memory });
    let all = [
        json!({ "name": "w", "min": 1, "max": 3, "resources": resources }),
        json!({ "name": "more", "min": 0, "max": 2, "resources": resources }),
    ];
    json!({
        "metadata": { "name": "risk", "namespace": "default" },
        "spec": {
            "image": "image@sha256:1",
            "lifetime": { "idle": { "after": "24h" } },
            "workers": all[..groups],
        },
    })
}

pub(crate) fn status(store: &Store) -> Value {
    store.get(kinds::CLUSTER, "risk").map(|it| it["status"].clone()).unwrap_or_default()
}

/// Whether it is ready with so many workers, as it was asked for last.
pub fn is_ready(store: &Store, workers: u64) -> bool {
    let status = status(store);
    let generation =
        store.get(kinds::CLUSTER, "risk").map(|it| it["metadata"]["generation"].clone());
    status["phase"] == "Ready"
        && status["workers"]["ready"] == workers
        && generation.as_ref() == Ok(&status["observedGeneration"])
}

/// Whether namespaces with these labels may reach the cluster, and no others.
fn is_open_to(store: &Store, teams: &[&str]) -> bool {
    let opened = store.list(kinds::NETWORK_POLICY).filter_map(|it| {
        let from = &it["spec"]["ingress"][0]["from"][0]["namespaceSelector"];
        from["matchLabels"]["team"].as_str().map(str::to_owned)
    });
    opened.collect::<Vec<_>>() == teams
}

/// The life of a cluster and of another one after it under the same name.
async fn lives(world: &World, conditions: &Conditions) -> Result<(), String> {
    let cluster = |memory| with_groups(memory, conditions.groups);
    let most = if conditions.groups == 1 { 3 } else { 5 };
    if conditions.is_corrected {
        let mut wrong = cluster("1Gi");
        wrong["spec"]["image"] = json!("image@sha256:0");
        world.apply(&wrong);
        let has_pods = |store: &Store| store.list(kinds::POD).next().is_some();
        world.until("its first pod is made", has_pods).await?;
    }
    world.apply(&cluster("1Gi"));
    world.until("it is ready", |store| is_ready(store, 1)).await?;
    if conditions.is_corrected {
        let is_right = |it: &Arc<Value>| it["spec"]["containers"][0]["image"] == "image@sha256:1";
        let are_right = |store: &Store| store.list(kinds::POD).all(is_right);
        world.until("all runs the image of now", are_right).await?;
    }
    if conditions.is_tight {
        world.server.admit(|it| it.quota = Some(TIGHT));
    }
    world.queue(most);
    if conditions.is_tight {
        sleep(TIGHT_TIME).await;
        world.server.admit(|it| it.quota = None);
    }
    if conditions.is_renewed {
        world.renew();
        world.until("all is renewed", |store| world.is_renewed(store)).await?;
        let mut opened = cluster("1Gi");
        for team in ["rates", "risk"] {
            opened["spec"]["access"] = json!({ "namespaces": { "matchLabels": { "team": team } } });
            world.apply(&opened);
            world.until("it is open to them alone", |store| is_open_to(store, &[team])).await?;
        }
        opened["spec"]["access"] = Value::Null;
        world.apply(&opened);
        world.until("it is closed again", |store| is_open_to(store, &[])).await?;
    }
    world.until("it has grown", |store| is_ready(store, most)).await?;
    world.queue(0);
    world.until("it has shrunk", |store| is_ready(store, 1)).await?;
    world.apply(&cluster("2Gi"));
    let is_pending = |store: &Store, wanted: &str| {
        let status = status(store);
        status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|it| it["type"] == "PendingChange" && it["status"] == wanted)
    };
    if conditions.is_whole {
        world.until("a change is pending", |store| is_pending(store, "True")).await?;
    }
    let is_worker = |pod: &Value| pod["metadata"]["labels"][names::ROLE] == "worker";
    world.server.change(|store, now| store.delete_all(kinds::POD, is_worker, now));
    world
        .until("it is as it was asked for", |store| {
            is_pending(store, "False") && is_ready(store, 1)
        })
        .await?;
    let foreground = Deletion { is_foreground: true, ..Deletion::default() };
    world.delete_a(kinds::CLUSTER, "risk", &foreground);
    world.until("it is gone", |store| store.get(kinds::CLUSTER, "risk").is_err()).await?;
    world.apply(&cluster("1Gi"));
    world.until("the next one is ready", |store| is_ready(store, 1)).await?;
    world.rest(Duration::from_mins(2)).await
}

/// The life of a cluster under two operators that know nothing of each other, and then under one.
async fn lives_at_once(world: &World) -> Result<(), String> {
    world.apply(&cluster("1Gi"));
    for (tasks, seconds) in [(0, 20), (3, 20), (0, 90)] {
        world.queue(tasks);
        sleep(Duration::from_secs(seconds)).await;
    }
    world.kill(1);
    world.restart(0);
    world.until("it is ready under one of them", |store| is_ready(store, 1)).await?;
    world.rest(Duration::from_mins(2)).await
}

/// The life of a cluster that somebody may delete at any moment, and of another one after it.
async fn lives_cut_short(world: &World) -> Result<(), String> {
    let is_gone = |store: &Store| store.get(kinds::CLUSTER, "risk").is_err();
    world.apply(&cluster("1Gi"));
    for (tasks, workers) in [(0, 1), (3, 3), (0, 1)] {
        world.queue(tasks);
        let is_so = |store: &Store| is_gone(store) || is_ready(store, workers);
        world.until("it is ready with its workers, or gone", is_so).await?;
    }
    world.delete_a(kinds::CLUSTER, "risk", &Deletion::default());
    for _ in 0..2 {
        world.until("it is gone", is_gone).await?;
        world.queue(0);
        world.apply(&cluster("1Gi"));
        let is_so = |store: &Store| is_gone(store) || is_ready(store, 1);
        world.until("the next one is ready, or gone, too", is_so).await?;
        if world.server.look(|store| is_ready(store, 1)) {
            break;
        }
    }
    world.rest(Duration::from_mins(2)).await
}

/// A job with a cluster of its own, which may fail once by itself.
pub(crate) fn job(is_suspended: bool) -> Value {
    json!({
        "metadata": { "name": "nightly", "namespace": "default" },
        "spec": {
            "cluster": cluster("1Gi")["spec"],
            "script": "print(1)",
            "retries": { "exit": 1, "outOfMemory": 1, "lost": 3, "backoffSeconds": 5 },
            "suspend": is_suspended,
            "ttlSecondsAfterFinished": 300,
        },
    })
}

/// How far the job is.
fn job_phase(store: &Store) -> String {
    let job = store.get(kinds::CLUSTER_JOB, "nightly");
    job.ok().and_then(|it| it["status"]["phase"].as_str().map(str::to_owned)).unwrap_or_default()
}

fn has_nothing(store: &Store) -> bool {
    store.list(kinds::CLUSTER).next().is_none()
        && store
            .list(kinds::POD)
            .all(|pod| pod["status"]["phase"] == "Succeeded" || pod["status"]["phase"] == "Failed")
}

/// The life of a job, which goes by itself, and of another one after it under the same name.
async fn lives_of_jobs(world: &World) -> Result<(), String> {
    world.apply_a(kinds::CLUSTER_JOB, &job(false));
    world.until("it has ended well", |store| job_phase(store) == "Succeeded").await?;
    world.until("it has nothing any more", has_nothing).await?;
    let is_gone = |store: &Store| store.get(kinds::CLUSTER_JOB, "nightly").is_err();
    world
        .until("it has gone", |store| is_gone(store) && store.list(kinds::POD).next().is_none())
        .await?;
    world.apply_a(kinds::CLUSTER_JOB, &job(false));
    let has_begun = |store: &Store| {
        store.list(kinds::POD).any(|it| it["metadata"]["labels"][names::ROLE] == "job")
    };
    world.until("the next one has begun", has_begun).await?;
    world.apply_a(kinds::CLUSTER_JOB, &job(true));
    // Nobody may have seen it run, and then it has ended.
    let is_still = |store: &Store| ["Suspended", "Succeeded"].contains(&job_phase(store).as_str());
    world.until("it is suspended", |store| is_still(store) && has_nothing(store)).await?;
    sleep(Duration::from_secs(5)).await;
    world.apply_a(kinds::CLUSTER_JOB, &job(false));
    world.until("it has ended well, too", |store| job_phase(store) == "Succeeded").await?;
    world.delete_a(kinds::CLUSTER_JOB, "nightly", &Deletion::default());
    world
        .until("everything has gone", |store| {
            is_gone(store)
                && store.list(kinds::CLUSTER).chain(store.list(kinds::POD)).next().is_none()
        })
        .await?;
    world.rest(Duration::from_mins(2)).await
}

/// Lives it through under these conditions. Gives what was left, or what went wrong and how.
pub fn play(conditions: &Conditions) -> Result<Played, String> {
    within(|| async move {
        let world = World::new(conditions);
        let lived = if conditions.has_jobs {
            lives_of_jobs(&world).await
        } else if conditions.operators > 1 && !conditions.has_lease {
            lives_at_once(&world).await
        } else if conditions.is_cut_short {
            lives_cut_short(&world).await
        } else {
            lives(&world, conditions).await
        };
        let children = world.children().into_iter();
        let children = children.map(|(it, count)| format!("{count} {it}")).collect();
        match lived {
            Ok(()) => Ok(Played { counts: world.server.counts(), children }),
            Err(wrong) => Err(format!("{conditions:?}: {wrong}\n{}", world.server.trace())),
        }
    })
}

/// Runs something in a time of its own, which passes as fast as it can.
pub fn within<T, F: Future<Output = T>>(run: impl FnOnce() -> F) -> T {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without IO needs nothing");
    LocalSet::new().block_on(&runtime, async { run().await })
}

/// Every world with every single fault, by what it is about.
pub fn all() -> Result<Vec<(String, Vec<Conditions>)>, String> {
    let quiet = Conditions::quiet();
    let counts = play(&quiet)?.counts;
    let with = |begin: &Conditions, faults: Vec<Fault>| Conditions { faults, ..begin.clone() };
    let each = |begin: &Conditions| -> Vec<Conditions> {
        let bare = std::iter::once(begin.clone());
        bare.chain(singles(counts).into_iter().map(|it| with(begin, vec![it]))).collect()
    };
    let panics = (0..counts.times).map(|nth| with(&quiet, vec![Fault::Panic(nth)]));
    let of_one = each(&quiet).into_iter().chain(panics).collect();
    let mut groups = vec![("one fault".to_owned(), of_one)];
    let two = Conditions { operators: 2, has_lease: true, ..quiet.clone() };
    groups.push(("two operators and one fault".to_owned(), each(&two)));
    let at_once = Conditions { operators: 2, ..quiet.clone() };
    let singles_of = singles(play(&at_once)?.counts).into_iter();
    let rivals = singles_of.map(|it| with(&at_once, vec![it])).collect();
    groups.push(("two operators at once and one fault".to_owned(), rivals));
    groups.push(("wrong clocks and one fault".to_owned(), with_wrong_clocks(&quiet)?));
    let cut_short = Conditions { is_cut_short: true, ..quiet.clone() };
    groups.push(("a cluster that somebody deletes".to_owned(), deleted(&cut_short)?));
    for failure in FAILURES {
        let failing = (0..FAILING)
            .flat_map(|nth| each(&Conditions { failure: Some((nth, failure)), ..quiet.clone() }));
        groups.push((format!("a pod with {failure:?} and one fault"), failing.collect()));
    }
    let mut crashes = Vec::new();
    for first in 0..counts.writes {
        let crash = Fault::Write(first, WriteFault::CrashAfter);
        for second in first + 1..counts.writes {
            for again in [WriteFault::CrashAfter, WriteFault::CrashBefore, WriteFault::Lost] {
                crashes.push(with(&quiet, vec![crash, Fault::Write(second, again)]));
            }
        }
    }
    crashes.extend(stale_after_a_crash(&quiet, counts));
    groups.push(("a crash, and another or stale lists".to_owned(), crashes));
    for (about, conditions) in [
        ("two worker groups and one fault", Conditions { groups: 2, ..quiet.clone() }),
        ("no room for a while and one fault", Conditions { is_tight: true, ..quiet.clone() }),
        (
            "an image that is corrected and one fault",
            Conditions { is_corrected: true, ..quiet.clone() },
        ),
        ("another authority and one fault", Conditions { is_renewed: true, ..quiet.clone() }),
        (
            "another authority, two operators and one fault",
            Conditions { is_renewed: true, ..two.clone() },
        ),
        (
            "no room for a while, two operators and one fault",
            Conditions { is_tight: true, ..two.clone() },
        ),
    ] {
        let counts = play(&conditions)?.counts;
        let worlds = singles(counts).into_iter().map(|it| with(&conditions, vec![it]));
        groups.push((about.to_owned(), worlds.collect()));
    }
    let mut away = Vec::new();
    for begin in [&quiet, &two] {
        away.extend(outages(play(begin)?.counts).into_iter().map(|it| with(begin, vec![it])));
    }
    groups.push(("a server that is away, or somebody between read and write".to_owned(), away));
    groups.push((
        "somebody who takes away or edits what clusters have".to_owned(),
        meddled([quiet, two])?,
    ));
    groups.push(("jobs and whatever goes wrong".to_owned(), with_jobs()?));
    Ok(groups)
}

/// Operators whose clocks are ten minutes wrong, each in another way: every write goes wrong once.
fn with_wrong_clocks(quiet: &Conditions) -> Result<Vec<Conditions>, String> {
    let mut worlds = Vec::new();
    for (skews, operators) in [([600, 0], 1), ([-600, 0], 1), ([600, -600], 2)] {
        let has_lease = operators == 2;
        let begin = Conditions { operators, has_lease, skews, ..quiet.clone() };
        for nth in 0..play(&begin)?.counts.writes {
            worlds.extend(WRITE_FAULTS.map(|fault| Conditions {
                faults: vec![Fault::Write(nth, fault)],
                ..begin.clone()
            }));
        }
    }
    Ok(worlds)
}

/// A cluster that goes after every write: and nothing else, or the next write goes wrong, or an event comes late.
fn deleted(begin: &Conditions) -> Result<Vec<Conditions>, String> {
    let mut worlds = Vec::new();
    for nth in 0..play(begin)?.counts.writes {
        let with = |faults| Conditions { faults, ..begin.clone() };
        let gone = Fault::Deleted(nth);
        worlds.push(with(vec![gone]));
        for fault in WRITE_FAULTS {
            worlds.push(with(vec![gone, Fault::Write(nth + 1, fault)]));
        }
        for held in [700, 20_000].map(Duration::from_millis) {
            let events = (0..LISTS).map(|it| Fault::Event(nth + it, EventFault::Held(held)));
            worlds.extend(events.map(|it| with(vec![gone, it])));
        }
    }
    Ok(worlds)
}

/// Somebody who, after every write, takes away or edits everything of a kind.
fn meddled(begins: [Conditions; 2]) -> Result<Vec<Conditions>, String> {
    let mut worlds = Vec::new();
    for begin in begins {
        let begin = Conditions { is_whole: false, ..begin };
        let writes = play(&begin)?.counts.writes;
        let taken = (0..writes).flat_map(|nth| TAKEN.map(|it| Fault::Taken(nth, it)));
        let edited =
            (0..writes).flat_map(|nth| EDITED.map(|(kind, edit)| Fault::Edited(nth, kind, edit)));
        let faults = taken.chain(edited);
        worlds.extend(faults.map(|it| Conditions { faults: vec![it], ..begin.clone() }));
    }
    Ok(worlds)
}

/// Worlds with jobs: every fault, every failure of every pod, and crashes with lists from before.
pub fn with_jobs() -> Result<Vec<Conditions>, String> {
    let quiet = Conditions { has_jobs: true, ..Conditions::quiet() };
    let counts = play(&quiet)?.counts;
    let with = |begin: &Conditions, faults: Vec<Fault>| Conditions { faults, ..begin.clone() };
    let mut worlds = vec![quiet.clone()];
    worlds.extend(singles(counts).into_iter().map(|it| with(&quiet, vec![it])));
    worlds.extend(outages(counts).into_iter().map(|it| with(&quiet, vec![it])));
    for failure in FAILURES {
        for nth in 0..FAILING_OF_JOBS {
            let failing = Conditions { failure: Some((nth, failure)), ..quiet.clone() };
            let crashes = (0..counts.writes).map(|it| Fault::Write(it, WriteFault::CrashAfter));
            worlds.push(failing.clone());
            worlds.extend(crashes.map(|it| with(&failing, vec![it])));
        }
    }
    let taken = (0..counts.writes).flat_map(|nth| TAKEN_OF_JOBS.map(|it| Fault::Taken(nth, it)));
    let meddled = Conditions { is_whole: false, ..quiet.clone() };
    worlds.extend(taken.map(|it| with(&meddled, vec![it])));
    worlds.extend(stale_after_a_crash(&quiet, counts));
    let two = Conditions { operators: 2, has_lease: true, ..quiet.clone() };
    worlds.extend(singles(play(&two)?.counts).into_iter().map(|it| with(&two, vec![it])));
    worlds.extend((0..counts.times).map(|nth| with(&quiet, vec![Fault::Panic(nth)])));
    Ok(worlds)
}

/// An operator that crashes after a write, and one after it whose lists are from before.
pub(crate) fn stale_after_a_crash(begin: &Conditions, counts: Counts) -> Vec<Conditions> {
    let mut worlds = Vec::new();
    for nth in 0..counts.writes {
        let crash = Fault::Write(nth, WriteFault::CrashAfter);
        for changes in 1..=STALE_MAX {
            let lists = (LISTS..2 * LISTS).map(|nth| Fault::List(nth, changes));
            for list in lists.clone() {
                worlds.push(Conditions { faults: vec![crash, list], ..begin.clone() });
            }
            let faults = std::iter::once(crash).chain(lists).collect();
            worlds.push(Conditions { faults, ..begin.clone() });
        }
    }
    worlds
}

/// Every single fault of a world of which so much was counted.
fn singles(counts: Counts) -> Vec<Fault> {
    let mut faults = Vec::new();
    for nth in 0..counts.writes {
        faults.extend(WRITE_FAULTS.map(|fault| Fault::Write(nth, fault)));
    }
    for nth in 0..counts.events {
        faults.extend(EVENT_FAULTS.map(|fault| Fault::Event(nth, fault)));
    }
    for nth in 0..counts.requests {
        faults.extend([1, 20].map(|seconds| Fault::Slow(nth, Duration::from_secs(seconds))));
    }
    faults
}

/// A server that is away from every request on, and somebody who changes the cluster before every write.
fn outages(counts: Counts) -> Vec<Fault> {
    let away = [2, 45].map(Duration::from_secs);
    let outages = (0..counts.requests).flat_map(|nth| away.map(|it| Fault::Away(nth, it)));
    outages.chain((0..counts.writes).map(Fault::Touched)).collect()
}

/// Plays worlds on all processors until one goes wrong. Tells which does, and how.
pub fn play_all(worlds: &[Conditions], expected: &Played) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(None);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(world) = worlds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let told = match play(world) {
                        // Of jobs nothing is left.
                        Ok(played) if world.has_jobs && played.children.is_empty() => continue,
                        Ok(played) if !world.has_jobs && played.children == expected.children => {
                            continue;
                        }
                        Ok(played) => format!("{world:?}: this is left: {:#?}", played.children),
                        Err(told) => told,
                    };
                    next.store(worlds.len(), Ordering::Relaxed);
                    wrong.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(told);
                }
            });
        }
    });
    wrong.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
