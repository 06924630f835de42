//! The directory beside the database.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use crate::JobsError;

pub(crate) const JOBS: &str = "jobs";
pub(crate) const INCOMING: &str = "incoming";
const LOCK: &str = "lock";

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> JobsError + 'a {
    move |source| JobsError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// Makes the directories, its owner's alone, and takes them for this process.
pub(crate) fn prepare(dir: &Path) -> Result<File, JobsError> {
    for path in [dir, &dir.join(JOBS), &dir.join(INCOMING)] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("make the directory", path))?;
    }
    let path = dir.join(LOCK);
    let lock = File::create(&path).map_err(failed("lock", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(JobsError::Busy {
            path: dir.to_owned(),
        }),
        Err(fs::TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
    }
}

/// Removes what an earlier process had not taken in, and what it had begun to
/// remove.
pub(crate) fn sweep(dir: &Path) -> Result<(), JobsError> {
    let path = dir.join(INCOMING);
    let entries = fs::read_dir(&path).map_err(failed("read", &path))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(failed("remove", &path))?;
    }
    Ok(())
}

/// The names in a directory, but those that are no text.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, JobsError> {
    let entries = fs::read_dir(dir).map_err(failed("read", dir))?;
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().into_string());
    Ok(names.filter_map(Result::ok).collect())
}

/// Removes a job's files: at once for whoever looks, then from the disk.
pub(crate) fn remove(dir: &Path, gone: &Path) -> Result<(), JobsError> {
    match fs::rename(dir, gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(failed("remove", dir))?,
    }
    fs::remove_dir_all(gone).map_err(failed("remove", gone))
}
