//! `firesteel job`: jobs of a server.

mod bundle;
mod fetch;
mod look;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use firesteel_api::job::JobFilter;
use firesteel_api::{FileOp, JobState, Target};
use firesteel_session::Session;
use serde_json::json;

use crate::remote::{self, Done, Ended, Exit, Remote, print, print_json};
use crate::site;

pub(crate) use fetch::log;

/// What can be asked about jobs.
#[derive(Debug, clap::Args)]
pub(crate) struct Job {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Submit a job: an exported folder, or a bundle.
    Submit {
        /// The folder with `job.json`, or a bundle (`.tar`).
        path: PathBuf,
        /// A word that makes a second submission give the first one's job.
        #[arg(long)]
        key: Option<String>,
        /// Watch it to its end.
        #[arg(long)]
        watch: bool,
    },
    /// List jobs, oldest first.
    List {
        /// Those whose name starts with this.
        #[arg(long)]
        name: Option<String>,
        /// Those whose id starts with this.
        #[arg(long)]
        id: Option<String>,
        /// Those in this state.
        #[arg(long, value_parser = state)]
        state: Option<JobState>,
        /// Those of this submitter.
        #[arg(long)]
        submitter: Option<String>,
        /// At most so many.
        #[arg(long)]
        limit: Option<u32>,
        /// Newest first.
        #[arg(long)]
        reverse: bool,
    },
    /// Show everything about a job.
    Show {
        /// Its id, or the start of it.
        id: String,
    },
    /// Watch a job to its end. Exit code 4 when it does not end well.
    Watch {
        /// Its id, or the start of it.
        id: String,
        /// Give up after so many seconds (exit code 6); the job goes on.
        #[arg(long)]
        timeout: Option<f64>,
    },
    /// Print a job's log.
    Logs {
        /// Its id, or the start of it.
        id: String,
        /// From a site, or from `server`.
        #[arg(long, default_value = "server")]
        site: String,
        /// Go on as it grows, until the job ends.
        #[arg(long, short)]
        follow: bool,
        /// The last so many lines.
        #[arg(long)]
        tail: Option<u32>,
    },
    /// End a job, in whatever state it is.
    Abort {
        /// Its id, or the start of it.
        id: String,
        /// Why, for its record.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Fetch a job's models, metrics and logs. Goes on where it was cut.
    Download {
        /// Its id, or the start of it.
        id: String,
        /// Where to; by default a folder of the job's id here.
        #[arg(long, short)]
        output: Option<PathBuf>,
        /// Only what lies below this path; may be given several times.
        #[arg(long)]
        only: Vec<String>,
        /// Also while the job runs.
        #[arg(long)]
        now: bool,
    },
    /// Submit a job again.
    Clone {
        /// Its id, or the start of it.
        id: String,
    },
    /// Delete a job that has ended, with all that it left at the server.
    Delete {
        /// Its id.
        id: String,
    },
    /// Look at a job's files, at a site or at the server.
    Files {
        /// Its id, or the start of it.
        id: String,
        /// At a site, or at `server`.
        #[arg(long, default_value = "server")]
        site: String,
        #[command(subcommand)]
        op: Files,
    },
    /// Change what a running job logs.
    Log {
        /// Its id, or the start of it.
        id: String,
        /// A level, a mode (`concise`, `msg_only`, `full`, `verbose`), the path of
        /// a log configuration here, or `reload`.
        level: String,
        /// At one site, at `server`, or at `all`.
        #[arg(long, default_value = "all")]
        site: String,
    },
}

/// Files without a shell. Paths are relative to the folder and stay in it.
#[derive(Debug, Subcommand)]
pub(crate) enum Files {
    /// What a folder holds.
    Ls {
        /// The folder.
        #[arg(default_value = "")]
        path: String,
        /// With all that is below.
        #[arg(long, short = 'R')]
        recursive: bool,
    },
    /// A whole file.
    Cat {
        /// The file.
        path: String,
    },
    /// A file's first lines.
    Head {
        /// The file.
        path: String,
        /// How many.
        #[arg(long, short = 'n', default_value_t = 10)]
        lines: u32,
    },
    /// A file's last lines.
    Tail {
        /// The file.
        path: String,
        /// How many.
        #[arg(long, short = 'n', default_value_t = 10)]
        lines: u32,
    },
    /// Lines that hold a pattern.
    Grep {
        /// A regular expression.
        pattern: String,
        /// The file, or a folder.
        #[arg(default_value = "")]
        path: String,
        /// Upper and lower case are the same.
        #[arg(long, short)]
        ignore_case: bool,
        /// The pattern stands for itself.
        #[arg(long, short = 'F')]
        fixed: bool,
        /// Lines that do not hold it.
        #[arg(long, short = 'v')]
        invert: bool,
    },
}

impl Files {
    pub(crate) fn op(self) -> FileOp {
        match self {
            Self::Ls { path, recursive } => FileOp::Ls { path, recursive },
            Self::Cat { path } => FileOp::Cat { path, offset: 0 },
            Self::Head { path, lines } => FileOp::Head { path, lines },
            Self::Tail { path, lines } => FileOp::Tail { path, lines },
            Self::Grep {
                pattern,
                path,
                ignore_case,
                fixed,
                invert,
            } => FileOp::Grep {
                path,
                pattern,
                ignore_case,
                fixed,
                invert,
            },
        }
    }
}

fn state(word: &str) -> Result<JobState, String> {
    JobState::parse(word).ok_or_else(|| {
        let all: Vec<_> = JobState::ALL.iter().map(|state| state.as_str()).collect();
        format!("the states are {}", all.join(", "))
    })
}

/// Runs `firesteel job …`.
pub(crate) fn run(job: Job) -> ExitCode {
    let Job { remote, what } = job;
    let json = remote.json;
    remote::run(
        &remote,
        |session| async move { what.run(&session, json).await },
    )
}

impl What {
    async fn run(self, session: &Session, json: bool) -> Done {
        match self {
            Self::Submit { path, key, watch } => submit(session, &path, key, watch, json).await,
            Self::List {
                name,
                id,
                state,
                submitter,
                limit,
                reverse,
            } => {
                let filter = JobFilter {
                    id,
                    name,
                    key: None,
                    state,
                    submitter,
                    reverse,
                    limit,
                };
                look::list(session, &filter, json).await
            }
            Self::Show { id } => look::show(session, &find(session, &id).await?, json).await,
            Self::Watch { id, timeout } => {
                watch::watch(session, &find(session, &id).await?, timeout, json).await
            }
            Self::Logs {
                id,
                site,
                follow,
                tail,
            } => {
                let id = find(session, &id).await?;
                let path = firesteel_api::route::job(
                    &id,
                    &format!("/logs/{}", firesteel_api::route::encoded(&site)),
                );
                fetch::log(session, &path, follow, tail, json).await
            }
            Self::Abort { id, reason } => {
                let id = find(session, &id).await?;
                let job = session.abort(&id, &reason).await?;
                look::told(&job, json)
            }
            Self::Download {
                id,
                output,
                only,
                now,
            } => {
                let id = find(session, &id).await?;
                let wanted = fetch::Wanted { output, only, now };
                fetch::download(session, &id, wanted, json).await
            }
            Self::Clone { id } => {
                let id = find(session, &id).await?;
                let made = session.clone_job(&id).await?;
                if json {
                    return print_json(&json!({"source": id, "id": made.id}));
                }
                print(&format!("{}\n", made.id))
            }
            Self::Delete { id } => {
                session.delete(&id).await?;
                if json {
                    return print_json(&json!({ "deleted": id }));
                }
                eprintln!(
                    "job {} and all it left at the server are gone",
                    remote::plain(&id)
                );
                Ok(())
            }
            Self::Files { id, site, op } => {
                let job = Some(find(session, &id).await?);
                site::files(session, &Target::parse(&site), job, op, json).await
            }
            Self::Log { id, level, site } => {
                let id = find(session, &id).await?;
                let ask = site::log_ask(Some(id.clone()), &level)?;
                let targets = targets(session, &id, &site).await?;
                site::ask_all(session, targets, &ask, json).await
            }
        }
    }
}

#[expect(
    clippy::fn_params_excessive_bools,
    reason = "flags of the command line, passed on"
)]
async fn submit(
    session: &Session,
    path: &std::path::Path,
    key: Option<String>,
    watch: bool,
    json: bool,
) -> Done {
    let bundle = bundle::of(path, session, key.as_deref())?;
    let made = session.submit(&bundle.path, Some(&bundle.key)).await?;
    if !watch {
        if json {
            return print_json(&json!({"id": made.id, "existed": made.existed}));
        }
        if made.existed {
            eprintln!("the job with this key was there already");
        }
        return print(&format!("{}\n", made.id));
    }
    if !json {
        eprintln!("job {}", made.id);
    }
    watch::watch(session, &made.id, None, json).await
}

/// The one job whose id is this or starts with this.
async fn find(session: &Session, start: &str) -> Done<String> {
    let filter = JobFilter {
        id: Some(start.to_owned()),
        ..JobFilter::default()
    };
    let found = session.jobs(&filter).await?;
    let ids: Vec<_> = found.into_iter().map(|job| job.id).collect();
    if start.is_empty() || ids.is_empty() {
        return Err(Ended::new(
            Exit::NotThere,
            "job-not-found",
            format!("there is no job `{start}`"),
            "`firesteel job list` names them all",
        ));
    }
    if let Some(whole) = ids.iter().find(|id| *id == start) {
        return Ok(whole.clone());
    }
    match ids.as_slice() {
        [one] => Ok(one.clone()),
        several => Err(Ended::new(
            Exit::NotThere,
            "job-not-found",
            format!("{} jobs start with `{start}`", several.len()),
            "give more of the id",
        )),
    }
}

async fn targets(session: &Session, id: &str, site: &str) -> Done<Vec<Target>> {
    if site != "all" {
        return Ok(vec![Target::parse(site)]);
    }
    let job = session.job(id).await?;
    let sites = job.at.into_iter().map(|one| Target::Site(one.site));
    Ok(std::iter::once(Target::Server).chain(sites).collect())
}
