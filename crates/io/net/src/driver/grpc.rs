//! The bytes of a connection as messages of a gRPC call.
//!
//! `POST /firesteel.v1.Link/Connect`, a stream of `message Data { bytes data = 1; }`
//! in both directions.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use firesteel_base::limits;
use http::{HeaderMap, HeaderValue};
use hyper::body::{Body, Frame, Incoming};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

/// Where the call goes.
pub(crate) const PATH: &str = "/firesteel.v1.Link/Connect";
/// What its bodies are.
pub(crate) const CONTENT_TYPE: &str = "application/grpc";

/// Messages between whoever writes and HTTP/2: one in hand, one behind it.
const QUEUE: usize = 2;

/// What goes out: the body of a request or of its answer.
pub(crate) struct Outgoing {
    messages: mpsc::Receiver<Bytes>,
    /// An answer ends with how the call went.
    answer: bool,
    ended: bool,
}

/// The byte stream over a call.
pub(crate) struct GrpcStream {
    incoming: Incoming,
    decoder: Decoder,
    /// Of the frame that came last.
    undecoded: Bytes,
    unread: Bytes,
    outgoing: PollSender<Bytes>,
}

/// The way out for one end, to be sent along with a request or an answer, and
/// what makes the stream once the other direction is there.
pub(crate) fn outgoing(answer: bool) -> (Outgoing, mpsc::Sender<Bytes>) {
    let (sender, messages) = mpsc::channel(QUEUE);
    let outgoing = Outgoing {
        messages,
        answer,
        ended: false,
    };
    (outgoing, sender)
}

impl GrpcStream {
    pub fn new(incoming: Incoming, outgoing: mpsc::Sender<Bytes>) -> Self {
        Self {
            incoming,
            decoder: Decoder::default(),
            undecoded: Bytes::new(),
            unread: Bytes::new(),
            outgoing: PollSender::new(outgoing),
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.messages.poll_recv(cx)) {
            Some(message) => Some(Ok(Frame::data(message))),
            None => {
                self.ended = true;
                self.answer.then(|| {
                    let status = HeaderValue::from_static("0");
                    let mut trailers = HeaderMap::with_capacity(1);
                    trailers.insert("grpc-status", status);
                    Ok(Frame::trailers(trailers))
                })
            }
        })
    }
}

impl AsyncRead for GrpcStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.unread.is_empty() {
                let size = this.unread.len().min(into.remaining());
                into.put_slice(&this.unread.split_to(size));
                return Poll::Ready(Ok(()));
            }
            if !this.undecoded.is_empty() {
                this.unread = this.decoder.next(&mut this.undecoded)?;
                continue;
            }
            match ready!(Pin::new(&mut this.incoming).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        this.undecoded = data;
                    }
                }
                Some(Err(error)) => return Poll::Ready(Err(aborted(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncWrite for GrpcStream {
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
        ready!(self.outgoing.poll_reserve(cx)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        let message = encode(slices, size);
        self.outgoing
            .send_item(message)
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Poll::Ready(Ok(size))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // HTTP/2's own task sends whatever is in the queue.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}

pub(super) fn aborted(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}

/// Bytes of a message's head: whether it is compressed, and its length.
const HEAD: usize = 5;
/// Field 1, of bytes.
const DATA: u8 = 0x0a;

/// An empty message.
pub(crate) fn nothing() -> Bytes {
    Bytes::from_static(&[0; HEAD])
}

/// A message of the first `size` bytes.
fn encode(slices: &[IoSlice<'_>], size: usize) -> Bytes {
    let mut length = [0_u8; 5];
    let mut digits = 0;
    let mut rest = size;
    for digit in &mut length {
        let more = rest >= 0x80;
        *digit = u8::try_from(rest & 0x7f).unwrap_or(0) | if more { 0x80 } else { 0 };
        digits += 1;
        rest >>= 7;
        if !more {
            break;
        }
    }
    let mut message = BytesMut::with_capacity(HEAD + 1 + digits + size);
    message.put_u8(0);
    message.put_u32(u32::try_from(1 + digits + size).unwrap_or(u32::MAX));
    message.put_u8(DATA);
    message.put_slice(length.get(..digits).unwrap_or(&length));
    let mut left = size;
    for slice in slices {
        let (taken, _) = slice.split_at(slice.len().min(left));
        message.put_slice(taken);
        left -= taken.len();
    }
    message.freeze()
}

/// Takes the data out of messages as it comes, without waiting for whole ones.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    state: State,
    /// Bytes of the message that are still to come.
    message: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Bytes of the head that have come, and the length as far as it is known.
    Head(u8, u32),
    /// A field's number and kind.
    Key(Varint),
    /// The length of the data.
    Length(Varint),
    /// So much of it is to come.
    Data(u32),
    /// A field of a later version: its value, its length, its bytes.
    SkipNumber,
    SkipLength(Varint),
    Skip(u32),
}

impl Default for State {
    fn default() -> Self {
        Self::Head(0, 0)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Varint {
    value: u32,
    shift: u8,
}

impl Varint {
    /// The number, once it is whole.
    fn push(&mut self, byte: u8) -> io::Result<Option<u32>> {
        if self.shift > 28 {
            return Err(damaged("a number is too long"));
        }
        self.value |= u32::from(byte & 0x7f) << self.shift;
        self.shift += 7;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("not a message of Firesteel's gRPC link: {what}"),
    )
}

impl Decoder {
    /// The next data in `from`; empty when all of it was taken and none was there.
    pub fn next(&mut self, from: &mut Bytes) -> io::Result<Bytes> {
        while !from.is_empty() {
            match self.state {
                State::Data(left) => {
                    let size = from.len().min(left as usize);
                    let taken = self.take(from, size)?;
                    self.state = self.rest(left, size, State::Data);
                    return Ok(taken);
                }
                State::Skip(left) => {
                    let size = from.len().min(left as usize);
                    self.take(from, size)?;
                    self.state = self.rest(left, size, State::Skip);
                }
                _ => {
                    let byte = from.get_u8();
                    self.byte(byte)?;
                }
            }
        }
        Ok(Bytes::new())
    }

    fn take(&mut self, from: &mut Bytes, size: usize) -> io::Result<Bytes> {
        self.count(u32::try_from(size).unwrap_or(u32::MAX))?;
        Ok(from.split_to(size))
    }

    /// Bytes of a message have come.
    fn count(&mut self, bytes: u32) -> io::Result<()> {
        self.message = self
            .message
            .checked_sub(bytes)
            .ok_or_else(|| damaged("a field is longer than its message"))?;
        Ok(())
    }

    fn rest(&self, left: u32, taken: usize, state: fn(u32) -> State) -> State {
        match left - u32::try_from(taken).unwrap_or(left) {
            0 => self.next_field(),
            left => state(left),
        }
    }

    fn next_field(&self) -> State {
        if self.message == 0 {
            State::default()
        } else {
            State::Key(Varint::default())
        }
    }

    fn byte(&mut self, byte: u8) -> io::Result<()> {
        if let State::Head(come, length) = self.state {
            if come == 0 && byte != 0 {
                return Err(damaged("it is compressed, or no gRPC at all"));
            }
            let length = (length << 8) | u32::from(byte);
            if usize::from(come) + 1 < HEAD {
                self.state = State::Head(come + 1, length);
                return Ok(());
            }
            if length as usize > limits::LINK_MESSAGE_TAKEN {
                return Err(damaged("it is too long"));
            }
            self.message = length;
            self.state = self.next_field();
            return Ok(());
        }
        self.count(1)?;
        self.state = match self.state {
            State::Key(mut key) => match key.push(byte)? {
                None => self.unfinished(State::Key(key))?,
                Some(key) if key == u32::from(DATA) => State::Length(Varint::default()),
                Some(key) => match key & 7 {
                    0 => State::SkipNumber,
                    1 => self.skip(8)?,
                    2 => State::SkipLength(Varint::default()),
                    5 => self.skip(4)?,
                    _ => return Err(damaged("a field of no known kind")),
                },
            },
            State::Length(mut length) => match length.push(byte)? {
                None => State::Length(length),
                Some(0) => self.next_field(),
                Some(length) if length > self.message => {
                    return Err(damaged("a field is longer than its message"));
                }
                Some(length) => State::Data(length),
            },
            State::SkipLength(mut length) => match length.push(byte)? {
                None => State::SkipLength(length),
                Some(length) => self.skip(length)?,
            },
            State::SkipNumber if byte & 0x80 == 0 => self.next_field(),
            state => state,
        };
        // A message may not end in the middle of a field.
        match self.state {
            State::Head(..) | State::Data(_) | State::Skip(_) => Ok(()),
            State::Key(key) if key.shift == 0 => Ok(()),
            _ if self.message == 0 => Err(damaged("it ends in the middle of a field")),
            _ => Ok(()),
        }
    }

    fn unfinished(&self, state: State) -> io::Result<State> {
        if self.message == 0 {
            return Err(damaged("it ends in the middle of a field"));
        }
        Ok(state)
    }

    fn skip(&self, length: u32) -> io::Result<State> {
        match length {
            0 => Ok(self.next_field()),
            _ if length > self.message => Err(damaged("a field is longer than its message")),
            _ => Ok(State::Skip(length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All data of `bytes`, which come in pieces of `piece`.
    fn decoded(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut decoder = Decoder::default();
        let mut data = Vec::new();
        for piece in bytes.chunks(piece) {
            let mut piece = Bytes::copy_from_slice(piece);
            while !piece.is_empty() {
                data.extend(decoder.next(&mut piece)?);
            }
        }
        Ok(data)
    }

    #[test]
    fn messages_give_their_data_however_they_are_cut() {
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for size in [1, 2, 127, 128, 300, 20_000] {
            let data: Vec<u8> = (0..size).map(|i: usize| i as u8).collect();
            let (a, b) = data.split_at(size / 3);
            bytes.extend(encode(&[IoSlice::new(a), IoSlice::new(b)], size));
            expected.extend(data);
        }
        // An empty message, and one with fields that are not known.
        bytes.extend([0, 0, 0, 0, 0]);
        bytes.extend([0, 0, 0, 0, 22]);
        bytes.extend([0x10, 0x85, 1]);
        bytes.extend([0x1a, 2, 7, 7]);
        bytes.extend([0x25, 1, 2, 3, 4]);
        bytes.extend([0x29, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes.truncate(bytes.len() - 1);
        bytes.extend([8, 0x0a, 1, 42]);
        let at = bytes.len() - 25 - 4 + 4;
        assert!(at > 0);
        // The length of the last message is what follows its head.
        let last = 3 + 4 + 5 + 9 + 3;
        let head = bytes.len() - last - 1;
        bytes[head] = last as u8;
        expected.push(42);
        for piece in [1, 2, 3, 7, 1000, usize::MAX] {
            assert!(decoded(&bytes, piece).unwrap() == expected, "{piece}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let bad: [&[u8]; 7] = [
            b"HTTP/1.1 200",
            &[1, 0, 0, 0, 3, 0x0a, 1, 1],
            &[0, 0xff, 0, 0, 0, 0x0a],
            // Data longer than its message, a field cut off, an endless number, a group.
            &[0, 0, 0, 0, 3, 0x0a, 9, 1],
            &[0, 0, 0, 0, 1, 0x0a, 9, 1],
            &[0, 0, 0, 0, 9, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80],
            &[0, 0, 0, 0, 2, 0x0b, 0],
        ];
        for bytes in bad {
            for piece in [1, 100] {
                let error = decoded(bytes, piece).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
            }
        }
    }
}
