//! The process, or in a simulation the task, that acts for a site: it takes the
//! server's tasks, starts and watches the trainer that does them, and hands the
//! results over.
//!
//! Never: runs user code, decides what a round needs (the server's workflow
//! does), or keeps a trainer waiting for another site.
//!
//! Start at [`Agent::run`].

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

mod agent;
mod arriving;
mod held;
mod local;
mod noop;
mod reach;
mod shared;
mod slots;
mod trainer;
mod verdict;
mod welcome;

pub use agent::{Agent, AgentError, AgentParts, Launch, Launcher, Launching};
pub use local::Local;
pub use slots::{Slot, Slots};
