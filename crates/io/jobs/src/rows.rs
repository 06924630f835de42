//! What is kept.

use firesteel_base::JobId;

/// A job that is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// Who submitted it.
    pub submitter: String,
    /// Of which organization.
    pub organization: String,
    /// In which role.
    pub role: String,
    /// The submitter's own name for this submission: one who submits twice with
    /// the same key has one job.
    pub key: Option<String>,
    /// When, in microseconds since 1970 UTC.
    pub submitted: u64,
    /// Higher goes first.
    pub priority: i64,
    /// The state it begins in.
    pub state: String,
    /// The spec as submitted, JSON.
    pub spec: String,
    /// Bytes of its bundle.
    pub bundle_length: u64,
    /// Their SHA-256.
    pub bundle_sha256: Vec<u8>,
    /// The job from which it was cloned.
    pub cloned_from: Option<String>,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// Its place among all jobs, by time.
    pub number: u64,
    /// What was said when it was new; the state is today's.
    pub job: NewJob,
    /// When its state last changed, in microseconds since 1970 UTC.
    pub changed: u64,
    /// Whether it has come to its end.
    pub over: bool,
    /// Whether nothing more is to be done about it.
    pub settled: bool,
    /// What is known of it, JSON; what it means is the writer's business.
    pub detail: String,
}

/// A step of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Counted from 1 in each job, without gaps.
    pub number: u64,
    /// When, in microseconds since 1970 UTC.
    pub time: u64,
    /// Which kind.
    pub kind: String,
    /// More about it, JSON.
    pub body: String,
}

/// Something to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A job.
    New(Box<NewJob>),
    /// A step of it.
    Event {
        /// Which job.
        job: JobId,
        /// When, in microseconds since 1970 UTC.
        time: u64,
        /// Which kind.
        kind: String,
        /// More about it, JSON.
        body: String,
    },
    /// What a job has come to.
    State {
        /// Which job.
        job: JobId,
        /// When, in microseconds since 1970 UTC.
        time: u64,
        /// The state.
        state: String,
        /// Whether that is its end.
        over: bool,
        /// Whether nothing more is to be done about it.
        settled: bool,
        /// What is known of it, JSON.
        detail: String,
    },
    /// A job and all its events go.
    Delete {
        /// Which job.
        job: JobId,
    },
}

/// Which jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this submitter.
    pub submitter: Option<String>,
    /// Of this organization.
    pub organization: Option<String>,
    /// In this state.
    pub state: Option<String>,
    /// Whose name begins like this.
    pub name: Option<String>,
    /// Whose id begins like this.
    pub id: Option<String>,
    /// Before this one, by number; for the next page.
    pub before: Option<u64>,
    /// At most so many, the newest; zero: all.
    pub most: u32,
}
