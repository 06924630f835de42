//! What can be asked of a server, one method each.

use std::path::Path;

use bytes::Bytes;
use firesteel_api::ask::Target;
use firesteel_api::event::{EventQuery, JobEvents};
use firesteel_api::job::{Abort, JobFile, JobFiles, JobFilter, Jobs, Submitted};
use firesteel_api::logs::{ENDED, LogQuery, NEXT};
use firesteel_api::site::Sites;
use firesteel_api::{JobDetail, JobSummary, ServerStatus, SiteInfo, route};
use http::Method;
use serde_json::{Value, from_slice, to_value, to_vec};

use crate::error::SessionError;
use crate::exchange::{Ask, Load, Patience, Reply};
use crate::session::Session;

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPiece {
    /// The bytes.
    pub bytes: Bytes,
    /// What to ask for next.
    pub next: Option<String>,
    /// Nothing follows.
    pub ended: bool,
}

macro_rules! read {
    ($session:expr, $ask:expr) => {{
        let ask = $ask;
        let reply = $session.accepted(&ask).await?;
        from_slice(&reply.body).map_err(|error| SessionError::Answer {
            request: ask.told(),
            why: error.to_string(),
        })
    }};
}

impl Session {
    /// How the server is.
    ///
    /// # Errors
    /// [`SessionError`], as of all that follow.
    pub async fn status(&self) -> Result<ServerStatus, SessionError> {
        read!(self, Ask::get(route::STATUS))
    }

    /// Submits a bundle. With a `key`, what is lost on the way is sent again and
    /// makes one job.
    pub async fn submit(
        &self,
        bundle: &Path,
        key: Option<&str>,
    ) -> Result<Submitted, SessionError> {
        let mut ask = Ask::new(Method::POST, route::JOBS);
        ask.load = Load::File(bundle.to_owned());
        if let Some(key) = key {
            ask = ask.header(route::SUBMIT_KEY, key);
        }
        read!(self, ask)
    }

    /// Sends a file to any path, as [`request`](Self::request) does a body.
    pub async fn upload(
        &self,
        path: &str,
        file: &Path,
        key: Option<&str>,
    ) -> Result<Reply, SessionError> {
        let mut ask = Ask::new(Method::POST, path);
        ask.load = Load::File(file.to_owned());
        if let Some(key) = key {
            ask = ask.header(route::SUBMIT_KEY, key);
        }
        self.reply(&ask).await
    }

    /// The jobs that fit.
    pub async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobSummary>, SessionError> {
        let path = with_query(route::JOBS, &to_value(filter).unwrap_or_default());
        let jobs: Jobs = read!(self, Ask::get(path))?;
        Ok(jobs.jobs)
    }

    /// A job.
    pub async fn job(&self, id: &str) -> Result<JobDetail, SessionError> {
        read!(self, Ask::get(route::job(id, "")))
    }

    /// A job's events.
    pub async fn events(&self, id: &str, query: EventQuery) -> Result<JobEvents, SessionError> {
        let query = to_value(query).unwrap_or_default();
        let path = with_query(&route::job(id, "/events"), &query);
        read!(self, Ask::get(path))
    }

    /// The same, going on after cuts until nothing got through for the duration
    /// `idle`.
    pub async fn events_through_cuts(
        &self,
        id: &str,
        query: EventQuery,
    ) -> Result<JobEvents, SessionError> {
        let mut patience = Patience::new(self.idle());
        loop {
            match self.events(id, query).await {
                Ok(events) => return Ok(events),
                Err(error) => patience.again(error).await?,
            }
        }
    }

    /// Ends a job.
    pub async fn abort(&self, id: &str, reason: &str) -> Result<JobDetail, SessionError> {
        let abort = Abort {
            reason: reason.to_owned(),
        };
        let ask = Ask::new(Method::POST, route::job(id, "/abort"));
        read!(self, ask.json(to_vec(&abort).unwrap_or_default().into()))
    }

    /// Submits a job again.
    pub async fn clone_job(&self, id: &str) -> Result<Submitted, SessionError> {
        read!(self, Ask::new(Method::POST, route::job(id, "/clone")))
    }

    /// Deletes a job that has ended.
    pub async fn delete(&self, id: &str) -> Result<(), SessionError> {
        let ask = Ask::new(Method::DELETE, route::job(id, ""));
        self.accepted(&ask).await.map(drop)
    }

    /// A job's files at the server.
    pub async fn files(&self, id: &str) -> Result<Vec<JobFile>, SessionError> {
        let files: JobFiles = read!(self, Ask::get(route::job(id, "/files")))?;
        Ok(files.files)
    }

    /// A piece of a job's log from one site, or from `server`.
    pub async fn job_log(
        &self,
        id: &str,
        site: &str,
        query: &LogQuery,
    ) -> Result<LogPiece, SessionError> {
        let path = route::job(id, &format!("/logs/{}", route::encoded(site)));
        self.log(&path, query).await
    }

    /// A piece of a site's own log, or of the server's.
    pub async fn site_log(&self, site: &str, query: &LogQuery) -> Result<LogPiece, SessionError> {
        self.log(&route::site(site, "/log"), query).await
    }

    /// A piece of the log at any path, going on after cuts until nothing got
    /// through for the duration `idle`.
    pub async fn log(&self, path: &str, query: &LogQuery) -> Result<LogPiece, SessionError> {
        let path = with_query(path, &to_value(query).unwrap_or_default());
        let ask = Ask::get(path);
        let mut patience = Patience::new(self.idle());
        let reply = loop {
            match self.accepted(&ask).await {
                Ok(reply) => break reply,
                // Whoever asks for the first time wants to know.
                Err(error) if query.after.is_none() => return Err(error),
                Err(error) => patience.again(error).await?,
            }
        };
        let next = reply.headers.get(NEXT).and_then(|next| next.to_str().ok());
        Ok(LogPiece {
            next: next.map(str::to_owned).or_else(|| query.after.clone()),
            ended: reply.headers.contains_key(ENDED),
            bytes: reply.body,
        })
    }

    /// The sites.
    pub async fn sites(&self) -> Result<Vec<SiteInfo>, SessionError> {
        let sites: Sites = read!(self, Ask::get(route::SITES))?;
        Ok(sites.sites)
    }

    /// A site.
    pub async fn site(&self, name: &str) -> Result<SiteInfo, SessionError> {
        read!(self, Ask::get(route::site(name, "")))
    }

    /// Asks a site, or the server.
    pub async fn ask(
        &self,
        target: &Target,
        ask: &firesteel_api::Ask,
    ) -> Result<Value, SessionError> {
        let path = route::site(&target.to_string(), "/ask");
        let body = to_vec(ask).unwrap_or_default();
        read!(self, Ask::new(Method::POST, path).json(body.into()))
    }
}

/// A path with the fields of a flat object behind it.
fn with_query(path: &str, fields: &Value) -> String {
    let mut out = path.to_owned();
    let mut sign = '?';
    for (name, value) in fields.as_object().into_iter().flatten() {
        let value = match value {
            Value::Null => continue,
            Value::String(text) => route::encoded(text).replace('/', "%2F"),
            other => other.to_string(),
        };
        out.push(sign);
        out.push_str(&format!("{name}={value}"));
        sign = '&';
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_written_as_a_server_reads_them() {
        let filter = JobFilter {
            name: Some("a&b/c".to_owned()),
            limit: Some(3),
            ..JobFilter::default()
        };
        assert_eq!(
            with_query("/v1/jobs", &to_value(filter).unwrap()),
            "/v1/jobs?limit=3&name=a%26b%2Fc&reverse=false"
        );
    }
}
