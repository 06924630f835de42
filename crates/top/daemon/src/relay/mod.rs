//! A relay's process: sites and further relays connect to it, and it is connected
//! to the server, or to a relay nearer to it.
//!
//! What it carries it cannot read: each site's session with the server has mutual
//! TLS of its own, from end to end. In jobs whose hierarchy is `aggregate` it is a
//! party: the sites speak with the server through it, and it sums their updates.
//!
//! Never: decides which sites or jobs there are, looks into what it carries, or
//! lets one job's models be had in another.
//!
//! Start at [`run`]; whoever connects through a relay starts at [`Uplink`], the
//! server at [`answer_tunnel`] and [`join`].

mod below;
mod jobs;
mod upward;

use std::net::SocketAddr;
use std::sync::Arc;

use firesteel_base::{Durations, Hint, IdError, SiteName};
use firesteel_net::{BindError, Entrance, Front, FrontOptions, Network, NetworkError, Options};
use firesteel_node::parts::{random, sentence};
use firesteel_observe::{ConfigError, Console, ConsoleStyle, LogConfig, Logs};
use firesteel_pki::{Kit, KitError};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use firesteel_relay::{Uplink, UplinkError, answer_tunnel, join};

/// How a relay's process is run.
#[derive(Debug)]
pub struct RelayRun {
    /// Who it is, where it listens, and who is above.
    pub kit: Kit,
    /// What the console shows: a mode, a level or a file.
    pub log: Option<String>,
    /// How it shows it.
    pub console: ConsoleStyle,
    /// How long things may take.
    pub durations: Durations,
    /// How connections are used.
    pub net: Options,
}

/// Why a relay's process could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The kit is none of a relay.
    #[error(transparent)]
    Kit(#[from] KitError),
    /// Its name is none.
    #[error("the kit's name is no name of a relay")]
    Name(#[from] IdError),
    /// The log configuration.
    #[error(transparent)]
    Logs(#[from] ConfigError),
    /// The ports.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A network of load balancers.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The workspace, or another process in it.
    #[error(transparent)]
    Workspace(#[from] firesteel_node::NodeError),
    /// The kit says nothing of where sites connect.
    #[error("the kit of relay `{relay}` does not say where it listens")]
    Deaf {
        /// The relay.
        relay: String,
    },
    /// The server will not have it.
    #[error("the server refused the relay: {reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
}

impl Hint for RelayError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Kit(error) => error.hint(),
            Self::Bind(error) => error.hint(),
            Self::Workspace(firesteel_node::NodeError::Busy { .. }) => Some(
                "a relay runs once: stop the other process, or give this kit another `workspace` in relay.toml"
                    .to_owned(),
            ),
            Self::Workspace(error) => error.hint(),
            Self::Deaf { .. } => Some(
                "give the relay a `listening_host` or a port in the project file, and provision it again"
                    .to_owned(),
            ),
            Self::Refused { .. } => Some(
                "the server's log says more; the kit may be of another project, or replaced by a newer one"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// Runs a relay until `stop` says so. `listening` is told where, once sites can
/// connect.
///
/// # Errors
/// [`RelayError`].
pub async fn run(
    run: RelayRun,
    listening: impl FnOnce(&[SocketAddr]),
    mut stop: watch::Receiver<Option<String>>,
) -> Result<(), RelayError> {
    let config = run.kit.relay()?.clone();
    let relay = SiteName::new(run.kit.name())?;
    let workspace = config.workspace.clone();
    let _lock = firesteel_node::site::lock(&workspace)?;
    let log_dir = workspace.join("logs");
    let log_config = LogConfig::resolve(Some(&log_dir), run.log.as_deref(), |name| {
        std::env::var(name).ok()
    })?;
    let console = Console::stderr(run.console);
    let logs = Logs::open(&log_dir, log_config, console.clone());
    let logger = logs.logger("firesteel.relay");
    let listen = run.kit.listen().ok_or_else(|| RelayError::Deaf {
        relay: relay.to_string(),
    })?;
    let clear = listen.security == firesteel_pki::Security::Clear;
    let entrances = listen.sockets().into_iter().map(|address| {
        let mut entrance = Entrance::new(address);
        entrance.clear = clear;
        entrance
    });
    let identity = run.kit.identity().clone();
    let mut options = FrontOptions::new(entrances.collect(), identity, run.net.clone());
    options.roles = Some(["site", "relay"].map(str::to_owned).into());
    options.proxy_protocol_from = listen
        .proxy_protocol_from
        .iter()
        .map(|network| network.parse())
        .collect::<Result<Vec<Network>, _>>()?;
    let front = Front::bind(options).await?;
    listening(front.local_addresses());
    let shown: Vec<String> = front
        .local_addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    logger.info(&format!(
        "relay `{relay}` of {} in the project `{}` listens at {} (firesteel {})",
        run.kit.org(),
        run.kit.project(),
        shown.join(", "),
        env!("CARGO_PKG_VERSION")
    ));
    let upward = upward::Upward::new(run.kit, run.net, run.durations, logger.clone());
    let jobs = jobs::Jobs::new(jobs::JobsParts {
        relay,
        workspace,
        upward: upward.clone(),
        durations: run.durations,
        logger: logger.clone(),
        instance: random(),
        stop: stop.clone(),
    });
    let mut sessions = JoinSet::new();
    let keeping = upward.keep();
    tokio::pin!(keeping);
    let ended = loop {
        tokio::select! {
            refused = &mut keeping => break Err(refused),
            accepted = front.accept() => match accepted {
                Ok(session) => {
                    let (upward, jobs) = (upward.clone(), Arc::clone(&jobs));
                    let logger = logger.clone();
                    sessions.spawn(below::serve(session, upward, jobs, logger));
                }
                Err(error) => logger.warning(&format!(
                    "a connection was not taken: {}",
                    sentence(&error)
                )),
            },
            Some(_) = sessions.join_next() => {}
            _ = stop.wait_for(Option::is_some) => break Ok(()),
        }
    };
    jobs.end().await;
    upward.part("the relay ends").await;
    drop(sessions);
    if let Err(error) = &ended {
        logger.error(&sentence(error));
    }
    logger.info("the relay has stopped");
    console.flush(run.durations.drain);
    ended
}
