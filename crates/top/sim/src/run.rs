//! One simulation, from the run directory to the last log line.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use firesteel_agent::{Agent, AgentError, AgentParts, Launch, Slots};
use firesteel_base::{Durations, Hint, JobId, Round, limits};
use firesteel_bridge::{BindError, BridgeListener};
use firesteel_flow::Status;
use firesteel_launch::{LaunchError, Supervisor, SupervisorConfig, SupervisorNotice, thread_env};
use firesteel_observe::{
    ConfigError, Console, ConsoleStyle, JobLine, LogConfig, Logger, Logs, Progress,
};
use firesteel_server::{Job, JobError, JobParts, Watch};
use firesteel_store::{
    DiskPlan, ObjectError, RunDir, RunError, SpaceError, StoreError, check_free, disk_needed,
};
use firesteel_wire::options::SimOptions;
use firesteel_wire::spec::{Algorithm, JobSpec, Mode};
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
    check_disk(&options, &spec)?;
    let workspace = options.workspace.as_deref().unwrap_or(&options.root);
    let run = Arc::new(open_run(&options, &spec)?);
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
    let supervisor = start_supervisor(&spec, &options, &logger, durations).await?;
    let rejected = logger.named("firesteel.bridge");
    let listener = BridgeListener::bind(None, durations.connect, move |rejection| {
        rejected.warning(&rejection.to_string());
    })?;
    let Algorithm::Fedavg {
        num_rounds,
        start_round,
    } = spec.algorithm;
    let progress = Progress::new(
        console,
        JobLine {
            name: spec.name.clone(),
            sites: spec.site_names(),
            rounds: num_rounds,
            start_round,
        },
    );
    let first = first_round(&run, options.resume)?;
    let watch = Watch::new(&logger, progress, Arc::clone(&run), &spec, durations, first);
    let (streams, incoming) = mpsc::channel(64);
    let slots = Slots::new(options.num_workers.max(1), &options.gpus);
    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let attach_dir = run.path().join("attach");
    let mut agents = JoinSet::new();
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
        let parts = AgentParts {
            launch,
            listener: listener.clone(),
            slots: slots.clone(),
            per_task: spec.sites.len() > slots.count(),
            objects: objects.clone(),
            outbox: run.outbox_dir(&site),
            state_dir: run.site_dir(&site).join("state"),
            cwd: cwd.clone(),
            logger: logger.named("firesteel.agent"),
            durations,
            site,
        };
        let (name, log) = (parts.site.clone(), logger.clone());
        agents.spawn(async move {
            match Agent::run(parts, near).await {
                Ok(()) => {}
                // The job ended before it was this site's turn.
                Err(error @ AgentError::Closed) => log.debug(&format!("{name}: {error}")),
                Err(error) => log.for_site(&name).error(&format!(
                    "the agent of {name} ended early: {}",
                    sentence(&error)
                )),
            }
        });
        ends.push(far);
    }
    // The channel is narrow; the server takes streams as it drives the job.
    tokio::spawn(async move {
        for far in ends {
            if streams.send(far).await.is_err() {
                break;
            }
        }
    });
    let seed = match spec.seed {
        Some(seed) => seed,
        None => random_seed(),
    };
    let threads = options.threads.unwrap_or_else(cores);
    let parts = JobParts {
        id,
        spec,
        seed,
        run,
        objects,
        watch,
        durations,
        threads,
    };
    let result = Job::run(parts, options.resume, incoming, abort, status).await;
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

async fn start_supervisor(
    spec: &JobSpec,
    options: &SimOptions,
    logger: &Logger,
    durations: Durations,
) -> Result<Option<Supervisor>, SimError> {
    if spec.trainer.mode == Mode::Attach {
        return Ok(None);
    }
    let workers = options.num_workers.max(1);
    let threads = u32::try_from((cores() / workers).max(1)).unwrap_or(1);
    let mut env = options.env.clone();
    for (name, value) in thread_env(threads) {
        // What the user has set for the libraries holds.
        if std::env::var_os(&name).is_none() {
            env.insert(name, value);
        }
    }
    if spec.seed.is_some() && std::env::var_os("PYTHONHASHSEED").is_none() {
        // The order of sets of strings depends on it.
        env.insert("PYTHONHASHSEED".to_owned(), "0".to_owned());
    }
    let config = SupervisorConfig {
        binary: options.binary.clone(),
        python: (spec.trainer.mode == Mode::Warm).then(|| options.python.clone()),
        preload: spec.trainer.preload.clone(),
        env,
        reuse: options.reuse_processes,
        die_with_agent: true,
        stop_grace: durations.stop_grace,
    };
    let logger = logger.named("firesteel.launch");
    let supervisor = Supervisor::start(config, move |notice| match notice {
        SupervisorNotice::WarmReady { failed, import, .. } => {
            logger.debug(&format!(
                "libraries imported in {:.2} s",
                import.as_secs_f64()
            ));
            for (module, why) in failed {
                logger.debug(&format!("`{module}` could not be imported ahead: {why}"));
            }
        }
        SupervisorNotice::WarmLost { message } => logger.warning(&message),
        SupervisorNotice::WarmOutput(lines) => {
            lines.iter().for_each(|line| logger.info(&line.text));
        }
        _ => {}
    });
    Ok(Some(supervisor.await?))
}

/// Makes the run's directory, or opens the one to go on with.
fn open_run(options: &SimOptions, spec: &JobSpec) -> Result<RunDir, SimError> {
    // Where the initial model came from says nothing about the job, and neither
    // does what is loaded ahead.
    let mut kept = spec.clone();
    kept.trainer.preload.clear();
    if kept.initial_model.is_some() {
        kept.initial_model = Some("models/initial.safetensors".to_owned());
    }
    let text = String::from_utf8_lossy(&kept.to_json()).into_owned();
    Ok(if options.resume {
        RunDir::open_latest(&options.root, &spec.name, &text)?
    } else {
        RunDir::create(&options.root, &spec.name, &text)?
    })
}

/// The first round whose metrics are written.
fn first_round(run: &RunDir, resume: bool) -> Result<Round, SimError> {
    if !resume {
        return Ok(Round(0));
    }
    let latest = run.snapshots()?.load_latest()?;
    Ok(latest.map_or(Round(0), |snapshot| Round(snapshot.round.0 + 1)))
}

/// Whether the disk has room for what the job will add to it.
fn check_disk(options: &SimOptions, spec: &JobSpec) -> Result<(), SimError> {
    let kept = if options.resume {
        kept_models(options, spec)
    } else {
        Vec::new()
    };
    let model_len = spec
        .initial_model
        .as_ref()
        .and_then(|path| std::fs::metadata(path).ok())
        .map(|found| found.len())
        .into_iter()
        .chain(kept.iter().copied())
        .max()
        .unwrap_or(limits::INLINE_OBJECT as u64);
    let plan = DiskPlan {
        model_len,
        sites: spec.sites.len() as u64,
        keep_models: u64::from(spec.keep_models),
        site_state_len: 0,
    };
    let there: u64 = kept.iter().sum();
    Ok(check_free(
        &options.root,
        disk_needed(&plan).saturating_sub(there),
    )?)
}

/// The sizes of the models that the run to be resumed holds, each file once.
fn kept_models(options: &SimOptions, spec: &JobSpec) -> Vec<u64> {
    use std::os::unix::fs::MetadataExt;
    let dir = options.root.join(&spec.name).join("latest/models");
    let mut files = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if let Ok(found) = entry.metadata() {
            files.insert(found.ino(), found.len());
        }
    }
    files.into_values().collect()
}

/// The error and its sources as one sentence.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A seed for a run that is not meant to be repeated.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds its hash maps from the system's generator.
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}
