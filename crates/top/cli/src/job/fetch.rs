//! Logs and files, fetched.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use firesteel_api::job::JobFile;
use firesteel_api::logs::LogQuery;
use firesteel_session::Session;
use serde_json::json;

use crate::remote::{Done, Ended, Exit, plain, print, print_bytes, print_json, size};

/// Seconds that one request for more of a log waits.
const WAIT: u32 = 20;
/// How often a download's line is drawn anew.
const REDRAW: Duration = Duration::from_millis(200);

/// Prints the log at a path of the interface.
#[expect(
    clippy::fn_params_excessive_bools,
    reason = "flags of the command line, passed on"
)]
pub(crate) async fn log(
    session: &Session,
    path: &str,
    follow: bool,
    tail: Option<u32>,
    as_json: bool,
) -> Done {
    let mut query = LogQuery {
        tail,
        ..LogQuery::default()
    };
    let mut text = Vec::new();
    loop {
        let piece = session.log(path, &query).await?;
        if as_json && !follow {
            text.extend_from_slice(&piece.bytes);
        } else if as_json {
            for line in String::from_utf8_lossy(&piece.bytes).lines() {
                print(&format!("{}\n", json!({ "line": line })))?;
            }
        } else {
            print_bytes(&piece.bytes)?;
        }
        let more = if follow {
            !piece.ended
        } else {
            !piece.bytes.is_empty() && !piece.ended
        };
        if !more {
            break;
        }
        query = LogQuery {
            after: piece.next,
            tail: query
                .tail
                .filter(|_| query.after.is_none() && piece.bytes.is_empty()),
            wait: if follow { WAIT } else { 0 },
        };
    }
    if as_json && !follow {
        let text = String::from_utf8_lossy(&text);
        return print_json(&json!({ "log": text }));
    }
    Ok(())
}

/// What of a job, and where to.
pub(super) struct Wanted {
    pub(super) output: Option<PathBuf>,
    pub(super) only: Vec<String>,
    pub(super) now: bool,
}

/// Fetches a job's files.
pub(super) async fn download(session: &Session, id: &str, wanted: Wanted, as_json: bool) -> Done {
    let job = session.job(id).await?;
    if !job.summary.state.is_terminal() && !wanted.now {
        return Err(Ended::new(
            Exit::Refused,
            "wrong-state",
            format!("the job has not ended: {}", plain(&job.summary.status)),
            "wait for it with `firesteel job watch`, or fetch what is there with --now",
        ));
    }
    let to = wanted.output.unwrap_or_else(|| PathBuf::from(id));
    let files = session.files(id).await?;
    let files: Vec<_> = files
        .into_iter()
        .filter(|file| fits(file, &wanted.only))
        .collect();
    if files.is_empty() {
        return Err(Ended::new(
            Exit::NotThere,
            "file-not-found",
            "the job has no such files at the server",
            "`firesteel job files ID ls -R` names them all",
        ));
    }
    let live = std::io::stderr().is_terminal();
    let mut drawn = Instant::now();
    let mut last = None;
    let done = session
        .download_job(id, &files, &to, |at| {
            last = Some(at);
            if live && drawn.elapsed() >= REDRAW {
                drawn = Instant::now();
                eprint!(
                    "\r\x1b[K{} of {} files, {} of {}",
                    at.files,
                    at.of_files,
                    size(at.bytes),
                    size(at.of_bytes)
                );
                // A line that is drawn too late is no failure.
                let _ = std::io::stderr().flush();
            }
        })
        .await;
    if live {
        eprint!("\r\x1b[K");
    }
    done?;
    let bytes = last.map_or(0, |at| at.bytes);
    if as_json {
        let names: Vec<_> = files.iter().map(|file| &file.path).collect();
        return print_json(&json!({"id": id, "path": to, "bytes": bytes, "files": names}));
    }
    eprintln!("{} files, {}", files.len(), size(bytes));
    print(&format!("{}\n", to.display()))
}

fn fits(file: &JobFile, only: &[String]) -> bool {
    let below = |start: &String| {
        let start = start.trim_end_matches('/');
        file.path
            .strip_prefix(start)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    only.is_empty() || only.iter().any(below)
}
