//! What schedulers and workers log: a JSON object a line, with the cluster and the pod that it is of.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::{Map, Value};

/// Fields that say of whom a line is, and the variables that they come from.
const ORIGIN: [(&str, &str); 4] = [
    ("cluster", crate::variable::CLUSTER),
    ("cluster_uid", crate::variable::CLUSTER_UID),
    ("pod", crate::variable::POD_NAME),
    ("trace", crate::variable::TRACE),
];

/// Where in the code a line comes from, which is of no use to who asks what a cluster does.
const PLACE: [&str; 2] = ["target", "span"];

/// What a line of ours begins with: the version of what logs it.
const OURS: &str = "ebbtide";

/// Whatever all lines of a process begin with.
#[derive(Clone, Debug)]
pub struct Origin(String);

/// A line as people read it.
#[derive(Debug, Deserialize)]
pub struct Spoken {
    /// The version of the program that said it: what other programs print has none.
    #[serde(rename = "ebbtide")]
    _version: String,
    /// When it was said, as in RFC 3339.
    #[serde(rename = "timestamp")]
    pub at: String,
    /// Like `INFO`.
    pub level: String,
    /// What was said.
    #[serde(default)]
    pub message: String,
    /// What belongs to it, by name.
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl Origin {
    /// Of a process with these variables. Those that are missing or empty are not told.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let given = |name| variable(name).filter(|it| !it.is_empty());
        let version = (OURS, env!("CARGO_PKG_VERSION").to_owned());
        let origin = ORIGIN.iter().filter_map(|(field, name)| Some((*field, given(name)?)));
        let fields = std::iter::once(version).chain(origin);
        let told: Vec<String> = fields
            .map(|(field, value)| format!("{}:{},", Value::from(field), Value::from(value)))
            .collect();
        Self(format!("{{{}", told.concat()))
    }

    /// A line that is a JSON object, with its origin before everything else. Anything else stays as it is.
    pub fn stamp(&self, line: &[u8]) -> Vec<u8> {
        match line.strip_prefix(b"{") {
            Some(rest) if rest.starts_with(b"\"") => [self.0.as_bytes(), rest].concat(),
            Some(_) | None => line.to_vec(),
        }
    }
}

/// What a process said last, without the rest of its line.
pub fn last_words(log: &str) -> Option<String> {
    let last = log.lines().last()?;
    Some(Spoken::read(last).map_or_else(|| last.to_owned(), |it| it.text()))
}

impl Spoken {
    /// Reads a line, if it is one of ours.
    pub fn read(line: &str) -> Option<Self> {
        line.starts_with('{').then(|| serde_json::from_str(line).ok()).flatten()
    }

    /// What was said and what belongs to it.
    pub fn text(&self) -> String {
        let mut text = self.message.clone();
        let is_told =
            |name: &str| !PLACE.contains(&name) && ORIGIN.iter().all(|(field, _)| *field != name);
        for (name, value) in self.fields.iter().filter(|(name, _)| is_told(name)) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // A String takes any write.
            let _: std::fmt::Result = write!(text, " {name}={value}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Origin, Spoken};
    use crate::variable;

    #[test]
    fn a_line_tells_whose_it_is_and_reads_as_it_was_said() {
        let origin = Origin::of(|name| match name {
            variable::CLUSTER => Some("risk".to_owned()),
            variable::POD_NAME => Some("risk-\"0".to_owned()),
            variable::TRACE => Some(String::new()),
            _ => None,
        });
        let said = br#"{"timestamp":"2026-01-01T00:00:01Z","level":"INFO","message":"registered","epoch":3,"from":"a","target":"t"}"#;
        let line = String::from_utf8(origin.stamp(said)).unwrap();
        let version = env!("CARGO_PKG_VERSION");
        let begin =
            format!(r#"{{"ebbtide":"{version}","cluster":"risk","pod":"risk-\"0","timestamp":"#);
        assert!(line.starts_with(&begin), "{line}");
        let spoken = Spoken::read(&line).unwrap();
        assert_eq!((&*spoken.level, &*spoken.at), ("INFO", "2026-01-01T00:00:01Z"));
        assert_eq!(spoken.text(), "registered epoch=3 from=a");
    }

    #[test]
    fn what_a_program_prints_itself_stays_as_it_is() {
        let origin = Origin::of(|_| Some("x".to_owned()));
        for said in ["{", "{}", "{ \"a\": 1 }", "plain", ""] {
            assert_eq!(origin.stamp(said.as_bytes()), said.as_bytes());
        }
        let theirs = r#"{"timestamp":"2026-01-01T00:00:01Z","level":"INFO","pod":"p"}"#;
        for line in ["{", "{}", "plain", theirs, "[1]"] {
            assert!(Spoken::read(line).is_none(), "{line}");
        }
    }
}
