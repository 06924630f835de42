//! What is written down of every decision.

use firesteel_api::{EventKind, JobState};
use firesteel_base::{JobId, SiteName};
use firesteel_flow::schedule::{Ending, How, RunResult, ScheduleAction, SitePart};
use firesteel_jobs::Change;
use serde_json::{Value, json};

use super::core::Core;
use super::drive::RunEnd;
use super::record::{self, Record};
use super::shared::lock_write;

impl Core {
    pub(super) fn note(&mut self, action: &ScheduleAction) {
        let now = self.wall();
        let job = match action {
            ScheduleAction::Enter { job, .. }
            | ScheduleAction::Sites { job, .. }
            | ScheduleAction::Part { job, .. }
            | ScheduleAction::Waits { job, .. }
            | ScheduleAction::Deploy { job, .. }
            | ScheduleAction::Start { job, .. }
            | ScheduleAction::Stop { job, .. }
            | ScheduleAction::Run { job, .. }
            | ScheduleAction::Gone { job, .. }
            | ScheduleAction::AbortRun { job, .. }
            | ScheduleAction::End { job, .. }
            | ScheduleAction::Confirmed { job, .. } => job,
        };
        let mut records = lock_write(&self.shared.records);
        let Some(record) = records.get_mut(job) else {
            return;
        };
        self.touched.insert(job.clone());
        let mut journal = |kind: &str, body: Value| {
            self.changes.push(Change::Event {
                job: job.clone(),
                time: now,
                kind: kind.to_owned(),
                body: body.to_string(),
            });
        };
        match action {
            ScheduleAction::Enter { state, .. } => {
                let Some(state) = JobState::parse(state.as_str()) else {
                    return;
                };
                record.state = state;
                record.status = match state {
                    JobState::Stopping => match &record.abort {
                        Some(reason) => format!("stopping: {reason}"),
                        None => "stopping".to_owned(),
                    },
                    _ => state.as_str().to_owned(),
                };
                let status = &record.status;
                journal(
                    "state",
                    json!({"kind": "state", "state": state, "status": status}),
                );
            }
            ScheduleAction::Sites { sites, .. } => {
                record.sites.clone_from(sites);
                let waiting = sites.iter().map(|site| (site.clone(), SitePart::Waiting));
                record.parts = waiting.collect();
                let sites: Vec<_> = sites.iter().map(SiteName::as_str).collect();
                journal("sites", json!({"kind": "sites", "sites": sites}));
            }
            ScheduleAction::Part { site, part, .. } => {
                let mut body = json!({
                    "kind": "site", "site": site.as_str(), "state": part.as_str(), "status": "",
                });
                if let (SitePart::Out(why), Value::Object(body)) = (part, &mut body) {
                    body.insert("status".to_owned(), json!(why.reason));
                    body.insert("phase".to_owned(), json!(why.phase.as_str()));
                    body.insert("code".to_owned(), json!(why.code));
                    body.insert("hint".to_owned(), json!(why.hint));
                    record
                        .failures
                        .retain(|one| one.site.as_deref() != Some(site.as_str()));
                    record.failures.push(record::failure(site, why));
                }
                record.parts.insert(site.clone(), part.clone());
                journal("site", body);
            }
            ScheduleAction::Waits { why, .. } => {
                if record.state == JobState::Queued {
                    record.status = format!("queued: {why}");
                }
                journal("waits", json!({"kind": "waits", "why": why}));
            }
            ScheduleAction::Deploy { site, attempt, .. } => journal(
                "deploy",
                json!({"kind": "deploy", "site": site.as_str(), "attempt": attempt}),
            ),
            ScheduleAction::Start { site, .. } => {
                journal("start", json!({"kind": "start", "site": site.as_str()}));
            }
            ScheduleAction::Stop { site, reason, .. } => journal(
                "stop",
                json!({"kind": "stop", "site": site.as_str(), "reason": reason}),
            ),
            ScheduleAction::Run { resume, .. } => {
                if *resume {
                    record.status = "running".to_owned();
                }
                journal("run", json!({"kind": "run", "resume": resume}));
            }
            ScheduleAction::Gone { site, why, .. } => journal(
                "gone",
                json!({"kind": "gone", "site": site.as_str(), "reason": why.reason}),
            ),
            ScheduleAction::AbortRun { reason, .. } => {
                journal("abort", json!({"kind": "abort", "reason": reason}));
            }
            ScheduleAction::End { ending, .. } => {
                let end = self.ends.remove(job);
                conclude(record, ending, end, now);
                let (state, status) = (record.state, &record.status);
                journal(
                    "state",
                    json!({
                        "kind": "state", "state": state, "status": status,
                        "phase": ending.phase.as_str(), "pending": record.pending,
                        "losses": record.losses,
                    }),
                );
            }
            ScheduleAction::Confirmed { site, .. } => {
                record.pending.remove(site.as_str());
                journal(
                    "confirmed",
                    json!({"kind": "confirmed", "site": site.as_str()}),
                );
            }
        }
    }
}

/// A step as it is kept.
pub(crate) fn event(job: &JobId, time: u64, kind: &EventKind) -> Change {
    let body = serde_json::to_value(kind).unwrap_or(Value::Null);
    let name = body.get("kind").and_then(Value::as_str).unwrap_or("note");
    Change::Event {
        job: job.clone(),
        time,
        kind: name.to_owned(),
        body: body.to_string(),
    }
}

/// Writes down how a job ended.
fn conclude(record: &mut Record, ending: &Ending, end: Option<RunEnd>, now: u64) {
    record.ended = Some(now);
    record.pending = ending.pending.iter().map(ToString::to_string).collect();
    let (state, status) = match (&ending.how, end) {
        (How::TooFew { cause }, _) => (
            JobState::Failed,
            format!("failed during {}: {cause}", ending.phase),
        ),
        (How::Aborted { reason }, _) => (
            JobState::Aborted,
            format!("aborted during {}: {reason}", ending.phase),
        ),
        // It was told to end, and what failed on the way out is not why it did.
        (How::Run(RunResult::Failed), _) if record.abort.is_some() => {
            let reason = record.abort.clone().unwrap_or_default();
            (
                JobState::Aborted,
                format!("aborted during {}: {reason}", ending.phase),
            )
        }
        (How::Run(result), end) => {
            let state = match result {
                RunResult::Completed => JobState::Completed,
                RunResult::CompletedWithLosses => JobState::CompletedWithLosses,
                RunResult::Failed => JobState::Failed,
                RunResult::Aborted => JobState::Aborted,
            };
            match end {
                Some(end) => {
                    record.losses = end.losses;
                    for failure in end.failures {
                        record.failures.retain(|one| one.site != failure.site);
                        record.failures.push(failure);
                    }
                    (state, end.status)
                }
                None => (state, state.as_str().to_owned()),
            }
        }
    };
    record.state = state;
    record.status = status;
}
