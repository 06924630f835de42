//! `firesteel site`: the sites of a server.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use firesteel_api::ask::{Listing, Matches, Text};
use firesteel_api::{Ask, FileOp, SiteInfo, Target, route};
use firesteel_session::Session;
use serde_json::{Value, from_value, json, to_value};

use crate::job::{Files, log};
use crate::remote::{
    self, Done, Ended, Exit, Remote, moment, plain, print, print_bytes, print_json, size, table,
};
use crate::serve::{self, Serve};
use crate::talk::Trouble;

/// What can be asked about sites.
#[derive(Debug, clap::Args)]
pub(crate) struct Site {
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    shown: serve::Shown,
    /// Without one, and with the kit of a site: runs that site until it is told
    /// to end.
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the sites.
    List,
    /// Show everything about a site.
    Show {
        /// Its name.
        name: String,
    },
    /// Change what a site, or the server, logs, without a restart.
    Log {
        /// A site, `server`, or `all`.
        name: String,
        /// A level, a mode (`concise`, `msg_only`, `full`, `verbose`), the path of
        /// a log configuration here, or `reload`.
        level: String,
    },
    /// Print a site's own log, or the server's.
    Logs {
        /// A site, or `server`.
        name: String,
        /// Go on as it grows.
        #[arg(long, short)]
        follow: bool,
        /// The last so many lines.
        #[arg(long)]
        tail: Option<u32>,
    },
    /// Look at the files of a site's workspace, or of the server's.
    Files {
        /// A site, or `server`.
        name: String,
        #[command(subcommand)]
        op: Files,
    },
    /// Ask a site, or the server, what it has, does and runs on.
    Report {
        /// A site, `server`, or `all`.
        name: String,
    },
}

/// Runs `firesteel site …`.
pub(crate) fn run(site: Site) -> ExitCode {
    let Site {
        remote,
        shown,
        what,
    } = site;
    let Some(what) = what else {
        return act(remote.kit, shown);
    };
    let json = remote.json;
    remote::run(
        &remote,
        |session| async move { what.run(&session, json).await },
    )
}

/// Runs the site whose kit it is.
fn act(kit: Option<PathBuf>, shown: serve::Shown) -> ExitCode {
    let done = match kit {
        Some(kit) => serve::site(Serve { kit, shown }),
        None => Err(Trouble::new(
            "it is not said what to do",
            "`--kit DIR` with a site's kit runs that site; `firesteel site list` shows a server's sites",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprint!("{trouble}");
            ExitCode::FAILURE
        }
    }
}

impl What {
    async fn run(self, session: &Session, json: bool) -> Done {
        match self {
            Self::List => list(session, json).await,
            Self::Show { name } => show(session, &name, json).await,
            Self::Log { name, level } => {
                let ask = log_ask(None, &level)?;
                let targets = targets(session, &name).await?;
                ask_all(session, targets, &ask, json).await
            }
            Self::Logs { name, follow, tail } => {
                log(session, &route::site(&name, "/log"), follow, tail, json).await
            }
            Self::Files { name, op } => files(session, &Target::parse(&name), None, op, json).await,
            Self::Report { name } => {
                let targets = targets(session, &name).await?;
                ask_all(session, targets, &Ask::Report, json).await
            }
        }
    }
}

async fn targets(session: &Session, name: &str) -> Done<Vec<Target>> {
    if name != "all" {
        return Ok(vec![Target::parse(name)]);
    }
    let sites = session.sites().await?.into_iter();
    let sites = sites.map(|site| Target::Site(site.name));
    Ok(std::iter::once(Target::Server).chain(sites).collect())
}

/// A level or mode, or the text of the file that it is the path of.
pub(crate) fn log_ask(job: Option<String>, level: &str) -> Done<Ask> {
    let path = std::path::Path::new(level);
    if !path.is_file() {
        let level = level.to_owned();
        return Ok(Ask::LogLevel { job, level });
    }
    let config = std::fs::read_to_string(path).map_err(|error| {
        Ended::here(format!("`{}` cannot be read: {error}", path.display()), "")
    })?;
    Ok(Ask::LogConfig { job, config })
}

/// Asks each of them the same, and goes on where one refuses.
pub(crate) async fn ask_all(
    session: &Session,
    targets: Vec<Target>,
    ask: &Ask,
    as_json: bool,
) -> Done {
    if let [one] = targets.as_slice() {
        let answer = session.ask(one, ask).await?;
        if as_json {
            return print_json(&answer);
        }
        return print(&told(&one.to_string(), &answer));
    }
    let mut answers = serde_json::Map::new();
    let mut refused = false;
    for target in targets {
        let answer = match session.ask(&target, ask).await {
            Ok(answer) => answer,
            Err(error) if error.is_connection() => return Err(error.into()),
            Err(error) => {
                refused = true;
                json!({"error": {"code": error.code(), "message": error.to_string()}})
            }
        };
        if !as_json {
            print(&told(&target.to_string(), &answer))?;
        }
        answers.insert(target.to_string(), answer);
    }
    if as_json {
        print_json(&Value::Object(answers))?;
    }
    if refused {
        return Err(Ended::silent(Exit::Refused));
    }
    Ok(())
}

/// An answer as indented lines under who gave it.
fn told(who: &str, answer: &Value) -> String {
    let mut out = format!("{}\n", plain(who));
    lines(answer, 1, &mut out);
    out
}

fn lines(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    let fields = match value {
        Value::Object(fields) => fields,
        other => {
            out.push_str(&format!("{indent}{}\n", word(other)));
            return;
        }
    };
    for (name, value) in fields {
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push_str(&format!("{indent}{}\n", plain(name)));
                lines(value, depth + 1, out);
            }
            Value::Array(items) => {
                let items: Vec<_> = items.iter().map(word).collect();
                out.push_str(&format!("{indent}{}: {}\n", plain(name), items.join(", ")));
            }
            other => out.push_str(&format!("{indent}{}: {}\n", plain(name), word(other))),
        }
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => plain(text),
        other => plain(&other.to_string()),
    }
}

async fn list(session: &Session, as_json: bool) -> Done {
    let sites = session.sites().await?;
    if as_json {
        return print_json(&json!({ "sites": to_value(&sites).unwrap_or_default() }));
    }
    if sites.is_empty() {
        eprintln!("no site has connected");
        return Ok(());
    }
    let rows: Vec<_> = sites.iter().map(row).collect();
    print(&table(
        &[
            "NAME",
            "ORG",
            "STATE",
            "JOBS",
            "FREE",
            "RELAY",
            "VERSION",
            "LAST HEARD",
        ],
        &rows,
    ))
}

fn row(site: &SiteInfo) -> Vec<String> {
    let free: Vec<_> = site
        .resources
        .iter()
        .map(|(name, amount)| format!("{name} {}/{}", amount.free, amount.total))
        .collect();
    vec![
        site.name.clone(),
        site.org.clone(),
        site.state.to_string(),
        site.jobs.len().to_string(),
        free.join(" "),
        site.relay.clone().unwrap_or_default(),
        site.version.clone(),
        site.last_heard.as_ref().map_or_else(String::new, moment),
    ]
}

async fn show(session: &Session, name: &str, as_json: bool) -> Done {
    let site = session.site(name).await?;
    let value = to_value(&site).unwrap_or_default();
    if as_json {
        return print_json(&value);
    }
    print(&told(&site.name, &value))
}

/// Looks at files, of a job or of a node.
pub(crate) async fn files(
    session: &Session,
    target: &Target,
    job: Option<String>,
    op: Files,
    as_json: bool,
) -> Done {
    let mut op = op.op();
    loop {
        let ask = Ask::Files {
            job: job.clone(),
            op: op.clone(),
        };
        let answer = session.ask(target, &ask).await?;
        if as_json {
            return print_json(&answer);
        }
        match op {
            FileOp::Ls { .. } => return print(&listing(answer)?),
            FileOp::Grep { .. } => return matches(answer),
            FileOp::Cat { path, .. } => {
                let text: Text = understood(answer)?;
                print_bytes(text.text.as_bytes())?;
                if text.end >= text.bytes || text.end <= text.offset {
                    return Ok(());
                }
                op = FileOp::Cat {
                    path,
                    offset: text.end,
                };
            }
            _ => {
                let text: Text = understood(answer)?;
                print_bytes(text.text.as_bytes())?;
                if text.cut {
                    eprintln!("more than one answer holds: `cat` shows all of it");
                }
                return Ok(());
            }
        }
    }
}

fn listing(answer: Value) -> Done<String> {
    let listing: Listing = understood(answer)?;
    let rows: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| {
            let (name, bytes) = if entry.folder {
                (format!("{}/", entry.path), String::new())
            } else {
                (entry.path.clone(), size(entry.bytes))
            };
            let changed = entry.modified.as_ref().map_or_else(String::new, moment);
            vec![name, bytes, changed]
        })
        .collect();
    if listing.cut {
        eprintln!("there is more than is shown");
    }
    Ok(table(&["NAME", "SIZE", "CHANGED"], &rows))
}

fn matches(answer: Value) -> Done {
    let found: Matches = understood(answer)?;
    let mut out = String::new();
    for one in &found.lines {
        out.push_str(&format!(
            "{}:{}: {}\n",
            plain(&one.path),
            one.line,
            plain(&one.text)
        ));
    }
    print(&out)?;
    if found.cut {
        eprintln!("there is more than is shown");
    }
    Ok(())
}

fn understood<T: serde_read::Read>(answer: Value) -> Done<T> {
    T::read(answer).map_err(|error| {
        Ended::here(
            format!("the answer is not understood: {error}"),
            "is the site as new as this program?",
        )
    })
}

/// Reading without naming serde, which this crate has no need of otherwise.
mod serde_read {
    use super::*;

    pub(super) trait Read: Sized {
        fn read(value: Value) -> Result<Self, serde_json::Error>;
    }

    macro_rules! reads {
        ($($name:ty),*) => {$(
            impl Read for $name {
                fn read(value: Value) -> Result<Self, serde_json::Error> {
                    from_value(value)
                }
            }
        )*};
    }

    reads!(Listing, Matches, Text);
}
