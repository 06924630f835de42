//! A model while it is being written.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use firesteel_base::limits;
use firesteel_tensor::ModelHeader;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::identity::Identity;
use super::{Body, Mapped, ModelObject, ObjectId, Objects, lock};
use crate::error::{ObjectError, StoreError, is_full};
use crate::mmap::Mapping;
use crate::spool::Reservation;
use crate::{disk, files};

/// A model that is being written. Dropped unfinished, it leaves nothing.
///
/// A file that was used before still holds its old bytes: write all of it.
pub struct Output {
    objects: Objects,
    id: ObjectId,
    path: PathBuf,
    room: Room,
    reservation: Option<Reservation>,
}

enum Room {
    Memory(Vec<u8>),
    /// `None` once it is finished.
    File(Option<(File, Mapping, PathBuf)>),
}

impl Output {
    pub(super) fn new(objects: &Objects, len: u64) -> Result<Self, StoreError> {
        let (id, path) = objects.new_name();
        let small = usize::try_from(len)
            .ok()
            .filter(|&len| len <= limits::INLINE_OBJECT);
        let room = match small {
            Some(len) => Room::Memory(vec![0; len]),
            None => Room::File(Some(
                match reused(objects, &path, len) {
                    Some(room) => Ok(room),
                    None => with_room(objects, len, || fresh(&path, len)),
                }
                .map_err(|source| {
                    StoreError::sized("make room for the model", &path, Some(len), source)
                })?,
            )),
        };
        Ok(Self {
            objects: objects.clone(),
            id,
            path,
            room,
            reservation: None,
        })
    }

    /// Counts against a spool's budget as long as this, or the object that comes
    /// of it, lives.
    #[must_use]
    pub fn hold(mut self, reservation: Reservation) -> Self {
        self.reservation = Some(reservation);
        self
    }

    /// Bytes of the whole file.
    #[expect(clippy::len_without_is_empty, reason = "a model file is never empty")]
    pub fn len(&self) -> u64 {
        match &self.room {
            Room::Memory(bytes) => bytes.len() as u64,
            Room::File(room) => room.as_ref().map_or(0, |(_, mapping, _)| mapping.len()),
        }
    }

    /// Writes bytes where they belong: for writers that go through the file in
    /// windows, whose memory then does not grow with it as that of
    /// [`Output::bytes_mut`] does.
    ///
    /// # Errors
    /// As the system says; `InvalidInput` for bytes beyond the end.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match &mut self.room {
            Room::Memory(room) => {
                // It is small, so its length fits.
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let room = room.get_mut(start..).and_then(|r| r.get_mut(..bytes.len()));
                room.ok_or(io::ErrorKind::InvalidInput)?
                    .copy_from_slice(bytes);
                Ok(())
            }
            Room::File(Some((file, _, _))) => file.write_all_at(bytes, offset),
            Room::File(None) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// The whole file, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.room {
            Room::Memory(bytes) => bytes,
            Room::File(Some((_, mapping, _))) => mapping.bytes_mut(),
            Room::File(None) => &mut [],
        }
    }

    /// Ends the writing: the bytes never change again.
    ///
    /// # Errors
    /// [`ObjectError::Malformed`] when what was written is not a model.
    pub fn finish(mut self) -> Result<ModelObject, ObjectError> {
        let malformed = |source| ObjectError::Malformed { source };
        let (header, body) = match &mut self.room {
            Room::Memory(bytes) => {
                let header = ModelHeader::parse(bytes, bytes.len() as u64).map_err(malformed)?;
                (header, Body::Memory(std::mem::take(bytes)))
            }
            Room::File(room) => {
                let (_, mapping, aside) = room
                    .as_ref()
                    .expect("only `finish` takes it, and only once");
                let bytes = mapping.bytes();
                let header = ModelHeader::parse(bytes, bytes.len() as u64).map_err(malformed)?;
                std::fs::rename(aside, &self.path)
                    .map_err(|source| StoreError::new("rename to", &self.path, source))?;
                let (file, mapping, _) = room.take().expect("it was there a moment ago");
                let identity = Identity::of(&file)
                    .map_err(|source| StoreError::new("look at", &self.path, source))?;
                let mapped = Mapped {
                    path: self.path.clone(),
                    mapping,
                    writable: Some(file),
                    identity,
                    adopted: false,
                    received: None,
                    reservation: self.reservation.take(),
                };
                (header, Body::Mapped(Some(mapped)))
            }
        };
        Ok(self.objects.register(self.id, header, body))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Room::File(Some((_, _, aside))) = &self.room {
            let _ = std::fs::remove_file(aside);
        }
    }
}

/// A file from the pool, cut to `len`. That something fails here is no reason
/// to fail: there is always a fresh file.
fn reused(objects: &Objects, path: &Path, len: u64) -> Option<(File, Mapping, PathBuf)> {
    let spare = lock(&objects.0.pool).take(len)?;
    let aside = files::aside_name(path);
    let moved = std::fs::rename(&spare.path, &aside);
    let mapping = moved.and_then(|()| spare.mapping.resize(&spare.file, len));
    match mapping {
        Ok(mapping) => Some((spare.file, mapping, aside)),
        Err(_) => {
            let _ = std::fs::remove_file(&spare.path);
            let _ = std::fs::remove_file(&aside);
            None
        }
    }
}

/// A new file that owns all its blocks: writing to a mapping of one that does
/// not ends the process with SIGBUS when the disk is full.
fn fresh(path: &Path, len: u64) -> io::Result<(File, Mapping, PathBuf)> {
    let aside = files::aside_name(path);
    // Born read-only: nobody but this descriptor ever writes it.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o400)
        .custom_flags(files::flags(OFlags::NOFOLLOW))
        .open(&aside)?;
    let mapping = allocate(&file, len).and_then(|()| Mapping::shared(&file, len));
    match mapping {
        Ok(mapping) => Ok((file, mapping, aside)),
        Err(error) => {
            let _ = std::fs::remove_file(&aside);
            Err(error)
        }
    }
}

/// Makes a file of `len` bytes. Before it says that the disk is full, files that
/// wait to be written again are given up.
pub(super) fn with_room<T>(
    objects: &Objects,
    len: u64,
    make: impl Fn() -> io::Result<T>,
) -> io::Result<T> {
    let make = || match disk::plainly_too_small(&objects.0.dir, len) {
        // Asking for the blocks would take all that is left from others, for as
        // long as it takes to find out.
        true => Err(Errno::NOSPC.into()),
        false => make(),
    };
    match make() {
        Err(error) if is_full(&error) && objects.remove_spares() => make(),
        other => other,
    }
}

pub(super) fn allocate(file: &File, len: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            // A file system that cannot promise blocks gets zeros written.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return write_zeros(file, len),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn write_zeros(file: &File, len: u64) -> io::Result<()> {
    let zeros = vec![0u8; 1024 * 1024];
    let mut at = 0;
    while at < len {
        let left = usize::try_from(len - at).unwrap_or(usize::MAX);
        let chunk = zeros.get(..left.min(zeros.len())).unwrap_or(&zeros);
        file.write_all_at(chunk, at)?;
        at += chunk.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeros_take_the_place_of_a_promise() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = File::create(&path).unwrap();
        write_zeros(&file, 2_500_000).unwrap();
        let meta = path.metadata().unwrap();
        assert_eq!(meta.len(), 2_500_000);
        assert!(meta.blocks() * 512 >= 2_500_000, "it is sparse");
    }
}
