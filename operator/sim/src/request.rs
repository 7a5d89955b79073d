//! Requests of the API server's paths, read. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, Method, Uri, header};
use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::store::{Deletion, Happened};

/// What is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verb {
    /// One object.
    Get,
    /// All of a kind.
    List,
    /// What happens to a kind.
    Watch,
    /// Whether an object would be taken.
    Try,
    /// A new object.
    Create,
    /// Another object in the place of one.
    Replace,
    /// A merge patch.
    Merge,
    /// That an object goes.
    Delete,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Call {
    /// What is asked for.
    pub verb: Verb,
    /// Of which kind.
    pub kind: Kind,
    /// Of which object.
    pub name: Option<String>,
    /// Whether of its status alone.
    pub is_status: bool,
    /// Whether metadata are enough.
    pub is_metadata: bool,
    /// Labels that objects must have.
    pub labels: BTreeMap<String, String>,
    /// From where a watch begins.
    pub resource_version: Option<u64>,
    /// How long a watch lasts.
    pub timeout_seconds: Option<u64>,
}

/// Reads a request, if its path is one that the model has.
pub(crate) fn parse(method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Call> {
    let parts: Vec<&str> = uri.path().split('/').filter(|it| !it.is_empty()).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let (plural, name, sub) = match rest {
        ["namespaces", _, plural] | [plural] => (*plural, None, None),
        ["namespaces", _, plural, name] => (*plural, Some(*name), None),
        ["namespaces", _, plural, name, sub] => (*plural, Some(*name), Some(*sub)),
        _ => return None,
    };
    let kind = Kind::of(group, version, plural)?;
    let is_status = match sub {
        None => false,
        Some("status") => true,
        Some(_) => return None,
    };
    let query = query(uri.query().unwrap_or_default());
    let text = |name| headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let is_watch = query.get("watch").is_some_and(|it| it == "true");
    let verb = match (method.as_str(), name) {
        ("GET", None) if is_watch => Verb::Watch,
        ("GET", None) => Verb::List,
        ("GET", Some(_)) => Verb::Get,
        ("POST", None) if query.get("dryRun").is_some_and(|it| it == "All") => Verb::Try,
        ("POST", None) => Verb::Create,
        ("PUT", Some(_)) => Verb::Replace,
        ("PATCH", Some(_)) => Verb::Merge,
        ("DELETE", Some(_)) => Verb::Delete,
        _ => return None,
    };
    let labels = query.get("labelSelector").map(String::as_str).unwrap_or_default();
    let labels = labels.split(',').filter_map(|it| it.split_once('='));
    Some(Call {
        verb,
        kind,
        name: name.map(str::to_owned),
        is_status,
        is_metadata: text(header::ACCEPT).contains("PartialObjectMetadata"),
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        resource_version: query.get("resourceVersion").and_then(|it| it.parse().ok()),
        timeout_seconds: query.get("timeoutSeconds").and_then(|it| it.parse().ok()),
    })
}

/// Reads what a deletion asks for.
pub(crate) fn deletion(body: &Value) -> Deletion {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Deletion {
        uid: text(&body["preconditions"]["uid"]),
        resource_version: text(&body["preconditions"]["resourceVersion"]),
        is_foreground: body["propagationPolicy"] == "Foreground",
        grace_seconds: body["gracePeriodSeconds"].as_i64(),
    }
}

impl Call {
    /// Whether an object has the labels.
    pub(crate) fn selects(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|(key, value)| labels[key].as_str() == Some(value))
    }

    /// An object as the caller wants it.
    pub(crate) fn shown(&self, object: &Value) -> Value {
        if !self.is_metadata {
            return object.clone();
        }
        json!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadata",
            "metadata": object["metadata"],
        })
    }

    /// What a watcher is told of something that happened: an object that loses the labels is gone.
    pub(crate) fn event(&self, happened: &Happened) -> Option<(&'static str, Arc<Value>)> {
        let was = happened.before.as_ref().is_some_and(|it| self.selects(it));
        let is = happened.after.as_ref().filter(|it| self.selects(it));
        match (was, is) {
            (false, None) => None,
            (false, Some(after)) => Some(("ADDED", Arc::clone(after))),
            (true, Some(after)) => Some(("MODIFIED", Arc::clone(after))),
            (true, None) => {
                let last = happened.before.as_ref()?;
                let mut last = Value::clone(last);
                last["metadata"]["resourceVersion"] = happened.version.to_string().into();
                Some(("DELETED", Arc::new(last)))
            }
        }
    }
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|it| it.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), unescape(value))).collect()
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut read = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|it| u8::from_str_radix(it, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                read.push(byte);
                at += 3;
            }
            (b'+', _) => {
                read.push(b' ');
                at += 1;
            }
            (byte, _) => {
                read.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&read).into_owned()
}
