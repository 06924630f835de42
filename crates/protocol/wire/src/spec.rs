//! The job spec: what a recipe builds, and what every role reads.
//!
//! JSON, version 1. An unknown field is an error here, unlike in messages: a
//! mistyped option must not be ignored in silence.

pub mod filters;
mod needs;
mod submitted;

use std::collections::BTreeMap;
use std::time::Duration;

use firesteel_base::{Hint, Round, SiteName, limits};
use firesteel_flow::{
    FedAvgConfig, KeyMetric, LatePolicy, MetricMode, ParamsType, Returning, StopCondition,
};
use serde::{Deserialize, Serialize};

pub use filters::{Direction as FilterDirection, FilterFile, Filters, PythonFilter};
pub use needs::{Hierarchy, Resources};

/// Why a job spec was refused: always with the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {problem}")]
pub struct SpecError {
    /// The field's path, `policy.quorum_round` say.
    pub field: String,
    /// What is wrong with it, and what was expected.
    pub problem: String,
    hint: Option<String>,
}

impl SpecError {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
            hint: None,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl Hint for SpecError {
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

/// A job, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// 1.
    pub version: u32,
    /// The job's name.
    pub name: String,
    /// What decides the next step.
    pub algorithm: Algorithm,
    /// The sites, in the order in which their updates are summed. Empty only in a
    /// job as it is submitted, where that means all that are connected.
    pub sites: Vec<String>,
    /// Sites needed, to start and in every round, unless the policy says more.
    pub min_clients: u32,
    /// How the training script is run.
    pub trainer: Trainer,
    /// What differs at a site.
    #[serde(default)]
    pub site: BTreeMap<String, SiteSettings>,
    /// The names of data the script asks for, and what they mean.
    #[serde(default)]
    pub data: BTreeMap<String, String>,
    /// How updates become a model.
    #[serde(default)]
    pub aggregation: Aggregation,
    /// Which model is the best one.
    #[serde(default)]
    pub selection: Selection,
    /// When to stop before the last round.
    #[serde(default)]
    pub stop: Stop,
    /// What happens when sites are late, fail or leave.
    #[serde(default)]
    pub policy: Policy,
    /// How many of the last models are kept beside initial and best.
    #[serde(default = "two")]
    pub keep_models: u32,
    /// For a run that can be repeated bit for bit.
    #[serde(default)]
    pub seed: Option<u64>,
    /// The file of the initial model; absent: the first round makes it.
    #[serde(default)]
    pub initial_model: Option<String>,
    /// Where logged numbers go besides the metrics files: `tensorboard`.
    #[serde(default)]
    pub tracking: Vec<String>,
    /// What models pass on their way.
    #[serde(default)]
    pub filters: Filters,
    // What follows is left out where it says nothing, so that a build that does
    // not know it reads the jobs that do without.
    /// The environment that the sites run the script in, by the name that each of
    /// them has given one; absent: the site's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// What every site sets aside for the job.
    #[serde(default, skip_serializing_if = "Resources::is_none")]
    pub resources: Resources,
    /// Jobs with a higher one go first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// What relays may do with what passes through them.
    #[serde(default, skip_serializing_if = "Hierarchy::is_splice")]
    pub hierarchy: Hierarchy,
    /// The submitter's notes; nothing is decided by them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

/// What decides the next step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Algorithm {
    /// Federated averaging (McMahan et al., 2017).
    Fedavg {
        /// Rounds to run.
        num_rounds: u32,
        /// The number of the first one.
        #[serde(default)]
        start_round: u32,
    },
}

/// How a trainer's process comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Forked from a warm parent that has imported the libraries.
    Warm,
    /// Started by a command.
    External,
    /// Started by a person; it attaches itself.
    Attach,
    /// None: a task is answered at once with the model that came with it. For
    /// measurements, and to see whether a federation works.
    Noop,
}

/// FULL or DIFF params.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transfer {
    /// The params themselves.
    Full,
    /// Their difference to the model handed out.
    Diff,
}

/// How the training script is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trainer {
    /// The script.
    pub script: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// How it is started.
    #[serde(default = "warm")]
    pub mode: Mode,
    /// What stands before the script in an external start.
    #[serde(default = "python3")]
    pub command: Vec<String>,
    /// One process for the whole job (else one per task).
    #[serde(default = "yes")]
    pub launch_once: bool,
    /// `numpy`, `pytorch`, `sklearn`, `tensorflow` or `raw`.
    #[serde(default = "numpy")]
    pub framework: String,
    /// What the script sees: `numpy`, `pytorch` or `raw`.
    #[serde(default = "numpy")]
    pub exchange: String,
    /// What the script's updates are.
    #[serde(default = "full")]
    pub transfer: Transfer,
    /// Modules the warm parent imports, as far as they are allowed.
    #[serde(default)]
    pub preload: Vec<String>,
    /// Additions to the environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Collect garbage and trim the heap after every so many rounds; 0: never.
    #[serde(default)]
    pub gc_rounds: u32,
    /// Empty the CUDA cache with it.
    #[serde(default)]
    pub cuda_empty_cache: bool,
    /// Seconds that it may take to report; absent: as the site has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_s: Option<f64>,
    /// Seconds between asking it to end and ending it; absent: as the site has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace_s: Option<f64>,
}

/// What differs at one site.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SiteSettings {
    /// Another script.
    pub script: Option<String>,
    /// Other arguments.
    pub args: Option<Vec<String>>,
    /// Another command.
    pub command: Option<Vec<String>>,
    /// What the names of data mean here.
    pub data: BTreeMap<String, String>,
    /// Further additions to the environment.
    pub env: BTreeMap<String, String>,
    /// Another named environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Other resources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// How updates become a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Aggregation {
    /// Which statistic.
    pub method: Method,
    /// For `trimmed_mean`: the share cut off at either end, 0 to under 0.5.
    pub trim: f64,
    /// Factors on the weights of sites; 1 where absent.
    pub site_weights: BTreeMap<String, f64>,
    /// Regular expressions of tensor names that are left as they are.
    pub exclude: Vec<String>,
    /// `float32` or `float64`: the dtype of the server's copy of narrower floats.
    pub master_dtype: Option<String>,
}

/// A statistic over updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Weighted mean.
    Mean,
    /// Coordinate-wise median, unweighted.
    Median,
    /// Coordinate-wise mean without the extremes, unweighted.
    TrimmedMean,
}

impl Default for Aggregation {
    fn default() -> Self {
        Self {
            method: Method::Mean,
            trim: 0.1,
            site_weights: BTreeMap::new(),
            exclude: Vec::new(),
            master_dtype: None,
        }
    }
}

/// Whether more or less of the key metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// More is better.
    Max,
    /// Less is better.
    Min,
}

/// Which model is the best one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// The metric that decides.
    pub key_metric: String,
    /// In which direction.
    pub mode: Direction,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            key_metric: "accuracy".into(),
            mode: Direction::Max,
        }
    }
}

/// When to stop before the last round.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// `"<metric> <op> <number>"`.
    pub condition: Option<String>,
    /// Rounds without improvement of the key metric.
    pub patience: Option<u32>,
}

/// What becomes of an update that comes after its round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Late {
    /// It is dropped and recorded.
    Drop,
    /// It counts in the round that runs when it comes.
    NextRound,
}

/// What becomes of a site whose task failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It gets the next round's task, until it has failed `max_failures` times in a row.
    Retry,
    /// It gets no further task.
    Exclude,
}

/// What happens when sites are late, fail or leave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Sites needed to start; absent: `min_clients`.
    pub quorum_start: Option<u32>,
    /// Updates needed in a round; absent: `min_clients`.
    pub quorum_round: Option<u32>,
    /// Sites without which nothing goes on.
    pub required_sites: Vec<String>,
    /// Seconds a round may take.
    pub round_s: Option<f64>,
    /// Seconds a site may take for a task.
    pub task_s: Option<f64>,
    /// Seconds to wait for the others once the quorum is there; absent: wait for
    /// all that are at work.
    pub grace_s: Option<f64>,
    /// Late updates.
    pub late: Late,
    /// Failed sites.
    pub on_failure: OnFailure,
    /// Failures in a row after which a site is left out.
    pub max_failures: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            quorum_start: None,
            quorum_round: None,
            required_sites: Vec::new(),
            round_s: None,
            task_s: None,
            grace_s: None,
            late: Late::Drop,
            on_failure: OnFailure::Retry,
            max_failures: 3,
        }
    }
}

/// Whether a job may leave its sites open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Emptiness {
    Allowed,
    Refused,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(value: &i32) -> bool {
    *value == 0
}

fn two() -> u32 {
    2
}
fn warm() -> Mode {
    Mode::Warm
}
fn python3() -> Vec<String> {
    vec!["python3".into(), "-u".into()]
}
fn yes() -> bool {
    true
}
fn numpy() -> String {
    "numpy".into()
}
fn full() -> Transfer {
    Transfer::Full
}

impl JobSpec {
    /// Reads and checks a job spec.
    ///
    /// # Errors
    /// [`SpecError`] with the first field that is wrong.
    pub fn parse(json: &[u8]) -> Result<Self, SpecError> {
        check_length(json.len())?;
        let spec: Self = read(json)?;
        spec.check(Emptiness::Refused)?;
        // What travels has the defaults filled in.
        check_length(spec.to_json().len())?;
        Ok(spec)
    }

    /// The spec as JSON, from which [`JobSpec::parse`] makes an equal one.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a checked spec has string keys and finite numbers")
    }

    /// The names of the sites, checked.
    pub fn site_names(&self) -> Vec<SiteName> {
        self.sites
            .iter()
            .map(|name| SiteName::new(name).expect("checked when the spec was parsed"))
            .collect()
    }

    /// The settings of a site, empty ones where nothing differs.
    pub fn settings(&self, site: &SiteName) -> SiteSettings {
        self.site.get(site.as_str()).cloned().unwrap_or_default()
    }

    /// The settings of the federated average that this job asks for.
    pub fn fedavg(&self) -> FedAvgConfig {
        let Algorithm::Fedavg {
            num_rounds,
            start_round,
        } = self.algorithm;
        let name = |text: &String| SiteName::new(text).expect("checked when the spec was parsed");
        let policy = &self.policy;
        let weights = self.aggregation.site_weights.iter();
        FedAvgConfig {
            sites: self.site_names(),
            num_rounds,
            start_round: Round(start_round),
            min_clients: self.min_clients as usize,
            quorum_start: policy.quorum_start.map(|sites| sites as usize),
            quorum_round: policy.quorum_round.map(|sites| sites as usize),
            required_sites: policy.required_sites.iter().map(name).collect(),
            round: policy.round_s.map(seconds),
            task: policy.task_s.map(seconds),
            grace: policy.grace_s.map(seconds),
            late: match policy.late {
                Late::Drop => LatePolicy::Drop,
                Late::NextRound => LatePolicy::CountNextRound,
            },
            on_failure: match policy.on_failure {
                OnFailure::Retry => firesteel_flow::OnFailure::RetryNextRound,
                OnFailure::Exclude => firesteel_flow::OnFailure::Exclude,
            },
            max_failures: policy.max_failures,
            returning: Returning::SameRound,
            site_weights: weights
                .map(|(site, weight)| (name(site), *weight))
                .collect(),
            params_type: Some(match self.trainer.transfer {
                Transfer::Full => ParamsType::Full,
                Transfer::Diff => ParamsType::Diff,
            }),
            exclude: self.aggregation.exclude.clone(),
            key_metric: Some(KeyMetric {
                name: self.selection.key_metric.clone(),
                mode: match self.selection.mode {
                    Direction::Max => MetricMode::Max,
                    Direction::Min => MetricMode::Min,
                },
            }),
            stop: self
                .stop
                .condition
                .as_ref()
                .map(|condition| condition.parse().expect("checked when the spec was parsed")),
            patience: self.stop.patience,
        }
    }

    fn check(&self, no_sites: Emptiness) -> Result<(), SpecError> {
        if self.version != 1 {
            return Err(SpecError::new(
                "version",
                format!("is {}, this build reads version 1", self.version),
            )
            .hint("build the job with the same version of firesteel, or upgrade the older side"));
        }
        firesteel_base::JobId::new(&self.name)
            .map_err(|error| SpecError::new("name", error.to_string()))?;
        self.check_sites(no_sites)?;
        self.check_policy()?;
        self.check_aggregation()?;
        self.check_needs()?;
        let Algorithm::Fedavg {
            num_rounds,
            start_round,
        } = self.algorithm;
        if num_rounds == 0 {
            return Err(SpecError::new("num_rounds", "is 0, expected at least 1"));
        }
        if start_round.checked_add(num_rounds).is_none() {
            return Err(SpecError::new(
                "start_round",
                "plus num_rounds is beyond 4294967295",
            ));
        }
        if self.trainer.script.is_empty() && self.trainer.mode != Mode::Noop {
            return Err(SpecError::new(
                "train_script",
                "is empty, expected the path of the training script",
            ));
        }
        let no_command = |field: String| {
            SpecError::new(
                field,
                "is empty, expected what runs the script, \"python3 -u\" say",
            )
        };
        if self.trainer.mode == Mode::External && self.trainer.command.is_empty() {
            return Err(no_command("command".to_owned()));
        }
        for (site, settings) in &self.site {
            if settings.command.as_ref().is_some_and(Vec::is_empty) {
                return Err(no_command(format!("site_config.{site}.command")));
            }
            if settings.script.as_ref().is_some_and(String::is_empty) {
                return Err(SpecError::new(
                    format!("site_config.{site}.train_script"),
                    "is empty, expected the path of the training script",
                ));
            }
        }
        if self.keep_models == 0 {
            return Err(SpecError::new(
                "keep_models",
                "is 0, expected at least 1: the last model is what a job is for",
            ));
        }
        if self.selection.key_metric.is_empty() {
            return Err(SpecError::new(
                "key_metric",
                "is empty, expected the name of a metric that the sites send",
            ));
        }
        if self.stop.patience == Some(0) {
            return Err(
                SpecError::new("patience", "is 0, expected at least 1 round")
                    .hint("leave it out to run all rounds"),
            );
        }
        if let Some(condition) = &self.stop.condition {
            condition.parse::<StopCondition>().map_err(|error| {
                let hint = error.hint();
                SpecError {
                    field: "stop_cond".into(),
                    problem: error.to_string(),
                    hint,
                }
            })?;
        }
        if self.initial_model.is_none() && self.trainer.transfer == Transfer::Diff {
            return Err(SpecError::new(
                "params_transfer_type",
                "is DIFF, but there is no initial model to differ from",
            )
            .hint("give the recipe `model=` or `initial_ckpt=`, or use FULL"));
        }
        let sites = Some(self.sites.as_slice()).filter(|sites| !sites.is_empty());
        self.filters.check(sites, Some(self.trainer.transfer))?;
        for kind in &self.tracking {
            if kind != "tensorboard" {
                return Err(SpecError::new(
                    "tracking_type",
                    format!("is {kind:?}, expected \"tensorboard\""),
                ));
            }
        }
        Ok(())
    }

    fn check_sites(&self, none: Emptiness) -> Result<(), SpecError> {
        let count = self.sites.len();
        if count == 0 && none == Emptiness::Refused {
            return Err(
                SpecError::new("sites", "is empty, expected at least one site")
                    .hint("give the environment `num_clients=` or `clients=`"),
            );
        }
        if count > limits::SIM_SITES {
            return Err(SpecError::new(
                "sites",
                format!("has {count} sites, the limit is {}", limits::SIM_SITES),
            ));
        }
        let mut seen = std::collections::HashSet::new();
        for name in &self.sites {
            SiteName::new(name).map_err(|error| SpecError::new("sites", error.to_string()))?;
            if !seen.insert(name) {
                return Err(SpecError::new("sites", format!("names `{name}` twice")));
            }
        }
        let known = |field: &str, name: &String| {
            if count == 0 {
                // Which sites there are is not known yet.
                let named = SiteName::new(name).map(drop);
                return named.map_err(|error| SpecError::new(field, error.to_string()));
            }
            if seen.contains(name) {
                return Ok(());
            }
            let some: Vec<_> = self.sites.iter().take(5).cloned().collect();
            Err(SpecError::new(
                field,
                format!("names `{name}`, which is not a site of this job"),
            )
            .hint(format!(
                "the sites are {}{}",
                some.join(", "),
                if count > 5 { ", …" } else { "" }
            )))
        };
        self.site
            .keys()
            .try_for_each(|name| known("site_config", name))?;
        self.aggregation
            .site_weights
            .keys()
            .try_for_each(|name| known("aggregation_weights", name))?;
        self.policy
            .required_sites
            .iter()
            .try_for_each(|name| known("policy.required_sites", name))
    }

    fn check_policy(&self) -> Result<(), SpecError> {
        let count = self.sites.len();
        let quorum = |field: &str, value: u32| {
            if value == 0 {
                Err(SpecError::new(field, "is 0, expected at least 1"))
            } else if count > 0 && value as usize > count {
                Err(
                    SpecError::new(field, format!("is {value}, but the job has {count} sites"))
                        .hint(format!("use at most {count}, or add sites")),
                )
            } else {
                Ok(())
            }
        };
        quorum("min_clients", self.min_clients)?;
        let policy = &self.policy;
        policy
            .quorum_start
            .map_or(Ok(()), |value| quorum("policy.quorum_start", value))?;
        policy
            .quorum_round
            .map_or(Ok(()), |value| quorum("policy.quorum_round", value))?;
        let seconds = |field: &str, value: Option<f64>, zero: bool| match value {
            Some(s) if !s.is_finite() || s < 0.0 || (s == 0.0 && !zero) || s > 1e9 => Err(
                SpecError::new(field, format!("is {s} seconds, expected a positive number")),
            ),
            _ => Ok(()),
        };
        seconds("policy.round_deadline", policy.round_s, false)?;
        seconds("policy.task_deadline", policy.task_s, false)?;
        seconds("policy.grace", policy.grace_s, true)?;
        seconds("launch_timeout", self.trainer.start_s, false)?;
        seconds("shutdown_timeout", self.trainer.stop_grace_s, true)?;
        if policy.max_failures == 0 {
            return Err(SpecError::new(
                "policy.max_failures",
                "is 0, expected at least 1",
            ));
        }
        if let (Some(round), Some(task)) = (policy.round_s, policy.task_s)
            && task > round
        {
            return Err(SpecError::new(
                "policy.task_deadline",
                format!("is {task} s, longer than the round's {round} s"),
            )
            .hint("raise the round's deadline or lower the task's"));
        }
        Ok(())
    }

    fn check_aggregation(&self) -> Result<(), SpecError> {
        let aggregation = &self.aggregation;
        if !(0.0..0.5).contains(&aggregation.trim) {
            return Err(SpecError::new(
                "aggregator",
                format!(
                    "trims {} at either end, expected 0 to under 0.5",
                    aggregation.trim
                ),
            ));
        }
        for (site, weight) in &aggregation.site_weights {
            if !weight.is_finite() || *weight <= 0.0 {
                return Err(SpecError::new(
                    format!("aggregation_weights.{site}"),
                    format!("is {weight}, expected a positive number"),
                ));
            }
        }
        for pattern in &aggregation.exclude {
            regex::Regex::new(pattern).map_err(|error| {
                SpecError::new(
                    "exclude_vars",
                    format!("{pattern:?} is not a regular expression: {error}"),
                )
            })?;
        }
        if self.hierarchy == Hierarchy::Aggregate && aggregation.method != Method::Mean {
            let median = aggregation.method == Method::Median;
            return Err(SpecError::new(
                "hierarchy",
                format!(
                    "is aggregate, but the {} needs every update at the server",
                    if median { "median" } else { "trimmed mean" }
                ),
            )
            .hint("use the hierarchy splice or cache, or the mean"));
        }
        // Each pattern is good by itself; all of them together may still be too much.
        regex::RegexSet::new(&aggregation.exclude)
            .map_err(|error| SpecError::new("exclude_vars", error.to_string()))?;
        match aggregation.master_dtype.as_deref() {
            Some("float32" | "float64") if self.initial_model.is_none() => Err(SpecError::new(
                "master_dtype",
                "is given, but there is no initial model that says in which dtypes the sites work",
            )
            .hint("give the recipe `model=` or `initial_ckpt=`, or leave master_dtype out")),
            None | Some("float32" | "float64") => Ok(()),
            Some(other) => Err(SpecError::new(
                "master_dtype",
                format!("is {other:?}, expected \"float32\", \"float64\" or nothing"),
            )),
        }
    }
}

fn check_length(bytes: usize) -> Result<(), SpecError> {
    if bytes <= limits::JOB_SPEC {
        return Ok(());
    }
    let problem = format!(
        "the spec has {bytes} bytes, the limit is {}",
        limits::JOB_SPEC
    );
    Err(SpecError::new("job", problem)
        .hint("put what differs from site to site into files, or use fewer sites"))
}

/// Reads JSON, naming the field where it stops being what it should.
pub(crate) fn read<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, SpecError> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        // "?" stands for a place that cannot be named: the text broke off.
        let whole = matches!(path.as_str(), "." | "?");
        let field = if whole { "job".to_owned() } else { path };
        SpecError::new(field, error.into_inner().to_string())
    })?;
    reader
        .end()
        .map_err(|error| SpecError::new("job", error.to_string()))?;
    Ok(value)
}

/// Seconds of a checked spec as a duration.
pub fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job() -> Value {
        json!({
            "version": 1, "name": "digits",
            "algorithm": {"kind": "fedavg", "num_rounds": 3},
            "sites": ["site-1", "site-2"], "min_clients": 2,
            "trainer": {"script": "/x/client.py"},
        })
    }

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let mut value = job();
        change(&mut value);
        JobSpec::parse(value.to_string().as_bytes())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_text_that_breaks_off_is_said_to_be_the_job() {
        let error = JobSpec::parse(br#"{"version": 1"#).unwrap_err();
        assert_eq!(error.field, "job");
    }

    #[test]
    fn a_short_job_is_filled_with_defaults_and_comes_back() {
        let spec = JobSpec::parse(job().to_string().as_bytes()).unwrap();
        assert_eq!(spec.policy, Policy::default());
        assert_eq!(spec.keep_models, 2);
        assert_eq!(JobSpec::parse(&spec.to_json()).unwrap(), spec);
    }

    #[test]
    fn every_refusal_names_its_field() {
        type Change = Box<dyn FnOnce(&mut Value)>;
        let cases: Vec<(&str, Change)> = vec![
            ("`version`", Box::new(|v| v["version"] = json!(2))),
            ("`name`", Box::new(|v| v["name"] = json!("../x"))),
            ("`sites`", Box::new(|v| v["sites"] = json!([]))),
            ("`sites`", Box::new(|v| v["sites"] = json!(["a", "a"]))),
            ("`sites[1]`", Box::new(|v| v["sites"] = json!(["a", 3]))),
            ("`min_clients`", Box::new(|v| v["min_clients"] = json!(0))),
            ("`min_clients`", Box::new(|v| v["min_clients"] = json!(3))),
            ("`min_clients`", Box::new(|v| v["min_clients"] = json!(-1))),
            (
                "`num_rounds`",
                Box::new(|v| v["algorithm"]["num_rounds"] = json!(0)),
            ),
            (
                "num_round`",
                Box::new(|v| v["algorithm"]["num_round"] = json!(1)),
            ),
            (
                "`site_config`",
                Box::new(|v| v["site"] = json!({"site-9": {}})),
            ),
            (
                "`aggregation_weights`",
                Box::new(|v| v["aggregation"] = json!({"site_weights": {"x": 1.0}})),
            ),
            (
                "`aggregation_weights.site-1`",
                Box::new(|v| v["aggregation"] = json!({"site_weights": {"site-1": -1.0}})),
            ),
            (
                "`exclude_vars`",
                Box::new(|v| v["aggregation"] = json!({"exclude": ["("]})),
            ),
            (
                "`master_dtype`",
                Box::new(|v| v["aggregation"] = json!({"master_dtype": "int8"})),
            ),
            (
                "`master_dtype`",
                Box::new(|v| v["aggregation"] = json!({"master_dtype": "float32"})),
            ),
            (
                "`site_config.site-1.command`",
                Box::new(|v| v["site"] = json!({"site-1": {"command": []}})),
            ),
            (
                "`site_config.site-2.train_script`",
                Box::new(|v| v["site"] = json!({"site-2": {"script": ""}})),
            ),
            (
                "`aggregation.method`",
                Box::new(|v| v["aggregation"] = json!({"method": "mode"})),
            ),
            (
                "`stop_cond`",
                Box::new(|v| v["stop"] = json!({"condition": "accuracy>=1"})),
            ),
            (
                "`patience`",
                Box::new(|v| v["stop"] = json!({"patience": 0})),
            ),
            (
                "`policy.quorum_round`",
                Box::new(|v| v["policy"] = json!({"quorum_round": 9})),
            ),
            (
                "`policy.task_deadline`",
                Box::new(|v| v["policy"] = json!({"round_s": 1.0, "task_s": 2.0})),
            ),
            (
                "`policy.round_deadline`",
                Box::new(|v| v["policy"] = json!({"round_s": 0.0})),
            ),
            (
                "`policy.required_sites`",
                Box::new(|v| v["policy"] = json!({"required_sites": ["x"]})),
            ),
            (
                "`params_transfer_type`",
                Box::new(|v| v["trainer"]["transfer"] = json!("DIFF")),
            ),
            (
                "`tracking_type`",
                Box::new(|v| v["tracking"] = json!(["wandb"])),
            ),
            ("`keep_models`", Box::new(|v| v["keep_models"] = json!(0))),
            ("`env`", Box::new(|v| v["env"] = json!("../torch"))),
            (
                "`resources.gpus`",
                Box::new(|v| v["resources"] = json!({"gpus": -1})),
            ),
            (
                "`resources.gpu`",
                Box::new(|v| v["resources"] = json!({"gpu": 1})),
            ),
            (
                "`resources.mem_per_gpu_gib`",
                Box::new(|v| v["resources"] = json!({"mem_per_gpu_gib": 8})),
            ),
            (
                "`resources.custom`",
                Box::new(|v| v["resources"] = json!({"custom": {"a b": 1}})),
            ),
            (
                "`site_config.site-1.resources.mem_per_gpu_gib`",
                Box::new(|v| v["site"] = json!({"site-1": {"resources": {"mem_per_gpu_gib": 8}}})),
            ),
            (
                "`site_config.site-1.environment`",
                Box::new(|v| v["site"] = json!({"site-1": {"environment": ""}})),
            ),
            (
                "`priority`",
                Box::new(|v| v["priority"] = json!(1_u64 << 40)),
            ),
            ("`hierarchy`", Box::new(|v| v["hierarchy"] = json!("sum"))),
            (
                "`hierarchy`",
                Box::new(|v| {
                    v["hierarchy"] = json!("aggregate");
                    v["aggregation"] = json!({"method": "median"});
                }),
            ),
            ("`meta`", Box::new(|v| v["meta"] = json!({"": "x"}))),
            (
                "`meta.note`",
                Box::new(|v| v["meta"] = json!({"note": "x".repeat(limits::META_NOTE + 1)})),
            ),
            (
                "`launch_timeout`",
                Box::new(|v| v["trainer"]["start_s"] = json!(0.0)),
            ),
        ];
        for (field, change) in cases {
            let error = refused(change);
            assert!(error.contains(field), "expected {field} in: {error}");
        }
    }

    #[test]
    fn a_job_without_trainers_needs_no_script() {
        let mut value = job();
        value["trainer"] = json!({"script": "", "mode": "noop"});
        let spec = JobSpec::parse(value.to_string().as_bytes()).unwrap();
        assert_eq!(spec.trainer.mode, Mode::Noop);
        JobSpec::parse_submitted(value.to_string().as_bytes()).unwrap();
    }

    #[test]
    fn patterns_that_are_too_much_together_are_refused() {
        // Each compiles to some megabytes, under the limit of one.
        let patterns: Vec<String> = (0..3).map(|n| format!(r"n{n}\w{{90}}")).collect();
        assert!(regex::Regex::new(&patterns[0]).is_ok());
        let error = refused(|v| v["aggregation"] = json!({"exclude": patterns}));
        assert!(error.starts_with("`exclude_vars`"), "{error}");
    }

    #[test]
    fn a_spec_with_something_behind_it_is_refused() {
        let text = format!("{} {{}}", job());
        let error = JobSpec::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("trailing"), "{error}");
    }

    #[test]
    fn a_spec_always_fits_the_frame_that_starts_the_job() {
        // With its defaults filled in it is longer than it was.
        let with = |args: usize| {
            let mut value = job();
            value["trainer"]["args"] = json!(["x".repeat(args)]);
            value.to_string()
        };
        let bare = with(0).len();
        let error = JobSpec::parse(with(limits::JOB_SPEC - bare).as_bytes()).unwrap_err();
        assert!(error.to_string().contains("the limit is"), "{error}");
        let mut args = limits::JOB_SPEC - bare;
        let spec = loop {
            match JobSpec::parse(with(args).as_bytes()) {
                Ok(spec) => break spec,
                Err(_) => args -= 64,
            }
        };
        let start = crate::control::StartJob {
            job: "x".repeat(limits::NAME_LENGTH),
            spec: spec.to_json().into(),
            seed: u64::MAX,
            resume_round: Some(u32::MAX),
            run: "x".repeat(limits::NAME_LENGTH),
            model_length: u64::MAX,
        };
        let body = Some(crate::control::to_site::Body::StartJob(start));
        assert!(crate::frame::encode(&crate::control::ToSite { body }).is_ok());
    }
}
