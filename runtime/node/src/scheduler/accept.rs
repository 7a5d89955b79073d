//! Who may come in: TLS, version, identity and token are checked before the core hears of anybody.

use std::sync::Arc;
use std::time::Duration;

use ebbtide_array::CHUNK_BYTES_MAX;
use ebbtide_buffer::Pool;
use ebbtide_contract::identity::{Identity, Role};
use ebbtide_contract::tls::Current;
use ebbtide_core::WorkerId;
use ebbtide_core::message::FromWorker;
use ebbtide_core::scheduler::Joining;
use rustls::ServerConfig;
use subtle::ConstantTimeEq as _;
use tokio::io::ReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_rustls::server::TlsStream;

use crate::frame::{self, FrameError, GRAPH_BYTES_MAX};
use crate::link::{self, Link};
use crate::metered::Metered;
use crate::scheduler::hall::Input;
use crate::settings::Settings;
use crate::wire::{ClientFrame, Hello, Welcome, WorkerFrame};

/// Connections at once: 1,000 workers and clients with room to spare.
const CONNECTIONS_MAX: usize = 4096;

/// How often bytes of a worker that came count as a sign of life: a fifth of what it may be silent.
const ALIVE_INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct Door {
    pub(super) config: Current<ServerConfig>,
    pub(super) settings: Settings,
    pub(super) epoch: u64,
    pub(super) pool: Pool,
    pub(super) inputs: mpsc::Sender<Input>,
}

type Reader = ReadHalf<TlsStream<TcpStream>>;

impl Door {
    pub(super) async fn open(self, listener: TcpListener) {
        let this = Arc::new(self);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    // Most likely for want of descriptors, which come back with time.
                    sleep(link::REFUSED_PAUSE).await;
                    continue;
                }
            };
            let this = Arc::clone(&this);
            tokio::spawn(async move {
                match this.welcome(stream).await {
                    Ok(()) => {}
                    // Clients go like this, and who only knocks.
                    Err(error) if error.is_end() => {
                        tracing::debug!(%error, %from, "a connection ended");
                    }
                    Err(error) => tracing::info!(%error, %from, "a connection ended"),
                }
                drop(place);
            });
        }
    }

    async fn welcome(&self, stream: TcpStream) -> Result<(), FrameError> {
        link::prepare(&stream)?;
        let Link { mut stream, peer } = link::accept(stream, self.config.get()).await?;
        let hello: Hello = link::read_first(&mut stream).await?;
        let Identity::Member { role, .. } = peer else { return Err(FrameError::Stranger) };
        match (hello, role) {
            (
                Hello::Worker { name, address, cores, memory_bytes, resources, incarnation },
                Role::Worker,
            ) => {
                let joining =
                    Joining { name, address, cores, memory_bytes, resources, incarnation };
                self.worker(stream, joining).await
            }
            (Hello::Client { token }, Role::Client) if self.is_token(&token.0) => {
                self.client(stream).await
            }
            (Hello::Client { .. }, Role::Client) => {
                refuse(stream, "the token is not this cluster's").await
            }
            (Hello::Worker { .. } | Hello::Client { .. } | Hello::Peer { .. }, _) => {
                refuse(stream, "the certificate is for another role").await
            }
        }
    }

    fn is_token(&self, token: &str) -> bool {
        let ours = self.settings.token().inspect_err(|error| tracing::warn!(%error, "no client"));
        ours.is_ok_and(|ours| token.as_bytes().ct_eq(ours.as_bytes()).into())
    }

    async fn worker(
        &self,
        mut stream: TlsStream<TcpStream>,
        joining: Joining,
    ) -> Result<(), FrameError> {
        let (reply, id) = oneshot::channel();
        self.input(Input::WorkerComes(reply)).await;
        let Ok(id) = id.await else { return Ok(()) };
        link::write_first(&mut stream, &Welcome::Worker { id, epoch: self.epoch }).await?;
        let (outbox, reader) = link::split_off(stream);
        self.input(Input::WorkerJoined(id, joining, outbox)).await;
        let ended = self.hear_worker(id, reader).await;
        self.input(Input::WorkerGone(id)).await;
        ended
    }

    async fn hear_worker(&self, id: WorkerId, reader: Reader) -> Result<(), FrameError> {
        let (mut reader, meter) = Metered::new(reader);
        let mut look = interval(ALIVE_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let reading = frame::read::<WorkerFrame, _>(&mut reader, &self.pool, CHUNK_BYTES_MAX);
            tokio::pin!(reading);
            let (message, payload) = loop {
                tokio::select! {
                    read = &mut reading => break read?,
                    _ = look.tick() => if meter.moved() {
                        // A heartbeat waits behind a chunk that takes long.
                        self.input(Input::WorkerSaid(id, FromWorker::Heartbeat, None)).await;
                    },
                }
            };
            self.input(match message {
                WorkerFrame::Message(message) => Input::WorkerSaid(id, message, payload),
                WorkerFrame::Chunk(task) => Input::WorkerSent(task, payload),
                WorkerFrame::Peak(bytes) => Input::WorkerPeaked(id, bytes),
            })
            .await;
        }
    }

    async fn client(&self, mut stream: TlsStream<TcpStream>) -> Result<(), FrameError> {
        link::write_first(&mut stream, &Welcome::Yes).await?;
        let (outbox, mut reader) = link::split_off(stream);
        let (reply, id) = oneshot::channel();
        self.input(Input::ClientJoined(outbox, reply)).await;
        let Ok(id) = id.await else { return Ok(()) };
        let ended = loop {
            match frame::read::<ClientFrame, _>(&mut reader, &self.pool, GRAPH_BYTES_MAX).await {
                Ok((message, payload)) => {
                    self.input(Input::ClientSaid(id, message, payload)).await;
                }
                Err(error) => break Err(error),
            }
        };
        self.input(Input::ClientGone(id)).await;
        ended
    }

    async fn input(&self, input: Input) {
        // The hall is gone only when the process ends.
        let _: Result<(), _> = self.inputs.send(input).await;
    }
}

async fn refuse(mut stream: TlsStream<TcpStream>, reason: &str) -> Result<(), FrameError> {
    link::write_first(&mut stream, &Welcome::Refused(reason.to_owned())).await?;
    Err(FrameError::Stream(std::io::Error::other(format!("refused: {reason}"))))
}
