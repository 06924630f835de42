//! The admin interface: what is said over REST between a server and the people
//! and programs that run it.
//!
//! Never: opens a socket, decides who may do what, or holds what a route does.
//!
//! Start at [`job`], [`site`] and [`ask`]; [`problem::Problem`] is how every
//! request is refused, and [`login`] how a session begins. The routes and their
//! document are made where they are served.

#![deny(clippy::indexing_slicing)]
#![forbid(unsafe_code)]

pub mod ask;
pub mod event;
pub mod job;
pub mod login;
pub mod logs;
pub mod problem;
pub mod route;
pub mod server;
pub mod site;
mod stamp;

pub use ask::{Ask, FileOp, Target};
pub use event::{EventKind, JobEvent};
pub use job::{JobDetail, JobState, JobSummary, Person};
pub use problem::{Code, Problem};
pub use server::ServerStatus;
pub use site::{SiteInfo, SiteState};
pub use stamp::Stamp;
