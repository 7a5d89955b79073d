//! The commands and what each does, in terms of a backend.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ebbtide_api::change::definition;
use ebbtide_api::{Cluster, ClusterJob, Engine, names};
use ebbtide_environment::tags::{Library, Processor, Target};
use ebbtide_local::state::State;
use ebbtide_local::supervisor;
use ebbtide_packer::resolve;
use futures::FutureExt as _;
use futures::future::FusedFuture as _;
use kube::{CustomResourceExt as _, ResourceExt as _};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Builder;
use tokio::time::sleep;

use crate::backend::{Backend, Kind, Scope};
use crate::endpoint::Way;
use crate::output::{self, Format};
use crate::{dashboard, endpoint, job, manifest, node, show, top, up};

/// How long to wait before a script's second attempt; each further wait is twice as long.
const RETRY_FIRST: Duration = Duration::from_secs(10);
const RETRY_MAX: Duration = Duration::from_mins(10);

/// How long a cluster may go without any status before a person is told what may be wrong.
pub(crate) const UNNOTICED_MAX: Duration = Duration::from_secs(15);

/// How long what keeps a cluster from its work may take to pass by itself, before nobody waits any longer.
pub(crate) const HURT_MAX: Duration = Duration::from_mins(1);

/// Ephemeral compute clusters: a manifest becomes a scheduler and workers, and goes when idle.
#[derive(Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0, done; 1, it did not work, and standard error says why; 2, the \
                  command line is wrong. `up --run`, `run` and `follow` end with the program's own \
                  code, or with 128 and the number of the signal that ended it."
)]
pub(crate) struct Ebbtide {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create or change the cluster that a manifest describes and wait until it answers.
    Up {
        /// The manifest.
        file: PathBuf,
        /// Run this Python script against the cluster, then take the cluster down unless it was there before.
        #[arg(long)]
        run: Option<PathBuf>,
        /// Arguments of the script.
        #[arg(last = true, requires = "run")]
        arguments: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Run a Python program beside a cluster that is made for it, follow what it prints, and end with
    /// its exit code. On Kubernetes it is a ClusterJob: the program runs in a pod of the cluster's
    /// environment. On this machine it is a process of the first python3 on the PATH.
    Run {
        /// The program.
        file: PathBuf,
        #[command(flatten)]
        on: On,
        /// Name of the job, and of the cluster that is made for it. Default: the manifest's name and a
        /// few letters.
        #[arg(long, value_parser = object_name)]
        name: Option<String>,
        /// How often it is tried again when it ends with another exit code than 0.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=100))]
        retries: i32,
        /// Do not wait for its end. On Kubernetes alone.
        #[arg(long)]
        detach: bool,
        /// Arguments of the program.
        #[arg(last = true)]
        arguments: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Take a cluster down, or a job with its cluster, and wait until it is gone.
    Down {
        /// Name of the cluster, or of a job or schedule.
        #[arg(value_parser = object_name)]
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// List clusters, or show one.
    Get(Listing),
    /// List jobs, or show one. Those on this machine are followed by `run` and not kept.
    Jobs(Listing),
    /// Print what a job's program has printed and prints, from the beginning, and end with its exit code.
    /// The job goes on when this is interrupted. On Kubernetes alone.
    Follow {
        /// Name of the job.
        #[arg(value_parser = object_name)]
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Show clusters as they are now, those that ask for most first, until Ctrl-C. Without a terminal: once.
    Top {
        #[command(flatten)]
        scope: Scope,
        #[command(flatten)]
        place: Place,
    },
    /// Tell what a cluster is, what it waits for, and what happened to it.
    Describe {
        /// Name of the cluster.
        #[arg(value_parser = object_name)]
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Tell what `up` would change in a cluster that lives, field by field, and what each does.
    Diff {
        /// The manifest.
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Print what its scheduler and workers have said, in the order of time.
    Logs {
        /// Name of the cluster.
        #[arg(value_parser = object_name)]
        name: String,
        /// Only of the scheduler or worker whose name ends so, like `scheduler` or `general-0`.
        #[arg(short, long)]
        pod: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Print the address of a cluster's dashboard on this machine, and keep the way there open until
    /// Ctrl-C. For clusters with `engine: dask`.
    Dashboard {
        /// Name of the cluster.
        #[arg(value_parser = object_name)]
        name: String,
        /// Port of this machine. Default: any that is free.
        #[arg(long)]
        port: Option<u16>,
        #[command(flatten)]
        place: Place,
    },
    /// Work with package lists.
    Env {
        #[command(subcommand)]
        command: EnvCommand,
    },
    /// Print the definition of a resource, for kubectl.
    Crd {
        /// Which one.
        #[arg(default_value = "cluster")]
        kind: CrdKind,
        /// JSON or YAML.
        #[arg(short, long, default_value = "yaml")]
        output: Format,
    },
    /// Print the version.
    Version,
    /// Print how to reach a cluster, with the client's credentials, and keep the way open until
    /// standard input ends. For the Python package.
    #[command(hide = true)]
    Endpoint {
        #[arg(value_parser = object_name)]
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Run a scheduler. The operator starts it.
    #[command(hide = true)]
    Scheduler,
    /// Run a worker. The operator starts it.
    #[command(hide = true)]
    Worker,
    /// Supervise a cluster of this machine. `ebbtide up` starts it.
    #[command(hide = true)]
    Supervise {
        folder: PathBuf,
        #[arg(value_parser = namespace_name)]
        namespace: String,
        #[arg(value_parser = object_name)]
        name: String,
    },
}

/// The resources that are defined.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CrdKind {
    Cluster,
    #[value(name = "clusterjob")]
    ClusterJob,
}

#[derive(Subcommand)]
pub(crate) enum EnvCommand {
    /// Print the key of a manifest's package list: what an administrator enters an image under.
    Key {
        /// The manifest.
        file: PathBuf,
    },
    /// Print what an image for a manifest's package list must have installed, one requirement a
    /// line: the list itself, and what workers need to run Python functions.
    Packages {
        /// The manifest.
        file: PathBuf,
    },
    /// Print what a manifest's package list means today: a lock (PEP 751) with every file and its hash, for Linux on
    /// x86-64 with glibc 2.28 or newer. It takes `uv`; nothing of a package runs.
    Lock {
        /// The manifest.
        file: PathBuf,
    },
}

/// What is listed, or which one is shown.
#[derive(Args)]
pub(crate) struct Listing {
    /// Show this one alone.
    #[arg(value_parser = object_name)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// Print for programs.
    #[arg(short, long)]
    pub(crate) output: Option<Format>,
    #[command(flatten)]
    pub(crate) place: Place,
}

/// What a program computes on.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct On {
    /// Manifest of the cluster that is made for the program, and gone when it ends.
    #[arg(long)]
    pub(crate) cluster: Option<PathBuf>,
    /// Name of a cluster that is there, and stays.
    #[arg(long, value_parser = object_name)]
    pub(crate) on: Option<String>,
}

/// Where a cluster is.
#[derive(Args, Clone, Debug)]
pub(crate) struct Place {
    /// Namespace. Default: the manifest's, else that of the kubectl context, else `default`.
    #[arg(short, long, env = "EBBTIDE_NAMESPACE", value_parser = namespace_name)]
    pub(crate) namespace: Option<String>,
    /// As pods on Kubernetes, or as processes on this machine. Default: Kubernetes where kubectl
    /// has a context, else this machine.
    #[arg(long, env = "EBBTIDE_BACKEND")]
    pub(crate) backend: Option<Kind>,
}

fn object_name(text: &str) -> Result<String, String> {
    names::check_object(text).map(|()| text.to_owned())
}

fn namespace_name(text: &str) -> Result<String, String> {
    let checked = names::check_namespace(text).map(|()| text.to_owned());
    checked.map_err(|error| format!("{error} (from --namespace or EBBTIDE_NAMESPACE)"))
}

impl Command {
    /// Whether this is a program that the operator starts.
    pub(crate) fn is_process(&self) -> bool {
        matches!(self, Self::Scheduler | Self::Worker | Self::Supervise { .. })
    }
}

/// A Python script that runs against a cluster.
pub(crate) struct Script {
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// How often it is tried again.
    pub(crate) retries: i32,
}

/// Runs a command to its exit code.
pub(crate) fn run(command: Command) -> ExitCode {
    let runtime = Builder::new_current_thread().enable_all().build();
    let done = runtime.context("cannot start").and_then(|runtime| {
        let done = runtime.block_on(carry_out(command));
        // A read of standard input may wait for ever.
        runtime.shutdown_background();
        done
    });
    match done {
        Ok(code) => code,
        Err(error) if output::is_unread(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::tell(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn carry_out(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up { file, run, arguments, place } => {
            let script = run.map(|path| Script { path, arguments, retries: 0 });
            let cluster = manifest::read(&file)?;
            return up::up(cluster, script.as_ref(), &place).await;
        }
        Command::Run { file, on, name, retries, detach, arguments, place } => {
            let wanted = job::Wanted { file, on, name, retries, detach, arguments };
            return Box::pin(job::run(wanted, &place)).await;
        }
        Command::Down { name, place } => {
            let backend = Backend::connect(&place).await?;
            Box::pin(down(&backend, &name)).await?;
        }
        Command::Get(listing) => show::get(&listing).await?,
        Command::Jobs(listing) => show::jobs(&listing).await?,
        Command::Follow { name, place } => return Box::pin(job::follow(&name, &place)).await,
        Command::Top { scope, place } => top::top(&Backend::connect(&place).await?, scope).await?,
        Command::Describe { name, place } => show::describe(&name, &place).await?,
        Command::Diff { file, place } => show::diff(&file, &place).await?,
        Command::Logs { name, pod, place } => show::logs(&name, pod.as_deref(), &place).await?,
        Command::Dashboard { name, port, place } => {
            dashboard::serve(&Backend::connect(&place).await?, &name, port).await?;
        }
        Command::Env { command } => environment(&command).await?,
        Command::Crd { kind, output } => match kind {
            CrdKind::Cluster => output::value(&definition(), output)?,
            CrdKind::ClusterJob => output::value(&ClusterJob::crd(), output)?,
        },
        Command::Version => output::line(env!("CARGO_PKG_VERSION"))?,
        Command::Endpoint { name, place } => {
            if let Some(endpoint) = endpoint::inside(&name).await? {
                return endpoint::hold(&endpoint).await.map(|()| ExitCode::SUCCESS);
            }
            let backend = Backend::connect(&place).await?;
            endpoint::serve(&backend, &backend.namespace(), &name).await?;
        }
        Command::Supervise { namespace, name, .. } => {
            supervisor::run(State::of(&namespace, &name), async {
                node::asked_to_end().await;
            })
            .await?;
        }
        Command::Scheduler | Command::Worker => bail!("a program, not a command"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes down a cluster, or the job that would make it again.
async fn down(backend: &Backend, name: &str) -> anyhow::Result<()> {
    let namespace = backend.namespace();
    if let Backend::Kubernetes(kubernetes) = backend
        && let Some(job) = kubernetes.job_of(&namespace, name).await?
    {
        let job = ebbtide_plan::job::named(&job);
        kubernetes.delete_job(&namespace, &job).await?;
        return output::line(&format!("job {} is gone", job.name));
    }
    backend.down(&namespace, name).await?;
    output::line(&format!("{name} is gone"))
}

async fn environment(command: &EnvCommand) -> anyhow::Result<()> {
    let (EnvCommand::Key { file } | EnvCommand::Packages { file } | EnvCommand::Lock { file }) =
        command;
    let environment = manifest::read(file)?.spec.environment;
    let request = ebbtide_plan::request(&environment.context("the manifest has no environment")?)?;
    match command {
        EnvCommand::Key { .. } => output::line(request.key().as_str()),
        EnvCommand::Packages { .. } => request.installed().try_for_each(output::line),
        EnvCommand::Lock { .. } => {
            let minor = request.minor();
            let python = minor
                .with_context(|| format!("there is no lock for Python {}", request.python()))?;
            // Where no image is known yet.
            let target = Target { python, library: Library::Glibc(28), processor: Processor::X86 };
            output::line(&resolve::lock(&request, &target).await?)
        }
    }
}

/// Runs a script until it ends well or was tried often enough.
pub(crate) async fn try_script(
    script: &Script,
    cluster: (&str, &str),
    backend: &Backend,
) -> anyhow::Result<ExitCode> {
    let mut wait = RETRY_FIRST;
    for nth in 1..=script.retries {
        let (code, was_asked) = run_script(script, cluster, backend).await?;
        if code == ExitCode::SUCCESS || was_asked {
            return Ok(code);
        }
        output::tell(&format!("attempt {nth} went wrong; another one follows in {wait:?}"));
        tokio::select! {
            () = sleep(wait) => {}
            _ = node::asked_to_end() => return Ok(code),
        }
        wait = (2 * wait).min(RETRY_MAX);
    }
    Ok(run_script(script, cluster, backend).await?.0)
}

/// Runs a script to its end. Gives also whether somebody asked for that.
async fn run_script(
    script: &Script,
    cluster: (&str, &str),
    backend: &Backend,
) -> anyhow::Result<(ExitCode, bool)> {
    let (namespace, name) = cluster;
    let way = match way_of_dask(backend, cluster).await {
        Ok(way) => way,
        Err(error) => {
            output::tell(&format!("error: {error:#}"));
            return Ok((ExitCode::FAILURE, false));
        }
    };
    let mut python = tokio::process::Command::new("python3");
    python.arg(&script.path).args(&script.arguments);
    python.env("EBBTIDE_CLUSTER", name).env("EBBTIDE_NAMESPACE", namespace);
    python.env("EBBTIDE_BACKEND", backend.kind().as_str());
    python.envs(way.iter().flat_map(Way::variables_of_dask));
    let held = async {
        match &way {
            Some(way) => way.hold().await,
            None => std::future::pending().await,
        }
    };
    let mut held = std::pin::pin!(held.fuse());
    let mut child = python.spawn().context("python3 cannot be started")?;
    let mut was_asked = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            error = &mut held, if !held.is_terminated() => output::tell(&format!("{error:#}")),
            asked = node::asked_to_end() => {
                was_asked = true;
                // The terminal tells the script of Ctrl-C itself; of other ends it hears from here.
                if asked != Signal::INT
                    && let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()))
                    && let Err(error) = kill_process(pid, Signal::TERM)
                {
                    tracing::debug!(%error, "the script has ended already");
                }
            }
        }
    };
    // As a shell tells of a signal.
    let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1);
    Ok((ExitCode::from(u8::try_from(code).unwrap_or(1)), was_asked))
}

/// The way for a script that knows Dask alone, where its cluster runs that, as far as anybody knows.
async fn way_of_dask<'a>(
    backend: &'a Backend,
    cluster: (&'a str, &'a str),
) -> anyhow::Result<Option<Way<'a>>> {
    let engine = backend.get(cluster.0, cluster.1).await.map(|it| it.spec.engine);
    match engine.unwrap_or_default() {
        Engine::Ebbtide => Ok(None),
        Engine::Dask => Way::open(backend, cluster).await.map(Some),
    }
}

/// The namespace that a manifest goes to.
pub(crate) fn namespace(cluster: &Cluster, place: &Place, backend: &Backend) -> String {
    let named = place.namespace.clone().or_else(|| cluster.namespace());
    named.unwrap_or_else(|| backend.namespace())
}
