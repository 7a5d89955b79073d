//! What the operator knows of one cluster from the lines of its scheduler. Pure.

use std::collections::BTreeMap;

use crate::demand::{Fact, Outcome, PROTOCOL, Up};

/// Most workers that one scheduler may tell of: 64 times what a large cluster has.
pub const WORKERS_MAX: usize = 65_536;

/// A worker as its scheduler describes it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct WorkerView {
    /// Bytes of chunks that it holds.
    pub held_bytes: u64,
    /// Tasks that it was given.
    pub assigned: u64,
}

/// The demand of one cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// Life of the scheduler that said so.
    pub epoch: u64,
    /// Tasks that wait.
    pub tasks: u64,
    /// Core-seconds that they are expected to need.
    pub core_seconds: f64,
    /// Tasks that run.
    pub running: u64,
    /// Connected clients.
    pub clients: u64,
    /// Registered workers by name.
    pub workers: BTreeMap<String, WorkerView>,
    /// Answers to retire requests, by worker, until the worker is gone.
    pub retired: BTreeMap<String, Outcome>,
}

/// What a line changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Heard {
    /// [`View::demand`] may have changed.
    News,
    /// Part of a snapshot that is not complete yet.
    Partial,
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

    /// Takes one line.
    pub fn hear(&mut self, line: Up) -> Result<Heard, Violation> {
        if let Up::Hello { protocol, epoch } = line {
            if protocol != PROTOCOL {
                return Err(Violation::Protocol(protocol));
            }
            *self = Self { hello: true, epoch, ..Self::default() };
            return Ok(Heard::Partial);
        }
        if !self.hello {
            return Err(Violation::NoHello);
        }
        match line {
            Up::Hello { .. } => Ok(Heard::Partial),
            Up::Begin { sequence } => {
                self.next = Some(sequence + 1);
                self.draft = Some(Demand { epoch: self.epoch, ..Demand::default() });
                Ok(Heard::Partial)
            }
            Up::Fact { sequence, fact } => {
                if !self.is_next(sequence) {
                    return Ok(Heard::Gap);
                }
                let in_snapshot = self.draft.is_some();
                let Some(demand) = self.draft.as_mut().or(self.demand.as_mut()) else {
                    return Ok(Heard::Gap);
                };
                learn(demand, fact)?;
                Ok(if in_snapshot { Heard::Partial } else { Heard::News })
            }
            Up::End { sequence } => match (self.is_next(sequence), self.draft.take()) {
                (true, Some(draft)) => {
                    self.demand = Some(draft);
                    Ok(Heard::News)
                }
                _ => Ok(Heard::Gap),
            },
            Up::Retired { worker, outcome } => {
                if let Some(demand) = &mut self.demand
                    && demand.retired.len() < WORKERS_MAX
                {
                    demand.retired.insert(worker, outcome);
                }
                Ok(Heard::News)
            }
        }
    }

    fn is_next(&mut self, sequence: u64) -> bool {
        let expected = self.next == Some(sequence);
        self.next = expected.then(|| sequence + 1);
        expected
    }
}

fn learn(demand: &mut Demand, fact: Fact) -> Result<(), Violation> {
    match fact {
        Fact::Queue { tasks, core_seconds, running } => {
            if !core_seconds.is_finite() || core_seconds < 0.0 {
                return Err(Violation::Amount(core_seconds));
            }
            demand.tasks = tasks;
            demand.core_seconds = core_seconds;
            demand.running = running;
        }
        Fact::Worker { name, held_bytes, assigned } => {
            if demand.workers.len() >= WORKERS_MAX && !demand.workers.contains_key(&name) {
                return Err(Violation::Workers);
            }
            demand.workers.insert(name, WorkerView { held_bytes, assigned });
        }
        Fact::WorkerGone { name } => {
            demand.workers.remove(&name);
            demand.retired.remove(&name);
        }
        Fact::Clients { connected } => demand.clients = connected,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Heard, View, Violation};
    use crate::demand::{Fact, PROTOCOL, Up};

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
            let fact = Fact::Queue { tasks: 1, core_seconds, running: 0 };
            let heard = greeted().hear(Up::Fact { sequence: 13, fact });
            assert!(matches!(heard, Err(Violation::Amount(_))), "{core_seconds}");
        }
    }

    #[test]
    fn another_protocol_and_a_missing_greeting_are_refused() {
        let hello = Up::Hello { protocol: PROTOCOL + 1, epoch: 0 };
        assert_eq!(View::default().hear(hello), Err(Violation::Protocol(PROTOCOL + 1)));
        assert_eq!(View::default().hear(clients(1, 1)), Err(Violation::NoHello));
    }
}
