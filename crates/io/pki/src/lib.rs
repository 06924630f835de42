//! Project files, certificates, startup kits and signed job bundles.
//!
//! Never: opens a socket, starts a process, decides who may do what
//! (`policy` does), or leaves half of a kit or of a bundle behind.
//!
//! Start at [`Kit::open`] for what a role runs with, at [`provision()`] for how
//! kits come about, and at [`bundle`] for what a job travels in. The layouts are
//! in `docs/specs/kit.md` and `docs/specs/bundle.md`.
#![deny(clippy::indexing_slicing)]
#![forbid(unsafe_code)]

mod certificate;
mod config;
mod files;
mod kit;
mod manifest;
mod own;
mod sign;

pub mod bundle;
pub mod project;
pub mod provision;

pub use certificate::{Authority, ChainError, Holder};
pub use config::{Connect, KitConfig, Listen, Scheme, Security};
pub use firesteel_policy::{AdminRole, Role};
pub use kit::{Kit, KitError};
pub use own::{
    AdminConfig, Data, Environment, Network, Own, RelayConfig, Resources, Secret, ServerConfig,
    SiteConfig,
};
pub use project::{Project, ProjectError};
pub use provision::{ProvisionError, Provisioned, provision};
pub use sign::{Purpose, SignError, Signed, Signer, VerifyError, verify};
