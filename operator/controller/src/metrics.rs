//! What the operator counts, and where it is served.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// How a reconcile ended.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) outcome: &'static str,
}

/// What was changed.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct Kind {
    pub(crate) kind: &'static str,
}

#[derive(Clone, Debug, Default)]
/// What an operator counts.
pub struct Metrics {
    pub(crate) reconciles: Family<Outcome, Counter>,
    pub(crate) changes: Family<Kind, Counter>,
}

impl Metrics {
    /// Serves /healthz and /metrics until the process ends.
    pub(crate) async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let mut registry = Registry::with_prefix("ebbtide_operator");
        registry.register("reconciles", "Reconciles by how they ended", self.reconciles);
        registry.register("changes", "Changes that were applied, by kind", self.changes);
        let registry = Arc::new(registry);
        let metrics = move || {
            let registry = Arc::clone(&registry);
            async move {
                let mut text = String::new();
                encode(&mut text, &registry).map(|()| text).map_err(|error| error.to_string())
            }
        };
        let router =
            Router::new().route("/healthz", get(|| async { "ok" })).route("/metrics", get(metrics));
        axum::serve(listener, router).await
    }
}
