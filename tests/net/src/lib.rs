//! A server and its sites, as far as the network can tell: identities, sessions
//! over mutual TLS, files that are offered and files that are received. What
//! tests of bad networks and the bench of long lines share.
//!
//! Never: part of what is shipped. The roles have their own way to do this; here
//! is only what it takes to try sessions and transfers out.
//!
//! Start at [`Server`] and [`Site`].

#![forbid(unsafe_code)]

mod files;
mod peers;

pub use files::{Arriving, Shelf, model_file};
pub use peers::{Identities, Server, Site, beat, followed_beat};
