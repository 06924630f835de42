//! The bytes of a connection as binary messages of a WebSocket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use firesteel_base::limits;
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// Where it is.
pub(crate) const PATH: &str = "/v1/link";

/// How much of what is kept and taken.
pub(crate) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(limits::LINK_MESSAGE)
        // Messages are long already; and what is written last, such as a refusal,
        // must not stay here.
        .write_buffer_size(0)
        .max_write_buffer_size(limits::LINK_MESSAGE * 4)
        .max_message_size(Some(limits::LINK_MESSAGE_TAKEN))
        .max_frame_size(Some(limits::LINK_MESSAGE_TAKEN))
}

/// The byte stream over a WebSocket.
pub(crate) struct WsStream<S> {
    messages: WebSocketStream<S>,
    unread: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WsStream<S> {
    pub fn new(messages: WebSocketStream<S>) -> Self {
        Self {
            messages,
            unread: Bytes::new(),
        }
    }

    /// The accepting end, on a connection that has become one.
    pub async fn accepted(stream: S) -> Self {
        let messages = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config())).await;
        Self::new(messages)
    }
}

fn failed(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.unread.is_empty() {
                let size = self.unread.len().min(into.remaining());
                into.put_slice(&self.unread.split_to(size));
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut self.messages).poll_next(cx)) {
                Some(Ok(Message::Binary(data))) => self.unread = data,
                // Pings are answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "not a message of Firesteel's WebSocket link: it is text",
                    )));
                }
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WsStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let size: usize = slices.iter().map(|slice| slice.len()).sum();
        if size == 0 {
            return Poll::Ready(Ok(0));
        }
        let size = size.min(limits::LINK_MESSAGE);
        ready!(Pin::new(&mut self.messages).poll_ready(cx)).map_err(failed)?;
        let mut data = Vec::with_capacity(size);
        for slice in slices {
            let (taken, _) = slice.split_at(slice.len().min(size - data.len()));
            data.extend_from_slice(taken);
        }
        let message = Message::Binary(data.into());
        Pin::new(&mut self.messages)
            .start_send(message)
            .map_err(failed)?;
        Poll::Ready(Ok(size))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.messages).poll_flush(cx).map_err(failed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.messages).poll_close(cx).map_err(failed)
    }
}
