//! What a driver tells a workflow.

use std::fmt;

use firesteel_base::{Attempt, Failure, Round, SiteName, TaskKey};

use crate::{ModelHandle, ParamsType};

/// Something that happened. Any event may come twice, late, or about work that
/// the workflow has given up: each is safe to report.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The job begins. Comes first, and once in the life of a job.
    Started {
        /// The sites that are connected already; others follow as `SiteJoined`.
        sites: Vec<SiteName>,
        /// The model to start from, if the job was given one.
        model: Option<ModelHandle>,
    },
    /// The job goes on after [`Restore::restore`](crate::Restore::restore).
    /// Whatever was asked of the sites before is taken as lost and asked anew.
    Resumed {
        /// The sites that are connected already. The driver owes a `SiteJoined`
        /// or, when its lease ends, a `SiteLeft` for each other site that was
        /// connected before.
        sites: Vec<SiteName>,
        /// The models and updates that the driver still holds.
        models: Vec<ModelHandle>,
    },
    /// A site is there and has nothing of this job in hand: work that it was
    /// asked for before is asked anew. So a connection that is merely dialed
    /// anew within its lease is no event, and an agent that was restarted is.
    SiteJoined {
        /// The site.
        site: SiteName,
    },
    /// A site's lease has ended (code `disconnected`), or it refused the job
    /// (any other code).
    SiteLeft {
        /// The site.
        site: SiteName,
        /// Why.
        failure: Failure,
    },
    /// A site's work has come further.
    TaskProgress {
        /// The work.
        key: TaskKey,
        /// How far it is.
        stage: TaskStage,
    },
    /// An update is with the driver, complete and verified.
    UpdateReady {
        /// The work it answers.
        key: TaskKey,
        /// What it is.
        update: UpdateInfo,
    },
    /// A site could not do its work, or its update was refused.
    TaskFailed {
        /// The work.
        key: TaskKey,
        /// Why.
        failure: Failure,
    },
    /// A fold has made a model.
    Folded {
        /// Which fold.
        key: FoldKey,
        /// The new model.
        model: ModelHandle,
        /// What the round's record should mention: a key missing at some sites,
        /// integers that were rounded.
        notes: Vec<String>,
    },
    /// A fold has failed.
    FoldFailed {
        /// Which fold.
        key: FoldKey,
        /// Why.
        failure: Failure,
        /// The sites whose updates were at fault: without them the fold may
        /// succeed. Empty when it cannot.
        blame: Vec<(SiteName, Failure)>,
    },
    /// Time has passed: sent at or after [`next_wakeup`](crate::Workflow::next_wakeup).
    Tick,
    /// A person, or the driver, ends the job.
    Abort {
        /// Why, as a sentence without a full stop.
        reason: String,
    },
}

/// How far a site is with its work. Later stages are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TaskStage {
    /// Asked of the site, which has not answered.
    Assigned,
    /// The site has acknowledged it: the model is on its way, or the trainer
    /// is starting.
    Accepted,
    /// Handed to the trainer. The task's limit counts from here.
    Training,
    /// The trainer is done and the result is on its way. The task's limit
    /// has no hold any more.
    Returning,
}

impl TaskStage {
    /// What a person reads, to be followed by a time: "not started since 12.0s".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Assigned => "not acknowledged",
            Self::Accepted => "not started",
            Self::Training => "training",
            Self::Returning => "sending its result",
        }
    }
}

/// What is known of an update without opening it.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateInfo {
    /// The update's params; `None` when it only carries metrics.
    pub model: Option<ModelHandle>,
    /// What the params are.
    pub params_type: ParamsType,
    /// `NUM_STEPS_CURRENT_ROUND`, when the trainer sent it.
    pub steps: Option<f64>,
    /// The trainer's metrics, which rate the model that was handed out.
    pub metrics: Vec<(String, f64)>,
}

/// What identifies one fold within a job; a fold that is done again after a
/// failure or a restart has the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FoldKey {
    /// The round whose updates are folded.
    pub round: Round,
    /// Which try it is.
    pub attempt: Attempt,
}

impl fmt::Display for FoldKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {} fold attempt {}", self.round, self.attempt)
    }
}
