//! Dask in the place of our engine: its scheduler in a process of this one, which speaks to the operator
//! for it, and its worker in the place of this process. Both are the environment's own.
#![expect(unsafe_code, reason = "a child asks to end with this process between fork and exec")]

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, io};

use ebbtide_contract::demand::{Down, Up};
use ebbtide_contract::exit;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::operator::{Facts, Operator};
use crate::runner;
use crate::settings::{Settings, SettingsError};

/// How members of a cluster find and believe each other: the same text as in the Python package.
const WAY: &str = include_str!("../../python/python/ebbtide/_dask.py");

/// Where a process tells that it is alive.
const HEALTH: &str = include_str!("dask/health.py");

/// Makes modules of both for what runs.
const LOADER: &str = include_str!("dask/loader.py");

const SCHEDULER: &str = include_str!("dask/scheduler.py");
const WORKER: &str = include_str!("dask/worker.py");

/// How long the scheduler may take to end when it is asked to.
const END_MAX: Duration = Duration::from_secs(4);

/// Orders that wait until the scheduler reads them.
const ORDERS_MAX: usize = 256;

/// Why there is no scheduler or worker any more.
#[derive(Debug, thiserror::Error)]
pub enum DaskError {
    /// Started with settings that cannot work.
    #[error("Dask cannot start")]
    Settings(#[from] SettingsError),
    /// No interpreter.
    #[error(
        "python3 cannot be started: a cluster with `engine: dask` runs what its environment has"
    )]
    Start(#[source] io::Error),
    /// The environment has no Dask.
    #[error(
        "the environment has not all that Dask needs: a cluster with `engine: dask` needs `distributed` \
         among `packages` of its `environment`, or in its `image`"
    )]
    NoDask,
    /// It ended by itself.
    #[error("Dask's scheduler ended: {0}")]
    Ended(std::process::ExitStatus),
    /// The pipes to it.
    #[error("nothing can be said to Dask's scheduler")]
    Pipe(#[source] io::Error),
}

/// What the scheduler's process says, a line each.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Said {
    /// All that is so.
    Facts(Facts),
    /// An answer to the operator.
    Retired(Up),
}

/// Runs Dask's scheduler, and tells the operator of it, until `stop` is ready.
pub async fn scheduler(
    settings: &Settings,
    stop: impl Future<Output = ()>,
) -> Result<(), DaskError> {
    let operator = Operator { is_silent_without_news: true, ..Operator::of(settings)? };
    let mut child = start(settings)?;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(DaskError::Pipe(io::ErrorKind::NotConnected.into()));
    };
    let (facts, facts_seen) = watch::channel(Facts::new());
    let (answers, answers_seen) = mpsc::unbounded_channel();
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    tokio::spawn(operator.inform(facts_seen, answers_seen, orders));
    let mut process = Process { stdin, said: BufReader::new(stdout).lines(), facts, answers };
    tokio::select! {
        ended = process.carry(ordered) => ended?,
        () = stop => return end(child).await,
    }
    let status = child.wait().await.map_err(DaskError::Pipe)?;
    let is_bare = status.code() == Some(i32::from(exit::MISCONFIGURED));
    Err(if is_bare { DaskError::NoDask } else { DaskError::Ended(status) })
}

/// Becomes Dask's worker. Comes back only if it cannot.
pub fn worker(settings: &Settings) -> DaskError {
    DaskError::Start(python(settings, WORKER).exec())
}

fn python(settings: &Settings, process: &str) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", LOADER, WAY, HEALTH, process]).arg(settings.listen_ip().to_string());
    command.args([&DaskError::NoDask.to_string(), exit::WORDS]);
    // As Dask's own starter of workers does: its threads are the workers' cores, and memory that was freed is
    // given back.
    let one_each = runner::THREADS.map(|name| (name, "1"));
    let defaults = one_each.into_iter().chain([("MALLOC_TRIM_THRESHOLD_", "65536")]);
    command.envs(defaults.filter(|(name, _)| env::var_os(name).is_none()));
    command
}

/// Starts the scheduler. It ends with this process.
fn start(settings: &Settings) -> Result<Child, DaskError> {
    let mut command = python(settings, SCHEDULER);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    // SAFETY: prctl is one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true).spawn().map_err(DaskError::Start)
}

/// Asks the scheduler to end, and sees to it that it does.
async fn end(mut child: Child) -> Result<(), DaskError> {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()))
        && let Err(error) = kill_process(pid, Signal::TERM)
    {
        tracing::debug!(%error, "the scheduler has ended already");
    }
    if timeout(END_MAX, child.wait()).await.is_err() {
        child.kill().await.map_err(DaskError::Pipe)?;
    }
    Ok(())
}

/// The scheduler's process, and who hears what it says.
struct Process {
    stdin: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    facts: watch::Sender<Facts>,
    answers: mpsc::UnboundedSender<Up>,
}

impl Process {
    /// Carries what is said both ways until the process says nothing more.
    async fn carry(&mut self, mut ordered: mpsc::Receiver<Down>) -> Result<(), DaskError> {
        loop {
            tokio::select! {
                said = self.said.next_line() => match said.map_err(DaskError::Pipe)? {
                    Some(line) => self.hear(&line),
                    None => return Ok(()),
                },
                Some(order) = ordered.recv() => {
                    let mut line = serde_json::to_vec(&order).expect("orders are plain data");
                    line.push(b'\n');
                    // One that does not read any more is about to say nothing more.
                    if let Err(error) = self.stdin.write_all(&line).await {
                        tracing::debug!(%error, "the scheduler reads nothing");
                    }
                }
            }
        }
    }

    /// What nobody understands is no reason to lose what the scheduler has.
    fn hear(&self, line: &str) {
        match serde_json::from_str(line) {
            Ok(Said::Facts(facts)) => {
                self.facts.send_replace(facts);
            }
            Ok(Said::Retired(answer)) => {
                // Nobody is told of a cluster that ends.
                let _: Result<(), _> = self.answers.send(answer);
            }
            Err(error) => tracing::error!(%error, "the scheduler says what nobody understands"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use ebbtide_contract::exit;

    use super::LOADER;

    #[test]
    fn a_process_without_a_package_says_what_is_wrong_where_its_last_words_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let last_words = folder.path().join("last-words");
        fs::write(&last_words, "").unwrap();
        // What lies where it is started is not what it imports.
        for name in ["types.py", "contextlib.py"] {
            fs::write(folder.path().join(name), "raise SystemExit(1)").unwrap();
        }
        for words in [&last_words, &folder.path().join("nowhere")] {
            let mut python = Command::new("python3");
            python.args(["-c", LOADER, "import nowhere", "", "", "", "add it"]).arg(words);
            let ended = python.current_dir(folder.path()).output().unwrap();
            let said = String::from_utf8(ended.stderr).unwrap();
            assert_eq!(said, "the environment has no package 'nowhere'\nadd it\n");
            assert_eq!(ended.status.code(), Some(i32::from(exit::MISCONFIGURED)));
        }
        assert_eq!(fs::read_to_string(last_words).unwrap(), "add it");
    }
}
