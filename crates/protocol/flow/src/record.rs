//! What is written down of a round, and of the whole job.

use std::fmt;

use firesteel_base::{Failure, Round, SiteName, Time};

use crate::ModelHandle;

/// One round, as it ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundRecord {
    /// Which round.
    pub round: Round,
    /// When its first task was assigned.
    pub started: Time,
    /// When it ended.
    pub ended: Time,
    /// The model that was handed out.
    pub base: Option<ModelHandle>,
    /// The model that the round made; `None` when the round failed.
    pub result: Option<ModelHandle>,
    /// Every site of the job, in site order.
    pub sites: Vec<SiteRecord>,
    /// The metrics' weighted means, by name. They rate `base`.
    pub metrics: Vec<MetricMean>,
    /// Set when this round's metrics made `base` the best model so far.
    pub best: Option<BestMark>,
    /// Remarks of the fold.
    pub notes: Vec<String>,
}

/// One site's part in a round.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteRecord {
    /// The site.
    pub site: SiteName,
    /// What became of its work.
    pub result: SiteResult,
}

/// What became of a site's work in a round.
#[derive(Debug, Clone, PartialEq)]
pub enum SiteResult {
    /// Its update is part of the round's model, or would have been, had the
    /// round made one.
    Contributed {
        /// How much it counted: the site's weight times its steps.
        weight: f64,
        /// The steps it said it trained.
        steps: Option<f64>,
        /// Its metrics as sent.
        metrics: Vec<(String, f64)>,
        /// When the update was complete.
        arrived: Time,
        /// The round it was trained in: an earlier one for a late update.
        trained_in: Round,
    },
    /// The round closed before it had answered.
    Late,
    /// Its work failed, or its update was refused.
    Failed(Failure),
    /// It was dismissed in this round or an earlier one.
    Excluded(Failure),
    /// It was not connected.
    Absent,
    /// It was still at work when the job ended.
    Waiting,
}

/// The mean of one metric over the sites that sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricMean {
    /// Its name.
    pub name: String,
    /// The mean, weighted as the updates are.
    pub value: f64,
    /// How many of the contributing sites sent it.
    pub sites: usize,
}

/// The best model so far, and what made it so.
#[derive(Debug, Clone, PartialEq)]
pub struct BestMark {
    /// The model.
    pub model: ModelHandle,
    /// The round whose fold made it; `None` for the initial model.
    pub made_in: Option<Round>,
    /// The round whose metrics rated it: the one it was handed out in.
    pub rated_in: Round,
    /// The key metric.
    pub metric: String,
    /// Its mean.
    pub value: f64,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Every site contributed to every round.
    Completed {
        /// Why it stopped where it did.
        stop: StopReason,
        /// How many rounds it did.
        rounds: u32,
    },
    /// Every round had its quorum, yet some sites missed some rounds.
    CompletedWith {
        /// Why it stopped where it did.
        stop: StopReason,
        /// How many rounds it did.
        rounds: u32,
        /// How many sites contributed to every round.
        contributed: usize,
        /// How many sites the job has.
        of: usize,
        /// The others, in site order.
        missed: Vec<Missed>,
    },
    /// It could not go on.
    Failed {
        /// One sentence that names what was missing and each failed site.
        cause: String,
        /// What to do; empty when there is nothing useful to say.
        hint: String,
        /// The round it failed in; `None` before the first.
        round: Option<Round>,
        /// Every site that was out when it failed, in site order, and why.
        failures: Vec<SiteFailure>,
    },
    /// A person ended it.
    Aborted {
        /// Why, as given.
        reason: String,
    },
}

/// Why a job that succeeded stopped.
#[derive(Debug, Clone, PartialEq)]
pub enum StopReason {
    /// All its rounds are done.
    AllRounds,
    /// The stop condition was met.
    Condition {
        /// The condition as written.
        condition: String,
        /// The metric's value that met it.
        value: f64,
    },
    /// The key metric did not improve for this many rounds.
    Patience {
        /// How many.
        rounds: u32,
    },
}

/// A site that missed rounds of a job that succeeded.
#[derive(Debug, Clone, PartialEq)]
pub struct Missed {
    /// The site.
    pub site: SiteName,
    /// How many rounds it missed.
    pub rounds: u32,
    /// The first of them.
    pub first: Round,
    /// The last of them.
    pub last: Round,
    /// Why it missed the last of them.
    pub cause: Failure,
}

/// A site that was out when a job failed.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteFailure {
    /// The site.
    pub site: SiteName,
    /// Why.
    pub failure: Failure,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllRounds => f.write_str("all rounds are done"),
            Self::Condition { condition, value } => {
                write!(f, "stop condition `{condition}` met at {value}")
            }
            Self::Patience { rounds } => write!(f, "no improvement in {}", count_rounds(*rounds)),
        }
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} missed ", self.site)?;
        match (self.rounds, self.last.0.saturating_sub(self.first.0)) {
            (1, _) => write!(f, "round {}", self.first)?,
            (n, span) if span.checked_add(1) == Some(n) => {
                write!(f, "rounds {}-{}", self.first, self.last)?;
            }
            (n, _) => write!(f, "{n} rounds from {} to {}", self.first, self.last)?,
        }
        write!(f, ": {}", self.cause)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed { stop, rounds } => {
                write!(f, "completed {} ({stop})", count_rounds(*rounds))
            }
            Self::CompletedWith {
                stop,
                rounds,
                contributed,
                of,
                missed,
            } => {
                write!(
                    f,
                    "completed {} with {contributed} of {of} sites ({stop})",
                    count_rounds(*rounds)
                )?;
                missed.iter().try_for_each(|one| write!(f, "; {one}"))
            }
            Self::Failed { cause, .. } => write!(f, "failed: {cause}"),
            Self::Aborted { reason } => write!(f, "aborted: {reason}"),
        }
    }
}

fn count_rounds(rounds: u32) -> String {
    match rounds {
        1 => "1 round".to_owned(),
        n => format!("{n} rounds"),
    }
}
