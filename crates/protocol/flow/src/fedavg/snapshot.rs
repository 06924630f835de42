//! FedAvg's snapshots, version 1.

use firesteel_base::{Round, SiteName, Time};

use super::site::{Site, Work};
use super::tally::Roster;
use super::update::steps_are_sound;
use super::{ConfigError, FedAvg, FedAvgConfig, Made, OpenRound, Said, Stage};
use crate::codec::{self, Pack, pack_enum, pack_struct};
use crate::{BestMark, Outcome, Restore, RestoreError};

const VERSION: u16 = 1;

/// Everything that `FedAvg` cannot work out anew.
// WIRE: the order of these fields is the format; a change is a new version.
struct Saved {
    names: Vec<SiteName>,
    sites: Vec<Site>,
    stage: Stage,
    now: Time,
    round: OpenRound,
    model: Option<Made>,
    best: Option<BestMark>,
    unimproved: u32,
    rounds_done: u32,
    said: Said,
    outcome: Option<Outcome>,
}

pack_enum! {
    Stage { 0 => Created, 1 => Gathering, 2 => Open, 3 => Folding, 4 => Ended, }
}

pack_struct! {
    Saved { names, sites, stage, now, round, model, best, unimproved, rounds_done, said, outcome }
    OpenRound { number, opened, deadline, quorum_since, folds }
    Made { handle, made_in }
    Said { key_metric, stop_metric }
}

pub(super) fn write(flow: &FedAvg) -> Vec<u8> {
    let mut out = codec::begin(VERSION, FedAvg::KIND);
    Saved {
        names: flow.config.sites.clone(),
        sites: flow.roster.sites().cloned().collect(),
        stage: flow.stage,
        now: flow.now,
        round: flow.round.clone(),
        model: flow.model.clone(),
        best: flow.best.clone(),
        unimproved: flow.unimproved,
        rounds_done: flow.rounds_done,
        said: flow.said.clone(),
        outcome: flow.outcome.clone(),
    }
    .pack(&mut out);
    out
}

impl Restore for FedAvg {
    type Config = FedAvgConfig;
    type ConfigError = ConfigError;

    const KIND: &'static str = "fedavg";

    fn create(config: FedAvgConfig) -> Result<Self, ConfigError> {
        Self::new(config)
    }

    fn restore(config: FedAvgConfig, bytes: &[u8]) -> Result<Self, RestoreError> {
        config.check().map_err(|error| RestoreError::Config {
            reason: error.to_string(),
        })?;
        let mut reader = codec::open(bytes, VERSION, Self::KIND)?;
        let saved = Saved::unpack(&mut reader)?;
        let damaged = reader.damaged("a state that can be");
        reader.finish()?;
        compare_sites(&config.sites, &saved.names)?;
        if !saved.can_be() {
            return Err(damaged);
        }
        Ok(Self {
            roster: Roster::with_sites(&config, saved.sites, saved.round.number),
            config,
            stage: saved.stage,
            now: saved.now,
            round: saved.round,
            model: saved.model,
            best: saved.best,
            unimproved: saved.unimproved,
            rounds_done: saved.rounds_done,
            said: saved.said,
            outcome: saved.outcome,
        })
    }
}

impl Saved {
    /// Whether the fields agree so far as the workflow relies on them.
    fn can_be(&self) -> bool {
        let steps_are_sound = (self.sites.iter())
            .filter_map(|site| match &site.work {
                Work::Done { update } => update.steps,
                _ => None,
            })
            .all(steps_are_sound);
        let has_ended = self.stage == Stage::Ended;
        self.sites.len() == self.names.len()
            && steps_are_sound
            && self.round.number < Round(u32::MAX)
            && has_ended == self.outcome.is_some()
    }
}

fn compare_sites(configured: &[SiteName], saved: &[SiteName]) -> Result<(), RestoreError> {
    let difference = (configured.iter().zip(saved))
        .find(|(now, then)| now != then)
        .map(|(now, then)| format!("{then} then, {now} now"))
        .or_else(|| {
            (configured.len() != saved.len())
                .then(|| format!("{} sites then, {} now", saved.len(), configured.len()))
        });
    match difference {
        Some(difference) => Err(RestoreError::Sites { difference }),
        None => Ok(()),
    }
}
