//! What the operator knows of one cluster from the lines of its scheduler. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::demand::{Fact, Outcome, PROTOCOL, Up};

/// Most workers that one scheduler may tell of: what a cluster may ask for, twice, as some go while
/// others come.
pub const WORKERS_MAX: usize = 20_000;

/// Longest name of a worker: a pod's host name.
pub const NAME_BYTES_MAX: usize = 63;

/// A worker as its scheduler describes it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct WorkerView {
    /// Bytes of chunks that it holds.
    pub held_bytes: u64,
    /// Tasks that it was given.
    pub assigned: u64,
}

/// Most resource classes that one scheduler may tell of.
pub const QUEUES_MAX: usize = 256;

/// Most worker groups of a class: as many as a cluster has.
pub const GROUPS_MAX: usize = 16;

/// What waits and runs of one resource class.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Queue {
    /// Tasks that wait.
    pub tasks: u64,
    /// Core-seconds that they are expected to need.
    pub core_seconds: f64,
    /// Tasks that run.
    pub running: u64,
}

/// The demand of one cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// Life of the scheduler that said so.
    pub epoch: u64,
    /// What waits and runs, by the names of the worker groups that can take it. None is empty.
    pub queues: BTreeMap<BTreeSet<String>, Queue>,
    /// Jobs that ever came.
    pub jobs: u64,
    /// Connected clients.
    pub clients: u64,
    /// Registered workers by name.
    pub workers: BTreeMap<String, WorkerView>,
    /// Registered workers that were asked to retire and have not answered.
    pub asked: BTreeSet<String>,
    /// Answers to retire requests, by worker, until the worker is gone.
    pub retired: BTreeMap<String, Outcome>,
}

impl Demand {
    /// Whether anything waits or runs.
    pub fn is_busy(&self) -> bool {
        !self.queues.is_empty()
    }
}

/// What a line changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Heard {
    /// [`View::demand`] may have changed.
    News,
    /// [`View::demand`] is as before: a part of a snapshot, or what is not known here.
    Nothing,
    /// Lines are missing: ask for a new snapshot.
    Gap,
}

/// Why a connection must be closed.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Violation {
    /// Another protocol.
    #[error("protocol {0} is not spoken here; expected {PROTOCOL}")]
    Protocol(u32),
    /// Something before the first line.
    #[error("the first line must be hello")]
    NoHello,
    /// A number that no cluster can mean.
    #[error("{0} is not a finite amount that is zero or more")]
    Amount(f64),
    /// More workers than are kept track of.
    #[error("more than {WORKERS_MAX} workers")]
    Workers,
    /// More resource classes than are kept track of.
    #[error("more than {QUEUES_MAX} resource classes, or {GROUPS_MAX} groups of one")]
    Queues,
    /// A name that no pod or group has.
    #[error("a name of {0} bytes; expected at most {NAME_BYTES_MAX}")]
    Name(usize),
}

/// Collects the lines of one connection.
#[derive(Debug, Default)]
pub struct View {
    hello: bool,
    next: Option<u64>,
    draft: Option<Demand>,
    epoch: u64,
    demand: Option<Demand>,
}

impl View {
    /// What is known, once the first snapshot was complete.
    pub fn demand(&self) -> Option<&Demand> {
        self.demand.as_ref()
    }

    /// Notes that workers are being asked to retire.
    pub fn ask(&mut self, workers: &[String]) {
        let Some(demand) = &mut self.demand else { return };
        for worker in workers.iter().filter(|name| demand.workers.contains_key(*name)) {
            demand.retired.remove(worker);
            demand.asked.insert(worker.clone());
        }
    }

    /// Takes one line.
    pub fn hear(&mut self, line: Up) -> Result<Heard, Violation> {
        if let Up::Hello { protocol, epoch } = line {
            if protocol != PROTOCOL {
                return Err(Violation::Protocol(protocol));
            }
            *self = Self { hello: true, epoch, ..Self::default() };
            return Ok(Heard::Nothing);
        }
        if !self.hello {
            return Err(Violation::NoHello);
        }
        match line {
            Up::Hello { .. } | Up::Later => Ok(Heard::Nothing),
            Up::Begin { sequence } => {
                self.next = sequence.checked_add(1);
                self.draft = Some(Demand { epoch: self.epoch, ..Demand::default() });
                Ok(Heard::Nothing)
            }
            Up::Fact { sequence, fact } => {
                if !self.is_next(sequence) {
                    return Ok(Heard::Gap);
                }
                let in_snapshot = self.draft.is_some();
                let Some(demand) = self.draft.as_mut().or(self.demand.as_mut()) else {
                    return Ok(Heard::Gap);
                };
                let is_news = !in_snapshot && fact != Fact::Later;
                learn(demand, fact)?;
                Ok(if is_news { Heard::News } else { Heard::Nothing })
            }
            Up::End { sequence } => match (self.is_next(sequence), self.draft.take()) {
                (true, Some(draft)) => {
                    self.demand = Some(draft);
                    Ok(Heard::News)
                }
                _ => Ok(Heard::Gap),
            },
            Up::Retired { worker, outcome } => {
                if let Some(demand) = &mut self.demand {
                    demand.asked.remove(&worker);
                    if demand.workers.contains_key(&worker) {
                        demand.retired.insert(worker, outcome);
                    }
                }
                Ok(Heard::News)
            }
        }
    }

    fn is_next(&mut self, sequence: u64) -> bool {
        let expected = self.next == Some(sequence);
        self.next = if expected { sequence.checked_add(1) } else { None };
        expected
    }
}

fn learn(demand: &mut Demand, fact: Fact) -> Result<(), Violation> {
    match fact {
        Fact::Queue { fits, tasks, core_seconds, running } => {
            if !core_seconds.is_finite() || core_seconds < 0.0 {
                return Err(Violation::Amount(core_seconds));
            }
            if fits.len() > GROUPS_MAX {
                return Err(Violation::Queues);
            }
            fits.iter().try_for_each(|name| check_name(name))?;
            let fits: BTreeSet<String> = fits.into_iter().collect();
            if tasks == 0 && running == 0 {
                demand.queues.remove(&fits);
                return Ok(());
            }
            let is_new = !demand.queues.contains_key(&fits);
            if is_new && demand.queues.len() >= QUEUES_MAX {
                return Err(Violation::Queues);
            }
            demand.queues.insert(fits, Queue { tasks, core_seconds, running });
        }
        Fact::Jobs { ever } => demand.jobs = ever,
        Fact::Worker { name, held_bytes, assigned } => {
            check_name(&name)?;
            if demand.workers.len() >= WORKERS_MAX && !demand.workers.contains_key(&name) {
                return Err(Violation::Workers);
            }
            demand.workers.insert(name, WorkerView { held_bytes, assigned });
        }
        Fact::WorkerGone { name } => {
            demand.workers.remove(&name);
            demand.asked.remove(&name);
            demand.retired.remove(&name);
        }
        Fact::Clients { connected } => demand.clients = connected,
        Fact::Later => {}
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), Violation> {
    if name.len() > NAME_BYTES_MAX { Err(Violation::Name(name.len())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::{Demand, GROUPS_MAX, Heard, QUEUES_MAX, View, Violation, WORKERS_MAX};
    use crate::demand::{Down, Fact, Outcome, PROTOCOL, Up};

    fn clients(sequence: u64, connected: u64) -> Up {
        Up::Fact { sequence, fact: Fact::Clients { connected } }
    }

    fn greeted() -> View {
        let mut view = View::default();
        for line in [
            Up::Hello { protocol: PROTOCOL, epoch: 3 },
            Up::Begin { sequence: 10 },
            clients(11, 2),
            Up::End { sequence: 12 },
        ] {
            view.hear(line).unwrap();
        }
        view
    }

    #[test]
    fn nothing_is_known_before_the_snapshot_is_complete() {
        let mut view = View::default();
        view.hear(Up::Hello { protocol: PROTOCOL, epoch: 3 }).unwrap();
        view.hear(Up::Begin { sequence: 10 }).unwrap();
        view.hear(clients(11, 2)).unwrap();
        assert_eq!(view.demand(), None);
        assert_eq!(view.hear(Up::End { sequence: 12 }), Ok(Heard::News));
        assert_eq!(view.demand().map(|it| (it.epoch, it.clients)), Some((3, 2)));
    }

    #[test]
    fn a_missing_line_is_a_gap_until_the_next_snapshot() {
        let mut view = greeted();
        assert_eq!(view.hear(clients(14, 5)), Ok(Heard::Gap));
        assert_eq!(view.hear(clients(15, 5)), Ok(Heard::Gap));
        assert_eq!(view.demand().map(|it| it.clients), Some(2));
        for line in [Up::Begin { sequence: 16 }, clients(17, 7), Up::End { sequence: 18 }] {
            view.hear(line).unwrap();
        }
        assert_eq!(view.demand().map(|it| it.clients), Some(7));
    }

    #[test]
    fn amounts_that_no_cluster_can_mean_close_the_connection() {
        for core_seconds in [f64::NAN, f64::INFINITY, -1.0] {
            let fact = Fact::Queue { fits: Vec::new(), tasks: 1, core_seconds, running: 0 };
            let heard = greeted().hear(Up::Fact { sequence: 13, fact });
            assert!(matches!(heard, Err(Violation::Amount(_))), "{core_seconds}");
        }
    }

    fn worker(name: &str) -> Fact {
        Fact::Worker { name: name.to_owned(), held_bytes: 0, assigned: 0 }
    }

    #[test]
    fn what_one_scheduler_may_tell_is_bounded() {
        let mut view = greeted();
        let long = Up::Fact { sequence: 13, fact: worker(&"x".repeat(64)) };
        assert_eq!(view.hear(long), Err(Violation::Name(64)));
        let mut view = greeted();
        for sequence in 13..13 + WORKERS_MAX as u64 {
            view.hear(Up::Fact { sequence, fact: worker(&sequence.to_string()) }).unwrap();
        }
        let sequence = 13 + WORKERS_MAX as u64;
        let one_more = Up::Fact { sequence, fact: worker("one more") };
        assert_eq!(view.hear(one_more), Err(Violation::Workers));
        for nth in 0..WORKERS_MAX {
            let worker = format!("unknown {nth}");
            view.hear(Up::Retired { worker, outcome: Outcome::Released }).unwrap();
        }
        assert_eq!(view.demand().map(|it| it.retired.len()), Some(0));
    }

    fn queue(sequence: u64, group: &str, tasks: u64) -> Up {
        let fits = vec![group.to_owned()];
        Up::Fact { sequence, fact: Fact::Queue { fits, tasks, core_seconds: 1.0, running: 0 } }
    }

    #[test]
    fn a_class_of_which_nothing_waits_or_runs_is_forgotten() {
        let mut view = greeted();
        let mut busy = |sequence, tasks| {
            view.hear(queue(sequence, "w", tasks)).unwrap();
            view.demand().map(Demand::is_busy)
        };
        assert_eq!([busy(13, 2), busy(14, 0), busy(15, 1)], [Some(true), Some(false), Some(true)]);
    }

    #[test]
    fn resource_classes_are_bounded() {
        let mut view = greeted();
        for nth in 0..QUEUES_MAX as u64 {
            view.hear(queue(13 + nth, &nth.to_string(), 1)).unwrap();
        }
        let sequence = 13 + QUEUES_MAX as u64;
        assert_eq!(view.hear(queue(sequence, "0", 2)), Ok(Heard::News));
        assert_eq!(view.hear(queue(sequence + 1, "one more", 1)), Err(Violation::Queues));
        let long = queue(13, &"x".repeat(64), 1);
        assert_eq!(greeted().hear(long), Err(Violation::Name(64)));
        let fits = (0..=GROUPS_MAX).map(|nth| nth.to_string()).collect();
        let fact = Fact::Queue { fits, tasks: 1, core_seconds: 1.0, running: 0 };
        assert_eq!(greeted().hear(Up::Fact { sequence: 13, fact }), Err(Violation::Queues));
    }

    #[test]
    fn a_worker_that_is_asked_to_retire_is_asked_until_it_answers_or_is_gone() {
        let mut view = greeted();
        view.hear(Up::Fact { sequence: 13, fact: worker("a") }).unwrap();
        view.hear(Up::Fact { sequence: 14, fact: worker("b") }).unwrap();
        view.ask(&["a", "b", "unknown"].map(str::to_owned));
        assert_eq!(view.demand().map(|it| it.asked.len()), Some(2));
        view.hear(Up::Retired { worker: "a".to_owned(), outcome: Outcome::Kept }).unwrap();
        view.hear(Up::Fact { sequence: 15, fact: Fact::WorkerGone { name: "b".to_owned() } })
            .unwrap();
        let demand = view.demand().unwrap();
        assert!(demand.asked.is_empty());
        assert_eq!(demand.retired.get("a"), Some(&Outcome::Kept));
    }

    #[test]
    fn the_last_number_of_all_has_none_after_it() {
        let mut view = greeted();
        assert_eq!(view.hear(Up::Begin { sequence: u64::MAX }), Ok(Heard::Nothing));
        assert_eq!(view.hear(clients(0, 1)), Ok(Heard::Gap));
    }

    #[test]
    fn what_another_release_says_beside_is_passed_over() {
        let mut view = greeted();
        let mut hear = |line: &str| view.hear(serde_json::from_str(line).unwrap());
        let field = r#"{"type":"fact","sequence":13,"later":[1],"fact":{"fact":"jobs","ever":7,"later":{}}}"#;
        let fact = r#"{"type":"fact","sequence":14,"fact":{"fact":"aLaterOne","what":"ever"}}"#;
        assert_eq!(hear(field), Ok(Heard::News));
        assert_eq!(hear(fact), Ok(Heard::Nothing));
        assert_eq!(hear(r#"{"type":"aLaterOne","sequence":15}"#), Ok(Heard::Nothing));
        assert_eq!(view.hear(clients(15, 9)), Ok(Heard::News));
        assert_eq!(view.demand().map(|it| (it.jobs, it.clients)), Some((7, 9)));
    }

    #[test]
    fn orders_of_another_release_are_read() {
        let order = |line: &str| serde_json::from_str::<Down>(line).unwrap();
        let retire = r#"{"type":"retire","workers":["a"],"deadlineSeconds":3,"later":null}"#;
        let workers = vec!["a".to_owned()];
        assert_eq!(order(retire), Down::Retire { workers, deadline_seconds: 3 });
        let group = r#"{"name":"w","memoryBytes":1,"resources":{},"targetSeconds":2,"later":4}"#;
        let groups = format!(r#"{{"type":"groups","groups":[{group}]}}"#);
        assert!(matches!(order(&groups), Down::Groups { groups } if groups.len() == 1));
        assert_eq!(order(r#"{"type":"aLaterOne","who":"knows"}"#), Down::Later);
    }

    #[test]
    fn another_protocol_and_a_missing_greeting_are_refused() {
        let hello = Up::Hello { protocol: PROTOCOL + 1, epoch: 0 };
        assert_eq!(View::default().hear(hello), Err(Violation::Protocol(PROTOCOL + 1)));
        assert_eq!(View::default().hear(clients(1, 1)), Err(Violation::NoHello));
    }
}
