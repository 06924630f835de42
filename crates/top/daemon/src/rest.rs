//! The admin interface of a server: REST below `/v1/`.
//!
//! Never: decides what a job does next, knows how a connection came about, or
//! answers anything but login and its own document to somebody without a token.
//!
//! Start at [`Rest`]; what it needs of a server is [`Federation`]. Every request
//! passes the module `gate`, which asks the policy, and every refusal is a
//! [`Problem`](firesteel_api::Problem).

mod answer;
mod body;
mod certificate;
mod document;
mod events;
mod federation;
mod files;
mod gate;
mod hub;
mod jobs;
mod login;
mod logs;
mod router;
mod sites;
mod tokens;
mod web;

pub use certificate::by_certificate;
pub use document::document;
pub use federation::{Asked, Federation};
pub use router::{Rest, RestError, RestOptions, Verify};
