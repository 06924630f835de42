//! A model while it is being written.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use firesteel_base::limits;
use firesteel_tensor::ModelHeader;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::{Body, Mapped, ModelObject, ObjectId, Objects, lock};
use crate::error::{ObjectError, StoreError};
use crate::files;
use crate::mmap::Mapping;

/// A model that is being written. Dropped unfinished, it leaves nothing.
///
/// A file that was used before still holds its old bytes: write all of it.
pub struct Output {
    objects: Objects,
    id: ObjectId,
    path: PathBuf,
    room: Room,
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
                    None => fresh(&path, len),
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
        })
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
                let mapped = Mapped {
                    path: self.path.clone(),
                    mapping,
                    writable: Some(file),
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

fn allocate(file: &File, len: u64) -> io::Result<()> {
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
