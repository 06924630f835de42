//! What a workflow asks of its driver.

use std::fmt;
use std::time::Duration;

use firesteel_base::{Failure, Round, SiteName, TaskKey, Time};

use crate::{FoldKey, ModelHandle, ModelRole, Outcome, ParamsType, RoundRecord, TaskName};

/// Something to do. Actions of one call are carried out in their order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Ask sites to do a task.
    Assign(Assignment),
    /// Tell a site to stop a task. Its result, should it still come, is of no
    /// use.
    Cancel {
        /// The work.
        key: TaskKey,
        /// Why.
        reason: CancelReason,
    },
    /// Make a new model out of updates; answered by `Folded` or `FoldFailed`.
    Fold(FoldRequest),
    /// Keep a model for the user under this role; a role's former model is
    /// superseded. Durable once the next `Commit` is.
    Save {
        /// The model.
        model: ModelHandle,
        /// As what.
        role: ModelRole,
        /// The round whose fold made it; `None` for the initial model.
        made_in: Option<Round>,
    },
    /// The workflow has no more use for this model or update; what the user
    /// is to keep of it was said by `Save`. May name a model that was released
    /// before.
    Release {
        /// The model.
        model: ModelHandle,
    },
    /// A round has ended, well or badly. The driver writes this record and the
    /// workflow's snapshot, as it is after this call to `handle`, in one atomic
    /// step, before it carries out the actions that follow.
    Commit(Box<RoundRecord>),
    /// A site has no more part in the job.
    Dismiss {
        /// The site.
        site: SiteName,
        /// Why.
        failure: Failure,
    },
    /// Something that a person should know and that stopped nothing.
    Warn(Warning),
    /// The job has ended. The last action that a workflow ever asks for, but
    /// for `Release` of what arrives later.
    Finish(Outcome),
}

/// One task for some sites.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// One key per site, in site order.
    pub keys: Vec<TaskKey>,
    /// What to do.
    pub task: TaskName,
    /// What to do it with; `None` when there is no model yet.
    pub model: Option<ModelHandle>,
    /// The first round of the job.
    pub start_round: Round,
    /// How many rounds the job has.
    pub total_rounds: u32,
    /// How long the trainer may take, from [`TaskStage::Training`](crate::TaskStage::Training)
    /// on. The workflow keeps it; the driver may show it.
    pub limit: Option<Duration>,
    /// When the round closes with or without the result.
    pub deadline: Option<Time>,
}

/// Why a task is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CancelReason {
    /// The round closed without this site's result.
    RoundClosed,
    /// The task's own limit passed.
    TaskDeadline,
    /// The job has ended.
    JobEnded,
}

impl fmt::Display for CancelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RoundClosed => "the round closed without this site",
            Self::TaskDeadline => "the task's time is over",
            Self::JobEnded => "the job has ended",
        })
    }
}

/// What to fold, and how much each part counts.
#[derive(Debug, Clone, PartialEq)]
pub struct FoldRequest {
    /// To be given back with the answer.
    pub key: FoldKey,
    /// The model that was handed out in this round, which diffs are added to
    /// and which excluded variables are kept from; `None` when there was none.
    pub base: Option<ModelHandle>,
    /// The updates in site order, whatever order they arrived in. Never empty,
    /// every weight finite and above zero.
    pub inputs: Vec<FoldInput>,
    /// Regular expressions of variables that keep the base's value.
    pub exclude: Vec<String>,
}

/// One update in a fold.
#[derive(Debug, Clone, PartialEq)]
pub struct FoldInput {
    /// Whose it is.
    pub site: SiteName,
    /// The update.
    pub model: ModelHandle,
    /// What its params are.
    pub params_type: ParamsType,
    /// How much it counts, relative to the others.
    pub weight: f64,
    /// The round whose model it was trained from; earlier than the fold's round
    /// for a late update that was let in.
    pub trained_in: Round,
}

/// Something that a person should know and that stopped nothing.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// Sites did not say how many steps they trained; each is said once per job.
    StepsMissing {
        /// The sites, in site order.
        sites: Vec<SiteName>,
    },
    /// Sites trained no step, so their updates change nothing.
    StepsZero {
        /// The round.
        round: Round,
        /// The sites, in site order.
        sites: Vec<SiteName>,
    },
    /// A metric was NaN or infinite and is left out of the mean.
    MetricNotFinite {
        /// The round.
        round: Round,
        /// The metric.
        metric: String,
        /// The sites that sent it so, in site order.
        sites: Vec<SiteName>,
    },
    /// The metric that selects the best model was not sent by any site; said
    /// once per job.
    KeyMetricMissing {
        /// The round.
        round: Round,
        /// The metric asked for.
        metric: String,
        /// The metrics that were sent.
        present: Vec<String>,
    },
    /// The metric of the stop condition was not sent by any site; said once
    /// per job.
    StopMetricMissing {
        /// The round.
        round: Round,
        /// The metric asked for.
        metric: String,
        /// The metrics that were sent.
        present: Vec<String>,
    },
    /// A site's work failed and the job goes on.
    SiteFailed {
        /// The round.
        round: Round,
        /// The site.
        site: SiteName,
        /// Why.
        failure: Failure,
    },
    /// A round closed before these sites had answered.
    SitesLate {
        /// The round.
        round: Round,
        /// The sites, in site order.
        sites: Vec<SiteName>,
    },
    /// A result came when it was no longer asked for, and was dropped.
    LateResultDropped {
        /// The work.
        key: TaskKey,
    },
    /// The best model did not outlive a restart.
    BestModelLost {
        /// The round that had rated it.
        rated_in: Round,
    },
    /// An event named a site that is not part of the job.
    UnknownSite {
        /// The site.
        site: SiteName,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StepsMissing { sites } => write!(
                f,
                "{} sent no NUM_STEPS_CURRENT_ROUND; the update counts as one step",
                name_some(sites)
            ),
            Self::StepsZero { round, sites } => write!(
                f,
                "{} trained no step in round {round}; the update changes nothing",
                name_some(sites)
            ),
            Self::MetricNotFinite {
                round,
                metric,
                sites,
            } => write!(
                f,
                "metric `{metric}` from {} in round {round} is NaN or infinite and is left out of the mean",
                name_some(sites)
            ),
            Self::KeyMetricMissing {
                round,
                metric,
                present,
            } => write!(
                f,
                "no site sent the metric `{metric}` in round {round}, so no best model is selected; sent: {}",
                list_or_none(present)
            ),
            Self::StopMetricMissing {
                round,
                metric,
                present,
            } => write!(
                f,
                "no site sent the metric `{metric}` of the stop condition in round {round}; sent: {}",
                list_or_none(present)
            ),
            Self::SiteFailed {
                round,
                site,
                failure,
            } => write!(f, "{site} failed in round {round}: {failure}"),
            Self::SitesLate { round, sites } => {
                write!(
                    f,
                    "round {round} closed without {} (late)",
                    name_some(sites)
                )
            }
            Self::LateResultDropped { key } => {
                write!(
                    f,
                    "the result of {} for round {} came too late and was dropped",
                    key.site, key.round
                )
            }
            Self::BestModelLost { rated_in } => write!(
                f,
                "the best model so far (rated in round {rated_in}) did not outlive the restart; selection starts anew"
            ),
            Self::UnknownSite { site } => write!(f, "{site} is not a site of this job"),
        }
    }
}

/// How many names a sentence lists before it only counts.
const NAMES_IN_A_SENTENCE: usize = 8;

/// The names, or the first few and how many more.
pub(crate) fn name_some(sites: &[SiteName]) -> String {
    let mut text = sites
        .iter()
        .take(NAMES_IN_A_SENTENCE)
        .map(SiteName::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if sites.len() > NAMES_IN_A_SENTENCE {
        text.push_str(&format!(" and {} more", sites.len() - NAMES_IN_A_SENTENCE));
    }
    text
}

fn list_or_none(names: &[String]) -> String {
    if names.is_empty() {
        return "no metric".to_owned();
    }
    let mut text = names
        .iter()
        .take(NAMES_IN_A_SENTENCE)
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > NAMES_IN_A_SENTENCE {
        text.push_str(&format!(" and {} more", names.len() - NAMES_IN_A_SENTENCE));
    }
    text
}
