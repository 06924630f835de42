//! What a server process, a site process and a simulation have in common.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use firesteel_base::{Round, limits};
use firesteel_launch::{LaunchError, Supervisor, SupervisorConfig, SupervisorNotice, thread_env};
use firesteel_observe::{Console, JobLine, Logger, Progress};
use firesteel_store::{
    DiskPlan, RunDir, RunError, SpaceError, StoreError, check_free, disk_needed,
};
use firesteel_wire::spec::{Algorithm, JobSpec, Mode};

/// Makes the directory of a job's run below `root`, or opens the one to go on with.
///
/// # Errors
/// [`RunError`].
pub fn open_run(root: &Path, spec: &JobSpec, resume: bool) -> Result<RunDir, RunError> {
    // Where the initial model came from says nothing about the job, and neither
    // does what is loaded ahead.
    let mut kept = spec.clone();
    kept.trainer.preload.clear();
    if kept.initial_model.is_some() {
        kept.initial_model = Some("models/initial.safetensors".to_owned());
    }
    let text = String::from_utf8_lossy(&kept.to_json()).into_owned();
    if resume {
        RunDir::open_latest(root, &spec.name, &text)
    } else {
        RunDir::create(root, &spec.name, &text)
    }
}

/// The first round whose metrics are written.
///
/// # Errors
/// [`StoreError`] when the snapshots cannot be read.
pub fn first_round(run: &RunDir, resume: bool) -> Result<Round, StoreError> {
    if !resume {
        return Ok(Round(0));
    }
    let latest = run.snapshots()?.load_latest()?;
    Ok(latest.map_or(Round(0), |snapshot| Round(snapshot.round.0 + 1)))
}

/// Bytes of the job's model, as far as it is known before it starts.
pub fn model_len(root: &Path, spec: &JobSpec, resume: bool) -> Option<u64> {
    let kept = if resume {
        kept_models(root, spec)
    } else {
        Vec::new()
    };
    spec.initial_model
        .as_ref()
        .and_then(|path| std::fs::metadata(path).ok())
        .map(|found| found.len())
        .into_iter()
        .chain(kept)
        .max()
}

/// Whether the disk has room for what a job with all its sites on this machine
/// will add to it.
///
/// # Errors
/// [`SpaceError`] with what is missing.
pub fn check_disk(root: &Path, spec: &JobSpec, resume: bool) -> Result<(), SpaceError> {
    let kept: u64 = if resume {
        kept_models(root, spec).iter().sum()
    } else {
        0
    };
    let plan = DiskPlan {
        model_len: model_len(root, spec, resume).unwrap_or(limits::INLINE_OBJECT as u64),
        sites: spec.sites.len() as u64,
        keep_models: u64::from(spec.keep_models),
        site_state_len: 0,
    };
    check_free(root, disk_needed(&plan).saturating_sub(kept))
}

/// The sizes of the models that the run to be resumed holds, each file once.
pub(crate) fn kept_models(root: &Path, spec: &JobSpec) -> Vec<u64> {
    use std::os::unix::fs::MetadataExt;
    let dir = root.join(&spec.name).join("latest/models");
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if let Ok(found) = entry.metadata() {
            files.insert(found.ino(), found.len());
        }
    }
    files.into_values().collect()
}

/// The progress of a job, on this console.
pub fn progress(console: Console, spec: &JobSpec) -> Progress {
    let Algorithm::Fedavg {
        num_rounds,
        start_round,
    } = spec.algorithm;
    let job = JobLine {
        name: spec.name.clone(),
        sites: spec.site_names(),
        rounds: num_rounds,
        start_round,
    };
    Progress::new(console, job)
}

/// How the trainers of a process come about.
#[derive(Debug, Clone)]
pub struct Trainers {
    /// The `firesteel` binary.
    pub binary: PathBuf,
    /// The interpreter that they run in.
    pub python: PathBuf,
    /// How many may live at once.
    pub workers: usize,
    /// Additions to their environment.
    pub env: BTreeMap<String, String>,
    /// Between asking one to end and ending it.
    pub stop_grace: Duration,
    /// Whether a forked trainer serves several sites one after the other.
    pub reuse: bool,
}

impl Trainers {
    /// Starts their supervisor; none when a person runs them.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub async fn supervisor(
        &self,
        spec: &JobSpec,
        logger: &Logger,
    ) -> Result<Option<Supervisor>, LaunchError> {
        if matches!(spec.trainer.mode, Mode::Attach | Mode::Noop) {
            return Ok(None);
        }
        let threads = u32::try_from((cores() / self.workers.max(1)).max(1)).unwrap_or(1);
        let mut env = self.env.clone();
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
            binary: self.binary.clone(),
            python: (spec.trainer.mode == Mode::Warm).then(|| self.python.clone()),
            preload: spec.trainer.preload.clone(),
            env,
            reuse: self.reuse,
            die_with_agent: true,
            stop_grace: self.stop_grace,
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
}

/// The error and its sources as one sentence.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Cores of this machine that may be used.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A number that nobody can foresee: the seed of a run that is not meant to be
/// repeated, the epoch of a lease, the number of an agent.
pub fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds its hash maps from the system's generator.
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
        .max(1)
}
