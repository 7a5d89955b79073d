//! What one scheduler says to the operator, over its own connection.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ebbtide_contract::demand::{Down, Fact, INTERVAL_SECONDS_MAX, Outcome, PROTOCOL, Up};
use ebbtide_contract::identity::Identity;
use ebbtide_contract::tls::{self, Credentials, file};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use rustls::ClientConfig;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::clusters::State;

/// Wait before the operator is dialled again.
const REDIAL: Duration = Duration::from_millis(500);

/// Tasks that nobody has.
const ABSURD: u64 = 1_000_000_000;

/// Lines that a hostile scheduler says at a stretch.
const LINES_AT_ONCE: usize = 200;

/// How a scheduler reaches the operator.
pub(crate) struct Way {
    pub(crate) client: Client,
    pub(crate) operator: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) namespace: String,
    pub(crate) secret: String,
}

type Facts = BTreeMap<String, Fact>;

/// Speaks until the cluster is gone.
pub(crate) async fn speak(way: Way, mut state: watch::Receiver<State>) {
    let mut config = None;
    let mut epoch = 1;
    while state.has_changed().is_ok() {
        if config.is_none() {
            config = credentials(&way).await.ok();
        }
        if let Some(config) = &config {
            // However it ended: it begins anew.
            let _: anyhow::Result<()> = session(&way, config, epoch, &mut state).await;
        }
        let is_hostile = state.borrow().is_hostile;
        epoch += u64::from(is_hostile);
        sleep(if is_hostile { REDIAL / 10 } else { REDIAL }).await;
    }
}

async fn credentials(way: &Way) -> anyhow::Result<Arc<ClientConfig>> {
    let secrets: Api<Secret> = Api::namespaced(way.client.clone(), &way.namespace);
    let data = secrets.get(&way.secret).await?.data.context("an empty Secret")?;
    let part = |name: &str| data.get(name).map(|it| it.0.as_slice()).unwrap_or_default();
    let credentials =
        Credentials::from_pem(part(file::AUTHORITY), part(file::CERTIFICATE), part(file::KEY))?;
    Ok(Arc::new(credentials.dial(Identity::Operator)?))
}

async fn session(
    way: &Way,
    config: &Arc<ClientConfig>,
    epoch: u64,
    state: &mut watch::Receiver<State>,
) -> anyhow::Result<()> {
    // Like a pod: from an address of its own.
    let socket = TcpSocket::new_v4()?;
    socket.bind((way.address, 0).into())?;
    let stream = socket.connect(way.operator.parse()?).await?;
    stream.set_nodelay(true)?;
    let stream = TlsConnector::from(Arc::clone(config)).connect(tls::any_name(), stream).await?;
    let (reader, mut writer) = tokio::io::split(stream);
    let mut lines = BufReader::new(reader).lines();
    let mut speech = Speech::default();
    let mut said = vec![Up::Hello { protocol: PROTOCOL, epoch }];
    said.extend(speech.snapshot(&state.borrow_and_update()));
    say(&mut writer, &said).await?;
    loop {
        if state.borrow().is_hostile {
            return annoy(&mut writer, &mut speech).await;
        }
        let said = tokio::select! {
            line = lines.next_line() => {
                let Some(line) = line? else { return Ok(()) };
                speech.hear(serde_json::from_str(&line)?, &state.borrow())
            }
            changed = state.changed() => {
                changed?;
                speech.news(&state.borrow_and_update())
            }
            () = sleep(Duration::from_secs(INTERVAL_SECONDS_MAX)) => {
                speech.said.remove("clients");
                speech.news(&state.borrow())
            }
        };
        say(&mut writer, &said).await?;
    }
}

/// Everything at once that a scheduler must not say.
async fn annoy(
    writer: &mut WriteHalf<TlsStream<TcpStream>>,
    speech: &mut Speech,
) -> anyhow::Result<()> {
    let groups = speech.groups.clone();
    for tasks in 0..LINES_AT_ONCE as u64 {
        let fact = Fact::Queue {
            fits: groups.clone(),
            tasks: ABSURD + tasks,
            core_seconds: f64::MAX,
            running: ABSURD,
        };
        let line = Up::Fact { sequence: speech.number(), fact };
        say(writer, &[line]).await?;
    }
    let gap = Up::Fact { sequence: ABSURD, fact: Fact::WorkerGone { name: "nobody".to_owned() } };
    say(writer, &[gap]).await?;
    writer.write_all(b"{\"type\":\"fact\",\"sequence\":NaN}\n\xff\xfe garbage \x00\n").await?;
    Ok(writer.flush().await?)
}

async fn say(writer: &mut WriteHalf<TlsStream<TcpStream>>, lines: &[Up]) -> io::Result<()> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
    }
    writer.write_all(&text).await?;
    writer.flush().await
}

/// What was said on this connection.
#[derive(Default)]
struct Speech {
    next: u64,
    said: Facts,
    groups: Vec<String>,
}

impl Speech {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn snapshot(&mut self, state: &State) -> Vec<Up> {
        self.said.clear();
        let mut lines = vec![Up::Begin { sequence: self.number() }];
        lines.extend(self.news(state));
        lines.push(Up::End { sequence: self.number() });
        lines
    }

    fn news(&mut self, state: &State) -> Vec<Up> {
        let facts = facts(state, &self.groups);
        let is_gone = |name: &&String| !facts.contains_key(*name);
        let gone: Vec<Fact> = self
            .said
            .keys()
            .filter(is_gone)
            .filter_map(|it| it.strip_prefix("worker "))
            .map(|name| Fact::WorkerGone { name: name.to_owned() })
            .collect();
        let is_new = |(name, fact): &(&String, &Fact)| self.said.get(*name) != Some(*fact);
        let new: Vec<Fact> = facts.iter().filter(is_new).map(|(_, fact)| fact.clone()).collect();
        self.said = facts;
        let all = gone.into_iter().chain(new);
        all.map(|fact| Up::Fact { sequence: self.number(), fact }).collect()
    }

    fn hear(&mut self, order: Down, state: &State) -> Vec<Up> {
        match order {
            Down::Resend => self.snapshot(state),
            Down::Later => Vec::new(),
            Down::Groups { groups } => {
                self.groups = groups.into_iter().map(|it| it.name).collect();
                self.news(state)
            }
            Down::Retire { workers, .. } => workers
                .into_iter()
                .map(|worker| Up::Retired { worker, outcome: Outcome::Released })
                .collect(),
        }
    }
}

fn facts(state: &State, groups: &[String]) -> Facts {
    let mut facts = Facts::new();
    facts.insert("clients".to_owned(), Fact::Clients { connected: 1 });
    facts.insert("jobs".to_owned(), Fact::Jobs { ever: state.jobs });
    for name in &state.workers {
        let fact = Fact::Worker { name: name.clone(), held_bytes: 0, assigned: 0 };
        facts.insert(format!("worker {name}"), fact);
    }
    if !groups.is_empty() {
        let fits = groups.to_vec();
        let core_seconds = 3600.0 * state.tasks as f64;
        let queue = Fact::Queue { fits, tasks: state.tasks, core_seconds, running: 0 };
        facts.insert("queue".to_owned(), queue);
    }
    facts
}
