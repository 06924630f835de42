//! The server of a job: drives its workflow, talks to the sites' agents, checks
//! and sums their updates, and writes down what was decided.
//!
//! Never: opens a port by itself (streams are handed to it), runs user code, or
//! holds more of a model than a mapping of its file.
//!
//! Start at [`Job::run`].

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

mod driver;
mod fetches;
mod fold;
mod link;
mod presence;
mod relays;
mod report;
mod watch;

pub use driver::{Carriers, Job, JobError, JobParts};
pub use report::{JobReport, SiteFailureReport};
pub use watch::Watch;
