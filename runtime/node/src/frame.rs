//! Frames on a byte stream: a small header in postcard and a payload of raw bytes with a checksum.
//!
//! Each side starts with eight bytes, `EBBT` and the version, so that a peer of another version is
//! refused in words. A frame is: length of the header (u32), length of the payload (u64), XXH3 of
//! the payload (u64), header, payload; all integers are little-endian.

use std::io::{self, IoSlice};

use ebbtide_buffer::{Buffer, Pool};
use rustls::AlertDescription;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use xxhash_rust::xxh3::xxh3_64;

/// Version of everything that follows the greeting.
pub(crate) const VERSION: u32 = 4;

/// Largest graph that a client may send.
pub(crate) const GRAPH_BYTES_MAX: u64 = 256 << 20;

/// Longest header: a program with everything that a graph may give to it.
const HEADER_BYTES_MAX: u64 = GRAPH_BYTES_MAX + (64 << 20);

/// Longest header of a handshake: names, an address and a token.
const SHORT_BYTES_MAX: u64 = 64 << 10;

const MAGIC: [u8; 4] = *b"EBBT";
const PREFIX_BYTES: usize = 4 + 8 + 8;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended or broke.
    #[error("the connection broke: {0}")]
    Stream(io::Error),
    /// The peer does not take this side's certificate.
    #[error(
        "the certificate is refused ({0:?}): it is not one of this cluster's for this role, or it \
         has expired"
    )]
    Refused(AlertDescription),
    /// The peer speaks something else.
    #[error("the peer does not speak ebbtide's protocol")]
    Stranger,
    /// The peer is of another version.
    #[error(
        "the peer speaks version {0} of the protocol, this side version {VERSION}; \
         install the same version of ebbtide on both"
    )]
    Version(u32),
    /// A length that no frame has.
    #[error("a frame with a {part} of {bytes} bytes; at most {max} are taken")]
    TooLong {
        /// Header or payload.
        part: &'static str,
        /// The length.
        bytes: u64,
        /// The longest that is taken.
        max: u64,
    },
    /// The payload changed on its way.
    #[error("a payload of {0} bytes does not have its checksum")]
    Checksum(usize),
    /// The header is not a message of this version.
    #[error("a header that is no message: {0}")]
    Header(#[from] postcard::Error),
}

impl FrameError {
    /// Whether the other side only went away.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::Stream(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        let alert = match error.get_ref().and_then(|it| it.downcast_ref()) {
            Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
            _ => None,
        };
        // The alerts that are about certificates (RFC 8446, 6.2).
        match alert {
            Some(
                alert @ (AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError
                | AlertDescription::CertificateRequired),
            ) => Self::Refused(alert),
            _ => Self::Stream(error),
        }
    }
}

/// A frame to be sent.
#[derive(Debug)]
pub(crate) struct Frame<P> {
    header: Vec<u8>,
    payload: Option<P>,
}

impl<P: AsRef<[u8]>> Frame<P> {
    pub(crate) fn message(message: &impl Serialize) -> Self {
        let header = postcard::to_stdvec(message).expect("messages are plain data");
        Self { header, payload: None }
    }

    pub(crate) fn with_payload(message: &impl Serialize, payload: P) -> Self {
        Self { payload: Some(payload), ..Self::message(message) }
    }

    fn payload(&self) -> &[u8] {
        self.payload.as_ref().map_or(&[], AsRef::as_ref)
    }
}

/// Sends the greeting and checks the peer's.
pub(crate) async fn greet<S>(stream: &mut S) -> Result<(), FrameError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut greeting = [0; 8];
    greeting[..4].copy_from_slice(&MAGIC);
    greeting[4..].copy_from_slice(&VERSION.to_le_bytes());
    stream.write_all(&greeting).await?;
    stream.flush().await?;
    let mut theirs = [0; 8];
    stream.read_exact(&mut theirs).await?;
    let (magic, version) = theirs.split_at(4);
    if magic != MAGIC {
        return Err(FrameError::Stranger);
    }
    match u32::from_le_bytes(version.try_into().expect("half of eight bytes")) {
        VERSION => Ok(()),
        other => Err(FrameError::Version(other)),
    }
}

/// Reads a frame without a payload whose header is short, from a peer that may be anybody.
pub(crate) async fn read_short<M, R>(stream: &mut R) -> Result<M, FrameError>
where
    M: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    let (message, _) = read_up_to(stream, &Pool::new(0), (SHORT_BYTES_MAX, 0)).await?;
    Ok(message)
}

/// Reads a frame. An empty payload is no payload.
pub(crate) async fn read<M, R>(
    stream: &mut R,
    pool: &Pool,
    payload_bytes_max: u64,
) -> Result<(M, Option<Buffer>), FrameError>
where
    M: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    read_up_to(stream, pool, (HEADER_BYTES_MAX, payload_bytes_max)).await
}

async fn read_up_to<M, R>(
    stream: &mut R,
    pool: &Pool,
    (header_bytes_max, payload_bytes_max): (u64, u64),
) -> Result<(M, Option<Buffer>), FrameError>
where
    M: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    let mut prefix = [0; PREFIX_BYTES];
    stream.read_exact(&mut prefix).await?;
    let number = |from: usize| -> u64 {
        u64::from_le_bytes(prefix[from..from + 8].try_into().expect("eight bytes"))
    };
    let header = u32::from_le_bytes(prefix[..4].try_into().expect("four bytes"));
    let header = checked("header", u64::from(header), header_bytes_max)?;
    let (payload, checksum) = (checked("payload", number(4), payload_bytes_max)?, number(12));
    let header = read_header(stream, header).await?;
    let message = postcard::from_bytes(&header)?;
    if payload == 0 {
        return Ok((message, None));
    }
    let mut buffer = pool.take(payload);
    stream.read_exact(&mut buffer).await?;
    if xxh3_64(&buffer) != checksum {
        return Err(FrameError::Checksum(payload));
    }
    Ok((message, Some(buffer)))
}

/// Takes memory as the bytes come, whatever length was announced.
async fn read_header<R: AsyncRead + Unpin>(
    stream: &mut R,
    length: usize,
) -> Result<Vec<u8>, FrameError> {
    let mut header = Vec::new();
    let read = stream.take(length as u64).read_to_end(&mut header).await?;
    if read < length {
        Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
    } else {
        Ok(header)
    }
}

fn checked(part: &'static str, bytes: u64, max: u64) -> Result<usize, FrameError> {
    match usize::try_from(bytes) {
        Ok(length) if bytes <= max => Ok(length),
        _ => Err(FrameError::TooLong { part, bytes, max }),
    }
}

/// Writes a frame without copying its payload. The caller flushes.
pub(crate) async fn write<P, W>(stream: &mut W, frame: &Frame<P>) -> Result<(), FrameError>
where
    P: AsRef<[u8]>,
    W: AsyncWrite + Unpin,
{
    let payload = frame.payload();
    let mut head = Vec::with_capacity(PREFIX_BYTES + frame.header.len());
    let header = u32::try_from(frame.header.len()).unwrap_or(u32::MAX);
    checked("header", u64::from(header), HEADER_BYTES_MAX)?;
    head.extend_from_slice(&header.to_le_bytes());
    head.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    head.extend_from_slice(&xxh3_64(payload).to_le_bytes());
    head.extend_from_slice(&frame.header);
    if payload.is_empty() {
        return Ok(stream.write_all(&head).await?);
    }
    let mut written = 0;
    while written < head.len() {
        let slices = [IoSlice::new(&head[written..]), IoSlice::new(payload)];
        written += stream.write_vectored(&slices).await?;
    }
    Ok(stream.write_all(&payload[written - head.len()..]).await?)
}

#[cfg(test)]
mod tests {
    use ebbtide_buffer::Pool;
    use tokio::io::AsyncWriteExt as _;

    use super::{Frame, FrameError, greet, read, write};

    async fn sent(frame: &Frame<Vec<u8>>) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, frame).await.unwrap();
        bytes
    }

    async fn received(bytes: &[u8], max: u64) -> Result<(String, Option<Vec<u8>>), FrameError> {
        let mut bytes = bytes;
        let (message, payload) = read::<String, _>(&mut bytes, &Pool::new(0), max).await?;
        Ok((message, payload.map(|payload| payload.to_vec())))
    }

    #[tokio::test]
    async fn a_frame_arrives_as_it_was_sent() {
        let frame = Frame::with_payload(&"hello", vec![7; 100_000]);
        let (message, payload) = received(&sent(&frame).await, 100_000).await.unwrap();
        assert_eq!((message.as_str(), payload), ("hello", Some(vec![7; 100_000])));
    }

    #[tokio::test]
    async fn every_frame_cut_short_is_an_error_and_no_panic() {
        let bytes = sent(&Frame::with_payload(&"hello", vec![7; 10])).await;
        for length in 0..bytes.len() {
            let cut = received(&bytes[..length], 100).await;
            assert!(matches!(cut, Err(FrameError::Stream(_))), "{length}: {cut:?}");
        }
    }

    #[tokio::test]
    async fn a_changed_payload_is_noticed() {
        let mut bytes = sent(&Frame::with_payload(&"hello", vec![7; 10])).await;
        *bytes.last_mut().unwrap() ^= 1;
        assert!(matches!(received(&bytes, 100).await, Err(FrameError::Checksum(10))));
    }

    #[tokio::test]
    async fn a_length_beyond_the_limit_is_refused_before_memory_is_taken() {
        let bytes = sent(&Frame::with_payload(&"hello", vec![7; 10])).await;
        assert!(matches!(received(&bytes, 9).await, Err(FrameError::TooLong { .. })));
        let header = [&u32::MAX.to_le_bytes()[..], &[0; 16]].concat();
        assert!(matches!(received(&header, 9).await, Err(FrameError::TooLong { .. })));
    }

    #[tokio::test]
    async fn strangers_and_other_versions_are_refused_in_words() {
        for (greeting, words) in
            [(*b"GET / HT", "does not speak"), (*b"EBBT\x09\0\0\0", "version 9")]
        {
            let (mut ours, mut theirs) = tokio::io::duplex(64);
            theirs.write_all(&greeting).await.unwrap();
            let refused = greet(&mut ours).await.unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
        }
    }
}
