//! Memory for batches that outlive the call that writes them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// The two buffers of one stream: what a connection still holds of one keeps
/// whoever fills the next waiting.
#[derive(Clone, Default)]
pub(super) struct Buffers(Arc<Pool>);

#[derive(Default)]
struct Pool {
    state: Mutex<Held>,
    back: Notify,
}

#[derive(Default)]
struct Held {
    /// Buffers in use.
    out: usize,
    spare: Vec<Vec<u8>>,
}

/// One is filled while another is written.
const BUFFERS: usize = 2;

impl Buffers {
    /// Waits for a buffer; its bytes are of its last use.
    pub(super) async fn take(&self) -> Buffer {
        loop {
            let back = self.0.back.notified();
            {
                let mut held = self.0.held();
                if held.out < BUFFERS {
                    held.out += 1;
                    return Buffer {
                        bytes: held.spare.pop().unwrap_or_default(),
                        pool: Arc::clone(&self.0),
                    };
                }
            }
            back.await;
        }
    }

    /// Gives back the memory of those that are not in use.
    pub(super) fn shrink(&self) {
        self.0.held().spare.clear();
    }
}

impl Pool {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer in use; dropped, it is there for the next.
pub(super) struct Buffer {
    pub(super) bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Buffer {
    /// All of it, to be written; it is back when the last part was dropped.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut held = self.pool.held();
        held.out -= 1;
        held.spare.push(bytes);
        drop(held);
        self.pool.back.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn a_third_batch_waits_until_all_of_one_was_written() {
        let buffers = Buffers::default();
        let mut first = buffers.take().await;
        first.bytes.extend_from_slice(b"what is sent");
        let place = first.bytes.as_ptr();
        let mut first = first.freeze();
        let _second = buffers.take().await;
        let mut third = std::pin::pin!(buffers.take());
        let mut context = Context::from_waker(Waker::noop());
        assert!(third.as_mut().poll(&mut context).is_pending());
        let part = first.split_to(4);
        drop(first);
        assert!(third.as_mut().poll(&mut context).is_pending());
        drop(part);
        assert_eq!(third.await.bytes.as_ptr(), place);
    }
}
