//! The bytes: frames, messages between roles, and the job spec.
//!
//! Never: opens a socket, decides what happens next, or lets a name in a
//! message select code. Unknown fields are ignored, so an older peer can talk
//! to a newer one; what cannot be understood is an error that says why.
//!
//! Start at [`frame`] for how messages are told apart on a stream, at
//! [`control`] for what server and agents say within a job, at [`node`] for what
//! servers and sites say about jobs, at [`logs`] for live logs, at [`bridge`] for what agent and
//! trainer say, at [`spec`] for the job. The specification is
//! `docs/specs/wire.md`.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

pub mod frame;

pub mod bridge;
pub mod control;
pub mod logs;
pub mod node;
pub mod options;
pub mod relay;
pub mod snapshot;
pub mod spec;
pub mod stream;
pub mod supervise;

/// The first and, so far, only version of the protocol between roles.
pub const PROTOCOL: u32 = 1;
