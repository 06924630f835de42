//! What happens in a job, one thing after the other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::job::JobFailure;
use crate::{JobState, Stamp};

/// Something that happened in a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobEvent {
    /// Counts from 1 within the job, without a gap. Whoever has this one asks for
    /// what comes `after` it.
    pub seq: u64,
    /// When.
    pub at: Stamp,
    /// What.
    #[serde(flatten)]
    pub what: EventKind,
}

/// What happened. A kind that a reader does not know is to be passed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// The job is in another state.
    State {
        /// Which.
        state: JobState,
        /// As a sentence.
        status: String,
    },
    /// A site is in another state.
    Site {
        /// The site.
        site: String,
        /// As [`JobSite::state`](crate::job::JobSite).
        state: String,
        /// As a sentence; may be empty.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        status: String,
    },
    /// A round was opened.
    RoundStarted {
        /// The round, counted from 0.
        round: u32,
        /// Rounds in all.
        rounds: u32,
        /// Sites that were asked.
        sites: u32,
    },
    /// A round is done.
    RoundDone {
        /// The round, counted from 0.
        round: u32,
        /// Rounds in all.
        rounds: u32,
        /// Sites whose updates are in its model.
        contributed: u32,
        /// Sites that were asked.
        sites: u32,
        /// How long it took.
        seconds: f64,
        /// The mean of each metric over the sites.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        metrics: BTreeMap<String, f64>,
    },
    /// How much has moved; at most one a second, and only while something moves.
    Bytes {
        /// Bytes that the sites have received, in all.
        down: u64,
        /// Bytes that they have sent, in all.
        up: u64,
    },
    /// Something failed; the job may go on.
    Failure {
        /// What.
        failure: JobFailure,
    },
    /// Something that a person should know.
    Note {
        /// One sentence.
        message: String,
    },
    /// A kind that this program does not know.
    #[serde(other)]
    Unknown,
}

/// Some events of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobEvents {
    /// In order.
    pub events: Vec<JobEvent>,
    /// What to ask for next: `after=…`.
    pub next: u64,
    /// Where the job stands now.
    pub state: JobState,
    /// No event follows the last one here.
    pub ended: bool,
}

/// Which events are wanted.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams,
)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Those after the one with this number; 0: from the first.
    pub after: u64,
    /// Seconds to wait for one when there is none yet, at most 30.
    pub wait: u32,
    /// At most so many; 1000 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}
