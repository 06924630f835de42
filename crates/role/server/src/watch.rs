//! Tells people and files what happens: logs, progress, metrics, event files.
//! Nothing here can fail a job.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use firesteel_base::{Durations, Failure, Phase, Round, SiteName, TaskKey};
use firesteel_flow::{Assignment, Outcome, RoundRecord, SiteResult, Warning};
use firesteel_observe::metrics::{self, MetricsWriter, RunStatus, Summary};
use firesteel_observe::{Logger, Progress, RoundLine, SiteStage, TbWriter};
use firesteel_store::RunDir;
use firesteel_wire::control::{TaskProgress, TaskState};
use firesteel_wire::spec::{Direction, JobSpec, Method};
use serde_json::Value;

use crate::fetches::Moved;
use crate::report::SiteFailureReport;

/// How often the display is refreshed when nothing happens.
const REFRESH: Duration = Duration::from_millis(500);

/// Event files that are open at once; each holds a descriptor.
const OPEN_EVENT_FILES: usize = 256;

/// The name under which the federation's own curves stand.
const GLOBAL: &str = "global";

/// Everything that is told about a job.
pub struct Watch {
    logger: Logger,
    rounds: Logger,
    progress: Progress,
    metrics: Option<MetricsWriter>,
    /// What trainers logged, one JSON object per line.
    tracked: Option<BufWriter<File>>,
    events: Option<HashMap<SiteName, TbWriter>>,
    run: Arc<RunDir>,
    spec: JobSpec,
    durations: Durations,
    started: Instant,
    failures: Vec<SiteFailureReport>,
    last: Option<(Round, Vec<(String, f64)>)>,
    best: Option<(Round, Vec<(String, f64)>)>,
    models: Vec<(String, String)>,
    /// The round that the display is at.
    shown: Option<Round>,
    /// What the updates of the open round cost on the network.
    moved: HashMap<TaskKey, Moved>,
}

impl Watch {
    /// Tells `logger` and `progress`, and writes the metrics of `run`; lines of
    /// rounds from `from` on are written anew.
    pub fn new(
        logger: &Logger,
        progress: Progress,
        run: Arc<RunDir>,
        spec: &JobSpec,
        durations: Durations,
        from: Round,
    ) -> Self {
        let logger = logger.named("firesteel.server");
        let dir = run.metrics_dir();
        let metrics = match MetricsWriter::open(&dir, from) {
            Ok(metrics) => Some(metrics),
            Err(error) => {
                logger.error(&format!("metrics are not written: {error}"));
                None
            }
        };
        let tracked = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(dir.join("tracked.jsonl"))
            .map(BufWriter::new)
            .ok();
        // The rounds before a resume are part of what the job came to.
        let (last, best) = told_before(&dir.join("rounds.jsonl"), from);
        let tensorboard = spec.tracking.iter().any(|kind| kind == "tensorboard");
        Self {
            rounds: logger.named("firesteel.server.round"),
            logger,
            progress,
            metrics,
            tracked,
            events: tensorboard.then(HashMap::new),
            run,
            spec: spec.clone(),
            durations,
            started: Instant::now(),
            failures: Vec::new(),
            last,
            best,
            models: Vec::new(),
            shown: None,
            moved: HashMap::new(),
        }
    }

    /// The newest failure of each site, oldest first.
    pub(crate) fn failures(&self) -> Vec<SiteFailureReport> {
        self.failures.clone()
    }

    pub(crate) fn interval(&self) -> Duration {
        REFRESH
    }

    pub(crate) fn tick(&mut self) {
        self.progress.tick();
        self.flush();
    }

    pub(crate) fn warn(&self, message: &str) {
        self.logger.warning(message);
    }

    pub(crate) fn error(&self, message: &str) {
        self.logger.error(message);
    }

    pub(crate) fn joined(&self, site: &SiteName) {
        self.logger.for_site(site).debug("the site has joined");
    }

    pub(crate) fn dismissed(&mut self, site: &SiteName, failure: &Failure) {
        self.logger
            .for_site(site)
            .warning(&format!("{site} takes no further part: {failure}"));
        self.failed(site, None, failure);
    }

    pub(crate) fn assigned(&mut self, round: Round, assignment: &Assignment) {
        // A site that joins in mid-round is given its task by itself.
        if self.shown.replace(round) != Some(round) {
            self.progress.round_started(round);
        }
        self.rounds.for_round(round).debug(&format!(
            "round {round} of {}: {} given to {} sites",
            u64::from(assignment.start_round.0) + u64::from(assignment.total_rounds),
            assignment.task,
            assignment.keys.len(),
        ));
    }

    /// A site's connection is lost, and it is waited for.
    pub(crate) fn away(&self, site: &SiteName, why: &str, lease: Duration) {
        self.logger
            .for_site(site)
            .warning(&format!("{site}: {why}; it is waited for during {lease:?}"));
    }

    /// A relay is there.
    pub(crate) fn relay(&self, relay: &SiteName) {
        self.logger.info(&format!(
            "relay {relay} is connected, and sums the updates of the sites below it"
        ));
    }

    /// It is there again, and goes on.
    pub(crate) fn back(&self, site: &SiteName) {
        self.logger
            .for_site(site)
            .info(&format!("{site} is connected again and goes on"));
    }

    pub(crate) fn task(&mut self, key: &TaskKey, progress: &TaskProgress) {
        let stage = match progress.state() {
            TaskState::Queued | TaskState::Starting if progress.total > 0 => {
                SiteStage::Downloading {
                    done: progress.done,
                    total: progress.total,
                }
            }
            TaskState::Queued => SiteStage::Waiting,
            TaskState::Starting => SiteStage::Starting {
                limit: self.durations.trainer_start,
            },
            TaskState::Training => SiteStage::Training,
            TaskState::Sending => SiteStage::Sending { done: 0, total: 0 },
        };
        self.progress.site(&key.site, stage);
    }

    /// How far an update is on its way here.
    pub(crate) fn sending(&self, key: &TaskKey, done: u64, total: u64) {
        self.progress
            .site(&key.site, SiteStage::Sending { done, total });
    }

    /// An update stays at its site until it is folded.
    pub(crate) fn live(&self, key: &TaskKey) {
        self.rounds
            .for_site(&key.site)
            .for_round(key.round)
            .info("the spool is full: the update is read from its site while it is folded");
    }

    /// An update has arrived.
    pub(crate) fn fetched(&mut self, key: &TaskKey, moved: Moved) {
        let seconds = moved.took.as_secs_f64();
        let rate = moved.travelled as f64 / 1e6 / seconds.max(1e-6);
        self.rounds
            .for_site(&key.site)
            .for_round(key.round)
            .debug(&format!(
                "update of {} bytes received in {seconds:.3} s: {} bytes travelled, {rate:.1} MB/s",
                moved.bytes, moved.travelled
            ));
        self.moved.insert(key.clone(), moved);
    }

    pub(crate) fn update(&mut self, key: &TaskKey, seconds: f64) {
        self.progress.site(
            &key.site,
            SiteStage::Done {
                note: format!("{seconds:.2} s"),
            },
        );
        self.rounds
            .for_site(&key.site)
            .for_round(key.round)
            .debug("update taken");
    }

    pub(crate) fn folding(&mut self, round: Round) {
        self.rounds.for_round(round).debug("summing the updates");
    }

    /// What a workflow warns of.
    pub(crate) fn flow_warning(&mut self, warning: &Warning) {
        let logger = self.logger.named("firesteel.flow");
        match warning {
            Warning::SiteFailed {
                round,
                site,
                failure,
            } => {
                // Also when it failed like that before: this is the newest.
                self.failures.retain(|one| one.site != site.as_str());
                self.failed(site, Some(*round), failure);
                let message = if failure.hint.is_empty() {
                    failure.to_string()
                } else {
                    format!("{failure}; {}", failure.hint)
                };
                self.progress.site(site, SiteStage::Failed { message });
                // The agent has said it, with the traceback; a failure found by the
                // server's own checks has no other voice.
                let logger = logger.for_site(site).for_round(*round);
                if failure.phase == Phase::Verify {
                    logger.warning(&warning.to_string());
                } else {
                    logger.files_only().info(&warning.to_string());
                }
            }
            // A job whose sites send no metric at all has no use for a best model.
            Warning::KeyMetricMissing { present, .. } if present.is_empty() => {
                logger.debug(&warning.to_string());
            }
            // Scripts that do not count their steps are common and right.
            Warning::StepsMissing { .. } => logger.info(&warning.to_string()),
            other => logger.warning(&other.to_string()),
        }
    }

    fn failed(&mut self, site: &SiteName, round: Option<Round>, failure: &Failure) {
        let name = site.as_str();
        if let Some(at) = self.failures.iter().position(|one| one.site == name) {
            // One and the same is told by several: as it happens, with the
            // round's record, with the outcome. The first knows the round.
            if self
                .failures
                .get(at)
                .is_some_and(|one| &one.failure == failure)
            {
                return;
            }
            self.failures.remove(at);
        }
        self.failures.push(SiteFailureReport {
            site: name.to_owned(),
            round,
            failure: failure.clone(),
        });
    }

    pub(crate) fn round(&mut self, record: &RoundRecord) {
        let means: Vec<(String, f64)> = record
            .metrics
            .iter()
            .map(|mean| (mean.name.clone(), mean.value))
            .collect();
        let mut moved = HashMap::new();
        // A late update may be of an earlier round than the one that it counts in.
        self.moved.retain(|key, cost| {
            let now = key.round <= record.round;
            if now {
                moved.insert(key.site.clone(), *cost);
            }
            !now
        });
        let sites = record.sites.iter().map(|one| metrics::SiteRecord {
            received: moved.get(&one.site).map(|cost| metrics::Received {
                bytes: cost.bytes,
                travelled: cost.travelled,
                seconds: cost.took.as_secs_f64(),
            }),
            ..site_record(&one.site, &one.result)
        });
        let line = metrics::RoundRecord {
            round: record.round,
            seconds: (record.ended - record.started).as_secs_f64(),
            sites: sites.collect(),
            metrics: means.clone(),
            best: record.best.is_some(),
        };
        for site in &record.sites {
            if let SiteResult::Failed(failure) | SiteResult::Excluded(failure) = &site.result {
                self.failed(&site.site, Some(record.round), failure);
            }
        }
        if let Some(metrics) = &mut self.metrics
            && let Err(error) = metrics.round(&line)
        {
            self.logger
                .error(&format!("a round's metrics are lost: {error}"));
        }
        let contributed = record
            .sites
            .iter()
            .filter(|one| matches!(one.result, SiteResult::Contributed { .. }))
            .count();
        let key = &self.spec.selection.key_metric;
        let metric = means.iter().find(|(name, _)| name == key).cloned();
        let logger = self.rounds.for_round(record.round);
        for note in &record.notes {
            logger.info(note);
        }
        if record.result.is_some() {
            let shown: Vec<String> = means
                .iter()
                .map(|(name, value)| format!("{name} {value:.4}"))
                .collect();
            logger.files_only().info(&format!(
                "round {} done with {contributed} of {} sites in {:.3} s{}{}",
                record.round,
                record.sites.len(),
                line.seconds,
                if shown.is_empty() { "" } else { ": " },
                shown.join(", "),
            ));
            self.progress.round_done(RoundLine {
                round: record.round,
                took: record.ended - record.started,
                contributed,
                metric,
                best: record.best.is_some(),
            });
        }
        if record.best.is_some() {
            self.best = Some((record.round, means.clone()));
        }
        if self.events.is_some()
            && let Ok(name) = SiteName::new(GLOBAL)
        {
            for (metric, value) in &means {
                self.scalar(
                    &name,
                    metric,
                    *value,
                    i64::from(record.round.0),
                    SystemTime::now(),
                );
            }
        }
        if record.result.is_some() {
            self.last = Some((record.round, means));
        }
    }

    /// A value that a trainer logged: JSON with `key`, `value`, `type`, `step`,
    /// `time`. What cannot be read is dropped and said once in the debug log.
    pub(crate) fn metric(&mut self, site: &SiteName, event: &str) {
        let Ok(Value::Object(mut event)) = serde_json::from_str::<Value>(event) else {
            return self
                .logger
                .for_site(site)
                .debug("a tracking event that is no JSON object was dropped");
        };
        let key = event
            .get("key")
            .and_then(Value::as_str)
            .unwrap_or("value")
            .to_owned();
        let step = event.get("step").and_then(Value::as_i64).unwrap_or(0);
        let time = event.get("time").and_then(Value::as_f64).unwrap_or(0.0);
        let time = Duration::try_from_secs_f64(time)
            .ok()
            .filter(|since| !since.is_zero())
            .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since))
            .unwrap_or_else(SystemTime::now);
        match event.get("value") {
            Some(Value::Number(number)) => {
                let value = number.as_f64().unwrap_or(f64::NAN);
                self.scalar(site, &key, value, step, time);
            }
            Some(Value::Bool(flag)) => self.scalar(site, &key, f64::from(*flag), step, time),
            Some(Value::Object(group)) => {
                let values: Vec<(String, f64)> = group
                    .iter()
                    .filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)))
                    .collect();
                self.with_events(site, |writer| writer.add_scalars(&key, &values, step, time));
            }
            Some(Value::String(text)) => {
                let text = text.clone();
                self.with_events(site, |writer| writer.add_text(&key, &text, step, time));
            }
            _ => {}
        }
        event.insert("site".to_owned(), Value::String(site.as_str().to_owned()));
        if let Some(tracked) = &mut self.tracked {
            // Lost lines of a full disk are counted by the logs; a job goes on.
            let _ = writeln!(tracked, "{}", Value::Object(event));
        }
    }

    fn scalar(&mut self, site: &SiteName, key: &str, value: f64, step: i64, time: SystemTime) {
        self.with_events(site, |writer| writer.add_scalar(key, value, step, time));
    }

    fn with_events(
        &mut self,
        site: &SiteName,
        add: impl FnOnce(&mut TbWriter) -> Result<(), firesteel_observe::TbError>,
    ) {
        let Some(events) = &mut self.events else {
            return;
        };
        if !events.contains_key(site) && events.len() >= OPEN_EVENT_FILES {
            // Dropping a writer flushes and closes its file; it opens another later.
            events.clear();
        }
        let dir = self.run.events_dir(site);
        let writer = events
            .entry(site.clone())
            .or_insert_with(|| TbWriter::new(&dir));
        if let Err(error) = add(writer) {
            self.logger.warning(&format!(
                "{error}; TensorBoard events are no longer written"
            ));
            self.events = None;
        }
    }

    fn flush(&mut self) {
        if let Some(tracked) = &mut self.tracked {
            let _ = tracked.flush();
        }
        let mut lost = None;
        for writer in self.events.iter_mut().flat_map(HashMap::values_mut) {
            lost = lost.or(writer.flush().err());
        }
        if let Some(error) = lost {
            self.logger.warning(&format!(
                "{error}; TensorBoard events are no longer written"
            ));
            self.events = None;
        }
    }

    /// Where models lie, for the summary: role and path.
    pub(crate) fn saved(&mut self, role: &str, path: PathBuf) {
        let shown = path.strip_prefix(self.run.path()).unwrap_or(&path);
        let entry = (role.to_owned(), shown.to_string_lossy().into_owned());
        match self.models.iter_mut().find(|(known, _)| known == role) {
            Some(known) => *known = entry,
            None => self.models.push(entry),
        }
    }

    /// The job has ended.
    pub(crate) fn finished(&mut self, outcome: &Outcome) {
        let (status, message) = match outcome {
            Outcome::Completed { .. } => (RunStatus::Completed, "completed".to_owned()),
            Outcome::CompletedWith {
                contributed,
                of,
                missed,
                ..
            } => {
                for one in missed {
                    let site = one.site.clone();
                    self.failed(&site, Some(one.last), &one.cause);
                    self.logger.warning(&one.to_string());
                }
                (
                    RunStatus::CompletedWithFailures,
                    format!("completed with {contributed} of {of} sites"),
                )
            }
            Outcome::Failed {
                cause,
                round,
                failures,
                ..
            } => {
                for one in failures {
                    self.failed(&one.site, *round, &one.failure);
                }
                self.logger.error(cause);
                (RunStatus::Failed, format!("failed: {cause}"))
            }
            Outcome::Aborted { reason } => {
                self.logger
                    .warning(&format!("the job was aborted: {reason}"));
                (RunStatus::Aborted, format!("aborted: {reason}"))
            }
        };
        self.flush();
        let (final_round, final_metrics) = split(self.last.take());
        let (best_round, best_metrics) = split(self.best.take());
        let summary = Summary {
            job: self.spec.name.clone(),
            status,
            message: message.clone(),
            key_metric: self.spec.selection.key_metric.clone(),
            key_metric_mode: match self.spec.selection.mode {
                Direction::Max => "max",
                Direction::Min => "min",
            },
            aggregation: match self.spec.aggregation.method {
                Method::Mean => "mean",
                Method::Median => "median",
                Method::TrimmedMean => "trimmed_mean",
            }
            .to_owned(),
            seconds: self.started.elapsed().as_secs_f64(),
            sites_total: self.spec.sites.len(),
            final_round,
            final_metrics,
            best_round,
            best_metrics,
            models: self.models.clone(),
            failures: self
                .failures
                .iter()
                .filter_map(|one| {
                    let site = SiteName::new(&one.site).ok()?;
                    Some((one.round.unwrap_or_default(), site, one.failure.clone()))
                })
                .collect(),
        };
        if let Some(metrics) = &self.metrics
            && let Err(error) = metrics.summary(&summary)
        {
            self.logger.error(&format!("the summary is lost: {error}"));
        }
        // A cause was logged as an error, and is in the report.
        self.progress.finish(if status == RunStatus::Failed {
            "failed"
        } else {
            &message
        });
    }
}

/// A round and its metrics over all sites.
type Rated = (Round, Vec<(String, f64)>);

/// The last round before `from` and the best one, as an earlier process wrote them.
fn told_before(rounds: &Path, from: Round) -> (Option<Rated>, Option<Rated>) {
    let (mut last, mut best) = (None, None);
    if from == Round::default() {
        return (last, best);
    }
    // What cannot be read is missing from the summary, and from nothing else.
    let text = std::fs::read_to_string(rounds).unwrap_or_default();
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let number = line
            .get("round")
            .and_then(Value::as_u64)
            .and_then(|round| u32::try_from(round).ok());
        let Some(round) = number.map(Round).filter(|round| *round < from) else {
            continue;
        };
        let metrics = line
            .get("metrics")
            .and_then(Value::as_object)
            .into_iter()
            .flatten();
        let metrics: Vec<_> = metrics
            .filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)))
            .collect();
        if line.get("best") == Some(&Value::Bool(true)) {
            best = Some((round, metrics.clone()));
        }
        last = Some((round, metrics));
    }
    (last, best)
}

fn split(part: Option<(Round, Vec<(String, f64)>)>) -> (Option<Round>, Vec<(String, f64)>) {
    part.map_or((None, Vec::new()), |(round, metrics)| {
        (Some(round), metrics)
    })
}

fn site_record(site: &SiteName, result: &SiteResult) -> metrics::SiteRecord {
    let mut record = metrics::SiteRecord {
        site: site.clone(),
        state: "absent",
        weight: None,
        metrics: Vec::new(),
        failure: None,
        received: None,
    };
    match result {
        SiteResult::Contributed {
            weight, metrics, ..
        } => {
            record.state = "done";
            record.weight = Some(*weight);
            record.metrics.clone_from(metrics);
        }
        SiteResult::Late => record.state = "late",
        SiteResult::Failed(failure) => {
            record.state = "failed";
            record.failure = Some(failure.clone());
        }
        SiteResult::Excluded(failure) => {
            record.state = "excluded";
            record.failure = Some(failure.clone());
        }
        SiteResult::Absent => {}
        SiteResult::Waiting => record.state = "waiting",
    }
    record
}
