//! How a job ended, for whoever started it.

use std::path::PathBuf;

use firesteel_base::{Failure, Round};
use firesteel_flow::Outcome;

use crate::driver::JobParts;

/// How a job ended.
#[derive(Debug, Clone)]
pub struct JobReport {
    /// Its id.
    pub job: String,
    /// Where everything of it lies.
    pub run_dir: PathBuf,
    /// How it ended.
    pub outcome: Outcome,
    /// The round after which it was resumed.
    pub resumed_after: Option<Round>,
    /// The newest failure of each site that had one, oldest first.
    pub failures: Vec<SiteFailureReport>,
}

/// One site's failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteFailureReport {
    /// The site.
    pub site: String,
    /// The round, when it is known.
    pub round: Option<Round>,
    /// What, while doing what, why, and what to do.
    pub failure: Failure,
}

impl JobReport {
    pub(crate) fn new(parts: &JobParts, outcome: Outcome, resumed_after: Option<Round>) -> Self {
        let failures = parts.watch.failures();
        Self {
            job: parts.id.as_str().to_owned(),
            run_dir: parts.run.path().to_owned(),
            outcome,
            resumed_after,
            failures,
        }
    }

    /// `completed`, `completed with 4 of 5 sites`, `failed` or `aborted`.
    pub fn status(&self) -> String {
        match &self.outcome {
            Outcome::Completed { .. } => "completed".to_owned(),
            Outcome::CompletedWith {
                contributed, of, ..
            } => {
                format!("completed with {contributed} of {of} sites")
            }
            Outcome::Failed { .. } => "failed".to_owned(),
            Outcome::Aborted { .. } => "aborted".to_owned(),
        }
    }
}
