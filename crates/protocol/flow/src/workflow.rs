//! What every workflow is, and what its driver owes it.

use std::borrow::Cow;
use std::fmt;

use firesteel_base::{Hint, Time};

use crate::{Action, Event, ModelHandle, Outcome, Status};

/// Decides what a job does next.
///
/// The driver owes a workflow: one `handle` at a time; `now` on the job's own
/// clock (an earlier `now` is taken as the latest one seen); the actions of a
/// call carried out in order before those of the next; a `Tick` at or soon after
/// [`next_wakeup`](Self::next_wakeup); and an answer, good or bad, to each
/// `Assign` to a site that stays connected and to each `Fold`.
pub trait Workflow {
    /// Takes in what happened and says what to do about it.
    fn handle(&mut self, event: Event, now: Time) -> Vec<Action>;

    /// When it wants a `Tick` if nothing else happens; `None`: never.
    fn next_wakeup(&self) -> Option<Time>;

    /// Its whole state as versioned bytes; [`Restore::restore`] is the inverse.
    fn snapshot(&self) -> Vec<u8>;

    /// Where it stands, for people.
    fn status(&self) -> Status;

    /// Every model and update that it may still name in an action. After a
    /// restart the driver may delete all others but those it keeps for the user.
    fn models(&self) -> Vec<ModelHandle>;

    /// How the job ended; `None` while it runs.
    fn outcome(&self) -> Option<&Outcome>;
}

/// A workflow that is made from its configuration, anew or from a snapshot.
pub trait Restore: Workflow + Sized {
    /// What it is configured with.
    type Config: Clone;
    /// Why a configuration is refused.
    type ConfigError: std::error::Error + 'static;

    /// The word that marks its snapshots.
    const KIND: &'static str;

    /// Checks the configuration and makes a workflow that has seen no event.
    ///
    /// # Errors
    /// The workflow's own error, naming the setting that is wrong.
    fn create(config: Self::Config) -> Result<Self, Self::ConfigError>;

    /// Brings back the state that [`Workflow::snapshot`] saved. The state is
    /// equal, so without anything lost the driver may simply go on; after a
    /// restart it sends [`Event::Resumed`] first.
    ///
    /// The configuration may differ from the saved one in what lies ahead
    /// (more rounds, another deadline), not in the list of sites.
    ///
    /// # Errors
    /// [`RestoreError`] for bytes that are no snapshot of this workflow. Never
    /// panics, whatever the bytes.
    fn restore(config: Self::Config, bytes: &[u8]) -> Result<Self, RestoreError>;
}

/// Why a snapshot was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Cut short, or never a snapshot.
    #[error("the snapshot is damaged at byte {at}: {what}")]
    Damaged {
        /// Where.
        at: usize,
        /// What was expected there.
        what: &'static str,
    },
    /// Written by a newer release.
    #[error("the snapshot has version {found}, this release reads up to {known}")]
    Version {
        /// The snapshot's version.
        found: u16,
        /// The newest known.
        known: u16,
    },
    /// Of another workflow.
    #[error("the snapshot is of the workflow `{found}`, not of `{expected}`")]
    Kind {
        /// The snapshot's workflow, at most 32 characters of it.
        found: String,
        /// The one to be restored.
        expected: &'static str,
    },
    /// Of a job with other sites.
    #[error("the snapshot's list of sites is another: {difference}")]
    Sites {
        /// The first difference.
        difference: String,
    },
    /// The configuration itself is refused.
    #[error("the configuration is refused: {reason}")]
    Config {
        /// Why.
        reason: String,
    },
}

impl Hint for RestoreError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Damaged { .. } => {
                Some("resume from an earlier committed round, or start the job anew".to_owned())
            }
            Self::Version { .. } => Some("resume with the release that wrote it".to_owned()),
            Self::Kind { .. } => Some("resume with the recipe that started the job".to_owned()),
            Self::Sites { .. } => Some(
                "resume with the same sites in the same order, or start the job anew".to_owned(),
            ),
            Self::Config { .. } => None,
        }
    }
}

/// The name of a task, as the trainer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TaskName(Cow<'static, str>);

impl TaskName {
    /// Train the model and send it back.
    pub const TRAIN: Self = Self(Cow::Borrowed("train"));
    /// Rate the model and send back metrics.
    pub const VALIDATE: Self = Self(Cow::Borrowed("validate"));
    /// Send the site's own model.
    pub const SUBMIT_MODEL: Self = Self(Cow::Borrowed("submit_model"));

    /// A task of a workflow's own, named in its source.
    pub const fn fixed(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
