//! What people set of pods: whether it can be, and in the words of Kubernetes.

use std::collections::BTreeMap;

use ebbtide_api::pod::{
    Ephemeral, InitContainer, Medium, Mount, Neighbours, PodPlacement, PodSettings, PodVolume,
    Projected, Projection, Variable, Variables,
};
use ebbtide_api::{ClusterSpec, GROUP, Resources, SPEC_MAX, names};
use k8s_openapi::api::core::v1::{
    Affinity, EmptyDirVolumeSource, EnvFromSource, EnvVar, EnvVarSource, EphemeralVolumeSource,
    PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate, PodAffinity, PodAffinityTerm,
    PodAntiAffinity, ProjectedVolumeSource, Volume, VolumeMount, VolumeProjection,
    VolumeResourceRequirements, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;

use crate::pods::{
    CREDENTIALS_PATH, OWN_VOLUMES, SCRIPT_PATH, SCRIPT_VOLUME, TMP_PATH, is_own_container, literal,
};

/// Domains whose annotations tell the node, the network or a webhook what a pod may do. Their keys
/// come with and without a name behind a slash.
const INFRASTRUCTURE: [&str; 20] = [
    "amazonaws.com",
    "banzaicloud.io",
    "cilium.io",
    "cncf.io",
    "cri-o.io",
    "crio.io",
    "dapr.io",
    "datadoghq.com",
    "gke.io",
    "hashicorp.com",
    "istio.io",
    "k8s.io",
    "k8s.ovn.org",
    "katacontainers.io",
    "kubernetes.io",
    "linkerd.io",
    "multus-cni.io",
    "openshift.io",
    "projectcalico.org",
    "x-k8s.io",
];

/// Beginnings of keys that container runtimes listen to.
const RUNTIMES: [&str; 2] = ["io.kubernetes.", "io.katacontainers."];

/// Less than this is a slip of the pen: it takes more to start a container.
const MEMORY_MIN_MIB: u64 = 4;

/// Longest settings of a pod, in bytes of JSON: each pod that is made has a copy.
const BYTES_MAX: usize = 64 << 10;

/// Annotations of those domains that people need and that lend them nothing.
const HARMLESS: [&str; 3] = [
    "cluster-autoscaler.kubernetes.io/safe-to-evict",
    "sidecar.istio.io/inject",
    "linkerd.io/inject",
];

/// Whether pods can have all of this: if not, which field cannot be and why.
pub(crate) fn check(spec: &ClusterSpec) -> Result<(), String> {
    let bytes = json!(spec).to_string().len();
    if bytes > SPEC_MAX {
        return Err(format!(
            "spec: it is {bytes} bytes long; expected at most {SPEC_MAX}: put long values into a ConfigMap"
        ));
    }
    spec.pods().try_for_each(|(field, resources, pod)| check_one(&field, resources, pod))
}

/// Whether one pod can have all of this.
pub(crate) fn check_one(
    field: &str,
    resources: &Resources,
    pod: &PodSettings,
) -> Result<(), String> {
    check_resources(resources).map_err(|error| format!("{field}.resources: {error}"))?;
    check_pod(pod).map_err(|error| format!("{field}.pod.{error}"))
}

/// The first field by which a program reads what is not its author's alone, if there is one.
pub(crate) fn lent(pod: &PodSettings) -> Option<&'static str> {
    let is_from = |env: &[Variable]| env.iter().any(|it| it.value_from.is_some());
    let inits = || pod.init_containers.iter();
    let is_lent = |it: &PodVolume| it.empty_dir.is_none() && it.ephemeral.is_none();
    [
        (is_from(&pod.env), "env"),
        (!pod.env_from.is_empty(), "envFrom"),
        (pod.volumes.iter().any(is_lent), "volumes"),
        (pod.service_account_name.is_some(), "serviceAccountName"),
        (inits().any(|it| is_from(&it.env) || !it.env_from.is_empty()), "initContainers"),
    ]
    .into_iter()
    .find_map(|(is_lent, field)| is_lent.then_some(field))
}

/// Nothing begins with less memory, and what is counted in devices comes whole.
fn check_resources(resources: &Resources) -> Result<(), String> {
    if resources.memory_bytes() < MEMORY_MIN_MIB << 20 {
        let given = resources.memory();
        return Err(format!(
            "memory: {given} is too little for any program; expected at least {MEMORY_MIN_MIB}Mi: a number alone \
             is bytes, and `m` a thousandth"
        ));
    }
    for (kind, amount) in resources.iter().filter(|(kind, _)| kind.contains('/')) {
        if amount.value().is_ok_and(|value| value.fract() != 0.0) {
            return Err(format!("{kind}: {amount} is not whole; expected a number like 1"));
        }
    }
    Ok(())
}

fn check_pod(pod: &PodSettings) -> Result<(), String> {
    let bytes = json!(pod).to_string().len();
    if bytes > BYTES_MAX {
        return Err(format!(
            "env: everything in pod is {bytes} bytes long; expected at most {BYTES_MAX}: put long \
             values into a ConfigMap"
        ));
    }
    for (key, value) in &pod.labels {
        check_key(key).map_err(|error| format!("labels: {error}"))?;
        check_label(key, value).map_err(|error| format!("labels: {error}"))?;
    }
    for key in pod.annotations.keys() {
        check_key(key).map_err(|error| format!("annotations: {error}"))?;
        check_syntax(&key.to_ascii_lowercase()).map_err(|error| format!("annotations: {error}"))?;
        check_annotation(key).map_err(|error| format!("annotations: {error}"))?;
    }
    for (key, value) in &pod.node_selector {
        check_label(key, value).map_err(|error| format!("nodeSelector: {error}"))?;
    }
    check_environment(&pod.env, &pod.env_from)?;
    check_volumes(&pod.volumes)?;
    check_mounts(&pod.volume_mounts, &pod.volumes)?;
    for init in &pod.init_containers {
        check_init(init, &pod.volumes)
            .map_err(|error| format!("initContainers[{}].{error}", init.name))?;
    }
    match &pod.priority_class_name {
        Some(name) if name.starts_with("system-") => Err(format!(
            "priorityClassName: {name} is the system's; expected one that was made for clusters"
        )),
        _ => Ok(()),
    }
}

/// Labels and annotations by which Ebbtide and others know whose a pod is.
fn check_key(key: &str) -> Result<(), String> {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    if is_within(domain, GROUP) || key == names::MANAGED_BY {
        return Err(format!("{key} is Ebbtide's own; choose another key"));
    }
    Ok(())
}

/// What Kubernetes takes as the key of a label or an annotation: a name, after a domain or not.
fn check_syntax(key: &str) -> Result<(), String> {
    let (domain, name) = key.rsplit_once('/').map_or((None, key), |(it, name)| (Some(it), name));
    let is_lower = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit();
    let is_part = |it: &str| {
        it.starts_with(is_lower)
            && it.ends_with(is_lower)
            && it.chars().all(|it| is_lower(it) || it == '-')
    };
    let is_domain = |it: &str| it.len() <= 253 && it.split('.').all(is_part);
    if !name.is_empty() && is_word(name) && domain.is_none_or(is_domain) {
        return Ok(());
    }
    Err(format!(
        "{key:?} is no key; expected at most 63 letters, digits, '-', '_' and '.', beginning and ending with \
         a letter or digit, after a domain and '/' or not"
    ))
}

/// What the value of a label may be, and the name in a key if it is not empty.
fn is_word(text: &str) -> bool {
    let is_outer = |it: char| it.is_ascii_alphanumeric();
    let is_inner = |it: char| is_outer(it) || "-_.".contains(it);
    text.len() <= 63
        && text.chars().all(is_inner)
        && (text.is_empty() || text.starts_with(is_outer) && text.ends_with(is_outer))
}

pub(crate) fn check_label(key: &str, value: &str) -> Result<(), String> {
    check_syntax(key)?;
    if is_word(value) {
        return Ok(());
    }
    Err(format!(
        "{key}: {value:?} is no value of a label; expected at most 63 letters, digits, '-', '_' and \
         '.', beginning and ending with a letter or digit"
    ))
}

fn check_annotation(key: &str) -> Result<(), String> {
    let domain = key.split_once('/').map_or(key, |(domain, _)| domain);
    let is_infrastructure = INFRASTRUCTURE.iter().any(|it| is_within(domain, it))
        || RUNTIMES.iter().any(|it| key.starts_with(it));
    if is_infrastructure && !HARMLESS.contains(&key) {
        return Err(format!(
            "{key} may change what a pod is allowed to do; of such domains only {} can be set",
            HARMLESS.join(", "),
        ));
    }
    Ok(())
}

fn is_within(domain: &str, of: &str) -> bool {
    domain.strip_suffix(of).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn check_environment(env: &[Variable], env_from: &[Variables]) -> Result<(), String> {
    check_unique("env", env.iter().map(|it| &it.name))?;
    for Variable { name, value, value_from } in env {
        if name.starts_with("EBBTIDE_") {
            return Err(format!("env: {name}: names that begin with EBBTIDE_ are Ebbtide's own"));
        }
        let Some(from) = value_from else { continue };
        let sources = [from.config_map_key_ref.is_some(), from.secret_key_ref.is_some()];
        if value.is_some() || !is_one_of(sources) {
            return Err(format!(
                "env: {name}: give one of value, valueFrom.configMapKeyRef and \
                 valueFrom.secretKeyRef"
            ));
        }
    }
    for Variables { prefix, config_map_ref, secret_ref } in env_from {
        if !is_one_of([config_map_ref.is_some(), secret_ref.is_some()]) {
            return Err("envFrom: give one of configMapRef and secretRef".to_owned());
        }
        if prefix.as_ref().is_some_and(|it| it.starts_with("EBBTIDE_")) {
            return Err("envFrom: names that begin with EBBTIDE_ are Ebbtide's own".to_owned());
        }
    }
    Ok(())
}

fn check_volumes(volumes: &[PodVolume]) -> Result<(), String> {
    check_unique("volumes", volumes.iter().map(|it| &it.name))?;
    for volume in volumes {
        let PodVolume { name, projected, .. } = volume;
        if OWN_VOLUMES.contains(&name.as_str()) || name == SCRIPT_VOLUME {
            return Err(format!("volumes: {name} is Ebbtide's own; choose another name"));
        }
        if volume.secret.as_ref().is_some_and(|it| it.secret_name.is_none()) {
            return Err(format!("volumes: {name}: secret has no secretName; give its name"));
        }
        let kinds = [
            volume.config_map.is_some(),
            volume.secret.is_some(),
            volume.empty_dir.is_some(),
            volume.persistent_volume_claim.is_some(),
            projected.is_some(),
            volume.ephemeral.is_some(),
        ];
        let parts = projected.iter().flat_map(|it| &it.sources);
        let mut parts = parts.map(|it| [it.config_map.is_some(), it.secret.is_some()]);
        if !is_one_of(kinds) || !parts.all(is_one_of) {
            return Err(format!(
                "volumes: {name}: give exactly one of configMap, secret, emptyDir, \
                 persistentVolumeClaim, projected (of configMap or secret) and ephemeral"
            ));
        }
    }
    Ok(())
}

fn check_mounts(mounts: &[Mount], volumes: &[PodVolume]) -> Result<(), String> {
    check_unique("volumeMounts", mounts.iter().map(|it| &it.mount_path))?;
    for Mount { name, mount_path, sub_path, .. } in mounts {
        let fail = |why: &str| Err(format!("volumeMounts: {mount_path}: {why}"));
        if volumes.iter().all(|it| it.name != *name) {
            return fail(&format!("there is no volume {name} in volumes"));
        }
        let parts = || mount_path.split('/').filter(|part| !part.is_empty());
        if !mount_path.starts_with('/') || parts().any(|part| [".", ".."].contains(&part)) {
            return fail("expected a whole path, like /data");
        }
        let path = format!("/{}", parts().collect::<Vec<_>>().join("/"));
        let holds =
            |outer: &str, inner: &str| format!("{inner}/").starts_with(&format!("{outer}/"));
        if path == "/"
            || path == TMP_PATH
            || holds(&path, CREDENTIALS_PATH)
            || holds(&path, SCRIPT_PATH)
        {
            return fail("Ebbtide mounts something there; expected another path, like /data");
        }
        if holds(CREDENTIALS_PATH, &path) || holds(SCRIPT_PATH, &path) {
            return fail("Ebbtide's own files are there; expected another path, like /data");
        }
        if sub_path
            .as_ref()
            .is_some_and(|it| it.starts_with('/') || it.split('/').any(|it| it == ".."))
        {
            return fail("subPath must stay within the volume: no .. and no / at the beginning");
        }
    }
    Ok(())
}

fn check_init(init: &InitContainer, volumes: &[PodVolume]) -> Result<(), String> {
    if is_own_container(&init.name) {
        return Err("name is Ebbtide's own; choose another".to_owned());
    }
    check_environment(&init.env, &init.env_from)?;
    check_mounts(&init.volume_mounts, volumes)
}

fn check_unique<'a>(field: &str, names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut seen = Vec::new();
    for name in names {
        if seen.contains(&name) {
            return Err(format!("{field}: {name} is there twice"));
        }
        seen.push(name);
    }
    Ok(())
}

fn is_one_of<const N: usize>(given: [bool; N]) -> bool {
    given.into_iter().filter(|it| *it).count() == 1
}

pub(crate) fn env(variables: &[Variable]) -> impl Iterator<Item = EnvVar> {
    variables.iter().map(|it| EnvVar {
        name: it.name.clone(),
        value: it.value.as_deref().map(literal),
        value_from: it.value_from.as_ref().map(|from| EnvVarSource {
            config_map_key_ref: from.config_map_key_ref.clone(),
            secret_key_ref: from.secret_key_ref.clone(),
            ..EnvVarSource::default()
        }),
    })
}

pub(crate) fn env_from(all: &[Variables]) -> Option<Vec<EnvFromSource>> {
    some(all.iter().map(|it| EnvFromSource {
        prefix: it.prefix.clone(),
        config_map_ref: it.config_map_ref.clone(),
        secret_ref: it.secret_ref.clone(),
    }))
}

pub(crate) fn volumes(volumes: &[PodVolume]) -> impl Iterator<Item = Volume> {
    volumes.iter().map(|it| Volume {
        name: it.name.clone(),
        config_map: it.config_map.clone(),
        secret: it.secret.clone(),
        empty_dir: it.empty_dir.as_ref().map(|it| EmptyDirVolumeSource {
            medium: it.medium.map(|Medium::Memory| "Memory".to_owned()),
            size_limit: it.size_limit.as_ref().map(|it| Quantity(it.to_string())),
        }),
        persistent_volume_claim: it.persistent_volume_claim.clone(),
        projected: it.projected.as_ref().map(projected),
        ephemeral: it.ephemeral.as_ref().map(ephemeral),
        ..Volume::default()
    })
}

fn projected(projected: &Projected) -> ProjectedVolumeSource {
    let source = |it: &Projection| VolumeProjection {
        config_map: it.config_map.clone(),
        secret: it.secret.clone(),
        ..VolumeProjection::default()
    };
    ProjectedVolumeSource {
        default_mode: projected.default_mode,
        sources: Some(projected.sources.iter().map(source).collect()),
    }
}

fn ephemeral(ephemeral: &Ephemeral) -> EphemeralVolumeSource {
    let storage = Quantity(ephemeral.storage.to_string());
    let spec = PersistentVolumeClaimSpec {
        access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
        storage_class_name: ephemeral.storage_class_name.clone(),
        resources: Some(VolumeResourceRequirements {
            requests: Some(BTreeMap::from([("storage".to_owned(), storage)])),
            limits: None,
        }),
        ..PersistentVolumeClaimSpec::default()
    };
    let volume_claim_template = Some(PersistentVolumeClaimTemplate { metadata: None, spec });
    EphemeralVolumeSource { volume_claim_template }
}

pub(crate) fn mounts(mounts: &[Mount]) -> impl Iterator<Item = VolumeMount> {
    mounts.iter().map(|it| VolumeMount {
        name: it.name.clone(),
        mount_path: it.mount_path.clone(),
        sub_path: it.sub_path.clone(),
        read_only: Some(it.read_only),
        ..VolumeMount::default()
    })
}

pub(crate) fn affinity(placement: &PodPlacement) -> Affinity {
    Affinity {
        node_affinity: placement.node_affinity.clone(),
        pod_affinity: placement.pod_affinity.as_ref().map(|near| {
            let (required, preferred) = terms(near);
            PodAffinity {
                required_during_scheduling_ignored_during_execution: required,
                preferred_during_scheduling_ignored_during_execution: preferred,
            }
        }),
        pod_anti_affinity: placement.pod_anti_affinity.as_ref().map(|far| {
            let (required, preferred) = terms(far);
            PodAntiAffinity {
                required_during_scheduling_ignored_during_execution: required,
                preferred_during_scheduling_ignored_during_execution: preferred,
            }
        }),
    }
}

type Terms = (Option<Vec<PodAffinityTerm>>, Option<Vec<WeightedPodAffinityTerm>>);

/// Without namespaces a term is about pods of its own namespace.
fn terms(neighbours: &Neighbours) -> Terms {
    let term = |it: &ebbtide_api::pod::Neighbour| PodAffinityTerm {
        label_selector: it.label_selector.clone(),
        topology_key: it.topology_key.clone(),
        ..PodAffinityTerm::default()
    };
    let weighted = |it: &ebbtide_api::pod::WeightedNeighbour| WeightedPodAffinityTerm {
        weight: it.weight,
        pod_affinity_term: term(&it.pod_affinity_term),
    };
    let Neighbours {
        required_during_scheduling_ignored_during_execution: required,
        preferred_during_scheduling_ignored_during_execution: preferred,
    } = neighbours;
    (some(required.iter().map(term)), some(preferred.iter().map(weighted)))
}

/// A list, or none where it would be empty.
pub(crate) fn some<T>(items: impl IntoIterator<Item = T>) -> Option<Vec<T>> {
    let items: Vec<T> = items.into_iter().collect();
    (!items.is_empty()).then_some(items)
}

#[cfg(test)]
pub(crate) mod tests;
