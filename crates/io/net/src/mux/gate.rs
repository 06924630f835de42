//! What one connection has taken from its streams and not yet written.
//!
//! Streams wait here in turn, so that none starves, and what they hand over is
//! little, so that a later but more urgent byte has little to wait for.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// Room for unwritten bytes, shared by the streams of a connection.
#[derive(Clone)]
pub(crate) struct Gate {
    room: Arc<Semaphore>,
    /// Blocks that were written, to be filled again: fresh memory for every
    /// block costs page faults.
    spare: Arc<Spare>,
    /// Bytes of the largest block.
    pub block: usize,
}

type Spare = Mutex<Vec<Vec<u8>>>;

/// Blocks that are kept for later, per connection.
const SPARE: usize = 2;

impl Gate {
    /// Room for `total` bytes in blocks of at most `block`.
    pub fn new(block: usize, total: usize) -> Self {
        Self {
            room: Arc::new(Semaphore::new(total.max(block))),
            spare: Arc::default(),
            block,
        }
    }

    /// Nothing more gets through.
    pub fn close(&self) {
        self.room.close();
    }
}

/// One stream's way through the gate.
pub(crate) struct Outbox {
    queue: PollSemaphore,
    state: Arc<State>,
    spare: Arc<Spare>,
    pub block: usize,
}

#[derive(Default)]
struct State {
    unwritten: AtomicUsize,
    empty: AtomicWaker,
}

/// Room that was given to a stream.
pub(crate) struct Room(OwnedSemaphorePermit);

impl Room {
    /// How many bytes fit.
    pub fn bytes(&self) -> usize {
        self.0.num_permits()
    }
}

impl Outbox {
    pub fn new(gate: &Gate) -> Self {
        Self {
            queue: PollSemaphore::new(Arc::clone(&gate.room)),
            state: Arc::default(),
            spare: Arc::clone(&gate.spare),
            block: gate.block,
        }
    }

    /// Waits for its turn and for room for `bytes`, at most a block.
    pub fn poll_room(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<Room>> {
        let permits = u32::try_from(bytes.min(self.block)).unwrap_or(u32::MAX);
        let permit = ready!(self.queue.poll_acquire_many(cx, permits));
        Poll::Ready(
            permit.map(Room).ok_or_else(|| {
                io::Error::new(io::ErrorKind::BrokenPipe, "the connection was closed")
            }),
        )
    }

    /// An empty buffer for `size` bytes.
    pub fn buffer(&self, size: usize) -> Vec<u8> {
        if size * 2 > self.block {
            if let Some(spare) = crate::session::lock(&self.spare).pop() {
                return spare;
            }
            return Vec::with_capacity(self.block);
        }
        Vec::with_capacity(size)
    }

    /// Makes a block of `bytes`; the room comes back when it has been written or
    /// dropped.
    pub fn block(&self, bytes: Vec<u8>, room: Room) -> Bytes {
        Bytes::from_owner(Block {
            bytes,
            spare: Arc::clone(&self.spare),
            worth: self.block,
            _unwritten: self.unwritten(room),
        })
    }

    /// The same of bytes that are somebody else's to reuse.
    pub fn lent(&self, bytes: Bytes, room: Room) -> Bytes {
        let _unwritten = self.unwritten(room);
        Bytes::from_owner(Lent { bytes, _unwritten })
    }

    fn unwritten(&self, room: Room) -> Unwritten {
        self.state.unwritten.fetch_add(1, Ordering::AcqRel);
        Unwritten {
            state: Arc::clone(&self.state),
            _room: room,
        }
    }

    /// Waits until all blocks have been written or dropped.
    pub fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        let empty = || self.state.unwritten.load(Ordering::Acquire) == 0;
        if empty() {
            return Poll::Ready(());
        }
        self.state.empty.register(cx.waker());
        if empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// Counts a block of its stream until it is dropped.
struct Unwritten {
    state: Arc<State>,
    _room: Room,
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        if self.state.unwritten.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.state.empty.wake();
        }
    }
}

struct Lent {
    bytes: Bytes,
    _unwritten: Unwritten,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

struct Block {
    bytes: Vec<u8>,
    spare: Arc<Spare>,
    /// From what capacity on it is worth keeping.
    worth: usize,
    _unwritten: Unwritten,
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        let mut spare = crate::session::lock(&self.spare);
        if bytes.capacity() >= self.worth && spare.len() < SPARE {
            bytes.clear();
            spare.push(bytes);
        }
    }
}
