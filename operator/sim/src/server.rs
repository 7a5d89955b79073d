//! The model behind a client of kube: requests in, answers and watches out, faults in between.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::pending;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use jiff::Timestamp;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tower::BoxError;

use crate::admission::Admission;
use crate::answer::{Answer, answered, refusal, refused, unavailable};
use crate::faults::{Edit, Fault, WriteFault};
use crate::kinds::{self, Kind};
use crate::request::{self, Call, Verb};
use crate::server::watching::Watching;
use crate::store::{Deletion, Happened, Store};

mod watching;

/// How long a request takes.
const LATENCY: Duration = Duration::from_millis(2);

/// What a write of an operator is judged by: what there was before it, and what it asks for.
pub type Guard = Box<dyn Fn(&Store, &Asked<'_>) -> Result<(), String> + Send>;

/// A write of an operator.
#[derive(Debug)]
pub struct Asked<'a> {
    /// Which operator.
    pub who: usize,
    /// What it wants.
    pub verb: Verb,
    /// Of which kind.
    pub kind: Kind,
    /// The object's name, where the path has one.
    pub name: &'a str,
    /// What came with it.
    pub body: &'a Value,
    /// Since when clusters go or are gone, by their uids.
    pub gone: &'a BTreeMap<String, Instant>,
}

/// An API server.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<watch::Sender<u64>>,
    crashes: mpsc::UnboundedSender<usize>,
    started_at: Instant,
}

struct Inner {
    store: Store,
    faults: Vec<Fault>,
    /// Since when clusters go or are gone, by their uids.
    gone: BTreeMap<String, Instant>,
    /// Operators whose requests for leases get no answer.
    cut: BTreeSet<usize>,
    /// What becomes of the next write of a lease by an operator.
    fault_of_leases: BTreeMap<usize, WriteFault>,
    /// Until when nobody is answered.
    away_until: Option<Instant>,
    counts: Counts,
    guard: Option<Guard>,
    admission: Admission,
    wrong: Option<String>,
    trace: String,
}

/// How much of each kind there was.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Writes of operators.
    pub writes: usize,
    /// Events that their watches delivered.
    pub events: usize,
    /// Their lists.
    pub lists: usize,
    /// Their requests of every kind.
    pub requests: usize,
    /// How often they asked what time it is, while they looked at clusters and jobs.
    pub times: usize,
}

impl Inner {
    /// Counts one more of a kind. Gives its number, and what goes wrong at it.
    fn meet<T>(
        &mut self,
        count: impl FnOnce(&mut Counts) -> &mut usize,
        pick: impl Fn(&Fault, usize) -> Option<T>,
    ) -> (usize, Option<T>) {
        let count = count(&mut self.counts);
        let nth = *count;
        *count += 1;
        (nth, self.faults.iter().find_map(|it| pick(it, nth)))
    }

    fn note_the_gone(&mut self, since: u64) {
        let goes = |it: &Value| it["metadata"]["deletionTimestamp"].is_string();
        let is_gone = |it: &&Happened| it.after.as_ref().is_none_or(|it| goes(it));
        let all = self.store.since(since).iter().filter(|it| it.key.0 == kinds::CLUSTER);
        for happened in all.filter(is_gone) {
            let last = happened.after.as_ref().or(happened.before.as_ref());
            let uid = last.and_then(|it| it["metadata"]["uid"].as_str()).unwrap_or_default();
            self.gone.entry(uid.to_owned()).or_insert_with(Instant::now);
        }
    }
}

/// When the calendar of a world begins.
const BEGIN: i64 = 1_000_000;

impl Server {
    /// A server without objects. What ends an operator is told by its number.
    pub fn new(faults: Vec<Fault>) -> (Self, mpsc::UnboundedReceiver<usize>) {
        let (crashes, crashed) = mpsc::unbounded_channel();
        let inner = Inner {
            store: Store::default(),
            faults,
            gone: BTreeMap::new(),
            cut: BTreeSet::new(),
            fault_of_leases: BTreeMap::new(),
            away_until: None,
            counts: Counts::default(),
            guard: None,
            admission: Admission::default(),
            wrong: None,
            trace: String::new(),
        };
        let server = Self {
            inner: Arc::new(Mutex::new(inner)),
            changed: Arc::new(watch::Sender::new(0)),
            crashes,
            started_at: Instant::now(),
        };
        (server, crashed)
    }

    /// A client of the operator with this number.
    pub fn client(&self, who: usize) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request| server.clone().answer(who, request));
        kube::Client::new(service, "default")
    }

    /// The time of this world.
    pub fn now(&self) -> Timestamp {
        let since = self.started_at.elapsed();
        let begin = Timestamp::from_second(BEGIN).unwrap_or_default();
        begin.checked_add(since).unwrap_or(begin)
    }

    /// The same, for an operator that looks at a cluster or job and may panic.
    pub fn time_of_a_look(&self) -> Timestamp {
        let pick = |it: &Fault, nth| matches!(it, Fault::Panic(at) if *at == nth).then_some(());
        let (nth, panics) = self.lock().meet(|counts| &mut counts.times, pick);
        if panics.is_some() {
            self.log("the operator panics");
            // Without the words on standard error that others have.
            resume_unwind(Box::new(format!("look {nth} at the time")));
        }
        self.now()
    }

    /// Lets an operator's requests for leases go without an answer from now on.
    pub fn cut_leases_of(&self, who: usize) {
        self.lock().cut.insert(who);
    }

    /// Lets this become of an operator's next write of a lease.
    pub fn meet_a_lease_of(&self, who: usize, fault: WriteFault) {
        self.lock().fault_of_leases.insert(who, fault);
    }

    /// Changes which pods are taken from now on.
    pub fn admit(&self, change: impl FnOnce(&mut Admission)) {
        change(&mut self.lock().admission);
    }

    /// Judges every write of operators from now on.
    pub fn watch_over(&self, guard: Guard) {
        self.lock().guard = Some(guard);
    }

    /// The first thing that a guard said, if any did.
    pub fn wrong(&self) -> Option<String> {
        self.lock().wrong.clone()
    }

    /// What happened, a line each.
    pub fn trace(&self) -> String {
        self.lock().trace.clone()
    }

    /// Adds a line to what happened.
    pub fn log(&self, line: &str) {
        let seconds = self.started_at.elapsed().as_secs_f64();
        let mut inner = self.lock();
        writeln!(inner.trace, "{seconds:>9.3} {line}").expect("a String takes any write");
    }

    /// Forgets events, what happened, and how things became what they are.
    pub fn forget(&self) {
        self.change(|store, now| {
            store.delete_all(kinds::EVENT, |_| true, now);
            store.compact();
        });
        self.lock().trace = String::new();
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Looks at the objects.
    pub fn look<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        look(&self.lock().store)
    }

    /// Changes objects as somebody else does who is not an operator.
    pub fn change<T>(&self, change: impl FnOnce(&mut Store, Timestamp) -> T) -> T {
        let now = self.now();
        let (result, before, version) = {
            let mut inner = self.lock();
            let before = inner.store.version();
            let result = change(&mut inner.store, now);
            inner.note_the_gone(before);
            (result, before, inner.store.version())
        };
        if version > before {
            self.changed.send_replace(version);
        }
        result
    }

    /// Lets everybody look again who waits for a change.
    pub fn wake(&self) {
        self.changed.send_modify(|_| ());
    }

    /// Tells of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(
        self,
        who: usize,
        request: Request<Body>,
    ) -> Result<Response<Answer>, BoxError> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let Some(call) = request::parse(&parts.method, &parts.uri, &parts.headers) else {
            return Ok(refused(&refusal(404)));
        };
        sleep(LATENCY).await;
        if self.was_away_since(Instant::now()) {
            return Err("the connection was refused".into());
        }
        if call.kind == kinds::LEASE && !matches!(call.verb, Verb::List | Verb::Watch) {
            // Renewing goes on for ever: it is not counted.
            let is_cut = self.lock().cut.contains(&who);
            if is_cut {
                return pending().await;
            }
            let is_write = call.verb == Verb::Replace;
            let fault = is_write.then(|| self.lock().fault_of_leases.remove(&who)).flatten();
            return self.met(who, fault, || self.carry_out(&call, &body)).await;
        }
        if let Some((is_away, time)) = self.met_by_request() {
            if is_away {
                self.lock().away_until = Some(Instant::now() + time);
                self.wake();
                return Err("the connection was reset".into());
            }
            sleep(time).await;
            return Ok(refused(&unavailable()));
        }
        match call.verb {
            Verb::Watch => Ok(self.watch(call)),
            Verb::List => Ok(self.list(&call)),
            Verb::Get | Verb::Try | Verb::Create | Verb::Replace | Verb::Merge | Verb::Delete => {
                if call.verb == Verb::Get {
                    Ok(self.carry_out(&call, &body))
                } else {
                    self.write(who, &call, &body).await
                }
            }
        }
    }

    /// Whether this request, of whatever kind it is, finds the server away, or waits to be refused; and for how long.
    fn met_by_request(&self) -> Option<(bool, Duration)> {
        let pick = |it: &Fault, nth| {
            if let Fault::Slow(at, time) | Fault::Away(at, time) = *it
                && at == nth
            {
                Some((matches!(it, Fault::Away(..)), time))
            } else {
                None
            }
        };
        self.lock().meet(|counts| &mut counts.requests, pick).1
    }

    /// Whether nobody was answered at some time since then.
    pub fn was_away_since(&self, begin: Instant) -> bool {
        self.lock().away_until.is_some_and(|until| begin < until)
    }

    async fn write(
        &self,
        who: usize,
        call: &Call,
        body: &Value,
    ) -> Result<Response<Answer>, BoxError> {
        let pick = |it: &Fault, nth| {
            if let Fault::Write(at, fault) = it
                && *at == nth
            {
                Some(*fault)
            } else {
                None
            }
        };
        let (nth, fault) = self.lock().meet(|counts| &mut counts.writes, pick);
        let name =
            call.name.as_deref().or_else(|| body["metadata"]["name"].as_str()).unwrap_or_default();
        if self.lock().faults.iter().any(|it| it.is_panic_over(name)) {
            resume_unwind(Box::new(format!("a write of {name}")));
        }
        let what = format!("{:?} {} {name}", call.verb, call.kind.plural);
        let fault_told = fault.map(|it| format!(" {it:?}")).unwrap_or_default();
        self.log(&format!("operator {who} write {nth}: {what}{fault_told}"));
        self.meddle_before(nth);
        self.met(who, fault, || {
            let answer = self.judged(who, call, body);
            if fault.is_none() {
                self.meddle(nth);
            }
            answer
        })
        .await
    }

    /// A write that meets a fault.
    async fn met(
        &self,
        who: usize,
        fault: Option<WriteFault>,
        write: impl FnOnce() -> Response<Answer>,
    ) -> Result<Response<Answer>, BoxError> {
        match fault {
            None => Ok(write()),
            Some(WriteFault::CrashBefore) => self.crash(who).await,
            Some(WriteFault::CrashAfter) => {
                drop(write());
                self.crash(who).await
            }
            Some(WriteFault::Broken) => {
                drop(write());
                Err("the connection was reset".into())
            }
            Some(WriteFault::Lost) => {
                drop(write());
                pending().await
            }
            Some(WriteFault::Hangs) => pending().await,
            Some(WriteFault::Refused(code)) => Ok(refused(&refusal(code))),
        }
    }

    /// What somebody else does between this write and what was read for it.
    fn meddle_before(&self, write: usize) {
        if self.lock().faults.contains(&Fault::Touched(write)) {
            self.log("somebody changes all clusters");
            self.change(|store, _| Edit::Touch.all(store, kinds::CLUSTER));
        }
    }

    /// What somebody else does after this write.
    fn meddle(&self, write: usize) {
        let faults = self.lock().faults.clone();
        for fault in faults {
            match fault {
                Fault::Taken(at, kind) if at == write => {
                    self.log(&format!("somebody takes away all {}", kind.plural));
                    self.change(|store, now| store.delete_all(kind, |_| true, now));
                }
                Fault::Edited(at, kind, edit) if at == write => {
                    self.log(&format!("somebody edits {edit:?} of all {}", kind.plural));
                    self.change(|store, _| edit.all(store, kind));
                }
                Fault::Deleted(at) if at == write => {
                    self.log("somebody deletes the cluster");
                    let deletion = Deletion::default();
                    // It may be gone.
                    drop(self.change(|it, now| it.delete(kinds::CLUSTER, "risk", &deletion, now)));
                }
                Fault::Taken(..)
                | Fault::Edited(..)
                | Fault::Deleted(_)
                | Fault::Touched(_)
                | Fault::Away(..)
                | Fault::Write(..)
                | Fault::Event(..)
                | Fault::List(..)
                | Fault::Panic(_)
                | Fault::PanicOver(_)
                | Fault::Slow(..) => {}
            }
        }
    }

    async fn crash<T>(&self, who: usize) -> T {
        // Nobody listens any more when the world is over.
        let _: Result<(), _> = self.crashes.send(who);
        pending().await
    }

    /// Does what an operator asks for, after a look at whether it may be asked.
    fn judged(&self, who: usize, call: &Call, body: &Value) -> Response<Answer> {
        {
            let mut inner = self.lock();
            let asked = Asked {
                who,
                verb: call.verb,
                kind: call.kind,
                name: call.name.as_deref().unwrap_or_default(),
                body,
                gone: &inner.gone,
            };
            let judged = inner.guard.as_ref().map(|guard| guard(&inner.store, &asked));
            if let Some(Err(wrong)) = judged {
                inner.wrong.get_or_insert(wrong);
            }
        }
        self.carry_out(call, body)
    }

    fn carry_out(&self, call: &Call, body: &Value) -> Response<Answer> {
        let Call { kind, .. } = *call;
        let name = call.name.as_deref().unwrap_or_default();
        let admission = self.lock().admission;
        if kind == kinds::POD
            && let Some(refusal) = self.look(|store| admission.refusal(store, call.verb, body))
        {
            return refused(&refusal);
        }
        let done = self.change(|store, now| match call.verb {
            Verb::Get => store.get(kind, name).cloned(),
            Verb::Try => store.try_create(kind, body),
            Verb::Create => store.create(kind, body.clone(), now),
            Verb::Replace => store.replace(kind, name, body, call.is_status),
            Verb::Merge => store.merge(kind, name, body),
            Verb::Delete => store.delete(kind, name, &request::deletion(body), now),
            Verb::List | Verb::Watch => unreachable!("both are answered elsewhere"),
        });
        match done {
            Ok(object) if call.is_metadata => answered(200, &call.shown(&object)),
            Ok(object) => answered(if call.verb == Verb::Create { 201 } else { 200 }, &object),
            Err(refusal) => refused(&refusal),
        }
    }

    fn list(&self, call: &Call) -> Response<Answer> {
        let mut inner = self.lock();
        let pick = |it: &Fault, nth| {
            if let Fault::List(at, changes) = it
                && *at == nth
            {
                Some(*changes)
            } else {
                None
            }
        };
        let (nth, stale) = inner.meet(|counts| &mut counts.lists, pick);
        let (objects, version) = match stale {
            Some(changes) => inner.store.list_of_old(call.kind, changes),
            None => (inner.store.list(call.kind).cloned().collect(), inner.store.version()),
        };
        drop(inner);
        let items: Vec<Arc<Value>> = objects.into_iter().filter(|it| call.selects(it)).collect();
        self.log(&format!("list {nth} of {}: {} at {version}", call.kind.plural, items.len()));
        let (api_version, kind) = if call.is_metadata {
            ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadata")
        } else {
            (call.kind.api_version(), call.kind.name)
        };
        answered(
            200,
            &json!({
                "apiVersion": api_version,
                "kind": format!("{kind}List"),
                "metadata": { "resourceVersion": version.to_string() },
                "items": items.iter().map(|it| call.shown(it)).collect::<Vec<Value>>(),
            }),
        )
    }

    fn watch(&self, call: Call) -> Response<Answer> {
        let end = Instant::now() + Duration::from_secs(call.timeout_seconds.unwrap_or(300));
        let version = call.resource_version.unwrap_or_default();
        let watching = Watching {
            server: self.clone(),
            changed: self.changes(),
            call,
            version,
            end,
            to_come: Vec::new(),
            is_over: false,
        };
        let lines = stream::unfold(watching, |mut watching| async move {
            let line = watching.next().await?;
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(line))), watching))
        });
        Response::new(StreamBody::new(lines).boxed_unsync())
    }
}
