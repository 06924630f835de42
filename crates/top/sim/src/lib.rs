//! The whole federation in one process: the real server, agents and workflow,
//! over in-memory streams that carry the real messages.
//!
//! Never: has a shortcut that a deployment lacks. What differs is the wiring:
//! streams are pipes, and models that lie on this machine are not copied.
//!
//! Start at [`Simulation`].

#![forbid(unsafe_code)]

mod outcome;
mod run;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use firesteel_base::Hint;
use firesteel_flow::Status;
use firesteel_wire::options::SimOptions;
use firesteel_wire::spec::{JobSpec, SpecError};
use tokio::sync::watch;

pub use outcome::SimOutcome;
pub use run::SimError;

/// A simulation that was not started, runs, or has ended.
pub struct Simulation {
    plan: Option<run::Plan>,
    shared: Arc<Shared>,
    abort: watch::Sender<Option<String>>,
    status: watch::Receiver<Option<Status>>,
}

/// What the simulation's thread and its owner share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    run_dir: Option<std::path::PathBuf>,
    result: Option<Result<SimOutcome, SimError>>,
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Simulation {
    /// Reads a job and the settings of the machine; starts nothing.
    ///
    /// # Errors
    /// [`SpecError`] with the field that is wrong.
    pub fn new(spec: &[u8], options: &[u8]) -> Result<Self, SpecError> {
        let spec = JobSpec::parse(spec)?;
        let options = SimOptions::parse(options)?;
        let (abort, abort_seen) = watch::channel(None);
        let (status_told, status) = watch::channel(None);
        let shared = Arc::new(Shared::default());
        let plan = run::Plan {
            spec,
            options,
            abort: abort_seen,
            status: status_told,
        };
        Ok(Self {
            plan: Some(plan),
            shared,
            abort,
            status,
        })
    }

    /// Starts it on threads of its own. A second call does nothing.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(&mut self) -> std::io::Result<()> {
        let Some(plan) = self.plan.take() else {
            return Ok(());
        };
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new()
            .name("firesteel-sim".to_owned())
            .spawn(move || {
                let ending = Ending(Arc::clone(&shared));
                let result = run::run(plan, |dir| shared.lock().run_dir = Some(dir));
                shared.lock().result = Some(result);
                drop(ending);
            })?;
        Ok(())
    }

    /// What can be waited on while others use this.
    pub fn waiter(&self) -> Waiter {
        Waiter(Arc::clone(&self.shared))
    }

    /// Ends the job early.
    pub fn abort(&self, reason: &str) {
        self.abort.send_replace(Some(reason.to_owned()));
    }

    /// Where the job stands; `None` before it has begun.
    pub fn status(&self) -> Option<Status> {
        self.status.borrow().clone()
    }

    /// Where the run's files are, once that is known.
    pub fn run_dir(&self) -> Option<std::path::PathBuf> {
        self.shared.lock().run_dir.clone()
    }

    /// How it ended, once; `None` while it runs, and after it was taken.
    pub fn result(&self) -> Option<Result<SimOutcome, SimError>> {
        let mut state = self.shared.lock();
        if state.over {
            state.result.take()
        } else {
            None
        }
    }
}

/// Waits for the end of a simulation.
pub struct Waiter(Arc<Shared>);

impl Waiter {
    /// Waits until it has ended, at most for `limit`; whether it has.
    pub fn wait(&self, limit: Duration) -> bool {
        let started = Instant::now();
        let mut state = self.0.lock();
        while !state.over {
            let left = limit.saturating_sub(started.elapsed());
            if left.is_zero() {
                return false;
            }
            state = self
                .0
                .ended
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        self.abort("the simulation was dropped");
    }
}

/// Tells the owner that the thread has ended, even when it panicked.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.over = true;
        state.result.get_or_insert(Err(SimError::Panicked));
        drop(state);
        self.0.ended.notify_all();
    }
}

impl Hint for SimError {
    fn hint(&self) -> Option<String> {
        self.what_to_do()
    }
}
