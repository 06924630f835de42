//! `firesteel runs`: what lies in the run directories.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;

use firesteel_store::{RunDir, RunEntry};
use serde_json::{Value, json};

use crate::talk::Trouble;

/// Lists the runs below `root`.
pub(crate) fn list(root: &Path, as_json: bool) -> Result<(), Trouble> {
    let runs = entries(root)?;
    if as_json {
        let rows: Vec<Value> = runs
            .iter()
            .map(|run| {
                json!({
                    "job": run.job,
                    "run": run.run,
                    "status": status(run),
                    "path": run.path,
                })
            })
            .collect();
        return print(&format!("{:#}\n", Value::from(rows)));
    }
    if runs.is_empty() {
        eprintln!("no runs in `{}`", root.display());
        return Ok(());
    }
    let width = runs.iter().map(|run| run.job.len()).max().unwrap_or(0);
    let mut table = String::new();
    for run in &runs {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{:width$}  {}  {}", run.job, run.run, status(run));
    }
    print(&table)
}

/// Shows one run: `job`, for the latest of that job, or `job/run`.
pub(crate) fn show(wanted: &str, root: &Path, as_json: bool) -> Result<(), Trouble> {
    let (job, run) = match wanted.split_once('/') {
        Some((job, run)) => (job, Some(run)),
        None => (wanted, None),
    };
    let found = entries(root)?
        .into_iter()
        .rfind(|entry| entry.job == job && run.is_none_or(|run| entry.run == run))
        .ok_or_else(|| {
            Trouble::new(
                format!("there is no run `{wanted}` in `{}`", root.display()),
                "see which there are: `firesteel runs list`; another folder is named with --root",
            )
        })?;
    // A run that goes on, or was killed, has no summary yet.
    let summary = std::fs::read(found.path.join("metrics").join("summary.json"))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or(Value::Null);
    if as_json {
        return print(&format!(
            "{:#}\n",
            json!({
                "job": found.job,
                "run": found.run,
                "status": status(&found),
                "path": found.path,
                "summary": summary,
            })
        ));
    }
    print(&described(&found, &summary))
}

fn entries(root: &Path) -> Result<Vec<RunEntry>, Trouble> {
    RunDir::list(root).map_err(|error| Trouble::of(&error))
}

/// One word for how a run stands.
fn status(run: &RunEntry) -> &str {
    match (&run.status, run.live) {
        (_, true) => "running",
        (Some(status), false) => status,
        (None, false) => "interrupted",
    }
}

fn described(run: &RunEntry, summary: &Value) -> String {
    let text = |key: &str| summary.get(key).and_then(Value::as_str);
    let number = |key: &str| summary.get(key).and_then(Value::as_f64);
    let mut rows = vec![
        ("run", format!("{}/{}", run.job, run.run)),
        ("status", status(run).to_owned()),
    ];
    if let Some(message) = text("message").filter(|message| !message.is_empty()) {
        rows.push(("message", message.to_owned()));
    }
    if let Some(seconds) = number("seconds") {
        rows.push(("took", format!("{seconds:.1} s")));
    }
    let metric = text("key_metric").unwrap_or("metric");
    for (label, round, value) in [
        ("last", "final_round", "final_key_metric"),
        ("best", "best_round", "best_key_metric"),
    ] {
        if let (Some(round), Some(value)) = (number(round), number(value)) {
            // People count rounds from one.
            rows.push((label, format!("round {}, {metric} {value:.4}", round + 1.0)));
        }
    }
    let failures = summary.get("failures").and_then(Value::as_array);
    for failure in failures.into_iter().flatten() {
        let field = |key: &str| failure.get(key).and_then(Value::as_str).unwrap_or("?");
        rows.push((
            "failure",
            format!("{}: {}", field("site"), field("message")),
        ));
    }
    rows.push(("files", run.path.display().to_string()));
    rows.into_iter()
        .fold(String::new(), |mut shown, (label, value)| {
            let _ = writeln!(shown, "{label:8} {value}");
            shown
        })
}

/// Writes to standard output. Who reads only the start (`| head`) is no trouble.
fn print(text: &str) -> Result<(), Trouble> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Trouble::new(
            format!("the output could not be written: {error}"),
            "see whether the disk is full",
        )),
        _ => Ok(()),
    }
}
