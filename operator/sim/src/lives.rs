//! The life of a cluster, and every world in which it is lived.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ebbtide_api::names;
use serde_json::{Value, json};
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::faults::{EVENT_FAULTS, Fault, TAKEN, WRITE_FAULTS, WriteFault};
use crate::kinds;
use crate::nodes::FAILURES;
use crate::server::Counts;
use crate::store::{Deletion, Store};
use crate::world::{Conditions, World};

/// Pods that may fail: the scheduler and the first workers.
const FAILING: usize = 3;

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
fn with_groups(memory: &str, groups: usize) -> Value {
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

fn status(store: &Store) -> Value {
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

/// The life of a cluster and of another one after it under the same name.
async fn lives(world: &World, conditions: &Conditions) -> Result<(), String> {
    let cluster = |memory| with_groups(memory, conditions.groups);
    let most = if conditions.groups == 1 { 3 } else { 5 };
    world.apply(&cluster("1Gi"));
    world.until("it is ready", |store| is_ready(store, 1)).await?;
    if conditions.is_tight {
        world.server.set_quota(Some(TIGHT));
    }
    world.queue(most);
    if conditions.is_tight {
        sleep(TIGHT_TIME).await;
        world.server.set_quota(None);
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
    drop(world.server.change(|store, now| store.delete(kinds::CLUSTER, "risk", &foreground, now)));
    world.until("it is gone", |store| store.get(kinds::CLUSTER, "risk").is_err()).await?;
    world.apply(&cluster("1Gi"));
    world.until("the next one is ready", |store| is_ready(store, 1)).await?;
    world.rest(Duration::from_mins(2)).await
}

/// Lives it through under these conditions. Gives what was left, or what went wrong and how.
pub fn play(conditions: &Conditions) -> Result<Played, String> {
    within(|| async move {
        let world = World::new(conditions);
        let lived = lives(&world, conditions).await;
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
    let mut groups = vec![("one fault".to_owned(), each(&quiet))];
    let two = Conditions { operators: 2, has_lease: true, ..quiet.clone() };
    groups.push(("two operators and one fault".to_owned(), each(&two)));
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
        // The lists of the operator that comes after are the third and the fourth.
        for stale in 1..=STALE_MAX {
            let lists = [2, 3].map(|nth| Fault::List(nth, stale));
            crashes.push(with(&quiet, vec![crash, lists[0]]));
            crashes.push(with(&quiet, vec![crash, lists[1]]));
            crashes.push(with(&quiet, vec![crash, lists[0], lists[1]]));
        }
    }
    groups.push(("a crash, and another or stale lists".to_owned(), crashes));
    for (about, conditions) in [
        ("two worker groups and one fault", Conditions { groups: 2, ..quiet.clone() }),
        ("no room for a while and one fault", Conditions { is_tight: true, ..quiet.clone() }),
        (
            "no room for a while, two operators and one fault",
            Conditions { is_tight: true, ..two.clone() },
        ),
    ] {
        let counts = play(&conditions)?.counts;
        let worlds = singles(counts).into_iter().map(|it| with(&conditions, vec![it]));
        groups.push((about.to_owned(), worlds.collect()));
    }
    let mut meddled = Vec::new();
    for begin in [quiet, two] {
        let begin = Conditions { is_whole: false, ..begin };
        let taken = (0..counts.writes).flat_map(|nth| TAKEN.map(|it| Fault::Taken(nth, it)));
        meddled.extend(taken.map(|it| with(&begin, vec![it])));
    }
    groups.push(("somebody who takes away what clusters have".to_owned(), meddled));
    Ok(groups)
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
                        Ok(played) if played.children == expected.children => continue,
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
