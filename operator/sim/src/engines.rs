//! The schedulers inside the clusters: who is registered, what waits, and who may go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ebbtide_api::names;
use ebbtide_contract::demand::{Down, Fact, Outcome, PROTOCOL, Up};
use ebbtide_listener::{Conversation, Schedulers};
use futures::FutureExt as _;
use serde_json::Value;
use tokio::time::Instant;

use crate::kinds;
use crate::server::Server;

/// Between two tries to reach an operator, and before an answer.
const PAUSE: Duration = Duration::from_millis(300);

/// Tasks that every group can take.
const ANY_MAX: u64 = 3;

/// How often a scheduler looks for orders.
const LOOK: Duration = Duration::from_secs(1);

/// An operator as schedulers reach it.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    /// Which life of which operator.
    pub life: usize,
    /// Its side of conversations.
    pub schedulers: &'a Schedulers,
    /// To be called when something was said.
    pub news: &'a dyn Fn(&str),
}

/// What one scheduler sees.
struct Seen<'a> {
    cluster_uid: &'a str,
    workers: BTreeSet<String>,
    tasks: u64,
    now: Instant,
}

/// All schedulers that run.
#[derive(Default)]
pub struct Engines {
    /// Tasks that wait in every cluster, each of ten core-seconds.
    pub tasks: u64,
    by_cluster: BTreeMap<String, Engine>,
}

struct Engine {
    /// The pod that it runs in.
    pod: String,
    epoch: u64,
    conversation: Option<(usize, Conversation)>,
    try_at: Instant,
    said: Option<Vec<Fact>>,
    sequence: u64,
    groups: Vec<String>,
    /// Workers that are to go, and when they are let go.
    retiring: BTreeMap<String, Instant>,
    released: BTreeSet<String>,
}

impl Engines {
    /// Does what is due, and tells when to come again.
    pub fn step(&mut self, server: &Server, way: Option<Way<'_>>, now: Instant) -> Option<Instant> {
        let pods: Vec<Arc<Value>> = server.look(|store| store.list(kinds::POD).cloned().collect());
        let running = |role: &str| -> Vec<&Arc<Value>> {
            let is_meant = |pod: &&Arc<Value>| {
                pod["status"]["phase"] == "Running"
                    && pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
                    && pod["metadata"]["labels"][names::ROLE] == *role
            };
            pods.iter().filter(is_meant).collect()
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let cluster = |pod: &Value| text(&pod["metadata"]["labels"][names::CLUSTER_UID]);
        let leaders: BTreeMap<String, String> = running("scheduler")
            .into_iter()
            .map(|pod| (cluster(pod), text(&pod["metadata"]["uid"])))
            .collect();
        let workers = running("worker");
        let gone: Vec<String> = self.by_cluster.keys().cloned().collect();
        for uid in gone.into_iter().filter(|uid| !leaders.contains_key(uid)) {
            self.by_cluster.remove(&uid);
            if let Some(way) = way {
                (way.news)(&uid);
            }
        }
        let mut due: Option<Instant> = None;
        for (uid, pod) in leaders {
            let engine = self.by_cluster.entry(uid.clone()).or_insert_with(|| Engine::new(now));
            if engine.pod != pod {
                let epoch = engine.epoch + 1;
                *engine = Engine { pod, epoch, ..Engine::new(now) };
            }
            let own = workers.iter().filter(|it| cluster(it) == uid);
            let workers = own.map(|it| text(&it["metadata"]["name"])).collect();
            let seen = Seen { cluster_uid: &uid, workers, tasks: self.tasks, now };
            let at = engine.step(&seen, way);
            due = Some(due.map_or(at, |due| due.min(at)));
        }
        due
    }
}

impl Engine {
    fn new(now: Instant) -> Self {
        Self {
            pod: String::new(),
            epoch: 1,
            conversation: None,
            try_at: now + PAUSE,
            said: None,
            sequence: 0,
            groups: Vec::new(),
            retiring: BTreeMap::new(),
            released: BTreeSet::new(),
        }
    }

    fn step(&mut self, seen: &Seen<'_>, way: Option<Way<'_>>) -> Instant {
        let now = seen.now;
        let Some(way) = way else {
            self.end();
            return now + PAUSE;
        };
        if self.conversation.as_ref().is_none_or(|(life, _)| *life != way.life) {
            self.end();
            if now < self.try_at {
                return self.try_at;
            }
            self.try_at = now + PAUSE;
            let opened = way.schedulers.open(seen.cluster_uid, PROTOCOL, self.epoch);
            let Ok(conversation) = opened else { return self.try_at };
            self.conversation = Some((way.life, conversation));
        }
        self.retiring.retain(|name, _| seen.workers.contains(name));
        self.released.retain(|name| seen.workers.contains(name));
        self.obey(now);
        let mut lines = self.snapshot(seen);
        lines.extend(self.answers(seen));
        if let Some((_, conversation)) = self.conversation.as_ref().filter(|_| !lines.is_empty()) {
            for line in lines {
                conversation.hear(line).expect("these lines are as they should be");
            }
            (way.news)(seen.cluster_uid);
        }
        let look = now + LOOK;
        self.retiring.values().min().map_or(look, |at| look.min(*at))
    }

    fn end(&mut self) {
        self.conversation = None;
        self.said = None;
    }

    fn obey(&mut self, now: Instant) {
        let Some((_, conversation)) = &mut self.conversation else { return };
        while let Some(Some(order)) = conversation.order().now_or_never() {
            match order {
                Down::Retire { workers, .. } => {
                    self.retiring.extend(workers.into_iter().map(|it| (it, now + PAUSE)));
                }
                Down::Groups { groups } => {
                    self.groups = groups.into_iter().map(|it| it.name).collect();
                }
                Down::Resend => self.said = None,
                Down::Later => {}
            }
        }
    }

    /// What is so, when it is not what was said, with the answers that it voids.
    fn snapshot(&mut self, seen: &Seen<'_>) -> Vec<Up> {
        let facts = self.facts(&seen.workers, seen.tasks);
        if self.said.as_ref() == Some(&facts) {
            return Vec::new();
        }
        let mut lines = vec![Up::Begin { sequence: self.sequence + 1 }];
        for fact in &facts {
            let sequence = self.sequence + 1 + lines.len() as u64;
            lines.push(Up::Fact { sequence, fact: fact.clone() });
        }
        lines.push(Up::End { sequence: self.sequence + 1 + lines.len() as u64 });
        self.sequence += lines.len() as u64;
        self.said = Some(facts);
        let outcome = Outcome::Released;
        lines.extend(self.released.iter().cloned().map(|worker| Up::Retired { worker, outcome }));
        lines
    }

    fn answers(&mut self, seen: &Seen<'_>) -> Vec<Up> {
        let outcome = if seen.tasks == 0 { Outcome::Released } else { Outcome::Kept };
        let over = self.retiring.extract_if(.., |_, at| *at <= seen.now);
        let over: Vec<String> = over.map(|(worker, _)| worker).collect();
        if outcome == Outcome::Released {
            self.released.extend(over.iter().cloned());
        }
        over.into_iter().map(|worker| Up::Retired { worker, outcome }).collect()
    }

    fn facts(&self, workers: &BTreeSet<String>, tasks: u64) -> Vec<Fact> {
        let workers = workers.iter().map(|name| Fact::Worker {
            name: name.clone(),
            held_bytes: 0,
            assigned: 0,
        });
        // What waits behind that for every group is for the last group alone.
        let any = tasks.min(ANY_MAX);
        let classes = [(self.groups.clone(), any), (self.last_group(), tasks - any)];
        let queues = classes.into_iter().filter(|(_, tasks)| *tasks > 0).map(|(fits, tasks)| {
            Fact::Queue { fits, tasks, core_seconds: 10.0 * tasks as f64, running: 0 }
        });
        workers.chain(queues).collect()
    }

    fn last_group(&self) -> Vec<String> {
        self.groups.last().cloned().into_iter().collect()
    }
}
