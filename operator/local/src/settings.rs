//! What this machine cannot give of a pod's settings: it has no Secrets, volumes or init containers.

use ebbtide_api::ClusterSpec;
use ebbtide_api::pod::Variable;
use k8s_openapi::api::core::v1::EnvVarSource;

/// Whether a Secret or ConfigMap of a namespace has the value.
pub(crate) fn is_from_elsewhere(source: &EnvVarSource) -> bool {
    source.secret_key_ref.is_some() || source.config_map_key_ref.is_some()
}

/// Variables whose values a Secret or ConfigMap has and that must be there: this machine takes them
/// from the shell.
pub fn from_shell(spec: &ClusterSpec) -> impl Iterator<Item = &str> {
    let is_needed = |variable: &&Variable| {
        variable.value_from.as_ref().is_some_and(|from| {
            let secret = from.secret_key_ref.as_ref().map(|it| it.optional);
            let map = from.config_map_key_ref.as_ref().map(|it| it.optional);
            secret.or(map).is_some_and(|optional| optional != Some(true))
        })
    };
    spec.pods().flat_map(|(_, _, pod)| &pod.env).filter(is_needed).map(|it| it.name.as_str())
}

/// Fields that have no effect on this machine though people may count on them.
pub fn left_out(spec: &ClusterSpec) -> Vec<String> {
    let fields = spec.pods().flat_map(|(site, _, pod)| {
        let parts = [
            ("envFrom", !pod.env_from.is_empty()),
            ("volumeMounts", !pod.volume_mounts.is_empty()),
            ("initContainers", !pod.init_containers.is_empty()),
            ("serviceAccountName", pod.service_account_name.is_some()),
        ];
        let given = parts.into_iter().filter(|(_, is_given)| *is_given);
        given.map(move |(field, _)| format!("{site}.pod.{field}")).collect::<Vec<_>>()
    });
    fields.collect()
}
