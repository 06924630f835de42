//! The numbers of a run, one JSON line per round and a summary at the end.
//!
//! The structs here are filled by whoever runs the job; their files are
//! described in `docs/guides/logs.md`.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use firesteel_base::{Failure, Round, SiteName};
use serde_json::{Map, Value, json};

const ROUNDS: &str = "rounds.jsonl";
const SUMMARY: &str = "summary.json";

/// One line of `rounds.jsonl`.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundRecord {
    /// Which round.
    pub round: Round,
    /// Its wall time in seconds.
    pub seconds: f64,
    /// Every site that the round was about, in the job's order.
    pub sites: Vec<SiteRecord>,
    /// Metrics over all sites.
    pub metrics: Vec<(String, f64)>,
    /// Whether its model is the best so far.
    pub best: bool,
}

/// One site's part in a round.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteRecord {
    /// Which site.
    pub site: SiteName,
    /// A word: `done`, `late`, `failed`, `excluded`, `absent`.
    pub state: &'static str,
    /// Its weight in the aggregate; `None` when it has no part in it.
    pub weight: Option<f64>,
    /// What it reported.
    pub metrics: Vec<(String, f64)>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// What its update cost on the network; `None` when it did not travel.
    pub received: Option<Received>,
}

/// What an update cost on the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Received {
    /// Bytes of the update.
    pub bytes: u64,
    /// Bytes of it that travelled; fewer where some were there already.
    pub travelled: u64,
    /// Seconds from its offer until it was there.
    pub seconds: f64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunStatus {
    /// Every site took part in every round.
    Completed,
    /// It ended, with some sites missing from some rounds.
    CompletedWithFailures,
    /// It could not go on.
    Failed,
    /// A person ended it.
    Aborted,
}

impl RunStatus {
    /// The word in `summary.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::CompletedWithFailures => "completed_with_failures",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

/// What `summary.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The job's name.
    pub job: String,
    /// How it ended.
    pub status: RunStatus,
    /// The same in a sentence: "completed with 4 of 5 sites".
    pub message: String,
    /// The metric that chooses the best model.
    pub key_metric: String,
    /// `max` or `min`.
    pub key_metric_mode: &'static str,
    /// How updates were combined: `mean`, `median`, `trimmed_mean`.
    pub aggregation: String,
    /// Wall time of the run in seconds.
    pub seconds: f64,
    /// The job's sites.
    pub sites_total: usize,
    /// The last round that ended.
    pub final_round: Option<Round>,
    /// Its metrics over all sites.
    pub final_metrics: Vec<(String, f64)>,
    /// The round of the best model.
    pub best_round: Option<Round>,
    /// Its metrics over all sites.
    pub best_metrics: Vec<(String, f64)>,
    /// Files of the models, relative to the run's directory: `("best",
    /// "models/best.safetensors")`.
    pub models: Vec<(String, String)>,
    /// What failed, in order.
    pub failures: Vec<(Round, SiteName, Failure)>,
}

/// The metrics of a run cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} `{}`", path.display())]
pub struct MetricsError {
    /// What was being done.
    pub doing: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Writes the `metrics/` directory of a run.
pub struct MetricsWriter {
    dir: PathBuf,
    rounds: File,
    size: u64,
}

impl MetricsWriter {
    /// Opens `dir`, creating it if need be. Lines of rounds from `from` on are
    /// removed: a run that is resumed there writes them again.
    ///
    /// # Errors
    /// [`MetricsError`] when a file cannot be made or read.
    pub fn open(dir: &Path, from: Round) -> Result<Self, MetricsError> {
        let path = dir.join(ROUNDS);
        let failed = |doing| {
            let path = path.clone();
            move |source| MetricsError {
                doing,
                path,
                source,
            }
        };
        std::fs::create_dir_all(dir).map_err(failed("create the directory of"))?;
        let rounds = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open"))?;
        let size = kept_length(&rounds, from).map_err(failed("read"))?;
        rounds.set_len(size).map_err(failed("shorten"))?;
        Ok(Self {
            dir: dir.to_owned(),
            rounds,
            size,
        })
    }

    /// Appends a round's line: all of it or nothing.
    ///
    /// # Errors
    /// [`MetricsError`] when it cannot be written.
    pub fn round(&mut self, record: &RoundRecord) -> Result<(), MetricsError> {
        let line = format!("{}\n", record.to_json());
        match self.rounds.write_all(line.as_bytes()) {
            Ok(()) => {
                self.size += line.len() as u64;
                Ok(())
            }
            Err(source) => {
                let _ = self.rounds.set_len(self.size);
                Err(MetricsError {
                    doing: "write",
                    path: self.dir.join(ROUNDS),
                    source,
                })
            }
        }
    }

    /// Writes `summary.json`, atomically.
    ///
    /// # Errors
    /// [`MetricsError`] when it cannot be written; an earlier one stays.
    pub fn summary(&self, summary: &Summary) -> Result<(), MetricsError> {
        let path = self.dir.join(SUMMARY);
        let aside = self.dir.join(format!(".{SUMMARY}.part"));
        let text = format!("{:#}\n", summary.to_json());
        std::fs::write(&aside, text)
            .and_then(|()| std::fs::rename(&aside, &path))
            .map_err(|source| {
                let _ = std::fs::remove_file(&aside);
                MetricsError {
                    doing: "write",
                    path,
                    source,
                }
            })
    }
}

/// Bytes of the whole lines of rounds before `from`.
fn kept_length(rounds: &File, from: Round) -> io::Result<u64> {
    let mut reader = BufReader::new(rounds);
    let mut line = Vec::new();
    let mut kept = 0;
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        let earlier = serde_json::from_slice::<Value>(&line)
            .ok()
            .and_then(|value| value.get("round")?.as_u64())
            .is_some_and(|round| round < u64::from(from.0));
        // Half a line, from a process that was killed, ends what is kept too.
        if !earlier || !line.ends_with(b"\n") {
            return Ok(kept);
        }
        kept += read as u64;
    }
}

impl RoundRecord {
    /// The record as its line.
    pub fn to_json(&self) -> Value {
        let sites: Vec<Value> = self.sites.iter().map(SiteRecord::to_json).collect();
        json!({
            "round": self.round.0,
            "seconds": number(self.seconds),
            "sites": sites,
            "metrics": metrics(&self.metrics),
            "best": self.best,
        })
    }
}

impl SiteRecord {
    fn to_json(&self) -> Value {
        let mut value = json!({
            "site": self.site.as_str(),
            "state": self.state,
            "weight": self.weight.map(number),
            "metrics": metrics(&self.metrics),
        });
        if let (Some(failure), Value::Object(map)) = (&self.failure, &mut value) {
            map.insert("failure".into(), failure_json(failure));
        }
        if let (Some(received), Value::Object(map)) = (&self.received, &mut value) {
            let received = json!({
                "bytes": received.bytes,
                "travelled": received.travelled,
                "seconds": number(received.seconds),
            });
            map.insert("received".into(), received);
        }
        value
    }
}

impl Summary {
    /// The summary as its file.
    pub fn to_json(&self) -> Value {
        let named = |metrics: &[(String, f64)]| -> Vec<Value> {
            metrics
                .iter()
                .map(|(name, value)| json!({"name": name, "value": number(*value)}))
                .collect()
        };
        let key = |metrics: &[(String, f64)]| {
            let found = metrics.iter().find(|(name, _)| *name == self.key_metric);
            found.map_or(Value::Null, |(_, value)| number(*value))
        };
        let round = |round: Option<Round>| round.map_or(Value::Null, |round| json!(round.0));
        let models: Map<String, Value> = self
            .models
            .iter()
            .map(|(name, path)| (name.clone(), json!(path)))
            .collect();
        let failures: Vec<Value> = self
            .failures
            .iter()
            .map(|(round, site, failure)| {
                let mut value = failure_json(failure);
                if let Value::Object(map) = &mut value {
                    map.insert("round".into(), json!(round.0));
                    map.insert("site".into(), json!(site.as_str()));
                }
                value
            })
            .collect();
        json!({
            "schema_version": "1",
            "job_name": self.job,
            "status": self.status.as_str(),
            "message": self.message,
            "seconds": number(self.seconds),
            "sites_total": self.sites_total,
            "aggregation": self.aggregation,
            "key_metric": self.key_metric,
            "key_metric_mode": self.key_metric_mode,
            "final_round": round(self.final_round),
            "final_key_metric": key(&self.final_metrics),
            "final_aggregated_metrics": named(&self.final_metrics),
            "best_round": round(self.best_round),
            "best_key_metric": key(&self.best_metrics),
            "best_aggregated_metrics": named(&self.best_metrics),
            "round_metrics_file": ROUNDS,
            "models": models,
            "failures": failures,
        })
    }
}

fn failure_json(failure: &Failure) -> Value {
    json!({
        "code": failure.code.as_str(),
        "phase": failure.phase.as_str(),
        "message": failure.message,
        "hint": failure.hint,
    })
}

fn metrics(pairs: &[(String, f64)]) -> Value {
    let map: Map<String, Value> = pairs
        .iter()
        .map(|(name, value)| (name.clone(), number(*value)))
        .collect();
    Value::Object(map)
}

/// JSON has no NaN and no infinity: they are written as null.
fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests;
