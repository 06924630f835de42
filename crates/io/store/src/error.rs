//! What can go wrong, in sentences that name the file and the cure.

use std::io;
use std::path::{Path, PathBuf};

use firesteel_base::Hint;

use crate::objects::PartName;

/// A file operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No space, no quota, or the process's file size limit was reached.
    /// Nothing half-written was left behind.
    #[error("the disk is full: could not {doing} `{}`{}", path.display(), room(*needed, *free))]
    Full {
        /// What was being done, as in "could not …".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Bytes that were asked for, when known.
        needed: Option<u64>,
        /// Bytes that are free there, when known.
        free: Option<u64>,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Anything else the system refused.
    #[error("could not {doing} `{}`", path.display())]
    Io {
        /// What was being done, as in "could not …".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// Sorts what the system said into full and other.
    pub(crate) fn new(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::sized(doing, path, None, source)
    }

    /// The same where the size asked for is known.
    pub(crate) fn sized(
        doing: &'static str,
        path: &Path,
        needed: Option<u64>,
        source: impl Into<io::Error>,
    ) -> Self {
        let source = source.into();
        let path = path.to_owned();
        if is_full(&source) {
            let free = path.parent().and_then(|dir| crate::disk::free(dir).ok());
            Self::Full {
                doing,
                path,
                needed,
                free,
                source,
            }
        } else {
            Self::Io {
                doing,
                path,
                source,
            }
        }
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

/// `FileTooLarge` is what a process's own file size limit (`ulimit -f`) gives.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

fn room(needed: Option<u64>, free: Option<u64>) -> String {
    match (needed, free) {
        (Some(needed), Some(free)) => {
            format!(" ({} needed, {} free)", bytes(needed), bytes(free))
        }
        (None, Some(free)) => format!(" ({} free)", bytes(free)),
        (Some(needed), None) => format!(" ({} needed)", bytes(needed)),
        (None, None) => String::new(),
    }
}

impl Hint for StoreError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Full { path, .. } => Some(format!(
                "free some space on the disk of `{}`, or choose another place with `workspace_root`; the run can then be continued with `resume=True`",
                path.parent().unwrap_or(path).display()
            )),
            Self::Io { source, path, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(format!(
                    "check who owns `{}`, or choose another place with `workspace_root`",
                    path.parent().unwrap_or(path).display()
                ))
            }
            Self::Io { .. } => None,
        }
    }
}

/// What was offered is not a model that can be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The system refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The name is not that of a file directly in the outbox.
    #[error("{name:?} is not the name of a file in the outbox")]
    Name {
        /// The name as given, at most 255 characters of it.
        name: String,
    },
    /// There is no such file.
    #[error("there is no file {name:?} in the outbox")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A link, a directory, a pipe, a file of somebody else, or one that has
    /// further names.
    #[error("the file {name:?} in the outbox cannot be taken: {why}")]
    Refused {
        /// Its name.
        name: String,
        /// What it is.
        why: &'static str,
    },
    /// Somebody wrote to it while it was being taken.
    #[error("the file {name:?} in the outbox changed while it was being taken")]
    Changed {
        /// Its name.
        name: String,
    },
    /// Bytes of it have not been received.
    #[error("`{name}` is not complete: {missing} of {len} bytes are missing")]
    Incomplete {
        /// The name under which it is received.
        name: String,
        /// Bytes that are missing.
        missing: u64,
        /// Bytes of all of it.
        len: u64,
    },
    /// Somebody cut the file of an object.
    #[error("`{}` was cut to {length} of its {expected} bytes", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        length: u64,
        /// Bytes there were.
        expected: u64,
    },
    /// Somebody wrote to the file of an object, or put another in its place.
    #[error("`{}` was changed or exchanged after it was checked", path.display())]
    Altered {
        /// The file.
        path: PathBuf,
    },
    /// Its bytes are not a model.
    #[error("not a model file")]
    Malformed {
        /// What is wrong with them.
        #[source]
        source: firesteel_tensor::HeaderError,
    },
}

impl Hint for ObjectError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Refused { .. } | Self::Changed { .. } | Self::Missing { .. } => Some(
                "write the result to the outbox once, close it, and hand it over by name; `flare.send` does so".into(),
            ),
            Self::Truncated { .. } | Self::Altered { .. } => Some(
                "nobody but the product may write to its directories; the update is asked for again".into(),
            ),
            Self::Name { .. } | Self::Malformed { .. } | Self::Incomplete { .. } => None,
        }
    }
}

/// A file cannot be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IncomingError {
    /// The system refused, most likely for lack of room.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is being received already, or what came of it is still held.
    #[error("`{name}` is being received already, or still in use")]
    Busy {
        /// Its name.
        name: PartName,
    },
    /// No file can be so long.
    #[error("a file of {len} bytes cannot be received: no file can be so long")]
    TooLong {
        /// Bytes it should have.
        len: u64,
    },
}

impl Hint for IncomingError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Busy { .. } | Self::TooLong { .. } => None,
        }
    }
}

/// A file changed while it was being sent; what a reader's `io::Error` holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` changed while it was being sent", path.display())]
pub struct ChangedError {
    /// The file.
    pub path: PathBuf,
}

impl Hint for ChangedError {
    fn hint(&self) -> Option<String> {
        Some("write a new file and offer that, instead of changing one that is offered".into())
    }
}

/// A run could not be made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The system refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The job's name cannot be the name of a directory.
    #[error("job name {name:?} cannot be used as the name of a directory")]
    Name {
        /// The name, at most the limit long.
        name: String,
    },
    /// The spec given is not a JSON object.
    #[error("the job's specification is not a JSON object")]
    Spec,
    /// There is nothing to go on with.
    #[error("job `{name}` has no run to resume in `{}`", root.display())]
    NoRun {
        /// The job's name.
        name: String,
        /// Where runs were looked for.
        root: PathBuf,
    },
    /// Another process, or another run in this one, uses the directory.
    #[error("the run in `{}` is in use by {}", path.display(), holder(*pid))]
    Busy {
        /// The run's directory.
        path: PathBuf,
        /// Who holds it, when it said so.
        pid: Option<u32>,
    },
    /// What the run was started with cannot be read.
    #[error("`{}` is damaged, so it cannot be told whether the job is still the same", path.display())]
    SpecDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The job is another one than the run's.
    #[error("job `{name}` changed since its run in `{}` was started: {}", path.display(), fields.join(", "))]
    SpecChanged {
        /// The job's name.
        name: String,
        /// The run's directory.
        path: PathBuf,
        /// The top-level fields of the specification that differ.
        fields: Vec<String>,
    },
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) if pid == std::process::id() => "this very process".into(),
        Some(pid) => format!("process {pid}"),
        None => "another process".into(),
    }
}

impl Hint for RunError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Name { .. } => Some(
                "use letters, digits, `.`, `_` and `-`, starting with a letter or digit".into(),
            ),
            Self::Spec => None,
            Self::NoRun { .. } => Some(
                "run it once without `resume=True`, or check `workspace_root`".into(),
            ),
            Self::Busy { .. } => Some(
                "wait until it has ended, or start a run of its own without `resume=True`".into(),
            ),
            Self::SpecDamaged { .. } => {
                Some("start a run of its own without `resume=True`".into())
            }
            Self::SpecChanged { .. } => Some(
                "change it back to go on with that run, or start a run of its own without `resume=True`".into(),
            ),
        }
    }
}

/// The disk cannot hold the job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpaceError {
    /// The system refused to say how much is free.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Too little is free.
    #[error("the job needs {} in `{}`, {} is free", bytes(*needed), dir.display(), bytes(*free))]
    TooSmall {
        /// Where.
        dir: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free to this user.
        free: u64,
    },
    /// Too little is free in one place or several.
    #[error("the disk is too small: {}", listed(shortages))]
    Missing {
        /// Where, for what and how much.
        shortages: Vec<Shortage>,
    },
}

/// A disk that is too small for what is to go there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The directories on it, and what each is for.
    pub places: Vec<(PathBuf, String)>,
    /// Bytes needed by all of them.
    pub needed: u64,
    /// Bytes free to this user.
    pub free: u64,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (dir, what)) in self.places.iter().enumerate() {
            let and = if at > 0 { " and " } else { "" };
            write!(f, "{and}{what} in `{}`", dir.display())?;
        }
        let verb = if self.places.len() > 1 {
            "need"
        } else {
            "needs"
        };
        write!(
            f,
            " {verb} {}, {} is free",
            bytes(self.needed),
            bytes(self.free)
        )
    }
}

fn listed(shortages: &[Shortage]) -> String {
    let listed: Vec<_> = shortages.iter().map(Shortage::to_string).collect();
    listed.join("; ")
}

impl Hint for SpaceError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::TooSmall { .. } => Some(
                "free some space there, choose another disk with `workspace_root`, or keep fewer models with `keep_models`".into(),
            ),
            Self::Missing { .. } => Some(
                "free some space there, choose another disk, or keep fewer models with `keep_models`".into(),
            ),
        }
    }
}

/// A size as people read it: `3.2 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut size = count as f64;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0.
    while size >= 1023.95 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or("EiB");
    if unit == 0 {
        format!("{count} {name}")
    } else {
        format!("{size:.1} {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (count, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (3_435_973_837, "3.2 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn full_is_told_from_other_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for errno in [
            rustix::io::Errno::NOSPC,
            rustix::io::Errno::DQUOT,
            rustix::io::Errno::FBIG,
        ] {
            let error = StoreError::sized("write", &path, Some(4096), errno);
            assert!(error.is_full(), "{errno:?}");
            let text = error.to_string();
            assert!(
                text.starts_with("the disk is full: could not write `"),
                "{text}"
            );
            assert!(text.contains("(4.0 KiB needed, "), "{text}");
            assert!(error.hint().unwrap().contains("workspace_root"));
        }
        assert!(!StoreError::new("write", &path, rustix::io::Errno::IO).is_full());
    }
}
