//! How a simulation ended.

use firesteel_flow::Outcome;
use firesteel_server::JobReport;

/// How a simulation ended.
#[derive(Debug, Clone)]
pub struct SimOutcome {
    /// What the server reports.
    pub report: JobReport,
}

impl SimOutcome {
    /// Why it failed or was aborted; `None` when it completed.
    pub fn cause(&self) -> Option<String> {
        match &self.report.outcome {
            Outcome::Failed { cause, .. } => Some(cause.clone()),
            Outcome::Aborted { reason } => Some(reason.clone()),
            Outcome::Completed { .. } | Outcome::CompletedWith { .. } => None,
        }
    }

    /// What to do about it; may be empty.
    pub fn hint(&self) -> String {
        match &self.report.outcome {
            Outcome::Failed { hint, .. } => hint.clone(),
            _ => String::new(),
        }
    }

    /// Rounds that were done.
    pub fn rounds(&self) -> Option<u32> {
        match &self.report.outcome {
            Outcome::Completed { rounds, .. } | Outcome::CompletedWith { rounds, .. } => {
                Some(*rounds)
            }
            _ => None,
        }
    }

    /// Why it stopped where it did.
    pub fn stop(&self) -> Option<String> {
        match &self.report.outcome {
            Outcome::Completed { stop, .. } | Outcome::CompletedWith { stop, .. } => {
                Some(stop.to_string())
            }
            _ => None,
        }
    }
}
