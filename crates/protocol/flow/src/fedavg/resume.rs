//! How a job goes on after its driver was restarted.

use std::collections::HashSet;

use firesteel_base::{Round, SiteName};

use super::site::{Presence, Work};
use super::{FedAvg, Stage};
use crate::{Action, ModelHandle, Outcome, StopReason, TaskStage, Warning};

impl FedAvg {
    /// Asks anew for what was asked of the sites, keeps what is in and
    /// survived, and gives an open round its whole time again.
    pub(super) fn resumed(
        &mut self,
        sites: &[SiteName],
        models: &[ModelHandle],
        out: &mut Vec<Action>,
    ) {
        let survived: HashSet<_> = models.iter().copied().collect();
        if !self.models_survived(&survived, out) {
            return;
        }
        let lost = self.forget_lost_updates(&survived);
        self.await_absent_sites();
        let was_folding = self.stage == Stage::Folding;
        let reopens = was_folding && lost;
        if reopens {
            self.stage = Stage::Open;
        }
        if self.stage == Stage::Open {
            self.round.deadline = self.config.round.map(|round| self.now + round);
            self.round.quorum_since = None;
        }
        self.join_all(sites, out);
        if was_folding && !reopens {
            self.start_fold(out);
        }
    }

    /// A job that failed or was aborted tries its round again; one that did all
    /// its rounds goes on if it has been given more.
    pub(super) fn resume_after_the_end(
        &mut self,
        sites: &[SiteName],
        models: &[ModelHandle],
        out: &mut Vec<Action>,
    ) {
        let goes_on = match &self.outcome {
            Some(Outcome::Failed { .. } | Outcome::Aborted { .. }) => true,
            Some(Outcome::Completed { stop, .. } | Outcome::CompletedWith { stop, .. }) => {
                *stop == StopReason::AllRounds
            }
            None => false,
        };
        if !goes_on || !self.has_round(self.round.number) {
            out.extend(self.outcome.clone().map(Action::Finish));
            return;
        }
        self.outcome = None;
        self.stage = Stage::Gathering;
        for at in 0..self.roster.len() {
            // Whoever resumes has seen to the cause.
            let site = self.roster.site_mut(at);
            site.excluded = None;
            site.failures = 0;
            self.roster.set_work(at, Work::None);
            self.roster.set_presence(at, Presence::Absent { why: None });
        }
        self.resumed(sites, models, out);
    }

    /// Whether the job can go on with the models that are left.
    fn models_survived(&mut self, survived: &HashSet<ModelHandle>, out: &mut Vec<Action>) -> bool {
        if let Some(best) = self.best.take_if(|best| !survived.contains(&best.model)) {
            self.unimproved = 0;
            out.push(Action::Warn(Warning::BestModelLost {
                rated_in: best.rated_in,
            }));
        }
        let has_model = (self.model.as_ref()).is_none_or(|made| survived.contains(&made.handle));
        if !has_model {
            self.fail_lost_model(out);
        }
        has_model
    }

    /// Puts sites whose update is gone back to work; whether the current
    /// round has lost any.
    fn forget_lost_updates(&mut self, survived: &HashSet<ModelHandle>) -> bool {
        let number = self.round.number;
        let next = Round(number.0.saturating_add(1));
        let mut lost = false;
        for at in 0..self.roster.len() {
            let site = self.roster.site(at);
            let Work::Done { update } = &site.work else {
                continue;
            };
            if survived.contains(&update.model) {
                continue;
            }
            lost |= update.counts_in == number;
            // The site may still have its result and give it for the same key.
            let (round, attempt, counts_in) = (update.round, update.attempt, update.counts_in);
            self.roster.site_mut(at).answered = None;
            let stage = TaskStage::Assigned;
            let since = self.now;
            let work = if counts_in == next {
                Work::Late { stage, since }
            } else {
                Work::Asked {
                    round,
                    attempt,
                    stage,
                    since,
                    limit: None,
                }
            };
            self.roster.set_work(at, work);
        }
        lost
    }

    /// Whoever was there may come back: its lease decides.
    fn await_absent_sites(&mut self) {
        let since = self.now;
        for at in 0..self.roster.len() {
            if self.roster.site(at).presence == Presence::Here {
                self.roster.set_presence(at, Presence::Awaited { since });
            }
            // What a trainer had begun is lost with its driver; no limit counts
            // until it is asked anew.
            if let Work::Asked {
                round,
                attempt,
                stage,
                since,
                ..
            } = self.roster.site(at).work
            {
                self.roster.set_work(
                    at,
                    Work::Asked {
                        round,
                        attempt,
                        stage,
                        since,
                        limit: None,
                    },
                );
            }
        }
    }
}
