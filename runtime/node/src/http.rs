//! `/healthz` and `/metrics` of a scheduler or worker.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;

/// What a process shows of itself.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self { registry: Registry::with_prefix("ebbtide") }
    }

    /// A number that goes up and down.
    pub(crate) fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.registry.register(name, help, gauge.clone());
        gauge
    }

    /// A number of bytes that goes up and down.
    pub(crate) fn bytes(&mut self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        gauge
    }
}

/// Serves until the process ends.
pub(crate) async fn serve(listener: TcpListener, metrics: Metrics) -> std::io::Result<()> {
    let registry = Arc::new(metrics.registry);
    let metrics = move || {
        let registry = Arc::clone(&registry);
        async move {
            let mut text = String::new();
            match encode(&mut text, &registry) {
                Ok(()) => (StatusCode::OK, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            }
        }
    };
    let router =
        Router::new().route("/healthz", get(|| async { "ok" })).route("/metrics", get(metrics));
    axum::serve(listener, router).await
}
