//! The two directions of a stream, for two futures of one task.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::mux::MuxStream;
use crate::{BoxStream, Stream};

/// A stream whose directions are used side by side.
pub(super) struct Halves(Mutex<BoxStream>);

impl Halves {
    pub(super) fn new(stream: BoxStream) -> Self {
        Self(Mutex::new(stream))
    }

    fn stream(&self) -> MutexGuard<'_, BoxStream> {
        // Held for one poll at a time; a stream whose poll panicked is the
        // stream's own affair.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the stream some of `bytes`: without a copy, if it can take them so.
    pub(super) fn poll_give(
        &self,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<io::Result<usize>> {
        let mut guard = self.stream();
        let stream: &mut dyn Stream = &mut **guard;
        if let Some(stream) = stream.as_any().downcast_mut::<MuxStream>() {
            return stream.poll_take(cx, bytes);
        }
        Pin::new(stream).poll_write(cx, bytes).map_ok(|written| {
            bytes.advance(written);
            written
        })
    }
}

impl AsyncRead for &Halves {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.stream()).poll_read(cx, into)
    }
}

impl AsyncWrite for &Halves {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.stream()).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.stream()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.stream()).poll_shutdown(cx)
    }
}
