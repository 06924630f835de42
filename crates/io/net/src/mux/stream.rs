//! One stream as bytes in both directions.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::future::poll_fn;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::gate::Outbox;
use super::stops::{Stop, Stops};

/// A stream of a connection.
///
/// Dropping it ends it as dropping a socket does: the peer reads what was
/// written and then the end. Flushing waits until what was written has left.
pub(crate) struct MuxStream {
    /// Always there until it is dropped.
    live: Option<Live>,
}

struct Live {
    send: SendStream<Bytes>,
    receive: Receive,
    outbox: Outbox,
    /// The rest of a block that came and was not read.
    unread: Bytes,
    finished: bool,
    /// Where others may end it.
    stop: Option<Arc<Stop>>,
    /// Counts the connection's streams.
    _counted: Arc<()>,
}

enum Receive {
    /// We opened the stream; the peer's answer is on its way.
    Awaited(ResponseFuture),
    Open(RecvStream),
    Ended,
}

impl MuxStream {
    pub fn opened(
        send: SendStream<Bytes>,
        answer: ResponseFuture,
        outbox: Outbox,
        counted: Arc<()>,
    ) -> Self {
        Self::of(send, Receive::Awaited(answer), outbox, counted)
    }

    pub fn taken(
        send: SendStream<Bytes>,
        receive: RecvStream,
        outbox: Outbox,
        counted: Arc<()>,
    ) -> Self {
        Self::of(send, Receive::Open(receive), outbox, counted)
    }

    fn of(send: SendStream<Bytes>, receive: Receive, outbox: Outbox, counted: Arc<()>) -> Self {
        Self {
            live: Some(Live {
                send,
                receive,
                outbox,
                unread: Bytes::new(),
                finished: false,
                stop: None,
                _counted: counted,
            }),
        }
    }

    /// Takes some of `bytes` without copying them; they are held until they were
    /// written or the stream is over.
    pub fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let live = self.live();
        let (size, room) = ready!(live.poll_turn(cx, bytes.len()))?;
        let block = live.outbox.lent(bytes.split_to(size), room);
        live.send.send_data(block, false).map_err(broken)?;
        Poll::Ready(Ok(size))
    }

    /// Some of what has come, at most `most` bytes, without a copy; none at the
    /// stream's end.
    pub fn poll_bytes(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<Bytes>> {
        let live = self.live();
        match live.poll_came(cx) {
            Poll::Ready(came) => came?,
            // What has come is read before the stream ends.
            Poll::Pending => return live.check_read(cx).map_ok(|()| Bytes::new()),
        }
        let size = live.unread.len().min(most);
        let bytes = live.unread.split_to(size);
        live.taken(size)?;
        Poll::Ready(Ok(bytes))
    }

    /// Ends with all others that `stops` ends.
    pub fn stop_with(&mut self, stops: &Stops) {
        self.live().stop = Some(stops.add());
    }

    /// Ends it: this end takes no such stream now.
    pub fn refuse(mut self) {
        if let Some(mut live) = self.live.take() {
            live.send.send_reset(Reason::REFUSED_STREAM);
        }
    }

    fn live(&mut self) -> &mut Live {
        self.live.as_mut().expect("it is only taken when dropped")
    }
}

impl Live {
    /// How many of `wanted` bytes the peer lets us send and the gate takes, with
    /// the room for them.
    fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<io::Result<(usize, super::gate::Room)>> {
        if self.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.check_write(cx)?;
        loop {
            let wanted = wanted.min(self.outbox.block);
            self.send.reserve_capacity(wanted);
            // The peer's window first: room that is held while the peer reads
            // nothing would keep the other streams waiting.
            while self.send.capacity() == 0 {
                match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                }
            }
            let size = self.send.capacity().min(wanted);
            let room = ready!(self.outbox.poll_room(cx, size))?;
            // While we queued the peer may have taken window back.
            let size = self.send.capacity().min(size).min(room.bytes());
            if size > 0 {
                return Poll::Ready(Ok((size, room)));
            }
        }
    }

    /// Fails, and resets the stream, once it was stopped.
    fn check_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match &self.stop {
            Some(stop) if stop.poll_write(cx) => Err(self.stopped()),
            _ => Ok(()),
        }
    }

    fn stopped(&mut self) -> io::Error {
        self.finished = true;
        self.send.send_reset(Reason::CANCEL);
        io::Error::new(io::ErrorKind::ConnectionAborted, "its scope was closed")
    }

    fn hand_over(&mut self, block: Vec<u8>, room: super::gate::Room) -> io::Result<usize> {
        let size = block.len();
        let block = self.outbox.block(block, room);
        self.send.send_data(block, false).map_err(broken)?;
        Ok(size)
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.live().poll_next(cx, into) {
            // What has come is read before the stream ends.
            Poll::Pending => self.live().check_read(cx),
            ready => ready,
        }
    }
}

impl Live {
    fn check_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.stop {
            Some(stop) if stop.poll_read(cx) => Poll::Ready(Err(self.stopped())),
            _ => Poll::Pending,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_came(cx))?;
        let size = self.unread.len().min(into.remaining());
        let (taken, _) = self.unread.split_at(size);
        into.put_slice(taken);
        self.unread.advance(size);
        Poll::Ready(self.taken(size))
    }

    /// Bytes were read: only now may the peer send as many again.
    fn taken(&mut self, size: usize) -> io::Result<()> {
        match &mut self.receive {
            Receive::Open(receive) if size > 0 => {
                receive.flow_control().release_capacity(size).map_err(lost)
            }
            _ => Ok(()),
        }
    }

    /// Waits until there is something unread, or the stream's end.
    fn poll_came(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let live = self;
        while live.unread.is_empty() {
            match &mut live.receive {
                Receive::Awaited(answer) => {
                    let answer = ready!(Pin::new(answer).poll(cx));
                    live.receive = match answer {
                        Ok(answer) if answer.status() == http::StatusCode::OK => {
                            Receive::Open(answer.into_body())
                        }
                        Ok(_) => {
                            return Poll::Ready(Err(io::Error::new(
                                io::ErrorKind::ConnectionRefused,
                                "the peer takes no such stream",
                            )));
                        }
                        Err(error) => match end_or_error(error) {
                            None => Receive::Ended,
                            Some(error) => return Poll::Ready(Err(error)),
                        },
                    };
                }
                Receive::Open(receive) => match ready!(receive.poll_data(cx)) {
                    Some(Ok(data)) => live.unread = data,
                    Some(Err(error)) => match end_or_error(error) {
                        None => live.receive = Receive::Ended,
                        Some(error) => return Poll::Ready(Err(error)),
                    },
                    None => live.receive = Receive::Ended,
                },
                Receive::Ended => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let (size, room) = ready!(self.live().poll_turn(cx, bytes.len()))?;
        let (taken, _) = bytes.split_at(size);
        let live = self.live();
        let mut block = live.outbox.buffer(size);
        block.extend_from_slice(taken);
        Poll::Ready(live.hand_over(block, room))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = slices.iter().map(|slice| slice.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let (size, room) = ready!(self.live().poll_turn(cx, wanted))?;
        let mut block = self.live().outbox.buffer(size);
        for slice in slices {
            let (taken, _) = slice.split_at(slice.len().min(size - block.len()));
            block.extend_from_slice(taken);
        }
        Poll::Ready(self.live().hand_over(block, room))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let live = self.live();
        if live.outbox.poll_empty(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        // A stream that was stopped is never written.
        live.check_write(cx)?;
        Poll::Pending
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.live().finish();
        self.poll_flush(cx)
    }
}

impl Live {
    fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            // A stream that is over already needs no end.
            let _ = self.send.send_data(Bytes::new(), true);
        }
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        let Some(mut live) = self.live.take() else {
            return;
        };
        let mut context = Context::from_waker(std::task::Waker::noop());
        if live.outbox.poll_empty(&mut context).is_ready() {
            return;
        }
        // `h2` throws away what a dropped stream has not written yet, so it is
        // kept until then. The peer's window is there already, so that ends soon.
        live.finish();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                poll_fn(|cx| live.outbox.poll_empty(cx)).await;
                // All of it lives until here.
                drop(live);
            });
        }
    }
}

/// The end of a direction, or what else became of it. A peer that has dropped
/// its stream resets it after its last byte; that is an end, as with a socket.
fn end_or_error(error: h2::Error) -> Option<io::Error> {
    match error.reason() {
        Some(Reason::CANCEL | Reason::NO_ERROR) if error.is_reset() => None,
        _ => Some(lost(error)),
    }
}

/// Why nothing more can be written.
fn broken(error: h2::Error) -> io::Error {
    match error.reason() {
        Some(Reason::CANCEL | Reason::NO_ERROR) if error.is_reset() => {
            io::Error::new(io::ErrorKind::BrokenPipe, "the peer has closed this stream")
        }
        _ => lost(error),
    }
}

fn lost(error: h2::Error) -> io::Error {
    if error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM) {
        return io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "the peer takes no more streams now",
        );
    }
    if error.is_io() {
        let kind = error.get_io().map_or(io::ErrorKind::Other, io::Error::kind);
        return match error.into_io() {
            Some(error) => error,
            None => kind.into(),
        };
    }
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}
