//! Turns a pod into a process: what a kubelet does, as far as our own pods need it.
#![expect(unsafe_code, reason = "a child asks to end with its supervisor between fork and exec")]

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io;
use std::iter;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use ebbtide_api::Amount;
use ebbtide_plan::read_literal;
use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, PodSpec, VolumeMount};
use kube::ResourceExt as _;
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::process::{Child, Command};

use crate::settings;

/// Variables of this machine that processes keep.
const KEPT: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "RUST_LOG"];

/// Where a pod's parts lie on this machine.
pub(crate) struct Sandbox<'a> {
    /// Folders of Secrets, by name.
    pub(crate) secrets: &'a Path,
    /// Folders of pods.
    pub(crate) pods: &'a Path,
    /// The pod's own address.
    pub(crate) ip: Ipv4Addr,
    /// The program that `ebbtide` stands for.
    pub(crate) program: &'a Path,
    /// The virtual environment, if there is one.
    pub(crate) environment: Option<&'a Path>,
}

/// Starts the process that a pod describes. It ends with this process.
pub(crate) fn start(pod: &Pod, sandbox: &Sandbox<'_>) -> io::Result<Child> {
    let spec = pod.spec.as_ref().ok_or_else(|| io::Error::other("a pod without a spec"))?;
    let container = &spec.containers[0];
    let folder = sandbox.pods.join(pod.name_any());
    fs::create_dir_all(&folder)?;
    let mounts = mount(spec, container, sandbox.secrets, &folder)?;
    let log = File::create(folder.join("log"))?;

    let command = container.command.iter().flatten().chain(container.args.iter().flatten());
    let mut command = command.map(|it| read_literal(it));
    let mut process = std::process::Command::new(match command.next() {
        Some(other) if other != "ebbtide" => PathBuf::from(other),
        Some(_) | None => sandbox.program.to_owned(),
    });
    process.args(command).env_clear().current_dir(&folder);
    process.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
    process.envs(KEPT.iter().filter_map(|name| Some((name, env::var_os(name)?))));
    if let Some(environment) = sandbox.environment {
        // Its interpreter is the first on the path, as in an image.
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = iter::once(environment.join("bin")).chain(env::split_paths(&path));
        process.env("PATH", env::join_paths(folders).map_err(io::Error::other)?);
        process.env("VIRTUAL_ENV", environment);
    }
    for variable in container.env.iter().flatten() {
        let given = variable.value.as_ref().map(|value| inside(&read_literal(value), &mounts));
        let from = variable.value_from.as_ref();
        let read = || from.and_then(|from| resolve(from, pod, container, sandbox.ip));
        // What a Secret or ConfigMap would give, the shell gives.
        let is_theirs = from.is_some_and(settings::is_from_elsewhere);
        let inherited = || is_theirs.then(|| env::var(&variable.name).ok()).flatten();
        let empty = || from.is_none().then(String::new);
        if let Some(value) = given.or_else(read).or_else(inherited).or_else(empty) {
            process.env(&variable.name, value);
        }
    }
    // SAFETY: prctl is one system call and allocates nothing.
    unsafe {
        process.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    Command::from(process).kill_on_drop(true).spawn()
}

/// Lays out the volumes and tells which folder stands for each mount path.
fn mount(
    spec: &PodSpec,
    container: &Container,
    secrets: &Path,
    folder: &Path,
) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut mounts = BTreeMap::new();
    let is_ours = |mount: &&VolumeMount| ebbtide_plan::OWN_VOLUMES.contains(&mount.name.as_str());
    for mount in container.volume_mounts.iter().flatten().filter(is_ours) {
        let target = folder.join(&mount.name);
        fs::create_dir_all(&target)?;
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let projected = volume.and_then(|volume| volume.projected.as_ref());
        let sources = projected.and_then(|projected| projected.sources.as_ref());
        for secret in sources.into_iter().flatten().filter_map(|source| source.secret.as_ref()) {
            for file in fs::read_dir(secrets.join(&secret.name))? {
                let file = file?;
                // What is renewed there is renewed here.
                match symlink(file.path(), target.join(file.file_name())) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    made => made?,
                }
            }
        }
        mounts.insert(mount.mount_path.clone(), target);
    }
    Ok(mounts)
}

/// A value that names a mount path names its folder here.
fn inside(value: &str, mounts: &BTreeMap<String, PathBuf>) -> String {
    mounts.get(value).map_or_else(|| value.to_owned(), |folder| folder.display().to_string())
}

/// What the downward API would give.
fn resolve(
    source: &EnvVarSource,
    pod: &Pod,
    container: &Container,
    ip: Ipv4Addr,
) -> Option<String> {
    if let Some(field) = &source.field_ref {
        return match field.field_path.as_str() {
            "metadata.name" => Some(pod.name_any()),
            "status.podIP" => Some(ip.to_string()),
            _ => None,
        };
    }
    let resource = source.resource_field_ref.as_ref()?.resource.strip_prefix("limits.")?;
    let amount = container.resources.as_ref()?.limits.as_ref()?.get(resource)?;
    let value = Amount::from(amount.0.as_str()).value().ok()?;
    Some(format!("{:.0}", value.ceil()))
}
