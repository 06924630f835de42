//! A model's bytes in a trainer's memory.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;

use memmap2::{MmapMut, MmapOptions};

use crate::kept::{self, Kept};

/// Alignment of every mapping's first byte: a cache line and the widest vector.
const ALIGNMENT: usize = 64;

/// Why a model could not be brought into memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The file could not be opened, measured or read.
    #[error("the model file could not be read")]
    Read(#[source] io::Error),
    /// The file is shorter than announced: using it would end the process.
    #[error("the model file has {actual} bytes, {announced} were announced")]
    TooShort {
        /// Bytes in the file.
        actual: u64,
        /// Bytes that were announced.
        announced: u64,
    },
    /// There is no room for a copy.
    #[error("no memory for {bytes} bytes of model")]
    NoMemory {
        /// Bytes that were needed.
        bytes: u64,
    },
}

/// A model's bytes: readable, writable, and private to this process.
///
/// Writing changes no file: pages are copied when they are first written to.
/// The bytes stay where they are until the mapping is dropped.
#[derive(Debug)]
pub struct Mapping(Kind);

#[derive(Debug)]
enum Kind {
    /// With its file and place in it, from which it can be mapped anew.
    Mapped(MmapMut, File, u64),
    /// The same, whose bytes are in memory of this process.
    Kept(Kept, File, u64),
    Owned(Aligned),
}

impl Mapping {
    /// Maps the first `length` bytes of a file; where the file system cannot
    /// map, reads them instead.
    ///
    /// The file must not change while the mapping lives.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn from_file(file: File, length: u64) -> Result<Self, MapError> {
        Self::part_of(file, 0, length)
    }

    /// The same for `length` bytes from `offset`, which is a multiple of 64.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn part_of(file: File, offset: u64, length: u64) -> Result<Self, MapError> {
        let actual = file.metadata().map_err(MapError::Read)?.len();
        if offset.checked_add(length).is_none_or(|end| actual < end) {
            return Err(MapError::TooShort {
                actual,
                announced: offset.saturating_add(length),
            });
        }
        let bytes = usize::try_from(length).map_err(|_| MapError::NoMemory { bytes: length })?;
        if bytes == 0 {
            return Ok(Self(Kind::Owned(Aligned::zeroed(0)?)));
        }
        // SAFETY: the mapping is private, and a model file is immutable from the
        // moment it has its name: it is written aside, renamed, and locked
        // against removal by the description that is mapped here.
        match unsafe { MmapOptions::new().offset(offset).len(bytes).map_copy(&file) } {
            Ok(mapped) => Ok(Self(Kind::Mapped(mapped, file, offset))),
            Err(_) => Self::copy_of(&file, offset, bytes),
        }
    }

    /// Maps a whole file.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn open(path: &Path) -> Result<Self, MapError> {
        let file = File::open(path).map_err(MapError::Read)?;
        let length = file.metadata().map_err(MapError::Read)?.len();
        Self::from_file(file, length)
    }

    /// Maps a descriptor that came through a socket.
    ///
    /// Where this process has changed most of an earlier model in place, the bytes
    /// are read into that model's memory instead.
    pub(crate) fn from_descriptor(descriptor: OwnedFd, length: u64) -> Result<Self, MapError> {
        let file = File::from(descriptor);
        if let Ok(bytes) = usize::try_from(length)
            && file.metadata().map_err(MapError::Read)?.len() >= length
            && let Some(kept) = Kept::read(&file, 0, bytes).map_err(MapError::Read)?
        {
            return Ok(Self(Kind::Kept(kept, file, 0)));
        }
        Self::from_file(file, length)
    }

    #[cfg(test)]
    pub(crate) fn is_kept(&self) -> bool {
        matches!(self.0, Kind::Kept(..))
    }

    /// Takes a copy of bytes, aligned for any element.
    ///
    /// # Errors
    /// [`MapError::NoMemory`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MapError> {
        let mut owned = Aligned::zeroed(bytes.len())?;
        owned.as_mut_slice().copy_from_slice(bytes);
        Ok(Self(Kind::Owned(owned)))
    }

    /// Zeros, to be filled through [`Mapping::as_mut_slice`].
    pub(crate) fn zeroed(length: u64) -> Result<Self, MapError> {
        let bytes = usize::try_from(length).map_err(|_| MapError::NoMemory { bytes: length })?;
        Ok(Self(Kind::Owned(Aligned::zeroed(bytes)?)))
    }

    fn copy_of(file: &File, offset: u64, bytes: usize) -> Result<Self, MapError> {
        let mut owned = Aligned::zeroed(bytes)?;
        file.read_exact_at(owned.as_mut_slice(), offset)
            .map_err(MapError::Read)?;
        Ok(Self(Kind::Owned(owned)))
    }

    /// The same model once more. From a file it comes as it is in the file,
    /// whatever was written to this mapping; a copy is copied as it is now.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn again(&self) -> Result<Self, MapError> {
        match &self.0 {
            Kind::Mapped(mapped, file, offset) => {
                let file = file.try_clone().map_err(MapError::Read)?;
                Self::part_of(file, *offset, mapped.len() as u64)
            }
            Kind::Kept(kept, file, offset) => {
                let file = file.try_clone().map_err(MapError::Read)?;
                Self::part_of(file, *offset, kept.len() as u64)
            }
            Kind::Owned(owned) => Self::from_bytes(owned.as_slice()),
        }
    }

    /// The work on it is done: whether it was changed in place says how the next
    /// model comes. Dropping it says so, too, but may be long after.
    pub fn done(&self) {
        if let Kind::Mapped(mapped, ..) = &self.0 {
            kept::look(mapped);
        }
    }

    /// The first byte; valid for reads and writes of [`Mapping::len`] bytes until
    /// the mapping is dropped. Aligned to 64 bytes.
    pub fn as_ptr(&self) -> *mut u8 {
        match &self.0 {
            Kind::Mapped(mapped, ..) => mapped.as_ptr().cast_mut(),
            Kind::Kept(kept, ..) => kept.as_ptr(),
            Kind::Owned(owned) => owned.start.as_ptr(),
        }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kind::Mapped(mapped, ..) => mapped.len(),
            Kind::Kept(kept, ..) => kept.len(),
            Kind::Owned(owned) => owned.length,
        }
    }

    /// True when there is not one byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes. Nothing may write through [`Mapping::as_ptr`] meanwhile.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Kind::Mapped(mapped, ..) => mapped,
            Kind::Kept(kept, ..) => kept.as_slice(),
            Kind::Owned(owned) => owned.as_slice(),
        }
    }

    /// The bytes, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Kind::Mapped(mapped, ..) => mapped,
            Kind::Kept(kept, ..) => kept.as_mut_slice(),
            Kind::Owned(owned) => owned.as_mut_slice(),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.done();
    }
}

/// Owned bytes that start at a multiple of [`ALIGNMENT`].
#[derive(Debug)]
struct Aligned {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the bytes are owned by this value alone, as a `Box<[u8]>`'s are.
unsafe impl Send for Aligned {}
// SAFETY: shared access only reads, as with a `Box<[u8]>`.
unsafe impl Sync for Aligned {}

impl Aligned {
    fn layout(length: usize) -> Result<Layout, MapError> {
        Layout::from_size_align(length.max(1), ALIGNMENT).map_err(|_| MapError::NoMemory {
            bytes: length as u64,
        })
    }

    fn zeroed(length: usize) -> Result<Self, MapError> {
        let layout = Self::layout(length)?;
        // SAFETY: the layout's size is at least one.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(MapError::NoMemory {
            bytes: length as u64,
        })?;
        Ok(Self { start, length })
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` was allocated, zeroed, with `length` bytes at least.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        let layout = Self::layout(self.length).expect("the same layout was valid before");
        // SAFETY: allocated with this very layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), layout) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn writing_to_a_mapping_leaves_the_file_alone() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        let mut mapping = Mapping::open(file.path()).unwrap();
        assert_eq!(
            (mapping.len(), mapping.as_ptr() as usize % ALIGNMENT),
            (10_000, 0)
        );
        mapping.as_mut_slice()[5_000] = 9;
        assert_eq!(mapping.as_slice()[5_000], 9);
        assert_eq!(std::fs::read(file.path()).unwrap(), [7; 10_000]);
    }

    #[test]
    fn a_part_of_a_file_is_mapped_at_its_place() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..20_000).map(|i| (i / 64) as u8).collect();
        file.write_all(&bytes).unwrap();
        for (offset, length) in [(0, 20_000), (64, 100), (4096, 64), (8192 + 64, 5000)] {
            let mut part = Mapping::part_of(file.try_clone().unwrap(), offset, length).unwrap();
            let expected = &bytes[offset as usize..(offset + length) as usize];
            assert_eq!(part.as_slice(), expected);
            assert_eq!(part.as_ptr() as usize % ALIGNMENT, 0);
            part.as_mut_slice()[0] = 255;
            assert_eq!(part.again().unwrap().as_slice(), expected);
        }
        for (offset, length) in [(19_968, 33), (64, u64::MAX), (u64::MAX - 63, 64)] {
            let part = Mapping::part_of(file.try_clone().unwrap(), offset, length);
            assert!(matches!(part, Err(MapError::TooShort { .. })));
        }
    }

    #[test]
    fn a_file_shorter_than_announced_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10).unwrap();
        let error = Mapping::from_file(file, 11).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the model file has 10 bytes, 11 were announced"
        );
    }

    #[test]
    fn bytes_are_aligned_and_none_are_fine() {
        for length in [0, 1, 63, 64, 65, 70_000] {
            let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mapping = Mapping::from_bytes(&bytes).unwrap();
            assert_eq!(mapping.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(mapping.as_slice(), bytes);
            assert_eq!(mapping.is_empty(), length == 0);
        }
        assert!(
            Mapping::from_file(tempfile::tempfile().unwrap(), 0)
                .unwrap()
                .is_empty()
        );
        assert!(matches!(
            Mapping::zeroed(u64::MAX),
            Err(MapError::NoMemory { .. })
        ));
    }
}
