//! Live logs: a site's log files, followed as they grow and written down at the
//! server.
//!
//! A position counts bytes since the log's birth, rotated files included. The site
//! knows which file begins where, the server's position is what it has written: so
//! neither a cut nor a rotation nor a restart of either end loses or repeats a byte.
//! Logs are read from the files they were written to: a server that is slow, or
//! gone, holds up nobody who writes. What is said is in `docs/specs/live-logs.md`.

mod follow;
mod receive;
mod source;

pub use follow::{Followed, follow};
pub use receive::receive;
pub use source::Source;

#[cfg(test)]
mod tests;
