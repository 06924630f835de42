//! What tests and benches break on purpose: slow and lossy networks, connections
//! that are cut, disks that fill up; and rulers for memory.
//!
//! Never: part of what is shipped. Only tests and benches depend on it, and none
//! of its effects outlive the process: namespaces, devices and mounts belong to
//! it and go with it, however it ends.
//!
//! Start at [`own_space!`], which runs a test where it may have networks and
//! mounts of its own; then [`Wan`], [`Proxy`], [`SmallDisk`], [`memory`] and
//! [`wait`]. How to use them is told in `docs/guides/testing.md`.

pub mod memory;
pub mod models;
pub mod wait;

mod again;
mod disk;
mod place;
mod proxy;
mod sys;
mod wan;

pub use again::{Again, Space, again, isolate_process, refuse_or_skip, space_of, test_name};
pub use disk::SmallDisk;
pub use place::{Place, Process};
pub use proxy::{Cut, Proxy};
pub use wan::{Counts, Direction, Link, Wan};

use std::io;

/// A part of the rig that could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RigError {
    /// The kernel or its configuration does not allow it to this user: no fault
    /// of what is tested.
    #[error("{what} is not possible here")]
    Unavailable {
        /// What was tried.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("{what} failed")]
    Failed {
        /// What was tried.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl RigError {
    /// A refusal by the kernel is something else than a failure.
    fn of(what: impl Into<String>, source: io::Error) -> Self {
        let refused = matches!(
            source.raw_os_error(),
            Some(
                libc::EPERM
                    | libc::EACCES
                    | libc::ENOENT
                    | libc::ENODEV
                    | libc::ENXIO
                    | libc::ENOSYS
                    | libc::EOPNOTSUPP
                    | libc::ENOSPC
                    | libc::EROFS
            )
        );
        let what = what.into();
        if refused {
            Self::Unavailable { what, source }
        } else {
            Self::Failed { what, source }
        }
    }
}
