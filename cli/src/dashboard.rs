//! The way from a browser on this machine to the dashboard of a cluster's engine.

use std::net::Ipv4Addr;

use anyhow::{Context as _, bail};
use ebbtide_api::Engine;
use ebbtide_contract::port;
use ebbtide_node::client::Address;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kube::ResourceExt as _;
use tokio::net::TcpListener;

use crate::backend::{Backend, Kubernetes, local};
use crate::{node, output};

/// Prints the address of a cluster's dashboard, and keeps the way there open until Ctrl-C or until the cluster is
/// gone.
pub(crate) async fn serve(backend: &Backend, name: &str, asked: Option<u16>) -> anyhow::Result<()> {
    let namespace = backend.namespace();
    let cluster = backend.get(&namespace, name).await?;
    match cluster.spec.engine {
        Engine::Dask => {}
        Engine::Ebbtide => bail!(
            "{name} has no dashboard: that is one of Dask's (`engine: dask`); `ebbtide top` shows clusters as they are"
        ),
    }
    match backend {
        Backend::Local { .. } => {
            if let Some(port) = asked {
                bail!("--port {port}: a cluster of this machine is where it is; leave it out");
            }
            let Address::Tcp(address) = local::endpoint(&namespace, name)?.address else {
                bail!("{name} has no address");
            };
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            output::line(&format!("http://{host}:{}/status", port::HTTP))
        }
        Backend::Kubernetes(kubernetes) => {
            let uid = cluster.uid().unwrap_or_default();
            relay(kubernetes, (&namespace, name, &uid), asked).await
        }
    }
}

async fn relay(
    kubernetes: &Kubernetes,
    (namespace, name, uid): (&str, &str, &str),
    asked: Option<u16>,
) -> anyhow::Result<()> {
    let asked = asked.unwrap_or_default();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, asked))
        .await
        .with_context(|| format!("cannot listen on port {asked} of this machine"))?;
    output::line(&format!("http://{}/status", listener.local_addr()?))?;
    output::tell("for as long as this runs; Ctrl-C ends it");
    let mut carried = FuturesUnordered::new();
    let mut ended = std::pin::pin!(node::asked_to_end());
    loop {
        tokio::select! {
            _ = &mut ended => return Ok(()),
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                carried.push(kubernetes.forward((namespace, name), stream, port::HTTP));
            }
            Some(ended) = carried.next() => if let Err(error) = ended {
                output::tell(&format!("{name}: {error:#}"));
                if kubernetes.is_gone(namespace, name, uid).await {
                    bail!("cluster {name} is gone: it was deleted");
                }
            }
        }
    }
}
