use std::collections::{BTreeMap, BTreeSet};

use ebbtide_api::{Cluster, ClusterJob, ClusterStatus, Phase, check_fields};
use jiff::Timestamp;
use kube::{CustomResourceExt as _, ResourceExt as _};
use serde_json::{Map, Value, json};

use crate::job::{self, JobObserved, JobOp};
use crate::{Observed, Op, SchedulerAddress, Site, plan};

/// What settings may change in a pod, as far as they reach it at all. `[it]` is what they name.
const OPEN: [&str; 18] = [
    "metadata.annotations.example.com/canary",
    "metadata.labels.example.com/canary",
    "spec.affinity",
    "spec.containers[own].env[EBBTIDE_ENGINE].value",
    "spec.containers[own].env[EBBTIDE_RESOURCES].value",
    "spec.containers[own].env[canary]",
    "spec.containers[own].envFrom",
    "spec.containers[own].image",
    "spec.containers[own].resources.",
    "spec.containers[own].volumeMounts[/canary]",
    "spec.imagePullSecrets",
    "spec.initContainers",
    "spec.nodeSelector",
    "spec.priorityClassName",
    "spec.serviceAccountName",
    "spec.tolerations",
    "spec.topologySpreadConstraints",
    "spec.volumes[canary]",
];

/// Kinds of volumes that show nothing of a node and no token.
const VOLUMES: [&str; 7] =
    ["name", "configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected", "ephemeral"];

/// Our own that shows a pod its annotation.
const OF_SCRIPT: &str = "downwardAPI";

/// What lends a pod the node's or another namespace's.
const NEVER: [&str; 12] = [
    "hostPath",
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "hostUsers",
    "hostPort",
    "serviceAccountToken",
    "clusterTrustBundle",
    "namespaces",
    "namespaceSelector",
    "privileged",
    "dataSourceRef",
];

pub(crate) fn schema() -> Value {
    let crd = serde_json::to_value(Cluster::crd()).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

/// For each leaf below a schema, its path and the smallest document that has it.
pub(crate) fn leaves(schema: &Value, name: &str) -> Vec<(String, Value)> {
    if let Some(properties) = schema["properties"].as_object() {
        let mut all = Vec::new();
        for (property, below) in properties {
            for (path, value) in leaves(below, property) {
                let mut document = required(schema);
                document.insert(property.clone(), value);
                all.push((format!(".{property}{path}"), Value::Object(document)));
            }
        }
        return all;
    }
    if schema["items"].is_object() {
        let items = leaves(&schema["items"], name).into_iter();
        return items.map(|(path, value)| (format!("[]{path}"), json!([value]))).collect();
    }
    if schema["additionalProperties"].is_object() {
        let values = leaves(&schema["additionalProperties"], "").into_iter();
        return values
            .map(|(path, value)| {
                let mut document = required(schema);
                document.insert("example.com/canary".to_owned(), value);
                if name == "resources" {
                    document.extend([
                        ("cpu".to_owned(), json!(1)),
                        ("memory".to_owned(), json!("1Gi")),
                    ]);
                }
                (format!(".*{path}"), Value::Object(document))
            })
            .collect();
    }
    vec![(String::new(), smallest(schema, name))]
}

pub(crate) fn required(schema: &Value) -> Map<String, Value> {
    let names = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    // Kubernetes calls it optional, and nothing can be mounted without it.
    let secret = schema["properties"].get("secretName").map(|_| "secretName");
    let names = names.chain(secret);
    names.map(|name| (name.to_owned(), smallest(&schema["properties"][name], name))).collect()
}

fn smallest(schema: &Value, name: &str) -> Value {
    match name {
        "resources" => return json!({ "cpu": 1, "memory": "1Gi" }),
        "sources" => return json!([{ "secret": { "name": "canary" } }]),
        "min" => return json!(1),
        _ => {}
    }
    if let Some(first) = schema["enum"].get(0) {
        return first.clone();
    }
    if schema["x-kubernetes-int-or-string"] == json!(true) {
        return json!(1);
    }
    match schema["type"].as_str() {
        Some("object") => Value::Object(required(schema)),
        Some("array") => json!([smallest(&schema["items"], name)]),
        Some("boolean") => json!(true),
        Some("integer" | "number") => {
            json!(schema["minimum"].as_i64().unwrap_or(1).max(1))
        }
        _ => json!(match name {
            "mountPath" => "/canary",
            "python" => "3.11",
            "after" | "window" => "30s",
            _ => "canary",
        }),
    }
}

/// The pods of a cluster with such a spec, by role.
fn pods(spec: Value) -> Result<BTreeMap<String, Value>, String> {
    check_fields(&spec)?;
    let spec = serde_json::from_value(spec).map_err(|error| error.to_string())?;
    let mut cluster = Cluster::new("risk", spec);
    cluster.metadata.namespace = Some("rates".to_owned());
    cluster.metadata.uid = Some("u-1".to_owned());
    let site = Site {
        operator: "ebbtide-operator.ebbtide.svc:7443".to_owned(),
        scheduler_address: SchedulerAddress::Services,
        monitoring: Vec::new(),
        environments: BTreeMap::new(),
    };
    let plan = plan(&cluster, &Observed::default(), &site, Timestamp::UNIX_EPOCH);
    let by_role = plan.changes.iter().filter_map(|change| {
        let Op::CreatePod(pod) = &change.op else { return None };
        let role = pod.labels()[ebbtide_api::names::ROLE].clone();
        let mut pod = pod.clone();
        // It differs whenever anything does.
        pod.annotations_mut().remove(ebbtide_api::names::MADE_FROM).unwrap();
        Some((role, serde_json::to_value(pod).unwrap()))
    });
    let pods: BTreeMap<String, Value> = by_role.collect();
    if pods.is_empty() { Err(plan.status.message.unwrap_or_default()) } else { Ok(pods) }
}

/// A spec with one leaf set, complete enough to become pods.
fn complete(leaf: Value) -> Value {
    let resources = json!({ "cpu": 1, "memory": "1Gi" });
    let group = json!({ "name": "canary", "resources": resources, "max": 1, "min": 1, "pod": {} });
    let mut spec = json!({ "image": "canary", "scheduler": { "pod": {} }, "workers": [group] });
    merge(&mut spec, leaf);
    for site in ["/scheduler/pod", "/workers/0/pod"] {
        if let Some(Value::Object(pod)) = spec.pointer_mut(site) {
            // What is mounted is there.
            pod.entry("volumes").or_insert_with(|| json!([{ "name": "canary", "emptyDir": {} }]));
        }
    }
    spec
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from)) if into.len() == from.len() => {
            into.iter_mut().zip(from).for_each(|(into, from)| merge(into, from));
        }
        (into, from) => *into = from,
    }
}

/// Paths at which two values differ.
fn differences(before: &Value, after: &Value, path: &str, found: &mut BTreeSet<String>) {
    let named = |value: &Value| -> Option<BTreeMap<String, Value>> {
        let name = |at: usize, item: &Value| {
            let name = item["mountPath"].as_str().or_else(|| item["name"].as_str());
            match name {
                Some("scheduler" | "worker" | "job") => "[own]".to_owned(),
                Some(name) => format!("[{name}]"),
                None => format!("[{at}]"),
            }
        };
        match value {
            Value::Object(map) => {
                Some(map.iter().map(|(key, value)| (format!(".{key}"), value.clone())).collect())
            }
            Value::Array(items) => Some(
                items.iter().enumerate().map(|(at, item)| (name(at, item), item.clone())).collect(),
            ),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
        }
    };
    match (named(before), named(after)) {
        (Some(before), Some(after)) => {
            for key in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
                let (old, new) = (before.get(key), after.get(key));
                let path = format!("{path}{key}");
                match (old, new) {
                    (Some(old), Some(new)) => differences(old, new, &path, found),
                    _ => _ = found.insert(path),
                }
            }
        }
        _ if before == after => {}
        _ => _ = found.insert(path.to_owned()),
    }
}

fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                found.insert(key.clone());
                keys(value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Panics if a pod has what settings must not reach.
fn check(leaf: &str, before: &Value, after: &Value) {
    check_with(leaf, (before, after), &OPEN);
}

fn check_with(leaf: &str, (before, after): (&Value, &Value), open: &[&str]) {
    let mut changed = BTreeSet::new();
    differences(before, after, "", &mut changed);
    for path in &changed {
        let path = path.trim_start_matches('.');
        let is_open = open.iter().any(|open| path.starts_with(open));
        assert!(is_open, "{leaf} changes {path}");
    }
    let mut all = BTreeSet::new();
    keys(after, &mut all);
    assert_eq!(NEVER.iter().find(|it| all.contains(**it)), None, "{leaf}");
    for volume in after["spec"]["volumes"].as_array().unwrap() {
        for kind in volume.as_object().unwrap().keys() {
            let is_script = volume["name"] == "ebbtide-script" && kind == OF_SCRIPT;
            assert!(VOLUMES.contains(&kind.as_str()) || is_script, "{leaf} mounts a {kind}");
        }
    }
    let own = &after["spec"]["containers"][0]["securityContext"];
    assert_eq!(own["capabilities"]["drop"], json!(["ALL"]));
    for init in after["spec"]["initContainers"].as_array().into_iter().flatten() {
        assert_eq!(&init["securityContext"], own, "{leaf}");
    }
}

#[test]
fn no_setting_reaches_what_keeps_others_safe() {
    let before = pods(complete(json!({}))).unwrap();
    let (mut reached, mut idle, mut never) = (0, Vec::new(), Vec::new());
    for (leaf, document) in leaves(&schema(), "spec") {
        let mut spec = complete(document);
        if leaf.starts_with(".environment") {
            spec.as_object_mut().unwrap().remove("image");
        }
        match pods(spec) {
            Ok(after) => {
                assert_eq!(after.len(), 2, "{leaf}");
                for (role, pod) in &after {
                    check(&leaf, &before[role], pod);
                }
                if after == before { idle.push(leaf) } else { reached += 1 }
            }
            Err(why) => never.push(format!("{leaf}: {why}")),
        }
    }
    insta::assert_debug_snapshot!((reached, idle, never));
}

/// What the fields of a job's own may change beside that.
const OPEN_OF_JOBS: [&str; 5] = [
    "metadata.annotations.ebbtide.dev/script",
    "spec.containers[own].args",
    "spec.containers[own].command",
    "spec.containers[own].volumeMounts[/etc/ebbtide/job]",
    "spec.volumes[ebbtide-script]",
];

/// The pod of a job with these fields.
fn pod_of_job(fields: Value) -> Result<Value, String> {
    let mut spec = json!({ "cluster": complete(json!({})), "pod": {} });
    merge(&mut spec, fields);
    if spec["command"].is_null() {
        spec["script"] = spec["script"].as_str().unwrap_or("canary").into();
    }
    let pod = spec["pod"].as_object_mut().unwrap();
    pod.entry("volumes").or_insert_with(|| json!([{ "name": "canary", "emptyDir": {} }]));
    let spec = serde_json::from_value(spec).map_err(|error| error.to_string())?;
    let mut job = ClusterJob::new("nightly", spec);
    job.metadata.namespace = Some("rates".to_owned());
    job.metadata.uid = Some("j-1".to_owned());
    let mut cluster = Cluster::new("nightly", job.spec.cluster.clone().unwrap());
    cluster.metadata = crate::owned_by(&job, "nightly".to_owned());
    cluster.metadata.uid = Some("u-1".to_owned());
    cluster.status = Some(ClusterStatus { phase: Phase::Ready, ..ClusterStatus::default() });
    let observed = JobObserved { cluster: Some(cluster), ..JobObserved::default() };
    let site = Site {
        operator: "ebbtide-operator.ebbtide.svc:7443".to_owned(),
        scheduler_address: SchedulerAddress::Services,
        monitoring: Vec::new(),
        environments: BTreeMap::new(),
    };
    let plan = job::plan(&job, &observed, &site, Timestamp::UNIX_EPOCH);
    let pod = plan.changes.into_iter().find_map(|it| match it.op {
        JobOp::CreatePod(pod) => Some(serde_json::to_value(pod).unwrap()),
        JobOp::TryPod(_)
        | JobOp::CreateCluster(_)
        | JobOp::DeleteCluster(_)
        | JobOp::DeletePod(_)
        | JobOp::CreateJob(_)
        | JobOp::DeleteJob(_)
        | JobOp::LeaveOut(_) => None,
    });
    pod.ok_or_else(|| plan.status.message.unwrap_or_default())
}

#[test]
fn no_setting_of_a_job_reaches_what_keeps_others_safe() {
    let crd = serde_json::to_value(ClusterJob::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let before = pod_of_job(json!({})).unwrap();
    let (mut reached, mut idle, mut never) = (0, Vec::new(), Vec::new());
    for (leaf, document) in leaves(schema, "spec") {
        // Its cluster's are told of a cluster, and a reference is another's.
        if leaf.starts_with(".cluster") {
            continue;
        }
        match pod_of_job(document) {
            Ok(after) => {
                check_with(&leaf, (&before, &after), &[&OPEN[..], &OPEN_OF_JOBS].concat());
                if after == before { idle.push(leaf) } else { reached += 1 }
            }
            Err(why) => never.push(format!("{leaf}: {why}")),
        }
    }
    insta::assert_debug_snapshot!((reached, idle, never));
}

/// What is said to a spec whose workers' pods have these settings.
fn said(pod: &Value) -> String {
    pods(complete(json!({ "workers": [{ "pod": pod }] })))
        .map_or_else(|why| why, |_| "taken".to_owned())
}

#[test]
fn what_cannot_be_set_is_refused_by_name() {
    let mount = |path: &str| json!({ "volumeMounts": [{ "name": "canary", "mountPath": path }] });
    let annotation = |key: &str| json!({ "annotations": { key: "x" } });
    let settings = [
        json!({ "labels": { "ebbtide.dev/cluster-uid": "another" } }),
        json!({ "labels": { "x.ebbtide.dev/role": "scheduler" } }),
        json!({ "labels": { "app.kubernetes.io/managed-by": "me" } }),
        json!({ "labels": { "notebbtide.dev/x": "y", "azure.workload.identity/use": "true" } }),
        annotation("ebbtide.dev/wanted-at"),
        annotation("container.apparmor.security.beta.kubernetes.io/worker"),
        annotation("k8s.v1.cni.cncf.io/networks"),
        annotation("sidecar.istio.io/userVolume"),
        annotation("sidecar.istio.io/inject"),
        annotation("example.com/cost-centre"),
        json!({ "env": [{ "name": "EBBTIDE_SCHEDULER", "value": "elsewhere" }] }),
        json!({ "env": [{ "name": "A" }, { "name": "A" }] }),
        json!({ "env": [{ "name": "A", "valueFrom": {} }] }),
        json!({ "envFrom": [{ "prefix": "X" }] }),
        json!({ "envFrom": [{ "prefix": "EBBTIDE_", "configMapRef": { "name": "m" } }] }),
        json!({ "env": [{ "name": "A", "value": "x".repeat(70_000) }] }),
        json!({ "labels": { "team": "a b" } }),
        json!({ "labels": { "team": "-" } }),
        json!({ "labels": { "team": "" } }),
        annotation("cpu-quota.crio.io"),
        annotation("io.kubernetes.cri-o.Devices"),
        annotation("v1.multus-cni.io/default-network"),
        annotation("iam.amazonaws.com/role"),
        json!({ "volumes": [{ "name": "v", "secret": {} }] }),
        json!({ "volumes": [{ "name": "v", "emptyDir": { "sizeLimit": "10MB" } }] }),
        json!({ "volumes": [{ "name": "tmp", "emptyDir": {} }] }),
        json!({ "volumes": [{ "name": "v" }] }),
        json!({ "volumes": [{ "name": "v", "hostPath": { "path": "/" } }] }),
        json!({ "volumes": [{ "name": "v", "emptyDir": {}, "secret": { "secretName": "s" } }] }),
        json!({ "volumes": [{ "name": "v", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } }] }),
        json!({ "volumes": [{ "name": "v", "projected": { "sources": [{}] } }] }),
        json!({ "volumeMounts": [{ "name": "nothing", "mountPath": "/data" }] }),
        mount("/data"),
        mount("data"),
        mount("/data/../etc/ebbtide/credentials"),
        mount("/"),
        mount("//"),
        mount("/etc"),
        mount("/etc/ebbtide/credentials/"),
        mount("/etc/ebbtide//credentials/x"),
        mount("/etc/ebbtide/credentials-of-mine"),
        mount("/tmp"),
        mount("/tmp/x"),
        json!({ "volumeMounts": [{ "name": "canary", "mountPath": "/data", "subPath": "a/../../b" }] }),
        json!({ "initContainers": [{ "name": "worker" }] }),
        json!({ "initContainers": [{ "name": "i", "securityContext": { "privileged": true } }] }),
        json!({ "initContainers": [{ "name": "i", "env": [{ "name": "EBBTIDE_X" }] }] }),
        json!({ "priorityClassName": "system-node-critical" }),
        json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution":
            [{ "topologyKey": "zone", "namespaceSelector": {} }] } } }),
        json!({ "hostNetwork": true }),
        json!({ "automountServiceAccountToken": true }),
    ];
    let shown = |it: &Value| it.to_string().chars().take(200).collect::<String>();
    let answers: Vec<String> =
        settings.iter().map(|it| format!("{}\n  {}", shown(it), said(it))).collect();
    insta::assert_snapshot!(answers.join("\n"));
}

#[test]
fn what_people_set_comes_beside_what_is_ebbtides_own() {
    let settings = json!({
        "labels": { "mine": "yes" },
        "env": [{ "name": "A", "value": "1" }],
        "initContainers": [{ "name": "fetch", "command": ["get", "$(A)"], "args": ["$$"] }],
    });
    let pod = &pods(complete(json!({ "workers": [{ "pod": settings }] }))).unwrap()["worker"];
    let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    assert_eq!(env[0], json!({ "name": "A", "value": "1" }));
    assert!(env.len() > 5);
    assert_eq!(pod["metadata"]["labels"]["mine"], "yes");
    assert_eq!(pod["metadata"]["labels"]["ebbtide.dev/cluster-uid"], "u-1");
    let init = &pod["spec"]["initContainers"][0];
    assert_eq!(init["image"], "canary");
    // As Kubernetes writes what is no reference to a variable.
    assert_eq!((&init["command"], &init["args"]), (&json!(["get", "$$(A)"]), &json!(["$$$$"])));
    assert_eq!(init["resources"], pod["spec"]["containers"][0]["resources"]);
    assert_eq!(
        init["volumeMounts"],
        json!([{ "name": "tmp", "mountPath": "/tmp", "readOnly": false }])
    );
}

#[test]
fn an_amount_of_memory_that_is_a_slip_of_the_pen_is_refused() {
    let asks = |memory: &str| {
        let mut spec = complete(json!({}));
        spec["workers"][0]["resources"]["memory"] = json!(memory);
        pods(spec)
    };
    for memory in ["4Mi", "4194304", "0.5Gi"] {
        assert!(asks(memory).is_ok(), "{memory}");
    }
    for memory in ["512m", "1", "4194303"] {
        let refused = asks(memory).unwrap_err();
        assert!(refused.contains(&format!("memory: {memory} is too little")), "{refused}");
    }
}
