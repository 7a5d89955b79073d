//! Chunks from worker to worker: one connection to each peer, opened when it is first needed.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ebbtide_array::CHUNK_BYTES_MAX;
use ebbtide_buffer::{Buffer, Pool};
use ebbtide_contract::tls::Current;
use ebbtide_core::{TaskId, WorkerId};
use rustls::{ClientConfig, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::Input;
use crate::frame::{self, FrameError};
use crate::link::{self, Link, Payload};
use crate::metered::{Metered, unless_silent};
use crate::store::{Held, Store};
use crate::wire::{Hello, PeerReply, PeerRequest, Welcome};

/// Peers that are served at once.
const CONNECTIONS_MAX: usize = 4096;

/// How long a peer that was asked may send nothing: twice what a worker may be silent before its
/// scheduler gives it up.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// Requests that one peer was sent and has not answered.
const ASKED_MAX: usize = 16;

/// The other workers, as far as the scheduler named them.
pub(super) struct Peers {
    config: Arc<Current<ClientConfig>>,
    pool: Pool,
    inputs: mpsc::Sender<Input>,
    epoch: Arc<AtomicU64>,
    addresses: BTreeMap<WorkerId, String>,
    queues: BTreeMap<WorkerId, mpsc::UnboundedSender<TaskId>>,
}

impl Peers {
    pub(super) fn new(
        config: Current<ClientConfig>,
        pool: Pool,
        inputs: mpsc::Sender<Input>,
        epoch: Arc<AtomicU64>,
    ) -> Self {
        Self {
            config: Arc::new(config),
            pool,
            inputs,
            epoch,
            addresses: BTreeMap::new(),
            queues: BTreeMap::new(),
        }
    }

    /// A new life of the scheduler: ids of the old one mean nothing any more.
    pub(super) fn enter(&mut self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
        self.addresses.clear();
        self.queues.clear();
    }

    pub(super) fn introduce(&mut self, peer: WorkerId, address: String) {
        self.addresses.insert(peer, address);
    }

    pub(super) fn fetch(&mut self, chunk: TaskId, holder: WorkerId) {
        let Some(address) = self.addresses.get(&holder).cloned() else {
            self.report(Input::FetchFailed(self.epoch(), chunk, holder));
            return;
        };
        let epoch = self.epoch();
        let queue = self.queues.entry(holder).or_insert_with(|| {
            let (queue, wanted) = mpsc::unbounded_channel();
            let peer = Peer {
                id: holder,
                address,
                config: Arc::clone(&self.config),
                pool: self.pool.clone(),
                inputs: self.inputs.clone(),
                epoch,
            };
            tokio::spawn(peer.serve(wanted));
            queue
        });
        // The task lives as long as its queue.
        let _: Result<(), _> = queue.send(chunk);
    }

    /// The scheduler's life in which ids mean something.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn report(&self, input: Input) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move { inputs.send(input).await });
    }
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("a peer sent nothing for {SILENCE_MAX:?}"))
}

struct Peer {
    id: WorkerId,
    address: String,
    config: Arc<Current<ClientConfig>>,
    pool: Pool,
    inputs: mpsc::Sender<Input>,
    epoch: u64,
}

impl Peer {
    /// Fetches what is wanted. What a broken connection leaves unanswered has failed; the next
    /// request opens a new one.
    async fn serve(self, mut wanted: mpsc::UnboundedReceiver<TaskId>) {
        while let Some(first) = wanted.recv().await {
            let mut asked = VecDeque::from([first]);
            if let Err(error) = self.session(&mut asked, &mut wanted).await {
                tracing::info!(%error, peer = self.address, "chunks cannot be fetched");
            }
            for chunk in asked {
                self.tell(Input::FetchFailed(self.epoch, chunk, self.id)).await;
            }
        }
    }

    async fn session(
        &self,
        asked: &mut VecDeque<TaskId>,
        wanted: &mut mpsc::UnboundedReceiver<TaskId>,
    ) -> Result<(), FrameError> {
        let stream = link::dial(slice::from_ref(&self.address)).await?;
        let Link { stream, .. } = link::connect(stream, self.config.get()).await?;
        let (reader, mut stream) = tokio::io::split(stream);
        let (mut reader, meter) = Metered::new(reader);
        link::write_first(&mut stream, &Hello::Peer { epoch: self.epoch }).await?;
        match link::read_first(&mut reader).await? {
            Welcome::Yes => {}
            Welcome::Refused(why) => return Err(FrameError::Stream(std::io::Error::other(why))),
            Welcome::Worker { .. } => return Err(FrameError::Stranger),
        }
        for chunk in &*asked {
            link::write_first(&mut stream, &PeerRequest { chunk: *chunk }).await?;
        }
        loop {
            while asked.len() < ASKED_MAX
                && let Ok(chunk) = wanted.try_recv()
            {
                asked.push_back(chunk);
                link::write_first(&mut stream, &PeerRequest { chunk }).await?;
            }
            let Some(chunk) = asked.front().copied() else {
                let Some(chunk) = wanted.recv().await else { return Ok(()) };
                asked.push_back(chunk);
                link::write_first(&mut stream, &PeerRequest { chunk }).await?;
                continue;
            };
            let reading = frame::read(&mut reader, &self.pool, CHUNK_BYTES_MAX);
            let read = unless_silent(reading, &meter, SILENCE_MAX).await;
            let (reply, payload) = read.ok_or_else(|| FrameError::Stream(silent()))??;
            asked.pop_front();
            self.tell(match reply {
                PeerReply::Chunk(it) if it == chunk => {
                    Input::Fetched(self.epoch, chunk, payload.unwrap_or_else(|| self.pool.take(0)))
                }
                PeerReply::Chunk(_) | PeerReply::NotHere(_) => {
                    Input::FetchFailed(self.epoch, chunk, self.id)
                }
            })
            .await;
        }
    }

    async fn tell(&self, input: Input) {
        // The engine is gone only when the process ends.
        let _: Result<(), _> = self.inputs.send(input).await;
    }
}

/// What this worker lends to its peers.
pub(super) struct Serving {
    pub(super) config: Current<ServerConfig>,
    pub(super) store: Store,
    pub(super) pool: Pool,
    pub(super) epoch: Arc<AtomicU64>,
}

impl Serving {
    pub(super) async fn open(self, listener: TcpListener) {
        let this = Arc::new(self);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a peer's connection cannot be accepted");
                    sleep(link::REFUSED_PAUSE).await;
                    continue;
                }
            };
            let this = Arc::clone(&this);
            tokio::spawn(async move {
                if let Err(error) = this.serve(stream).await {
                    tracing::debug!(%error, %from, "a peer's connection ended");
                }
                drop(place);
            });
        }
    }

    async fn serve(&self, stream: TcpStream) -> Result<(), FrameError> {
        link::prepare(&stream)?;
        let Link { mut stream, .. } = link::accept(stream, self.config.get()).await?;
        let hello: Hello = link::read_first(&mut stream).await?;
        let epoch = self.epoch.load(Ordering::Acquire);
        if !matches!(hello, Hello::Peer { epoch: theirs } if theirs == epoch) {
            let refused = Welcome::Refused(format!("this worker serves epoch {epoch}"));
            return link::write_first(&mut stream, &refused).await;
        }
        link::write_first(&mut stream, &Welcome::Yes).await?;
        let (outbox, mut reader) = link::split_off(stream);
        let no_payload = Pool::new(0);
        loop {
            let (request, _) = frame::read::<PeerRequest, _>(&mut reader, &no_payload, 0).await?;
            match self.read(request.chunk).await {
                Some(chunk) => {
                    outbox.send_with(&PeerReply::Chunk(request.chunk), Payload::Chunk(chunk));
                }
                None => outbox.send(&PeerReply::NotHere(request.chunk)),
            }
        }
    }

    /// A chunk's bytes. None when it is not here or cannot be read: who asked says so to
    /// the scheduler, which has it made again.
    async fn read(&self, chunk: TaskId) -> Option<Arc<Buffer>> {
        match self.store.get(chunk)? {
            Held::Memory(buffer) => Some(buffer),
            Held::Disk(extent) => {
                let pool = self.pool.clone();
                let read = spawn_blocking(move || extent.read(&pool)).await.ok()?;
                let read = read.map(Arc::new);
                read.inspect_err(|error| tracing::warn!(%error, %chunk, "a chunk is lost")).ok()
            }
        }
    }
}
