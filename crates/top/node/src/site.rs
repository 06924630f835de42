//! A site's process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firesteel_agent::{Agent, AgentParts, Launch, Launcher, Launching, Slots};
use firesteel_base::{Durations, SiteName};
use firesteel_bridge::BridgeListener;
use firesteel_bridge::stream::Exchange;
use firesteel_carry::{Depot, Remote};
use firesteel_launch::Supervisor;
use firesteel_net::{Identity, IdentityFiles, Options};
use firesteel_observe::{Console, ConsoleStyle, LogConfig, Logger, Logs};
use firesteel_store::Objects;
use firesteel_wire::spec::{Filters, JobSpec};
use tokio::sync::{Mutex, watch};

use crate::NodeError;
use crate::connect::NetDial;
use crate::parts::{Trainers, random, sentence};

/// How a site's process is run.
#[derive(Debug, Clone)]
pub struct SiteOptions {
    /// The site.
    pub site: SiteName,
    /// The server: `host:port`.
    pub connect: String,
    /// The name that the server's certificate must have.
    pub server_name: String,
    /// Who it is.
    pub identity: IdentityFiles,
    /// Its own directory, for one process at a time.
    pub root: PathBuf,
    /// Its own filters, beside those of the job.
    pub filters: Filters,
    /// How its trainers come about.
    pub trainers: Trainers,
    /// The GPUs of each worker, in turn.
    pub gpus: Vec<String>,
    /// How connections are used.
    pub net: Options,
    /// What the console shows: a mode, a level or a file.
    pub log: Option<String>,
    /// How it shows it.
    pub console: ConsoleStyle,
    /// How long things may take.
    pub durations: Durations,
}

/// Acts for the site until its job has ended, or `stop` says so.
///
/// # Errors
/// [`NodeError`].
pub async fn act(
    options: SiteOptions,
    mut stop: watch::Receiver<Option<String>>,
) -> Result<(), NodeError> {
    let root = std::path::absolute(&options.root).map_err(NodeError::io("find the directory"))?;
    let _lock = lock(&root)?;
    let config = LogConfig::resolve(Some(&root), options.log.as_deref(), |name| {
        std::env::var(name).ok()
    })?;
    let console = Console::stderr(options.console);
    let logs = Logs::open(&root, config, console.clone());
    let logger = logs.logger("firesteel.agent").for_site(&options.site);
    let durations = options.durations;
    let objects = Objects::open(&root.join("objects"))?;
    let told = logger.clone();
    let depot = Depot::warning(objects.clone(), None, durations, move |text| {
        told.warning(text);
    });
    let received = objects.clone();
    let identity = Identity::from_files(&options.identity)?;
    let rejected = logger.named("firesteel.bridge");
    let listener = BridgeListener::bind(None, durations.connect, move |rejection| {
        rejected.warning(&rejection.to_string());
    })?;
    let supervised = Arc::new(Supervised {
        trainers: options.trainers.clone(),
        logger: logger.clone(),
        attach: root.join("attach.json"),
        started: Mutex::default(),
    });
    let slots = Slots::new(options.trainers.workers.max(1), &options.gpus);
    let exchange = Exchange::new();
    let remote = Remote::new(&depot, "the server").offering(&exchange);
    let parts = AgentParts {
        launch: Launch::Later(Arc::clone(&supervised) as Arc<dyn Launcher>),
        listener,
        slots,
        per_task: false,
        objects,
        streams: Some(exchange.desk_with(options.site.as_str(), remote.elsewhere())),
        filters: options.filters,
        carrier: Arc::new(remote),
        instance: random(),
        kept: Some(root.join("kept")),
        stop: Some(stop.clone()),
        outbox: root.join("outbox"),
        state_dir: root.join("state"),
        local: Default::default(),
        cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
        logger: logger.clone(),
        durations,
        site: options.site,
    };
    let dial = NetDial {
        address: options.connect,
        server_name: options.server_name,
        identity,
        options: options.net,
    };
    let acting = Agent::run(parts, Box::new(dial));
    // It leaves the job in good order, unless that takes too long.
    let grace = durations.stop_grace + durations.drain;
    let stopped = async {
        if stop.wait_for(Option::is_some).await.is_err() {
            // Nobody will ask.
            std::future::pending::<()>().await;
        }
        // When it comes back in the same round, its model is here.
        received.keep_received();
        tokio::time::sleep(grace).await;
    };
    let result = tokio::select! {
        biased;
        () = stopped => Ok(()),
        result = acting => result,
    };
    if let Err(error) = &result {
        logger.error(&sentence(error));
    }
    if let Some(supervisor) = supervised.started.lock().await.take() {
        supervisor.shutdown(durations.stop_grace).await;
    }
    console.flush(durations.drain);
    Ok(result?)
}

/// Starts the trainers' supervisor once it is known what they need.
struct Supervised {
    trainers: Trainers,
    logger: Logger,
    attach: PathBuf,
    started: Mutex<Option<Supervisor>>,
}

impl Launcher for Supervised {
    fn launch<'a>(&'a self, spec: &'a JobSpec) -> Launching<'a> {
        Box::pin(async move {
            let started = self.trainers.supervisor(spec, &self.logger).await;
            match started.map_err(|error| sentence(&error))? {
                None => Ok(Launch::Attached(self.attach.clone())),
                Some(supervisor) => {
                    *self.started.lock().await = Some(supervisor.clone());
                    Ok(Launch::Supervised(supervisor))
                }
            }
        })
    }
}

/// Makes the directory and takes it for this process.
///
/// # Errors
/// [`NodeError::Busy`] when another process has it.
pub fn lock(root: &Path) -> Result<File, NodeError> {
    std::fs::create_dir_all(root).map_err(NodeError::io("make the site's directory"))?;
    let file =
        File::create(root.join("lock")).map_err(NodeError::io("lock the site's directory"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(NodeError::Busy {
            path: root.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(source)) => {
            Err(NodeError::io("lock the site's directory")(source))
        }
    }
}
