//! What every other floor speaks in: ids, limits, time, failures and hints.
//!
//! Never: depends on another crate of the house, opens a file or a socket, or
//! reads a clock.
//!
//! Start at [`ids`]; every limit and default duration of the product stands in
//! [`limits`] and [`durations`].

#![forbid(unsafe_code)]

pub mod calendar;
pub mod durations;
pub mod failure;
pub mod hint;
pub mod ids;
pub mod limits;
pub mod time;

pub use calendar::Moment;
pub use durations::Durations;
pub use failure::{Failure, FailureCode, Phase};
pub use hint::Hint;
pub use ids::{Attempt, IdError, JobId, Round, SiteName, TaskKey};
pub use time::Time;
