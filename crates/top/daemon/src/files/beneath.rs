//! Paths below a folder, and opening what they name and nothing else.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use firesteel_api::{Code, Problem};
use firesteel_base::limits;
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

/// Bytes of one name; file systems stop there too.
const NAME: usize = 255;

/// Times a lookup is tried again when somebody moves things about meanwhile.
#[cfg(target_os = "linux")]
const TRIES: usize = 16;

/// A path below a folder. Empty: the folder itself.
pub(super) struct Place<'a> {
    path: &'a str,
}

/// What a path names.
pub(super) enum Opened {
    /// A regular file.
    File(File),
    /// A folder.
    Folder(File),
}

impl<'a> Place<'a> {
    /// Sees whether a path is one that leads nowhere but below its folder.
    pub(super) fn parse(given: &'a str) -> Result<Self, Problem> {
        let wrong = |what: &str| {
            let shown: String = given.chars().take(80).collect();
            Err(
                Problem::new(Code::Invalid, format!("the path {shown:?} {what}"))
                    .with_hint("give a path relative to the folder, as `ls` shows it")
                    .with_field("path"),
            )
        };
        if given.len() > limits::FILES_PATH {
            return wrong("is too long");
        }
        if given.starts_with('/') {
            return wrong("is absolute");
        }
        if given.chars().any(char::is_control) {
            return wrong("holds a control character");
        }
        let path = given.trim_end_matches('/');
        let path = path.strip_prefix("./").unwrap_or(path);
        let path = if path == "." { "" } else { path };
        for part in path.split('/').filter(|_| !path.is_empty()) {
            match part {
                ".." => return wrong("leads upwards (..)"),
                "" | "." => return wrong("has a part that is empty or a dot"),
                _ if part.len() > NAME => return wrong("has a name of more than 255 bytes"),
                _ => {}
            }
        }
        Ok(Self { path })
    }

    /// The last name.
    pub(super) fn last(&self) -> Option<&'a str> {
        self.path.rsplit('/').next().filter(|name| !name.is_empty())
    }

    /// Opens what it names.
    pub(super) fn open(&self, root: &File) -> Result<Opened, Problem> {
        let path = if self.path.is_empty() { "." } else { self.path };
        open(root, path).map_err(|why| {
            Problem::new(Code::FileNotFound, format!("`{}`: {why}", self.path)).with_field("path")
        })
    }

    /// The file that it names.
    pub(super) fn file(&self, root: &File) -> Result<File, Problem> {
        match self.open(root)? {
            Opened::File(file) => Ok(file),
            Opened::Folder(_) => Err(Problem::new(
                Code::Invalid,
                format!("`{}` is a folder", self.path),
            )
            .with_hint("`ls` shows what is in it")
            .with_field("path")),
        }
    }
}

/// Opens a regular file or a folder below a folder, following no link on the way.
///
/// # Errors
/// A sentence that says why not.
pub(super) fn open(folder: impl AsFd, path: &str) -> Result<Opened, String> {
    let opened = lookup(folder.as_fd(), path).map_err(|errno| match errno {
        Errno::NOENT => "there is no such file".to_owned(),
        // Refused by the lookup: a link, or the way out.
        Errno::LOOP | Errno::XDEV => "a symbolic link is in the way".to_owned(),
        Errno::NOTDIR => "a part of its path is no folder".to_owned(),
        Errno::NXIO => "it is no file and no folder".to_owned(),
        errno => io::Error::from(errno).to_string(),
    })?;
    let stat = fstat(&opened).map_err(|errno| io::Error::from(errno).to_string())?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Opened::File(opened.into())),
        FileType::Directory => Ok(Opened::Folder(opened.into())),
        _ => Err("it is no file and no folder".to_owned()),
    }
}

// NONBLOCK: a pipe in its place would hold us until it is written to.
const LAST: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOFOLLOW);

#[cfg(target_os = "linux")]
fn lookup(folder: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    use rustix::fs::{ResolveFlags, openat2};
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match openat2(folder.as_fd(), path, LAST, Mode::empty(), within) {
            // Somebody renames on the way: the kernel could not be sure.
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Old kernels and some sandboxes lack the call.
            Err(Errno::NOSYS | Errno::PERM) => break,
            result => return result,
        }
    }
    by_parts(folder, path)
}

#[cfg(not(target_os = "linux"))]
fn lookup(folder: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    by_parts(folder, path)
}

/// The same, part by part: each is opened in the one before it, and is no link.
pub(super) fn by_parts(folder: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    let way = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let (folders, last) = path.rsplit_once('/').unwrap_or(("", path));
    let mut at: Option<OwnedFd> = None;
    for part in folders.split('/').filter(|part| !part.is_empty()) {
        at = Some(match &at {
            None => openat(folder.as_fd(), part, way, Mode::empty())?,
            Some(above) => openat(above, part, way, Mode::empty())?,
        });
    }
    match &at {
        None => openat(folder.as_fd(), last, LAST, Mode::empty()),
        Some(above) => openat(above, last, LAST, Mode::empty()),
    }
}
