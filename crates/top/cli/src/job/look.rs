//! Jobs, shown.

use std::fmt::Write as _;

use firesteel_api::job::JobFilter;
use firesteel_api::{JobDetail, JobState, JobSummary};
use firesteel_session::Session;
use serde_json::{Value, json, to_value};

use crate::remote::{Done, moment, plain, print, print_json, size, span, table};

/// Lists the jobs that fit.
pub(super) async fn list(session: &Session, filter: &JobFilter, as_json: bool) -> Done {
    let jobs = session.jobs(filter).await?;
    if as_json {
        return print_json(&json!({ "jobs": to_value(&jobs).unwrap_or_default() }));
    }
    if jobs.is_empty() {
        eprintln!("no jobs");
        return Ok(());
    }
    let rows: Vec<_> = jobs.iter().map(row).collect();
    print(&table(
        &[
            "ID",
            "NAME",
            "STATE",
            "ROUNDS",
            "SITES",
            "SUBMITTER",
            "SUBMITTED",
            "TIME",
        ],
        &rows,
    ))
}

fn row(job: &JobSummary) -> Vec<String> {
    let rounds = match job.rounds {
        0 => String::new(),
        rounds => format!("{}/{rounds}", job.rounds_done),
    };
    vec![
        job.id.clone(),
        job.name.clone(),
        job.state.to_string(),
        rounds,
        job.sites.to_string(),
        job.submitter.name.clone(),
        moment(&job.submitted),
        span(job.seconds),
    ]
}

/// Shows one job.
pub(super) async fn show(session: &Session, id: &str, as_json: bool) -> Done {
    told(&session.job(id).await?, as_json)
}

/// Tells what is known of a job.
pub(super) fn told(job: &JobDetail, as_json: bool) -> Done {
    if as_json {
        return print_json(&to_value(job).unwrap_or_default());
    }
    print(&page(job))
}

// Writing to a string cannot fail.
#[allow(unused_must_use)]
fn page(job: &JobDetail) -> String {
    let mut out = String::new();
    let one = &job.summary;
    writeln!(out, "{}  {}", plain(&one.id), plain(&one.name));
    writeln!(out, "  {}", plain(&stated(one.state, &one.status)));
    let by = &one.submitter;
    writeln!(
        out,
        "  submitted {} by {} ({} of {})",
        moment(&one.submitted),
        plain(&by.name),
        plain(&by.role),
        plain(&by.org)
    );
    if let Some(from) = &job.cloned_from {
        writeln!(out, "  a copy of {}", plain(from));
    }
    if let Some(started) = &one.started {
        writeln!(out, "  started {}", moment(started));
    }
    if let Some(ended) = &one.ended {
        writeln!(out, "  ended {} after {}", moment(ended), span(one.seconds));
    }
    if one.rounds > 0 {
        writeln!(out, "  rounds: {} of {}", one.rounds_done, one.rounds);
    }
    writeln!(
        out,
        "  moved: {} to the sites, {} back",
        size(job.bytes_down),
        size(job.bytes_up)
    );
    if !job.losses.is_empty() {
        writeln!(out, "  without: {}", plain(&job.losses.join(", ")));
    }
    if !job.pending.is_empty() {
        writeln!(
            out,
            "  still to confirm that they stopped: {}",
            plain(&job.pending.join(", "))
        );
    }
    if let Some(last) = job.metrics.last()
        && !last.values.is_empty()
    {
        writeln!(
            out,
            "  round {}: {}",
            u64::from(last.round) + 1,
            plain(&numbers(&last.values))
        );
    }
    if !job.at.is_empty() {
        let rows: Vec<_> = job
            .at
            .iter()
            .map(|site| {
                let cells = [&site.site, &site.state, &site.status];
                let sizes = [size(site.bytes_down), size(site.bytes_up)];
                let (down, up) = sizes.into();
                let [name, state, status] = cells.map(|cell| plain(cell));
                vec![name, state, down, up, status]
            })
            .collect();
        out.push('\n');
        out.push_str(&table(&["SITE", "STATE", "DOWN", "UP", ""], &rows));
    }
    for failure in &job.failures {
        let who = failure.site.as_deref().unwrap_or("server");
        let round = failure.round.map_or_else(String::new, |round| {
            format!(", round {}", u64::from(round) + 1)
        });
        writeln!(
            out,
            "\n{}{round}: {} [{}, during {}]",
            plain(who),
            plain(&failure.message),
            plain(&failure.code),
            plain(&failure.phase)
        );
        let traceback = failure.traceback.as_deref().unwrap_or_default();
        let tail = failure.log_tail.iter().map(String::as_str);
        for line in traceback.lines().chain(tail) {
            writeln!(out, "  | {}", plain(line));
        }
        if !failure.hint.is_empty() {
            writeln!(out, "  hint: {}", plain(&failure.hint));
        }
    }
    out
}

/// The state, and its sentence where that says more.
pub(super) fn stated(state: JobState, status: &str) -> String {
    // `completed with 7 of 8 sites` says that it is `completed_with_losses`.
    let word = state.as_str().split('_').next().unwrap_or_default();
    if status.is_empty() {
        state.to_string()
    } else if status.starts_with(word) {
        status.to_owned()
    } else {
        format!("{state}: {status}")
    }
}

/// `accuracy 0.95, loss 0.12`.
pub(super) fn numbers(values: &std::collections::BTreeMap<String, f64>) -> String {
    let each: Vec<_> = values
        .iter()
        .map(|(name, value)| format!("{name} {value:.4}"))
        .collect();
    each.join(", ")
}

/// A job as JSON, in a line.
pub(super) fn value(job: &JobDetail) -> Value {
    to_value(job).unwrap_or_default()
}
