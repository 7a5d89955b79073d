//! How the operator is started, and the catalogue of images that its site packed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Parser;
use jiff::SignedDuration;
use serde::Deserialize;

/// Keeps Ebbtide's clusters as they should be.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Settings {
    /// Namespace of the operator, where the authority's key is kept.
    #[arg(long, env = "EBBTIDE_OPERATOR_NAMESPACE")]
    pub namespace: String,
    /// Name of this pod, for events.
    #[arg(long, env = "EBBTIDE_POD_NAME")]
    pub pod_name: Option<String>,
    /// The namespaces that it works in; none: all.
    #[arg(long, env = "EBBTIDE_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// `host:port` at which schedulers reach the operator: its Service.
    #[arg(long)]
    pub address: String,
    /// Where it listens for schedulers.
    #[arg(long, default_value = "0.0.0.0:7443")]
    pub listen: String,
    /// Where it serves /healthz and /metrics.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub http: String,
    /// File that lists the packed environments: JSON, from each key to an image.
    #[arg(long)]
    pub environments: Option<PathBuf>,
    /// Seconds between two steps of a replacement of the authority: what one wrote must have reached
    /// every pod by then, so no less than kubelets take to renew the files of Secrets.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub authority_pause_seconds: u32,
    /// Namespaces whose pods may read the metrics of schedulers and workers.
    #[arg(long, env = "EBBTIDE_MONITORING_NAMESPACES", value_delimiter = ',')]
    pub monitoring_namespaces: Vec<String>,
    /// Clusters that are worked on at once.
    #[arg(long, default_value_t = 32)]
    pub concurrency: u16,
}

impl Settings {
    pub(crate) fn authority_pause(&self) -> SignedDuration {
        SignedDuration::from_secs(i64::from(self.authority_pause_seconds))
    }

    /// The namespaces that were named.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        let named = self.namespaces.iter().map(|it| it.trim()).filter(|it| !it.is_empty());
        named.map(str::to_owned).collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue(BTreeMap<String, String>);

/// Images by key, as the plan takes them.
pub(crate) fn environments(
    path: Option<&Path>,
) -> anyhow::Result<BTreeMap<String, Result<String, String>>> {
    let Some(path) = path else { return Ok(BTreeMap::new()) };
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let Catalogue(images) = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a JSON object from key to image", path.display()))?;
    for key in images.keys() {
        if key.len() != 64 || !key.bytes().all(|it| it.is_ascii_hexdigit()) {
            bail!("{}: {key:?} is not a key; expected 64 hexadecimal digits", path.display());
        }
    }
    Ok(images.into_iter().map(|(key, image)| (key, Ok(image))).collect())
}
