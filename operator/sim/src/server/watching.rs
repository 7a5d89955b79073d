//! A watch: what happens after a version, as an operator hears of it.

use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::answer::line;
use crate::faults::{EventFault, Fault};
use crate::request::Call;
use crate::server::Server;
use crate::store::{Happened, Store};

/// One open watch.
pub(super) struct Watching {
    pub(super) server: Server,
    pub(super) changed: watch::Receiver<u64>,
    pub(super) call: Call,
    pub(super) version: u64,
    pub(super) end: Instant,
    /// Lines that are due, last first.
    pub(super) to_come: Vec<String>,
    pub(super) is_over: bool,
}

impl Watching {
    pub(super) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(line) = self.to_come.pop() {
                return Some(line);
            }
            if self.is_over {
                return None;
            }
            self.changed.borrow_and_update();
            if self.server.was_away_since(Instant::now()) {
                return None;
            }
            if self.version < self.server.look(Store::compacted) {
                return Some(self.gone());
            }
            if let Some((happened, line)) = self.next_event() {
                self.version = happened.version;
                self.deliver(line).await;
                continue;
            }
            let woken = timeout_at(self.end, self.changed.changed()).await;
            if !matches!(woken, Ok(Ok(()))) {
                self.is_over = true;
                let version = self.version.max(self.server.look(Store::version));
                return Some(self.bookmark(version));
            }
        }
    }

    /// The next thing that happened to what is watched.
    fn next_event(&mut self) -> Option<(Happened, String)> {
        let found = self.server.look(|store| {
            let mut of_kind =
                store.since(self.version).iter().filter(|it| it.key.0 == self.call.kind);
            of_kind.find_map(|it| Some((it.clone(), self.call.event(it)?)))
        });
        let (happened, (kind, object)) = found?;
        Some((happened, line(kind, &self.call.shown(&object))))
    }

    async fn deliver(&mut self, line: String) {
        let pick = |it: &Fault, nth| {
            if let Fault::Event(at, fault) = it
                && *at == nth
            {
                Some(*fault)
            } else {
                None
            }
        };
        let (nth, fault) = self.server.lock().meet(|counts| &mut counts.events, pick);
        if let Some(fault) = fault {
            self.server.log(&format!("event {nth} of {}: {fault:?}", self.call.kind.plural));
        }
        match fault {
            None => self.to_come.push(line),
            Some(EventFault::Cut) => {
                self.version -= 1;
                self.is_over = true;
            }
            Some(EventFault::Missed) => {
                self.server.change(|store, _| store.compact());
                let gone = self.gone();
                self.to_come.push(gone);
            }
            Some(EventFault::Twice) => self.to_come.extend([line.clone(), line]),
            Some(EventFault::Held(time)) => {
                sleep_until(Instant::now() + time).await;
                self.to_come.push(line);
            }
        }
    }

    fn gone(&mut self) -> String {
        self.is_over = true;
        let words = "too old resource version";
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": words, "reason": "Expired", "code": 410,
        });
        line("ERROR", &status)
    }

    fn bookmark(&self, version: u64) -> String {
        let kind = self.call.kind;
        let object = json!({
            "apiVersion": kind.api_version(),
            "kind": kind.name,
            "metadata": { "resourceVersion": version.to_string() },
        });
        line("BOOKMARK", &object)
    }
}
