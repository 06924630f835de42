//! Workflows as values: events and the time go in, actions come out.
//!
//! A workflow decides what a job does next: whom to ask, how long to wait, what
//! to sum, when to stop. Whoever drives it (the server, a simulation, a site in
//! a swarm, a test) carries the decisions out and reports back what happened.
//!
//! Never: reads a clock, opens a file or a socket, starts a task or a thread,
//! touches a tensor, or decides differently for the same events in the same
//! order at the same times. Models are [`ModelHandle`]s that only the driver
//! can resolve.
//!
//! Start at [`Workflow`], which states what a driver owes a workflow, then
//! [`Event`] and [`Action`]; [`FedAvg`] is the first workflow. The rules in
//! MUST and SHOULD are in `docs/specs/flow.md`.

#![forbid(unsafe_code)]

mod action;
mod event;
mod model;
mod record;
mod status;
mod workflow;

pub mod schedule;

mod codec;
mod fedavg;

#[cfg(test)]
mod testing;

pub use action::{Action, Assignment, CancelReason, FoldInput, FoldRequest, Warning};
pub use event::{Event, FoldKey, TaskStage, UpdateInfo};
pub use fedavg::{
    Comparison, ConfigError, FedAvg, FedAvgConfig, KeyMetric, LatePolicy, MetricMode, OnFailure,
    Returning, StopCondition,
};
pub use model::{ModelHandle, ModelRole, ParamsType};
pub use record::{
    BestMark, MetricMean, Missed, Outcome, RoundRecord, SiteFailure, SiteRecord, SiteResult,
    StopReason,
};
pub use status::{JobStage, SiteState, SiteStatus, Status};
pub use workflow::{Restore, RestoreError, TaskName, Workflow};
