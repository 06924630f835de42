//! Folds many updates into one model: weighted mean, median, trimmed mean.
//!
//! Never: opens a file, reads a clock, starts a thread that outlives the call, or
//! holds more than a few blocks of numbers beside the bytes it is given, and
//! `limits::LIVE_FOLD` bytes of updates that it reads as they come. The bits of
//! the result do not depend on the CPU, the SIMD width, the thread count or where
//! the updates lie, only on the updates and the order in which they are given:
//! site order.
//!
//! Start at [`verify`] for one update as it arrives and at [`plan`] for the fold;
//! an update that is still at its site is a [`LiveSource`]. What a relay makes of
//! the updates below it is [`plan_sums`], and at the other end [`Sums`].
//! The rules per kind of tensor are in `docs/specs/aggregation.md`.

#![forbid(unsafe_code)]

mod cast;
mod error;
mod fold;
mod integer;
mod kernel;
mod live;
mod options;
mod plan;
mod report;
mod scalar;
mod sums;
mod verify;

pub use cast::{Cast, CastError};
pub use error::AggregateError;
pub use fearless_simd::Level as SimdLevel;
pub use options::{
    Contribution, Data, Exclude, ExcludeError, LiveSource, Method, Model, Options, ReadAt,
    UpdateKind, Wide,
};
pub use plan::{Plan, plan, plan_sums};
pub use report::{PartialKey, Report};
pub use sums::{Counted, Sums, SumsError};
pub use verify::{Number, VerifyProblem, failure, verify, verify_live, verify_read, verify_sums};
