//! What is done once it is written down.

use std::sync::Arc;

use bytes::Bytes;
use firesteel_base::{JobId, SiteName};
use firesteel_carry::{Connection, Way};
use firesteel_flow::schedule::{How, JobState as Phase, Refusal, RunResult, ScheduleAction};
use firesteel_wire::node::{Deploy, Start, Stop, ToNode, Welcome, to_node};
use tokio::sync::mpsc;

use super::core::{Core, Effect, Input};
use super::drive::{self, Driving, RunHandle};
use super::facts;
use super::shared::lock_read;

impl Core {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Action(action) => self.act(action),
            Effect::Welcome { site, scopes } => {
                for job in scopes {
                    self.open_scope(&site, &job);
                }
                let welcome = to_node::Body::Welcome(Welcome {
                    protocol: firesteel_wire::PROTOCOL,
                    build: env!("CARGO_PKG_VERSION").to_owned(),
                    instance: self.shared.instance,
                    clock: self.wall(),
                });
                self.tell(&site, welcome);
            }
            Effect::Reply(done, result) => {
                let _ = done.send(result);
            }
            Effect::Removed(job, done) => {
                let shared = Arc::clone(&self.shared);
                tokio::spawn(async move {
                    let removed = shared.jobs.remove_files(&job).await;
                    let _ = done.send(removed.map_err(|error| super::hub::internal(&error)));
                });
            }
        }
    }

    fn act(&mut self, action: ScheduleAction) {
        match action {
            ScheduleAction::Enter { job, state } => match state {
                Phase::Starting => {
                    self.runs.entry(job).or_insert_with(RunHandle::new);
                }
                Phase::Queued => self.forget_run(&job),
                _ => {}
            },
            ScheduleAction::Deploy { job, site, attempt } => self.deploy(&job, &site, attempt),
            ScheduleAction::Start { job, site } => {
                self.open_scope(&site, &job);
                let job = job.to_string();
                self.tell(&site, to_node::Body::Start(Start { job }));
            }
            ScheduleAction::Stop { job, site, reason } => {
                let job = job.to_string();
                self.tell(
                    &site,
                    to_node::Body::Stop(Stop {
                        job,
                        reason,
                        forget: true,
                    }),
                );
            }
            ScheduleAction::Run { job, out, resume } => self.start_run(job, out, resume),
            ScheduleAction::Gone { job, site, why } => {
                if let Some(run) = self.runs.get(&job) {
                    // As many as a job has sites may wait; more are none of its own.
                    let _ = run.gone.try_send((site, drive::failure(&why)));
                }
            }
            ScheduleAction::AbortRun { job, reason } => {
                if let Some(run) = self.runs.get(&job) {
                    run.abort.send_replace(Some(reason));
                }
            }
            ScheduleAction::End { job, ending } => {
                self.forget_run(&job);
                let how = match ending.how {
                    How::Run(RunResult::Completed | RunResult::CompletedWithLosses) => "has ended",
                    _ => "is over",
                };
                self.shared
                    .logger
                    .for_job(job.as_str())
                    .info(&format!("job {job} {how}"));
            }
            ScheduleAction::Sites { .. }
            | ScheduleAction::Part { .. }
            | ScheduleAction::Waits { .. }
            | ScheduleAction::Confirmed { .. } => {}
        }
    }

    /// Says something to a site; whether it is there. One that reads nothing is
    /// cut off.
    pub(super) fn tell(&mut self, site: &SiteName, body: to_node::Body) -> bool {
        let Some(link) = self.links.get(site) else {
            return false;
        };
        match link.outgoing.try_send(ToNode { body: Some(body) }) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                let session = link.session.clone();
                self.shared.logger.for_site(site).warning(&format!(
                    "{site} did not read its messages; its connection was closed"
                ));
                tokio::spawn(async move { session.close("nothing was read").await });
                false
            }
        }
    }

    fn deploy(&mut self, job: &JobId, site: &SiteName, attempt: u32) {
        let records = lock_read(&self.shared.records);
        let Some(record) = records.get(job) else {
            return;
        };
        let deploy = Deploy {
            job: job.to_string(),
            attempt,
            name: record.spec.name.clone(),
            bundle_length: record.row.job.bundle_length,
            bundle_sha256: Bytes::copy_from_slice(&record.row.job.bundle_sha256),
            resources: Bytes::from(facts::allotted(&record.spec, site.as_str()).to_string()),
            sites: record.sites.iter().map(ToString::to_string).collect(),
        };
        drop(records);
        self.tell(site, to_node::Body::Deploy(deploy));
    }

    /// Where the agent of the site calls in.
    fn open_scope(&mut self, site: &SiteName, job: &JobId) {
        let Some(link) = self.links.get(site) else {
            return;
        };
        let key = (site.clone(), job.clone());
        if let Some(open) = self.scopes.get(&key)
            && !open.is_finished()
        {
            return;
        }
        // Made here and now: the agent's first stream may follow at once.
        let first = link.session.scope(job.as_str());
        let session = link.session.clone();
        let (inbox, site, job) = (self.shared.inbox.clone(), site.clone(), job.clone());
        let logger = self.shared.logger.for_site(&site);
        let task = tokio::spawn(async move {
            let mut next = Some(first);
            loop {
                let made = next.take().unwrap_or_else(|| session.scope(job.as_str()));
                let scope = match made {
                    Ok(scope) => scope,
                    Err(error) => {
                        logger.warning(&format!("job {job}: {error}"));
                        return;
                    }
                };
                if let Some(control) = scope.accept_control().await {
                    let connection = Connection {
                        control,
                        way: Way::Session(scope.clone()),
                    };
                    let called = Input::Called {
                        job: job.clone(),
                        site: site.clone(),
                        connection,
                    };
                    if inbox.send(called).await.is_err() {
                        return;
                    }
                }
                // The agent may dial again within the same session.
                tokio::select! {
                    _ = scope.closed() => {}
                    _ = session.closed() => return,
                }
            }
        });
        self.scopes.insert(key, task.abort_handle());
    }

    pub(super) fn end_scope(&mut self, site: &SiteName, job: &JobId) {
        if let Some(scope) = self.scopes.remove(&(site.clone(), job.clone())) {
            scope.abort();
        }
    }

    pub(super) fn end_scopes_of(&mut self, site: &SiteName) {
        self.scopes.retain(|(at, _), scope| {
            if at == site {
                scope.abort();
            }
            at != site
        });
    }

    fn forget_run(&mut self, job: &JobId) {
        self.runs.remove(job);
        self.scopes.retain(|(_, of), scope| {
            if of == job {
                scope.abort();
            }
            of != job
        });
    }

    fn start_run(&mut self, job: JobId, out: Vec<(SiteName, Refusal)>, resume: bool) {
        let run = self.runs.entry(job.clone()).or_insert_with(RunHandle::new);
        let Some(ends) = run.ends.take() else {
            return;
        };
        for (site, why) in out {
            // There is room for as many as a job has sites.
            let _ = run.gone.try_send((site, drive::failure(&why)));
        }
        let records = lock_read(&self.shared.records);
        let Some(record) = records.get(&job) else {
            return;
        };
        let driving = Driving {
            shared: Arc::clone(&self.shared),
            id: job.clone(),
            spec: record.spec.clone(),
            sites: record.sites.clone(),
            resume,
            ends,
        };
        drop(records);
        let inbox = self.shared.inbox.clone();
        let id = job.clone();
        let task = tokio::spawn(async move {
            let end = Box::new(drive::drive(driving).await);
            // The loop has ended: so has the server.
            let _ = inbox.send(Input::RunOver { job: id, end }).await;
        });
        run.task = Some(task.abort_handle());
    }
}
