//! A server process that drives one job and ends with it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use firesteel_base::{Durations, JobId, SiteName, limits};
use firesteel_carry::{Carrier, Connection, Depot, Relay, Remote};
use firesteel_net::{Identity, IdentityFiles, Listener, Options};
use firesteel_observe::{Console, ConsoleStyle, LogConfig, Logger, Logs};
use firesteel_server::{Job, JobParts, JobReport, Watch};
use firesteel_store::{
    DiskUse, InMemory, ServerDisk, Spool, SpoolBudget, Updates, check_disks, server_disk_need,
};
use firesteel_wire::spec::{JobSpec, Method};
use tokio::sync::{mpsc, watch};

use crate::NodeError;
use crate::connect;
use crate::parts::{self, cores, random};

/// Connections that wait for the job to take them.
const BACKLOG: usize = 64;

/// How a server process is run.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The job.
    pub spec: JobSpec,
    /// Where runs are kept.
    pub root: PathBuf,
    /// Where sites connect; port 0 for any that is free.
    pub listen: SocketAddr,
    /// Who it is.
    pub identity: IdentityFiles,
    /// Go on with the job's latest run.
    pub resume: bool,
    /// Bytes of updates that may lie on the disk.
    pub spool: SpoolBudget,
    /// What becomes of a spool that lies in memory.
    pub in_memory: InMemory,
    /// How connections are used.
    pub net: Options,
    /// What the console shows: a mode, a level or a file.
    pub log: Option<String>,
    /// How it shows it.
    pub console: ConsoleStyle,
    /// How long things may take.
    pub durations: Durations,
    /// Threads that sum.
    pub threads: Option<usize>,
}

/// Drives the job to its end. `listening` is told where, once sites can connect;
/// `abort` becomes a reason when the job is to be ended.
///
/// # Errors
/// [`NodeError`] when it cannot be driven at all.
pub async fn serve(
    options: ServerOptions,
    listening: impl FnOnce(SocketAddr),
    abort: watch::Receiver<Option<String>>,
) -> Result<JobReport, NodeError> {
    let ServerOptions { spec, root, .. } = &options;
    check_disk(&options)?;
    let run = Arc::new(parts::open_run(root, spec, options.resume)?);
    let config = LogConfig::resolve(Some(root), options.log.as_deref(), |name| {
        std::env::var(name).ok()
    })?;
    let console = Console::stderr(options.console);
    let logs = Logs::open(run.path(), config, console.clone());
    let logger = logs.logger("firesteel.server").for_job(&spec.name);
    let drain = options.durations.drain;
    let result = drive(options, run, &logger, console.clone(), listening, abort).await;
    if let Err(error) = &result {
        logger.error(&parts::sentence(error));
    }
    console.flush(drain);
    result
}

async fn drive(
    options: ServerOptions,
    run: Arc<firesteel_store::RunDir>,
    logger: &Logger,
    console: Console,
    listening: impl FnOnce(SocketAddr),
    abort: watch::Receiver<Option<String>>,
) -> Result<JobReport, NodeError> {
    let ServerOptions {
        spec, durations, ..
    } = options;
    let id = JobId::new(&spec.name)?;
    let objects = run.objects()?;
    let spool = Spool::open(&objects, options.spool, options.in_memory)?;
    let told = logger.clone();
    let depot = Depot::warning(
        objects.clone(),
        Some(spool.clone()),
        durations,
        move |text| told.warning(text),
    );
    let identity = Identity::from_files(&options.identity)?;
    let listener = Listener::bind(options.listen, identity, options.net).await?;
    let address = listener.local_address();
    logger.info(&format!(
        "job {} with {} sites at {address} in {}",
        spec.name,
        spec.sites.len(),
        run.path().display()
    ));
    let progress = parts::progress(console, &spec);
    let first = parts::first_round(&run, options.resume)?;
    let told = Watch::new(logger, progress, Arc::clone(&run), &spec, durations, first);
    let (connections, incoming) = mpsc::channel::<Connection>(BACKLOG);
    let accepting = tokio::spawn(connect::accept(listener, connections, logger.clone()));
    let (status, _) = watch::channel(None);
    let relay = Relay::default();
    let parts = JobParts {
        id,
        epoch: random(),
        seed: spec.seed.unwrap_or_else(random),
        spec,
        run,
        objects,
        spool: Some(spool),
        carriers: Box::new(move |site: &SiteName| {
            let remote = Remote::new(&depot, site.as_str()).relayed(&relay);
            let carrier: Arc<dyn Carrier> = Arc::new(remote);
            carrier
        }),
        watch: told,
        durations,
        threads: options.threads.unwrap_or_else(cores),
    };
    listening(address);
    let report = Job::run(parts, options.resume, incoming, abort, status).await;
    accepting.abort();
    Ok(report?)
}

/// Whether the disk has room for what the job will add to it here. What its sites
/// need is theirs to check.
fn check_disk(options: &ServerOptions) -> Result<(), NodeError> {
    let ServerOptions { spec, root, .. } = options;
    let model_len =
        parts::model_len(root, spec, options.resume).unwrap_or(limits::INLINE_OBJECT as u64);
    let updates = match spec.aggregation.method {
        Method::Mean => Updates::Elastic {
            budget: match options.spool {
                SpoolBudget::HalfOfFree => None,
                SpoolBudget::Bytes(bytes) => Some(bytes),
            },
        },
        _ => Updates::AllSpooled,
    };
    let need = server_disk_need(&ServerDisk {
        model_len,
        update_len: model_len,
        sites: spec.sites.len() as u64,
        keep_models: u64::from(spec.keep_models),
        updates,
    });
    let there: u64 = if options.resume {
        parts::kept_models(root, spec).iter().sum()
    } else {
        0
    };
    Ok(check_disks(&[DiskUse {
        dir: root,
        what: "the server's run directory",
        needed: need.required.saturating_sub(there),
    }])?)
}
