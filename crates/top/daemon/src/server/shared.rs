//! What the parts of the server share.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use firesteel_api::{SiteInfo, SiteState, Stamp};
use firesteel_base::{Durations, JobId, SiteName};
use firesteel_flow::schedule::SiteUse;
use firesteel_jobs::Jobs;
use firesteel_net::{BoxStream, Session};
use firesteel_observe::{Console, LogConfig, Logger, Logs};
use firesteel_pki::Authority;
use firesteel_policy::Policy;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::core::Input;
use super::facts;
use super::record::Record;

pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) project: String,
    pub(crate) authority: Authority,
    pub(crate) policy: Policy,
    pub(crate) jobs: Jobs,
    pub(crate) workspace: std::path::PathBuf,
    pub(crate) durations: Durations,
    pub(crate) max_jobs: usize,
    pub(crate) max_sites: usize,
    pub(crate) accept_logs: bool,
    pub(crate) threads: usize,
    /// A number that this process drew.
    pub(crate) instance: u64,
    pub(crate) started: SystemTime,
    pub(crate) logger: Logger,
    pub(crate) console: Console,
    pub(crate) inbox: mpsc::Sender<Input>,
    pub(crate) changes: watch::Sender<u64>,
    /// Jobs about which something is still to be done.
    pub(crate) records: RwLock<HashMap<JobId, Record>>,
    pub(crate) sites: RwLock<BTreeMap<String, SiteEntry>>,
    /// The logs of jobs that run here.
    pub(crate) logs: Mutex<HashMap<JobId, Logs>>,
    pub(crate) sessions: AtomicU64,
    /// Takes a connection that came through a relay.
    pub(crate) tunnels: OnceLock<TakeStream>,
}

/// Takes a byte stream as a connection that has just come from there.
pub(crate) type TakeStream = Box<dyn Fn(BoxStream, SocketAddr) + Send + Sync>;

/// A site that has been here since the server started.
pub(crate) struct SiteEntry {
    organization: String,
    session: Option<Session>,
    address: String,
    connected: SystemTime,
    left: Option<SystemTime>,
    facts: Value,
    pub(crate) taken: Option<SiteUse>,
}

impl Shared {
    /// How what happens here is logged, now.
    pub(crate) fn log_config(&self) -> Arc<LogConfig> {
        self.logger.logs().config()
    }

    pub(crate) fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The logs of a job that runs here, so that they can be told to say more.
    pub(crate) fn job_logs(&self, job: &JobId, logs: &Logs) {
        lock(&self.logs).insert(job.clone(), logs.clone());
    }

    pub(crate) fn end_job_logs(&self, job: &JobId) {
        lock(&self.logs).remove(job);
    }

    pub(crate) fn site_here(&self, site: &SiteName, session: &Session, facts: Value) {
        let entry = SiteEntry {
            organization: session.peer().organization.clone().unwrap_or_default(),
            address: session.address().to_string(),
            session: Some(session.clone()),
            connected: SystemTime::now(),
            left: None,
            facts,
            taken: None,
        };
        lock_write(&self.sites).insert(site.to_string(), entry);
    }

    pub(crate) fn site_gone(&self, site: &SiteName) {
        if let Some(entry) = lock_write(&self.sites).get_mut(site.as_str()) {
            entry.session = None;
            entry.left = Some(SystemTime::now());
        }
    }

    pub(crate) fn site_facts(&self, site: &SiteName, facts: Value) {
        if let Some(entry) = lock_write(&self.sites).get_mut(site.as_str()) {
            entry.facts = facts;
        }
    }

    /// The sites that are connected.
    pub(crate) fn connected(&self) -> usize {
        let sites = lock_read(&self.sites);
        sites.values().filter(|site| site.session.is_some()).count()
    }
}

impl SiteEntry {
    pub(crate) fn shown(&self, name: &str, lease: Duration) -> SiteInfo {
        let now = SystemTime::now();
        let heard = self.left.unwrap_or(now);
        let state = match (&self.session, self.left) {
            (Some(_), _) => SiteState::Connected,
            (None, Some(left)) if now.duration_since(left).is_ok_and(|gone| gone > lease) => {
                SiteState::Gone
            }
            (None, _) => SiteState::Away,
        };
        let text = |path: &str| {
            let found = self.facts.pointer(path).and_then(Value::as_str);
            found.map(str::to_owned)
        };
        let round_trip = self.session.as_ref().and_then(Session::round_trip);
        let jobs = self.taken.iter().flat_map(|taken| &taken.jobs);
        SiteInfo {
            name: name.to_owned(),
            org: self.organization.clone(),
            state,
            connected_since: self.session.is_some().then(|| Stamp::of(self.connected)),
            last_heard: Some(Stamp::of(heard)),
            address: Some(self.address.clone()),
            relay: text("/relay"),
            version: text("/versions/firesteel").unwrap_or_default(),
            round_trip_ms: round_trip.map(|took| took.as_secs_f64() * 1e3),
            jobs: jobs.map(|(job, _)| job.to_string()).collect(),
            resources: self.taken.as_ref().map(facts::shown).unwrap_or_default(),
            facts: self.facts.clone(),
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn lock_read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn lock_write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
