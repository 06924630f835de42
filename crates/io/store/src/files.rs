//! Writing so that a reader sees the old file or the new one, never half of it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::StoreError;

/// Creates a directory and its missing parents, each for its owner only.
pub(crate) fn create_dir(path: &Path) -> Result<(), StoreError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| StoreError::new("create the directory", path, source))
}

/// Opens a directory, to name files below it whatever its path becomes.
pub(crate) fn open_dir(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(flags(
            rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::NOFOLLOW,
        ))
        .open(path)
        .map_err(|source| StoreError::new("open the directory", path, source))
}

pub(crate) fn flags(flags: rustix::fs::OFlags) -> i32 {
    // The bits are the kernel's own; `OpenOptions` wants them signed.
    flags.bits().cast_signed()
}

/// Writes `bytes` as `path`: aside first, then put in its place at once, mode
/// `mode`. Whatever goes wrong, `path` is what it was and nothing else is left.
///
/// Safe when the process is killed, not when the power is lost: nothing is
/// synced to the disk, and a file written in the last seconds before may be
/// damaged. Who must know finds that by a checksum.
///
/// # Errors
/// [`StoreError`] when the disk is full or the system refuses.
pub fn write_aside(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    let aside = aside_name(path);
    write_new(&aside, bytes, mode)
        .and_then(|()| replace(&aside, path))
        .map_err(|source| {
            // It may not exist; the first error is the one to tell.
            let _ = std::fs::remove_file(&aside);
            StoreError::sized("write", path, Some(bytes.len() as u64), source)
        })
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let open = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .custom_flags(flags(rustix::fs::OFlags::NOFOLLOW))
            .open(path)
    };
    let mut file = match open() {
        // Left by a process that was killed. The directory's lock says that
        // nobody else is writing it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(path)?;
            open()?
        }
        other => other?,
    };
    file.write_all(bytes)
}

/// Puts the file `aside` in the place of `path`, at once; the one that was there
/// is removed.
///
/// The two are exchanged: a plain rename over a file makes ext4 write the new
/// one to the disk first, which costs milliseconds per round.
fn replace(aside: &Path, path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let exchange = || renameat_with(CWD, aside, CWD, path, RenameFlags::EXCHANGE);
    if exchange().is_err() {
        // There is none yet, or the file system cannot exchange.
        return std::fs::rename(aside, path);
    }
    std::fs::remove_file(aside).inspect_err(|_| {
        // It was no file: a rename would have refused to replace it.
        let _ = exchange();
    })
}

/// `dir/.name.part` for `dir/name`.
pub(crate) fn aside_name(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".part");
    path.with_file_name(name)
}

/// Removes what a process that was killed left half-written in `dir`, which
/// only the holder of the run's lock writes.
pub(crate) fn remove_asides(dir: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::new("list", dir, source);
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let aside = name
            .to_str()
            .is_some_and(|name| name.starts_with('.') && name.ends_with(".part"));
        if aside {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file; that it is gone already is fine.
pub(crate) fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Gives `path` a second name, replacing what had that name at once. On file
/// systems without second names the bytes are copied.
pub(crate) fn link_over(path: &Path, to: &Path) -> Result<(), StoreError> {
    let aside = aside_name(to);
    remove_if_there(&aside)?;
    match std::fs::hard_link(path, &aside) {
        Ok(()) => {}
        Err(error) if no_links(&error) => {
            std::fs::copy(path, &aside).map_err(|source| {
                let _ = std::fs::remove_file(&aside);
                StoreError::new("copy to", to, source)
            })?;
        }
        Err(source) => return Err(StoreError::new("link", to, source)),
    }
    let replaced = replace(&aside, to);
    // Renaming one name of a file over another name of the same file does
    // nothing, and the aside name stays; so it is removed in any case.
    let removed = remove_if_there(&aside);
    replaced.map_err(|source| StoreError::new("rename to", to, source))?;
    removed
}

fn no_links(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK | Errno::XDEV | Errno::NOSYS)
    )
}

/// The number in `<prefix>000012<suffix>`, for names that this crate made.
pub(crate) fn number_in(name: &str, prefix: &str, suffix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
    let plain = digits.len() >= 6 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// Files in `dir` named `<prefix>000012<suffix>`, by number, lowest first.
pub(crate) fn numbered(
    dir: &Path,
    prefix: &str,
    suffix: &str,
) -> Result<Vec<(u32, PathBuf)>, StoreError> {
    let failed = |source| StoreError::new("list", dir, source);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| number_in(name, prefix, suffix));
        if let Some(number) = number {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn writing_aside_replaces_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_aside(&path, b"one", 0o400).unwrap();
        // What a killed process left is no obstacle.
        std::fs::write(aside_name(&path), b"half").unwrap();
        write_aside(&path, b"two", 0o400).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o400);
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::create_dir(&path).unwrap(); // a rename over a directory fails
        assert!(write_aside(&path, b"x", 0o600).is_err());
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn linking_over_itself_leaves_no_aside_name() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, b"x").unwrap();
        link_over(&a, &b).unwrap();
        link_over(&a, &b).unwrap();
        assert_eq!(names(dir.path()), ["a", "b"]);
        assert_eq!(a.metadata().unwrap().ino(), b.metadata().unwrap().ino());
    }

    #[test]
    fn only_our_own_names_are_numbers() {
        assert_eq!(
            number_in("round-000012.snapshot", "round-", ".snapshot"),
            Some(12)
        );
        assert_eq!(
            number_in("round-1000000.snapshot", "round-", ".snapshot"),
            Some(1_000_000)
        );
        for bad in [
            "round-12.snapshot",
            "round-+00012.snapshot",
            "round-000012.snapshot.part",
            "round-99999999999.snapshot",
            "round-.snapshot",
        ] {
            assert_eq!(number_in(bad, "round-", ".snapshot"), None, "{bad}");
        }
    }
}
