//! The scheduler's connection to the operator: facts up, retire requests down.

use std::collections::BTreeMap;
use std::slice;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ebbtide_contract::demand::{Down, Fact, INTERVAL_SECONDS_MAX, LINE_BYTES_MAX, PROTOCOL, Up};
use ebbtide_contract::identity::Identity;
use ebbtide_contract::tls::{self, Current};
use ebbtide_contract::variable;
use rustls::ClientConfig;
use tokio::io::{AsyncBufRead, AsyncWrite};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::frame::FrameError;
use crate::link::{HANDSHAKE_MAX, dial};
use crate::settings::{self, Settings, SettingsError};

/// First wait after a try to reach the operator: the next one may find the other of two.
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// Longest wait; each failure in a row doubles it.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Everything that is so, by a name that stays: what a snapshot says and deltas are taken from.
pub(crate) type Facts = BTreeMap<String, Fact>;

/// Where the operator is and how the scheduler proves itself there.
pub(crate) struct Operator {
    pub(crate) address: String,
    pub(crate) config: Current<ClientConfig>,
    pub(crate) epoch: u64,
    /// Whether whoever gives the facts gives them again and again: when they do not, nobody speaks for them.
    pub(crate) is_silent_without_news: bool,
}

impl Operator {
    /// The operator of the cluster that the environment names.
    pub(crate) fn of(settings: &Settings) -> Result<Self, SettingsError> {
        Ok(Self {
            address: settings::required(variable::OPERATOR)?,
            config: settings.current(|it| it.dial(Identity::Operator))?,
            epoch: epoch(),
            is_silent_without_news: false,
        })
    }

    /// Keeps the operator informed for as long as the scheduler lives.
    pub(crate) async fn inform(
        self,
        mut facts: watch::Receiver<Facts>,
        mut answers: mpsc::UnboundedReceiver<Up>,
        orders: mpsc::Sender<Down>,
    ) {
        let mut wait = RETRY_FIRST;
        loop {
            // Nobody begins with what may be so no more.
            if self.is_silent_without_news && facts.changed().await.is_err() {
                return;
            }
            let begun_at = Instant::now();
            if let Err(error) = self.session(&mut facts, &mut answers, &orders).await {
                tracing::info!(%error, address = self.address, "the operator cannot be told");
            }
            if begun_at.elapsed() > RETRY_MAX {
                wait = RETRY_FIRST;
            }
            sleep(wait).await;
            wait = RETRY_MAX.min(2 * wait);
        }
    }

    async fn session(
        &self,
        facts: &mut watch::Receiver<Facts>,
        answers: &mut mpsc::UnboundedReceiver<Up>,
        orders: &mpsc::Sender<Down>,
    ) -> Result<(), FrameError> {
        let stream = dial(slice::from_ref(&self.address)).await?;
        let connector = TlsConnector::from(self.config.get());
        let stream = timeout(HANDSHAKE_MAX, connector.connect(tls::any_name(), stream))
            .await
            .map_err(std::io::Error::from)??;
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = BufReader::new(reader);
        let mut speech = Speech { epoch: self.epoch, next: 0, said: Facts::new() };
        let greeting = speech.greeting(&facts.borrow_and_update());
        say(&mut writer, &greeting).await?;
        let interval = Duration::from_secs(INTERVAL_SECONDS_MAX);
        let mut line = Vec::new();
        loop {
            let lines = tokio::select! {
                read = read_line(&mut reader, &mut line) => {
                    match read? {
                        Some(Down::Resend) => speech.snapshot(&facts.borrow_and_update()),
                        Some(order) => {
                            // The scheduler is ending when it takes no more orders.
                            let _: Result<(), _> = orders.send(order).await;
                            Vec::new()
                        }
                        None => return Ok(()),
                    }
                }
                changed = facts.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let news = speech.news(&facts.borrow_and_update());
                    let is_again = self.is_silent_without_news && news.is_empty();
                    if is_again { speech.again() } else { news }
                }
                Some(answer) = answers.recv() => vec![answer],
                () = sleep(interval), if !self.is_silent_without_news => speech.again(),
            };
            say(&mut writer, &lines).await?;
        }
    }
}

/// Tells this life of the scheduler from earlier ones: the time at which it started.
fn epoch() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn say<W: AsyncWrite + Unpin>(writer: &mut W, lines: &[Up]) -> Result<(), FrameError> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line).expect("lines are plain data");
        text.push(b'\n');
    }
    writer.write_all(&text).await?;
    Ok(writer.flush().await?)
}

/// The next order, or none at the end. `line` keeps what was read when the caller stops waiting.
async fn read_line<R: AsyncBufRead + Unpin>(
    reader: &mut R,
    line: &mut Vec<u8>,
) -> Result<Option<Down>, FrameError> {
    let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
    reader.take(room as u64).read_until(b'\n', line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    let order = serde_json::from_slice(line);
    line.clear();
    match order {
        Ok(order) => Ok(Some(order)),
        Err(error) => Err(FrameError::Stream(std::io::Error::other(error))),
    }
}

/// What was said on this connection. Pure.
struct Speech {
    epoch: u64,
    next: u64,
    said: Facts,
}

impl Speech {
    fn greeting(&mut self, facts: &Facts) -> Vec<Up> {
        let mut lines = vec![Up::Hello { protocol: PROTOCOL, epoch: self.epoch }];
        lines.extend(self.snapshot(facts));
        lines
    }

    fn snapshot(&mut self, facts: &Facts) -> Vec<Up> {
        let mut lines = vec![Up::Begin { sequence: self.number() }];
        for fact in facts.values() {
            lines.push(Up::Fact { sequence: self.number(), fact: fact.clone() });
        }
        lines.push(Up::End { sequence: self.number() });
        self.said.clone_from(facts);
        lines
    }

    /// What changed since it was last said.
    fn news(&mut self, facts: &Facts) -> Vec<Up> {
        let gone: Vec<Fact> = self
            .said
            .iter()
            .filter(|(key, _)| !facts.contains_key(*key))
            .filter_map(|(_, fact)| match fact {
                Fact::Worker { name, .. } => Some(Fact::WorkerGone { name: name.clone() }),
                Fact::Queue { fits, .. } => Some(Fact::Queue {
                    fits: fits.clone(),
                    tasks: 0,
                    core_seconds: 0.0,
                    running: 0,
                }),
                Fact::Jobs { .. }
                | Fact::Clients { .. }
                | Fact::WorkerGone { .. }
                | Fact::Later => None,
            })
            .collect();
        let new = facts.iter().filter(|(key, fact)| self.said.get(*key) != Some(fact));
        let changed: Vec<Fact> =
            gone.into_iter().chain(new.map(|(_, fact)| fact.clone())).collect();
        self.said.clone_from(facts);
        changed.into_iter().map(|fact| Up::Fact { sequence: self.number(), fact }).collect()
    }

    /// Something that was said before, so that the other side hears that we are here.
    fn again(&mut self) -> Vec<Up> {
        let Some(fact) = self.said.values().next().cloned() else { return Vec::new() };
        vec![Up::Fact { sequence: self.number(), fact }]
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_contract::demand::Fact;
    use ebbtide_contract::view::{Heard, View};

    use super::{Facts, Speech};

    fn facts(clients: u64, workers: &[&str]) -> Facts {
        let mut facts = Facts::new();
        facts.insert("clients".to_owned(), Fact::Clients { connected: clients });
        for worker in workers {
            let name = (*worker).to_owned();
            let fact = Fact::Worker { name: name.clone(), held_bytes: 0, assigned: 0 };
            facts.insert(format!("worker {name}"), fact);
        }
        facts
    }

    #[test]
    fn what_the_operator_hears_is_what_the_scheduler_says() {
        let mut speech = Speech { epoch: 4, next: 0, said: Facts::new() };
        let mut view = View::default();
        for line in speech.greeting(&facts(1, &["a", "b"])) {
            view.hear(line).unwrap();
        }
        for line in speech.news(&facts(2, &["b", "c"])).into_iter().chain(speech.again()) {
            assert_eq!(view.hear(line), Ok(Heard::News));
        }
        let demand = view.demand().unwrap();
        let workers: Vec<&str> = demand.workers.keys().map(String::as_str).collect();
        assert_eq!((demand.epoch, demand.clients, workers), (4, 2, vec!["b", "c"]));
    }
}
