//! What goes into a scheduler and what comes out.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use firesteel_base::{JobId, SiteName};

use super::resources::{Capacity, Resources};

/// How a scheduler decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduleSettings {
    /// Jobs between their deploy and their end, at once.
    pub max_jobs: usize,
    /// For how long a job that could go waits for the other sites that it names.
    pub gather: Duration,
    /// For how long a site may say and fetch nothing while a job is deployed.
    pub deploy: Duration,
    /// For how long a site may take from the order to start to its first word.
    pub start: Duration,
    /// For how long a stop is waited for before its site is listed as pending.
    pub stop: Duration,
}

/// What a job asks of the sites.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Needs {
    /// The sites, in the job's order; empty: all that are connected when it is
    /// its turn.
    pub sites: Vec<SiteName>,
    /// How many of them it takes, in each phase.
    pub min_sites: usize,
    /// Those that it cannot do without, in each phase.
    pub required: Vec<SiteName>,
    /// Higher goes first; among equals the one submitted first.
    pub priority: i64,
    /// What it takes at each site.
    pub take: Resources,
    /// What each site must have, as the memory of a GPU.
    pub sizes: Resources,
    /// Sites at which it takes something else, and needs other sizes.
    pub at: BTreeMap<SiteName, (Resources, Resources)>,
    /// Once there are enough sites, for how long the others are waited for in a
    /// phase; none: until they have answered or may be given up.
    pub grace: Option<Duration>,
}

impl Needs {
    /// What it takes at this site.
    pub fn take_at(&self, site: &SiteName) -> &Resources {
        self.at.get(site).map_or(&self.take, |(take, _)| take)
    }

    /// What this site must have.
    pub fn sizes_at(&self, site: &SiteName) -> &Resources {
        self.at.get(site).map_or(&self.sizes, |(_, sizes)| sizes)
    }
}

/// Where a job is at a site, as the site says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InHand {
    /// It is being fetched and checked.
    Deploying,
    /// It can start.
    Ready,
    /// It runs.
    Running,
    /// It is on its way out.
    Stopping,
}

/// Why a site takes no part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// In which phase.
    pub phase: JobPhase,
    /// A word for programs.
    pub code: String,
    /// A sentence that can stand after `site-3: `.
    pub reason: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// The phases in which it is decided whether a job goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum JobPhase {
    /// In the queue.
    Queue,
    /// While sites make ready.
    Deploy,
    /// While they start.
    Start,
    /// While it runs.
    Run,
}

impl JobPhase {
    /// The word used in messages and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Deploy => "deploy",
            Self::Start => "start",
            Self::Run => "run",
        }
    }

    /// The inverse of [`JobPhase::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Queue, Self::Deploy, Self::Start, Self::Run]
            .into_iter()
            .find(|phase| phase.as_str() == word)
    }
}

impl fmt::Display for JobPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// Sites fetch it and check what it needs.
    Deploying,
    /// Sites start it.
    Starting,
    /// Its workflow decides.
    Running,
    /// It is on its way out.
    Stopping,
    /// It is over.
    Ended,
}

impl JobState {
    /// The word used in messages and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Deploying => "deploying",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
        }
    }

    /// The inverse of [`JobState::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        [
            Self::Queued,
            Self::Deploying,
            Self::Starting,
            Self::Running,
            Self::Stopping,
            Self::Ended,
        ]
        .into_iter()
        .find(|state| state.as_str() == word)
    }
}

/// Where a job stands at one site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SitePart {
    /// The job names it, and it is not there or has no room.
    Waiting,
    /// It was told to make ready.
    Deploying,
    /// It can start.
    Ready,
    /// It was told to start.
    Starting,
    /// It has reported the job: from here on it is missed.
    Started,
    /// It takes no part, and why.
    Out(Refusal),
    /// It was told to stop.
    Stopping,
    /// It has nothing of the job any more.
    Ended,
}

impl SitePart {
    /// The word used in messages and records.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Deploying => "deploying",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Out(_) => "out",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
        }
    }
}

/// How a job's run came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunResult {
    /// With all sites.
    Completed,
    /// With some missing.
    CompletedWithLosses,
    /// It could not go on.
    Failed,
    /// It was told to end.
    Aborted,
}

/// How a job came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The phase in which it was decided.
    pub phase: JobPhase,
    /// How.
    pub how: How,
    /// The sites that took no part, in the job's order.
    pub out: Vec<(SiteName, Refusal)>,
    /// Sites that may still have something of it, and will be told to stop it when
    /// they connect.
    pub pending: Vec<SiteName>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// Its workflow said so; what it says of it is with whoever drove it.
    Run(RunResult),
    /// Too few sites, or a required one missing.
    TooFew {
        /// What was missing, in a sentence that names it.
        cause: String,
    },
    /// Somebody ended it before it ran.
    Aborted {
        /// Why.
        reason: String,
    },
}

/// What has happened.
#[derive(Debug, Clone, PartialEq)]
pub enum ScheduleEvent {
    /// A job is to be scheduled.
    Submitted {
        /// Which.
        job: JobId,
        /// Its place among all jobs, by time.
        number: u64,
        /// What it asks for.
        needs: Needs,
    },
    /// A site has connected.
    Connected {
        /// Which.
        site: SiteName,
        /// What it has to give.
        capacity: Capacity,
        /// The jobs that it has in hand.
        jobs: Vec<(JobId, InHand)>,
    },
    /// What a site has to give has changed.
    Changed {
        /// Which.
        site: SiteName,
        /// To this.
        capacity: Capacity,
    },
    /// A site's connection is lost.
    Disconnected {
        /// Which.
        site: SiteName,
    },
    /// A site is fetching a job.
    Progress {
        /// The job.
        job: JobId,
        /// The site.
        site: SiteName,
    },
    /// A site can start a job.
    Ready {
        /// The job.
        job: JobId,
        /// The site.
        site: SiteName,
        /// Which try it answers.
        attempt: u32,
    },
    /// A site takes no part in a job.
    Declined {
        /// The job.
        job: JobId,
        /// The site.
        site: SiteName,
        /// Which try it answers.
        attempt: u32,
        /// Why.
        refusal: Refusal,
    },
    /// A site has reported a job for the first time since its start.
    Started {
        /// The job.
        job: JobId,
        /// The site.
        site: SiteName,
    },
    /// A site has nothing of a job any more.
    Ended {
        /// The job.
        job: JobId,
        /// The site.
        site: SiteName,
        /// What went wrong; empty when nothing did.
        error: String,
    },
    /// A job's workflow is over.
    RunOver {
        /// The job.
        job: JobId,
        /// How.
        result: RunResult,
    },
    /// Somebody wants a job ended.
    Abort {
        /// The job.
        job: JobId,
        /// Why, with who it was.
        reason: String,
    },
    /// The time has come.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum ScheduleAction {
    /// A job has got to here.
    Enter {
        /// The job.
        job: JobId,
        /// Where it is.
        state: JobState,
    },
    /// These are the job's sites, in its order.
    Sites {
        /// The job.
        job: JobId,
        /// All of them.
        sites: Vec<SiteName>,
    },
    /// A job has got to here at a site.
    Part {
        /// The job.
        job: JobId,
        /// The site.
        site: SiteName,
        /// Where it is there.
        part: SitePart,
    },
    /// Why a queued job waits, for people; empty when it does not.
    Waits {
        /// The job.
        job: JobId,
        /// Why.
        why: String,
    },
    /// A site is to make ready.
    Deploy {
        /// The job.
        job: JobId,
        /// The site.
        site: SiteName,
        /// Which try.
        attempt: u32,
    },
    /// A site is to start.
    Start {
        /// The job.
        job: JobId,
        /// The site.
        site: SiteName,
    },
    /// A site is to stop.
    Stop {
        /// The job.
        job: JobId,
        /// The site.
        site: SiteName,
        /// Why.
        reason: String,
    },
    /// The job's workflow begins, or goes on after a restart of the server.
    Run {
        /// The job.
        job: JobId,
        /// Sites of the job that will take no part, and why.
        out: Vec<(SiteName, Refusal)>,
        /// Whether it goes on.
        resume: bool,
    },
    /// A site takes no further part in a job that runs.
    Gone {
        /// The job.
        job: JobId,
        /// The site.
        site: SiteName,
        /// Why.
        why: Refusal,
    },
    /// The job's workflow is to end.
    AbortRun {
        /// The job.
        job: JobId,
        /// Why.
        reason: String,
    },
    /// The job is over.
    End {
        /// The job.
        job: JobId,
        /// How.
        ending: Ending,
    },
    /// A site that was listed as pending has stopped a job that is over.
    Confirmed {
        /// The job.
        job: JobId,
        /// The site.
        site: SiteName,
    },
}
