//! Reads a manifest from a file, with messages that name what is wrong and where.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use ebbtide_api::{Cluster, ClusterJob, check_fields, names};
use kube::Resource as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::UserMessageFormatter;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TypeMeta {
    api_version: Option<String>,
    kind: Option<String>,
}

/// Every field that a manifest has beside its spec.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read so that others are refused")]
struct Fields {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: serde::de::IgnoredAny,
    #[serde(default)]
    status: serde::de::IgnoredAny,
}

/// Those of `metadata` that a person writes. What a server adds is let be.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read so that others are refused")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    #[serde(default)]
    labels: serde::de::IgnoredAny,
    #[serde(default)]
    annotations: serde::de::IgnoredAny,
    #[serde(default)]
    finalizers: serde::de::IgnoredAny,
    #[serde(default)]
    owner_references: serde::de::IgnoredAny,
    #[serde(default)]
    uid: serde::de::IgnoredAny,
    #[serde(default)]
    generation: serde::de::IgnoredAny,
    #[serde(default)]
    resource_version: serde::de::IgnoredAny,
    #[serde(default)]
    creation_timestamp: serde::de::IgnoredAny,
    #[serde(default)]
    managed_fields: serde::de::IgnoredAny,
}

/// The cluster that a file describes.
pub(crate) fn read(path: &Path) -> anyhow::Result<Cluster> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> anyhow::Result<Cluster> {
    let meta: TypeMeta = yaml(text)?;
    let (version, kind) = (Cluster::api_version(&()), Cluster::kind(&()));
    if meta.kind.as_deref() == Some(&ClusterJob::kind(&())) {
        bail!(
            "expected a {kind}, found a ClusterJob: `kubectl apply -f` takes it, and `ebbtide run` makes one of a program"
        );
    }
    if meta.api_version.as_deref() != Some(&version) || meta.kind.as_deref() != Some(&kind) {
        bail!(
            "expected apiVersion {version} and kind {kind}, found {} and {}",
            meta.api_version.as_deref().unwrap_or("none"),
            meta.kind.as_deref().unwrap_or("none"),
        );
    }
    yaml::<Fields>(text)?;
    let whole: Value = yaml(text)?;
    check_fields(&whole["spec"]).map_err(|error| anyhow!(error))?;
    let cluster: Cluster = yaml(text)?;
    let Some(name) = cluster.metadata.name.as_deref() else {
        bail!("metadata.name is missing; every cluster has a name");
    };
    let checked = names::check_cluster(name);
    checked.map_err(|error| anyhow!("metadata.name: {error}"))?;
    if let Some(namespace) = &cluster.metadata.namespace {
        let checked = names::check_namespace(namespace);
        checked.map_err(|error| anyhow!("metadata.namespace: {error}"))?;
    }
    Ok(cluster)
}

fn yaml<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    let read = serde_saphyr::from_str(text);
    read.map_err(|error| anyhow!(error.render_with_formatter(&UserMessageFormatter)))
}

#[cfg(test)]
mod tests {
    use super::parse;

    const MANIFEST: &str = "apiVersion: ebbtide.dev/v1alpha1
kind: Cluster
metadata: { name: risk }
spec:
  environment: { python: \"3.11\", packages: [numpy] }
  workers:
    - { name: w, resources: { cpu: 1, memory: 1Gi }, max: 2 }
";

    #[test]
    fn a_manifest_is_read() {
        let cluster = parse(MANIFEST).unwrap();
        assert_eq!(cluster.spec.workers[0].max, 2);
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, words) in [
            ("v1alpha1", "v1", "expected apiVersion ebbtide.dev/v1alpha1"),
            ("name: risk", "nome: risk", "unknown field `nome`"),
            ("metadata: { name: risk }", "metadata: {}", "metadata.name is missing"),
            ("name: risk", "name: ../..", "metadata.name: \"../..\" is no name"),
            (
                "name: risk",
                "name: 2026-risk",
                "metadata.name: \"2026-risk\" is no name of a cluster",
            ),
            ("name: risk", "name: a, namespace: /", "metadata.namespace: \"/\""),
            ("spec:", "suspend: true\nspec:", "unknown field `suspend`"),
            ("workers:", "wokers:", "unknown field `spec.wokers`, expected one of `access`, "),
            ("max: 2", "max: 2, pod: { x: 1 }", "unknown field `spec.workers[0].pod.x`"),
            ("1Gi", "1Zi", "\"1Zi\" is not an amount"),
            ("max: 2", "max: two", "line 7"),
            ("max: 2", "max: 2, max: 3", "duplicate mapping key `max`"),
            ("spec:", "---\nspec:", "document"),
        ] {
            let wrong = format!("{:#}", parse(&MANIFEST.replace(from, to)).unwrap_err());
            assert!(wrong.contains(words), "{to}: {wrong}");
            // Of the program that reads it nobody is told.
            assert!(!wrong.contains("Options") && !wrong.contains("from_"), "{to}: {wrong}");
        }
    }
}
