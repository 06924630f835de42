//! The life of a job: deploy, start, run, stop.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use firesteel_base::{JobId, SiteName};

use super::job::{Entry, Part};
use super::resources::Capacity;
use super::types::{Ending, How, InHand, JobPhase, JobState, Refusal, ScheduleAction, SitePart};
use super::{NAMED, Scheduler};

impl Scheduler {
    /// It is the job's turn.
    pub(super) fn launch(
        &mut self,
        rank: &(Reverse<i64>, u64, JobId),
        eligible: Vec<SiteName>,
        out: &mut Vec<ScheduleAction>,
    ) {
        let job = &rank.2;
        let Some(entry) = self.jobs.get_mut(job) else {
            return;
        };
        self.queue.remove(rank);
        self.active.insert(rank.clone());
        entry.state = JobState::Deploying;
        entry.order = if entry.needs.sites.is_empty() {
            eligible.clone()
        } else {
            entry.needs.sites.clone()
        };
        let parts = entry.order.iter();
        entry.parts = parts
            .map(|site| (site.clone(), Part::of(SitePart::Waiting)))
            .collect();
        entry.possible = None;
        entry.enough = None;
        entry.waits.clear();
        out.push(ScheduleAction::Enter {
            job: job.clone(),
            state: JobState::Deploying,
        });
        out.push(ScheduleAction::Sites {
            job: job.clone(),
            sites: entry.order.clone(),
        });
        // What an earlier try has left where the job does not go now.
        for site in self.holders(job) {
            if !eligible.contains(&site) && self.is_here(&site) {
                self.say_stop(job, &site, "the job runs without this site", out);
            }
        }
        for site in eligible {
            self.deploy(job, &site, false, out);
        }
    }

    pub(super) fn deploy(
        &mut self,
        job: &JobId,
        site: &SiteName,
        late: bool,
        out: &mut Vec<ScheduleAction>,
    ) {
        let now = self.now;
        let Some(entry) = self.jobs.get_mut(job) else {
            return;
        };
        let take = entry.needs.take_at(site).clone();
        let Some(part) = entry.parts.get_mut(site) else {
            return;
        };
        part.attempts = part.attempts.saturating_add(1);
        part.since = now;
        part.late = late;
        let attempt = part.attempts;
        let node = self.sites.entry(site.clone()).or_default();
        node.hold(job, &take);
        self.set(job, site, SitePart::Deploying, out);
        out.push(ScheduleAction::Deploy {
            job: job.clone(),
            site: site.clone(),
            attempt,
        });
    }

    pub(super) fn set(
        &mut self,
        job: &JobId,
        site: &SiteName,
        to: SitePart,
        out: &mut Vec<ScheduleAction>,
    ) {
        let now = self.now;
        let Some(part) = self.part(job, site) else {
            return;
        };
        if part.state == to {
            return;
        }
        part.state = to.clone();
        part.since = now;
        out.push(ScheduleAction::Part {
            job: job.clone(),
            site: site.clone(),
            part: to,
        });
    }

    pub(super) fn say_start(
        &mut self,
        job: &JobId,
        site: &SiteName,
        out: &mut Vec<ScheduleAction>,
    ) {
        self.set(job, site, SitePart::Starting, out);
        out.push(ScheduleAction::Start {
            job: job.clone(),
            site: site.clone(),
        });
    }

    pub(super) fn say_stop(
        &mut self,
        job: &JobId,
        site: &SiteName,
        reason: &str,
        out: &mut Vec<ScheduleAction>,
    ) {
        if let Some(part) = self.part(job, site) {
            part.stop_at = None;
        }
        out.push(ScheduleAction::Stop {
            job: job.clone(),
            site: site.clone(),
            reason: reason.to_owned(),
        });
    }

    /// Sites that may have something of the job.
    pub(super) fn holders(&self, job: &JobId) -> Vec<SiteName> {
        let nodes = self.sites.iter();
        nodes
            .filter(|(_, node)| node.held.contains_key(job))
            .map(|(site, _)| site.clone())
            .collect()
    }

    // ----- what sites say -------------------------------------------------

    pub(super) fn ready(
        &mut self,
        job: &JobId,
        site: &SiteName,
        attempt: u32,
        out: &mut Vec<ScheduleAction>,
    ) {
        let Some(entry) = self.jobs.get(job).filter(|entry| entry.takes_more()) else {
            return;
        };
        let deploying = entry.state == JobState::Deploying;
        let Some(part) = entry.parts.get(site) else {
            return;
        };
        if part.state != SitePart::Deploying || part.attempts != attempt {
            return;
        }
        self.set(job, site, SitePart::Ready, out);
        if !deploying {
            self.say_start(job, site, out);
        }
        self.decide(job, out);
    }

    pub(super) fn declined(
        &mut self,
        job: &JobId,
        site: &SiteName,
        attempt: u32,
        refusal: Refusal,
        out: &mut Vec<ScheduleAction>,
    ) {
        let Some(part) = self.part(job, site) else {
            return;
        };
        if part.attempts != attempt {
            return;
        }
        if part.state == SitePart::Deploying {
            // It has nothing of the job.
            self.release(job, site);
            self.leave_out(job, site, refusal, out);
            self.decide(job, out);
        } else if part.state == SitePart::Stopping {
            self.ended(job, site, String::new(), out);
        }
    }

    pub(super) fn started(&mut self, job: &JobId, site: &SiteName, out: &mut Vec<ScheduleAction>) {
        let starting = self.part(job, site);
        if starting.is_some_and(|part| part.state == SitePart::Starting) {
            self.set(job, site, SitePart::Started, out);
            self.decide(job, out);
        }
    }

    pub(super) fn ended(
        &mut self,
        job: &JobId,
        site: &SiteName,
        error: String,
        out: &mut Vec<ScheduleAction>,
    ) {
        let held = self.holds(job, site);
        self.release(job, site);
        let Some(entry) = self.jobs.get(job) else {
            return;
        };
        let state = entry.state;
        let running = entry.running;
        let out_already = matches!(
            entry.parts.get(site).map(|part| &part.state),
            None | Some(SitePart::Out(_) | SitePart::Waiting)
        );
        match state {
            JobState::Queued => {}
            JobState::Deploying | JobState::Starting | JobState::Running => {
                if out_already || !held {
                    return;
                }
                if running && error.is_empty() {
                    // It may be the end of the whole, seen from there first.
                    self.set(job, site, SitePart::Ended, out);
                    out.push(ScheduleAction::Gone {
                        job: job.clone(),
                        site: site.clone(),
                        why: self.refusal(job, "ended", "has ended its part in the job", ""),
                    });
                    return;
                }
                let why = if error.is_empty() {
                    "ended the job before it had begun"
                } else {
                    error.as_str()
                };
                let refusal = self.refusal(job, "ended", why, "");
                self.leave_out(job, site, refusal, out);
                self.decide(job, out);
            }
            JobState::Stopping => {
                if !out_already {
                    self.set(job, site, SitePart::Ended, out);
                }
                self.check_stopped(job, out);
            }
            JobState::Ended => {
                if !out_already {
                    self.set(job, site, SitePart::Ended, out);
                }
                if held {
                    out.push(ScheduleAction::Confirmed {
                        job: job.clone(),
                        site: site.clone(),
                    });
                }
                self.forget_if_done(job);
            }
        }
    }

    pub(super) fn refusal(&self, job: &JobId, code: &str, reason: &str, hint: &str) -> Refusal {
        let phase = match self.jobs.get(job).map(|entry| entry.state) {
            Some(JobState::Deploying) => JobPhase::Deploy,
            Some(JobState::Starting) => JobPhase::Start,
            Some(JobState::Queued) => JobPhase::Queue,
            _ => JobPhase::Run,
        };
        Refusal {
            phase,
            code: code.to_owned(),
            reason: reason.to_owned(),
            hint: hint.to_owned(),
        }
    }

    /// The site takes no part.
    pub(super) fn leave_out(
        &mut self,
        job: &JobId,
        site: &SiteName,
        why: Refusal,
        out: &mut Vec<ScheduleAction>,
    ) {
        self.set(job, site, SitePart::Out(why.clone()), out);
        if self.holds(job, site) && self.is_here(site) {
            self.say_stop(job, site, &why.reason, out);
        }
        if self.jobs.get(job).is_some_and(|entry| entry.running) {
            out.push(ScheduleAction::Gone {
                job: job.clone(),
                site: site.clone(),
                why,
            });
        }
    }

    // ----- connections ----------------------------------------------------

    pub(super) fn connected(
        &mut self,
        site: &SiteName,
        capacity: Capacity,
        in_hand: &[(JobId, InHand)],
        out: &mut Vec<ScheduleAction>,
    ) {
        let node = self.sites.entry(site.clone()).or_default();
        node.here = true;
        node.capacity = capacity;
        self.dirty = true;
        let known: BTreeSet<&JobId> = in_hand.iter().map(|(job, _)| job).collect();
        let held: Vec<JobId> = self
            .sites
            .get(site)
            .map_or_else(Vec::new, |node| node.held.keys().cloned().collect());
        for job in held.iter().filter(|job| !known.contains(job)) {
            self.lost(job, site, out);
        }
        for (job, stage) in in_hand {
            self.found(job, site, *stage, out);
        }
        for job in held.iter().chain(known) {
            self.decide(job, out);
            self.check_stopped(job, out);
        }
    }

    /// A site that had the job is here and has it no more.
    fn lost(&mut self, job: &JobId, site: &SiteName, out: &mut Vec<ScheduleAction>) {
        let Some(entry) = self.jobs.get(job) else {
            self.release(job, site);
            return;
        };
        let late = entry.state == JobState::Running;
        let part = entry.parts.get(site).map(|part| part.state.clone());
        match (entry.takes_more(), part) {
            (
                true,
                Some(
                    SitePart::Deploying | SitePart::Ready | SitePart::Starting | SitePart::Started,
                ),
            ) => {
                let entry = self.jobs.get(job);
                let room = entry.zip(self.sites.get(site));
                if room.is_some_and(|(entry, node)| node.unfit(site, &entry.needs).is_none()) {
                    self.deploy(job, site, late, out);
                } else {
                    self.release(job, site);
                    self.set(job, site, SitePart::Waiting, out);
                }
            }
            (true, _) => self.release(job, site),
            (false, _) => self.ended(job, site, String::new(), out),
        }
    }

    /// A site that is here has the job.
    fn found(
        &mut self,
        job: &JobId,
        site: &SiteName,
        stage: InHand,
        out: &mut Vec<ScheduleAction>,
    ) {
        let Some(entry) = self.jobs.get(job) else {
            out.push(ScheduleAction::Stop {
                job: job.clone(),
                site: site.clone(),
                reason: "the job is over, or the server does not know it".to_owned(),
            });
            return;
        };
        let take = entry.needs.take_at(site).clone();
        let (state, active) = (entry.state, entry.takes_more());
        let late = state != JobState::Deploying;
        let part = entry.parts.get(site).map(|part| part.state.clone());
        if let Some(node) = self.sites.get_mut(site) {
            node.hold(job, &take);
        }
        if state == JobState::Queued {
            // Its turn comes, and then it is looked at anew.
            return;
        }
        match (active, part, stage) {
            (true, Some(SitePart::Started), InHand::Running)
            | (true, Some(SitePart::Ready), InHand::Ready)
            | (
                true,
                Some(
                    SitePart::Deploying | SitePart::Ready | SitePart::Starting | SitePart::Started,
                ),
                // It will say that it has ended.
                InHand::Stopping,
            ) => {}
            (true, Some(SitePart::Waiting | SitePart::Starting), InHand::Running) => {
                self.set(job, site, SitePart::Started, out);
            }
            (true, Some(SitePart::Starting | SitePart::Started), InHand::Ready) => {
                out.push(ScheduleAction::Start {
                    job: job.clone(),
                    site: site.clone(),
                });
            }
            (
                true,
                Some(
                    SitePart::Deploying
                    | SitePart::Ready
                    | SitePart::Starting
                    | SitePart::Started
                    | SitePart::Waiting,
                ),
                _,
            ) => self.deploy(job, site, late && state == JobState::Running, out),
            _ => self.say_stop(
                job,
                site,
                "the job is over, or goes on without this site",
                out,
            ),
        }
    }

    // ----- decisions ------------------------------------------------------

    /// Whether the phase is over, one way or the other.
    pub(super) fn decide(&mut self, job: &JobId, out: &mut Vec<ScheduleAction>) {
        let Some(entry) = self.jobs.get(job) else {
            return;
        };
        let phase = match entry.state {
            JobState::Deploying => JobPhase::Deploy,
            JobState::Starting => JobPhase::Start,
            _ => return,
        };
        let good = move |part: &Part| match phase {
            JobPhase::Deploy => part.state == SitePart::Ready,
            _ => part.state == SitePart::Started,
        };
        let open = move |part: &Part| {
            !part.late
                && match phase {
                    JobPhase::Deploy => part.state == SitePart::Deploying,
                    _ => matches!(
                        part.state,
                        SitePart::Deploying | SitePart::Ready | SitePart::Starting
                    ),
                }
        };
        let least = entry.least();
        let (have, asked) = (entry.count(good), entry.count(open));
        let possible = have + asked >= least && entry.required(|part| good(part) || open(part));
        if !possible {
            let cause = too_few(entry, phase, have + asked);
            let ending = Ending {
                phase,
                how: How::TooFew {
                    cause: cause.clone(),
                },
                out: Vec::new(),
                pending: Vec::new(),
            };
            return self.stop(job, ending, &cause, out);
        }
        let now = self.now;
        let enough = have >= least && entry.required(good);
        let waited = match (enough, entry.enough, entry.needs.grace) {
            (true, since, Some(grace)) => since.unwrap_or(now) + grace <= now,
            _ => false,
        };
        if let Some(entry) = self.jobs.get_mut(job) {
            match enough {
                true => entry.enough.get_or_insert(now),
                false => return,
            };
        }
        if asked == 0 || waited {
            match phase {
                JobPhase::Deploy => self.start(job, out),
                _ => self.run(job, out),
            }
        }
    }

    pub(super) fn enter(&mut self, job: &JobId, state: JobState, out: &mut Vec<ScheduleAction>) {
        if let Some(entry) = self.jobs.get_mut(job) {
            entry.state = state;
            entry.enough = None;
        }
        out.push(ScheduleAction::Enter {
            job: job.clone(),
            state,
        });
    }

    /// All that can has made ready.
    fn start(&mut self, job: &JobId, out: &mut Vec<ScheduleAction>) {
        self.enter(job, JobState::Starting, out);
        let Some(entry) = self.jobs.get_mut(job) else {
            return;
        };
        let mut ready = Vec::new();
        for site in &entry.order {
            match entry.parts.get_mut(site) {
                Some(part) if part.state == SitePart::Ready => ready.push(site.clone()),
                Some(part) => part.late = true,
                None => {}
            }
        }
        for site in ready {
            self.say_start(job, &site, out);
        }
    }

    /// All that can have started.
    fn run(&mut self, job: &JobId, out: &mut Vec<ScheduleAction>) {
        self.enter(job, JobState::Running, out);
        let Some(entry) = self.jobs.get_mut(job) else {
            return;
        };
        entry.running = true;
        for part in entry.parts.values_mut() {
            part.late |= part.state != SitePart::Started;
        }
        out.push(ScheduleAction::Run {
            job: job.clone(),
            out: entry.refused(),
            resume: false,
        });
    }
}

/// What was missing, and why each site is out.
fn too_few(entry: &Entry, phase: JobPhase, have: usize) -> String {
    let done = match phase {
        JobPhase::Deploy => "can make ready",
        _ => "can start",
    };
    let refused = entry.refused();
    let out: BTreeSet<&SiteName> = refused.iter().map(|(site, _)| site).collect();
    let required: Vec<String> = entry
        .needs
        .required
        .iter()
        .filter(|site| out.contains(site) || !entry.parts.contains_key(*site))
        .take(NAMED)
        .map(ToString::to_string)
        .collect();
    let mut cause = if required.is_empty() {
        format!(
            "{have} of {} sites {done}, {} are needed",
            entry.order.len(),
            entry.least()
        )
    } else {
        let verb = if required.len() == 1 { "is" } else { "are" };
        format!(
            "{}, which {verb} required, takes no part",
            required.join(", ")
        )
    };
    for (at, (site, why)) in refused.iter().take(NAMED).enumerate() {
        let sign = if at == 0 { ": " } else { "; " };
        cause.push_str(&format!("{sign}{site} {}", sentence(why)));
    }
    if refused.len() > NAMED {
        cause.push_str(&format!("; and {} more sites", refused.len() - NAMED));
    }
    cause
}

/// What is said of a site that is out.
fn sentence(why: &Refusal) -> String {
    if why.code == "no_answer" || why.code == "never_started" {
        return why.reason.clone();
    }
    format!("declined: {}", why.reason)
}
