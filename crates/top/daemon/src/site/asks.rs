//! What administrators ask of a site: files, log levels, a report.
//!
//! The server has seen to their rights; the site's own rules are seen to here.

use firesteel_api::ask::{Ask, LogSettings, Report};
use firesteel_api::site::Amount;
use firesteel_api::{Code, Problem, Stamp};
use firesteel_base::{Hint as _, JobId};
use firesteel_node::parts::sentence;
use firesteel_observe::{ConfigError, Level, LogConfig, Logs};
use firesteel_policy::{Action, Resource, Role, Subject};
use firesteel_wire::node::Stage;
use serde_json::Value;

use super::desk::Desk;
use super::facts;
use super::place::JobPlace;
use crate::files;

/// Words that name what the console shows.
const MODES: &[&str] = &["concise", "full", "verbose", "msg_only", "off"];

/// Answers a question.
pub(super) async fn answer(desk: &Desk, ask: &firesteel_wire::node::Ask) -> Result<Value, Problem> {
    let asked: Ask = serde_json::from_slice(&ask.request).map_err(|error| {
        Problem::new(
            Code::Invalid,
            format!("the site does not understand the question: {error}"),
        )
        .with_hint("server and site may be of different versions; update the older one")
    })?;
    let job = job_of(&asked)
        .map(|job| JobId::new(job).map_err(|error| Problem::new(Code::Invalid, error.to_string())));
    let job = job.transpose()?;
    allowed(desk, ask, &asked, job.as_ref())?;
    match asked {
        Ask::Files { op, .. } => {
            if !desk.config.allow_files {
                return Err(Problem::new(
                    Code::SiteRefused,
                    "the site lets nobody look at its files (allow_files = false)",
                ));
            }
            let root = match &job {
                Some(job) => JobPlace::new(&desk.workspace, job).work(),
                None => desk.workspace.join("logs"),
            };
            let answered = tokio::task::spawn_blocking(move || files::answer(&root, &op));
            answered
                .await
                .map_err(|_| Problem::new(Code::Internal, "the site could not look at the files"))?
        }
        Ask::LogLevel { level, .. } => {
            let logs = logs(desk, job.as_ref())?;
            let word = level.trim().to_ascii_lowercase();
            let config = if word == "reload" {
                LogConfig::resolve(Some(&desk.workspace.join("logs")), None, |_| None)
            } else if MODES.contains(&word.as_str()) || Level::parse(&word).is_some() {
                logs.config().with_word(&word)
            } else {
                // A path would be one of the site's, which nobody names from afar.
                return Err(Problem::new(
                    Code::Invalid,
                    format!(
                        "{:?} is no level and no mode of logs",
                        level.chars().take(40).collect::<String>()
                    ),
                )
                .with_hint("levels are trace, debug, info, warning, error and critical; modes are concise, full, verbose, msg_only and off; `reload` reads the site's log_config.json again")
                .with_field("level"));
            };
            set(desk, &logs, config, "level", job.as_ref())
        }
        Ask::LogConfig { config, .. } => {
            let logs = logs(desk, job.as_ref())?;
            set(
                desk,
                &logs,
                LogConfig::from_text(&config),
                "config",
                job.as_ref(),
            )
        }
        Ask::Report => serde_json::to_value(report(desk))
            .map_err(|error| Problem::new(Code::Internal, error.to_string())),
        _ => Err(
            Problem::new(Code::Invalid, "the site does not know that question")
                .with_hint("update firesteel at the site"),
        ),
    }
}

fn job_of(ask: &Ask) -> Option<&str> {
    match ask {
        Ask::Files { job, .. } | Ask::LogLevel { job, .. } | Ask::LogConfig { job, .. } => {
            job.as_deref()
        }
        _ => None,
    }
}

/// Whether the site's own rules let them.
fn allowed(
    desk: &Desk,
    ask: &firesteel_wire::node::Ask,
    asked: &Ask,
    job: Option<&JobId>,
) -> Result<(), Problem> {
    let action = match (asked, job) {
        (Ask::Files { .. }, _) => Action::ReadFiles,
        (Ask::LogLevel { .. } | Ask::LogConfig { .. }, Some(_)) => Action::ConfigureJobLog,
        (Ask::LogLevel { .. } | Ask::LogConfig { .. }, None) => Action::ConfigureSiteLog,
        _ => Action::ReportResources,
    };
    let role = Role::parse(&ask.role).ok_or_else(|| {
        Problem::new(
            Code::Forbidden,
            format!("`{}` is no role that the site knows", ask.role),
        )
    })?;
    let subject = Subject {
        name: ask.name.clone(),
        org: ask.organization.clone(),
        role,
    };
    let submitter = job
        .and_then(|job| JobPlace::new(&desk.workspace, job).load())
        .map(|note| note.submitter);
    let resource = Resource {
        submitter,
        site_org: Some(desk.kit.org().to_owned()),
    };
    let decision = desk.config.rules().decide(&subject, action, &resource);
    if decision.allowed {
        return Ok(());
    }
    Err(Problem::new(
        Code::Forbidden,
        format!("the site's rules do not allow it: {}", decision.reason),
    ))
}

fn logs(desk: &Desk, job: Option<&JobId>) -> Result<Logs, Problem> {
    match job {
        None => Ok(desk.logs.clone()),
        Some(job) => desk.logs_of(job.as_str()).ok_or_else(|| {
            Problem::new(
                Code::WrongState,
                format!("the job {job} does not run at this site"),
            )
        }),
    }
}

/// Puts a configuration in force.
fn set(
    desk: &Desk,
    logs: &Logs,
    config: Result<LogConfig, ConfigError>,
    field: &str,
    job: Option<&JobId>,
) -> Result<Value, Problem> {
    let config = config.map_err(|error| {
        Problem::new(Code::Invalid, sentence(&error))
            .with_hint(error.hint().unwrap_or_default())
            .with_field(field)
    })?;
    logs.set_config(config);
    let level = logs.config().summary();
    let whose = job.map_or("the site".to_owned(), |job| format!("job {job}"));
    desk.logger
        .info(&format!("the logs of {whose} are now at {level}"));
    serde_json::to_value(LogSettings { level })
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))
}

fn report(desk: &Desk) -> Report {
    let word = |stage| match stage {
        Stage::Deploying => "deploying",
        Stage::Ready => "ready",
        Stage::Running => "running",
        Stage::Stopping => "stopping",
        Stage::Unknown => "unknown",
    };
    let jobs = desk.stages();
    let amounts = desk.stock.amounts();
    let mut environment = facts::json(desk);
    if let Some(fields) = environment.as_object_mut() {
        fields.insert("warm_parents".to_owned(), desk.pool.count().into());
    }
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: Stamp::of(desk.started),
        jobs: jobs
            .into_iter()
            .map(|(job, stage)| (job, word(stage).to_owned()))
            .collect(),
        resources: amounts
            .into_iter()
            .map(|(name, total, free)| (name, Amount { total, free }))
            .collect(),
        environment,
    }
}

/// More is asked at once than is answered.
pub(super) fn too_many() -> Problem {
    Problem::new(Code::TooMany, "the site works on other questions")
        .with_hint("ask again in a moment")
}

/// A problem as the answer holds it.
pub(super) fn written(problem: &Problem) -> String {
    serde_json::to_string(problem).unwrap_or_default()
}
