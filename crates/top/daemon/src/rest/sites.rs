//! The server and its sites: seen, and asked.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use firesteel_api::site::Sites;
use firesteel_api::{Ask, Problem, ServerStatus, SiteInfo, Target, problem};
use firesteel_policy::{Action, Resource};
use serde_json::Value;

use super::answer::{Answer, no_site};
use super::body;
use super::gate::Caller;
use super::router::Inner;

/// How the server is.
#[utoipa::path(
    get, path = "/v1/status", tag = "sites",
    responses((status = 200, body = ServerStatus), (status = 401, body = Problem))
)]
pub(super) async fn status(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
) -> Answer<Json<ServerStatus>> {
    caller.may(&rest, Action::ViewStatus, &Resource::federation())?;
    Ok(Json(rest.federation().status()))
}

/// The sites, by name.
#[utoipa::path(
    get, path = "/v1/sites", tag = "sites",
    responses((status = 200, body = Sites), (status = 401, body = Problem))
)]
pub(super) async fn list(State(rest): State<Arc<Inner>>, caller: Caller) -> Answer<Json<Sites>> {
    caller.may(&rest, Action::ViewStatus, &Resource::federation())?;
    let sites = rest.federation().sites();
    Ok(Json(Sites { sites }))
}

/// A site.
#[utoipa::path(
    get, path = "/v1/sites/{name}", tag = "sites", params(("name" = String, Path)),
    responses((status = 200, body = SiteInfo), (status = 404, body = Problem))
)]
pub(super) async fn show(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Answer<Json<SiteInfo>> {
    Ok(Json(caller.site(&rest, &name, Action::ViewStatus)?))
}

/// Asks a site, or the server (`server`), while it runs: files without a shell,
/// log levels, a report. What the answer is stands beside each question.
#[utoipa::path(
    post, path = "/v1/sites/{name}/ask", tag = "sites",
    params(("name" = String, Path, description = "A site, or `server`")),
    request_body = Ask,
    responses(
        (status = 200, body = Object, description = "Listing, Text, Matches, LogSettings or Report"),
        (status = 403, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem, description = "The site is not connected"),
        (status = 422, body = Problem, description = "The site's own settings forbid it"),
        (status = 504, body = Problem, description = "The site did not answer"),
    )
)]
pub(super) async fn ask(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    Path(name): Path<String>,
    body: Body,
) -> Answer<Json<Value>> {
    let bytes = body::small(body, rest.options().durations.connect).await?;
    let ask: Ask = problem::read(&bytes)?;
    let target = Target::parse(&name);
    let org = match &target {
        Target::Server => rest.options().org.clone(),
        Target::Site(site) => match rest.federation().site(site) {
            Some(site) => site.org,
            None => return Err(no_site(site)),
        },
    };
    allow(&rest, &caller, (&target, &org), &ask).await?;
    let by = caller.subject.clone();
    let answer = rest
        .federation()
        .ask(target.clone(), ask.clone(), by)
        .await?;
    caller.done(&rest, &format!("asked {target} for {}", told(&ask)));
    Ok(Json(answer))
}

/// What a question needs: the right at the site's organization, and for a job also
/// the one over the job. A level of logging belongs to the job alone.
async fn allow(
    rest: &Inner,
    caller: &Caller,
    (target, org): (&Target, &str),
    ask: &Ask,
) -> Answer<()> {
    let here = Resource::site(org);
    match ask {
        // At the server they are what a download gives.
        Ask::Files { job: Some(id), .. } if *target == Target::Server => {
            caller.job(rest, id, Action::DownloadJob).await?;
        }
        Ask::Files { job, .. } => {
            if let Some(id) = job {
                caller.job(rest, id, Action::ViewJob).await?;
            }
            caller.may(rest, Action::ReadFiles, &here)?;
        }
        Ask::LogLevel { job: Some(id), .. } | Ask::LogConfig { job: Some(id), .. } => {
            caller.job(rest, id, Action::ConfigureJobLog).await?;
        }
        Ask::LogLevel { job: None, .. } | Ask::LogConfig { job: None, .. } => {
            caller.may(rest, Action::ConfigureSiteLog, &here)?;
        }
        Ask::Report => caller.may(rest, Action::SystemInfo, &here)?,
        // What this server does not know, nobody may.
        _ => {
            return Err(Problem::new(
                firesteel_api::Code::Invalid,
                "this server does not know the question",
            )
            .into());
        }
    }
    Ok(())
}

fn told(ask: &Ask) -> String {
    serde_json::to_string(ask).map_or_else(
        |_| "something".to_owned(),
        |text| super::answer::short(&text),
    )
}
