//! Moves one large object between two peers in bounded memory.
//!
//! The receiver pulls: it asks for windows of the file, at its own pace, checks
//! what comes against the sender's [`Manifest`], and after a cut asks for what is
//! missing, to the byte.
//!
//! Never: opens a socket or a file, reads a clock, starts a task, or holds more of
//! an object than its manifest. The bytes themselves stay with whoever drives the
//! values here.
//!
//! Start at [`Receiver`] and [`Sender`]; [`frame`] has their bytes. The
//! specification is `docs/specs/transfer.md`.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

pub mod frame;

mod backoff;
mod budget;
mod check;
mod digest;
mod error;
mod manifest;
mod ranges;
mod receiver;
mod sender;

pub use backoff::Backoff;
pub use budget::{Budget, Share};
pub use check::{BlockCheck, Checked, Checker};
pub use digest::Digest;
pub use error::{ManifestError, RefusalCode, TransferError};
pub use manifest::{Block, Layout, Manifest, ManifestBuilder, Part};
pub use ranges::Ranges;
pub use receiver::{Admit, Copy, Counters, Event, ObjectRef, Receiver};
pub use sender::{Sender, SenderEvent, Work, WorkKind};
