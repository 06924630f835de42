//! Where updates wait for the end of their round: a directory with a budget.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use firesteel_base::{Hint, limits};

use crate::disk;
use crate::error::{IncomingError, StoreError, bytes};
use crate::objects::{Incoming, Objects, PartName, lock};

/// How many bytes of updates may lie on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpoolBudget {
    /// Half of what is free when the spool is opened.
    HalfOfFree,
    /// So many.
    Bytes(u64),
}

/// What becomes of a spool in a file system that lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InMemory {
    /// It is an error: the updates would take the memory that the spool is there
    /// to save.
    Refuse,
    /// The machine has the memory, and somebody asked for it.
    Allow,
}

/// The place of updates that wait to be folded. A clone is another handle to the
/// same.
///
/// Never fails for lack of room: what has none is to be folded straight from its
/// site, as [`Admitted::Live`] says.
#[derive(Clone)]
pub struct Spool(Arc<Inner>);

struct Inner {
    objects: Objects,
    budget: u64,
    used: Mutex<u64>,
}

/// Where an update goes.
#[derive(Debug)]
pub enum Admitted {
    /// Into this file.
    Spooled(Incoming),
    /// Nowhere: it stays at its site until it is folded.
    Live(LiveReason),
}

/// Why an update does not get room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveReason {
    /// The spool's budget is used up.
    Budget {
        /// Bytes asked for.
        needed: u64,
        /// Bytes of the budget that are left.
        left: u64,
    },
    /// The disk is full.
    DiskFull {
        /// Bytes asked for.
        needed: u64,
        /// Bytes free there.
        free: u64,
    },
}

impl fmt::Display for LiveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Budget { needed, left } => write!(
                f,
                "{} do not fit into the spool, of which {} are left",
                bytes(*needed),
                bytes(*left)
            ),
            Self::DiskFull { needed, free } => write!(
                f,
                "{} do not fit on the spool's disk, where {} are free",
                bytes(*needed),
                bytes(*free)
            ),
        }
    }
}

/// Bytes of a spool's budget, given back when this is dropped.
pub struct Reservation {
    spool: Arc<Inner>,
    len: u64,
}

/// A spool cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// The system refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory lies in memory.
    #[error("the spool `{}` would lie in memory: its file system is {kind}", dir.display())]
    InMemory {
        /// The directory.
        dir: PathBuf,
        /// What the system calls it.
        kind: &'static str,
    },
}

impl Hint for SpoolError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::InMemory { .. } => Some(
                "choose a directory on a disk for the spool, or allow one in memory if the machine has enough of it".into(),
            ),
        }
    }
}

impl Spool {
    /// A spool in the directory of `objects`.
    ///
    /// # Errors
    /// [`SpoolError::InMemory`] for a directory in memory unless that is allowed.
    pub fn open(
        objects: &Objects,
        budget: SpoolBudget,
        in_memory: InMemory,
    ) -> Result<Self, SpoolError> {
        let dir = objects.dir();
        if let (InMemory::Refuse, Some(kind)) = (in_memory, disk::memory_kind(dir)?) {
            return Err(SpoolError::InMemory {
                dir: dir.to_owned(),
                kind,
            });
        }
        let budget = match budget {
            SpoolBudget::Bytes(bytes) => bytes,
            SpoolBudget::HalfOfFree => {
                // What an earlier process left is the spool's already.
                let left: u64 = objects.parts()?.iter().map(|part| part.size).sum();
                disk::free(dir)?.saturating_add(left) / 2
            }
        };
        objects.keep_spares(limits::SPARE_SPOOL_FILES, budget);
        Ok(Self(Arc::new(Inner {
            objects: objects.clone(),
            budget,
            used: Mutex::new(0),
        })))
    }

    /// Room for an update of `len` bytes, or why it has to stay at its site.
    ///
    /// What earlier transfers left makes way for it, the oldest first.
    ///
    /// # Errors
    /// [`IncomingError`] for what is neither a lack of room nor of budget.
    pub fn admit(&self, name: &PartName, len: u64) -> Result<Admitted, IncomingError> {
        // Whoever still has that name has its room, too, and gives up both.
        if self.0.objects.is_claimed(name) {
            return Err(IncomingError::Busy { name: name.clone() });
        }
        let reservation = match self.reserve(len) {
            Ok(reservation) => reservation,
            Err(reason) => return Ok(Admitted::Live(reason)),
        };
        self.make_way(name)?;
        let objects = &self.0.objects;
        let mut opened = objects.incoming(name, len);
        if is_full(&opened) {
            // What is left of earlier transfers is worth less than a new one.
            for part in objects.parts()? {
                if part.name != *name {
                    objects.discard_part(&part)?;
                }
            }
            opened = objects.incoming(name, len);
        }
        match opened {
            Ok(mut incoming) => {
                incoming.hold(reservation);
                // Those of a fitting size were used by now.
                objects.trim_spares(self.budget().saturating_sub(self.used()));
                Ok(Admitted::Spooled(incoming))
            }
            Err(IncomingError::Store(StoreError::Full { free, .. })) => {
                Ok(Admitted::Live(LiveReason::DiskFull {
                    needed: len,
                    free: free.unwrap_or(0),
                }))
            }
            Err(error) => Err(error),
        }
    }

    /// So many bytes of the budget, or why not: for an update that is written
    /// here (decoded, say) and not received; give it to [`crate::Output::hold`].
    ///
    /// # Errors
    /// [`LiveReason::Budget`] when they are not left.
    pub fn reserve(&self, len: u64) -> Result<Reservation, LiveReason> {
        let mut used = lock(&self.0.used);
        let left = self.0.budget.saturating_sub(*used);
        if len > left {
            return Err(LiveReason::Budget { needed: len, left });
        }
        *used += len;
        Ok(Reservation {
            spool: Arc::clone(&self.0),
            len,
        })
    }

    /// Bytes that may lie in it.
    pub fn budget(&self) -> u64 {
        self.0.budget
    }

    /// Bytes of the updates in it.
    pub fn used(&self) -> u64 {
        *lock(&self.0.used)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        self.0.objects.dir()
    }

    /// Removes what earlier transfers left as far as the budget asks for it.
    fn make_way(&self, name: &PartName) -> Result<(), StoreError> {
        let mut parts = self.0.objects.parts()?;
        // That of the same name is gone on with.
        parts.retain(|part| part.name != *name);
        let mut left: u64 = parts.iter().map(|part| part.size).sum();
        for part in &parts {
            // The new one's bytes are among the used ones already.
            if self.used().saturating_add(left) <= self.0.budget {
                break;
            }
            self.0.objects.discard_part(part)?;
            left = left.saturating_sub(part.size);
        }
        Ok(())
    }
}

fn is_full(opened: &Result<Incoming, IncomingError>) -> bool {
    matches!(opened, Err(IncomingError::Store(error)) if error.is_full())
}

impl Reservation {
    /// Bytes of it.
    pub fn bytes(&self) -> u64 {
        self.len
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        *lock(&self.spool.used) -= self.len;
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reservation").field(&self.len).finish()
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool")
            .field("dir", &self.dir())
            .field("budget", &self.budget())
            .field("used", &self.used())
            .finish()
    }
}

#[cfg(test)]
mod tests;
