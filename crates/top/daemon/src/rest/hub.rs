//! The interface of a server that stays.

use std::path::PathBuf;
use std::sync::Arc;

use firesteel_api::job::{JobFilter, Submitted};
use firesteel_api::{
    Ask, JobDetail, JobEvent, JobSummary, Problem, ServerStatus, SiteInfo, SiteState, Target,
};
use firesteel_base::{Durations, JobId};
use firesteel_observe::Logger;
use firesteel_pki::Kit;
use firesteel_policy::{Policy, Subject};
use serde_json::Value;
use tokio::sync::watch;

use super::certificate::by_certificate;
use super::federation::{Asked, Federation};
use super::router::{Rest, RestError, RestOptions};
use crate::server::{Hub, job_id};

impl Rest {
    /// The interface of a server, with the kit that it runs with.
    ///
    /// # Errors
    /// [`RestError`] when the system gives no random bytes.
    pub fn of(
        hub: Hub,
        kit: &Kit,
        policy: Policy,
        durations: Durations,
        log: Logger,
    ) -> Result<Self, RestError> {
        let options = RestOptions {
            server: kit.name().to_owned(),
            org: kit.org().to_owned(),
            project: kit.project().to_owned(),
            durations,
            policy,
            verify: by_certificate(kit.authority().clone()),
            log,
        };
        Self::new(Arc::new(hub), options)
    }
}

/// An id that names no job is one of a job that is not there.
fn id(text: &str) -> Result<JobId, Problem> {
    job_id(text)
}

impl Federation for Hub {
    fn status(&self) -> ServerStatus {
        let sites = self.sites();
        let connected = |site: &&SiteInfo| site.state == SiteState::Connected;
        ServerStatus {
            name: self.name().to_owned(),
            project: self.project().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started(),
            sites_connected: sites.iter().filter(connected).count() as u64,
            sites_known: sites.len() as u64,
        }
    }

    fn incoming(&self) -> PathBuf {
        self.uploads()
    }

    fn submit(&self, file: PathBuf, by: Subject, key: Option<String>) -> Asked<'_, Submitted> {
        Box::pin(async move { self.submit(file, &by, key).await })
    }

    fn jobs(&self, filter: JobFilter) -> Asked<'_, Vec<JobSummary>> {
        Box::pin(async move { self.jobs(&filter).await })
    }

    fn job<'a>(&'a self, job: &'a str) -> Asked<'a, Option<JobDetail>> {
        Box::pin(async move {
            match JobId::new(job) {
                Ok(job) => self.job(&job).await,
                Err(_) => Ok(None),
            }
        })
    }

    fn events<'a>(&'a self, job: &'a str, after: u64, limit: u32) -> Asked<'a, Vec<JobEvent>> {
        Box::pin(async move { self.events(&id(job)?, after, limit).await })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.watch()
    }

    fn abort<'a>(&'a self, job: &'a str, reason: String, by: Subject) -> Asked<'a, ()> {
        Box::pin(async move { self.abort(&id(job)?, &reason, &by).await })
    }

    fn delete<'a>(&'a self, job: &'a str, by: Subject) -> Asked<'a, ()> {
        Box::pin(async move { self.delete(&id(job)?, &by).await })
    }

    fn clone_job<'a>(&'a self, job: &'a str, by: Subject) -> Asked<'a, Submitted> {
        Box::pin(async move { self.clone_job(&id(job)?, &by).await })
    }

    fn sites(&self) -> Vec<SiteInfo> {
        self.sites()
    }

    fn site(&self, name: &str) -> Option<SiteInfo> {
        self.site(name)
    }

    fn ask(&self, target: Target, ask: Ask, by: Subject) -> Asked<'_, Value> {
        Box::pin(async move { self.ask(target, ask, &by).await })
    }

    fn job_dirs(&self, job: &str) -> Vec<(String, PathBuf)> {
        let Ok(job) = JobId::new(job) else {
            return Vec::new();
        };
        let logs = ("logs".to_owned(), self.job_dir(&job).join("logs"));
        let run = self.run_dir(&job).map(|run| (String::new(), run));
        run.into_iter().chain([logs]).collect()
    }

    fn job_log(&self, job: &str, site: &str) -> Option<PathBuf> {
        self.job_log(&JobId::new(job).ok()?, site)
    }

    fn site_log(&self, site: &str) -> Option<PathBuf> {
        self.site_log(site)
    }
}
