//! The server as the interface for people sees it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use firesteel_api::ask::{LogSettings, Report};
use firesteel_api::job::{JobFilter, RoundMetrics, Submitted};
use firesteel_api::{
    Ask, EventKind, JobDetail, JobEvent, JobSummary, Problem, SiteInfo, Stamp, Target,
    problem::Code,
};
use firesteel_base::{Hint, JobId, SiteName};
use firesteel_jobs::{EventRow, Filter, JobRow, JobsError};
use firesteel_net::Session;
use firesteel_node::parts::{cores, random, sentence};
use firesteel_observe::LogConfig;
use firesteel_policy::Subject;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use super::core::Input;
use super::drive;
use super::intake::{self, Submission, stopping};
use super::record::{Record, stamp};
use super::shared::{Shared, lock, lock_read};

/// A server. Clones are the same.
#[derive(Clone)]
pub struct Hub(pub(super) Arc<Shared>);

impl Hub {
    /// Takes a session over, for as long as it lasts.
    pub async fn serve(&self, session: Session) {
        super::door::serve(Arc::clone(&self.0), session).await;
    }

    /// The server's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The project it serves.
    pub fn project(&self) -> &str {
        &self.0.project
    }

    /// When it was started.
    pub fn started(&self) -> Stamp {
        Stamp::of(self.0.started)
    }

    /// Where uploads are put: on the disk that jobs lie on.
    pub fn uploads(&self) -> PathBuf {
        self.0.jobs.incoming_dir()
    }

    /// Takes a job whose bundle is this file, which stays the caller's. Twice with
    /// the same key is one job.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn submit(
        &self,
        file: PathBuf,
        by: &Subject,
        key: Option<String>,
    ) -> Result<Submitted, Problem> {
        if let Some(key) = &key {
            let row = self.0.jobs.by_key(&by.org, &by.name, key).await;
            if row.map_err(|error| internal(&error))?.is_some() {
                return intake::existing(&self.0, by, Some(key)).await;
            }
        }
        let given = Submission {
            file,
            by: by.clone(),
            key,
            cloned_from: None,
        };
        intake::submit(&self.0, given).await
    }

    /// Submits a job anew, for `by`.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn clone_job(&self, job: &JobId, by: &Subject) -> Result<Submitted, Problem> {
        self.row(job).await?;
        let given = Submission {
            file: self.0.jobs.job_dir(job).join(intake::BUNDLE),
            by: by.clone(),
            key: None,
            cloned_from: Some(job.clone()),
        };
        intake::submit(&self.0, given).await
    }

    /// The jobs that fit, oldest first unless asked otherwise.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobSummary>, Problem> {
        // The key and the order are looked at here: the store lists the newest.
        let wanted = Filter {
            submitter: filter.submitter.clone(),
            state: filter.state.map(|state| state.as_str().to_owned()),
            name: filter.name.clone(),
            id: filter.id.clone(),
            most: match (&filter.key, filter.reverse) {
                (None, true) => filter.limit.unwrap_or(0),
                _ => 0,
            },
            ..Filter::default()
        };
        let rows = self.0.jobs.list(&wanted).await;
        let rows = rows.map_err(|error| internal(&error))?;
        let now = SystemTime::now();
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            let summary = self.record(row)?.summary(now);
            if filter.fits(&summary) {
                jobs.push(summary);
            }
        }
        if !filter.reverse {
            jobs.reverse();
        }
        if let Some(limit) = filter.limit {
            jobs.truncate(limit as usize);
        }
        Ok(jobs)
    }

    /// A job.
    ///
    /// # Errors
    /// [`Problem`] when the store cannot be read.
    pub async fn job(&self, job: &JobId) -> Result<Option<JobDetail>, Problem> {
        let row = self.0.jobs.job(job).await;
        let Some(row) = row.map_err(|error| internal(&error))? else {
            return Ok(None);
        };
        let record = self.record(row)?;
        let metrics = match self.run_dir(job) {
            Some(run) => {
                let reading = tokio::task::spawn_blocking(move || rounds(&run));
                reading.await.unwrap_or_default()
            }
            None => Vec::new(),
        };
        Ok(Some(record.shown(SystemTime::now(), metrics)))
    }

    /// A job's events after the one of this number, in order.
    ///
    /// # Errors
    /// [`Problem`] when the store cannot be read.
    pub async fn events(
        &self,
        job: &JobId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<JobEvent>, Problem> {
        let rows = self.0.jobs.events(job, after, limit).await;
        let rows = rows.map_err(|error| internal(&error))?;
        Ok(rows.into_iter().map(job_event).collect())
    }

    /// A number that changes with every change of a job or a site.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Ends a job, whatever it is doing. When it returns, the order is written
    /// down and on its way to every site that is connected.
    ///
    /// # Errors
    /// [`Problem`], also when the job has ended.
    pub async fn abort(&self, job: &JobId, reason: &str, by: &Subject) -> Result<(), Problem> {
        let row = self.row(job).await?;
        if row.over {
            let text = format!("job {job} cannot be aborted: it is {}", row.job.state);
            return Err(Problem::new(Code::WrongState, text));
        }
        let reason = match reason {
            "" => format!("by {}", by.name),
            reason => format!("{reason} (by {})", by.name),
        };
        let job = job.clone();
        self.tell(|done| Input::Abort { job, reason, done }).await
    }

    /// Deletes a job that has ended, with all that it left.
    ///
    /// # Errors
    /// [`Problem`], also when the job has not ended everywhere.
    pub async fn delete(&self, job: &JobId, by: &Subject) -> Result<(), Problem> {
        self.row(job).await?;
        self.0
            .logger
            .for_job(job.as_str())
            .info(&format!("job {job} is deleted by {}", by.name));
        let job = job.clone();
        self.tell(|done| Input::Delete { job, done }).await
    }

    /// The sites, by name.
    pub fn sites(&self) -> Vec<SiteInfo> {
        let sites = lock_read(&self.0.sites);
        let lease = self.0.durations.lease;
        sites
            .iter()
            .map(|(name, site)| site.shown(name, lease))
            .collect()
    }

    /// A site.
    pub fn site(&self, name: &str) -> Option<SiteInfo> {
        let sites = lock_read(&self.0.sites);
        let site = sites.get(name)?;
        Some(site.shown(name, self.0.durations.lease))
    }

    /// Asks a site, or the server.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn ask(&self, target: Target, ask: Ask, by: &Subject) -> Result<Value, Problem> {
        let name = match target {
            Target::Server => return self.ask_here(ask).await,
            Target::Site(name) => name,
        };
        let unknown = || Problem::new(Code::SiteNotFound, format!("there is no site `{name}`"));
        let site = SiteName::new(&name).map_err(|_| unknown())?;
        if !lock_read(&self.0.sites).contains_key(&name) {
            return Err(unknown());
        }
        let request = serde_json::to_vec(&ask)
            .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        let ask = Box::new(firesteel_wire::node::Ask {
            id: 0,
            request: Bytes::from(request),
            name: by.name.clone(),
            organization: by.org.clone(),
            role: by.role.as_str().to_owned(),
        });
        let (done, told) = oneshot::channel();
        let input = Input::Ask {
            site: site.clone(),
            ask,
            done,
        };
        self.0.inbox.send(input).await.map_err(|_| stopping())?;
        let limit = self.0.durations.idle;
        match tokio::time::timeout(limit, told).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(stopping()),
            Err(_) => Err(Problem::new(
                Code::SiteSilent,
                format!("site {site} did not answer within {} s", limit.as_secs()),
            )),
        }
    }

    /// Where everything of a job lies at the server.
    pub fn job_dir(&self, job: &JobId) -> PathBuf {
        self.0.jobs.job_dir(job)
    }

    /// Where its latest run lies, with models, metrics and logs.
    pub fn run_dir(&self, job: &JobId) -> Option<PathBuf> {
        let latest = self.job_dir(job).join(drive::RUN).join("latest");
        std::fs::canonicalize(latest).ok()
    }

    /// A site's own log as it came from there; `server`: the server's own.
    pub fn site_log(&self, site: &str) -> Option<PathBuf> {
        if site == "server" {
            return Some(self.0.workspace.join("log.txt"));
        }
        SiteName::new(site).ok()?;
        Some(super::door::site_log(&self.0, site))
    }

    /// A job's log as it came from a site; `server`: the server's own.
    pub fn job_log(&self, job: &JobId, site: &str) -> Option<PathBuf> {
        if site == "server" {
            return Some(self.run_dir(job)?.join("log.txt"));
        }
        let site = SiteName::new(site).ok()?;
        Some(self.job_dir(job).join("logs").join(format!("{site}.log")))
    }

    // ----- the rest -------------------------------------------------------

    async fn row(&self, job: &JobId) -> Result<JobRow, Problem> {
        let row = self
            .0
            .jobs
            .job(job)
            .await
            .map_err(|error| internal(&error))?;
        row.ok_or_else(|| Problem::new(Code::JobNotFound, format!("there is no job {job}")))
    }

    /// The record that the loop has, or the store's.
    fn record(&self, row: JobRow) -> Result<Record, Problem> {
        if !row.settled
            && let Some(live) = lock_read(&self.0.records).get(&row.job.id)
        {
            // What is not written down is not told; a sentence may be newer.
            let mut record = Record::read(row).map_err(|why| Problem::new(Code::Internal, why))?;
            if record.state == live.state {
                record.status.clone_from(&live.status);
            }
            return Ok(record);
        }
        Record::read(row).map_err(|why| Problem::new(Code::Internal, why))
    }

    async fn tell(
        &self,
        input: impl FnOnce(oneshot::Sender<Result<(), Problem>>) -> Input,
    ) -> Result<(), Problem> {
        let (done, told) = oneshot::channel();
        self.0
            .inbox
            .send(input(done))
            .await
            .map_err(|_| stopping())?;
        told.await.unwrap_or_else(|_| Err(stopping()))
    }

    async fn ask_here(&self, ask: Ask) -> Result<Value, Problem> {
        match ask {
            Ask::Files { job, op } => {
                let root = match job {
                    Some(job) => self.job_dir(&job_id(&job)?),
                    None => self.0.workspace.clone(),
                };
                let answering =
                    tokio::task::spawn_blocking(move || crate::files::answer(&root, &op));
                let answer = answering.await;
                answer.map_err(|error| Problem::new(Code::Internal, error.to_string()))?
            }
            Ask::LogLevel { job, level } => {
                let config = LogConfig::resolve(Some(&self.0.workspace), Some(&level), |_| None);
                self.set_logs(job.as_deref(), config.map_err(invalid)?, level)
            }
            Ask::LogConfig { job, config } => {
                let level = "config".to_owned();
                let file = self.uploads().join(format!("log-{:016x}.json", random()));
                let resolved = std::fs::write(&file, config)
                    .map_err(|error| Problem::new(Code::Internal, error.to_string()))
                    .and_then(|()| LogConfig::read(&file).map_err(invalid));
                // What is left is swept away at the next start.
                let _ = std::fs::remove_file(&file);
                self.set_logs(job.as_deref(), resolved?, level)
            }
            Ask::Report => {
                let jobs = lock_read(&self.0.records);
                let jobs = jobs
                    .iter()
                    .map(|(job, record)| (job.to_string(), record.status.clone()));
                let report = Report {
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    started: self.started(),
                    jobs: jobs.collect(),
                    resources: BTreeMap::new(),
                    environment: json!({"cores": cores(), "threads": self.0.threads}),
                };
                serde_json::to_value(report)
                    .map_err(|error| Problem::new(Code::Internal, error.to_string()))
            }
            other => Err(Problem::new(
                Code::Invalid,
                format!("the server has no answer to {other:?}"),
            )),
        }
    }

    fn set_logs(
        &self,
        job: Option<&str>,
        config: LogConfig,
        level: String,
    ) -> Result<Value, Problem> {
        match job {
            None => self.0.logger.logs().set_config(config),
            Some(job) => {
                let job = job_id(job)?;
                let logs = lock(&self.0.logs);
                let logs = logs.get(&job).ok_or_else(|| {
                    Problem::new(Code::WrongState, format!("job {job} does not run"))
                })?;
                logs.set_config(config);
            }
        }
        serde_json::to_value(LogSettings { level })
            .map_err(|error| Problem::new(Code::Internal, error.to_string()))
    }
}

fn invalid(error: firesteel_observe::ConfigError) -> Problem {
    Problem::new(Code::Invalid, sentence(&error)).with_hint(error.hint().unwrap_or_default())
}

/// An id that somebody gave.
pub(crate) fn job_id(text: &str) -> Result<JobId, Problem> {
    JobId::new(text).map_err(|error| Problem::new(Code::Invalid, error.to_string()))
}

/// What went wrong with the store.
pub(crate) fn internal(error: &JobsError) -> Problem {
    Problem::new(Code::Internal, sentence(error)).with_hint(error.hint().unwrap_or_default())
}

fn job_event(row: EventRow) -> JobEvent {
    let what = serde_json::from_str(&row.body).unwrap_or(EventKind::Unknown);
    JobEvent {
        seq: row.number,
        at: stamp(row.time),
        what,
    }
}

/// The numbers of each round of a run.
fn rounds(run: &Path) -> Vec<RoundMetrics> {
    let text = std::fs::read_to_string(run.join("metrics").join("rounds.jsonl"));
    let text = text.unwrap_or_default();
    let lines = text.lines().filter_map(|line| drive::round_done(line, 0));
    lines
        .filter_map(|(round, event)| match event {
            EventKind::RoundDone { metrics, .. } => Some(RoundMetrics {
                round,
                values: metrics,
            }),
            _ => None,
        })
        .collect()
}
