use kube::CustomResourceExt as _;
use serde_json::json;

use crate::change::definition;
use crate::status::Cause;
use crate::{Amount, Cluster, ClusterJob, ClusterSpec, Length, Phase, check_fields};

#[test]
fn the_definition_is_what_is_committed() {
    for (committed, definition) in [
        (include_str!("../../../crds/clusters.yaml"), definition()),
        (include_str!("../../../crds/clusterjobs.yaml"), ClusterJob::crd()),
    ] {
        let generated = serde_saphyr::to_string(&definition).unwrap();
        let odd = generated.lines().zip(committed.lines()).find(|(left, right)| left != right);
        assert_eq!(odd, None, "run `make crds` and commit the result");
        assert_eq!(generated.trim_end().len(), committed.trim_end().len());
    }
}

#[test]
fn the_smallest_manifest_gets_its_defaults() {
    let workers = json!([{ "name": "w", "resources": { "cpu": 2, "memory": "8Gi" }, "max": 4 }]);
    let spec: ClusterSpec =
        serde_json::from_value(json!({ "image": "a", "workers": workers })).unwrap();
    insta::assert_yaml_snapshot!(spec);
}

#[test]
fn what_a_person_wrote_that_is_no_field_is_refused_by_name() {
    for (spec, words) in [
        (json!({ "wokers": [] }), "unknown field `spec.wokers`, expected one of `access`, "),
        (json!({ "workers": [{ "pod": { "x": 1 } }] }), "unknown field `spec.workers[0].pod.x`"),
        (json!({ "scheduler": { "resources": { "x": {} } } }), ""),
        (json!({ "scheduler": { "pod": { "labels": { "x": 1 } } } }), ""),
    ] {
        let refused = check_fields(&spec).err().unwrap_or_default();
        assert!(refused.starts_with(words) && refused.is_empty() == words.is_empty(), "{refused}");
    }
}

#[test]
fn what_another_version_wrote_is_let_be_and_the_rest_is_read() {
    let workers = json!([{ "name": "w", "resources": { "cpu": 2, "memory": "8Gi" }, "max": 4,
        "pod": { "gang": true } }]);
    let mut cluster = json!({
        "metadata": { "name": "risk" },
        "spec": { "image": "a", "workers": workers, "lifetime": { "schedule": {} } },
    });
    let known: Cluster = serde_json::from_value(cluster.clone()).unwrap();
    assert_eq!(known.spec.workers[0].max, 4);
    let cause = |it: &str| json!({ "cause": it, "pods": 1, "message": "" });
    let phase = |it: &str| json!({ "phase": it, "milliseconds": 7 });
    cluster["status"] = json!({
        "phase": "Suspended",
        "phases": [phase("Suspended"), phase("Ready")],
        "replicas": 3,
        "groups": [{ "name": "w", "causes": [cause("Preempted"), cause("Exit")] }],
    });
    let status = serde_json::from_value::<Cluster>(cluster).unwrap().status.unwrap();
    assert_eq!((status.phase, status.replicas, status.phases.len()), (Phase::Starting, 3, 1));
    assert_eq!(status.groups[0].causes[0].cause, Cause::Exit);
}

#[test]
fn amounts_have_the_values_that_kubernetes_gives_them() {
    for (text, value) in
        [("2", 2.0), ("500m", 0.5), ("1.5", 1.5), ("8Gi", 8_589_934_592.0), ("1k", 1000.0)]
    {
        assert_eq!(Amount::from(text).value(), Ok(value), "{text}");
    }
    for text in ["", "m", "-1", "0", "0.0", "0Gi", "1e400", "1Zi", "nan", ".5"] {
        assert!(Amount::from(text).value().is_err(), "{text}");
    }
}

#[test]
fn lengths_of_time_read_back_what_they_print() {
    for text in ["90s", "20m", "1h30m", "1h1s", "0s"] {
        let length: Length = text.parse().unwrap();
        assert_eq!(length.to_string().parse(), Ok(length), "{text}");
    }
    for text in ["", "20", "m", "1m1h", "1.5h", "-1s", "99999999999999999999h"] {
        assert!(text.parse::<Length>().is_err(), "{text}");
    }
}
