//! Lines of JSON over a connection, each of a bounded length.

use std::io;
use std::time::Duration;

use ebbtide_contract::demand::{Down, LINE_BYTES_MAX, Up};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
};
use tokio::time::timeout;

use crate::refused;

/// How long a scheduler may take to read an order.
const SAY_MAX: Duration = Duration::from_secs(10);

/// Tells a scheduler what to do.
pub(crate) async fn say<W: AsyncWrite + Unpin>(writer: &mut W, order: &Down) -> io::Result<()> {
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    timeout(SAY_MAX, async {
        writer.write_all(&line).await?;
        writer.flush().await
    })
    .await?
}

/// What a scheduler says, line by line.
pub(crate) struct Lines<R> {
    reader: R,
    /// What was read of a line when the caller stopped waiting.
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, line: Vec::new() }
    }

    /// The next line, or none at the end.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Up>> {
        let line = &mut self.line;
        let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
        (&mut self.reader).take(room as u64).read_until(b'\n', line).await?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.last() != Some(&b'\n') {
            let bytes = line.len();
            return Err(refused("line", format!("a line of {bytes} bytes is cut off or too long")));
        }
        let up = serde_json::from_slice(line).map_err(|error| refused("line", error))?;
        line.clear();
        Ok(Some(up))
    }
}
