//! Files that are written again instead of new ones.
//!
//! A fresh file costs a page fault and a zeroed page per 4 KiB, which for a
//! large model is more than the sum that is written into it.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;

use firesteel_base::limits;
use rustix::fs::FlockOperation;

use crate::mmap::Mapping;

pub(super) struct Pool {
    spares: VecDeque<Spare>,
    most_files: usize,
    /// Beyond `limits::SPARE_FILES` of them.
    most_bytes: u64,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            spares: VecDeque::new(),
            most_files: limits::SPARE_FILES,
            most_bytes: 0,
        }
    }
}

/// A file that no object needs any more, though a trainer may have it mapped.
pub(super) struct Spare {
    pub(super) path: PathBuf,
    /// Of the whole file; its pages need not be found again.
    pub(super) mapping: Mapping,
    pub(super) file: File,
}

impl Pool {
    /// How many files may wait, and how many bytes of them.
    pub(super) fn limit(&mut self, files: usize, bytes: u64) {
        (self.most_files, self.most_bytes) = (files.max(limits::SPARE_FILES), bytes);
    }

    /// Keeps a file; the oldest ones beyond the limits are removed.
    pub(super) fn put(&mut self, spare: Spare) {
        self.spares.push_back(spare);
        self.trim(self.most_bytes);
    }

    /// Removes the oldest files until the rest is few, or has at most so many
    /// bytes.
    pub(super) fn trim(&mut self, most_bytes: u64) {
        let mut bytes: u64 = self.spares.iter().map(|spare| spare.mapping.len()).sum();
        while self.spares.len() > self.most_files
            || (self.spares.len() > limits::SPARE_FILES && bytes > most_bytes)
        {
            let Some(oldest) = self.spares.pop_front() else {
                break;
            };
            bytes = bytes.saturating_sub(oldest.mapping.len());
            oldest.remove();
        }
    }

    /// Removes them all; whether there were any.
    pub(super) fn clear(&mut self) -> bool {
        let any = !self.spares.is_empty();
        for spare in self.spares.drain(..) {
            spare.remove();
        }
        any
    }

    /// A file of at least `len` bytes that nobody has mapped: the smallest, and
    /// of those the oldest.
    pub(super) fn take(&mut self, len: u64) -> Option<Spare> {
        let fitting = self.spares.iter().enumerate();
        let fitting = fitting.filter(|(_, spare)| spare.mapping.len() >= len && spare.unused());
        let (at, _) = fitting.min_by_key(|(_, spare)| spare.mapping.len())?;
        self.spares.remove(at)
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
        self.clear();
    }
}
