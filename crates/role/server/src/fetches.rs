//! Updates on their way from the sites.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use firesteel_base::{SiteName, TaskKey};
use firesteel_carry::Progress;
use tokio::task::AbortHandle;

/// Updates on their way, each under the work it answers.
#[derive(Default)]
pub(crate) struct Fetches(HashMap<TaskKey, Fetch>);

struct Fetch {
    /// The number under which the site offers it.
    object: u64,
    started: Instant,
    progress: Arc<Progress>,
    task: AbortHandle,
}

/// What a fetch came to, for logs and records.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Moved {
    /// Bytes of the update.
    pub(crate) bytes: u64,
    /// Bytes of it that crossed the network.
    pub(crate) travelled: u64,
    /// How long it took.
    pub(crate) took: Duration,
}

impl Fetches {
    /// Whether the update is on its way under this number.
    pub(crate) fn has(&self, key: &TaskKey, object: u64) -> bool {
        self.0.get(key).is_some_and(|fetch| fetch.object == object)
    }

    /// It is on its way. One that is on its way under another number ends.
    pub(crate) fn started(
        &mut self,
        key: TaskKey,
        object: u64,
        progress: Arc<Progress>,
        task: AbortHandle,
    ) {
        let fetch = Fetch {
            object,
            started: Instant::now(),
            progress,
            task,
        };
        if let Some(old) = self.0.insert(key, fetch) {
            old.task.abort();
        }
    }

    /// It has ended. `None` when it had been given up, or under another number.
    pub(crate) fn ended(&mut self, key: &TaskKey, object: u64) -> Option<Moved> {
        if !self.has(key, object) {
            return None;
        }
        let fetch = self.0.remove(key)?;
        Some(Moved {
            bytes: fetch.progress.total(),
            travelled: fetch.progress.travelled(),
            took: fetch.started.elapsed(),
        })
    }

    /// Ends it, wherever it is.
    pub(crate) fn give_up(&mut self, key: &TaskKey) {
        if let Some(fetch) = self.0.remove(key) {
            fetch.task.abort();
        }
    }

    /// Ends all of one site.
    pub(crate) fn give_up_site(&mut self, site: &SiteName) {
        self.0.retain(|key, fetch| {
            let keep = &key.site != site;
            if !keep {
                fetch.task.abort();
            }
            keep
        });
    }

    /// Ends all.
    pub(crate) fn give_up_all(&mut self) {
        self.0.drain().for_each(|(_, fetch)| fetch.task.abort());
    }

    /// How far each is: bytes there, and of the whole.
    pub(crate) fn progress(&self) -> impl Iterator<Item = (&TaskKey, u64, u64)> {
        let each = self.0.iter();
        each.map(|(key, fetch)| (key, fetch.progress.done(), fetch.progress.total()))
    }
}

impl Drop for Fetches {
    fn drop(&mut self) {
        self.give_up_all();
    }
}
