//! Supervisors, and with them warm parents, that jobs share: one per interpreter,
//! imports and environment.
//!
//! A warm parent runs no user code, and each trainer is a fork of its own with its
//! own token, by which the supervisor knows what belongs to it. Secrets go to the
//! trainers and not to the parent. What one job does is of no effect on the next.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use firesteel_launch::{Supervisor, SupervisorConfig, SupervisorNotice};
use firesteel_node::parts::sentence;
use firesteel_observe::Logger;

/// How long a warm parent without a job is kept. It holds the memory of its
/// imports; starting another costs a second or several.
const IDLE: Duration = Duration::from_secs(60);

/// Between two looks for those that are over that.
pub(super) const SWEEP: Duration = Duration::from_secs(10);

/// What a warm parent is: jobs that agree in it share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    /// The interpreter; none where trainers are started by commands.
    pub(super) python: Option<PathBuf>,
    pub(super) preload: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
}

/// The supervisors of a site.
pub(super) struct Pool {
    binary: PathBuf,
    stop_grace: Duration,
    logger: Logger,
    all: Mutex<HashMap<Kind, Arc<Shared>>>,
}

/// One of them, for the time that somebody has it.
pub(super) struct Lease {
    supervisor: Supervisor,
    shared: Arc<Shared>,
}

struct Shared {
    /// Held while it is being started.
    supervisor: tokio::sync::Mutex<Option<Supervisor>>,
    users: Mutex<Users>,
}

struct Users {
    count: usize,
    since: Instant,
}

impl Pool {
    pub(super) fn new(binary: PathBuf, stop_grace: Duration, logger: Logger) -> Self {
        Self {
            binary,
            stop_grace,
            logger,
            all: Mutex::default(),
        }
    }

    /// The supervisor of this kind, started if there is none that lives.
    ///
    /// # Errors
    /// A sentence that says why it cannot be started.
    pub(super) async fn lease(&self, kind: Kind) -> Result<Lease, String> {
        let shared = {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            let shared = all.entry(kind.clone()).or_insert_with(|| {
                Arc::new(Shared {
                    supervisor: tokio::sync::Mutex::new(None),
                    users: Mutex::new(Users {
                        count: 0,
                        since: Instant::now(),
                    }),
                })
            });
            // From here on it is not swept.
            shared.enter();
            Arc::clone(shared)
        };
        let leave = Leave(&shared);
        let mut held = shared.supervisor.lock().await;
        if let Some(supervisor) = held.as_ref() {
            let gone = tokio::select! {
                biased;
                () = supervisor.closed() => true,
                () = std::future::ready(()) => false,
            };
            if gone {
                *held = None;
            }
        }
        let supervisor = match held.as_ref() {
            Some(supervisor) => supervisor.clone(),
            None => {
                let started = self.start(kind).await?;
                held.insert(started).clone()
            }
        };
        drop(held);
        std::mem::forget(leave);
        Ok(Lease { supervisor, shared })
    }

    async fn start(&self, kind: Kind) -> Result<Supervisor, String> {
        let config = SupervisorConfig {
            binary: self.binary.clone(),
            python: kind.python,
            preload: kind.preload,
            env: kind.env,
            // Scripts of different jobs share nothing that libraries keep.
            reuse: false,
            die_with_agent: true,
            stop_grace: self.stop_grace,
        };
        let logger = self.logger.clone();
        let started = Supervisor::start(config, move |notice| match notice {
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
        started.await.map_err(|error| sentence(&error))
    }

    /// Ends those that nobody has had for a while; with `all` every one.
    pub(super) async fn sweep(&self, all: bool) {
        let idle: Vec<Arc<Shared>> = {
            let mut map = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            let spent = |shared: &Arc<Shared>| {
                let users = shared.users.lock().unwrap_or_else(PoisonError::into_inner);
                all || users.count == 0 && users.since.elapsed() > IDLE
            };
            let kinds: Vec<Kind> = map
                .iter()
                .filter(|(_, shared)| spent(shared))
                .map(|(kind, _)| kind.clone())
                .collect();
            kinds.iter().filter_map(|kind| map.remove(kind)).collect()
        };
        for shared in idle {
            if let Some(supervisor) = shared.supervisor.lock().await.take() {
                supervisor.shutdown(self.stop_grace).await;
            }
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.len()
    }
}

impl Shared {
    fn enter(&self) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.count += 1;
    }

    fn leave(&self) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.count -= 1;
        users.since = Instant::now();
    }
}

/// Leaves when it is dropped on the way.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Lease {
    pub(super) fn supervisor(&self) -> Supervisor {
        self.supervisor.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.leave();
    }
}
