//! Files that are written again instead of new ones.
//!
//! A fresh file costs a page fault and a zeroed page per 4 KiB, which for a
//! large model is more than the sum that is written into it.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;

use rustix::fs::FlockOperation;

use crate::mmap::Mapping;

/// Files kept for the next output. Two, because the file that the round before
/// last left is free while the last round's is still mapped by a slow trainer.
pub(crate) const RECYCLED_FILES: usize = 2;

#[derive(Default)]
pub(super) struct Pool(VecDeque<Spare>);

/// A file that no object needs any more, though a trainer may have it mapped.
pub(super) struct Spare {
    pub(super) path: PathBuf,
    pub(super) mapping: Mapping,
    pub(super) file: File,
}

impl Pool {
    /// Keeps a file; the oldest one beyond the limit is removed.
    pub(super) fn put(&mut self, spare: Spare) {
        self.0.push_back(spare);
        while self.0.len() > RECYCLED_FILES {
            if let Some(oldest) = self.0.pop_front() {
                oldest.remove();
            }
        }
    }

    /// A file of at least `len` bytes that nobody has mapped, the oldest first.
    pub(super) fn take(&mut self, len: u64) -> Option<Spare> {
        let at = self
            .0
            .iter()
            .position(|spare| spare.mapping.len() >= len && spare.unused())?;
        self.0.remove(at)
    }
}

impl Spare {
    /// Whether no descriptor or mapping of it is left in another hand: each was
    /// given out with a shared lock that lasts as long as it does.
    ///
    /// Nobody can get a new one meanwhile, for there is no object left to ask.
    fn unused(&self) -> bool {
        let locked = rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive);
        locked.is_ok() && rustix::fs::flock(&self.file, FlockOperation::Unlock).is_ok()
    }

    fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for spare in &self.0 {
            spare.remove();
        }
    }
}
