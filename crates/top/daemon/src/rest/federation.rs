//! What the interface needs of a server.

use std::path::PathBuf;
use std::pin::Pin;

use firesteel_api::job::Submitted;
use firesteel_api::{
    Ask, JobDetail, JobEvent, JobSummary, Problem, ServerStatus, SiteInfo, Target, job::JobFilter,
};
use firesteel_policy::Subject;
use serde_json::Value;
use tokio::sync::watch;

/// What was asked for, once it is done.
pub type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, Problem>> + Send + 'a>>;

/// A server, as the interface sees it. It decides nothing about who may do what:
/// that was decided before any of these is called.
pub trait Federation: Send + Sync + 'static {
    /// How the server is.
    fn status(&self) -> ServerStatus;

    /// Where uploads are put, on the disk that jobs lie on.
    fn incoming(&self) -> PathBuf;

    /// Takes a job whose bundle is `file`. The file is the caller's, and is gone
    /// after the call: what is to stay is moved away.
    fn submit(&self, file: PathBuf, by: Subject, key: Option<String>) -> Asked<'_, Submitted>;

    /// The jobs that fit, in the order asked for.
    fn jobs(&self, filter: JobFilter) -> Asked<'_, Vec<JobSummary>>;

    /// A job.
    fn job<'a>(&'a self, id: &'a str) -> Asked<'a, Option<JobDetail>>;

    /// A job's events after the one numbered `after`, at most `limit`, in order.
    fn events<'a>(&'a self, id: &'a str, after: u64, limit: u32) -> Asked<'a, Vec<JobEvent>>;

    /// A number that changes with every change of a job or a site.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Ends a job, in whatever state it is.
    fn abort<'a>(&'a self, id: &'a str, reason: String, by: Subject) -> Asked<'a, ()>;

    /// Deletes a job that has ended, with all that it left.
    fn delete<'a>(&'a self, id: &'a str, by: Subject) -> Asked<'a, ()>;

    /// Submits a job anew, for `by`.
    fn clone_job<'a>(&'a self, id: &'a str, by: Subject) -> Asked<'a, Submitted>;

    /// The sites, by name.
    fn sites(&self) -> Vec<SiteInfo>;

    /// A site.
    fn site(&self, name: &str) -> Option<SiteInfo>;

    /// Asks a site, or the server, for `by`: a site has rules of its own.
    fn ask(&self, target: Target, ask: Ask, by: Subject) -> Asked<'_, Value>;

    /// Where a job's models, metrics and logs lie at the server: folders, and the
    /// name that each is shown below; one of them may have none.
    fn job_dirs(&self, id: &str) -> Vec<(String, PathBuf)>;

    /// A job's log as it came from a site; `server`: the server's own.
    fn job_log(&self, id: &str, site: &str) -> Option<PathBuf>;

    /// A site's own log as it came from there; `server`: the server's own.
    fn site_log(&self, site: &str) -> Option<PathBuf>;
}
