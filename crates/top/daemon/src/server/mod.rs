//! A server that stays: sites come and go, jobs come in, run, several at a time,
//! and leave their results.
//!
//! Everything that happens goes through one loop: it is taken in, the scheduler
//! ([`firesteel_flow::schedule`]) decides, the decision is written down, and only
//! then it is carried out. A job that runs is driven by [`firesteel_server::Job`],
//! each in a task of its own.
//!
//! Never: runs a user's code, lets a site or a person see a job that is not
//! theirs to see, or does what is not written down.
//!
//! Start at [`run`], or at [`Hub`].

mod core;
mod door;
mod drive;
mod error;
mod facts;
mod hub;
mod intake;
mod journal;
mod perform;
mod record;
mod relays;
mod run;
mod shared;

#[cfg(test)]
mod tests;

pub use error::ServerError;
pub use hub::Hub;
pub(crate) use hub::job_id;
pub use run::{Opened, ServerOptions, ServerRun, open, run};
