//! One connection after its handshake: a task that writes what is queued, and how to accept and
//! dial. Knows frames and identities, not what they say.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ebbtide_buffer::Buffer;
use ebbtide_contract::identity::Identity;
use ebbtide_contract::tls;
use rustix::net::sockopt;
use rustls::{ClientConfig, ServerConfig};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufWriter, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{interval, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::frame::{self, Frame, FrameError};

/// Wait after a connection could not be accepted.
pub(crate) const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may take to open before another one is tried beside it.
const DIAL_INTERVAL: Duration = Duration::from_millis(100);

/// Connections that one dial may have on their way; the oldest is given up for a new one.
const DIALS_MAX: usize = 32;

/// How long a peer may take for TLS and the greeting.
pub(crate) const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long a peer's machine may answer nothing before its connections count as broken.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Bytes that are gathered before they are written: one TLS record holds 16 KiB.
const WRITE_BUFFER_BYTES: usize = 64 << 10;

/// What a frame carries.
#[derive(Debug)]
pub(crate) enum Payload {
    Chunk(Arc<Buffer>),
    Bytes(Vec<u8>),
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Chunk(buffer) => buffer,
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// Where frames are put to be sent. What is put after the connection broke goes nowhere: its
/// reader is the one who notices.
#[derive(Clone, Debug)]
pub(crate) struct Outbox(mpsc::UnboundedSender<Outgoing>);

struct Outgoing {
    frame: Frame<Payload>,
    written: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.frame.fmt(f)
    }
}

impl Outbox {
    pub(crate) fn send(&self, message: &impl Serialize) {
        self.put(Frame::message(message), None);
    }

    pub(crate) fn send_with(&self, message: &impl Serialize, payload: Payload) {
        self.put(Frame::with_payload(message, payload), None);
    }

    /// Calls `written` once the frame left this process.
    pub(crate) fn send_and(
        &self,
        message: &impl Serialize,
        payload: Payload,
        written: impl FnOnce() + Send + 'static,
    ) {
        self.put(Frame::with_payload(message, payload), Some(Box::new(written)));
    }

    fn put(&self, frame: Frame<Payload>, written: Option<Box<dyn FnOnce() + Send>>) {
        let _: Result<(), _> = self.0.send(Outgoing { frame, written });
    }
}

/// An encrypted connection whose peer is known.
pub(crate) struct Link<S> {
    pub(crate) stream: S,
    pub(crate) peer: Identity,
}

/// A stream of any kind that TLS runs over.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Accepts TLS and the greeting.
pub(crate) async fn accept<S: Stream>(
    stream: S,
    config: Arc<ServerConfig>,
) -> Result<Link<tokio_rustls::server::TlsStream<S>>, FrameError> {
    in_time(async {
        let mut stream = TlsAcceptor::from(config).accept(stream).await?;
        let peer = identity(stream.get_ref().1.peer_certificates())?;
        frame::greet(&mut stream).await?;
        Ok(Link { stream, peer })
    })
    .await
}

/// Dials TLS and the greeting over an open stream.
pub(crate) async fn connect<S: Stream>(
    stream: S,
    config: Arc<ClientConfig>,
) -> Result<Link<tokio_rustls::client::TlsStream<S>>, FrameError> {
    in_time(async {
        let mut stream = TlsConnector::from(config).connect(tls::any_name(), stream).await?;
        let peer = identity(stream.get_ref().1.peer_certificates())?;
        frame::greet(&mut stream).await?;
        Ok(Link { stream, peer })
    })
    .await
}

/// Opens a TCP connection that sends small frames at once to one of these addresses.
pub(crate) async fn dial(addresses: &[String]) -> Result<TcpStream, FrameError> {
    let connected = timeout(HANDSHAKE_MAX, connect_eagerly(addresses)).await;
    let stream = connected.unwrap_or_else(|_| Err(late("no connection", HANDSHAKE_MAX)))?;
    prepare(&stream)?;
    Ok(stream)
}

/// Begins once more at each address every [`DIAL_INTERVAL`], and takes the connection that opens
/// first. In a network that is being set up, a connection that began too early may never open: it
/// keeps the way that it had at its first packet, and TCP repeats that only after a second (RFC
/// 6298, 2.1).
async fn connect_eagerly(addresses: &[String]) -> io::Result<TcpStream> {
    let (mut tries, mut starts) = (JoinSet::new(), interval(DIAL_INTERVAL));
    let mut begun = VecDeque::new();
    loop {
        tokio::select! {
            _ = starts.tick() => for address in addresses {
                begun.push_back(tries.spawn(TcpStream::connect(address.clone())));
                if begun.len() > DIALS_MAX && let Some(oldest) = begun.pop_front() {
                    oldest.abort();
                }
            },
            Some(ended) = tries.join_next() => match ended {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) if tries.is_empty() => return Err(error),
                Err(error) if !error.is_cancelled() => return Err(io::Error::other(error)),
                Ok(Err(_)) | Err(_) => {}
            },
        }
    }
}

/// Sends small frames at once, and notices within [`SILENCE_MAX`] that the other side is gone.
pub(crate) fn prepare(stream: &TcpStream) -> Result<(), FrameError> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true).map_err(io::Error::from)?;
    sockopt::set_tcp_keepidle(stream, SILENCE_MAX / 3).map_err(io::Error::from)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE_MAX / 3).map_err(io::Error::from)?;
    sockopt::set_tcp_keepcnt(stream, 2).map_err(io::Error::from)?;
    let milliseconds = u32::try_from(SILENCE_MAX.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, milliseconds).map_err(io::Error::from)?;
    Ok(())
}

async fn in_time<T>(work: impl Future<Output = Result<T, FrameError>>) -> Result<T, FrameError> {
    let ended = timeout(HANDSHAKE_MAX, work).await;
    ended.unwrap_or_else(|_| Err(late("no handshake", HANDSHAKE_MAX).into()))
}

fn late(what: &str, wait: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} within {wait:?}"))
}

fn identity(
    certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>,
) -> Result<Identity, FrameError> {
    let certificate = certificates.and_then(<[_]>::first);
    certificate
        .and_then(|certificate| Identity::of_certificate(certificate).ok())
        .ok_or(FrameError::Stranger)
}

/// Splits a connection: an outbox whose frames are written by a task of their own, and the half
/// to read from.
pub(crate) fn split_off<S: Stream + 'static>(stream: S) -> (Outbox, ReadHalf<S>) {
    let (reader, writer) = split(stream);
    let (sender, outgoing) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut writer = BufWriter::with_capacity(WRITE_BUFFER_BYTES, writer);
        if let Err(error) = write_all(&mut writer, outgoing).await {
            tracing::warn!(%error, "a connection can no longer be written");
        }
        // The other side closes its half too, and our reader notices.
        if let Err(error) = writer.get_mut().shutdown().await {
            tracing::debug!(%error, "a connection was closed already");
        }
    });
    (Outbox(sender), reader)
}

async fn write_all<S: Stream>(
    writer: &mut BufWriter<WriteHalf<S>>,
    mut outgoing: mpsc::UnboundedReceiver<Outgoing>,
) -> Result<(), FrameError> {
    let mut written = Vec::new();
    while let Some(first) = outgoing.recv().await {
        // Whatever else is about to be sent goes with it.
        yield_now().await;
        let mut next = Some(first);
        while let Some(Outgoing { frame, written: then }) = next {
            frame::write(writer, &frame).await?;
            written.extend(then);
            next = outgoing.try_recv().ok();
        }
        writer.flush().await?;
        for then in written.drain(..) {
            then();
        }
    }
    Ok(())
}

/// Reads one frame of a handshake.
pub(crate) async fn read_first<M, S>(stream: &mut S) -> Result<M, FrameError>
where
    M: serde::de::DeserializeOwned,
    S: AsyncRead + Unpin,
{
    in_time(frame::read_short(stream)).await
}

/// Writes one frame of a handshake.
pub(crate) async fn write_first<S>(
    stream: &mut S,
    message: &impl Serialize,
) -> Result<(), FrameError>
where
    S: AsyncWrite + Unpin,
{
    frame::write(stream, &Frame::<Payload>::message(message)).await?;
    Ok(stream.flush().await?)
}
