//! What goes wrong between an operator and the API server: each at the nth thing of its kind.

use std::sync::Arc;
use std::time::Duration;

use ebbtide_api::names;
use serde_json::{Value, json};

use crate::kinds::{self, Kind};
use crate::store::Store;

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// At the nth write of operators, counted from 0.
    Write(usize, WriteFault),
    /// At the nth event that a watch of an operator delivers.
    Event(usize, EventFault),
    /// The nth list of an operator shows what was so many changes of the kind ago.
    List(usize, usize),
    /// After the nth write somebody takes away everything of a kind that clusters have.
    Taken(usize, Kind),
    /// After the nth write somebody edits everything of a kind that clusters have.
    Edited(usize, Kind, Edit),
    /// After the nth write somebody deletes the cluster.
    Deleted(usize),
    /// Before the nth write, and after whatever was read for it, somebody changes every cluster.
    Touched(usize),
    /// From the nth request on the server is away for so long, and whatever was open is closed.
    Away(usize, Duration),
    /// The operator panics at its nth look at the time: once in each look at a cluster, and more.
    Panic(usize),
    /// The operator panics whenever it writes what has a name that begins so.
    PanicOver(&'static str),
    /// The nth request of any kind gets no answer for so long, and is then refused with 503.
    Slow(usize, Duration),
}

impl Fault {
    /// Whether an operator panics that writes something of this name.
    pub fn is_panic_over(&self, name: &str) -> bool {
        matches!(self, Self::PanicOver(begin) if name.starts_with(begin))
    }
}

/// What somebody does to an object who may do so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Edit {
    /// It says something else.
    Spec,
    /// It has no label any more that tells whose it is.
    Label,
    /// It has a label more, which means nothing.
    Touch,
}

impl Edit {
    /// Does it to everything of a kind.
    pub fn all(self, store: &mut Store, kind: Kind) {
        let patch = match (self, kind == kinds::SERVICE) {
            (Self::Label, _) => json!({ "metadata": { "labels": { names::MANAGED_BY: null } } }),
            (Self::Touch, _) => json!({ "metadata": { "labels": { "touched": "yes" } } }),
            (Self::Spec, true) => json!({ "spec": { "selector": null } }),
            (Self::Spec, false) => json!({ "spec": { "ingress": [{}] } }),
        };
        let name = |it: &Arc<Value>| it["metadata"]["name"].as_str().map(str::to_owned);
        let names: Vec<String> = store.list(kind).filter_map(name).collect();
        for name in names {
            // One that goes may be gone.
            drop(store.merge(kind, &name, &patch));
        }
    }
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WriteFault {
    /// The operator ends before it is done.
    CrashBefore,
    /// The operator ends when it is done.
    CrashAfter,
    /// It is done, and the connection breaks.
    Broken,
    /// It is done, and nobody ever answers.
    Lost,
    /// It is not done, and nobody ever answers.
    Hangs,
    /// It is refused with this status.
    Refused(u16),
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EventFault {
    /// The watch ends before it.
    Cut,
    /// It is never seen: history is gone, and the next list shows what is.
    Missed,
    /// It comes twice.
    Twice,
    /// It comes so much later, and everything after it on this watch.
    Held(Duration),
}

/// What somebody may take away who may do so.
pub const TAKEN: [Kind; 3] = [kinds::POD, kinds::SERVICE, kinds::NETWORK_POLICY];

/// What somebody may edit who may do so, and what then is as it was.
pub const EDITED: [(Kind, Edit); 4] = [
    (kinds::SERVICE, Edit::Spec),
    (kinds::NETWORK_POLICY, Edit::Spec),
    (kinds::SERVICE, Edit::Label),
    (kinds::NETWORK_POLICY, Edit::Label),
];

/// Every way in which a write can go wrong.
pub const WRITE_FAULTS: [WriteFault; 11] = [
    WriteFault::CrashBefore,
    WriteFault::CrashAfter,
    WriteFault::Broken,
    WriteFault::Lost,
    WriteFault::Hangs,
    WriteFault::Refused(429),
    WriteFault::Refused(500),
    WriteFault::Refused(409),
    WriteFault::Refused(403),
    WriteFault::Refused(404),
    WriteFault::Refused(422),
];

/// Every way in which an event can go wrong.
pub const EVENT_FAULTS: [EventFault; 5] = [
    EventFault::Cut,
    EventFault::Missed,
    EventFault::Twice,
    EventFault::Held(Duration::from_millis(700)),
    EventFault::Held(Duration::from_secs(20)),
];
