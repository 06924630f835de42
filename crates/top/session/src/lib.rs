//! A client of a server's admin interface, for the command line and for Python.
//!
//! Never: holds a key (the kit's [`Signer`](firesteel_pki::Signer) does), decides
//! what a refusal means for a program, or reads an answer without a limit.
//!
//! Start at [`Session`]; nothing is connected before its first request.

#![forbid(unsafe_code)]

mod connect;
mod download;
mod error;
mod exchange;
mod http1;
mod jobs;
mod session;

pub use connect::{BoxConnect, Connect, Connecting, KitConnect};
pub use download::Progress;
pub use error::SessionError;
pub use exchange::Reply;
pub use jobs::LogPiece;
pub use session::{Login, Session};
