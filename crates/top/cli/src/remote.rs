//! What every command that speaks with a server has: a kit, an exit code that
//! says which kind of trouble it was, and JSON where it was asked for.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use firesteel_api::{Code, JobState};
use firesteel_base::Hint as _;
use firesteel_session::{Session, SessionError};
use serde_json::{Value, json};

use crate::talk::Trouble;

/// The variable that names the kit where `--kit` does not.
const KIT: &str = "FIRESTEEL_KIT";

/// What all of them take.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Remote {
    /// The folder of an admin's startup kit; else `FIRESTEEL_KIT`, else this
    /// folder when it is one.
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) kit: Option<PathBuf>,
    /// Print JSON: one object, also for errors.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// How a command ended; `docs/reference/cli.md` has the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Something here: a file, the kit, the terminal.
    Here = 1,
    /// The server was not reached.
    NoConnection = 2,
    /// The server refused.
    Refused = 3,
    /// The job did not end well.
    JobFailed = 4,
    /// There is no such job, site or file.
    NotThere = 5,
    /// It took longer than allowed.
    TooLong = 6,
}

/// Why a command ended otherwise than asked.
#[derive(Debug)]
pub(crate) struct Ended {
    exit: Exit,
    /// Nothing when all was said.
    said: Option<(Trouble, Value)>,
}

/// What a command gives.
pub(crate) type Done<T = ()> = Result<T, Ended>;

impl Ended {
    /// Trouble here.
    pub(crate) fn here(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Exit::Here, "here", what, hint)
    }

    pub(crate) fn new(
        exit: Exit,
        code: &str,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let (what, hint) = (what.into(), hint.into());
        let told = json!({"code": code, "message": what, "hint": hint});
        Self {
            exit,
            said: Some((Trouble::new(what, hint), told)),
        }
    }

    /// Everything was said on the way.
    pub(crate) fn silent(exit: Exit) -> Self {
        Self { exit, said: None }
    }

    /// Of a job that has ended: nothing when it ended well.
    pub(crate) fn of(state: JobState) -> Done {
        if state.is_success() {
            Ok(())
        } else {
            Err(Self::silent(Exit::JobFailed))
        }
    }
}

impl From<SessionError> for Ended {
    fn from(error: SessionError) -> Self {
        let exit = match &error {
            SessionError::NoConnection { .. } | SessionError::Cut { .. } => Exit::NoConnection,
            SessionError::Refused(problem) => match problem.code {
                Code::JobNotFound | Code::SiteNotFound | Code::FileNotFound => Exit::NotThere,
                _ => Exit::Refused,
            },
            SessionError::OtherServer { .. } => Exit::Refused,
            _ => Exit::Here,
        };
        let told = json!({
            "code": error.code(),
            "message": sentence(&error),
            "hint": error.hint().unwrap_or_default(),
            "field": error.problem().and_then(|problem| problem.field.clone()),
        });
        Self {
            exit,
            said: Some((Trouble::of(&error), told)),
        }
    }
}

/// The error and its sources as one sentence.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// Runs a command to its exit code.
pub(crate) fn run<F>(remote: &Remote, command: impl FnOnce(Session) -> F) -> ExitCode
where
    F: Future<Output = Done>,
{
    match attempt(remote, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ended) => {
            if let Some((trouble, told)) = &ended.said {
                if remote.json {
                    // Whoever reads no more has its own reasons.
                    let _ = print_json(&json!({ "error": told }));
                }
                eprint!("{trouble}");
            }
            ExitCode::from(ended.exit as u8)
        }
    }
}

fn attempt<F>(remote: &Remote, command: impl FnOnce(Session) -> F) -> Done
where
    F: Future<Output = Done>,
{
    let session = Session::open(&kit(remote)?)?;
    // One thread: a command waits for one answer at a time.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Ended::here(format!("nothing can be waited for: {error}"), ""))?;
    runtime.block_on(async {
        let done = command(session.clone()).await;
        session.close().await;
        done
    })
}

fn kit(remote: &Remote) -> Done<PathBuf> {
    if let Some(kit) = &remote.kit {
        return Ok(kit.clone());
    }
    if let Some(kit) = std::env::var_os(KIT).filter(|kit| !kit.is_empty()) {
        return Ok(kit.into());
    }
    if PathBuf::from("kit.toml").is_file() {
        return Ok(".".into());
    }
    Err(Ended::new(
        Exit::Here,
        "kit",
        "no startup kit was named",
        format!("give --kit DIR, or set {KIT}: `firesteel provision` makes one for each admin"),
    ))
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &Value) -> Done {
    print(&format!("{value:#}\n"))
}

/// Prints text as data.
pub(crate) fn print(text: &str) -> Done {
    print_bytes(text.as_bytes())
}

/// Prints bytes as data.
pub(crate) fn print_bytes(bytes: &[u8]) -> Done {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        // `firesteel job list | head -1`: the reader has what it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Ended::silent(Exit::Here)),
        Err(error) => Err(Ended::here(
            format!("standard output takes nothing: {error}"),
            "is its disk full?",
        )),
    }
}

/// What came from a server, without what a terminal would act on.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\t' { ' ' } else { c })
        .collect()
}

/// Rows under a head, as wide as they need to be.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{:width$}  ", plain(cell));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = UNITS.iter();
    let mut name = unit.next().unwrap_or(&"");
    for next in unit {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        name = next;
    }
    format!("{amount:.1} {name}")
}

/// `12.3 s`, `4:05`, `2:03:04`.
pub(crate) fn span(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds as u64;
    let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{rest:02}")
    } else {
        format!("{minutes}:{rest:02}")
    }
}

/// A moment to the second: `2026-11-22 12:00:00`.
pub(crate) fn moment(stamp: &firesteel_api::Stamp) -> String {
    let text = stamp.as_str();
    plain(text.get(..19).unwrap_or(text)).replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_are_short() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(1 << 40), "1.0 TiB");
        assert_eq!(size(u64::MAX), "16384.0 PiB");
        assert_eq!(span(1.26), "1.3 s");
        assert_eq!(span(245.0), "4:05");
        assert_eq!(span(7384.0), "2:03:04");
    }

    #[test]
    fn a_server_does_not_write_to_the_terminal() {
        let rows = [vec!["a\x1b[2J".to_owned(), "b\nc".to_owned()]];
        assert_eq!(table(&["X", "YY"], &rows), "X      YY\na [2J  b c\n");
    }
}
