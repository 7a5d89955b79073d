//! Where clusters live, behind one set of verbs.

mod jobs;
mod kubernetes;
pub(crate) mod local;

use anyhow::bail;
use clap::{Args, ValueEnum};
use ebbtide_api::Cluster;
use ebbtide_api::change::Class;

pub(crate) use crate::backend::kubernetes::{Kubernetes, no_cluster};
pub(crate) use crate::backend::local::fresh_uid;
use crate::command::Place;
use crate::story::Line;

/// The two backends.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Kind {
    /// Pods.
    Kubernetes,
    /// Processes.
    Local,
}

/// Of which namespaces something is listed. On this machine: always of all.
#[derive(Args, Clone, Copy)]
pub(crate) struct Scope {
    /// Those of all namespaces. On this machine they always are.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
}

/// Objects of a kind, and what is said of those that cannot be read.
pub(crate) struct Listed<K> {
    pub(crate) objects: Vec<K>,
    pub(crate) unreadable: Vec<String>,
}

/// A backend that answers.
pub(crate) enum Backend {
    Kubernetes(Kubernetes),
    Local { namespace: String },
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Local => "local",
        }
    }
}

impl Backend {
    pub(crate) async fn connect(place: &Place) -> anyhow::Result<Self> {
        let namespace = place.namespace.clone();
        match place.backend.unwrap_or_else(kubernetes::default_kind) {
            Kind::Kubernetes => Ok(Self::Kubernetes(Kubernetes::connect(namespace).await?)),
            Kind::Local => {
                Ok(Self::Local { namespace: namespace.unwrap_or_else(|| "default".to_owned()) })
            }
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Kubernetes(_) => Kind::Kubernetes,
            Self::Local { .. } => Kind::Local,
        }
    }

    /// The namespace where none is named.
    pub(crate) fn namespace(&self) -> String {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.namespace.clone(),
            Self::Local { namespace } => namespace.clone(),
        }
    }

    /// Creates or changes a cluster. Gives whether it was created.
    pub(crate) async fn apply(&self, cluster: &Cluster) -> anyhow::Result<bool> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.apply(cluster).await,
            Self::Local { .. } => local::apply(cluster),
        }
    }

    /// The cluster as [`Self::apply`] would leave it.
    ///
    /// # Errors
    ///
    /// It would not be taken.
    pub(crate) async fn rehearse(&self, cluster: &Cluster) -> anyhow::Result<Cluster> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.rehearse(cluster).await,
            Self::Local { .. } => Ok(cluster.clone()),
        }
    }

    pub(crate) async fn get(&self, namespace: &str, name: &str) -> anyhow::Result<Cluster> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.get(namespace, name).await,
            Self::Local { .. } => local::get(namespace, name),
        }
    }

    pub(crate) async fn list(&self, scope: Scope) -> anyhow::Result<Listed<Cluster>> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.list(scope).await,
            Self::Local { .. } => Ok(Listed { objects: local::list(), unreadable: Vec::new() }),
        }
    }

    /// Where jobs are kept when nobody follows them.
    pub(crate) fn kept(&self) -> anyhow::Result<&Kubernetes> {
        match self {
            Self::Kubernetes(kubernetes) => Ok(kubernetes),
            Self::Local { .. } => {
                bail!("`ebbtide run` follows programs on this machine to their end; none is kept")
            }
        }
    }

    /// The cluster as soon as its status differs from `seen`.
    pub(crate) async fn next(
        &self,
        namespace: &str,
        name: &str,
        seen: Option<&Cluster>,
    ) -> anyhow::Result<Cluster> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.next(namespace, name, seen).await,
            Self::Local { .. } => local::next(namespace, name, seen).await,
        }
    }

    /// What a change does to a cluster whose scheduler has answered or not, in words.
    pub(crate) fn effect(&self, class: Class, has_started: bool) -> &'static str {
        match self {
            Self::Kubernetes(_) => class.effect(has_started),
            Self::Local { .. } => "is refused on this machine; take the cluster down first",
        }
    }

    /// What happened to a cluster, as far as it is still known.
    pub(crate) async fn events(&self, cluster: &Cluster) -> anyhow::Result<Vec<Line>> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.events(cluster).await,
            Self::Local { .. } => Ok(local::events(cluster)),
        }
    }

    /// What its scheduler and each of its workers have said, by their names.
    pub(crate) async fn logs(&self, cluster: &Cluster) -> anyhow::Result<Vec<(String, String)>> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.logs(cluster).await,
            Self::Local { .. } => local::logs(cluster),
        }
    }

    /// Whether there is such a cluster, and nobody asked for it after this run.
    pub(crate) async fn is_for(
        &self,
        namespace: &str,
        name: &str,
        run: &str,
    ) -> anyhow::Result<bool> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.is_for(namespace, name, run).await,
            Self::Local { .. } => Ok(local::is_for(namespace, name, run)),
        }
    }

    /// Whether there is such a cluster.
    pub(crate) async fn is_there(&self, namespace: &str, name: &str) -> anyhow::Result<bool> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.is_there(namespace, name).await,
            Self::Local { .. } => Ok(local::is_there(namespace, name)),
        }
    }

    /// Whether there is such a cluster, and it stays.
    pub(crate) async fn has(&self, namespace: &str, name: &str) -> anyhow::Result<bool> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.has(namespace, name).await,
            Self::Local { .. } => Ok(local::get(namespace, name).is_ok()),
        }
    }

    /// Deletes a cluster and waits until it is gone.
    pub(crate) async fn down(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        match self {
            Self::Kubernetes(kubernetes) => kubernetes.down(namespace, name).await,
            Self::Local { .. } => local::down(namespace, name).await,
        }
    }
}
