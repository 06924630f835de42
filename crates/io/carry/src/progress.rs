//! How far a fetch is.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far a fetch is, written by who fetches and read by who shows it.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    /// Bytes that really travelled: those skipped are done, too.
    travelled: AtomicU64,
}

impl Progress {
    /// Of a whole of `total` bytes.
    pub fn new(total: u64) -> Self {
        Self {
            total: total.into(),
            ..Self::default()
        }
    }

    /// Says how far it is.
    pub fn set(&self, done: u64, travelled: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.travelled.store(travelled, Ordering::Relaxed);
    }

    /// Bytes that are there.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes of the whole.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Bytes that crossed the network, which are fewer where some were there already.
    pub fn travelled(&self) -> u64 {
        self.travelled.load(Ordering::Relaxed)
    }
}
