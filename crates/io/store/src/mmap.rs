//! Files as memory: the one place of this crate with `unsafe`.
//!
//! INVARIANT: a mapping made here is as long as its file, and nothing in this
//! process shortens or writes the file while a slice of it is lent out:
//! writing needs `&mut Mapping`, and a file is shortened only by
//! [`Mapping::resize`], which takes the mapping by value.
//!
//! Other processes: an output is made 0400 below a 0700 directory before
//! anybody else can open it, so only its maker ever wrote it. A file adopted
//! from an outbox was written by a trainer of the same user, who could still
//! write it through a descriptor that it kept. Its bytes are therefore only
//! ever read as numbers and checked where they are used, never trusted as an
//! index that was checked before.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};

/// A shared mapping of a whole file.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// `None` for an empty file, which the kernel refuses to map.
    raw: Option<MmapRaw>,
    writable: bool,
}

impl Mapping {
    /// Maps `len` bytes for reading.
    pub(crate) fn read_only(file: &File, len: u64) -> io::Result<Self> {
        let raw = match address_space(len)? {
            0 => None,
            len => Some(MmapOptions::new().len(len).map_raw_read_only(file)?),
        };
        Ok(Self {
            raw,
            writable: false,
        })
    }

    /// Maps `len` bytes for reading and writing; what is written is the file's.
    pub(crate) fn shared(file: &File, len: u64) -> io::Result<Self> {
        let raw = match address_space(len)? {
            0 => None,
            len => Some(MmapOptions::new().len(len).map_raw(file)?),
        };
        Ok(Self {
            raw,
            writable: true,
        })
    }

    /// The same mapping, to be written through, for a file that is given another
    /// length.
    pub(crate) fn resize(self, file: &File, len: u64) -> io::Result<Self> {
        if self.len() == len && self.writable {
            return Ok(self);
        }
        drop(self);
        file.set_len(len)?;
        Self::shared(file, len)
    }

    pub(crate) fn len(&self) -> u64 {
        self.raw.as_ref().map_or(0, |raw| raw.len() as u64)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.raw {
            None => &[],
            // SAFETY: the mapping is `len` bytes long, readable, and lives as
            // long as `self`; the module's invariant keeps it from being
            // written through this process while the slice is lent.
            Some(raw) => unsafe { std::slice::from_raw_parts(raw.as_ptr(), raw.len()) },
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(self.writable, "a mapping for reading is never written");
        match &self.raw {
            None => &mut [],
            // SAFETY: as above, and it was mapped for writing; `&mut self`
            // makes this the only slice of it in this process.
            Some(raw) => unsafe { std::slice::from_raw_parts_mut(raw.as_mut_ptr(), raw.len()) },
        }
    }
}

fn address_space(len: u64) -> io::Result<usize> {
    usize::try_from(len)
        .ok()
        .filter(|&len| isize::try_from(len).is_ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))
}
