//! The directory into which a trainer writes its results.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{ObjectError, StoreError};
use crate::files;

/// The name of the file that a trainer may write its next result into instead of
/// a new one: it renames it, writes it from the start and cuts it to its length.
/// `firesteel._native.write_model` looks for it beside what it writes.
pub const SPARE: &str = ".firesteel-spare";

/// A trainer's outbox: held open, so that files are found in it even when
/// somebody puts another directory or a link in its place.
#[derive(Debug)]
pub struct Outbox {
    path: PathBuf,
    dir: File,
}

impl Outbox {
    /// Creates the directory, if need be, and opens it.
    ///
    /// # Errors
    /// [`StoreError`] when that fails, or a link is in its place.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        files::create_dir(path)?;
        Ok(Self {
            path: path.to_owned(),
            dir: files::open_dir(path)?,
        })
    }

    /// Its path, for the trainer.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes whatever lies in it: results that nobody will ask for, of a
    /// trainer that failed.
    ///
    /// # Errors
    /// [`StoreError`] when the system refuses.
    pub fn clear(&self) -> Result<(), StoreError> {
        let failed = |source| StoreError::new("empty", &self.path, source);
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                // Never followed: `remove_dir_all` does not cross links.
                std::fs::remove_dir_all(entry.path()).map_err(failed)?;
            } else {
                files::remove_if_there(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Whether a file to be written again lies in it.
    pub(crate) fn has_spare(&self) -> bool {
        rustix::fs::statat(&self.dir, SPARE, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Puts the file `path` into it, for the trainer to write its next result
    /// into; false when that cannot be, as somebody still has it, say.
    pub(crate) fn put_spare(&self, path: &Path) -> bool {
        let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(rustix::fs::CWD, path, open, Mode::empty()) else {
            return false;
        };
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR).is_ok()
            && rustix::fs::renameat(rustix::fs::CWD, path, &self.dir, SPARE).is_ok()
    }

    /// Opens the file that a trainer named and checks what it is.
    pub(crate) fn offered(&self, given: &str) -> Result<Offered<'_>, ObjectError> {
        let name = self.plain_name(given).ok_or_else(|| ObjectError::Name {
            name: given.chars().take(255).collect(),
        })?;
        // NONBLOCK, or a pipe in its place would hold us until it is written.
        let open = rustix::fs::openat(
            &self.dir,
            name,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK,
            Mode::empty(),
        );
        let name = name.to_owned();
        let file = match open {
            Ok(file) => file,
            Err(Errno::NOENT) => return Err(ObjectError::Missing { name }),
            Err(Errno::LOOP) => {
                let why = "it is a symbolic link";
                return Err(ObjectError::Refused { name, why });
            }
            Err(Errno::NXIO) => {
                let why = "it is a socket or a device";
                return Err(ObjectError::Refused { name, why });
            }
            Err(errno) => return Err(self.failed("open", &name, errno).into()),
        };
        let stat = stat(&file).map_err(|errno| self.failed("look at", &name, errno))?;
        if let Some(why) = not_ours(&stat) {
            return Err(ObjectError::Refused { name, why });
        }
        Ok(Offered {
            outbox: self,
            name,
            file,
            stat,
        })
    }

    /// One plain component, given alone or behind the outbox's own path.
    fn plain_name<'a>(&self, given: &'a str) -> Option<&'a str> {
        let own = self
            .path
            .to_str()
            .and_then(|own| given.strip_prefix(own)?.strip_prefix('/'));
        let name = own.unwrap_or(given);
        let plain = !name.is_empty()
            && name.len() <= 255
            && !matches!(name, "." | "..")
            && !name.contains(['/', '\0']);
        plain.then_some(name)
    }

    fn failed(&self, doing: &'static str, name: &str, errno: Errno) -> StoreError {
        StoreError::new(doing, &self.path.join(name), errno)
    }
}

fn stat(file: &OwnedFd) -> rustix::io::Result<Stat> {
    rustix::fs::fstat(file)
}

pub(crate) fn not_ours(stat: &Stat) -> Option<&'static str> {
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        Some("it is not a regular file")
    } else if stat.st_uid != rustix::process::geteuid().as_raw() {
        Some("it belongs to another user")
    } else if stat.st_nlink != 1 {
        Some("it has further names (hard links)")
    } else {
        None
    }
}

/// A file of the outbox, open and found to be what it should.
pub(crate) struct Offered<'a> {
    outbox: &'a Outbox,
    name: String,
    file: OwnedFd,
    stat: Stat,
}

/// The same file under our name.
pub(crate) struct Taken {
    pub(crate) file: File,
    pub(crate) len: u64,
    name: String,
    stat: Stat,
}

impl Offered<'_> {
    /// Renames it to `path`, read-only.
    pub(crate) fn take(self, path: &Path) -> Result<Taken, ObjectError> {
        let Self {
            outbox,
            name,
            file,
            stat,
        } = self;
        let renamed = rustix::fs::renameat(&outbox.dir, &*name, rustix::fs::CWD, path);
        match renamed {
            Ok(()) => {}
            Err(Errno::NOENT) => return Err(ObjectError::Changed { name }),
            Err(Errno::XDEV) => return copied(outbox, &name, file, &stat, path),
            Err(errno) => return Err(outbox.failed("take", &name, errno).into()),
        }
        let mode = Mode::RUSR;
        let now = rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW);
        let same = now.is_ok_and(|now| now.st_ino == stat.st_ino && now.st_dev == stat.st_dev);
        if !same {
            // Somebody renamed another file to that name meanwhile.
            let _ = std::fs::remove_file(path);
            return Err(ObjectError::Changed { name });
        }
        if let Err(errno) = rustix::fs::fchmod(&file, mode) {
            let _ = std::fs::remove_file(path);
            return Err(outbox.failed("protect", &name, errno).into());
        }
        Ok(Taken {
            len: stat.st_size.cast_unsigned(),
            file: file.into(),
            name,
            stat,
        })
    }
}

/// An outbox on another file system than the run's: its file is copied.
fn copied(
    outbox: &Outbox,
    name: &str,
    file: OwnedFd,
    before: &Stat,
    path: &Path,
) -> Result<Taken, ObjectError> {
    use std::os::unix::fs::OpenOptionsExt;
    let len = before.st_size.cast_unsigned();
    let failed = |source| StoreError::sized("copy the result to", path, Some(len), source);
    let mut source = File::from(file);
    let mut target = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)
        .map_err(failed)?;
    let copy =
        std::io::copy(&mut source, &mut target).and_then(|_| std::io::Seek::rewind(&mut target));
    if let Err(error) = copy {
        let _ = std::fs::remove_file(path);
        return Err(failed(error).into());
    }
    let _ = rustix::fs::unlinkat(&outbox.dir, name, AtFlags::empty());
    let stat = rustix::fs::fstat(&target).map_err(|errno| failed(errno.into()))?;
    let taken = Taken {
        len: stat.st_size.cast_unsigned(),
        file: target,
        name: name.to_owned(),
        stat,
    };
    if taken.len != len {
        let _ = std::fs::remove_file(path);
        return Err(ObjectError::Changed {
            name: name.to_owned(),
        });
    }
    Ok(taken)
}

impl Taken {
    /// That the file still has the size it had, that `read` bytes of it were
    /// seen, and that nobody gave it a further name.
    pub(crate) fn check_unchanged(&self, read: u64) -> Result<(), ObjectError> {
        let changed = || ObjectError::Changed {
            name: self.name.clone(),
        };
        let now = rustix::fs::fstat(&self.file).map_err(|_| changed())?;
        let same = now.st_size == self.stat.st_size
            && now.st_mtime == self.stat.st_mtime
            && now.st_mtime_nsec == self.stat.st_mtime_nsec
            && now.st_nlink == 1
            && read == self.len;
        if same { Ok(()) } else { Err(changed()) }
    }
}
