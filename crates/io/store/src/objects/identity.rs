//! Whether a file is still the one that was opened, and reading it so.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, Stat};
use rustix::io::ReadWriteFlags;

use super::{Body, ModelObject};
use crate::error::{ChangedError, ObjectError, StoreError};
use crate::files;

/// What a file that nobody writes to keeps: which one it is, its length, and
/// when it was written last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl Identity {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from(&rustix::fs::fstat(file)?))
    }

    /// Bytes of it.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Reads, and then looks whether the file is still the same: so what was
    /// read is of it.
    pub(crate) fn read_at(
        &self,
        file: &File,
        path: &Path,
        offset: u64,
        into: &mut [u8],
    ) -> io::Result<()> {
        let changed = || io::Error::other(ChangedError { path: path.into() });
        match file.read_exact_at(into, offset) {
            Ok(()) if Self::of(file)? == *self => Ok(()),
            Ok(()) => Err(changed()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                // Asking beyond the end is the caller's mistake, not a change.
                match Self::of(file)? == *self {
                    true => Err(error),
                    false => Err(changed()),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// The same of what lies in the page cache; how many of the first bytes do.
    pub(crate) fn read_cached_at(
        &self,
        file: &File,
        path: &Path,
        offset: u64,
        into: &mut [u8],
    ) -> io::Result<usize> {
        let mut read = 0;
        while let Some(rest) = into.get_mut(read..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(read as u64);
            let rest = &mut [IoSliceMut::new(rest)];
            match rustix::io::preadv2(file, rest, at, ReadWriteFlags::NOWAIT) {
                // The end, not there yet, or not known to this file system: for
                // `read_at` to find out.
                Ok(0) | Err(_) => break,
                Ok(more) => read += more,
            }
        }
        if read > 0 && Self::of(file)? != *self {
            return Err(io::Error::other(ChangedError { path: path.into() }));
        }
        Ok(read)
    }
}

impl From<&Stat> for Identity {
    #[allow(
        clippy::unnecessary_cast,
        reason = "these are of other widths on other systems"
    )]
    fn from(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            len: stat.st_size.cast_unsigned(),
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        }
    }
}

/// Reads a model in windows without touching its mapping. Holds the object, and
/// a descriptor as long as it lives.
#[derive(Debug)]
pub struct ObjectReader {
    object: ModelObject,
    file: Option<(File, Identity)>,
}

impl ModelObject {
    /// A reader for sending it.
    ///
    /// # Errors
    /// [`StoreError`] when its file cannot be opened.
    pub fn reader(&self) -> Result<ObjectReader, StoreError> {
        let file = match &self.0.body {
            Body::Mapped(Some(mapped)) => Some((read_only(&mapped.path)?, mapped.identity)),
            _ => None,
        };
        Ok(ObjectReader {
            object: self.clone(),
            file,
        })
    }

    /// Whether its file is as it was when the object was made: neither cut nor
    /// written to by somebody who may do so. To be asked before a mapping is
    /// walked through, which a file that was cut would end with SIGBUS.
    ///
    /// # Errors
    /// [`ObjectError::Truncated`] or [`ObjectError::Altered`], with the path.
    pub fn check_intact(&self) -> Result<(), ObjectError> {
        let Body::Mapped(Some(mapped)) = &self.0.body else {
            return Ok(());
        };
        let path = &mapped.path;
        let now = rustix::fs::lstat(path).map_err(|e| StoreError::new("look at", path, e))?;
        let now = Identity::from(&now);
        let was = mapped.identity;
        if now == was {
            Ok(())
        } else if now.inode == was.inode && now.device == was.device && now.len < was.len {
            Err(ObjectError::Truncated {
                path: path.clone(),
                length: now.len,
                expected: was.len,
            })
        } else {
            Err(ObjectError::Altered { path: path.clone() })
        }
    }
}

impl ObjectReader {
    /// Bytes of the whole file.
    #[expect(clippy::len_without_is_empty, reason = "a model file is never empty")]
    pub fn len(&self) -> u64 {
        self.object.len()
    }

    /// The object that it reads.
    pub fn object(&self) -> &ModelObject {
        &self.object
    }

    /// Fills `into` with the file's bytes from `offset` on.
    ///
    /// # Errors
    /// As the system says, or a [`ChangedError`] when the file was changed.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        match (&self.file, &self.object.0.body) {
            (Some((file, identity)), Body::Mapped(Some(mapped))) => {
                identity.read_at(file, &mapped.path, offset, into)
            }
            _ => {
                let from = usize::try_from(offset).ok();
                let bytes = from.and_then(|from| self.object.bytes().get(from..));
                let bytes = bytes.and_then(|bytes| bytes.get(..into.len()));
                into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    /// Fills the start of `into` with what can be had without waiting for a disk;
    /// how many bytes those are.
    ///
    /// # Errors
    /// A [`ChangedError`] when the file was changed.
    pub fn read_cached_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        match (&self.file, &self.object.0.body) {
            (Some((file, identity)), Body::Mapped(Some(mapped))) => {
                identity.read_cached_at(file, &mapped.path, offset, into)
            }
            _ => self.read_at(offset, into).map(|()| into.len()),
        }
    }
}

/// A file of the user's own that is offered to others: only ever read, never
/// mapped, for somebody may cut it.
#[derive(Debug)]
pub struct PlainFile {
    path: PathBuf,
    file: File,
    identity: Identity,
}

impl PlainFile {
    /// Opens it.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be opened or is no regular file.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::new("open", path, source);
        // NONBLOCK, or a pipe would hold us until somebody writes to it.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(files::flags(OFlags::NONBLOCK | OFlags::CLOEXEC))
            .open(path)
            .map_err(failed)?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| failed(errno.into()))?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            let why = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
            return Err(failed(why));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            identity: Identity::from(&stat),
        })
    }

    /// Bytes it had when it was opened.
    pub fn len(&self) -> u64 {
        self.identity.len
    }

    /// Whether it had none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `into` with its bytes from `offset` on.
    ///
    /// # Errors
    /// As the system says, or a [`ChangedError`] when it is not the file any more
    /// that was opened.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.identity.read_at(&self.file, &self.path, offset, into)
    }
}

fn read_only(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(files::flags(OFlags::NOFOLLOW | OFlags::CLOEXEC))
        .open(path)
        .map_err(|source| StoreError::new("open", path, source))
}
