//! The way from a client on this machine to a scheduler: an address it can dial, kept open.

use std::env;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use ebbtide_node::client::Address;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt as _, stdin};
use tokio::net::UnixListener;

use crate::backend::Backend;
use crate::output;

/// Prints the endpoint as one line of JSON and keeps the way open until standard input ends.
pub(crate) async fn serve(backend: &Backend, namespace: &str, name: &str) -> anyhow::Result<()> {
    let mut endpoint = backend.endpoint(namespace, name).await?;
    let Backend::Kubernetes(kubernetes) = backend else {
        output::line(&serde_json::to_string(&endpoint)?)?;
        return closed().await;
    };
    let socket = Socket::bind()?;
    endpoint.address = Address::Unix(socket.path());
    output::line(&serde_json::to_string(&endpoint)?)?;
    let mut relays = FuturesUnordered::new();
    let mut closed = std::pin::pin!(closed());
    loop {
        tokio::select! {
            closed = &mut closed => return closed,
            accepted = socket.listener.accept() => {
                // A connection through the API server for each of the client's.
                relays.push(kubernetes.forward(namespace, name, accepted?.0));
            }
            Some(ended) = relays.next() => {
                if let Err(error) = ended {
                    output::tell(&format!("{name}: {error:#}"));
                }
            }
        }
    }
}

/// Ready when whoever started this process closes its standard input or ends.
async fn closed() -> anyhow::Result<()> {
    let mut rest = Vec::new();
    stdin().read_to_end(&mut rest).await?;
    Ok(())
}

/// A socket in a folder that only this user can enter.
struct Socket {
    folder: PathBuf,
    listener: UnixListener,
}

impl Socket {
    fn bind() -> anyhow::Result<Self> {
        let folder = env::temp_dir().join(format!("ebbtide-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let listener = UnixListener::bind(folder.join("scheduler"))?;
        Ok(Self { folder, listener })
    }

    fn path(&self) -> PathBuf {
        self.folder.join("scheduler")
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::debug!(%error, "the socket's folder cannot be removed");
        }
    }
}
