//! FedAvg's settings, checked once.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use firesteel_base::{Hint, Round, SiteName};

use crate::ParamsType;

/// What a site's weight may be. Times the most steps, and summed over the most
/// sites, it stays within an `f32`, to which aggregators round weights.
const SITE_WEIGHT: RangeInclusive<f64> = 1e-12..=1e12;

/// What a federated average is configured with; checked by
/// [`FedAvg::new`](crate::FedAvg::new).
#[derive(Debug, Clone, PartialEq)]
pub struct FedAvgConfig {
    /// Every site of the job. Their order is the order of sums, records and
    /// reports.
    pub sites: Vec<SiteName>,
    /// How many rounds.
    pub num_rounds: u32,
    /// The number of the first round.
    pub start_round: Round,
    /// Both quorums, where they are not set on their own.
    pub min_clients: usize,
    /// How many sites must be connected before the first round; `None`:
    /// `min_clients`.
    pub quorum_start: Option<usize>,
    /// How many sites must contribute to each round; `None`: `min_clients`.
    pub quorum_round: Option<usize>,
    /// Sites without which neither the job starts nor a round succeeds.
    pub required_sites: Vec<SiteName>,
    /// How long a round may take from its first assignment. `None`: as long as
    /// its sites do.
    pub round: Option<Duration>,
    /// How long a trainer may take for one task. `None`: as long as it does.
    pub task: Option<Duration>,
    /// How long to wait for the other sites once the quorum is there. `None`:
    /// until each has answered or failed, or the round's deadline.
    pub grace: Option<Duration>,
    /// What becomes of results that come after their round.
    pub late: LatePolicy,
    /// What becomes of a site whose work failed.
    pub on_failure: OnFailure,
    /// After how many failures in a row a site is dismissed under
    /// [`OnFailure::RetryNextRound`].
    pub max_failures: u32,
    /// When a site that left and came back is given work again.
    pub returning: Returning,
    /// Factors on the sites' weights; 1 for a site that is not named.
    pub site_weights: BTreeMap<SiteName, f64>,
    /// The kind of params that updates must have; `None`: either.
    pub params_type: Option<ParamsType>,
    /// Regular expressions of variables that are not averaged. Checked by
    /// whoever folds.
    pub exclude: Vec<String>,
    /// How the best model is told; `None`: no model is marked best.
    pub key_metric: Option<KeyMetric>,
    /// Ends the job as soon as a round's metrics meet it.
    pub stop: Option<StopCondition>,
    /// Ends the job when the key metric has not improved for this many rounds.
    pub patience: Option<u32>,
}

impl FedAvgConfig {
    /// All sites, every one needed in every round, and no time limits.
    pub fn new(sites: Vec<SiteName>, num_rounds: u32) -> Self {
        Self {
            min_clients: sites.len(),
            sites,
            num_rounds,
            start_round: Round(0),
            quorum_start: None,
            quorum_round: None,
            required_sites: Vec::new(),
            round: None,
            task: None,
            grace: None,
            late: LatePolicy::Drop,
            on_failure: OnFailure::RetryNextRound,
            max_failures: 3,
            returning: Returning::SameRound,
            site_weights: BTreeMap::new(),
            params_type: None,
            exclude: Vec::new(),
            key_metric: None,
            stop: None,
            patience: None,
        }
    }

    /// How many sites must be connected before the first round: never fewer
    /// than a round needs, or it would fail as soon as it is opened.
    pub fn quorum_start(&self) -> usize {
        let quorum = self.quorum_start.unwrap_or(self.min_clients);
        quorum.max(self.quorum_round())
    }

    /// How many sites must contribute to each round.
    pub fn quorum_round(&self) -> usize {
        self.quorum_round.unwrap_or(self.min_clients)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let mut known = HashSet::new();
        if let Some(site) = self.sites.iter().find(|site| !known.insert(*site)) {
            return Err(ConfigError::SiteTwice { site: site.clone() });
        }
        if self.sites.is_empty() {
            return Err(ConfigError::NoSites);
        }
        if self.num_rounds == 0 {
            return Err(ConfigError::NoRounds);
        }
        if self.start_round.0.checked_add(self.num_rounds).is_none() {
            return Err(ConfigError::RoundsTooLarge {
                start: self.start_round,
                rounds: self.num_rounds,
            });
        }
        for (what, quorum) in [
            ("quorum per round", self.quorum_round()),
            (
                "quorum to start",
                self.quorum_start.unwrap_or(self.min_clients),
            ),
        ] {
            if quorum == 0 || quorum > self.sites.len() {
                return Err(ConfigError::Quorum {
                    what,
                    quorum,
                    sites: self.sites.len(),
                });
            }
        }
        for (setting, site) in (self.required_sites.iter().map(|s| ("required_sites", s)))
            .chain(self.site_weights.keys().map(|s| ("site_weights", s)))
        {
            if !known.contains(site) {
                return Err(ConfigError::UnknownSite {
                    setting,
                    site: site.clone(),
                });
            }
        }
        if let Some((site, &weight)) =
            (self.site_weights.iter()).find(|(_, weight)| !SITE_WEIGHT.contains(weight))
        {
            return Err(ConfigError::Weight {
                site: site.clone(),
                weight,
            });
        }
        if self.max_failures == 0 {
            return Err(ConfigError::NoFailures);
        }
        match (self.patience, &self.key_metric) {
            (Some(0), _) => Err(ConfigError::NoPatience),
            (Some(_), None) => Err(ConfigError::PatienceWithoutMetric),
            _ => Ok(()),
        }
    }
}

/// What becomes of a result that comes after its round has closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LatePolicy {
    /// The task is canceled when the round closes, and its result is dropped.
    Drop,
    /// The site goes on with its task, is given no other, and its result counts
    /// in the round that is open when it arrives. Its metrics do not: they rate
    /// an older model.
    CountNextRound,
}

/// What becomes of a site whose work failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnFailure {
    /// It is out of this round and in the next one again, until it has failed
    /// `max_failures` times in a row.
    RetryNextRound,
    /// It has no more part in the job.
    Exclude,
}

/// When a site that left and came back is given work again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Returning {
    /// At once, if the round is still open and it has not contributed.
    SameRound,
    /// In the next round.
    NextRound,
}

/// The metric that tells the best model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyMetric {
    /// Its name.
    pub name: String,
    /// Which way is better.
    pub mode: MetricMode,
}

/// Which values of a metric are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MetricMode {
    /// Greater ones, as for an accuracy.
    Max,
    /// Smaller ones, as for a loss.
    Min,
}

impl MetricMode {
    /// Whether `new` is better than `old`; equal is not.
    pub fn improves(self, new: f64, old: f64) -> bool {
        match self {
            Self::Max => new > old,
            Self::Min => new < old,
        }
    }
}

/// `<metric> <op> <value>`, separated by spaces: `accuracy >= 0.95`.
#[derive(Debug, Clone, PartialEq)]
pub struct StopCondition {
    metric: String,
    comparison: Comparison,
    value: f64,
}

impl StopCondition {
    /// The metric it watches.
    pub fn metric(&self) -> &str {
        &self.metric
    }

    /// Whether this mean of the metric ends the job.
    pub fn is_met_by(&self, mean: f64) -> bool {
        match self.comparison {
            Comparison::AtLeast => mean >= self.value,
            Comparison::Above => mean > self.value,
            Comparison::AtMost => mean <= self.value,
            Comparison::Below => mean < self.value,
            Comparison::Equal => mean == self.value,
        }
    }
}

/// How a stop condition compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// `>=`
    AtLeast,
    /// `>`
    Above,
    /// `<=`
    AtMost,
    /// `<`
    Below,
    /// `==`
    Equal,
}

impl Comparison {
    const ALL: [(Self, &'static str); 5] = [
        (Self::AtLeast, ">="),
        (Self::Above, ">"),
        (Self::AtMost, "<="),
        (Self::Below, "<"),
        (Self::Equal, "=="),
    ];

    /// The sign as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AtLeast => ">=",
            Self::Above => ">",
            Self::AtMost => "<=",
            Self::Below => "<",
            Self::Equal => "==",
        }
    }
}

impl FromStr for StopCondition {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refuse = |reason| ConfigError::StopCondition {
            condition: text.chars().take(80).collect(),
            reason,
        };
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let (Some(value), Some(sign)) = (words.pop(), words.pop()) else {
            return Err(refuse("it has fewer than three parts"));
        };
        // A metric's name may hold spaces; its sign and value cannot.
        let metric = words.join(" ");
        if metric.is_empty() {
            return Err(refuse("it has fewer than three parts"));
        }
        let comparison = (Comparison::ALL.into_iter())
            .find(|(_, known)| *known == sign)
            .ok_or_else(|| refuse("the comparison is none of >=, >, <=, <, =="))?
            .0;
        let value: f64 = (value.parse().ok())
            .filter(|v: &f64| v.is_finite())
            .ok_or_else(|| refuse("the value is not a finite number"))?;
        Ok(Self {
            metric,
            comparison,
            value,
        })
    }
}

impl fmt::Display for StopCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {}",
            self.metric,
            self.comparison.as_str(),
            self.value
        )
    }
}

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is nobody to train.
    #[error("the job has no sites")]
    NoSites,
    /// A site is listed twice.
    #[error("{site} is listed twice")]
    SiteTwice {
        /// The site.
        site: SiteName,
    },
    /// There is nothing to do.
    #[error("num_rounds is 0")]
    NoRounds,
    /// Round numbers would not fit.
    #[error("start_round {} plus num_rounds {rounds} is beyond the last round number", start.0)]
    RoundsTooLarge {
        /// The first round.
        start: Round,
        /// How many.
        rounds: u32,
    },
    /// A quorum that can never, or always, be met.
    #[error("the {what} is {quorum}, and the job has {sites} sites")]
    Quorum {
        /// Which quorum.
        what: &'static str,
        /// Its value.
        quorum: usize,
        /// How many sites there are.
        sites: usize,
    },
    /// A setting names a site that is not part of the job.
    #[error("{setting} names {site}, which is not a site of the job")]
    UnknownSite {
        /// Which setting.
        setting: &'static str,
        /// The site.
        site: SiteName,
    },
    /// A weight that is zero, negative, not finite or out of all proportion.
    #[error("the weight of {site} is {weight}")]
    Weight {
        /// The site.
        site: SiteName,
        /// Its weight.
        weight: f64,
    },
    /// Every site would be dismissed before it did anything.
    #[error("max_failures is 0")]
    NoFailures,
    /// The job would stop before its first round.
    #[error("patience is 0")]
    NoPatience,
    /// Nothing to be patient about.
    #[error("patience is set without a key metric")]
    PatienceWithoutMetric,
    /// A stop condition that cannot be read.
    #[error("stop condition `{condition}`: {reason}")]
    StopCondition {
        /// Its first 80 characters.
        condition: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Hint for ConfigError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoSites => "name at least one site",
            Self::SiteTwice { .. } => "give each site a name of its own",
            Self::NoRounds => "set num_rounds to at least 1",
            Self::RoundsTooLarge { .. } => "lower start_round or num_rounds",
            Self::Quorum { .. } => "set it between 1 and the number of sites",
            Self::UnknownSite { .. } => "check the spelling against the job's list of sites",
            Self::Weight { .. } => {
                "give a weight between 1e-12 and 1e12; leave a site out of the job to ignore it"
            }
            Self::NoFailures => "set max_failures to at least 1",
            Self::NoPatience => "set patience to at least 1, or leave it out",
            Self::PatienceWithoutMetric => "set key_metric to the metric that should improve",
            Self::StopCondition { .. } => "write it as in `accuracy >= 0.95`",
        };
        Some(hint.to_owned())
    }
}
