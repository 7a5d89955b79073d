//! Speaks the contract for the schedulers of clusters whose pods are only played: one process for
//! all of them, to measure an operator by. Orders come line by line; each has a line of JSON as its
//! answer.

mod clusters;
mod orders;
mod session;

use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use kube::Client;
use tokio::runtime::Builder;

use crate::clusters::Clusters;

/// Speaks for every scheduler that runs, as its pod's own process would.
#[derive(Debug, Parser)]
struct Settings {
    /// `host:port` at which the operator listens for schedulers.
    #[arg(long, default_value = "127.0.0.1:7443")]
    operator: String,
    /// It speaks for clusters of namespaces whose names begin so.
    #[arg(long)]
    namespaces: String,
}

fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let client = Client::try_default().await.context("no way to the API server")?;
        let clusters = Arc::new(Clusters::new(client, settings.operator, settings.namespaces));
        tokio::spawn(Arc::clone(&clusters).watch());
        orders::obey(&clusters).await
    })
}
