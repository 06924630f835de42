//! The end of a job, and what the time alone decides.

use std::collections::BTreeSet;

use firesteel_base::{JobId, SiteName, Time};

use super::Scheduler;
use super::job::{Entry, Part};
use super::types::{Ending, How, JobPhase, JobState, Refusal, RunResult, ScheduleAction, SitePart};

impl Scheduler {
    pub(super) fn abort(&mut self, job: &JobId, reason: String, out: &mut Vec<ScheduleAction>) {
        let Some(entry) = self.jobs.get_mut(job) else {
            return;
        };
        let ending = |phase, how| Ending {
            phase,
            how,
            out: Vec::new(),
            pending: Vec::new(),
        };
        let aborted = How::Aborted {
            reason: reason.clone(),
        };
        match entry.state {
            JobState::Stopping | JobState::Ended => {}
            JobState::Queued => {
                let rank = entry.rank(job);
                self.queue.remove(&rank);
                self.stop(job, ending(JobPhase::Queue, aborted), &reason, out);
            }
            JobState::Deploying => {
                self.stop(job, ending(JobPhase::Deploy, aborted), &reason, out);
            }
            JobState::Starting => {
                self.stop(job, ending(JobPhase::Start, aborted), &reason, out);
            }
            JobState::Running => {
                out.push(ScheduleAction::AbortRun {
                    job: job.clone(),
                    reason: reason.clone(),
                });
                // Nobody waits for the word of a site that cannot say any.
                let away = self.holders(job);
                let away = away.into_iter().filter(|site| !self.is_here(site));
                for site in away.collect::<Vec<_>>() {
                    let why = self.refusal(job, "away", "is not connected", "");
                    out.push(ScheduleAction::Gone {
                        job: job.clone(),
                        site,
                        why,
                    });
                }
                let how = How::Run(RunResult::Aborted);
                self.stop(job, ending(JobPhase::Run, how), &reason, out);
            }
        }
    }

    pub(super) fn run_over(
        &mut self,
        job: &JobId,
        result: RunResult,
        out: &mut Vec<ScheduleAction>,
    ) {
        let Some(entry) = self.jobs.get_mut(job) else {
            return;
        };
        entry.running = false;
        let how = How::Run(result);
        match entry.state {
            JobState::Stopping => {
                if let Some(ending) = entry.ending.as_mut()
                    && ending.phase == JobPhase::Run
                {
                    ending.how = how;
                }
                self.check_stopped(job, out);
            }
            JobState::Running => {
                let ending = Ending {
                    phase: JobPhase::Run,
                    how,
                    out: Vec::new(),
                    pending: Vec::new(),
                };
                match result {
                    RunResult::Completed | RunResult::CompletedWithLosses => {
                        entry.ending = Some(ending);
                        self.finish(job, out);
                    }
                    RunResult::Failed | RunResult::Aborted => {
                        self.stop(job, ending, "the job has ended", out);
                    }
                }
            }
            _ => {}
        }
    }

    /// Stops the job wherever it is.
    pub(super) fn stop(
        &mut self,
        job: &JobId,
        ending: Ending,
        reason: &str,
        out: &mut Vec<ScheduleAction>,
    ) {
        self.enter(job, JobState::Stopping, out);
        let by = self.now + self.settings.stop;
        if let Some(entry) = self.jobs.get_mut(job) {
            entry.ending = Some(ending);
            entry.stop_by = Some(by);
        }
        for site in self.holders(job) {
            let part = self.part(job, &site).map(|part| part.state.clone());
            if !matches!(part, None | Some(SitePart::Out(_))) {
                self.set(job, &site, SitePart::Stopping, out);
            }
            if self.is_here(&site) {
                self.say_stop(job, &site, reason, out);
            }
        }
        self.check_stopped(job, out);
    }

    /// Whether a job on its way out is over: nothing of it is left where that can
    /// be seen, or it was waited for long enough.
    pub(super) fn check_stopped(&mut self, job: &JobId, out: &mut Vec<ScheduleAction>) {
        let Some(entry) = self.jobs.get(job) else {
            return;
        };
        if entry.state != JobState::Stopping || entry.running {
            return;
        }
        let reachable = self.holders(job);
        let reachable = reachable.iter().any(|site| self.is_here(site));
        let waited = entry.stop_by.is_some_and(|by| by <= self.now);
        if !reachable || waited {
            self.finish(job, out);
        }
    }

    pub(super) fn finish(&mut self, job: &JobId, out: &mut Vec<ScheduleAction>) {
        let mut pending = self.holders(job);
        let stop_at = self.now + self.settings.stop;
        let here: BTreeSet<SiteName> = pending
            .iter()
            .filter(|site| self.is_here(site))
            .cloned()
            .collect();
        let Some(entry) = self.jobs.get_mut(job) else {
            return;
        };
        if entry.state != JobState::Stopping {
            // A good end: the sites come to it by themselves, and are told only
            // when that takes them too long.
            pending.retain(|site| !here.contains(site));
            for (site, part) in &mut entry.parts {
                part.stop_at = here.contains(site).then_some(stop_at);
            }
            if !here.is_empty() {
                self.leaving.insert(job.clone());
            }
        }
        entry.state = JobState::Ended;
        let Some(mut ending) = entry.ending.take() else {
            return;
        };
        ending.out = entry.refused();
        ending.pending = pending;
        let rank = entry.rank(job);
        self.active.remove(&rank);
        self.dirty = true;
        out.push(ScheduleAction::End {
            job: job.clone(),
            ending,
        });
        self.forget_if_done(job);
    }

    /// A job that is over and that no site has anything of is not known any more.
    pub(super) fn forget_if_done(&mut self, job: &JobId) {
        let over = self.jobs.get(job);
        let over = over.is_some_and(|entry| entry.state == JobState::Ended);
        if over && self.holders(job).is_empty() {
            self.jobs.remove(job);
            self.leaving.remove(job);
        }
    }

    // ----- time -----------------------------------------------------------

    /// What the time alone decides.
    pub(super) fn elapse(&mut self, out: &mut Vec<ScheduleAction>) {
        for (_, _, job) in self.active.clone() {
            let overdue: Vec<SiteName> = match self.jobs.get(&job) {
                Some(entry) => {
                    let parts = entry.parts.iter();
                    let late = parts.filter(|(site, part)| {
                        self.part_deadline(entry, site, part)
                            .is_some_and(|by| by <= self.now)
                    });
                    late.map(|(site, _)| site.clone()).collect()
                }
                None => continue,
            };
            for site in overdue {
                let refusal = self.silent(&job, &site);
                self.leave_out(&job, &site, refusal, out);
            }
            self.decide(&job, out);
            self.check_stopped(&job, out);
        }
        for job in self.leaving.clone() {
            let due = self.jobs.get(&job).map_or_else(Vec::new, |entry| {
                let parts = entry.parts.iter();
                parts
                    .filter(|(_, part)| part.stop_at.is_some_and(|at| at <= self.now))
                    .map(|(site, _)| site.clone())
                    .collect::<Vec<_>>()
            });
            for site in due {
                if let Some(part) = self.part(&job, &site) {
                    part.stop_at = None;
                }
                if self.holds(&job, &site) && self.is_here(&site) {
                    self.say_stop(&job, &site, "the job has ended", out);
                }
            }
        }
        let now = self.now;
        let gather = self.settings.gather;
        self.dirty |= self.queue.iter().any(|(_, _, job)| {
            let entry = self.jobs.get(job);
            let since = entry.and_then(|entry| entry.possible);
            since.is_some_and(|since| since + gather <= now)
        });
    }

    /// Until when the site has to say something.
    pub(super) fn part_deadline(
        &self,
        entry: &Entry,
        site: &SiteName,
        part: &Part,
    ) -> Option<Time> {
        if entry.state == JobState::Running && !self.is_here(site) {
            // It is not waited for, and may come back.
            return None;
        }
        match (entry.takes_more(), &part.state) {
            (true, SitePart::Deploying) => Some(part.since + self.settings.deploy),
            (true, SitePart::Starting) => Some(part.since + self.settings.start),
            _ => None,
        }
    }

    pub(super) fn silent(&self, job: &JobId, site: &SiteName) -> Refusal {
        let entry = self.jobs.get(job);
        let part = entry.and_then(|entry| entry.parts.get(site));
        let here = if self.is_here(site) {
            ""
        } else {
            "; it is not connected"
        };
        let (phase, code, limit, what) = match part.map(|part| &part.state) {
            Some(SitePart::Starting) => (
                JobPhase::Start,
                "never_started",
                self.settings.start,
                "never answered the order to start",
            ),
            _ => (
                JobPhase::Deploy,
                "no_answer",
                self.settings.deploy,
                "never answered the order to make ready",
            ),
        };
        Refusal {
            phase,
            code: code.to_owned(),
            reason: format!("{what}: nothing came for {} s{here}", limit.as_secs_f64()),
            hint: "look into the site's log".to_owned(),
        }
    }

    /// When the time alone decides something about this job.
    pub(super) fn deadline(&self, entry: &Entry) -> Option<Time> {
        let parts = entry.parts.iter();
        let parts = parts.filter_map(|(site, part)| self.part_deadline(entry, site, part));
        let grace = entry.needs.grace;
        let grace = entry.enough.zip(grace).map(|(since, grace)| since + grace);
        // While its workflow is on its way out, that is what is waited for.
        let stop = entry
            .stop_by
            .filter(|_| entry.state == JobState::Stopping && !entry.running);
        parts.chain(grace).chain(stop).min()
    }

    /// When a site of a job that is over is told to stop it.
    pub(super) fn leaving_deadline(&self) -> Option<Time> {
        let entries = self.leaving.iter().filter_map(|job| self.jobs.get(job));
        let parts = entries.flat_map(|entry| entry.parts.values());
        parts.filter_map(|part| part.stop_at).min()
    }
}
