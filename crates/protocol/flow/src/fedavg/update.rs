//! What is taken as an update, and what becomes of one that is not asked for.

use std::collections::HashSet;

use firesteel_base::{Failure, FailureCode, Phase, Round, TaskKey};

use super::site::{Update, Work};
use super::{FedAvg, Stage};
use crate::{Action, ModelHandle, ParamsType, UpdateInfo, Warning};

/// The largest count of steps whose neighbors are still distinct in an `f64`.
const STEPS_MAX: f64 = 9_007_199_254_740_992.0;

impl FedAvg {
    pub(super) fn update_ready(
        &mut self,
        key: &TaskKey,
        update: UpdateInfo,
        out: &mut Vec<Action>,
    ) {
        let Some(at) = self.roster.find(&key.site) else {
            let site = key.site.clone();
            out.push(Action::Warn(Warning::UnknownSite { site }));
            out.extend(update.model.map(|model| Action::Release { model }));
            return;
        };
        let site = self.roster.site(at);
        if !site.is_asked(key) {
            // Answers are counted once: whatever is not asked for is either
            // told twice or too late.
            if site.answered < Some((key.round, key.attempt)) {
                out.push(Action::Warn(Warning::LateResultDropped {
                    key: key.clone(),
                }));
            }
            self.release_update(at, update.model, out);
            return;
        }
        self.roster.site_mut(at).answered = Some((key.round, key.attempt));
        match self.accept(key, &update) {
            Ok(work) => self.roster.set_work(at, work),
            Err(failure) => {
                self.fail_site(at, failure, out);
                self.release_update(at, update.model, out);
            }
        }
    }

    fn accept(&self, key: &TaskKey, update: &UpdateInfo) -> Result<Work, Failure> {
        let Some(model) = update.model else {
            return Err(Failure::new(
                FailureCode::Misuse,
                Phase::Send,
                "sent metrics without params for a training task",
            )
            .with_hint("send FLModel(params=…, metrics=…)"));
        };
        let sent = update.params_type;
        // The first model of a job can only be a whole one.
        let is_first = self.model.is_none() && sent == ParamsType::Full;
        let expected = (self.config.params_type).filter(|known| *known != sent && !is_first);
        if let Some(expected) = expected {
            return Err(Failure::new(
                FailureCode::ParamsType,
                Phase::Verify,
                format!("sent {sent} params where the job expects {expected}"),
            )
            .with_hint(
                "leave params_type out of FLModel(…), or set the recipe's params_transfer_type",
            ));
        }
        if sent == ParamsType::Diff && self.model.is_none() {
            return Err(Failure::new(
                FailureCode::ParamsType,
                Phase::Verify,
                "sent DIFF params, and there is no model yet that they could be added to",
            )
            .with_hint(
                "give the recipe an initial model, or send FULL params in the first round",
            ));
        }
        if let Some(steps) = update.steps.filter(|s| !steps_are_sound(*s)) {
            return Err(Failure::new(
                FailureCode::Misuse,
                Phase::Verify,
                format!("sent NUM_STEPS_CURRENT_ROUND {steps}"),
            )
            .with_hint("send how many steps were trained: a finite number, zero or more"));
        }
        let counts_in = match self.stage {
            Stage::Folding => Round(self.round.number.0.saturating_add(1)),
            _ => self.round.number,
        };
        let mut names = HashSet::new();
        let metrics = (update.metrics.iter())
            .filter(|(name, _)| names.insert(name.as_str()))
            .cloned()
            .collect();
        Ok(Work::Done {
            update: Box::new(Update {
                model,
                params_type: sent,
                steps: update.steps,
                metrics,
                arrived: self.now,
                round: key.round,
                attempt: key.attempt,
                counts_in,
            }),
        })
    }

    /// Lets go of an update that is of no use, unless it is the one that this
    /// site is in with.
    fn release_update(&self, at: usize, update: Option<ModelHandle>, out: &mut Vec<Action>) {
        let is_in = matches!(&self.roster.site(at).work,
            Work::Done { update: known } if Some(known.model) == update);
        if !is_in {
            self.release_model(update, out);
        }
    }
}

/// Whether this can be how many steps were trained.
pub(super) fn steps_are_sound(steps: f64) -> bool {
    (0.0..=STEPS_MAX).contains(&steps)
}
