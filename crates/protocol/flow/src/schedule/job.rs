//! One job, as the scheduler holds it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use firesteel_base::{JobId, SiteName, Time};

use super::types::{Ending, JobState, Needs, Refusal, SitePart};

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) needs: Needs,
    pub(super) state: JobState,
    /// Its sites in its order, once they are known.
    pub(super) order: Vec<SiteName>,
    pub(super) parts: BTreeMap<SiteName, Part>,
    /// Since when it could go, while it waits for more sites.
    pub(super) possible: Option<Time>,
    /// Why it waits, as last said.
    pub(super) waits: String,
    /// Since when the phase has as many sites as it needs.
    pub(super) enough: Option<Time>,
    /// Whether its workflow runs.
    pub(super) running: bool,
    /// How it will have ended, once everything has stopped.
    pub(super) ending: Option<Ending>,
    /// Until when that is waited for.
    pub(super) stop_by: Option<Time>,
}

/// A job at one site.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) state: SitePart,
    /// How often it was deployed there.
    pub(super) attempts: u32,
    /// When it got to its state, or was last heard of.
    pub(super) since: Time,
    /// It came when the others had started: nothing is decided by it.
    pub(super) late: bool,
    /// When it is told to stop, unless it has ended by itself.
    pub(super) stop_at: Option<Time>,
}

impl Part {
    pub(super) fn of(state: SitePart) -> Self {
        Self {
            state,
            attempts: 0,
            since: Time::ZERO,
            late: false,
            stop_at: None,
        }
    }
}

impl Entry {
    pub(super) fn new(number: u64, needs: Needs) -> Self {
        Self {
            number,
            needs,
            state: JobState::Queued,
            order: Vec::new(),
            parts: BTreeMap::new(),
            possible: None,
            waits: String::new(),
            enough: None,
            running: false,
            ending: None,
            stop_by: None,
        }
    }

    /// Its place in the queue.
    pub(super) fn rank(&self, job: &JobId) -> (Reverse<i64>, u64, JobId) {
        (Reverse(self.needs.priority), self.number, job.clone())
    }

    /// Whether a site that comes now may still take part.
    pub(super) fn takes_more(&self) -> bool {
        matches!(
            self.state,
            JobState::Deploying | JobState::Starting | JobState::Running
        )
    }

    /// The sites that take no part, in the job's order.
    pub(super) fn refused(&self) -> Vec<(SiteName, Refusal)> {
        let refused = |site: &SiteName| match &self.parts.get(site)?.state {
            SitePart::Out(refusal) => Some((site.clone(), refusal.clone())),
            _ => None,
        };
        self.order.iter().filter_map(refused).collect()
    }

    pub(super) fn count(&self, is: impl Fn(&Part) -> bool) -> usize {
        self.parts.values().filter(|part| is(part)).count()
    }

    /// Whether all required sites are in a state that is.
    pub(super) fn required(&self, is: impl Fn(&Part) -> bool) -> bool {
        let required = self.needs.required.iter();
        required
            .map(|site| self.parts.get(site))
            .all(|part| part.is_some_and(&is))
    }

    pub(super) fn least(&self) -> usize {
        self.needs.min_sites.max(1)
    }
}
