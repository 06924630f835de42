//! How a job ends, and the sentence that says why.

use firesteel_base::{Failure, FailureCode, Phase, TaskKey};

use super::site::{Presence, Work};
use super::{FedAvg, Stage};
use crate::action::name_some;
use crate::{Action, CancelReason, Event, Missed, Outcome, SiteFailure, StopReason};

/// How many failures a sentence spells out before it only counts.
const FAILURES_IN_A_SENTENCE: usize = 5;

impl FedAvg {
    pub(super) fn finish(&mut self, stop: StopReason, out: &mut Vec<Action>) {
        let missed: Vec<_> = (0..self.roster.len())
            .filter_map(|at| {
                let missed = self.roster.site(at).missed.clone()?;
                Some(Missed {
                    site: self.roster.name(at).clone(),
                    rounds: missed.rounds,
                    first: missed.first,
                    last: missed.last,
                    cause: missed.cause,
                })
            })
            .collect();
        let rounds = self.rounds_done;
        let of = self.roster.len();
        let outcome = if missed.is_empty() {
            Outcome::Completed { stop, rounds }
        } else {
            Outcome::CompletedWith {
                stop,
                rounds,
                contributed: of - missed.len(),
                of,
                missed,
            }
        };
        self.end(outcome, out);
    }

    pub(super) fn abort(&mut self, reason: String, out: &mut Vec<Action>) {
        self.commit_unfinished(out);
        self.end(Outcome::Aborted { reason }, out);
    }

    /// Too few sites are left, or could still come, to start.
    pub(super) fn fail_gathering(&mut self, possible: usize, out: &mut Vec<Action>) {
        let failures = self.list_failures(|flow, at| flow.roster.site(at).presence.is_refusal());
        let quorum = self.config.quorum_start();
        let what = if possible < quorum {
            format!("the job needs {quorum} sites to start and can get at most {possible}")
        } else {
            format!("the job cannot start without {}", self.required_out())
        };
        self.fail(what, failures, out);
    }

    /// Too few sites are left to make the round's quorum.
    pub(super) fn fail_short(&mut self, possible: usize, out: &mut Vec<Action>) {
        let number = self.round.number;
        let quorum = self.config.quorum_round();
        let what = if possible < quorum {
            format!("round {number} needs {quorum} sites and can get at most {possible}")
        } else {
            format!("round {number} cannot do without {}", self.required_out())
        };
        let failures = self.list_failures(Self::is_out);
        self.fail(what, failures, out);
    }

    /// The round's time is over without its quorum.
    pub(super) fn fail_deadline(&mut self, out: &mut Vec<Action>) {
        let number = self.round.number;
        let lasted = self.now.since(self.round.opened).as_secs_f64();
        let done = self.roster.work_count().done;
        let quorum = self.config.quorum_round();
        let what = if done < quorum {
            format!(
                "round {number} ended at its deadline after {lasted:.1} s with {done} of the {quorum} sites it needs"
            )
        } else {
            format!(
                "round {number} ended at its deadline after {lasted:.1} s without {}",
                self.required_out()
            )
        };
        let failures =
            self.list_failures(|flow, at| flow.is_out(at) || flow.roster.site(at).is_waited_for());
        self.fail(what, failures, out);
    }

    /// The updates are there and cannot be made a model.
    pub(super) fn fail_fold(&mut self, failure: &Failure, out: &mut Vec<Action>) {
        let number = self.round.number;
        let what = format!("round {number} could not be summed: {failure}");
        let failures = self.list_failures(Self::is_out);
        self.fail_with_hint(what, failure.hint.clone(), failures, out);
    }

    /// A model that the job cannot do without is gone.
    pub(super) fn fail_lost_model(&mut self, out: &mut Vec<Action>) {
        let failure = Failure::new(
            FailureCode::Internal,
            Phase::Save,
            "the global model did not outlive the restart",
        );
        let hint = "start the job anew from the last model that was saved".to_owned();
        self.fail_with_hint(failure.to_string(), hint, Vec::new(), out);
    }

    fn fail(&mut self, what: String, failures: Vec<SiteFailure>, out: &mut Vec<Action>) {
        let hint = (failures.iter())
            .map(|one| one.failure.hint.clone())
            .find(|hint| !hint.is_empty())
            .unwrap_or_default();
        self.fail_with_hint(what, hint, failures, out);
    }

    fn fail_with_hint(
        &mut self,
        what: String,
        hint: String,
        failures: Vec<SiteFailure>,
        out: &mut Vec<Action>,
    ) {
        let gathering = matches!(self.stage, Stage::Created | Stage::Gathering);
        let round = (!gathering).then_some(self.round.number);
        self.commit_unfinished(out);
        self.end(
            Outcome::Failed {
                cause: tell(what, &failures),
                hint,
                round,
                failures,
            },
            out,
        );
    }

    /// The record of a round that makes no model.
    fn commit_unfinished(&mut self, out: &mut Vec<Action>) {
        if matches!(self.stage, Stage::Open | Stage::Folding) {
            let record = self.record(None, Vec::new(), None, Vec::new());
            out.push(Action::Commit(Box::new(record)));
        }
    }

    /// Stops what is going on and lets go of all updates. The models stay the
    /// workflow's: a job that failed may be resumed.
    fn end(&mut self, outcome: Outcome, out: &mut Vec<Action>) {
        for at in 0..self.roster.len() {
            match &self.roster.site(at).work {
                Work::Asked { round, attempt, .. } => out.push(Action::Cancel {
                    key: TaskKey {
                        round: *round,
                        site: self.roster.name(at).clone(),
                        attempt: *attempt,
                    },
                    reason: CancelReason::JobEnded,
                }),
                Work::Done { update } => out.push(Action::Release {
                    model: update.model,
                }),
                _ => {}
            }
            self.roster.set_work(at, Work::None);
        }
        self.stage = Stage::Ended;
        self.outcome = Some(outcome.clone());
        out.push(Action::Finish(outcome));
    }

    /// What still arrives is let go of; only a restart has more to say.
    pub(super) fn take_after_the_end(&mut self, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::UpdateReady { update, .. } => self.release_model(update.model, out),
            Event::Folded { model, .. } => self.release_model(Some(model), out),
            Event::Resumed { sites, models } => self.resume_after_the_end(&sites, &models, out),
            _ => {}
        }
    }

    /// Whether a site cannot be part of this round any more.
    fn is_out(&self, at: usize) -> bool {
        let site = self.roster.site(at);
        !site.is_waited_for() && !matches!(site.work, Work::Done { .. })
    }

    fn list_failures(&self, is_listed: impl Fn(&Self, usize) -> bool) -> Vec<SiteFailure> {
        (0..self.roster.len())
            .filter(|&at| is_listed(self, at))
            .map(|at| {
                let site = self.roster.site(at);
                let failure = match (&site.presence, self.stage) {
                    (Presence::Absent { why: Some(why) }, Stage::Gathering) => why.clone(),
                    _ => site.reason_out(),
                };
                SiteFailure {
                    site: self.roster.name(at).clone(),
                    failure,
                }
            })
            .collect()
    }

    /// The required sites that have not contributed, or are not there.
    fn required_out(&self) -> String {
        let out: Vec<_> = (0..self.roster.len())
            .filter(|&at| self.roster.is_required(at))
            .filter(|&at| match self.stage {
                Stage::Gathering => self.roster.site(at).presence.is_refusal(),
                _ => (self.roster.site(at).update_for(self.round.number)).is_none(),
            })
            .map(|at| self.roster.name(at).clone())
            .collect();
        let verb = if out.len() == 1 { "is" } else { "are" };
        format!("{}, which {verb} required", name_some(&out))
    }
}

/// What was missing, and why each site that is out is out.
fn tell(what: String, failures: &[SiteFailure]) -> String {
    let mut told = what;
    for (one, sign) in (failures.iter().take(FAILURES_IN_A_SENTENCE))
        .zip([": "].iter().chain(std::iter::repeat(&"; ")))
    {
        told.push_str(&format!("{sign}{}: {}", one.site, one.failure));
    }
    if failures.len() > FAILURES_IN_A_SENTENCE {
        let more = failures.len() - FAILURES_IN_A_SENTENCE;
        told.push_str(&format!("; and {more} more sites"));
    }
    told
}
