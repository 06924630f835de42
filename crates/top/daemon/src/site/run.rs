//! The agent of one job, with everything around it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use firesteel_agent::{Agent, AgentParts, Launch, Launcher, Launching, Local, Slots};
use firesteel_base::JobId;
use firesteel_bridge::stream::Exchange;
use firesteel_carry::{Connection, Depot, Dial, Dialing, Remote, Way};
use firesteel_launch::thread_env;
use firesteel_net::Session;
use firesteel_node::parts::{cores, random, sentence};
use firesteel_observe::{FilesConfig, LogConfig, Logs};
use firesteel_store::Objects;
use firesteel_wire::spec::{JobSpec, Mode};
use tokio::sync::{Mutex, watch};

use super::desk::Desk;
use super::dial;
use super::link;
use super::needs::Ready;
use super::place::JobPlace;
use super::resources::Allotment;
use super::warm::{Kind, Lease};

/// What runs a job.
pub(super) struct Running {
    pub(super) desk: Desk,
    pub(super) job: JobId,
    pub(super) place: JobPlace,
    /// Becomes a reason when the job is to end here.
    pub(super) stop: watch::Receiver<Option<String>>,
    /// Turns true when there may be processes of the job.
    pub(super) launched: Arc<AtomicBool>,
}

/// Acts for the site in one job until that ends. When this returns, or is dropped,
/// no trainer of it is left.
///
/// # Errors
/// What went wrong at the site, in a sentence.
pub(super) async fn act(
    running: Running,
    ready: Ready,
    allotment: &Allotment,
) -> Result<(), String> {
    let desk = running.desk.clone();
    let own = running.place.own();
    let failed = |doing: &str, error: &dyn std::error::Error| {
        format!("the site could not {doing}: {}", sentence(error))
    };
    let logs = logs(&desk, &running.place);
    desk.keep_logs(&running.job, &logs);
    let logger = logs
        .logger("firesteel.agent")
        .for_job(running.job.as_str())
        .for_site(&desk.site);
    logger.info(&format!(
        "site {} takes part in job {} ({}) of {}",
        desk.site, running.job, ready.spec.name, ready.submitter.0
    ));
    let env = match &ready.environment {
        Some(chosen) => chosen.variables().map_err(|unusable| unusable.reason)?,
        None => BTreeMap::new(),
    };
    let objects = Objects::open(&own.join("objects"))
        .map_err(|error| failed("make the folder of its models", &error))?;
    let durations = desk.durations;
    let told = logger.clone();
    let depot = Depot::warning(objects.clone(), None, durations, move |text| {
        told.warning(text);
    });
    let exchange = Exchange::new();
    let remote = Remote::new(&depot, "the server").offering(&exchange);
    let slots = Slots::new(1, &allotment.visible().into_iter().collect::<Vec<_>>());
    let received = objects.clone();
    let launcher = Arc::new(JobLauncher {
        attach: own.join("attach.json"),
        kind: kind(&desk, &ready, allotment),
        signed: ready.spec.rooted(&ready.code.to_string_lossy()),
        desk: desk.clone(),
        launched: Arc::clone(&running.launched),
        lease: Mutex::default(),
    });
    let python = ready
        .environment
        .as_ref()
        .map(|chosen| chosen.environment.python.clone());
    let parts = AgentParts {
        launch: Launch::Later(Arc::clone(&launcher) as Arc<dyn Launcher>),
        listener: desk.listener.clone(),
        slots,
        per_task: false,
        objects,
        streams: Some(exchange.desk_with(desk.site.as_str(), remote.elsewhere())),
        filters: desk.config.filters.clone(),
        carrier: Arc::new(remote),
        instance: random(),
        kept: Some(own.join("kept")),
        stop: Some(running.stop.clone()),
        outbox: own.join("outbox"),
        state_dir: own.join("state"),
        cwd: ready.code.clone(),
        local: Local {
            data: Some(ready.data),
            env,
            code: Some(ready.code),
            python,
        },
        logger: logger.clone(),
        durations,
        site: desk.site.clone(),
    };
    let dial = JobDial {
        sessions: desk.session.subscribe(),
        job: running.job.clone(),
        hierarchy: launcher.signed.hierarchy,
        desk: desk.clone(),
        last: None,
    };
    let acting = Agent::run(parts, Box::new(dial));
    let mut site_stop = desk.stop.clone();
    let keeping = async move {
        link::stopped(&mut site_stop).await;
        // When it comes back in the same round, its model is here. Nobody is told
        // that the site leaves: it is away, for less than its lease as a rule.
        received.keep_received();
    };
    let result = tokio::select! {
        result = acting => result,
        () = keeping => Ok(()),
    };
    match &result {
        Ok(()) if desk.stop.borrow().is_some() => logger.info("the site's process ends"),
        Ok(()) => logger.info("the job has ended here"),
        Err(error) => logger.error(&sentence(error)),
    }
    result.map_err(|error| sentence(&error))
}

/// The job's own logs, at the level that the site's have now.
fn logs(desk: &Desk, place: &JobPlace) -> Logs {
    let site = desk.logs.config();
    let config = LogConfig {
        console: site.console,
        levels: site.levels.clone(),
        files: FilesConfig {
            sites: false,
            ..site.files
        },
    };
    Logs::open(&place.work(), config, desk.console.clone())
}

/// What its warm parent is like.
fn kind(desk: &Desk, ready: &Ready, allotment: &Allotment) -> Kind {
    let trainer = &ready.spec.trainer;
    let jobs = desk.config.max_jobs.max(1) as usize;
    let threads = match allotment.cpus() {
        0 => u32::try_from((cores() / jobs).max(1)).unwrap_or(1),
        cpus => cpus,
    };
    let mut env: BTreeMap<String, String> = thread_env(threads).into_iter().collect();
    if ready.spec.seed.is_some() {
        // The order of sets of strings depends on it.
        env.insert("PYTHONHASHSEED".to_owned(), "0".to_owned());
    }
    let chosen = ready.environment.as_ref();
    if let Some(chosen) = chosen {
        // What the owner has set for the libraries holds.
        env.extend(chosen.environment.variables.clone());
    }
    let warm = trainer.mode == Mode::Warm;
    let mut preload = if warm {
        trainer.preload.clone()
    } else {
        Vec::new()
    };
    preload.sort_unstable();
    preload.dedup();
    Kind {
        python: chosen
            .filter(|_| warm)
            .map(|chosen| chosen.environment.python.clone()),
        preload,
        env,
    }
}

/// Has the job's trainers come from a supervisor that jobs share.
struct JobLauncher {
    desk: Desk,
    kind: Kind,
    attach: PathBuf,
    /// The job as its submitter signed it.
    signed: JobSpec,
    launched: Arc<AtomicBool>,
    lease: Mutex<Option<Lease>>,
}

impl Launcher for JobLauncher {
    fn launch<'a>(&'a self, spec: &'a JobSpec) -> Launching<'a> {
        Box::pin(async move {
            self.agrees(spec)?;
            self.launched.store(true, Ordering::Relaxed);
            if spec.trainer.mode == Mode::Attach {
                return Ok(Launch::Attached(self.attach.clone()));
            }
            let lease = self.desk.pool.lease(self.kind.clone()).await?;
            let supervisor = lease.supervisor();
            *self.lease.lock().await = Some(lease);
            Ok(Launch::Supervised(supervisor))
        })
    }
}

impl JobLauncher {
    /// Whether the server asks for what the submitter signed: it decides which sites
    /// take part, and not what runs at them.
    fn agrees(&self, spec: &JobSpec) -> Result<(), String> {
        let signed = &self.signed;
        let differs = [
            ("trainer", spec.trainer != signed.trainer),
            ("site", spec.site != signed.site),
            ("data", spec.data != signed.data),
            ("filters", spec.filters != signed.filters),
        ];
        match differs.iter().find(|(_, differs)| *differs) {
            Some((field, _)) => Err(format!(
                "the server's job differs in `{field}` from the one that was signed"
            )),
            None => Ok(()),
        }
    }
}

/// Dials the server in the job's scope of the site's session.
struct JobDial {
    desk: Desk,
    sessions: watch::Receiver<Option<Session>>,
    job: JobId,
    hierarchy: firesteel_wire::spec::Hierarchy,
    /// The scope of the connection before this one.
    last: Option<Session>,
}

impl Dial for JobDial {
    fn dial(&mut self) -> Dialing<'_> {
        Box::pin(async move {
            if let Some(last) = self.last.take() {
                last.close("the job's agent connects anew").await;
            }
            let there = self.sessions.wait_for(Option::is_some).await;
            let Some(session) = there.ok().and_then(|session| session.clone()) else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            let scope =
                dial::scope(&self.desk, &session, self.job.as_str(), self.hierarchy).await?;
            let control = scope.open_control().await.map_err(io::Error::other)?;
            self.last = Some(scope.clone());
            Ok(Connection {
                control,
                way: Way::Session(scope),
            })
        })
    }
}
