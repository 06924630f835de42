//! Federated averaging as a value.
//!
//! A round: hand the model to every site that is there, wait for as many as the
//! policies say, fold what came in site order, keep the result, go on. The
//! stages are `Created`, `Gathering` (for the quorum to start), `Open` (a round
//! is), `Folding` and `Ended`; every event may move the state, and then
//! `advance` lets the policies decide whether the stage changes.

mod close;
mod config;
mod end;
mod metrics;
mod resume;
mod site;
mod snapshot;
mod tally;
mod update;
mod view;

#[cfg(test)]
mod tests;

use std::time::Duration;

use firesteel_base::{Attempt, Failure, FailureCode, Phase, Round, SiteName, TaskKey, Time};

pub use self::config::{
    Comparison, ConfigError, FedAvgConfig, KeyMetric, LatePolicy, MetricMode, OnFailure, Returning,
    StopCondition,
};
use self::site::{Presence, Update, Work};
use self::tally::Roster;
use crate::{
    Action, Assignment, BestMark, CancelReason, Event, FoldKey, ModelHandle, ModelRole, Outcome,
    Status, TaskName, TaskStage, Warning, Workflow,
};

/// Federated averaging; see [`FedAvgConfig`] for its policies.
#[derive(Debug, Clone)]
pub struct FedAvg {
    config: FedAvgConfig,
    roster: Roster,
    stage: Stage,
    /// The latest moment seen.
    now: Time,
    round: OpenRound,
    model: Option<Made>,
    best: Option<BestMark>,
    /// Rounds since the best model was rated.
    unimproved: u32,
    rounds_done: u32,
    said: Said,
    outcome: Option<Outcome>,
}

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Created,
    Gathering,
    Open,
    Folding,
    Ended,
}

/// The current round, or the next one while none is open.
#[derive(Debug, Clone, PartialEq)]
struct OpenRound {
    number: Round,
    opened: Time,
    deadline: Option<Time>,
    /// Since when the quorum is there.
    quorum_since: Option<Time>,
    /// How many folds were asked for in this round.
    folds: u32,
}

/// The global model.
#[derive(Debug, Clone, PartialEq)]
struct Made {
    handle: ModelHandle,
    made_in: Option<Round>,
}

/// What a person has been told already.
#[derive(Debug, Clone, PartialEq, Default)]
struct Said {
    key_metric: bool,
    stop_metric: bool,
}

impl FedAvg {
    /// Checks the configuration and makes a job that waits for `Started`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the setting that is wrong.
    pub fn new(config: FedAvgConfig) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            roster: Roster::new(&config),
            stage: Stage::Created,
            now: Time::ZERO,
            round: OpenRound {
                number: config.start_round,
                opened: Time::ZERO,
                deadline: None,
                quorum_since: None,
                folds: 0,
            },
            model: None,
            best: None,
            unimproved: 0,
            rounds_done: 0,
            said: Said::default(),
            outcome: None,
            config,
        })
    }

    /// What it is configured with.
    pub fn config(&self) -> &FedAvgConfig {
        &self.config
    }

    fn take(&mut self, event: Event, out: &mut Vec<Action>) {
        if self.stage == Stage::Ended {
            return self.take_after_the_end(event, out);
        }
        match event {
            Event::Started { sites, model } => self.started(&sites, model, out),
            Event::Resumed { sites, models } => self.resumed(&sites, &models, out),
            Event::SiteJoined { site } => self.for_site(&site, out, Self::site_joined),
            Event::SiteLeft { site, failure } => self.for_site(&site, out, |flow, at, out| {
                flow.site_left(at, failure, out);
            }),
            Event::TaskProgress { key, stage } => {
                self.for_site(&key.site, out, |flow, at, _| {
                    flow.task_progress(at, &key, stage);
                });
            }
            Event::UpdateReady { key, update } => self.update_ready(&key, update, out),
            Event::TaskFailed { key, failure } => {
                self.for_site(&key.site, out, |flow, at, out| {
                    if flow.roster.site(at).is_asked(&key) {
                        flow.fail_site(at, failure, out);
                    }
                });
            }
            Event::Folded { key, model, notes } => self.folded(key, model, notes, out),
            Event::FoldFailed {
                key,
                failure,
                blame,
            } => self.fold_failed(key, &failure, blame, out),
            Event::Tick => {}
            Event::Abort { reason } => self.abort(reason, out),
        }
    }

    /// Lets the policies decide, until they have nothing to add.
    fn advance(&mut self, out: &mut Vec<Action>) {
        while match self.stage {
            Stage::Gathering => self.try_start(out),
            Stage::Open => self.try_close(out),
            Stage::Created | Stage::Folding | Stage::Ended => false,
        } {}
    }

    fn started(&mut self, sites: &[SiteName], model: Option<ModelHandle>, out: &mut Vec<Action>) {
        if self.stage != Stage::Created {
            return;
        }
        self.stage = Stage::Gathering;
        if let Some(handle) = model {
            let made_in = None;
            self.model = Some(Made { handle, made_in });
            out.push(Action::Save {
                model: handle,
                role: ModelRole::Initial,
                made_in,
            });
        }
        self.join_all(sites, out);
    }

    /// Takes sites in and gives those that need it their task, at one go and in
    /// site order.
    fn join_all(&mut self, sites: &[SiteName], out: &mut Vec<Action>) {
        let mut places = Vec::new();
        for site in sites {
            self.for_site(site, out, |flow, at, out| {
                if flow.join(at, out) {
                    places.push(at);
                }
            });
        }
        places.sort_unstable();
        places.dedup();
        self.assign(&places, out);
    }

    /// Runs `then` with the site's place, or says that there is none.
    fn for_site(
        &mut self,
        site: &SiteName,
        out: &mut Vec<Action>,
        then: impl FnOnce(&mut Self, usize, &mut Vec<Action>),
    ) {
        match self.roster.find(site) {
            Some(at) => then(self, at, out),
            None => out.push(Action::Warn(Warning::UnknownSite { site: site.clone() })),
        }
    }

    fn site_joined(&mut self, at: usize, out: &mut Vec<Action>) {
        if self.join(at, out) {
            self.assign(&[at], out);
        }
    }

    /// Takes a site in; whether it is to be given the open round's task.
    fn join(&mut self, at: usize, out: &mut Vec<Action>) -> bool {
        let site = self.roster.site(at);
        if let Some(failure) = site.excluded.clone() {
            out.push(Action::Dismiss {
                site: self.roster.name(at).clone(),
                failure,
            });
            return false;
        }
        let needs_work = match site.work {
            // What was asked at this very moment cannot have been lost yet: the
            // site was only announced twice.
            Work::Asked { stage, since, .. } => {
                site.presence != Presence::Here || (stage, since) != (TaskStage::Assigned, self.now)
            }
            Work::Expected { .. } => true,
            Work::None | Work::Lost { .. } => {
                site.presence != Presence::Here && self.config.returning == Returning::SameRound
            }
            Work::Done { .. } | Work::Failed { .. } | Work::Late { .. } => false,
        };
        let asked = match site.work {
            Work::Asked { stage, since, .. } => Some((stage, since)),
            _ => None,
        };
        self.roster.set_presence(at, Presence::Here);
        if let Some((stage, since)) = asked.filter(|_| needs_work && self.stage == Stage::Folding) {
            // The site has lost a task that was to count in the next round,
            // which gives it another.
            self.roster.set_work(at, Work::Late { stage, since });
        }
        needs_work && self.stage == Stage::Open
    }

    fn site_left(&mut self, at: usize, failure: Failure, out: &mut Vec<Action>) {
        let why = Some(failure.clone());
        self.roster.set_presence(at, Presence::Absent { why });
        if self.roster.site(at).is_waited_for() {
            out.push(self.warn_failed(at, failure.clone()));
            self.roster.set_work(at, Work::Lost { failure });
        }
    }

    fn task_progress(&mut self, at: usize, key: &TaskKey, to: TaskStage) {
        let now = self.now;
        let task = self.config.task;
        let site = self.roster.site(at);
        if !site.is_asked(key) {
            return;
        }
        let Work::Asked {
            round,
            attempt,
            stage,
            limit,
            ..
        } = site.work
        else {
            return;
        };
        // Reports may overtake each other; a stage is never gone back to.
        if to <= stage {
            return;
        }
        let limit = match to {
            TaskStage::Training => task.map(|task| now + task),
            TaskStage::Returning => None,
            TaskStage::Assigned | TaskStage::Accepted => limit,
        };
        self.roster.set_work(
            at,
            Work::Asked {
                round,
                attempt,
                stage: to,
                since: now,
                limit,
            },
        );
    }

    /// Takes a site out of this round, and out of the job if the policy says so.
    fn fail_site(&mut self, at: usize, failure: Failure, out: &mut Vec<Action>) {
        out.push(self.warn_failed(at, failure.clone()));
        let dismiss_at = match self.config.on_failure {
            OnFailure::Exclude => 1,
            OnFailure::RetryNextRound => self.config.max_failures,
        };
        let work = Work::Failed {
            failure: failure.clone(),
        };
        self.roster.set_work(at, work);
        let site = self.roster.site_mut(at);
        site.failures = site.failures.saturating_add(1);
        if site.failures >= dismiss_at {
            site.excluded = Some(failure.clone());
            out.push(Action::Dismiss {
                site: self.roster.name(at).clone(),
                failure,
            });
        }
    }

    fn warn_failed(&self, at: usize, failure: Failure) -> Action {
        Action::Warn(Warning::SiteFailed {
            round: self.round.number,
            site: self.roster.name(at).clone(),
            failure,
        })
    }

    /// Gives the current round's task to these sites, in site order.
    fn assign(&mut self, places: &[usize], out: &mut Vec<Action>) {
        if places.is_empty() {
            return;
        }
        let keys = places.iter().map(|&at| self.next_key(at)).collect();
        out.push(Action::Assign(Assignment {
            keys,
            task: TaskName::TRAIN,
            model: self.model.as_ref().map(|made| made.handle),
            start_round: self.config.start_round,
            total_rounds: self.config.num_rounds,
            limit: self.config.task,
            deadline: self.round.deadline,
        }));
    }

    fn next_key(&mut self, at: usize) -> TaskKey {
        let now = self.now;
        let round = self.round.number;
        let site = self.roster.site_mut(at);
        let attempt = Attempt(site.attempts);
        site.attempts = site.attempts.saturating_add(1);
        self.roster.set_work(
            at,
            Work::Asked {
                round,
                attempt,
                stage: TaskStage::Assigned,
                since: now,
                limit: None,
            },
        );
        TaskKey {
            round,
            site: self.roster.name(at).clone(),
            attempt,
        }
    }

    /// Starts the first round, or ends the job, once either is certain.
    fn try_start(&mut self, out: &mut Vec<Action>) -> bool {
        let quorum = self.config.quorum_start();
        let count = self.roster.presence_count();
        if count.here >= quorum && count.required_here == self.roster.required() {
            self.open_round(out);
            return true;
        }
        let possible = self.roster.len() - count.refused;
        if possible < quorum || count.required_refused > 0 {
            self.fail_gathering(possible, out);
            return true;
        }
        false
    }

    fn open_round(&mut self, out: &mut Vec<Action>) {
        let number = self.round.number;
        let mut places = Vec::new();
        for at in 0..self.roster.len() {
            let site = self.roster.site(at);
            // A late task that is let in goes on, and an update that came while
            // the last round was being folded is in already.
            let keeps = match &site.work {
                Work::Asked { .. } => true,
                Work::Done { update } => update.counts_in == number,
                Work::None
                | Work::Expected { .. }
                | Work::Failed { .. }
                | Work::Lost { .. }
                | Work::Late { .. } => false,
            };
            if keeps {
                continue;
            }
            let work = match site.presence {
                Presence::Awaited { since } if site.excluded.is_none() => Work::Expected { since },
                _ => Work::None,
            };
            if site.is_available() {
                places.push(at);
            }
            self.roster.set_work(at, work);
        }
        self.stage = Stage::Open;
        self.round.opened = self.now;
        self.round.deadline = self.config.round.map(|round| self.now + round);
        self.round.quorum_since = None;
        self.roster.recount(number);
        self.assign(&places, out);
    }

    /// Closes the round, or ends the job, once either is certain.
    fn try_close(&mut self, out: &mut Vec<Action>) -> bool {
        while let Some(at) = self.roster.pop_limit(self.now) {
            self.exceed_limit(at, out);
        }
        let count = self.roster.work_count();
        let quorum = self.config.quorum_round();
        let required = self.roster.required();
        if count.done + count.asked < quorum
            || count.required_done + count.required_asked < required
        {
            self.fail_short(count.done + count.asked, out);
            return true;
        }
        let is_met = count.done >= quorum && count.required_done == required;
        if is_met {
            self.round.quorum_since.get_or_insert(self.now);
        }
        let is_over = self.round.deadline.is_some_and(|end| end <= self.now);
        if is_over && !is_met {
            self.fail_deadline(out);
            return true;
        }
        let has_waited = self.grace_ends().is_some_and(|end| end <= self.now);
        if count.asked == 0 || is_over || has_waited {
            self.close_round(out);
            return true;
        }
        false
    }

    fn exceed_limit(&mut self, at: usize, out: &mut Vec<Action>) {
        let Work::Asked { round, attempt, .. } = self.roster.site(at).work else {
            return;
        };
        let limit = self.config.task.unwrap_or(Duration::ZERO);
        let key = TaskKey {
            round,
            site: self.roster.name(at).clone(),
            attempt,
        };
        out.push(Action::Cancel {
            key,
            reason: CancelReason::TaskDeadline,
        });
        let failure = Failure::new(
            FailureCode::TaskDeadline,
            Phase::Train,
            format!(
                "had not sent its result {:.1} s after the task was handed to its trainer",
                limit.as_secs_f64()
            ),
        )
        .with_hint("raise the task's time limit, or look where the script hangs");
        self.fail_site(at, failure, out);
    }

    /// When the wait for the others ends; `None` while it does not run.
    fn grace_ends(&self) -> Option<Time> {
        Some(self.round.quorum_since? + self.config.grace?)
    }

    /// Lets go of a model that is neither the newest nor the best.
    fn release_model(&self, model: Option<ModelHandle>, out: &mut Vec<Action>) {
        let Some(model) = model else {
            return;
        };
        let is_newest = self.model.as_ref().is_some_and(|made| made.handle == model);
        let is_best = self.best.as_ref().is_some_and(|best| best.model == model);
        if !is_newest && !is_best {
            out.push(Action::Release { model });
        }
    }

    fn weight(&self, at: usize, update: &Update) -> f64 {
        self.roster.weight(at) * update.steps.unwrap_or(1.0)
    }

    fn fold_key(&self) -> FoldKey {
        FoldKey {
            round: self.round.number,
            attempt: Attempt(self.round.folds.saturating_sub(1)),
        }
    }
}

impl Workflow for FedAvg {
    fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.now = self.now.max(now);
        let mut out = Vec::new();
        self.take(event, &mut out);
        self.advance(&mut out);
        out
    }

    fn next_wakeup(&self) -> Option<Time> {
        if self.stage != Stage::Open {
            return None;
        }
        [
            self.round.deadline,
            self.grace_ends(),
            self.roster.first_limit(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn snapshot(&self) -> Vec<u8> {
        snapshot::write(self)
    }

    fn status(&self) -> Status {
        self.view()
    }

    fn models(&self) -> Vec<ModelHandle> {
        let global = self.model.iter().map(|made| made.handle);
        let best = self.best.iter().map(|best| best.model);
        let updates = self.roster.sites().filter_map(|site| match &site.work {
            Work::Done { update } => Some(update.model),
            _ => None,
        });
        let mut models: Vec<_> = global.chain(best).chain(updates).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }
}
