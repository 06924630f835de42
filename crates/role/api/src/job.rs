//! Jobs.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::Stamp;

/// Who somebody is, as the certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Person {
    /// The name.
    pub name: String,
    /// The organization.
    pub org: String,
    /// `project_admin`, `org_admin`, `lead`, `member`.
    pub role: String,
}

/// Where a job stands. The first six come in this order; the others end it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JobState {
    /// Taken, and nothing done yet.
    Submitted,
    /// Waiting for sites, resources or its turn.
    Queued,
    /// Its code is on the way to the sites.
    Deploying,
    /// The sites are being started.
    Starting,
    /// Its rounds run.
    Running,
    /// It has ended, and some sites have yet to confirm.
    Stopping,
    /// Ended well, with all its sites.
    Completed,
    /// Ended well, with some of its sites; `status` says how many, `losses` which.
    CompletedWithLosses,
    /// Ended badly.
    Failed,
    /// Ended by a person.
    Aborted,
    /// Never started: a check of the server or of its sites failed.
    Refused,
}

impl JobState {
    /// Every state.
    pub const ALL: &'static [Self] = &[
        Self::Submitted,
        Self::Queued,
        Self::Deploying,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Completed,
        Self::CompletedWithLosses,
        Self::Failed,
        Self::Aborted,
        Self::Refused,
    ];

    /// The word as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Queued => "queued",
            Self::Deploying => "deploying",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Completed => "completed",
            Self::CompletedWithLosses => "completed_with_losses",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::Refused => "refused",
        }
    }

    /// The inverse of [`as_str`](Self::as_str).
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|one| one.as_str() == word)
    }

    /// Nothing follows.
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Completed
                | Self::CompletedWithLosses
                | Self::Failed
                | Self::Aborted
                | Self::Refused
        )
    }

    /// Ended, and well.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Completed | Self::CompletedWithLosses)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A job in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobSummary {
    /// The id, made by the server.
    pub id: String,
    /// The name in its spec.
    pub name: String,
    /// Where it stands.
    pub state: JobState,
    /// The same as a sentence: `waiting for 2 GPUs at site-1`,
    /// `completed with 7 of 8 sites`.
    pub status: String,
    /// Who submitted it.
    pub submitter: Person,
    /// When.
    pub submitted: Stamp,
    /// When its first round began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Stamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Stamp>,
    /// Seconds from its start (or its submission) to its end or to now.
    pub seconds: f64,
    /// Rounds that are done.
    pub rounds_done: u32,
    /// Rounds in all; 0 while it is not known.
    pub rounds: u32,
    /// Sites that take part.
    pub sites: u32,
    /// Higher goes first.
    pub priority: i32,
    /// The submit key, when one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Everything about a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobDetail {
    /// What a list says of it.
    #[serde(flatten)]
    pub summary: JobSummary,
    /// Its sites, in the order of the job.
    pub at: Vec<JobSite>,
    /// Sites that the result is without, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<String>,
    /// Sites that were told to stop and have not confirmed it: each stops when it
    /// next connects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<String>,
    /// What failed, oldest first; the newest of each site.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<JobFailure>,
    /// The numbers of each round that is done: the mean over its sites.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<RoundMetrics>,
    /// The job it is a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloned_from: Option<String>,
    /// Bytes that its sites have received.
    pub bytes_down: u64,
    /// Bytes that they have sent.
    pub bytes_up: u64,
    /// The submitter's own notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// The spec as submitted.
    #[schema(value_type = Object)]
    pub spec: Value,
}

/// One site of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobSite {
    /// The site.
    pub site: String,
    /// What it does, as a word: `absent`, `deployed`, `ready`, `working`, `in`,
    /// `late`, `failed`, `excluded`, `stopped`, `pending`.
    pub state: String,
    /// More of it for people: `training since 12 s`; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// Bytes that it has received for this job.
    #[serde(default)]
    pub bytes_down: u64,
    /// Bytes that it has sent.
    #[serde(default)]
    pub bytes_up: u64,
}

/// What failed at a site, or at the server when no site is named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobFailure {
    /// The site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The round, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u32>,
    /// The stable code; `docs/reference/failures.md` has a section for each.
    pub code: String,
    /// While doing what: `start`, `train`, `send`, `verify` ….
    pub phase: String,
    /// One sentence.
    pub message: String,
    /// What to do; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// The trainer's traceback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceback: Option<String>,
    /// The trainer's last lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_tail: Vec<String>,
}

impl JobFailure {
    /// A failure of `site` (of the server when `None`) in `round`.
    pub fn of(site: Option<String>, round: Option<u32>, failure: &firesteel_base::Failure) -> Self {
        Self {
            site,
            round,
            code: failure.code.as_str().to_owned(),
            phase: failure.phase.as_str().to_owned(),
            message: failure.message.clone(),
            hint: failure.hint.clone(),
            traceback: failure.traceback.clone(),
            log_tail: failure.log_tail.clone(),
        }
    }
}

/// The numbers of one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RoundMetrics {
    /// The round, counted from 0.
    pub round: u32,
    /// Name and value.
    pub values: BTreeMap<String, f64>,
}

/// The answer to a submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Submitted {
    /// The job's id.
    pub id: String,
    /// A job with the same submit key was there: it is this one, and nothing new
    /// was made.
    pub existed: bool,
}

/// Why a job is ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Abort {
    /// One sentence for the job's record; may be empty.
    pub reason: String,
}

/// A list of jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Jobs {
    /// The jobs, oldest first unless asked otherwise.
    pub jobs: Vec<JobSummary>,
}

/// Which jobs a list holds: those that fit everything that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct JobFilter {
    /// The id starts with this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The name starts with this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The submit key is this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// It is in this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub state: Option<JobState>,
    /// This person submitted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submitter: Option<String>,
    /// Newest first.
    pub reverse: bool,
    /// At most so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl JobFilter {
    /// Whether a job fits (order and number aside).
    pub fn fits(&self, job: &JobSummary) -> bool {
        let starts = |wanted: &Option<String>, has: &str| {
            wanted
                .as_ref()
                .is_none_or(|start| has.starts_with(start.as_str()))
        };
        starts(&self.id, &job.id)
            && starts(&self.name, &job.name)
            && self
                .key
                .as_ref()
                .is_none_or(|key| job.key.as_ref() == Some(key))
            && self.state.is_none_or(|state| job.state == state)
            && self
                .submitter
                .as_ref()
                .is_none_or(|name| job.submitter.name == *name)
    }
}

/// What lies in a job's folder at the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobFiles {
    /// Every file, by path.
    pub files: Vec<JobFile>,
}

/// One file of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobFile {
    /// Where it lies, relative to the job's folder, with `/` between names.
    pub path: String,
    /// Its length.
    pub bytes: u64,
}
