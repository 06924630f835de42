//! How a round closes: fold, rate, record, go on.

use firesteel_base::{Failure, FailureCode, Phase, Round, SiteName, TaskKey};

use super::metrics::{self, Means, Sample};
use super::site::Work;
use super::{FedAvg, LatePolicy, Made, Stage};
use crate::{
    Action, BestMark, CancelReason, FoldInput, FoldKey, FoldRequest, MetricMean, ModelHandle,
    ModelRole, RoundRecord, SiteRecord, SiteResult, StopReason, Warning,
};

impl FedAvg {
    /// Takes in no more results for this round and asks for the fold.
    pub(super) fn close_round(&mut self, out: &mut Vec<Action>) {
        let late = self.leave_late_sites(out);
        if !late.is_empty() {
            out.push(Action::Warn(Warning::SitesLate {
                round: self.round.number,
                sites: late,
            }));
        }
        self.warn_about_steps(out);
        self.start_fold(out);
    }

    /// Ends, or lets go on, the tasks of the sites that have not answered.
    fn leave_late_sites(&mut self, out: &mut Vec<Action>) -> Vec<SiteName> {
        let mut late = Vec::new();
        if self.roster.work_count().asked == 0 {
            return late;
        }
        for at in 0..self.roster.len() {
            if !self.roster.site(at).is_waited_for() {
                continue;
            }
            late.push(self.roster.name(at).clone());
            if self.config.late == LatePolicy::CountNextRound {
                continue;
            }
            if let Work::Asked {
                round,
                attempt,
                stage,
                since,
                ..
            } = self.roster.site(at).work
            {
                out.push(Action::Cancel {
                    key: TaskKey {
                        round,
                        site: self.roster.name(at).clone(),
                        attempt,
                    },
                    reason: CancelReason::RoundClosed,
                });
                self.roster.set_work(at, Work::Late { stage, since });
            }
        }
        late
    }

    fn warn_about_steps(&mut self, out: &mut Vec<Action>) {
        let number = self.round.number;
        let mut missing = Vec::new();
        let mut zero = Vec::new();
        for at in 0..self.roster.len() {
            let Some(update) = self.roster.site(at).update_for(number) else {
                continue;
            };
            match update.steps {
                None if !self.roster.site(at).steps_said => {
                    self.roster.site_mut(at).steps_said = true;
                    missing.push(self.roster.name(at).clone());
                }
                Some(0.0) => zero.push(self.roster.name(at).clone()),
                _ => {}
            }
        }
        if !missing.is_empty() {
            out.push(Action::Warn(Warning::StepsMissing { sites: missing }));
        }
        if !zero.is_empty() {
            out.push(Action::Warn(Warning::StepsZero {
                round: number,
                sites: zero,
            }));
        }
    }

    /// Asks for the fold of what is in; without anything that weighs, the job
    /// ends.
    pub(super) fn start_fold(&mut self, out: &mut Vec<Action>) {
        let number = self.round.number;
        let inputs: Vec<_> = (0..self.roster.len())
            .filter_map(|at| {
                let update = self.roster.site(at).update_for(number)?;
                let weight = self.weight(at, update);
                (weight > 0.0).then(|| FoldInput {
                    site: self.roster.name(at).clone(),
                    model: update.model,
                    params_type: update.params_type,
                    weight,
                    trained_in: update.round,
                })
            })
            .collect();
        if inputs.is_empty() {
            let failure = Failure::new(
                FailureCode::Misuse,
                Phase::Aggregate,
                "no site trained a step: every NUM_STEPS_CURRENT_ROUND is 0",
            )
            .with_hint("send how many steps were trained, or leave NUM_STEPS_CURRENT_ROUND out");
            self.fail_fold(&failure, out);
            return;
        }
        self.stage = Stage::Folding;
        self.round.folds = self.round.folds.saturating_add(1);
        out.push(Action::Fold(FoldRequest {
            key: self.fold_key(),
            base: self.model.as_ref().map(|made| made.handle),
            inputs,
            exclude: self.config.exclude.clone(),
        }));
    }

    /// Drops the blamed sites and folds again, or ends the job.
    pub(super) fn fold_failed(
        &mut self,
        key: FoldKey,
        failure: &Failure,
        blame: Vec<(SiteName, Failure)>,
        out: &mut Vec<Action>,
    ) {
        if self.stage != Stage::Folding || key != self.fold_key() {
            return;
        }
        let number = self.round.number;
        let mut dropped = 0;
        for (site, failure) in blame {
            let Some(at) = self.roster.find(&site) else {
                continue;
            };
            let Some(model) = self.roster.site(at).update_for(number).map(|u| u.model) else {
                continue;
            };
            self.fail_site(at, failure, out);
            out.push(Action::Release { model });
            dropped += 1;
        }
        let count = self.roster.work_count();
        if dropped == 0 {
            self.fail_fold(failure, out);
        } else if count.done < self.config.quorum_round()
            || count.required_done < self.roster.required()
        {
            self.fail_short(count.done, out);
        } else {
            self.start_fold(out);
        }
    }

    pub(super) fn folded(
        &mut self,
        key: FoldKey,
        model: ModelHandle,
        notes: Vec<String>,
        out: &mut Vec<Action>,
    ) {
        if self.stage != Stage::Folding || key != self.fold_key() {
            self.release_model(Some(model), out);
            return;
        }
        let number = self.round.number;
        let Means { means, not_finite } = self.average_metrics();
        for (metric, sites) in not_finite {
            out.push(Action::Warn(Warning::MetricNotFinite {
                round: number,
                metric,
                sites,
            }));
        }
        let old_best = self.best.as_ref().map(|best| best.model);
        let best = self.rate(&means, out);
        self.warn_about_stop_metric(&means, out);
        let record = self.record(Some(model), means, best.clone(), notes);
        let old = self.model.replace(Made {
            handle: model,
            made_in: Some(number),
        });
        out.push(Action::Save {
            model,
            role: ModelRole::Latest,
            made_in: Some(number),
        });
        if let Some(best) = &best {
            out.push(Action::Save {
                model: best.model,
                role: ModelRole::Best,
                made_in: best.made_in,
            });
        }
        let stop = self.stop_reason(&record.metrics);
        out.push(Action::Commit(Box::new(record)));
        self.clear_round(out);
        let old = old.map(|made| made.handle);
        self.release_model(old, out);
        if old_best != old {
            self.release_model(old_best, out);
        }
        self.rounds_done = self.rounds_done.saturating_add(1);
        self.next_round();
        match stop {
            Some(stop) => self.finish(stop, out),
            None => self.open_round(out),
        }
    }

    /// The means over the updates that were trained from this round's model:
    /// a late update's metrics rate an older one.
    fn average_metrics(&self) -> Means {
        let number = self.round.number;
        let samples = (0..self.roster.len()).filter_map(|at| {
            let update = self.roster.site(at).update_for(number)?;
            (update.round == number).then(|| Sample {
                site: self.roster.name(at),
                weight: self.weight(at, update),
                metrics: &update.metrics,
            })
        });
        metrics::average(samples)
    }

    /// Compares the model that was handed out with the best so far; the new
    /// mark if it is better.
    fn rate(&mut self, means: &[MetricMean], out: &mut Vec<Action>) -> Option<BestMark> {
        let key = self.config.key_metric.as_ref()?;
        let base = self.model.as_ref()?;
        let round = self.round.number;
        let Some(mean) = means.iter().find(|mean| mean.name == key.name) else {
            if !std::mem::replace(&mut self.said.key_metric, true) {
                out.push(Action::Warn(Warning::KeyMetricMissing {
                    round,
                    metric: key.name.clone(),
                    present: means.iter().map(|mean| mean.name.clone()).collect(),
                }));
            }
            return None;
        };
        let improves =
            (self.best.as_ref()).is_none_or(|best| key.mode.improves(mean.value, best.value));
        if !improves {
            self.unimproved = self.unimproved.saturating_add(1);
            return None;
        }
        self.unimproved = 0;
        self.best = Some(BestMark {
            model: base.handle,
            made_in: base.made_in,
            rated_in: round,
            metric: key.name.clone(),
            value: mean.value,
        });
        self.best.clone()
    }

    fn warn_about_stop_metric(&mut self, means: &[MetricMean], out: &mut Vec<Action>) {
        let Some(stop) = &self.config.stop else {
            return;
        };
        let is_there = means.iter().any(|mean| mean.name == stop.metric());
        if is_there || std::mem::replace(&mut self.said.stop_metric, true) {
            return;
        }
        out.push(Action::Warn(Warning::StopMetricMissing {
            round: self.round.number,
            metric: stop.metric().to_owned(),
            present: means.iter().map(|mean| mean.name.clone()).collect(),
        }));
    }

    fn stop_reason(&self, means: &[MetricMean]) -> Option<StopReason> {
        if let Some(stop) = &self.config.stop {
            let met = (means.iter())
                .find(|mean| mean.name == stop.metric() && stop.is_met_by(mean.value));
            if let Some(mean) = met {
                return Some(StopReason::Condition {
                    condition: stop.to_string(),
                    value: mean.value,
                });
            }
        }
        if !self.has_round_after(self.round.number) {
            return Some(StopReason::AllRounds);
        }
        let patience = self.config.patience?;
        (self.unimproved >= patience).then_some(StopReason::Patience { rounds: patience })
    }

    /// Whether the job has a round after this one.
    fn has_round_after(&self, round: Round) -> bool {
        let done = round.0.saturating_sub(self.config.start_round.0);
        done.saturating_add(1) < self.config.num_rounds
    }

    /// Whether the job has this round.
    pub(super) fn has_round(&self, round: Round) -> bool {
        round.0.saturating_sub(self.config.start_round.0) < self.config.num_rounds
    }

    /// The round as it is now.
    pub(super) fn record(
        &self,
        result: Option<ModelHandle>,
        metrics: Vec<MetricMean>,
        best: Option<BestMark>,
        notes: Vec<String>,
    ) -> RoundRecord {
        RoundRecord {
            round: self.round.number,
            started: self.round.opened,
            ended: self.now,
            base: self.model.as_ref().map(|made| made.handle),
            result,
            sites: (0..self.roster.len())
                .map(|at| SiteRecord {
                    site: self.roster.name(at).clone(),
                    result: self.site_result(at, result),
                })
                .collect(),
            metrics,
            best,
            notes,
        }
    }

    fn site_result(&self, at: usize, made: Option<ModelHandle>) -> SiteResult {
        let site = self.roster.site(at);
        if let Some(update) = site.update_for(self.round.number) {
            return SiteResult::Contributed {
                weight: self.weight(at, update),
                steps: update.steps,
                metrics: update.metrics.clone(),
                arrived: update.arrived,
                trained_in: update.round,
            };
        }
        match (&site.work, &site.excluded) {
            (Work::Failed { failure } | Work::Lost { failure }, _) => {
                SiteResult::Failed(failure.clone())
            }
            _ if made.is_none() && site.is_waited_for() => SiteResult::Waiting,
            (
                Work::Asked { .. } | Work::Expected { .. } | Work::Late { .. } | Work::Done { .. },
                _,
            ) => SiteResult::Late,
            (Work::None, Some(failure)) => SiteResult::Excluded(failure.clone()),
            (Work::None, None) => SiteResult::Absent,
        }
    }

    /// Lets go of the round's updates and settles each site's account.
    fn clear_round(&mut self, out: &mut Vec<Action>) {
        let number = self.round.number;
        for at in 0..self.roster.len() {
            match self.roster.site(at).update_for(number).map(|u| u.model) {
                Some(model) => {
                    out.push(Action::Release { model });
                    self.roster.site_mut(at).failures = 0;
                    self.roster.set_work(at, Work::None);
                }
                None => self.roster.site_mut(at).miss(number),
            }
        }
    }

    fn next_round(&mut self) {
        self.round.number = Round(self.round.number.0.saturating_add(1));
        self.round.folds = 0;
        for at in 0..self.roster.len() {
            self.roster.site_mut(at).attempts = 0;
        }
    }
}
