//! Which job runs where and when: jobs and sites come and go, the time goes in,
//! and what is to be done comes out.
//!
//! A job waits in the queue until enough of its sites are there with room; takes
//! its part of them; is deployed, started, run, and stopped. At each of these
//! phases it is decided anew whether there are enough sites, and the required
//! ones. A site is missed only after it has once reported the job; one that never
//! answered is left out by name. What a site has given away is free again when it
//! says that it has nothing of the job any more, and not before.
//!
//! Start at [`Scheduler`]; [`ScheduleEvent`] and [`ScheduleAction`] say what goes
//! in and out. The rules in MUST and SHOULD are in `docs/specs/daemon.md`.

mod ends;
mod job;
mod phases;
mod resources;
mod types;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use firesteel_base::{JobId, SiteName, Time};

pub use resources::{Capacity, Resources};
pub use types::{
    Ending, How, InHand, JobPhase, JobState, Needs, Refusal, RunResult, ScheduleAction,
    ScheduleEvent, ScheduleSettings, SitePart,
};

use job::{Entry, Part};

/// Decides which job runs where and when.
#[derive(Debug, Clone)]
pub struct Scheduler {
    settings: ScheduleSettings,
    now: Time,
    jobs: BTreeMap<JobId, Entry>,
    /// Jobs that wait for their turn, first come first.
    queue: BTreeSet<(Reverse<i64>, u64, JobId)>,
    /// Jobs between their deploy and their end, in the order of the queue.
    active: BTreeSet<(Reverse<i64>, u64, JobId)>,
    sites: BTreeMap<SiteName, Node>,
    /// Jobs that came to a good end and that sites are still leaving.
    leaving: BTreeSet<JobId>,
    /// Whether something may go now that could not go before.
    dirty: bool,
}

/// A site, as far as jobs go.
#[derive(Debug, Clone, Default)]
struct Node {
    here: bool,
    capacity: Capacity,
    /// What each job has taken here.
    held: BTreeMap<JobId, Resources>,
    /// The sum of it.
    used: Resources,
}

impl Node {
    fn hold(&mut self, job: &JobId, take: &Resources) {
        if !self.held.contains_key(job) {
            self.used.add(take);
            self.held.insert(job.clone(), take.clone());
        }
    }

    /// Gives back what the job has; whether it had something.
    fn free(&mut self, job: &JobId) -> bool {
        let held = self.held.remove(job);
        if let Some(take) = &held {
            self.used.subtract(take);
        }
        held.is_some()
    }

    /// Why a job that asks for this can never run here as it is.
    fn unfit(&self, site: &SiteName, needs: &Needs) -> Option<String> {
        let short = self.capacity.too_small(needs.sizes_at(site));
        let short = short.or_else(|| self.capacity.lacks(needs.take_at(site), &Resources::new()));
        short.map(|lack| lack.to_string())
    }

    /// Why the job has to wait here for others to end.
    fn busy(&self, site: &SiteName, job: &JobId, needs: &Needs) -> Option<String> {
        if self.held.contains_key(job) {
            return None;
        }
        if let Some(most) = self.capacity.jobs
            && self.held.len() >= most
        {
            return Some(format!("{} of {most} jobs run there", self.held.len()));
        }
        let lack = self.capacity.lacks(needs.take_at(site), &self.used);
        lack.map(|lack| lack.to_string())
    }
}

/// What a site's resources are used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteUse {
    /// Whether it is connected.
    pub here: bool,
    /// What it has to give.
    pub capacity: Capacity,
    /// What is taken.
    pub used: Resources,
    /// By which jobs.
    pub jobs: Vec<(JobId, Resources)>,
}

/// A job as it was before the server was started anew.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    /// Which.
    pub job: JobId,
    /// Its place among all jobs.
    pub number: u64,
    /// What it asks for.
    pub needs: Needs,
    /// Where it was. Before [`JobState::Running`] it is queued again.
    pub state: JobState,
    /// Its sites and where it was at each.
    pub sites: Vec<(SiteName, SitePart)>,
}

impl Scheduler {
    /// One without jobs and sites.
    pub fn new(settings: ScheduleSettings) -> Self {
        Self {
            settings,
            now: Time::ZERO,
            jobs: BTreeMap::new(),
            queue: BTreeSet::new(),
            active: BTreeSet::new(),
            sites: BTreeMap::new(),
            leaving: BTreeSet::new(),
            dirty: false,
        }
    }

    /// Takes up a job of an earlier process. To be called before any event.
    pub fn restore(&mut self, restored: Restored) -> Vec<ScheduleAction> {
        let Restored {
            job,
            number,
            needs,
            state,
            sites,
        } = restored;
        let mut out = Vec::new();
        let mut entry = Entry::new(number, needs);
        match state {
            JobState::Queued | JobState::Deploying | JobState::Starting => {
                self.queue.insert(entry.rank(&job));
                if state != JobState::Queued {
                    out.push(ScheduleAction::Enter {
                        job: job.clone(),
                        state: JobState::Queued,
                    });
                }
                self.dirty = true;
            }
            JobState::Running => {
                entry.state = JobState::Running;
                entry.running = true;
                for (site, part) in sites {
                    let mut part = Part::of(part);
                    // Whatever it was there, the site will say when it connects.
                    if matches!(
                        part.state,
                        SitePart::Deploying | SitePart::Ready | SitePart::Starting
                    ) {
                        part.state = SitePart::Waiting;
                    }
                    entry.order.push(site.clone());
                    if part.state == SitePart::Started {
                        let node = self.sites.entry(site.clone()).or_default();
                        node.hold(&job, entry.needs.take_at(&site));
                    }
                    entry.parts.insert(site, part);
                }
                self.active.insert(entry.rank(&job));
                out.push(ScheduleAction::Run {
                    job: job.clone(),
                    out: entry.refused(),
                    resume: true,
                });
            }
            JobState::Stopping | JobState::Ended => {
                // What was pending is so until its site says otherwise.
                entry.state = JobState::Ended;
                for (site, part) in sites {
                    let mut part = Part::of(part);
                    let holds = !matches!(
                        part.state,
                        SitePart::Waiting | SitePart::Out(_) | SitePart::Ended
                    );
                    if holds {
                        part.state = SitePart::Stopping;
                        let node = self.sites.entry(site.clone()).or_default();
                        node.hold(&job, entry.needs.take_at(&site));
                    }
                    entry.order.push(site.clone());
                    entry.parts.insert(site, part);
                }
            }
        }
        self.jobs.insert(job, entry);
        out
    }

    /// Takes an event in; what is to be done, in this order.
    pub fn handle(&mut self, event: ScheduleEvent, now: Time) -> Vec<ScheduleAction> {
        self.now = self.now.max(now);
        let mut out = Vec::new();
        self.take(event, &mut out);
        self.elapse(&mut out);
        if std::mem::take(&mut self.dirty) {
            self.fill(&mut out);
        }
        out
    }

    /// When something is to be decided if nothing happens before.
    pub fn next_wakeup(&self) -> Option<Time> {
        let active = self.active.iter().filter_map(|(_, _, job)| {
            let entry = self.jobs.get(job)?;
            self.deadline(entry)
        });
        let gathering = self.queue.iter().filter_map(|(_, _, job)| {
            let entry = self.jobs.get(job)?;
            entry.possible.map(|since| since + self.settings.gather)
        });
        active.chain(gathering).chain(self.leaving_deadline()).min()
    }

    /// Where a job stands; none when it is not known, or over and done with.
    pub fn state(&self, job: &JobId) -> Option<JobState> {
        self.jobs.get(job).map(|entry| entry.state)
    }

    /// Where a job stands at each of its sites, in its order.
    pub fn parts(&self, job: &JobId) -> Vec<(SiteName, SitePart)> {
        let Some(entry) = self.jobs.get(job) else {
            return Vec::new();
        };
        let part = |site: &SiteName| {
            let part = entry.parts.get(site)?;
            Some((site.clone(), part.state.clone()))
        };
        entry.order.iter().filter_map(part).collect()
    }

    /// Jobs in the queue, in the order in which they go.
    pub fn queued(&self) -> impl Iterator<Item = &JobId> {
        self.queue.iter().map(|(_, _, job)| job)
    }

    /// What the resources of a site are used for.
    pub fn site(&self, site: &SiteName) -> Option<SiteUse> {
        let node = self.sites.get(site)?;
        let held = node.held.iter();
        Some(SiteUse {
            here: node.here,
            capacity: node.capacity.clone(),
            used: node.used.clone(),
            jobs: held
                .map(|(job, taken)| (job.clone(), taken.clone()))
                .collect(),
        })
    }

    fn take(&mut self, event: ScheduleEvent, out: &mut Vec<ScheduleAction>) {
        match event {
            ScheduleEvent::Submitted { job, number, needs } => {
                if self.jobs.contains_key(&job) {
                    return;
                }
                let entry = Entry::new(number, needs);
                self.queue.insert(entry.rank(&job));
                self.jobs.insert(job.clone(), entry);
                out.push(ScheduleAction::Enter {
                    job,
                    state: JobState::Queued,
                });
                self.dirty = true;
            }
            ScheduleEvent::Connected {
                site,
                capacity,
                jobs,
            } => self.connected(&site, capacity, &jobs, out),
            ScheduleEvent::Changed { site, capacity } => {
                if let Some(node) = self.sites.get_mut(&site) {
                    node.capacity = capacity;
                    self.dirty = true;
                }
            }
            ScheduleEvent::Disconnected { site } => {
                let mut stopping = Vec::new();
                if let Some(node) = self.sites.get_mut(&site) {
                    node.here = false;
                    stopping.extend(node.held.keys().cloned());
                }
                for job in stopping {
                    self.check_stopped(&job, out);
                }
            }
            ScheduleEvent::Progress { job, site } => {
                let now = self.now;
                if let Some(part) = self.part(&job, &site) {
                    part.since = now;
                }
            }
            ScheduleEvent::Ready { job, site, attempt } => self.ready(&job, &site, attempt, out),
            ScheduleEvent::Declined {
                job,
                site,
                attempt,
                refusal,
            } => self.declined(&job, &site, attempt, refusal, out),
            ScheduleEvent::Started { job, site } => self.started(&job, &site, out),
            ScheduleEvent::Ended { job, site, error } => self.ended(&job, &site, error, out),
            ScheduleEvent::RunOver { job, result } => self.run_over(&job, result, out),
            ScheduleEvent::Abort { job, reason } => self.abort(&job, reason, out),
            ScheduleEvent::Tick => {}
        }
    }

    fn part(&mut self, job: &JobId, site: &SiteName) -> Option<&mut Part> {
        self.jobs.get_mut(job)?.parts.get_mut(site)
    }

    fn is_here(&self, site: &SiteName) -> bool {
        self.sites.get(site).is_some_and(|node| node.here)
    }

    fn holds(&self, job: &JobId, site: &SiteName) -> bool {
        let node = self.sites.get(site);
        node.is_some_and(|node| node.held.contains_key(job))
    }

    /// Gives back what the job had taken at the site.
    fn release(&mut self, job: &JobId, site: &SiteName) {
        if let Some(node) = self.sites.get_mut(site)
            && node.free(job)
        {
            self.dirty = true;
        }
    }

    /// Lets go whatever can go, in the order of the queue.
    fn fill(&mut self, out: &mut Vec<ScheduleAction>) {
        self.admit_late(out);
        // Where a job ahead waits for room, those behind it do not take it.
        let mut reserved: BTreeSet<SiteName> = BTreeSet::new();
        for rank in self.queue.clone() {
            let job = &rank.2;
            if self.active.len() >= self.settings.max_jobs {
                self.waits(job, "as many jobs run as may at a time".to_owned(), out);
                continue;
            }
            let Some(entry) = self.jobs.get(job) else {
                continue;
            };
            let view = self.look(job, entry, &reserved);
            if !view.possible {
                if let Some(entry) = self.jobs.get_mut(job) {
                    entry.possible = None;
                }
                if view.room_would_do {
                    reserved.extend(view.eligible);
                    reserved.extend(view.busy);
                }
                self.waits(job, view.why, out);
                continue;
            }
            let now = self.now;
            let since = match self.jobs.get_mut(job) {
                Some(entry) => *entry.possible.get_or_insert(now),
                None => continue,
            };
            if view.complete || since + self.settings.gather <= now {
                self.launch(&rank, view.eligible, out);
            } else {
                reserved.extend(view.eligible);
                reserved.extend(view.busy);
                self.waits(job, view.why, out);
            }
        }
    }

    fn waits(&mut self, job: &JobId, why: String, out: &mut Vec<ScheduleAction>) {
        let Some(entry) = self.jobs.get_mut(job) else {
            return;
        };
        if entry.waits != why {
            entry.waits.clone_from(&why);
            out.push(ScheduleAction::Waits {
                job: job.clone(),
                why,
            });
        }
    }

    /// Which of a queued job's sites could take it now.
    fn look(&self, job: &JobId, entry: &Entry, reserved: &BTreeSet<SiteName>) -> View {
        let needs = &entry.needs;
        let mut view = View::default();
        let mut reasons: Vec<String> = Vec::new();
        let any = needs.sites.is_empty();
        let all: Vec<&SiteName> = if any {
            let here = self.sites.iter().filter(|(_, node)| node.here);
            here.map(|(site, _)| site).collect()
        } else {
            needs.sites.iter().collect()
        };
        for site in &all {
            let Some(node) = self.sites.get(*site).filter(|node| node.here) else {
                view.missing += 1;
                reasons.push(format!("{site} is not connected"));
                continue;
            };
            if let Some(why) = node.unfit(site, needs) {
                view.missing += usize::from(!any);
                reasons.push(format!("{site} has too little: {why}"));
                continue;
            }
            match node.busy(site, job, needs) {
                Some(why) => {
                    reasons.push(format!("{site} is busy: {why}"));
                    view.busy.push((*site).clone());
                }
                None if reserved.contains(*site) => {
                    reasons.push(format!("{site} is kept for a job ahead"));
                    view.busy.push((*site).clone());
                }
                None => view.eligible.push((*site).clone()),
            }
        }
        for site in &needs.required {
            if any && !self.is_here(site) {
                reasons.push(format!("{site}, which is required, is not connected"));
            }
        }
        let least = needs.min_sites.max(1);
        let required = |sites: &[SiteName]| needs.required.iter().all(|site| sites.contains(site));
        view.possible = view.eligible.len() >= least && required(&view.eligible);
        let with_room: Vec<SiteName> = view.eligible.iter().chain(&view.busy).cloned().collect();
        view.room_would_do = with_room.len() >= least && required(&with_room);
        view.complete = view.missing == 0 && view.busy.is_empty();
        let more = reasons.len().saturating_sub(NAMED);
        reasons.truncate(NAMED);
        let mut why = format!(
            "{} of at least {least} sites are there with room",
            view.eligible.len()
        );
        for reason in &reasons {
            why.push_str("; ");
            why.push_str(reason);
        }
        if more > 0 {
            why.push_str(&format!("; and {more} more"));
        }
        view.why = why;
        view
    }

    /// Sites that a job names and that were not there or had no room.
    fn admit_late(&mut self, out: &mut Vec<ScheduleAction>) {
        for (_, _, job) in self.active.clone() {
            let Some(entry) = self.jobs.get(&job) else {
                continue;
            };
            if !entry.takes_more() {
                continue;
            }
            let fits = |site: &&SiteName| {
                let node = self.sites.get(*site).filter(|node| node.here);
                node.is_some_and(|node| {
                    node.unfit(site, &entry.needs).is_none()
                        && node.busy(site, &job, &entry.needs).is_none()
                })
            };
            let waiting = entry.parts.iter();
            let waiting = waiting.filter(|(_, part)| part.state == SitePart::Waiting);
            let sites: Vec<SiteName> = waiting
                .map(|(site, _)| site)
                .filter(fits)
                .cloned()
                .collect();
            let late = entry.state != JobState::Deploying;
            for site in sites {
                self.deploy(&job, &site, late, out);
            }
        }
    }
}

/// Reasons that one sentence gives before it only counts.
const NAMED: usize = 8;

/// Who of a queued job's sites could take it.
#[derive(Default)]
struct View {
    eligible: Vec<SiteName>,
    /// They have too little left, or it is kept for another.
    busy: Vec<SiteName>,
    /// Named and not there, or too small for good.
    missing: usize,
    /// Enough could take it.
    possible: bool,
    /// Enough could once others have ended.
    room_would_do: bool,
    /// All could.
    complete: bool,
    why: String,
}
