//! Clusters as processes of this machine, each with a supervisor of its own.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs, io};

use anyhow::{Context as _, bail};
use ebbtide_api::{Cluster, Phase, names};
use ebbtide_contract::log::last_words;
use ebbtide_local::settings;
use ebbtide_local::state::State;
use ebbtide_node::client::Endpoint;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use tokio::time::{Instant, sleep};

use crate::story::Line;
use crate::{output, story};

/// How often files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long a supervisor may take to end.
const DOWN_MAX: Duration = Duration::from_secs(30);

/// The file in which it stands which run of a script asked for a cluster last.
const RUN: &str = "run";

pub(super) fn apply(cluster: &Cluster) -> anyhow::Result<bool> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    if cluster.spec.image.is_some() {
        bail!("spec.image: processes of this machine run no images; give environment instead");
    }
    if let Err(error) = ebbtide_plan::check(&cluster.spec) {
        bail!("{error}");
    }
    let from_shell = settings::from_shell(&cluster.spec);
    let missing: BTreeSet<&str> = from_shell.filter(|it| env::var_os(it).is_none()).collect();
    if !missing.is_empty() {
        let names: Vec<&str> = missing.into_iter().collect();
        bail!(
            "spec: pod.env: {} comes from a Secret or ConfigMap, which this machine has not; set it in \
             this shell: export {}=...",
            names.join(", "),
            names.join("=... "),
        );
    }
    let left_out = settings::left_out(&cluster.spec);
    if !left_out.is_empty() {
        output::tell(&format!("processes of this machine do without {}", left_out.join(", ")));
    }
    let state = State::of(&namespace, &name);
    let _lock = lock()?;
    if state.supervisor().is_some() {
        let running = state.cluster();
        let is_going =
            |it: &Cluster| it.status.as_ref().is_some_and(|it| it.phase == Phase::Deleting);
        if running.as_ref().is_some_and(is_going) {
            bail!("{name} is being deleted");
        }
        if running.is_some_and(|running| running.spec == cluster.spec) {
            write_run(&state, cluster)?;
            return Ok(false);
        }
        bail!("{name} is running with another spec; take it down first: ebbtide down {name}");
    }
    if state.folder().exists() {
        // What a supervisor left that was killed.
        state.remove().with_context(|| format!("cannot clear {}", state.folder().display()))?;
    }
    state.create().with_context(|| format!("cannot create {}", state.folder().display()))?;
    let mut cluster = cluster.clone();
    cluster.metadata.uid = Some(fresh_uid()?);
    cluster.metadata.generation = Some(1);
    cluster.metadata.creation_timestamp = Some(Time(Timestamp::now()));
    state.write_cluster(&cluster)?;
    write_run(&state, &cluster)?;
    let log = File::create(state.folder().join("log"))?;
    // A session of its own: it lives on when this terminal closes.
    let mut supervisor = Command::new(env::current_exe()?);
    supervisor.arg("supervise").arg(state.folder()).arg(namespace).arg(name);
    supervisor.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let supervisor = supervisor.spawn().context("the supervisor cannot be started")?;
    state.write_pid(supervisor.id())?;
    Ok(true)
}

fn write_run(state: &State, cluster: &Cluster) -> io::Result<()> {
    let run = cluster.annotations().get(names::RUN).map_or("", String::as_str);
    fs::write(state.folder().join(RUN), run)
}

pub(super) fn is_for(namespace: &str, name: &str, run: &str) -> bool {
    let known = fs::read_to_string(State::of(namespace, name).folder().join(RUN));
    known.is_ok_and(|known| known == run)
}

pub(crate) fn fresh_uid() -> anyhow::Result<String> {
    let uid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("no randomness")?;
    Ok(uid.trim().to_owned())
}

pub(super) fn get(namespace: &str, name: &str) -> anyhow::Result<Cluster> {
    let state = State::of(namespace, name);
    let cluster = state.supervisor().and_then(|_| state.cluster());
    cluster.with_context(|| {
        format!("there is no cluster {name} in namespace {namespace} on this machine")
    })
}

/// Whether there is anything of a cluster.
pub(super) fn is_there(namespace: &str, name: &str) -> bool {
    State::of(namespace, name).folder().exists()
}

pub(super) fn list() -> Vec<Cluster> {
    let live = State::all().into_iter().filter(|state| state.supervisor().is_some());
    live.filter_map(|state| state.cluster()).collect()
}

pub(super) async fn next(
    namespace: &str,
    name: &str,
    seen: Option<&Cluster>,
) -> anyhow::Result<Cluster> {
    let state = State::of(namespace, name);
    let started_at = Instant::now();
    loop {
        match state.cluster() {
            Some(cluster)
                if cluster.status.is_some()
                    && seen.is_none_or(|seen| seen.status != cluster.status) =>
            {
                return Ok(cluster);
            }
            _ => {}
        }
        if !state.folder().exists() {
            bail!("{name} was taken down meanwhile");
        }
        if state.supervisor().is_none() && started_at.elapsed() > Duration::from_secs(5) {
            let log = fs::read_to_string(state.folder().join("log")).unwrap_or_default();
            let last = last_words(&log).unwrap_or_else(|| "no log".to_owned());
            bail!("the supervisor of {name} ended: {last}");
        }
        sleep(LOOK_INTERVAL).await;
    }
}

pub(super) fn events(cluster: &Cluster) -> Vec<Line> {
    let state = State::of(&cluster.namespace().unwrap_or_default(), &cluster.name_any());
    let log = fs::read_to_string(state.folder().join("log")).unwrap_or_default();
    story::of_log("cluster", &log)
}

pub(super) fn logs(cluster: &Cluster) -> anyhow::Result<Vec<(String, String)>> {
    let state = State::of(&cluster.namespace().unwrap_or_default(), &cluster.name_any());
    let folders = fs::read_dir(state.folder().join("pods")).into_iter().flatten();
    let mut logs = Vec::new();
    for folder in folders {
        let folder = folder?;
        let bytes = fs::read(folder.path().join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&bytes).into_owned();
        logs.push((folder.file_name().to_string_lossy().into_owned(), log));
    }
    Ok(logs)
}

pub(super) async fn down(namespace: &str, name: &str) -> anyhow::Result<()> {
    let state = State::of(namespace, name);
    let held = lock()?;
    let Some(pid) = state.supervisor().and_then(rustix::process::Pid::from_raw) else {
        if state.folder().exists() {
            // What a supervisor left that was killed; its processes ended with it.
            return state.remove().context("what is left of the cluster cannot be removed");
        }
        bail!("there is no cluster {name} in namespace {namespace} on this machine");
    };
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)
        .context("the supervisor cannot be asked to end")?;
    drop(held);
    let asked_at = Instant::now();
    // Not by its files: it ends when it has removed all of them.
    while state.is_supervisor(pid.as_raw_nonzero().get()) {
        if asked_at.elapsed() > DOWN_MAX {
            bail!("the supervisor of {name} did not end within {DOWN_MAX:?}");
        }
        sleep(LOOK_INTERVAL).await;
    }
    let _lock = lock()?;
    if state.supervisor().is_none() && state.folder().exists() {
        // It had hardly begun, and knew of no files yet.
        state.remove().context("what is left of the cluster cannot be removed")?;
    }
    Ok(())
}

fn lock() -> anyhow::Result<File> {
    State::lock().context("the folder of clusters cannot be locked")
}

pub(crate) fn endpoint(namespace: &str, name: &str) -> anyhow::Result<Endpoint> {
    get(namespace, name)?;
    let endpoint = State::of(namespace, name).endpoint();
    endpoint.with_context(|| format!("cluster {name} does not answer yet"))
}
