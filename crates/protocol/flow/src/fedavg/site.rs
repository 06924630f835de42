//! One site, as FedAvg keeps it from round to round.

use firesteel_base::{Attempt, Failure, FailureCode, Phase, Round, TaskKey, Time};

use crate::codec::{pack_enum, pack_struct};
use crate::{ModelHandle, ParamsType, TaskStage};

/// A site's state: everything that is saved with a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Site {
    pub(super) presence: Presence,
    pub(super) work: Work,
    /// How many keys were made for the current round.
    pub(super) attempts: u32,
    /// The last key that was answered with an update, so that the same answer
    /// told twice is not taken for a late one.
    pub(super) answered: Option<(Round, Attempt)>,
    /// Failures in a row.
    pub(super) failures: u32,
    /// Why it was dismissed.
    pub(super) excluded: Option<Failure>,
    /// Whether a person has been told that it sends no steps.
    pub(super) steps_said: bool,
    pub(super) missed: Option<MissedRounds>,
}

/// Whether a site is there.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Presence {
    /// It was never there, or left for the reason given.
    Absent { why: Option<Failure> },
    /// It is connected, or within its lease.
    Here,
    /// It was there before a restart of the driver and may come back.
    Awaited { since: Time },
}

/// What a site has to do with the current round.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Work {
    /// Nothing: it was not there when the round was opened.
    None,
    /// It has a task in hand, of this round or (a late one) of an earlier one.
    Asked {
        round: Round,
        attempt: Attempt,
        stage: TaskStage,
        since: Time,
        limit: Option<Time>,
    },
    /// It is not back since the driver's restart, and may come to take part.
    Expected { since: Time },
    /// Its update is in.
    Done { update: Box<Update> },
    /// Its task failed, or its update was refused.
    Failed { failure: Failure },
    /// It left with its task in hand.
    Lost { failure: Failure },
    /// The round closed before it had answered, and its task was canceled or
    /// lost; how far it was, and since when.
    Late { stage: TaskStage, since: Time },
}

/// An update that is in.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Update {
    pub(super) model: ModelHandle,
    pub(super) params_type: ParamsType,
    pub(super) steps: Option<f64>,
    pub(super) metrics: Vec<(String, f64)>,
    pub(super) arrived: Time,
    /// The key that it answers.
    pub(super) round: Round,
    pub(super) attempt: Attempt,
    /// The round whose model it is part of: the one after the current, when it
    /// came late and the current one was being folded already.
    pub(super) counts_in: Round,
}

/// The rounds that a site missed: bounded, however many they are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MissedRounds {
    pub(super) rounds: u32,
    pub(super) first: Round,
    pub(super) last: Round,
    pub(super) cause: Failure,
}

impl Site {
    pub(super) fn new() -> Self {
        Self {
            presence: Presence::Absent { why: None },
            work: Work::None,
            attempts: 0,
            answered: None,
            failures: 0,
            excluded: None,
            steps_said: false,
            missed: None,
        }
    }

    /// Whether a new round has a task for it.
    pub(super) fn is_available(&self) -> bool {
        self.presence == Presence::Here && self.excluded.is_none()
    }

    /// The update that counts in `round`, if there is one.
    pub(super) fn update_for(&self, round: Round) -> Option<&Update> {
        match &self.work {
            Work::Done { update } if update.counts_in == round => Some(update),
            _ => None,
        }
    }

    /// Whether the round waits for it.
    pub(super) fn is_waited_for(&self) -> bool {
        matches!(self.work, Work::Asked { .. } | Work::Expected { .. })
    }

    /// Whether it has exactly this work in hand.
    pub(super) fn is_asked(&self, key: &TaskKey) -> bool {
        matches!(self.work, Work::Asked { round, attempt, .. }
            if (round, attempt) == (key.round, key.attempt))
    }

    /// Why it is no part of the current round's model, told as a failure.
    pub(super) fn reason_out(&self) -> Failure {
        match (&self.work, &self.excluded, &self.presence) {
            (Work::Failed { failure } | Work::Lost { failure }, _, _) => failure.clone(),
            (Work::Late { stage, since } | Work::Asked { stage, since, .. }, _, _) => {
                late(format!(
                    "had not answered when the round closed: {} since {since}",
                    stage.as_str()
                ))
            }
            (Work::Expected { since }, _, _) => {
                late(format!("was not back since the restart at {since}"))
            }
            (Work::Done { .. }, _, _) => late("answered after the round had closed".to_owned()),
            (Work::None, Some(failure), _) => failure.clone(),
            (Work::None, None, Presence::Absent { why: Some(failure) }) => failure.clone(),
            (Work::None, None, _) => {
                Failure::new(FailureCode::Disconnected, Phase::Start, "was not connected")
            }
        }
    }

    /// Notes that `round` was closed without it.
    pub(super) fn miss(&mut self, round: Round) {
        let cause = self.reason_out();
        let missed = self.missed.get_or_insert_with(|| MissedRounds {
            rounds: 0,
            first: round,
            last: round,
            cause: cause.clone(),
        });
        missed.rounds = missed.rounds.saturating_add(1);
        missed.last = round;
        missed.cause = cause;
    }
}

fn late(message: String) -> Failure {
    Failure::new(FailureCode::RoundDeadline, Phase::Train, message)
        .with_hint("give rounds more time, or see what slows this site")
}

impl Presence {
    /// Whether it is not there and said that it will not come.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Absent { why: Some(failure) }
            if failure.code != FailureCode::Disconnected)
    }
}

pack_enum! {
    Presence {
        0 => Absent { why },
        1 => Here,
        2 => Awaited { since },
    }
    Work {
        0 => None,
        1 => Asked { round, attempt, stage, since, limit },
        2 => Expected { since },
        3 => Done { update },
        4 => Failed { failure },
        5 => Lost { failure },
        6 => Late { stage, since },
    }
}

pack_struct! {
    Site { presence, work, attempts, answered, failures, excluded, steps_said, missed }
    Update { model, params_type, steps, metrics, arrived, round, attempt, counts_in }
    MissedRounds { rounds, first, last, cause }
}
