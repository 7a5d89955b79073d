//! The operator's side of the contract: accepts schedulers and keeps what each last said.
//!
//! A connection belongs to the cluster whose uid stands in its certificate. Of several schedulers
//! of one cluster, the one with the latest epoch counts.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ebbtide_contract::demand::{Down, INTERVAL_SECONDS_MAX, LINE_BYTES_MAX, Up};
use ebbtide_contract::identity::{Identity, Role};
use ebbtide_contract::view::{Demand, Heard, View};
use rustls::ServerConfig;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

/// Schedulers at once: 1,000 clusters, each with a new connection before its old one is closed.
const CONNECTIONS_MAX: usize = 4096;

/// Wait after a connection could not be accepted.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How long TLS may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long a scheduler may be silent before its connection counts as broken.
const SILENCE_MAX: Duration = Duration::from_secs(6 * INTERVAL_SECONDS_MAX);

/// Orders that wait for a scheduler that does not read.
const ORDERS_MAX: usize = 64;

/// Workers of one order: a line of it stays far below its limit.
const RETIRE_MAX: usize = 256;

/// What the schedulers of all clusters say.
#[derive(Clone, Debug, Default)]
pub struct Schedulers(Arc<Mutex<BTreeMap<String, Connection>>>);

#[derive(Debug)]
struct Connection {
    number: u64,
    view: View,
    epoch: u64,
    orders: mpsc::Sender<Down>,
}

impl Schedulers {
    /// What the scheduler of this cluster says, while it is connected.
    pub fn demand(&self, cluster_uid: &str) -> Option<Demand> {
        self.lock().get(cluster_uid)?.view.demand().cloned()
    }

    /// Asks a scheduler to do without workers. Asking one that is away does nothing: the plan asks
    /// again when it is back.
    pub fn retire(&self, cluster_uid: &str, workers: &[String], deadline_seconds: u64) {
        if let Some(connection) = self.lock().get(cluster_uid) {
            // A line has a bounded length, whatever the number of workers.
            for workers in workers.chunks(RETIRE_MAX).map(<[_]>::to_vec) {
                let order = Down::Retire { workers, deadline_seconds };
                if connection.orders.try_send(order).is_err() {
                    tracing::warn!(cluster_uid, "the scheduler does not read its orders");
                    return;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line. False when the connection must be closed.
    fn hear(&self, uid: &str, number: u64, line: Up) -> Result<Heard, String> {
        let mut all = self.lock();
        let connection = all.get_mut(uid).filter(|it| it.number == number);
        let Some(connection) = connection else { return Err("a later one took over".to_owned()) };
        if let Up::Hello { epoch, .. } = line {
            connection.epoch = epoch;
        }
        connection.view.hear(line).map_err(|violation| violation.to_string())
    }

    fn leave(&self, uid: &str, number: u64) {
        let mut all = self.lock();
        if all.get(uid).is_some_and(|it| it.number == number) {
            all.remove(uid);
        }
    }
}

/// Accepts schedulers until the process ends. `news` is called with the uid of every cluster about
/// which something new is known.
pub async fn serve(
    listener: TcpListener,
    config: ServerConfig,
    schedulers: Schedulers,
    news: impl Fn(&str) + Clone + Send + Sync + 'static,
) {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    for number in 0.. {
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
        let (acceptor, schedulers, news) = (acceptor.clone(), schedulers.clone(), news.clone());
        tokio::spawn(async move {
            if let Err(error) = session(stream, &acceptor, &schedulers, number, &news).await {
                tracing::info!(%error, %from, "a scheduler's connection ended");
            }
            drop(place);
        });
    }
}

async fn session(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    schedulers: &Schedulers,
    number: u64,
    news: &(impl Fn(&str) + Sync),
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream = timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let identity = certificate.and_then(|it| Identity::of_certificate(it).ok());
    let Some(Identity::Member { cluster_uid, role: Role::Scheduler }) = identity else {
        return Err(io::Error::other("not a scheduler"));
    };
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let Some(Up::Hello { protocol, epoch }) = next_line(&mut reader, &mut line).await? else {
        return Err(io::Error::other("the first line is not hello"));
    };
    let (orders, mut ordered) = mpsc::channel(ORDERS_MAX);
    {
        let mut all = schedulers.lock();
        if all.get(&cluster_uid).is_some_and(|it| it.epoch > epoch) {
            return Err(io::Error::other(format!("epoch {epoch} is over")));
        }
        let connection = Connection { number, view: View::default(), epoch, orders };
        all.insert(cluster_uid.clone(), connection);
    }
    let uid = cluster_uid.as_str();
    let greeted = schedulers.hear(uid, number, Up::Hello { protocol, epoch });
    let ended = match greeted {
        Err(violation) => Err(io::Error::other(violation)),
        Ok(_) => loop {
            tokio::select! {
                read = timeout(SILENCE_MAX, next_line(&mut reader, &mut line)) => {
                    let heard = match read {
                        Err(_) => break Err(io::Error::other(format!("silent for {SILENCE_MAX:?}"))),
                        Ok(Err(error)) => break Err(error),
                        Ok(Ok(None)) => break Ok(()),
                        Ok(Ok(Some(up))) => schedulers.hear(uid, number, up),
                    };
                    match heard {
                        Err(violation) => break Err(io::Error::other(violation)),
                        Ok(Heard::News) => news(uid),
                        Ok(Heard::Partial) => {}
                        Ok(Heard::Gap) => {
                            if let Err(error) = say(&mut writer, &Down::Resend).await {
                                break Err(error);
                            }
                        }
                    }
                }
                Some(order) = ordered.recv() => {
                    if let Err(error) = say(&mut writer, &order).await {
                        break Err(error);
                    }
                }
            }
        },
    };
    schedulers.leave(uid, number);
    news(uid);
    ended
}

async fn say<W: tokio::io::AsyncWrite + Unpin>(writer: &mut W, order: &Down) -> io::Result<()> {
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await
}

/// The next line, or none at the end. `line` keeps what was read when the caller stops waiting.
async fn next_line<R: AsyncBufRead + Unpin>(
    reader: &mut R,
    line: &mut Vec<u8>,
) -> io::Result<Option<Up>> {
    let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
    reader.take(room as u64).read_until(b'\n', line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        let bytes = line.len();
        return Err(io::Error::other(format!("a line of {bytes} bytes is cut off or too long")));
    }
    let up = serde_json::from_slice(line)?;
    line.clear();
    Ok(Some(up))
}
