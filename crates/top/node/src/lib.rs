//! One process of a federation: a server or a site with everything around its
//! role, from the run directory to the last log line. A simulation uses the parts.
//!
//! Never: decides anything about a job, or holds what a role could do by itself.
//!
//! Start at [`server::serve`] and [`site::act`].

#![forbid(unsafe_code)]

pub mod parts;
pub mod server;
pub mod site;
pub mod stub;

mod connect;
mod error;

pub use error::NodeError;
