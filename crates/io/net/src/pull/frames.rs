//! Frames of a transfer on a stream.

use std::io;
use std::time::Duration;

use firesteel_transfer::frame::HEAD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Reads heads; what was read of one is kept when the future is dropped.
#[derive(Default)]
pub(super) struct HeadReader {
    bytes: [u8; HEAD],
    filled: usize,
}

impl HeadReader {
    /// The next head's bytes; `None` when the stream ended before it.
    pub(super) async fn next(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin + ?Sized),
    ) -> io::Result<Option<[u8; HEAD]>> {
        while let Some(rest) = self.bytes.get_mut(self.filled..).filter(|r| !r.is_empty()) {
            let read = stream.read(rest).await?;
            if read == 0 {
                return match self.filled {
                    0 => Ok(None),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            self.filled += read;
        }
        self.filled = 0;
        Ok(Some(self.bytes))
    }
}

/// Writes all of `bytes`; an error of kind `TimedOut` when the peer takes none of
/// them for `idle`.
pub(super) async fn write_all(
    stream: &mut (impl AsyncWrite + Unpin + ?Sized),
    mut bytes: &[u8],
    idle: Duration,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = tokio::time::timeout(idle, stream.write(bytes)).await??;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Hands what was written to the connection.
pub(super) async fn flush(
    stream: &mut (impl AsyncWrite + Unpin + ?Sized),
    idle: Duration,
) -> io::Result<()> {
    tokio::time::timeout(idle, stream.flush()).await?
}
