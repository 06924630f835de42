//! Bytes, and descriptors beside them, on their way into a socket that must
//! never be waited for.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use bytes::{Buf, Bytes};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// The descriptors that may come with one frame: standard output and error.
const DESCRIPTORS: usize = 2;

/// Frames that wait for the socket.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    frames: VecDeque<(Bytes, Vec<OwnedFd>)>,
    bytes: usize,
}

impl Outgoing {
    pub(super) fn push(&mut self, frame: Bytes, descriptors: Vec<OwnedFd>) {
        self.bytes += frame.len();
        self.frames.push_back((frame, descriptors));
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Writes what it can without waiting.
    pub(super) fn flush(&mut self, socket: &UnixStream) -> io::Result<()> {
        while let Some((frame, descriptors)) = self.frames.front_mut() {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
                return Err(io::Error::from(io::ErrorKind::InvalidInput));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(socket, &[IoSlice::new(frame)], &mut ancillary, flags) {
                Ok(sent) => {
                    drop(borrowed);
                    // They went with the first byte.
                    descriptors.clear();
                    frame.advance(sent);
                    self.bytes -= sent;
                    if frame.is_empty() {
                        self.frames.pop_front();
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
