//! Models in flight: bytes in memory, or immutable files that are mapped.

mod identity;
mod incoming;
mod lent;
mod output;
mod pool;
mod ranges;

pub use identity::{ObjectReader, PlainFile};
pub use incoming::{Found, Incoming, Part, PartName, PartProblem, ReceivedFile};
pub use output::Output;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use firesteel_base::limits;
use firesteel_tensor::ModelHeader;
use rustix::fs::{FlockOperation, OFlags};

use crate::error::{ObjectError, StoreError};
use crate::files;
use crate::mmap::Mapping;
use crate::outbox::Outbox;
use crate::spool::Reservation;
use identity::Identity;
use incoming::Claim;
use lent::Returned;
use pool::{Pool, Spare};

/// What names an object among all of one [`Objects`]; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub u64);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The models in flight of one run: makes them, finds them by id, uses their
/// files again. A clone is another handle to the same.
///
/// Everything here blocks, but for objects up to `limits::INLINE_OBJECT` no
/// call touches the disk. Dropping the last handle to a large object unmaps and
/// unlinks a file, which takes some milliseconds per 100 MB.
#[derive(Clone)]
pub struct Objects(Arc<Shelf>);

struct Shelf {
    dir: PathBuf,
    next: AtomicU64,
    known: Mutex<HashMap<u64, Weak<Object>>>,
    pool: Mutex<Pool>,
    returned: Mutex<Returned>,
    /// Names of files that are being received, or whose objects live.
    claimed: Mutex<HashSet<PartName>>,
    keep_received: AtomicBool,
}

/// A model or an update: a handle, cheap to clone, to bytes that never change.
///
/// The bytes are in memory, or a mapped file of mode 0400 that is unlinked when
/// the last handle is dropped, unless [`crate::KeptModels`] gave it another
/// name.
#[derive(Clone)]
pub struct ModelObject(Arc<Object>);

struct Object {
    id: ObjectId,
    header: ModelHeader,
    body: Body,
    shelf: Arc<Shelf>,
}

enum Body {
    Memory(Vec<u8>),
    /// `None` only while it is being dropped.
    Mapped(Option<Mapped>),
}

struct Mapped {
    path: PathBuf,
    mapping: Mapping,
    /// Kept for files that this process wrote itself: they may be written again
    /// when nobody needs them.
    writable: Option<File>,
    /// As it was when the object was made.
    identity: Identity,
    /// A trainer wrote it.
    adopted: bool,
    /// The name under which it came from afar, which is free again once the file
    /// has given it up.
    received: Option<Claim>,
    /// Given back when the object goes.
    reservation: Option<Reservation>,
}

impl Objects {
    /// Uses `dir` for files in flight, creating it if need be. What an earlier
    /// process left there is removed, but for what it was receiving: that is
    /// found again by [`Objects::incoming`].
    ///
    /// # Errors
    /// [`StoreError`] when the directory cannot be made or emptied.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        files::create_dir(dir)?;
        let failed = |source| StoreError::new("list", dir, source);
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name() != incoming::DIR {
                incoming::remove_whatever(&entry.path())?;
            }
        }
        Ok(Self(Arc::new(Shelf {
            dir: dir.to_owned(),
            next: AtomicU64::new(1),
            known: Mutex::default(),
            pool: Mutex::default(),
            returned: Mutex::default(),
            claimed: Mutex::default(),
            keep_received: AtomicBool::new(false),
        })))
    }

    /// An object of these bytes. Up to `limits::INLINE_OBJECT` they stay in
    /// memory; more become a file.
    ///
    /// # Errors
    /// [`ObjectError::Malformed`] when they are no model, [`StoreError`] when a
    /// file cannot be written.
    pub fn from_bytes(&self, bytes: impl Into<Vec<u8>>) -> Result<ModelObject, ObjectError> {
        let bytes = bytes.into();
        if bytes.len() <= limits::INLINE_OBJECT {
            return self.in_memory(bytes);
        }
        let mut output = self.output(bytes.len() as u64)?;
        output.bytes_mut().copy_from_slice(&bytes);
        drop(bytes);
        output.finish()
    }

    /// Room for an object of `len` bytes: in memory when small; otherwise a file
    /// with all its blocks allocated, so that a full disk shows now.
    ///
    /// # Errors
    /// [`StoreError::Full`] when the disk has no room for it.
    pub fn output(&self, len: u64) -> Result<Output, StoreError> {
        Output::new(self, len)
    }

    /// Takes a file that a trainer wrote into its outbox. From here on the
    /// object owns it, under a name of ours.
    ///
    /// `name` is the file's name, or its path within the outbox's.
    ///
    /// # Errors
    /// [`ObjectError`] unless it is a regular file of our own, with one name,
    /// that nobody writes to meanwhile and that holds a model. A file that was
    /// refused for its bytes is removed; one refused for what it is stays.
    pub fn adopt(&self, outbox: &Outbox, name: &str) -> Result<ModelObject, ObjectError> {
        let offered = outbox.offered(name)?;
        let (id, path) = self.new_name();
        let taken = offered.take(&path)?;
        // From here the file has our name: whatever fails, it goes.
        let unlink = Unlink(&path);
        let len = taken.len;
        let object = if len <= limits::INLINE_OBJECT as u64 {
            let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
            (&taken.file)
                .take(len + 1)
                .read_to_end(&mut bytes)
                .map_err(|source| StoreError::new("read", &path, source))?;
            taken.check_unchanged(bytes.len() as u64)?;
            drop(unlink);
            return self.in_memory(bytes);
        } else {
            self.mapped(id, &path, &taken.file, len, true)?
        };
        std::mem::forget(unlink); // the object unlinks it from now on
        if let Err(error) = taken.check_unchanged(len) {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Ok(object)
    }

    /// A copy of a file that is not ours (an initial model), safe from whoever
    /// writes to it during the run.
    ///
    /// # Errors
    /// [`ObjectError`] when it cannot be read or is no model.
    pub fn import_copy(&self, path: &Path) -> Result<ModelObject, ObjectError> {
        let failed = |source| StoreError::new("read", path, source);
        let mut file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        if len <= limits::INLINE_OBJECT as u64 {
            let mut bytes = Vec::new();
            file.take(limits::INLINE_OBJECT as u64 + 1)
                .read_to_end(&mut bytes)
                .map_err(failed)?;
            return self.in_memory(bytes);
        }
        let mut output = self.output(len)?;
        file.read_exact(output.bytes_mut()).map_err(failed)?;
        output.finish()
    }

    /// A kept model of this run (one that [`crate::KeptModels`] wrote), under a
    /// second name: no byte is copied.
    ///
    /// # Errors
    /// [`ObjectError`] when it cannot be opened or is damaged.
    pub fn import_kept(&self, path: &Path) -> Result<ModelObject, ObjectError> {
        let failed = |source| StoreError::new("read", path, source);
        let len = path.metadata().map_err(failed)?.len();
        if len <= limits::INLINE_OBJECT as u64 {
            return self.in_memory(std::fs::read(path).map_err(failed)?);
        }
        let (id, own) = self.new_name();
        files::link_over(path, &own)?;
        let unlink = Unlink(&own);
        let file = File::open(&own).map_err(failed)?;
        let object = self.mapped(id, &own, &file, len, false)?;
        std::mem::forget(unlink);
        Ok(object)
    }

    /// The object with this id, while somebody holds it.
    pub fn get(&self, id: ObjectId) -> Option<ModelObject> {
        lock(&self.0.known)
            .get(&id.0)
            .and_then(Weak::upgrade)
            .map(ModelObject)
    }

    /// Where the files lie.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// How many files, and bytes of them, may wait to be written again.
    pub(crate) fn keep_spares(&self, files: usize, bytes: u64) {
        lock(&self.0.pool).limit(files, bytes);
    }

    /// Leaves at most so many bytes of them, but for a few files.
    pub(crate) fn trim_spares(&self, bytes: u64) {
        lock(&self.0.pool).trim(bytes);
    }

    /// Removes all of them, and those that trainers are to write; whether there
    /// were any.
    fn remove_spares(&self) -> bool {
        let own = lock(&self.0.pool).clear();
        lock(&self.0.returned).clear() || own
    }

    fn in_memory(&self, bytes: Vec<u8>) -> Result<ModelObject, ObjectError> {
        let (id, _) = self.new_name();
        let header = ModelHeader::parse(&bytes, bytes.len() as u64)
            .map_err(|source| ObjectError::Malformed { source })?;
        Ok(self.register(id, header, Body::Memory(bytes)))
    }

    fn mapped(
        &self,
        id: ObjectId,
        path: &Path,
        file: &File,
        len: u64,
        adopted: bool,
    ) -> Result<ModelObject, ObjectError> {
        let mapping =
            Mapping::read_only(file, len).map_err(|source| StoreError::new("map", path, source))?;
        let header = ModelHeader::parse(mapping.bytes(), len)
            .map_err(|source| ObjectError::Malformed { source })?;
        let identity =
            Identity::of(file).map_err(|source| StoreError::new("look at", path, source))?;
        let body = Body::Mapped(Some(Mapped {
            path: path.to_owned(),
            mapping,
            writable: None,
            identity,
            adopted,
            received: None,
            reservation: None,
        }));
        if adopted {
            lock(&self.0.returned).taken();
        }
        Ok(self.register(id, header, body))
    }

    fn register(&self, id: ObjectId, header: ModelHeader, body: Body) -> ModelObject {
        let object = Arc::new(Object {
            id,
            header,
            body,
            shelf: Arc::clone(&self.0),
        });
        lock(&self.0.known).insert(id.0, Arc::downgrade(&object));
        ModelObject(object)
    }

    fn new_name(&self) -> (ObjectId, PathBuf) {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let path = self.0.dir.join(format!("{id:06}.safetensors"));
        (ObjectId(id), path)
    }
}

impl ModelObject {
    /// Its id, by which [`Objects::get`] finds it.
    pub fn id(&self) -> ObjectId {
        self.0.id
    }

    /// What the file says of its tensors.
    pub fn header(&self) -> &ModelHeader {
        &self.0.header
    }

    /// The whole file: header and data.
    pub fn bytes(&self) -> &[u8] {
        match &self.0.body {
            Body::Memory(bytes) => bytes,
            Body::Mapped(Some(mapped)) => mapped.mapping.bytes(),
            Body::Mapped(None) => &[],
        }
    }

    /// Bytes of the whole file.
    #[expect(clippy::len_without_is_empty, reason = "a model file is never empty")]
    pub fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    /// Its file; `None` when it is in memory.
    pub fn path(&self) -> Option<&Path> {
        match &self.0.body {
            Body::Mapped(Some(mapped)) => Some(&mapped.path),
            _ => None,
        }
    }

    /// A descriptor of its own for a trainer, open for reading and under a
    /// shared lock; `None` when the object is in memory.
    ///
    /// The lock lasts as long as any copy of the descriptor or any mapping made
    /// from it, in whatever process, and keeps the file from being used again.
    ///
    /// # Errors
    /// [`StoreError`] when the system refuses.
    pub fn open_shared(&self) -> Result<Option<OwnedFd>, StoreError> {
        let Some(path) = self.path() else {
            return Ok(None);
        };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(files::flags(OFlags::NOFOLLOW | OFlags::CLOEXEC))
            .open(path)
            .map_err(|source| StoreError::new("open", path, source))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)
            .map_err(|errno| StoreError::new("lock", path, errno))?;
        Ok(Some(file.into()))
    }
}

impl fmt::Debug for ModelObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelObject")
            .field("id", &self.0.id.0)
            .field("len", &self.len())
            .field("path", &self.path())
            .finish()
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Objects").field(&self.0.dir).finish()
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        lock(&self.shelf.known).remove(&self.id.0);
        let Body::Mapped(mapped) = &mut self.body else {
            return;
        };
        let Some(Mapped {
            mut path,
            mapping,
            writable,
            received,
            reservation,
            identity,
            adopted,
        }) = mapped.take()
        else {
            return;
        };
        if adopted {
            drop(mapping);
            let file = lent::reusable(path, &identity);
            lock(&self.shelf.returned).put(file);
            return;
        }
        if received.is_some() {
            if self.shelf.keep_received.load(Ordering::Relaxed) {
                return;
            }
            // Its name is free for the next file that is received under it.
            let other = self.shelf.dir.join(format!("{:06}.safetensors", self.id.0));
            if std::fs::rename(&path, &other).is_ok() {
                path = other;
            }
        }
        match writable.filter(only_our_name) {
            Some(file) => lock(&self.shelf.pool).put(Spare {
                path,
                mapping,
                file,
            }),
            // Already gone, or the next `Objects::open` removes it.
            None => drop(std::fs::remove_file(&path)),
        }
        // Only now is the room free, or the file ready to be written again.
        drop((reservation, received));
    }
}

/// Whether a file has the one name that its object gave it: a kept model has
/// another and is never written again.
fn only_our_name(file: &File) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 1)
}

/// Removes a file unless it is forgotten.
struct Unlink<'a>(&'a Path);

impl Drop for Unlink<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

/// A thread that panicked while holding one of our locks left nothing
/// inconsistent: each holds it for one insertion or removal.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests;
