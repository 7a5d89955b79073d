//! The operator's side of the contract: accepts schedulers and keeps what each last said.
//!
//! A connection belongs to the cluster whose uid stands in its certificate. Of several schedulers
//! of one cluster, the one with the latest epoch counts.

mod lines;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebbtide_contract::demand::{Down, Group, INTERVAL_SECONDS_MAX, Outcome, SILENT_SECONDS, Up};
use ebbtide_contract::identity::{Identity, Role};
use ebbtide_contract::view::{Demand, Heard, View};
use rustls::ServerConfig;
use tokio::io::{AsyncBufRead, AsyncWrite, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::lines::{Lines, say};

/// Schedulers at once: 4,000 clusters, each with a new connection before its old one is closed.
const CONNECTIONS_MAX: usize = 8192;

/// How much of what a scheduler says is read at once, in bytes: there are as many buffers as schedulers.
const READ_AHEAD: usize = 1024;

/// Wait after a connection could not be accepted.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

const REPLACED: &str = "a later one took over";

/// How long whoever was refused waits before its next connection is served: doubled with each one.
const PENALTY_FIRST: Duration = Duration::from_millis(100);

/// The longest such wait, and how long a refusal is remembered.
const PENALTY_MAX: Duration = Duration::from_secs(5);
const PENALTY_KEPT: Duration = Duration::from_mins(1);

/// Connections from one address that wait so; more are closed.
const PENALIZED_MAX: usize = 4;

/// How long TLS may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long a scheduler may be silent before what it said counts no more.
const QUIET: Duration = Duration::from_secs(SILENT_SECONDS);

/// How long a scheduler may be silent before its connection counts as broken.
const SILENCE_MAX: Duration = Duration::from_secs(6 * INTERVAL_SECONDS_MAX);

/// Orders that wait for a scheduler that does not read.
const ORDERS_MAX: usize = 64;

/// Workers of one order: a line of it stays far below its limit.
const RETIRE_MAX: usize = 256;

/// How long it counts that a scheduler needs a worker that was to go: it is not asked again before.
const KEPT: Duration = Duration::from_secs(10);

/// How long it is known when a connection was lost.
const LEFT_KEPT: Duration = Duration::from_mins(1);

/// Connections of one address at once that have not proved yet whose they are: as many as schedulers may begin
/// behind one address.
const STRANGERS_MAX: usize = 256;

/// Connections of one cluster at once: a new one beside one that is not known to be broken yet, and
/// as many again while a scheduler is made anew.
const CLUSTER_CONNECTIONS_MAX: usize = 4;

/// How often there is news of one cluster: twice as often as a scheduler of ours tells some.
const NEWS_INTERVAL: Duration = Duration::from_millis(50);

/// What the schedulers of all clusters say.
#[derive(Clone, Debug)]
pub struct Schedulers(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    /// Since when schedulers may connect.
    since: Instant,
    /// When what is known of clusters was lost, of late.
    left: BTreeMap<String, Instant>,
    /// The connection that counts, by the cluster's uid.
    connections: BTreeMap<String, Connection>,
    /// How many connections each has.
    open: BTreeMap<Peer, usize>,
    /// How many connections there ever were.
    ever: u64,
    /// How often something was refused, by why.
    refused: BTreeMap<&'static str, u64>,
    /// Who was refused of late.
    penalties: BTreeMap<Peer, Penalty>,
}

/// Who is at the other end: an address until it is known whose it is, and then the cluster.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Peer {
    Address(IpAddr),
    Cluster(String),
}

/// What somebody has to bear who was refused.
#[derive(Debug)]
struct Penalty {
    times: u32,
    last: Instant,
    waiting: usize,
}

/// Why a connection was closed from here.
#[derive(Debug)]
struct Refused {
    /// In a word, for those who count.
    reason: &'static str,
    message: String,
    /// Whose scheduler it was, once that is known.
    cluster_uid: Option<String>,
}

/// What one scheduler says and is told, however its lines travel. It ends when it is dropped.
#[derive(Debug)]
pub struct Conversation {
    schedulers: Schedulers,
    cluster_uid: String,
    number: u64,
    ordered: mpsc::Receiver<Down>,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    view: View,
    epoch: u64,
    /// When there last was work, as far as this connection told.
    busy_at: Option<Instant>,
    /// When the last line came over the network.
    heard_at: Option<Instant>,
    orders: mpsc::Sender<Down>,
    /// When workers were kept that were asked to retire.
    kept: BTreeMap<String, Instant>,
    /// The worker groups that this scheduler was told of.
    told: Vec<Group>,
}

/// One of the connections that somebody may have, given back when it is dropped.
struct Place<'a> {
    schedulers: &'a Schedulers,
    of: Peer,
}

impl Default for Schedulers {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Known {
            since: Instant::now(),
            left: BTreeMap::new(),
            connections: BTreeMap::new(),
            open: BTreeMap::new(),
            ever: 0,
            refused: BTreeMap::new(),
            penalties: BTreeMap::new(),
        })))
    }
}

impl Schedulers {
    /// What the scheduler of this cluster says, while it is connected.
    pub fn demand(&self, cluster_uid: &str) -> Option<Demand> {
        let known = self.lock();
        let connection = known.connections.get(cluster_uid)?;
        let mut demand = connection.view.demand()?.clone();
        let is_fresh =
            |worker: &String| connection.kept.get(worker).is_some_and(|at| at.elapsed() < KEPT);
        demand.retired.retain(|worker, outcome| *outcome != Outcome::Kept || is_fresh(worker));
        Some(demand)
    }

    /// For how long nothing has been known of a cluster's demand, as far as this operator remembers.
    pub fn silent_for(&self, cluster_uid: &str) -> Duration {
        let known = self.lock();
        if known.connections.get(cluster_uid).is_some_and(|it| it.view.demand().is_some()) {
            return Duration::ZERO;
        }
        known.left.get(cluster_uid).unwrap_or(&known.since).elapsed()
    }

    /// How many schedulers are connected.
    pub fn connected(&self) -> usize {
        self.lock().connections.len()
    }

    /// How often a connection was closed from here, by why.
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.lock().refused.clone()
    }

    /// How long ago a cluster had work that its scheduler told of on its present connection.
    pub fn busy_ago(&self, cluster_uid: &str) -> Option<Duration> {
        Some(self.lock().connections.get(cluster_uid)?.busy_at?.elapsed())
    }

    /// How long ago the last line of a cluster's scheduler came over its present connection.
    pub fn heard_ago(&self, cluster_uid: &str) -> Duration {
        let known = self.lock();
        let heard_at = known.connections.get(cluster_uid).and_then(|it| it.heard_at);
        heard_at.map(|it| it.elapsed()).unwrap_or_default()
    }

    /// Asks a scheduler to do without workers. Asking one that is away does nothing: the plan asks
    /// again when it is back.
    pub fn retire(&self, cluster_uid: &str, workers: &[String], deadline_seconds: u64) {
        if let Some(connection) = self.lock().connections.get_mut(cluster_uid) {
            // A line has a bounded length, whatever the number of workers.
            for workers in workers.chunks(RETIRE_MAX).map(<[_]>::to_vec) {
                let order = Down::Retire { workers: workers.clone(), deadline_seconds };
                if connection.orders.try_send(order).is_err() {
                    tracing::warn!(cluster_uid, "the scheduler does not read its orders");
                    return;
                }
                connection.view.ask(&workers);
            }
        }
    }

    /// Tells a scheduler which worker groups its cluster has, unless it was told so. One that is away
    /// is told when it is back and this is said again.
    pub fn tell_groups(&self, cluster_uid: &str, groups: &[Group]) {
        if let Some(connection) = self.lock().connections.get_mut(cluster_uid)
            && connection.told != groups
        {
            let order = Down::Groups { groups: groups.to_vec() };
            // One that does not read its orders now is told at the next look.
            if connection.orders.try_send(order).is_ok() {
                connection.told = groups.to_vec();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line. False when the connection must be closed.
    fn hear(&self, uid: &str, number: u64, line: Up) -> Result<Heard, String> {
        let mut known = self.lock();
        let connection = known.connections.get_mut(uid).filter(|it| it.number == number);
        let Some(connection) = connection else { return Err(REPLACED.to_owned()) };
        if let Up::Hello { epoch, .. } = line {
            connection.epoch = epoch;
        }
        if let Up::Retired { worker, outcome: Outcome::Kept } = &line {
            connection.kept.retain(|_, at| at.elapsed() < KEPT);
            connection.kept.insert(worker.clone(), Instant::now());
        }
        let jobs = connection.view.demand().map(|demand| demand.jobs);
        let heard = connection.view.hear(line).map_err(|violation| violation.to_string())?;
        if let Some(demand) = connection.view.demand()
            && (demand.is_busy() || jobs.is_some_and(|it| it != demand.jobs))
        {
            connection.busy_at = Some(Instant::now());
        }
        Ok(heard)
    }

    /// Begins a conversation with the scheduler of a cluster, in this life of it.
    pub fn open(
        &self,
        cluster_uid: &str,
        protocol: u32,
        epoch: u64,
    ) -> Result<Conversation, String> {
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let number = {
            let mut known = self.lock();
            known.ever += 1;
            known.ever
        };
        let (view, told) = (View::default(), Vec::new());
        let connection = Connection {
            number,
            view,
            epoch,
            busy_at: None,
            heard_at: None,
            orders,
            kept: BTreeMap::new(),
            told,
        };
        self.enter(cluster_uid, connection)?;
        let (schedulers, cluster_uid) = (self.clone(), cluster_uid.to_owned());
        let conversation = Conversation { schedulers, cluster_uid, number, ordered };
        conversation.hear(Up::Hello { protocol, epoch })?;
        Ok(conversation)
    }

    /// Makes a connection the one that counts, unless a later life of the scheduler has one.
    fn enter(&self, uid: &str, connection: Connection) -> Result<(), String> {
        let mut known = self.lock();
        let (epoch, there) = (connection.epoch, known.connections.get(uid));
        if there.is_some_and(|it| it.epoch > epoch) {
            return Err(format!("epoch {epoch} is over"));
        }
        known.connections.insert(uid.to_owned(), connection);
        Ok(())
    }

    fn leave(&self, uid: &str, number: u64) {
        let mut known = self.lock();
        if known.connections.get(uid).is_some_and(|it| it.number == number) {
            let left = known.connections.remove(uid);
            known.left.retain(|_, at| at.elapsed() < LEFT_KEPT);
            // Who said nothing whole left long ago.
            if left.is_some_and(|it| it.view.demand().is_some()) {
                known.left.insert(uid.to_owned(), Instant::now());
            }
        }
    }

    /// Counts a refusal, and who has to bear it.
    fn refuse(&self, from: IpAddr, refused: &Refused) {
        let mut known = self.lock();
        *known.refused.entry(refused.reason).or_default() += 1;
        let from = match &refused.cluster_uid {
            Some(uid) => Peer::Cluster(uid.clone()),
            None => Peer::Address(from),
        };
        known.penalties.retain(|_, it| it.waiting > 0 || it.last.elapsed() < PENALTY_KEPT);
        let first = || Penalty { times: 0, last: Instant::now(), waiting: 0 };
        let penalty = known.penalties.entry(from).or_insert_with(first);
        penalty.times = penalty.times.saturating_add(1);
        penalty.last = Instant::now();
    }

    /// Whoever is at this address proved to be a scheduler.
    fn absolve(&self, from: IpAddr) {
        self.lock().penalties.remove(&Peer::Address(from));
    }

    /// Waits as this peer has to. False if so many of its connections wait already.
    async fn bear(&self, from: Peer) -> bool {
        let wait = {
            let mut known = self.lock();
            let Some(penalty) = known.penalties.get_mut(&from) else { return true };
            if penalty.last.elapsed() >= PENALTY_KEPT {
                return true;
            }
            if penalty.waiting >= PENALIZED_MAX {
                *known.refused.entry("penalty").or_default() += 1;
                return false;
            }
            penalty.waiting += 1;
            PENALTY_FIRST.saturating_mul(1 << penalty.times.min(10).saturating_sub(1))
        };
        sleep(wait.min(PENALTY_MAX)).await;
        if let Some(penalty) = self.lock().penalties.get_mut(&from) {
            penalty.waiting = penalty.waiting.saturating_sub(1);
        }
        true
    }

    /// A place for one more connection, unless there are as many as may be.
    fn place(&self, of: Peer) -> io::Result<Place<'_>> {
        let mut known = self.lock();
        let open = known.open.entry(of.clone()).or_default();
        let max = of.connections_max();
        if *open >= max {
            return Err(refused("connections", format!("{of} has {max} connections already")));
        }
        *open += 1;
        Ok(Place { schedulers: self, of })
    }
}

impl Peer {
    /// How many connections it may have at once.
    fn connections_max(&self) -> usize {
        match self {
            Self::Address(_) => STRANGERS_MAX,
            Self::Cluster(_) => CLUSTER_CONNECTIONS_MAX,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Cluster(uid) => uid.fmt(f),
        }
    }
}

impl Conversation {
    /// Takes a line. An error ends the conversation.
    pub fn hear(&self, line: Up) -> Result<Heard, String> {
        self.schedulers.hear(&self.cluster_uid, self.number, line)
    }

    /// A line came over the network just now.
    fn came(&self) {
        let mut known = self.schedulers.lock();
        let connection = known.connections.get_mut(&self.cluster_uid);
        if let Some(connection) = connection.filter(|it| it.number == self.number) {
            connection.heard_at = Some(Instant::now());
        }
    }

    /// The next order for the scheduler.
    pub async fn order(&mut self) -> Option<Down> {
        self.ordered.recv().await
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.schedulers.leave(&self.cluster_uid, self.number);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut known = self.schedulers.lock();
        if let Some(open) = known.open.get_mut(&self.of) {
            *open -= 1;
            if *open == 0 {
                known.open.remove(&self.of);
            }
        }
    }
}

/// Accepts schedulers until the process ends, each with the configuration of that moment. `news` is
/// called with the uid of every cluster about which something new is known, twenty times a second at
/// most for each of its connections.
pub async fn serve(
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
    schedulers: Schedulers,
    news: impl Fn(&str) + Clone + Send + Sync + 'static,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                // Most likely for want of descriptors, which come back with time.
                sleep(REFUSED_PAUSE).await;
                continue;
            }
        };
        let acceptor = TlsAcceptor::from(Arc::clone(&config.borrow()));
        let (schedulers, news) = (schedulers.clone(), news.clone());
        tokio::spawn(async move {
            if !schedulers.bear(Peer::Address(from.ip())).await {
                return;
            }
            if let Err(error) = session(stream, from.ip(), &acceptor, &schedulers, &news).await {
                let why = error.get_ref().and_then(|it| it.downcast_ref::<Refused>());
                if let Some(refused) = why {
                    tracing::warn!(%error, reason = refused.reason, %from, "a scheduler was refused");
                    schedulers.refuse(from.ip(), refused);
                } else {
                    tracing::info!(%error, %from, "a scheduler's connection ended");
                }
            }
            drop(place);
        });
    }
}

fn refused(reason: &'static str, message: impl fmt::Display) -> io::Error {
    io::Error::other(Refused { reason, message: message.to_string(), cluster_uid: None })
}

/// The same of a scheduler that proved whose it is.
fn of_cluster(error: io::Error, uid: &str) -> io::Error {
    match error.downcast::<Refused>() {
        Ok(refused) => io::Error::other(Refused { cluster_uid: Some(uid.to_owned()), ..refused }),
        Err(error) => error,
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}

async fn session(
    stream: TcpStream,
    from: IpAddr,
    acceptor: &TlsAcceptor,
    schedulers: &Schedulers,
    news: &(impl Fn(&str) + Sync),
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stranger = schedulers.place(Peer::Address(from))?;
    let accepted = timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await;
    let accepted = accepted.map_err(|_| refused("tls", "no TLS in time"))?;
    let stream = accepted.map_err(|error| refused("tls", error))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let identity = certificate.and_then(|it| Identity::of_certificate(it).ok());
    let Some(Identity::Member { cluster_uid, role: Role::Scheduler }) = identity else {
        return Err(refused("identity", "not a scheduler"));
    };
    drop(stranger);
    schedulers.absolve(from);
    let served = serve_cluster(stream, &cluster_uid, schedulers, news).await;
    served.map_err(|error| of_cluster(error, &cluster_uid))
}

/// Hears the scheduler of a cluster.
async fn serve_cluster(
    stream: TlsStream<TcpStream>,
    cluster_uid: &str,
    schedulers: &Schedulers,
    news: &(impl Fn(&str) + Sync),
) -> io::Result<()> {
    if !schedulers.bear(Peer::Cluster(cluster_uid.to_owned())).await {
        return Err(io::Error::other(format!("{cluster_uid} dials too often")));
    }
    let _place = schedulers.place(Peer::Cluster(cluster_uid.to_owned()))?;
    let (reader, mut writer) = tokio::io::split(stream);
    let mut lines = Lines::new(BufReader::with_capacity(READ_AHEAD, reader));
    let hello = timeout(HANDSHAKE_MAX, lines.next()).await;
    let hello = hello.map_err(|_| refused("silence", "no hello in time"))??;
    let Some(Up::Hello { protocol, epoch }) = hello else {
        return Err(refused("line", "the first line is not hello"));
    };
    let opened = schedulers.open(cluster_uid, protocol, epoch);
    let mut conversation = opened.map_err(|error| refused("protocol", error))?;
    let ended = converse(&mut lines, &mut writer, &mut conversation, &|| news(cluster_uid)).await;
    drop(conversation);
    news(cluster_uid);
    ended
}

/// Hears and orders until the connection ends.
async fn converse<R: AsyncBufRead + Unpin, W: AsyncWrite + Unpin>(
    lines: &mut Lines<R>,
    writer: &mut W,
    conversation: &mut Conversation,
    news: &impl Fn(),
) -> io::Result<()> {
    let mut silent_at = Instant::now() + SILENCE_MAX;
    let mut quiet_at = Some(Instant::now() + QUIET);
    let (mut is_new, mut told_at) = (false, None::<Instant>);
    loop {
        let tell_at = told_at.map_or_else(Instant::now, |at| at + NEWS_INTERVAL);
        tokio::select! {
            read = lines.next() => {
                let Some(up) = read? else { return Ok(()) };
                silent_at = Instant::now() + SILENCE_MAX;
                quiet_at = Some(Instant::now() + QUIET);
                conversation.came();
                match conversation.hear(up).map_err(unheard)? {
                    Heard::News => is_new = true,
                    Heard::Nothing => {}
                    Heard::Gap => say(writer, &Down::Resend).await?,
                }
            }
            Some(order) = conversation.order() => say(writer, &order).await?,
            () = sleep_until(tell_at), if is_new => {
                (is_new, told_at) = (false, Some(Instant::now()));
                news();
            }
            () = sleep_until(quiet_at.unwrap_or(silent_at)), if quiet_at.is_some() => {
                // That nothing is said is news.
                quiet_at = None;
                news();
            }
            () = sleep_until(silent_at) => {
                return Err(refused("silence", format!("silent for {SILENCE_MAX:?}")));
            }
        }
    }
}

/// A later connection of the same cluster is no offence.
fn unheard(why: String) -> io::Error {
    if why == REPLACED { io::Error::other(why) } else { refused("line", why) }
}

#[cfg(test)]
mod tests;
