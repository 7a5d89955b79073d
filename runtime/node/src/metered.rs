//! A reader that counts bytes as they come: a long frame on its way is a sign of life.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, sleep};

/// Bytes that came since somebody last looked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter(Arc<AtomicU64>);

/// Counts what is read.
#[derive(Debug)]
pub(crate) struct Metered<R> {
    reader: R,
    meter: Meter,
}

impl Meter {
    /// Whether bytes came since this was last asked.
    pub(crate) fn moved(&self) -> bool {
        self.0.swap(0, Ordering::Relaxed) > 0
    }
}

impl<R> Metered<R> {
    pub(crate) fn new(reader: R) -> (Self, Meter) {
        let meter = Meter::default();
        (Self { reader, meter: meter.clone() }, meter)
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Metered<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.reader).poll_read(context, buffer);
        let bytes = buffer.filled().len() - before;
        self.meter.0.fetch_add(bytes as u64, Ordering::Relaxed);
        read
    }
}

/// Waits for what is being read, as long as something comes: none after a pause of `silence`.
pub(crate) async fn unless_silent<T>(
    reading: impl Future<Output = T>,
    meter: &Meter,
    silence: Duration,
) -> Option<T> {
    tokio::pin!(reading);
    // What came before nobody waited for it says nothing.
    meter.moved();
    let mut look_at = Instant::now() + silence;
    loop {
        tokio::select! {
            read = &mut reading => return Some(read),
            () = sleep(look_at.saturating_duration_since(Instant::now())) => {
                if !meter.moved() {
                    return None;
                }
                look_at = Instant::now() + silence;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{Instant, sleep};

    use super::{Metered, unless_silent};

    #[tokio::test(start_paused = true)]
    async fn what_comes_slowly_is_waited_for_and_what_stops_is_not() {
        let (mut ours, theirs) = tokio::io::duplex(64);
        let (mut reader, meter) = Metered::new(theirs);
        let (pause, silence) = (Duration::from_secs(5), Duration::from_secs(10));
        let sending = tokio::spawn(async move {
            for _ in 0..10 {
                sleep(pause).await;
                ours.write_all(b"x").await.unwrap();
            }
            ours
        });
        let mut ten = [0; 10];
        let read = unless_silent(reader.read_exact(&mut ten), &meter, silence).await;
        assert_eq!(read.unwrap().unwrap(), 10);
        let _open = sending.await.unwrap();
        let start = Instant::now();
        assert!(unless_silent(reader.read_u8(), &meter, silence).await.is_none());
        assert_eq!(start.elapsed(), silence);
    }
}
