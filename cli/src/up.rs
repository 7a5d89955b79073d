//! `ebbtide up`: a cluster that is asked for, until it is ready, or until a script has ended.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use ebbtide_api::{Cluster, Phase, names};
use futures::FutureExt as _;
use futures::future::FusedFuture as _;
use kube::ResourceExt as _;
use tokio::time::{Instant, sleep, sleep_until};

use crate::backend::{Backend, fresh_uid};
use crate::command::{HURT_MAX, Place, Script, UNNOTICED_MAX, namespace, try_script};
use crate::{node, output};

pub(crate) async fn up(
    mut cluster: Cluster,
    script: Option<&Script>,
    place: &Place,
) -> anyhow::Result<ExitCode> {
    if let Some(Script { path, .. }) = script.filter(|script| !script.path.is_file()) {
        bail!("there is no script {}", path.display());
    }
    let backend = Backend::connect(place).await?;
    let namespace = namespace(&cluster, place, &backend);
    cluster.metadata.namespace = Some(namespace.clone());
    let name = cluster.name_any();
    let run = fresh_uid()?;
    let marks = cluster.annotations_mut();
    marks.remove(names::RUN);
    if script.is_some() {
        marks.insert(names::RUN.to_owned(), run.clone());
    }
    let (is_new, ready) = {
        let mut asked = pin!(node::asked_to_end().fuse());
        let mut applied = Box::pin(backend.apply(&cluster));
        // What is on its way to be made is waited for: else nobody takes it down.
        let is_new = tokio::select! {
            biased;
            _ = &mut asked, if script.is_some() => applied.await?,
            applied = &mut applied => applied?,
        };
        let ready = if asked.is_terminated() {
            Err(anyhow!("interrupted"))
        } else {
            tokio::select! {
                ready = wait_until_ready(&backend, (&namespace, &name), is_new) => ready,
                // What was made for a script goes; what was asked for by itself, or was there before, stays.
                _ = &mut asked, if script.is_some() => Err(anyhow!("interrupted")),
            }
        };
        (is_new, ready)
    };
    let Some(script) = script else {
        if ready.as_ref().is_err_and(anyhow::Error::is::<Degraded>) {
            output::tell(&format!(
                "{name} stays, and begins when that is mended; `ebbtide down {name}` ends it"
            ));
        }
        ready?;
        output::line(&format!("{name} is ready"))?;
        return Ok(ExitCode::SUCCESS);
    };
    let ran = match ready {
        Ok(()) => try_script(script, (&namespace, &name), &backend).await,
        Err(error) => Err(error),
    };
    let why = why_stays(&backend, (&namespace, &name), is_new.then_some(&run)).await;
    if let Ok(Some(why)) = why {
        let code = ran?;
        if backend.has(&namespace, &name).await? {
            output::tell(&format!("{name} {why} and stays; `ebbtide down {name}` ends it"));
        }
        return Ok(code);
    }
    let gone = match why {
        Ok(_) => take_down(&backend, &namespace, &name).await,
        Err(error) => Err(error.context(format!("{name} may still be there"))),
    };
    let code = ran?;
    gone?;
    output::tell(&format!("{name} is gone"));
    Ok(code)
}

/// Why a cluster stays after a script, if it does: this run of it may not have made it, or somebody may have asked for
/// it since.
async fn why_stays(
    backend: &Backend,
    (namespace, name): (&str, &str),
    run: Option<&String>,
) -> anyhow::Result<Option<&'static str>> {
    let Some(run) = run else { return Ok(Some("was there before")) };
    let is_anothers =
        backend.is_there(namespace, name).await? && !backend.is_for(namespace, name, run).await?;
    Ok(is_anothers.then_some("was asked for again since"))
}

/// Takes down what was made for a script, unless it has gone by itself.
async fn take_down(backend: &Backend, namespace: &str, name: &str) -> anyhow::Result<()> {
    if !backend.is_there(namespace, name).await? {
        return Ok(());
    }
    output::tell(&format!("{name}: taking it down"));
    tokio::select! {
        gone = backend.down(namespace, name) => gone,
        _ = node::asked_to_end() => bail!("interrupted: {name} may still be there"),
    }
}

/// What keeps a cluster from its work, for longer than somebody waits.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {message}")]
struct Degraded {
    name: String,
    message: String,
}

/// Tells what the cluster waits for until it answers. What keeps one from it that was there before may have been mended
/// a moment ago: that has a while to show.
async fn wait_until_ready(
    backend: &Backend,
    (namespace, name): (&str, &str),
    is_new: bool,
) -> anyhow::Result<()> {
    let (mut told, mut hurt_since) = (None, None::<Instant>);
    let patience = if is_new { Duration::ZERO } else { HURT_MAX };
    loop {
        let end = hurt_since.map(|it| it + patience);
        let cluster = tokio::select! {
            news = news(backend, (namespace, name), told.as_ref()) => news?,
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                backend.get(namespace, name).await?
            }
        };
        let status = cluster.status.clone().unwrap_or_default();
        // What was found out about an earlier spec says nothing of this one; what comes now is why it is not tried.
        if status.observed_generation != cluster.metadata.generation {
            if let Some(message) = status.message.filter(|_| told.is_some()) {
                output::tell(&format!("{name}: {message}"));
            }
            (told, hurt_since) = (Some(cluster), None);
            continue;
        }
        match (status.phase, status.message) {
            (Phase::Ready, _) => return Ok(()),
            (Phase::Degraded, message) => {
                let message = message.unwrap_or_default();
                if hurt_since.get_or_insert_with(Instant::now).elapsed() >= patience {
                    return Err(Degraded { name: name.to_owned(), message }.into());
                }
                output::tell(&format!("{name}: {message}"));
            }
            (Phase::Deleting, _) => bail!("{name} is being deleted"),
            (Phase::Starting, message) => {
                hurt_since = None;
                output::tell(&format!("{name}: {}", message.as_deref().unwrap_or("starting")));
            }
        }
        told = Some(cluster);
    }
}

/// The cluster as soon as its status is another one than `seen`. A person is told when nobody looks.
async fn news(
    backend: &Backend,
    (namespace, name): (&str, &str),
    seen: Option<&Cluster>,
) -> anyhow::Result<Cluster> {
    let news = backend.next(namespace, name, seen);
    tokio::pin!(news);
    tokio::select! {
        news = &mut news => return news,
        () = sleep(UNNOTICED_MAX), if seen.is_none() => {}
    }
    output::tell(&format!("{name}: nobody has looked at it yet; is the operator running?"));
    news.await
}
