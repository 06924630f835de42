//! The directory of one run.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use firesteel_base::{Moment, SiteName, limits};
use rustix::fs::FlockOperation;
use serde_json::Value;

use crate::error::{RunError, StoreError};
use crate::files;
use crate::kept::KeptModels;
use crate::objects::Objects;
use crate::site_state::SiteState;
use crate::snapshots::Snapshots;

const LATEST: &str = "latest";
const JOB: &str = "job.json";
const LOCK: &str = "lock";

/// The directory of one run, locked for this process as long as this lives:
/// `<root>/<job name>/<YYYYMMDD-HHMMSS>`.
///
/// Everything below it is its owner's alone (0700).
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    job: String,
    run: String,
    lock: File,
}

/// One run found on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEntry {
    /// The job's name.
    pub job: String,
    /// The run's own name, `YYYYMMDD-HHMMSS`.
    pub run: String,
    /// Its directory.
    pub path: PathBuf,
    /// Whether a process works on it.
    pub live: bool,
    /// What its summary says of how it ended; `None` when it has none.
    pub status: Option<String>,
}

impl RunDir {
    /// Makes the directory of a new run and points `latest` at it. `spec_json`
    /// is kept as given.
    ///
    /// # Errors
    /// [`RunError`] when the name or the spec is no good or the system refuses.
    pub fn create(root: &Path, job: &str, spec_json: &str) -> Result<Self, RunError> {
        // A run's name is the time it was made, which only `io` may read.
        Self::create_at(root, job, spec_json, SystemTime::now())
    }

    fn create_at(
        root: &Path,
        job: &str,
        spec_json: &str,
        now: SystemTime,
    ) -> Result<Self, RunError> {
        let jobs = job_dir(root, job)?;
        parse_spec(spec_json).ok_or(RunError::Spec)?;
        files::create_dir(&jobs)?;
        let (run, path) = unique_dir(&jobs, &Moment::of(now).stamp())?;
        let lock = take_lock(&path)?;
        let made = Self {
            path,
            job: job.to_owned(),
            run,
            lock,
        };
        files::write_aside(&made.path.join(JOB), spec_json.as_bytes(), 0o600)?;
        for dir in ["models", "metrics", "sites", "objects", "state"] {
            files::create_dir(&made.path.join(dir))?;
        }
        point_latest(&jobs, &made.run)?;
        Ok(made)
    }

    /// Opens the job's latest run to go on with it.
    ///
    /// # Errors
    /// [`RunError::NoRun`] when there is none, [`RunError::Busy`] when a process
    /// works on it, [`RunError::SpecChanged`] when the job is not the same.
    pub fn open_latest(root: &Path, job: &str, spec_json: &str) -> Result<Self, RunError> {
        let jobs = job_dir(root, job)?;
        let given = parse_spec(spec_json).ok_or(RunError::Spec)?;
        let none = || RunError::NoRun {
            name: job.to_owned(),
            root: root.to_owned(),
        };
        let run = latest(&jobs).ok_or_else(none)?;
        let path = jobs.join(&run);
        if !path.is_dir() {
            return Err(none());
        }
        let lock = take_lock(&path)?;
        let file = path.join(JOB);
        let text = std::fs::read_to_string(&file)
            .map_err(|source| StoreError::new("read", &file, source))?;
        let kept = parse_spec(&text).ok_or(RunError::SpecDamaged { path: file })?;
        let fields = changed_fields(&kept, &given);
        if !fields.is_empty() {
            return Err(RunError::SpecChanged {
                name: job.to_owned(),
                path,
                fields,
            });
        }
        Ok(Self {
            path,
            job: job.to_owned(),
            run,
            lock,
        })
    }

    /// The runs below `root`, by job and time.
    ///
    /// # Errors
    /// [`StoreError`] when a directory cannot be read; that `root` is not there
    /// means no runs.
    pub fn list(root: &Path) -> Result<Vec<RunEntry>, StoreError> {
        let mut found = Vec::new();
        for job in subdirectories(root)? {
            if job_dir(root, &job).is_err() {
                continue;
            }
            for run in subdirectories(&root.join(&job))? {
                let path = root.join(&job).join(&run);
                if path.join(JOB).exists() {
                    found.push(RunEntry {
                        live: is_locked(&path),
                        status: status(&path),
                        job: job.clone(),
                        run,
                        path,
                    });
                }
            }
        }
        found.sort_by(|a, b| (&a.job, run_order(&a.run)).cmp(&(&b.job, run_order(&b.run))));
        Ok(found)
    }

    /// The run's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The job's name.
    pub fn job(&self) -> &str {
        &self.job
    }

    /// The run's own name, `YYYYMMDD-HHMMSS`.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// The models in flight; to be called once per process that uses the run.
    ///
    /// # Errors
    /// [`StoreError`] when its directory cannot be made or emptied.
    pub fn objects(&self) -> Result<Objects, StoreError> {
        Objects::open(&self.path.join("objects"))
    }

    /// The kept models, of which the last `keep`.
    ///
    /// # Errors
    /// [`StoreError`] when its directory cannot be made or read.
    pub fn kept_models(&self, keep: usize) -> Result<KeptModels, StoreError> {
        KeptModels::open(&self.models_dir(), keep)
    }

    /// The snapshots.
    ///
    /// # Errors
    /// [`StoreError`] when its directory cannot be made.
    pub fn snapshots(&self) -> Result<Snapshots, StoreError> {
        Snapshots::open(&self.path.join("state"))
    }

    /// What a site keeps for itself.
    ///
    /// # Errors
    /// [`StoreError`] when its directory cannot be made.
    pub fn site_state(&self, site: &SiteName) -> Result<SiteState, StoreError> {
        SiteState::open(&self.site_dir(site).join("state"))
    }

    /// `models/`.
    pub fn models_dir(&self) -> PathBuf {
        self.path.join("models")
    }

    /// `metrics/`.
    pub fn metrics_dir(&self) -> PathBuf {
        self.path.join("metrics")
    }

    /// `sites/<site>/`; not created here.
    pub fn site_dir(&self, site: &SiteName) -> PathBuf {
        // A `SiteName` is one plain component by construction.
        self.path.join("sites").join(site.as_str())
    }

    /// `sites/<site>/outbox/`; not created here.
    pub fn outbox_dir(&self, site: &SiteName) -> PathBuf {
        self.site_dir(site).join("outbox")
    }

    /// `tb_events/<site>/`; not created here.
    pub fn events_dir(&self, site: &SiteName) -> PathBuf {
        self.path.join("tb_events").join(site.as_str())
    }
}

impl Drop for RunDir {
    /// Unlocks at once: a process that the user forked may hold a copy of the
    /// descriptor for longer.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

/// `<root>/<job>`, for names that are one plain component.
fn job_dir(root: &Path, job: &str) -> Result<PathBuf, RunError> {
    // Site names follow the very rules that make a name safe in a path.
    if SiteName::new(job).is_err() {
        return Err(RunError::Name {
            name: job.chars().take(limits::NAME_LENGTH).collect(),
        });
    }
    Ok(root.join(job))
}

fn parse_spec(text: &str) -> Option<serde_json::Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Some(map),
        _ => None,
    }
}

/// Top-level fields that differ; a field that is absent and one that is null
/// are the same.
fn changed_fields(
    kept: &serde_json::Map<String, Value>,
    given: &serde_json::Map<String, Value>,
) -> Vec<String> {
    let field = |map: &serde_json::Map<String, Value>, key: &str| {
        map.get(key).cloned().unwrap_or(Value::Null)
    };
    let mut keys: Vec<&String> = kept.keys().chain(given.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        .filter(|key| field(kept, key) != field(given, key))
        .cloned()
        .collect()
}

/// Makes `<stamp>`, or `<stamp>-2` and so on when that second has a run already.
fn unique_dir(jobs: &Path, stamp: &str) -> Result<(String, PathBuf), StoreError> {
    let mut number = 1u32;
    loop {
        let run = match number {
            1 => stamp.to_owned(),
            _ => format!("{stamp}-{number}"),
        };
        let path = jobs.join(&run);
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok((run, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(source) => return Err(StoreError::new("create the directory", &path, source)),
        }
    }
}

fn point_latest(jobs: &Path, run: &str) -> Result<(), StoreError> {
    let link = jobs.join(LATEST);
    // Named after the run, so that two that start at once do not meet here.
    let aside = jobs.join(format!(".{LATEST}-{run}"));
    files::remove_if_there(&aside)?;
    std::os::unix::fs::symlink(run, &aside)
        .and_then(|()| std::fs::rename(&aside, &link))
        .map_err(|source| StoreError::new("point", &link, source))
}

/// The run that `latest` points at; where the link was lost (a copied
/// directory, say), the newest one.
fn latest(jobs: &Path) -> Option<String> {
    let target = std::fs::read_link(jobs.join(LATEST)).ok();
    let linked = target
        .as_deref()
        .and_then(Path::to_str)
        .filter(|run| SiteName::new(run).is_ok())
        .map(str::to_owned);
    linked.or_else(|| {
        let runs = subdirectories(jobs).ok()?;
        runs.into_iter()
            .filter(|run| jobs.join(run).join(JOB).exists())
            .max_by_key(|run| run_order(run))
    })
}

/// `20261122-120000-10` comes after `20261122-120000-9`.
fn run_order(run: &str) -> (String, u32) {
    let mut parts = run.splitn(3, '-');
    let date = parts.next().unwrap_or_default();
    let time = parts.next().unwrap_or_default();
    let number = parts.next().and_then(|n| n.parse().ok()).unwrap_or(1);
    (format!("{date}-{time}"), number)
}

fn take_lock(run: &Path) -> Result<File, RunError> {
    let path = run.join(LOCK);
    let failed = |source: io::Error| StoreError::new("lock", &path, source);
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let _ = lock.take(32).read_to_string(&mut text);
            return Err(RunError::Busy {
                path: run.to_owned(),
                pid: text.trim().parse().ok(),
            });
        }
        Err(errno) => return Err(failed(errno.into()).into()),
    }
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(lock)
}

fn is_locked(run: &Path) -> bool {
    File::open(run.join(LOCK)).is_ok_and(|lock| {
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared)
            == Err(rustix::io::Errno::WOULDBLOCK)
    })
}

fn status(run: &Path) -> Option<String> {
    let text = std::fs::read(run.join("metrics").join("summary.json")).ok()?;
    let summary: Value = serde_json::from_slice(&text).ok()?;
    Some(summary.get("status")?.as_str()?.to_owned())
}

fn subdirectories(dir: &Path) -> Result<Vec<String>, StoreError> {
    let failed = |source| StoreError::new("list", dir, source);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // A link (`latest`) is not a directory here.
        if entry.file_type().map_err(failed)?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            found.push(name);
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests;
