//! What a cluster is and what happened to it, in words and in the order of time.

use std::fmt::Write as _;

use ebbtide_api::Cluster;
use ebbtide_api::status::{GroupStatus, PhaseTime};
use ebbtide_contract::log::Spoken;
use ebbtide_plan::PENDING_CHANGE;
use ebbtide_plan::job::is_made_for_job;
use jiff::Timestamp;
use kube::ResourceExt as _;

/// One thing that happened or was said.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Line {
    pub(crate) at: Timestamp,
    pub(crate) who: String,
    pub(crate) text: String,
}

/// The lines of a log that begin with their time. Those without one belong to the one before.
pub(crate) fn of_log(who: &str, log: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut at = Timestamp::UNIX_EPOCH;
    for mut text in log.lines() {
        // Stamped by whoever keeps the log, and again by whoever speaks.
        while let Some((time, rest)) = stamped(text) {
            (at, text) = (time, rest);
        }
        let spoken = Spoken::read(text);
        if let Some(time) = spoken.as_ref().and_then(|it| it.at.parse().ok()) {
            at = time;
        }
        let text =
            spoken.map_or_else(|| text.to_owned(), |it| format!("{:>5} {}", it.level, it.text()));
        lines.push(Line { at, who: who.to_owned(), text });
    }
    lines
}

fn stamped(line: &str) -> Option<(Timestamp, &str)> {
    let (time, rest) = line.split_once(' ')?;
    Some((time.parse().ok()?, rest.trim_start()))
}

/// All of it in the order of time; what was said at once stays in the order in which it was said.
pub(crate) fn in_order(mut lines: Vec<Line>) -> Vec<String> {
    lines.sort_by_key(|line| line.at);
    let width = lines.iter().map(|line| line.who.len()).max().unwrap_or_default();
    let shown = |Line { at, who, text }: &Line| {
        format!("{}  {who:width$}  {text}", at.strftime("%Y-%m-%dT%H:%M:%SZ"))
    };
    lines.iter().map(shown).collect()
}

/// What a cluster is by now.
pub(crate) fn describe(cluster: &Cluster, now: Timestamp) -> String {
    let status = cluster.status.clone().unwrap_or_default();
    let mut told = format!("{}  {:?}", cluster.name_any(), status.phase);
    let mut row = |what: &str, words: &str| {
        // A String takes any write.
        let _: std::fmt::Result = write!(told, "\n  {what:<12} {words}");
    };
    row("namespace", &cluster.namespace().unwrap_or_default());
    if let Some(created) = cluster.creation_timestamp() {
        row("age", &age(created.0, now));
        let max = cluster.spec.lifetime.max.as_ref();
        if let Some(max) = max.filter(|_| !is_made_for_job(cluster)) {
            row("goes", &format!("when it is {} old", max.after));
        }
    }
    if let Some(condition) = ebbtide_plan::ready(&status) {
        let since = age(condition.last_transition_time.0, now);
        row("ready", &format!("{}, since {since}: {}", condition.status, condition.reason));
    }
    for PhaseTime { phase, milliseconds } in &status.phases {
        let took = *milliseconds as f64 / 1000.0;
        row("was", &format!("{phase:?} for {took:.1} s"));
    }
    let pending = status.conditions.iter().find(|it| it.type_ == PENDING_CHANGE);
    if let Some(pending) = pending.filter(|it| it.status == "True") {
        row("pending", &pending.message);
    }
    if let Some(message) = &status.message {
        row("message", message);
    }
    for group in &status.groups {
        row("workers", &counts(group));
        for cause in &group.causes {
            let pods = if cause.pods == 1 { "pod" } else { "pods" };
            row("", &format!("{} {pods}: {}", cause.pods, cause.message));
        }
    }
    if let Some(idle) = &status.idle_since {
        row("no work", &format!("since {}", age(idle.0, now)));
    }
    for (what, value) in [
        ("scheduler", &status.scheduler_address),
        ("environment", &status.environment_key),
        ("image", &status.image),
        ("digest", &status.image_digest),
    ] {
        if let Some(value) = value {
            row(what, value);
        }
    }
    told
}

fn counts(group: &GroupStatus) -> String {
    let workers = group.workers;
    let mut words = format!("{}: {} of {} ready", group.name, workers.ready, workers.desired);
    for (count, what) in
        [(workers.starting, "starting"), (workers.retiring, "retiring"), (workers.failed, "failed")]
    {
        if count > 0 {
            let _: std::fmt::Result = write!(words, ", {count} {what}");
        }
    }
    words
}

/// How long ago, in the largest unit of which there are at least two.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(since.as_second()).max(0);
    let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
    let unit = units.iter().find(|(length, _)| seconds >= 2 * length);
    unit.map_or_else(
        || format!("{seconds}s"),
        |(length, name)| format!("{}{name}", seconds / length),
    )
}

#[cfg(test)]
mod tests {
    use ebbtide_api::Cluster;
    use jiff::Timestamp;
    use serde_json::json;

    use super::{describe, in_order, of_log};

    #[test]
    fn lines_come_in_the_order_of_time_and_those_without_one_stay_with_theirs() {
        let first =
            of_log("a", "2026-01-01T00:00:01Z one\n  and more\n2026-01-01T00:00:03.5Z three");
        let said = r#"{"ebbtide":"1","pod":"p","timestamp":"2026-01-01T00:00:02Z","level":"INFO","message":"two"}"#;
        let second = of_log("worker", &format!("2026-01-01T00:00:09Z {said}"));
        assert_eq!(
            in_order([first, second].concat()),
            [
                "2026-01-01T00:00:01Z  a       one",
                "2026-01-01T00:00:01Z  a         and more",
                "2026-01-01T00:00:02Z  worker   INFO two",
                "2026-01-01T00:00:03Z  a       three",
            ]
        );
    }

    #[test]
    fn a_cluster_is_described_with_what_keeps_it() {
        let cluster: Cluster = serde_json::from_value(json!({
            "metadata": { "name": "risk", "namespace": "rates",
                "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "image": "i", "workers": [{ "name": "w", "max": 4,
                "resources": { "cpu": 1, "memory": "1Gi" } }] },
            "status": {
                "phase": "Starting",
                "message": "risk-w-2: Unschedulable: 0/2 nodes are available",
                "conditions": [{ "type": "Ready", "status": "False", "reason": "Unschedulable",
                    "message": "", "lastTransitionTime": "2026-01-01T00:02:00Z" },
                    { "type": "PendingChange", "status": "True", "reason": "NextPods",
                    "message": "1 pod is of other settings", "lastTransitionTime": "2026-01-01T00:02:00Z" }],
                "phases": [{ "phase": "Ready", "milliseconds": 61_250 }],
                "groups": [{ "name": "w", "desired": 4, "ready": 1, "starting": 2, "failed": 1,
                    "causes": [
                        { "cause": "Unschedulable", "pods": 2, "message": "0/2 nodes are available" },
                        { "cause": "OutOfMemory", "pods": 1, "message": "OOMKilled: exit code 137" },
                    ] }],
                "schedulerAddress": "risk.rates.svc:8786",
            },
        }))
        .unwrap();
        let now = "2026-01-01T03:00:00Z".parse::<Timestamp>().unwrap();
        let told = "\
risk  Starting
  namespace    rates
  age          3h
  ready        False, since 2h: Unschedulable
  was          Ready for 61.2 s
  pending      1 pod is of other settings
  message      risk-w-2: Unschedulable: 0/2 nodes are available
  workers      w: 1 of 4 ready, 2 starting, 1 failed
               2 pods: 0/2 nodes are available
               1 pod: OOMKilled: exit code 137
  scheduler    risk.rates.svc:8786";
        assert_eq!(describe(&cluster, now), told);
    }
}
