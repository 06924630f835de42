//! How a simulation is run: what `SimEnv` says, as JSON.
//!
//! What the job is stands in [`crate::spec`]; this is about the machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use firesteel_base::Durations;
use serde::Deserialize;

use crate::spec::{SpecError, seconds};

/// The settings of a simulation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimOptions {
    /// Where runs are kept.
    pub root: PathBuf,
    /// Where `log_config.json` is looked for; absent: `root`.
    #[serde(default)]
    pub workspace: Option<PathBuf>,
    /// The interpreter that trainers run in.
    pub python: PathBuf,
    /// The `firesteel` binary.
    pub binary: PathBuf,
    /// Trainers that may live at once.
    pub num_workers: usize,
    /// Whether a process whose script ended well runs the next site's, too.
    #[serde(default)]
    pub reuse_processes: bool,
    /// The GPUs of each worker, in turn.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// What the console shows: a mode, a level or a file.
    #[serde(default)]
    pub log: Option<String>,
    /// `auto`, `plain` or `off`.
    #[serde(default = "auto")]
    pub console: String,
    /// The site whose trainer a person runs.
    #[serde(default)]
    pub debug: Option<String>,
    /// Go on with the job's latest run.
    #[serde(default)]
    pub resume: bool,
    /// Time limits that differ from the defaults.
    #[serde(default)]
    pub durations: DurationOptions,
    /// Threads that sum; absent: one per core.
    #[serde(default)]
    pub threads: Option<usize>,
    /// Additions to the trainers' environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// The eight durations, in seconds; those that are absent are as by default.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DurationOptions {
    connect_s: Option<f64>,
    idle_s: Option<f64>,
    drain_s: Option<f64>,
    lease_s: Option<f64>,
    round_s: Option<f64>,
    task_s: Option<f64>,
    trainer_start_s: Option<f64>,
    stop_grace_s: Option<f64>,
}

impl DurationOptions {
    fn check(&self) -> Result<(), SpecError> {
        let all = [
            ("connect", self.connect_s, false),
            ("idle", self.idle_s, false),
            ("drain", self.drain_s, true),
            ("lease", self.lease_s, true),
            ("round", self.round_s, false),
            ("task", self.task_s, false),
            ("trainer_start", self.trainer_start_s, false),
            ("stop_grace", self.stop_grace_s, true),
        ];
        for (name, given, zero) in all {
            // A century and more is no limit, and would overflow the clock.
            let good = |s: f64| s.is_finite() && s <= 1e9 && (s > 0.0 || (s == 0.0 && zero));
            if let Some(s) = given.filter(|&s| !good(s)) {
                let field = format!("durations.{name}");
                return Err(SpecError::new(
                    field,
                    format!("is {s} seconds, expected a positive number"),
                ));
            }
        }
        Ok(())
    }

    /// All eight.
    pub fn resolve(&self) -> Durations {
        let normal = Durations::default();
        let or = |given: Option<f64>, normal| given.map_or(normal, seconds);
        Durations {
            connect: or(self.connect_s, normal.connect),
            idle: or(self.idle_s, normal.idle),
            drain: or(self.drain_s, normal.drain),
            lease: or(self.lease_s, normal.lease),
            round: self.round_s.map(seconds).or(normal.round),
            task: self.task_s.map(seconds).or(normal.task),
            trainer_start: or(self.trainer_start_s, normal.trainer_start),
            stop_grace: or(self.stop_grace_s, normal.stop_grace),
        }
    }
}

fn auto() -> String {
    "auto".into()
}

impl SimOptions {
    /// Reads the settings.
    ///
    /// # Errors
    /// [`SpecError`] with the field that is wrong.
    pub fn parse(json: &[u8]) -> Result<Self, SpecError> {
        let options: Self = crate::spec::read(json)?;
        options.durations.check()?;
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(durations: &str) -> Result<SimOptions, SpecError> {
        let text = format!(
            r#"{{"root": "/r", "python": "/p", "binary": "/b", "num_workers": 2, "durations": {durations}}}"#
        );
        SimOptions::parse(text.as_bytes())
    }

    #[test]
    fn a_duration_that_is_none_is_refused_by_name() {
        for bad in ["-1", "0", "1e300", "1e10"] {
            let error = parse(&format!(r#"{{"trainer_start_s": {bad}}}"#)).unwrap_err();
            assert_eq!(error.field, "durations.trainer_start", "{bad}");
        }
        let given = parse(r#"{"stop_grace_s": 0, "round_s": 7.5}"#)
            .unwrap()
            .durations
            .resolve();
        assert!(given.stop_grace.is_zero());
        assert_eq!(given.round, Some(std::time::Duration::from_millis(7500)));
        assert_eq!(given.connect, Durations::default().connect);
    }
}
