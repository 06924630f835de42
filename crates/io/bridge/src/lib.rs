//! The Unix socket between an agent and its trainers, and the models that cross it.
//!
//! Never: decides which task a trainer gets, parses a model, starts a process,
//! or trusts a byte from a trainer beyond its token; no caller of the trainer's
//! side needs an async runtime.
//!
//! Start at [`BridgeListener`] for the agent's side and at [`BridgeClient`] for the
//! trainer's; what trainers offer one another is in [`stream`]. The messages are `firesteel_wire::bridge`, the specification is
//! `docs/specs/bridge.md`.

#![deny(clippy::indexing_slicing)]

mod attach;
mod client;
mod connection;
mod kept;
mod listener;
mod mapping;
mod pass;
pub mod stream;
mod token;

pub use attach::{AttachError, read_profile, write_profile};
pub use client::{
    BridgeClient, Check, ClientError, Delivery, Dial, Fetched, Interrupted, Job, Outcome, Outgoing,
    ResultModel,
};
pub use connection::{
    BridgeReceiver, BridgeSender, Connection, ConnectionError, ModelSource, TrainerMessage, Work,
};
pub use firesteel_wire::bridge::{AttachProfile, TaskKey};
pub use listener::{BindError, BridgeListener, Expected, Rejection};
pub use mapping::{MapError, Mapping};
