//! Where a job stands, for people: who is in, who is waited for, and why.

use std::fmt;

use firesteel_base::{Failure, Round, SiteName, Time};

use crate::{BestMark, TaskStage};

/// How many sites a sentence names before it only counts.
const SITES_IN_A_SENTENCE: usize = 8;

/// Where a job stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// What it is doing.
    pub stage: JobStage,
    /// The round it is in; `None` before the first.
    pub round: Option<Round>,
    /// The first round of the job.
    pub start_round: Round,
    /// How many rounds it has.
    pub total_rounds: u32,
    /// When the round was opened.
    pub since: Time,
    /// When the round closes at the latest.
    pub deadline: Option<Time>,
    /// How many sites are in: connected before the first round, contributed in
    /// a round.
    pub have: usize,
    /// How many it needs.
    pub need: usize,
    /// Every site, in site order.
    pub sites: Vec<SiteStatus>,
    /// The best model so far.
    pub best: Option<BestMark>,
}

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobStage {
    /// Nothing: it was not started.
    Created,
    /// Waiting for enough sites to start.
    Gathering,
    /// Waiting for the sites' results.
    Running,
    /// Making the round's model.
    Folding,
    /// Nothing more: it has ended.
    Ended,
}

/// Where one site stands.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteStatus {
    /// The site.
    pub site: SiteName,
    /// What it is doing.
    pub state: SiteState,
}

/// What a site is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum SiteState {
    /// It has not connected.
    Absent,
    /// It is there and nothing is asked of it.
    Ready,
    /// It has work in hand and is waited for.
    Working {
        /// How far it is.
        stage: TaskStage,
        /// Since when.
        since: Time,
        /// The round its work belongs to.
        round: Round,
    },
    /// It was at work when the server restarted and has not come back.
    Returning {
        /// Since when it is waited for.
        since: Time,
    },
    /// Its update is in.
    Contributed,
    /// The round closed without it.
    Late,
    /// Its work in this round failed.
    Failed(Failure),
    /// It has no more part in the job.
    Excluded(Failure),
}

impl Status {
    /// The sites that the job waits for: to come before the first round, to
    /// answer in a round.
    pub fn waited_for(&self) -> impl Iterator<Item = &SiteStatus> {
        let gathering = self.stage == JobStage::Gathering;
        let running = self.stage == JobStage::Running;
        self.sites.iter().filter(move |one| match one.state {
            SiteState::Absent => gathering,
            SiteState::Working { .. } => running,
            SiteState::Returning { .. } => gathering || running,
            _ => false,
        })
    }
}

impl fmt::Display for SiteStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.site)?;
        match &self.state {
            SiteState::Absent => f.write_str("not connected"),
            SiteState::Ready => f.write_str("ready"),
            SiteState::Working { stage, since, .. } => {
                write!(f, "{} since {since}", stage.as_str())
            }
            SiteState::Returning { since } => {
                write!(f, "not back since the restart at {since}")
            }
            SiteState::Contributed => f.write_str("in"),
            SiteState::Late => f.write_str("late"),
            SiteState::Failed(failure) => write!(f, "failed: {failure}"),
            SiteState::Excluded(failure) => write!(f, "excluded: {failure}"),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let round = self.round.unwrap_or(self.start_round);
        // The last round's name, so that a job that starts at round 10 of 15
        // shows what it shows in every other place.
        let total = u64::from(self.start_round.0) + u64::from(self.total_rounds);
        let (have, need) = (self.have, self.need);
        match self.stage {
            JobStage::Created => return f.write_str("not started"),
            JobStage::Ended => return f.write_str("ended"),
            JobStage::Gathering => write!(f, "waiting to start: {have} of {need} sites are there")?,
            JobStage::Folding => write!(f, "round {round} of {total}: summing {have} updates")?,
            JobStage::Running => {
                write!(f, "round {round} of {total}: {have} in, {need} needed")?;
            }
        }
        let waited_for: Vec<_> = self.waited_for().collect();
        for one in waited_for.iter().take(SITES_IN_A_SENTENCE) {
            write!(f, "; waiting for {one}")?;
        }
        match waited_for.len().checked_sub(SITES_IN_A_SENTENCE) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "; and for {more} more"),
        }
    }
}
