//! Memory that a trainer which changes its models in place reads them into, one
//! after another.
//!
//! A private mapping costs nothing until it is written to; then each page is a
//! fault, a new page and a copy, and all of it goes when the model does. Memory
//! that was used before costs the copy alone, a sixth of that. So the first model
//! is mapped, and when most of it was written to, the next ones are read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::{MmapMut, MmapOptions};

/// Bytes from which it is worth a look: below, the faults cost less than the
/// looking does.
const LEAST: usize = 1 << 20;

/// Pages that are looked at, of each mapping that goes.
const SAMPLES: usize = 64;

#[derive(Default)]
struct Shelf {
    /// Whether a model's pages were written to, and the next one's will be.
    writes: bool,
    /// Of the last model. The kernel may have it when it needs room.
    spare: Option<MmapMut>,
}

static SHELF: Mutex<Shelf> = Mutex::new(Shelf {
    writes: false,
    spare: None,
});

fn shelf() -> MutexGuard<'static, Shelf> {
    // Held for one exchange; whatever was half done, a spare's bytes mean nothing.
    SHELF.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory with a model's bytes, kept for the next one when it is dropped.
#[derive(Debug)]
pub(crate) struct Kept {
    /// `None` only while it is being dropped.
    memory: Option<MmapMut>,
    length: usize,
}

impl Kept {
    /// Reads a model; `None` where it is better mapped, or there is no memory.
    pub(crate) fn read(file: &File, offset: u64, length: usize) -> io::Result<Option<Self>> {
        let spare = {
            let mut shelf = shelf();
            if !shelf.writes || length < LEAST {
                return Ok(None);
            }
            // One of another size is of no use, and must not lie about.
            let spare = shelf.spare.take();
            spare.filter(|spare| spare.len() >= length && spare.len() / 2 <= length)
        };
        let Some(memory) = spare.or_else(|| fresh(length)) else {
            return Ok(None);
        };
        let mut kept = Self {
            memory: Some(memory),
            length,
        };
        file.read_exact_at(kept.as_mut_slice(), offset)?;
        Ok(Some(kept))
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        let memory = self.memory.as_ref();
        memory.map_or(std::ptr::dangling_mut(), |m| m.as_ptr().cast_mut())
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        let memory = self.memory.as_ref();
        memory
            .and_then(|m| m.get(..self.length))
            .unwrap_or_default()
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        let length = self.length;
        let memory = self.memory.as_mut();
        memory.and_then(|m| m.get_mut(..length)).unwrap_or_default()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            release(&memory);
            // Outside of the lock, as it may take a while.
            let old = shelf().spare.replace(memory);
            drop(old);
        }
    }
}

/// A mapping goes: was most of it written to?
pub(crate) fn look(mapped: &MmapMut) {
    if mapped.len() >= LEAST && !shelf().writes && was_written(mapped) {
        shelf().writes = true;
    }
}

fn fresh(length: usize) -> Option<MmapMut> {
    let memory = MmapOptions::new().len(length).map_anon().ok()?;
    // A fault per 2 MiB where the system has such pages.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Some(memory)
}

/// Lets the kernel take the pages when somebody needs them; until then they are
/// ready for the next model.
#[cfg(target_os = "linux")]
fn release(memory: &MmapMut) {
    // SAFETY: the bytes may become zeros at any moment from here on. Nobody reads
    // them before they are written again: `Kept::read` fills all that it lends.
    let _ = unsafe { memory.unchecked_advise(memmap2::UncheckedAdvice::Free) };
}

#[cfg(not(target_os = "linux"))]
fn release(_memory: &MmapMut) {}

/// Whether most pages of a private mapping are this process's own and not the
/// file's any more.
#[cfg(target_os = "linux")]
fn was_written(mapped: &MmapMut) -> bool {
    // Bits of an entry, as `Documentation/admin-guide/mm/pagemap.rst` has them.
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const OF_FILE: u64 = 1 << 61;
    let Ok(pagemap) = File::open("/proc/self/pagemap") else {
        return false;
    };
    let Some(page) = page_size() else {
        return false;
    };
    let first = mapped.as_ptr() as usize / page;
    let pages = mapped.len() / page;
    let mut own = 0;
    for sample in 0..SAMPLES {
        let at = first + pages * sample / SAMPLES;
        let mut entry = [0; 8];
        if pagemap.read_exact_at(&mut entry, at as u64 * 8).is_err() {
            return false;
        }
        let entry = u64::from_ne_bytes(entry);
        let here = entry & (PRESENT | SWAPPED) != 0;
        own += usize::from(here && entry & OF_FILE == 0);
    }
    own > SAMPLES / 2
}

/// Bytes of a page, as the kernel told this process when it began.
#[cfg(target_os = "linux")]
fn page_size() -> Option<usize> {
    const WORD: usize = size_of::<usize>();
    // `AT_PAGESZ` of `linux/auxvec.h`.
    const PAGE_SIZE: usize = 6;
    let told = std::fs::read("/proc/self/auxv").ok()?;
    told.chunks_exact(2 * WORD).find_map(|pair| {
        let (kind, value) = pair.split_first_chunk::<WORD>()?;
        let value = usize::from_ne_bytes(value.try_into().ok()?);
        (usize::from_ne_bytes(*kind) == PAGE_SIZE && value > 0).then_some(value)
    })
}

#[cfg(not(target_os = "linux"))]
fn was_written(_mapped: &MmapMut) -> bool {
    false
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use crate::Mapping;

    const LENGTH: usize = 3 * super::LEAST + 100;

    fn model(byte: u8) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![byte; LENGTH]).unwrap();
        file.into()
    }

    fn received(byte: u8) -> Mapping {
        Mapping::from_descriptor(model(byte), LENGTH as u64).unwrap()
    }

    // One test, as what it is about is the process's.
    #[test]
    fn models_are_read_into_the_same_memory_once_one_was_written_to() {
        let read = received(1);
        assert_eq!(read.as_slice(), vec![1; LENGTH]);
        drop(read);
        let mut mapped = received(2);
        assert!(!mapped.is_kept(), "one that is only read stays mapped");
        mapped.as_mut_slice().fill(7);
        drop(mapped);

        let mut kept = received(3);
        assert!(kept.is_kept());
        assert_eq!(kept.as_slice(), vec![3; LENGTH]);
        assert_eq!(kept.as_ptr() as usize % 64, 0);
        let place = kept.as_ptr();
        kept.as_mut_slice().fill(9);
        // As it was received, whatever became of it.
        assert_eq!(kept.again().unwrap().as_slice(), vec![3; LENGTH]);
        // While somebody has the memory, the next model gets other.
        let other = received(4);
        assert!(other.is_kept() && other.as_ptr() != place);
        assert_eq!(kept.as_slice(), vec![9; LENGTH]);
        drop(other);
        drop(kept);
        let next = received(5);
        assert_eq!(next.as_ptr(), place);
        assert_eq!(next.as_slice(), vec![5; LENGTH]);
        drop(next);

        // A small one is mapped as before.
        let mut small = tempfile::tempfile().unwrap();
        small.write_all(&[8; 5000]).unwrap();
        let small = Mapping::from_descriptor(small.into(), 5000).unwrap();
        assert!(!small.is_kept());
        assert_eq!(small.as_slice(), [8; 5000]);
    }
}
