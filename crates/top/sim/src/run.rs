//! One simulation, from the run directory to the last log line.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use firesteel_agent::{Agent, AgentError, AgentParts, Launch, Slots};
use firesteel_base::{Durations, Hint, JobId};
use firesteel_bridge::stream::Exchange;
use firesteel_bridge::{BindError, BridgeListener};
use firesteel_carry::{Carrier, Connection, Local, Once};
use firesteel_flow::Status;
use firesteel_launch::LaunchError;
use firesteel_node::parts::{self, Trainers};
use firesteel_observe::{ConfigError, Console, ConsoleStyle, LogConfig, Logger, Logs};
use firesteel_server::{Job, JobError, JobParts, Watch};
use firesteel_store::{ObjectError, RunDir, RunError, SpaceError, StoreError};
use firesteel_wire::options::SimOptions;
use firesteel_wire::spec::{JobSpec, Mode};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::outcome::SimOutcome;

/// Bytes that may wait on a pipe in either direction. What was once needed is kept,
/// twice per site.
const PIPE: usize = 4 * 1024;

/// What a simulation is started with.
pub(crate) struct Plan {
    pub(crate) spec: JobSpec,
    pub(crate) options: SimOptions,
    pub(crate) abort: watch::Receiver<Option<String>>,
    pub(crate) status: watch::Sender<Option<Status>>,
}

/// Why a simulation could not be run. How a job ended that did run is in its
/// [`SimOutcome`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// The run directory.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk is too small for the job.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// A log configuration.
    #[error(transparent)]
    Logs(#[from] ConfigError),
    /// The initial model cannot be read.
    #[error("the initial model cannot be read")]
    InitialModel(#[source] ObjectError),
    /// The trainers' supervisor.
    #[error("the trainers' supervisor could not be started")]
    Launch(#[from] LaunchError),
    /// The trainers' socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The server.
    #[error(transparent)]
    Job(#[from] JobError),
    /// A setting.
    #[error("`{field}`: {problem}")]
    Option {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The system gave no event loop.
    #[error("the system refused what an event loop needs")]
    Runtime(#[source] std::io::Error),
    /// A bug.
    #[error("the simulation's thread panicked; this is a bug, please report it")]
    Panicked,
}

impl SimError {
    pub(crate) fn what_to_do(&self) -> Option<String> {
        match self {
            Self::Run(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Space(error) => error.hint(),
            Self::Logs(error) => error.hint(),
            Self::InitialModel(error) => error.hint(),
            Self::Launch(error) => error.hint(),
            Self::Bind(error) => error.hint(),
            Self::Job(error) => error.hint(),
            Self::Option { .. } | Self::Runtime(_) | Self::Panicked => None,
        }
    }
}

/// Runs a simulation to its end; `placed` is told where as soon as it is known.
pub(crate) fn run(plan: Plan, placed: impl Fn(PathBuf)) -> Result<SimOutcome, SimError> {
    // One thread for everything that waits: with trivial trainers a round is
    // mostly wake-ups, and none of them then crosses threads. Sums and checks of
    // large updates have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("firesteel-work")
        .build()
        .map_err(SimError::Runtime)?;
    let result = runtime.block_on(simulate(plan, placed));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn simulate(plan: Plan, placed: impl Fn(PathBuf)) -> Result<SimOutcome, SimError> {
    let Plan {
        spec,
        options,
        abort,
        status,
    } = plan;
    let durations = options.durations.resolve();
    let style = ConsoleStyle::parse(&options.console).ok_or(SimError::Option {
        field: "console",
        problem: format!("is {:?}, expected auto, plain or off", options.console),
    })?;
    // A block that is redrawn would wipe a debugger's prompt away.
    let style = match style {
        ConsoleStyle::Auto if options.debug.is_some() => ConsoleStyle::Plain,
        style => style,
    };
    if let Some(site) = options
        .debug
        .as_ref()
        .filter(|site| !spec.sites.contains(site))
    {
        let problem = format!("names `{site}`, which is not a site of this job");
        return Err(SimError::Option {
            field: "debug",
            problem,
        });
    }
    parts::check_disk(&options.root, &spec, options.resume)?;
    let workspace = options.workspace.as_deref().unwrap_or(&options.root);
    let run = Arc::new(parts::open_run(&options.root, &spec, options.resume)?);
    placed(run.path().to_owned());
    let config = LogConfig::resolve(Some(workspace), options.log.as_deref(), |name| {
        std::env::var(name).ok()
    })?;
    let console = Console::stderr(style);
    let logs = Logs::open(run.path(), config, console.clone());
    let id = JobId::new(&spec.name).map_err(|error| SimError::Option {
        field: "name",
        problem: error.to_string(),
    })?;
    let logger = logs.logger("firesteel.sim").for_job(&spec.name);
    logger.info(&format!(
        "job {} with {} sites and {} workers in {}",
        spec.name,
        spec.sites.len(),
        options.num_workers,
        run.path().display()
    ));
    let (mut spec, mut durations) = (spec, durations);
    if options.debug.is_some() {
        // Nobody waits for a person who looks at a variable.
        (spec.policy.round_s, spec.policy.task_s, spec.policy.grace_s) = (None, None, None);
        (durations.round, durations.task) = (None, None);
    }
    let result = federate(
        Scene {
            spec,
            options,
            run,
            id,
            logger: logger.clone(),
            console: console.clone(),
            durations,
        },
        abort,
        status,
    )
    .await;
    if let Err(error) = &result {
        logger.error(&error.to_string());
    }
    console.flush(durations.drain);
    result
}

/// Everything that the parts of a simulation share.
struct Scene {
    spec: JobSpec,
    options: SimOptions,
    run: Arc<RunDir>,
    id: JobId,
    logger: Logger,
    console: Console,
    durations: Durations,
}

async fn federate(
    scene: Scene,
    abort: watch::Receiver<Option<String>>,
    status: watch::Sender<Option<Status>>,
) -> Result<SimOutcome, SimError> {
    let Scene {
        spec,
        options,
        run,
        id,
        logger,
        console,
        durations,
    } = scene;
    let objects = run.objects()?;
    let carrier: Arc<dyn Carrier> = Arc::new(Local::new(objects.clone()));
    let trainers = Trainers {
        binary: options.binary.clone(),
        python: options.python.clone(),
        workers: options.num_workers,
        env: options.env.clone(),
        stop_grace: durations.stop_grace,
        reuse: options.reuse_processes,
    };
    let supervisor = trainers.supervisor(&spec, &logger).await?;
    let rejected = logger.named("firesteel.bridge");
    let listener = BridgeListener::bind(None, durations.connect, move |rejection| {
        rejected.warning(&rejection.to_string());
    })?;
    let progress = parts::progress(console, &spec);
    let first = parts::first_round(&run, options.resume)?;
    let watch = Watch::new(&logger, progress, Arc::clone(&run), &spec, durations, first);
    let (streams, incoming) = mpsc::channel(64);
    let slots = Slots::new(options.num_workers.max(1), &options.gpus);
    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let attach_dir = run.path().join("attach");
    let mut agents = JoinSet::new();
    // One for all sites: what one offers, the others find at once.
    let exchange = Exchange::new();
    let mut ends = Vec::with_capacity(spec.sites.len());
    for site in spec.site_names() {
        let (near, far) = firesteel_net::pipe(PIPE);
        let attached =
            spec.trainer.mode == Mode::Attach || options.debug.as_deref() == Some(site.as_str());
        let launch = match (&supervisor, attached) {
            (Some(supervisor), false) => Launch::Supervised(supervisor.clone()),
            _ => {
                std::fs::create_dir_all(&attach_dir).map_err(|source| SimError::Option {
                    field: "workspace_root",
                    problem: format!("`{}` cannot be made: {source}", attach_dir.display()),
                })?;
                Launch::Attached(attach_dir.join(format!("{site}.json")))
            }
        };
        let agent = AgentParts {
            launch,
            listener: listener.clone(),
            slots: slots.clone(),
            per_task: spec.sites.len() > slots.count(),
            objects: objects.clone(),
            streams: Some(exchange.desk(site.as_str())),
            filters: Default::default(),
            carrier: Arc::clone(&carrier),
            instance: 0,
            kept: None,
            stop: None,
            outbox: run.outbox_dir(&site),
            state_dir: run.site_dir(&site).join("state"),
            local: Default::default(),
            cwd: cwd.clone(),
            logger: logger.named("firesteel.agent"),
            durations,
            site,
        };
        let (name, log) = (agent.site.clone(), logger.clone());
        agents.spawn(async move {
            match Agent::run(agent, Box::new(Once::new(Connection::local(near)))).await {
                Ok(()) => {}
                // The job ended before it was this site's turn.
                Err(error @ AgentError::Closed) => log.debug(&format!("{name}: {error}")),
                Err(error) => log.for_site(&name).error(&format!(
                    "the agent of {name} ended early: {}",
                    parts::sentence(&error)
                )),
            }
        });
        ends.push(far);
    }
    // The channel is narrow; the server takes streams as it drives the job.
    tokio::spawn(async move {
        for far in ends {
            if streams.send(Connection::local(far)).await.is_err() {
                break;
            }
        }
    });
    let seed = spec.seed.unwrap_or_else(parts::random);
    let threads = options.threads.unwrap_or_else(parts::cores);
    let job = JobParts {
        id,
        epoch: parts::random(),
        spec,
        seed,
        run,
        objects,
        spool: None,
        carriers: Box::new(move |_| Arc::clone(&carrier)),
        watch,
        durations,
        threads,
    };
    let result = Job::run(job, options.resume, incoming, abort, status).await;
    drain(&mut agents, &logger, durations).await;
    if let Some(supervisor) = supervisor {
        supervisor.shutdown(durations.stop_grace).await;
    }
    Ok(SimOutcome { report: result? })
}

/// Waits until every agent has ended; those that do not are left behind, and
/// their trainers end with the supervisor.
async fn drain(agents: &mut JoinSet<()>, logger: &Logger, durations: Durations) {
    let limit = durations.stop_grace + durations.drain;
    let waiting = async {
        while let Some(ended) = agents.join_next().await {
            if let Err(error) = ended {
                logger.error(&format!(
                    "an agent broke: {error}; this is a bug, please report it"
                ));
            }
        }
    };
    if tokio::time::timeout(limit, waiting).await.is_err() {
        logger.warning(&format!(
            "{} agents did not end within {limit:?}",
            agents.len()
        ));
        agents.abort_all();
    }
}
