//! Jobs: submitted, seen, ended, copied, deleted.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use firesteel_api::job::{Abort, JobFilter, Jobs, Submitted};
use firesteel_api::{Code, JobDetail, Problem, problem, route};
use firesteel_base::limits;
use firesteel_policy::{Action, Resource};

use super::answer::{Answer, no_job};
use super::body;
use super::gate::Caller;
use super::router::Inner;

/// The jobs, oldest first unless asked otherwise.
#[utoipa::path(
    get, path = "/v1/jobs", tag = "jobs", params(JobFilter),
    responses((status = 200, body = Jobs), (status = 401, body = Problem), (status = 403, body = Problem))
)]
pub(super) async fn list(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    query: Result<Query<JobFilter>, QueryRejection>,
) -> Answer<Json<Jobs>> {
    caller.may(&rest, Action::ListJobs, &Resource::federation())?;
    let filter = body::query(query)?;
    let jobs = rest.federation().jobs(filter).await?;
    Ok(Json(Jobs { jobs }))
}

/// Takes a job: the body is a signed bundle, a tar.
///
/// The bundle is signed by its submitter, who is also the one who logged in. With
/// the header `firesteel-submit-key`, a second submission gives the first one's
/// job, so that one whose answer was lost can be sent again.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs",
    params(("firesteel-submit-key" = Option<String>, Header, description = "Any word of at most 256 bytes")),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses(
        (status = 200, body = Submitted, description = "The job with this submit key was there"),
        (status = 201, body = Submitted),
        (status = 403, body = Problem),
        (status = 409, body = Problem, description = "The submit key was used for another job"),
        (status = 413, body = Problem),
        (status = 422, body = Problem, description = "The bundle or its job was refused; `field` says what is wrong"),
    )
)]
pub(super) async fn submit(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Answer<(StatusCode, Json<Submitted>)> {
    let mut stream = body.into_data_stream();
    let taken = take(&rest, &caller, &headers, &mut stream).await;
    if taken.is_err() {
        // Who is still sending reads no answer: closing on it would lose it.
        body::pass_over(&mut stream, rest.options().durations.connect).await;
    }
    let taken = taken?;
    if taken.existed {
        return Ok((StatusCode::OK, Json(taken)));
    }
    caller.done(&rest, &format!("submitted job {}", taken.id));
    Ok((StatusCode::CREATED, Json(taken)))
}

async fn take(
    rest: &Inner,
    caller: &Caller,
    headers: &HeaderMap,
    stream: &mut BodyDataStream,
) -> Answer<Submitted> {
    caller.may(rest, Action::SubmitJob, &Resource::federation())?;
    let key = submit_key(headers)?;
    let _turn = rest.upload_turn()?;
    let upload = Upload::new(rest.federation().incoming());
    body::to_file(stream, &upload.path, rest.options().durations.idle).await?;
    let by = caller.subject.clone();
    let taken = rest
        .federation()
        .submit(upload.path.clone(), by, key)
        .await?;
    Ok(taken)
}

fn submit_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(route::SUBMIT_KEY) else {
        return Ok(None);
    };
    let plain = value.to_str().ok().map(str::trim);
    match plain {
        Some(key) if !key.is_empty() && key.len() <= limits::REST_HEADER => {
            Ok(Some(key.to_owned()))
        }
        _ => Err(Problem::new(
            Code::Invalid,
            format!(
                "a submit key is 1 to {} printable ASCII characters",
                limits::REST_HEADER
            ),
        )
        .with_field(route::SUBMIT_KEY)),
    }
}

/// Everything about a job.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = JobDetail), (status = 404, body = Problem))
)]
pub(super) async fn show(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<JobDetail>> {
    Ok(Json(caller.job(&rest, &id, Action::ViewJob).await?))
}

/// Deletes a job that has ended, with all that it left.
#[utoipa::path(
    delete, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path)),
    responses(
        (status = 204), (status = 403, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem, description = "It has not ended: abort it first"),
    )
)]
pub(super) async fn delete(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    let job = caller.job(&rest, &id, Action::DeleteJob).await?;
    let id = job.summary.id;
    rest.federation()
        .delete(&id, caller.subject.clone())
        .await?;
    caller.done(&rest, &format!("deleted job {id}"));
    Ok(StatusCode::NO_CONTENT)
}

/// Ends a job, in whatever state it is. To end one that has ended is no error.
///
/// Answered when the server has taken note; `pending` of the job then names the
/// sites that have yet to confirm.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/abort", tag = "jobs", params(("id" = String, Path)),
    request_body(content = Abort, description = "May be left out"),
    responses((status = 200, body = JobDetail), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn abort(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Body,
) -> Answer<Json<JobDetail>> {
    let job = caller.job(&rest, &id, Action::AbortJob).await?;
    let bytes = body::small(body, rest.options().durations.connect).await?;
    let abort = if bytes.is_empty() {
        Abort::default()
    } else {
        problem::read(&bytes)?
    };
    if job.summary.state.is_terminal() {
        return Ok(Json(job));
    }
    let id = job.summary.id;
    rest.federation()
        .abort(&id, abort.reason, caller.subject.clone())
        .await?;
    caller.done(&rest, &format!("aborted job {id}"));
    let now = rest.federation().job(&id).await?;
    Ok(Json(now.ok_or_else(|| no_job(&id))?))
}

/// Submits a job again, for the caller.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/clone", tag = "jobs", params(("id" = String, Path)),
    responses((status = 201, body = Submitted), (status = 403, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn clone(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<(StatusCode, Json<Submitted>)> {
    let job = caller.job(&rest, &id, Action::CloneJob).await?;
    let id = job.summary.id;
    let made = rest
        .federation()
        .clone_job(&id, caller.subject.clone())
        .await?;
    caller.done(&rest, &format!("cloned job {id} as {}", made.id));
    Ok((StatusCode::CREATED, Json(made)))
}

/// The file of an upload, gone when this is dropped: with the answer, with an
/// error, and when the client hangs up.
struct Upload {
    path: PathBuf,
}

impl Upload {
    fn new(folder: PathBuf) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        Self {
            path: folder.join(format!("upload-{process}-{number}.tar")),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Not there: it was moved, or never made.
        let _ = std::fs::remove_file(&self.path);
    }
}
