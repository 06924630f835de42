//! The sites with their counts, so that no event costs a walk over all of them.

use std::collections::{BTreeSet, HashMap};

use firesteel_base::{Round, SiteName, Time};

use super::config::FedAvgConfig;
use super::site::{Presence, Site, Work};

/// The job's sites in site order.
///
/// INVARIANT: the counts and the limits always agree with the sites' states;
/// presence and work change through `set_presence` and `set_work` alone.
#[derive(Debug, Clone)]
pub(super) struct Roster {
    names: Vec<SiteName>,
    places: HashMap<SiteName, usize>,
    traits: Vec<Traits>,
    required: usize,
    sites: Vec<Site>,
    presence: PresenceCount,
    work: WorkCount,
    /// When which site's task is over its limit.
    limits: BTreeSet<(Time, usize)>,
    /// The round that `work` counts for.
    round: Round,
}

/// What the configuration says of one site.
#[derive(Debug, Clone, Copy)]
struct Traits {
    weight: f64,
    required: bool,
}

/// How many sites are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PresenceCount {
    pub(super) here: usize,
    pub(super) refused: usize,
    pub(super) required_here: usize,
    pub(super) required_refused: usize,
}

/// How many sites have answered or may yet, in the current round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct WorkCount {
    pub(super) done: usize,
    pub(super) asked: usize,
    pub(super) required_done: usize,
    pub(super) required_asked: usize,
}

impl Roster {
    pub(super) fn new(config: &FedAvgConfig) -> Self {
        let sites = vec![Site::new(); config.sites.len()];
        Self::with_sites(config, sites, config.start_round)
    }

    /// The sites of a snapshot, of which there are as many as the config names.
    pub(super) fn with_sites(config: &FedAvgConfig, sites: Vec<Site>, round: Round) -> Self {
        let names = config.sites.clone();
        let places: HashMap<_, _> = (names.iter().cloned()).zip(0..).collect();
        let mut traits = vec![
            Traits {
                weight: 1.0,
                required: false
            };
            names.len()
        ];
        for (name, weight) in &config.site_weights {
            traits[places[name]].weight = *weight;
        }
        for name in &config.required_sites {
            traits[places[name]].required = true;
        }
        let mut roster = Self {
            required: traits.iter().filter(|one| one.required).count(),
            names,
            places,
            traits,
            sites,
            presence: PresenceCount::default(),
            work: WorkCount::default(),
            limits: BTreeSet::new(),
            round,
        };
        for at in 0..roster.len() {
            roster.count_presence(at, 1);
        }
        roster.recount(round);
        roster
    }

    pub(super) fn len(&self) -> usize {
        self.sites.len()
    }

    /// How many sites are required.
    pub(super) fn required(&self) -> usize {
        self.required
    }

    pub(super) fn is_required(&self, at: usize) -> bool {
        self.traits[at].required
    }

    pub(super) fn find(&self, site: &SiteName) -> Option<usize> {
        self.places.get(site).copied()
    }

    pub(super) fn name(&self, at: usize) -> &SiteName {
        &self.names[at]
    }

    pub(super) fn weight(&self, at: usize) -> f64 {
        self.traits[at].weight
    }

    pub(super) fn site(&self, at: usize) -> &Site {
        &self.sites[at]
    }

    /// For everything but presence and work.
    pub(super) fn site_mut(&mut self, at: usize) -> &mut Site {
        &mut self.sites[at]
    }

    pub(super) fn sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.iter()
    }

    pub(super) fn presence_count(&self) -> PresenceCount {
        self.presence
    }

    pub(super) fn work_count(&self) -> WorkCount {
        self.work
    }

    pub(super) fn first_limit(&self) -> Option<Time> {
        self.limits.first().map(|(when, _)| *when)
    }

    /// A site whose task is over its limit.
    pub(super) fn pop_limit(&mut self, now: Time) -> Option<usize> {
        let &(when, at) = self.limits.first()?;
        (when <= now).then(|| {
            self.limits.pop_first();
            at
        })
    }

    pub(super) fn set_presence(&mut self, at: usize, presence: Presence) {
        self.count_presence(at, -1);
        self.sites[at].presence = presence;
        self.count_presence(at, 1);
    }

    pub(super) fn set_work(&mut self, at: usize, work: Work) {
        self.count_work(at, -1);
        self.sites[at].work = work;
        self.count_work(at, 1);
    }

    /// Counts anew, for another round.
    pub(super) fn recount(&mut self, round: Round) {
        self.round = round;
        self.work = WorkCount::default();
        self.limits.clear();
        for at in 0..self.len() {
            self.count_work(at, 1);
        }
    }

    fn count_presence(&mut self, at: usize, by: isize) {
        let site = &self.sites[at];
        let required = self.traits[at].required;
        let count = &mut self.presence;
        if site.presence == Presence::Here {
            add(&mut count.here, by);
            add(&mut count.required_here, by * isize::from(required));
        }
        if site.presence.is_refusal() {
            add(&mut count.refused, by);
            add(&mut count.required_refused, by * isize::from(required));
        }
    }

    fn count_work(&mut self, at: usize, by: isize) {
        let required = isize::from(self.traits[at].required);
        match &self.sites[at].work {
            Work::Asked { limit, .. } => {
                add(&mut self.work.asked, by);
                add(&mut self.work.required_asked, by * required);
                match limit {
                    Some(when) if by > 0 => {
                        self.limits.insert((*when, at));
                    }
                    Some(when) => {
                        self.limits.remove(&(*when, at));
                    }
                    None => {}
                }
            }
            Work::Expected { .. } => {
                add(&mut self.work.asked, by);
                add(&mut self.work.required_asked, by * required);
            }
            Work::Done { update } if update.counts_in == self.round => {
                add(&mut self.work.done, by);
                add(&mut self.work.required_done, by * required);
            }
            _ => {}
        }
    }
}

fn add(count: &mut usize, by: isize) {
    *count = count
        .checked_add_signed(by)
        .expect("what is taken from a count was added to it");
}
