//! A job's events, by long poll.
//!
//! Long polls, and no stream that stays open: they pass every proxy that buffers
//! answers, a cut costs a request and no event, and a client needs nothing but
//! HTTP.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use firesteel_api::event::{EventQuery, JobEvents};
use firesteel_api::{JobDetail, Problem};
use firesteel_base::limits;
use firesteel_policy::Action;
use tokio::time::Instant;

use super::answer::{Answer, no_job};
use super::body;
use super::gate::Caller;
use super::router::Inner;

/// Seconds that a request waits at most: less than proxies do by default (60).
pub(super) const LONGEST_WAIT: u32 = 30;

/// A job's events after one, waiting for the next if there is none yet.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/events", tag = "jobs",
    params(("id" = String, Path), EventQuery),
    responses((status = 200, body = JobEvents), (status = 404, body = Problem))
)]
pub(super) async fn events(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    Path(id): Path<String>,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Answer<Json<JobEvents>> {
    let query = body::query(query)?;
    let mut job = caller.job(&rest, &id, Action::ViewJob).await?;
    let most = query.limit.unwrap_or(limits::REST_EVENTS);
    let most = most.clamp(1, limits::REST_EVENTS);
    let until = deadline(query.wait);
    let mut changes = rest.federation().changes();
    loop {
        // Marked as seen before looking, so that no change falls in between.
        changes.borrow_and_update();
        let found = found(&rest, &job, query.after, most).await?;
        if !found.events.is_empty() || found.ended {
            return Ok(Json(found));
        }
        let changed = tokio::time::timeout_at(until, changes.changed()).await;
        job = rest
            .federation()
            .job(&id)
            .await?
            .ok_or_else(|| no_job(&id))?;
        if !matches!(changed, Ok(Ok(()))) {
            return Ok(Json(self::found(&rest, &job, query.after, most).await?));
        }
    }
}

/// When a request that may wait `seconds` is answered at the latest.
pub(super) fn deadline(seconds: u32) -> Instant {
    Instant::now() + Duration::from_secs(seconds.min(LONGEST_WAIT).into())
}

async fn found(rest: &Inner, job: &JobDetail, after: u64, most: u32) -> Answer<JobEvents> {
    let id = &job.summary.id;
    let events = rest.federation().events(id, after, most).await?;
    let next = events.last().map_or(after, |last| last.seq);
    let state = job.summary.state;
    // The events were read after the state: a job that had ended by then adds
    // none, and fewer than were asked for are all.
    let ended = state.is_terminal() && events.len() < most as usize;
    Ok(JobEvents {
        events,
        next,
        state,
        ended,
    })
}
