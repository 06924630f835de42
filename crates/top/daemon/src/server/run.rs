//! A server's start and its end.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::SystemTime;

use firesteel_base::{Durations, JobId};
use firesteel_jobs::Jobs;
use firesteel_net::{AcceptError, Entrance, Front, FrontOptions, Network, Options, Serves};
use firesteel_node::parts::{cores, random, sentence};
use firesteel_observe::{Console, ConsoleStyle, LogConfig, Logs};
use firesteel_pki::{Authority, Kit, Security};
use firesteel_policy::Policy;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::ServerError;
use super::core::Core;
use super::hub::Hub;
use super::record::Record;
use super::shared::Shared;
use crate::rest::Rest;

/// Inputs that wait for the loop: it holds up who sends more.
const INBOX: usize = 1024;

/// What a server is made from, connections apart.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Its name.
    pub name: String,
    /// The project it serves.
    pub project: String,
    /// Whose certificates hold.
    pub authority: Authority,
    /// Who may do what.
    pub policy: Policy,
    /// Where jobs, their models and their logs are kept.
    pub workspace: PathBuf,
    /// Jobs at a time.
    pub max_jobs: usize,
    /// Sites at a time.
    pub max_sites: usize,
    /// Whether logs of jobs are taken from sites.
    pub accept_logs: bool,
    /// Threads that sum; none: one for each core.
    pub threads: Option<usize>,
    /// What is logged.
    pub log: LogConfig,
    /// Where it is shown.
    pub console: Console,
    /// How long things may take.
    pub durations: Durations,
}

/// A server that is open, and its loop.
pub struct Opened {
    /// The server.
    pub hub: Hub,
    /// Ends when it was told to stop, and everything is let go.
    pub serving: JoinHandle<()>,
}

/// Opens a server: takes up the jobs of earlier starts, and serves until `stop`
/// becomes a reason. Sessions are handed to [`Hub::serve`].
///
/// # Errors
/// [`ServerError`].
pub async fn open(
    options: ServerOptions,
    stop: watch::Receiver<Option<String>>,
) -> Result<Opened, ServerError> {
    let jobs = Jobs::open(&options.workspace).await?;
    let logs = Logs::open(&options.workspace, options.log, options.console.clone());
    let logger = logs.logger("firesteel.server");
    let sites = options.workspace.join("sites");
    std::fs::create_dir_all(&sites).map_err(|source| ServerError::Io {
        doing: "make the directory",
        path: sites,
        source,
    })?;
    let mut records = Vec::new();
    for row in jobs.unsettled().await? {
        let job = row.job.id.to_string();
        let record = Record::read(row).map_err(|problem| ServerError::Job { job, problem })?;
        records.push(record);
    }
    sweep(&jobs).await?;
    let (inbox, inputs) = mpsc::channel(INBOX);
    let shared = Arc::new(Shared {
        name: options.name,
        project: options.project,
        authority: options.authority,
        policy: options.policy,
        jobs,
        workspace: options.workspace,
        durations: options.durations,
        max_jobs: options.max_jobs.max(1),
        max_sites: options.max_sites,
        accept_logs: options.accept_logs,
        threads: options.threads.unwrap_or_else(cores),
        instance: random(),
        started: SystemTime::now(),
        logger,
        console: options.console,
        inbox,
        changes: watch::Sender::new(0),
        records: RwLock::new(HashMap::new()),
        sites: RwLock::new(BTreeMap::new()),
        logs: Mutex::default(),
        sessions: AtomicU64::new(0),
        tunnels: OnceLock::new(),
    });
    if !records.is_empty() {
        shared.logger.info(&format!(
            "{} jobs of an earlier start are taken up",
            records.len()
        ));
    }
    let mut core = Core::new(Arc::clone(&shared));
    core.restore(records);
    let serving = tokio::spawn(core.run(inputs, stop));
    Ok(Opened {
        hub: Hub(shared),
        serving,
    })
}

/// Removes the files of jobs that were never written down.
async fn sweep(jobs: &Jobs) -> Result<(), ServerError> {
    for job in jobs.job_dirs()? {
        let Ok(id) = JobId::new(&job) else {
            continue;
        };
        if jobs.job(&id).await?.is_none() {
            jobs.remove_files(&id).await?;
        }
    }
    Ok(())
}

/// How a server's process is run.
#[derive(Debug)]
pub struct ServerRun {
    /// Who it is, and where it listens.
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

/// Serves until `stop` says so. `listening` is told where, once sites and people
/// can connect.
///
/// # Errors
/// [`ServerError`] when it cannot be started.
pub async fn run(
    run: ServerRun,
    listening: impl FnOnce(&[SocketAddr]),
    stop: watch::Receiver<Option<String>>,
) -> Result<(), ServerError> {
    let kit = &run.kit;
    let config = kit.server()?.clone();
    let log = LogConfig::resolve(Some(&config.workspace), run.log.as_deref(), |name| {
        std::env::var(name).ok()
    })?;
    let console = Console::stderr(run.console);
    let options = ServerOptions {
        name: kit.name().to_owned(),
        project: kit.project().to_owned(),
        authority: kit.authority().clone(),
        policy: config.rules(),
        workspace: config.workspace.clone(),
        max_jobs: config.max_jobs as usize,
        max_sites: config.max_sites as usize,
        accept_logs: config.accept_logs,
        threads: None,
        log,
        console: console.clone(),
        durations: run.durations,
    };
    let Opened { hub, serving } = open(options, stop.clone()).await?;
    let logger = hub.0.logger.clone();
    let front = Front::bind(front_options(&run, &hub)?).await?;
    let front = Arc::new(front);
    let tunnels = Arc::clone(&front);
    // Set here and nowhere else.
    let _ = hub.0.tunnels.set(Box::new(move |stream, from| {
        tunnels.serve_stream(stream, from)
    }));
    for address in front.local_addresses() {
        logger.info(&format!(
            "server {} of project {} listens at {address}",
            kit.name(),
            kit.project()
        ));
    }
    listening(front.local_addresses());
    let accepting = async {
        loop {
            match front.accept().await {
                Ok(session) => {
                    let hub = hub.clone();
                    tokio::spawn(async move { hub.serve(session).await });
                }
                Err(AcceptError::Closed) => break,
                Err(error) => {
                    logger.warning(&format!("a connection was not taken: {}", sentence(&error)))
                }
            }
        }
    };
    let mut stopping = stop;
    tokio::select! {
        () = accepting => {}
        _ = stopping.wait_for(Option::is_some) => {}
    }
    logger.info("the server is being stopped; jobs that run go on when it is started again");
    // Nobody new is let in while it lets go.
    let limit = run.durations.drain;
    let _ = tokio::time::timeout(limit, serving).await;
    console.flush(limit);
    Ok(())
}

/// Where the server listens, and what answers there.
fn front_options(run: &ServerRun, hub: &Hub) -> Result<FrontOptions, ServerError> {
    let kit = &run.kit;
    let listen = kit.listen().ok_or_else(|| ServerError::Deaf {
        server: kit.name().to_owned(),
    })?;
    let sockets = listen.sockets();
    let second = listen.admin_port;
    let entrances = sockets.into_iter().map(|address| {
        let mut entrance = Entrance::new(address);
        entrance.clear = listen.security == Security::Clear;
        entrance.serves = match second {
            Some(port) if port != listen.port && address.port() == port => Serves::Web,
            Some(port) if port != listen.port => Serves::Sessions,
            _ => Serves::All,
        };
        entrance
    });
    let identity = kit.identity().clone();
    let mut options = FrontOptions::new(entrances.collect(), identity, run.net.clone());
    options.roles = Some(["site", "relay"].map(str::to_owned).into());
    let networks = listen.proxy_protocol_from.iter().map(|text| text.parse());
    options.proxy_protocol_from = networks
        .collect::<Result<Vec<Network>, _>>()
        .map_err(ServerError::Network)?;
    let rest = Rest::of(
        hub.clone(),
        kit,
        hub.0.policy.clone(),
        run.durations,
        hub.0.logger.named("firesteel.rest"),
    )?;
    options.web = Some(Arc::new(rest));
    Ok(options)
}
