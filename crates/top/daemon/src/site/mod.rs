//! A site's process: connected to its server for as long as it lives, it takes jobs
//! and acts for the site in each.
//!
//! The life of a job here: its bundle is fetched and unpacked, its needs are checked
//! and set aside, its agent runs in a scope of the session, and at its end nothing
//! of it is left but its folder.
//!
//! Never: decides which jobs there are, runs a line of a job's code itself, tells
//! anybody a secret, or lets one job see another's models.
//!
//! Start at [`run`].

mod asks;
mod bundle;
mod desk;
mod dial;
mod environments;
mod facts;
mod job;
mod link;
mod needs;
mod place;
mod resources;
mod run;
mod warm;

use std::cell::Cell;
use std::path::PathBuf;

use firesteel_base::{Durations, Hint, IdError, SiteName, limits};
use firesteel_bridge::{BindError, BridgeListener};
use firesteel_net::Options;
use firesteel_node::parts::sentence;
use firesteel_observe::{ConfigError, Console, ConsoleMode, ConsoleStyle, LogConfig, Logs};
use firesteel_pki::{Kit, KitError};
use tokio::sync::watch;

use crate::logs::{Followed, Source, follow};
use desk::{Desk, Parts};
use warm::Pool;

/// How a site's process is run.
#[derive(Debug)]
pub struct SiteRun {
    /// Who it is, and where its server is.
    pub kit: Kit,
    /// The `firesteel` binary, of which supervisors are made.
    pub binary: PathBuf,
    /// What the console shows: a mode, a level or a file.
    pub log: Option<String>,
    /// How it shows it.
    pub console: ConsoleStyle,
    /// How long things may take.
    pub durations: Durations,
    /// How connections are used.
    pub net: Options,
}

/// Why a site's process could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SiteError {
    /// The kit is none of a site.
    #[error(transparent)]
    Kit(#[from] KitError),
    /// Its name is no site's.
    #[error("the kit's name is no name of a site")]
    Name(#[from] IdError),
    /// The log configuration.
    #[error(transparent)]
    Logs(#[from] ConfigError),
    /// The trainers' socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The workspace, or another process in it.
    #[error(transparent)]
    Workspace(#[from] firesteel_node::NodeError),
    /// The server will not have it.
    #[error("the server refused the site: {reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
}

impl Hint for SiteError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Kit(error) => error.hint(),
            Self::Logs(error) => error.hint(),
            Self::Bind(error) => error.hint(),
            Self::Workspace(firesteel_node::NodeError::Busy { .. }) => Some(
                "a site runs once: stop the other process, or give this kit another `workspace` in site.toml".into(),
            ),
            Self::Workspace(error) => error.hint(),
            Self::Refused { .. } => Some(
                "the server's log says more; the kit may be of another project, or replaced by a newer one".into(),
            ),
            Self::Name(_) => None,
        }
    }
}

/// Acts for a site until `stop` says so, or the server refuses it for good.
///
/// # Errors
/// [`SiteError`].
pub async fn run(run: SiteRun, stop: watch::Receiver<Option<String>>) -> Result<(), SiteError> {
    let config = run.kit.site()?.clone();
    let site = SiteName::new(run.kit.name())?;
    let workspace = config.workspace.clone();
    let _lock = firesteel_node::site::lock(&workspace)?;
    let log_dir = workspace.join("logs");
    let chosen = Cell::new(run.log.is_some() || log_dir.join("log_config.json").exists());
    let mut log_config = LogConfig::resolve(Some(&log_dir), run.log.as_deref(), |name| {
        let word = std::env::var(name).ok();
        chosen.set(chosen.get() || word.is_some());
        word
    })?;
    if !chosen.into_inner() {
        // Whoever runs a site wants to see that it is connected.
        log_config.console = ConsoleMode::Full;
    }
    let console = Console::stderr(run.console);
    let logs = Logs::open(&log_dir, one_file(log_config), console.clone());
    let logger = logs.logger("firesteel.site").for_site(&site);
    let rejected = logger.named("firesteel.bridge");
    let listener = BridgeListener::bind(None, run.durations.connect, move |rejection| {
        rejected.warning(&rejection.to_string());
    })?;
    let launch = logger.named("firesteel.launch");
    let parts = Parts {
        pool: Pool::new(run.binary, run.durations.stop_grace, launch),
        kit: run.kit,
        config,
        site,
        workspace,
        durations: run.durations,
        net: run.net,
        console: console.clone(),
        logs,
        listener,
        stop: stop.clone(),
    };
    let (desk, outgoing) = Desk::new(parts);
    logger.info(&format!(
        "site `{}` of {} in the project `{}` (firesteel {})",
        desk.site,
        desk.kit.org(),
        desk.kit.project(),
        env!("CARGO_PKG_VERSION")
    ));
    let sweeping = tokio::spawn(sweep(desk.clone()));
    follow_own_log(&desk);
    desk.take_up();
    let result = link::keep(&desk, outgoing).await;
    if let Err(error) = &result {
        logger.error(&sentence(error));
    }
    // Where the server was away, the jobs end by themselves.
    desk.emptied(desk.durations.stop_grace).await;
    sweeping.abort();
    desk.pool.sweep(true).await;
    let session = desk.session.send_replace(None);
    if let Some(session) = session {
        let why = stop.borrow().clone();
        link::part(&session, &why.unwrap_or_else(|| "the site ends".to_owned())).await;
    }
    logger.info("the site has stopped");
    console.flush(desk.durations.drain);
    result
}

/// A site's own logs are about one site.
fn one_file(mut config: LogConfig) -> LogConfig {
    config.files.sites = false;
    config
}

/// Ends warm parents that nobody has used for a while.
async fn sweep(desk: Desk) {
    let mut turns = tokio::time::interval(warm::SWEEP);
    loop {
        turns.tick().await;
        desk.pool.sweep(false).await;
    }
}

/// Sends the site's own log to the server as it grows.
fn follow_own_log(desk: &Desk) {
    if !desk.config.allow_log_streaming {
        return;
    }
    let path = desk.workspace.join("logs/log.txt");
    let source = match Source::open(&path, limits::LOG_FILES_KEPT) {
        Ok(source) => source,
        Err(error) => {
            desk.logger
                .warning(&format!("the site's log cannot be followed: {error}"));
            return;
        }
    };
    let (never, over) = watch::channel(false);
    let followed = Followed {
        job: None,
        source,
        session: desk.session.subscribe(),
        over,
        logger: desk.logger.clone(),
        durations: desk.durations,
    };
    tokio::spawn(async move {
        follow(followed).await;
        drop(never);
    });
}
