//! The run of one job: its directory, its models in flight, and its workflow.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firesteel_api::EventKind;
use firesteel_api::job::JobFailure;
use firesteel_base::{Failure, FailureCode, JobId, Phase, Round, SiteName, limits};
use firesteel_carry::{Carrier, Connection, Depot, Relay, Remote};
use firesteel_flow::schedule::{JobPhase, Refusal, RunResult};
use firesteel_flow::{Outcome, Status};
use firesteel_node::parts::{random, sentence};
use firesteel_observe::{Logger, Logs, Progress};
use firesteel_server::{Job, JobParts, JobReport, Watch};
use firesteel_store::{
    DiskUse, InMemory, RunDir, RunError, ServerDisk, Spool, SpoolBudget, Updates, check_disks,
    server_disk_need,
};
use firesteel_wire::spec::{JobSpec, Method};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::core::Input;
use super::shared::Shared;

/// The name under which a job's folder has its runs.
pub(crate) const RUN: &str = "run";

/// Sites that one sentence names before it only counts.
const NAMED: usize = 8;

/// The loop's hold on a run.
pub(crate) struct RunHandle {
    pub(crate) connections: mpsc::Sender<Connection>,
    pub(crate) gone: mpsc::Sender<(SiteName, Failure)>,
    pub(crate) abort: watch::Sender<Option<String>>,
    /// For the run, once it begins.
    pub(crate) ends: Option<RunEnds>,
    /// It runs.
    pub(crate) task: Option<AbortHandle>,
}

/// The other ends.
pub(crate) struct RunEnds {
    connections: mpsc::Receiver<Connection>,
    gone: mpsc::Receiver<(SiteName, Failure)>,
    abort: watch::Receiver<Option<String>>,
}

impl RunHandle {
    pub(crate) fn new() -> Self {
        // Agents call before the run begins: all of a job may.
        let (connections, calling) = mpsc::channel(limits::JOB_CALLS);
        let (gone, going) = mpsc::channel(limits::JOB_CALLS);
        let (abort, aborted) = watch::channel(None);
        Self {
            connections,
            gone,
            abort,
            ends: Some(RunEnds {
                connections: calling,
                gone: going,
                abort: aborted,
            }),
            task: None,
        }
    }
}

/// What a run is made from.
pub(crate) struct Driving {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: JobId,
    /// As submitted.
    pub(crate) spec: JobSpec,
    /// The sites that were decided upon.
    pub(crate) sites: Vec<SiteName>,
    pub(crate) resume: bool,
    pub(crate) ends: RunEnds,
}

/// How a run went.
pub(crate) struct RunEnd {
    pub(crate) result: RunResult,
    /// In a sentence.
    pub(crate) status: String,
    /// Sites that the result is without.
    pub(crate) losses: Vec<String>,
    pub(crate) failures: Vec<JobFailure>,
}

impl RunEnd {
    fn failed(text: String) -> Self {
        Self {
            result: RunResult::Failed,
            status: format!("failed at the server: {text}"),
            losses: Vec::new(),
            failures: Vec::new(),
        }
    }

    fn of(report: &JobReport) -> Self {
        let mut losses = Vec::new();
        let (result, status) = match &report.outcome {
            Outcome::Completed { .. } => (RunResult::Completed, "completed".to_owned()),
            Outcome::CompletedWith {
                contributed,
                of,
                missed,
                ..
            } => {
                losses.extend(missed.iter().map(|one| one.site.to_string()));
                let named: Vec<&str> = losses.iter().take(NAMED).map(String::as_str).collect();
                let more = match losses.len().saturating_sub(NAMED) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                let status = format!(
                    "completed with {contributed} of {of} sites, without all of {}{more}",
                    named.join(", ")
                );
                (RunResult::CompletedWithLosses, status)
            }
            Outcome::Failed {
                cause, hint, round, ..
            } => {
                let when = match round {
                    Some(round) => format!(" in round {round}"),
                    None => String::new(),
                };
                let hint = if hint.is_empty() {
                    String::new()
                } else {
                    format!("; {hint}")
                };
                let status = format!("failed during run{when}: {cause}{hint}");
                (RunResult::Failed, status)
            }
            Outcome::Aborted { reason } => {
                (RunResult::Aborted, format!("aborted during run: {reason}"))
            }
        };
        let failures = report.failures.iter().map(|one| {
            JobFailure::of(
                Some(one.site.clone()),
                one.round.map(|round| round.0),
                &one.failure,
            )
        });
        Self {
            result,
            status,
            losses,
            failures: failures.collect(),
        }
    }
}

/// What a site's refusal is for the workflow.
pub(crate) fn failure(why: &Refusal) -> Failure {
    let code = match why.code.as_str() {
        "away" | "ended" => FailureCode::Disconnected,
        "no_answer" | "never_started" => FailureCode::NeverStarted,
        "script_missing" => FailureCode::ScriptMissing,
        _ => FailureCode::SpawnFailed,
    };
    let phase = match why.phase {
        JobPhase::Run => Phase::Train,
        _ => Phase::Start,
    };
    Failure::new(code, phase, why.reason.clone()).with_hint(why.hint.clone())
}

/// Drives the job to its end.
pub(crate) async fn drive(driving: Driving) -> RunEnd {
    let logger = driving.shared.logger.clone();
    let id = driving.id.clone();
    // In a task of its own: a panic is the job's failure and nobody else's.
    match tokio::spawn(attempt(driving)).await {
        Ok(Ok(report)) => RunEnd::of(&report),
        Ok(Err(text)) => {
            logger
                .for_job(id.as_str())
                .error(&format!("job {id}: {text}"));
            RunEnd::failed(text)
        }
        Err(error) => RunEnd::failed(format!("its driver broke down: {error}")),
    }
}

async fn attempt(driving: Driving) -> Result<JobReport, String> {
    let Driving {
        shared,
        id,
        spec,
        sites,
        resume,
        ends,
    } = driving;
    let dir = shared.jobs.job_dir(&id);
    let names = sites.iter().map(ToString::to_string).collect();
    let mut spec = spec.at_sites(names).map_err(|error| sentence(&error))?;
    if let Some(model) = &mut spec.initial_model {
        *model = initial(&dir).to_string_lossy().into_owned();
    }
    let durations = shared.durations;
    let opening = {
        let (dir, spec) = (dir.clone(), spec.clone());
        tokio::task::spawn_blocking(move || open(&dir, &spec, resume))
    };
    let (run, resume) = opening.await.map_err(|error| error.to_string())??;
    let run = Arc::new(run);
    let logs = Logs::open(
        run.path(),
        (*shared.log_config()).clone(),
        shared.console.clone(),
    );
    shared.job_logs(&id, &logs);
    let logger = logs.logger("firesteel.server").for_job(id.as_str());
    let objects = run.objects().map_err(|error| sentence(&error))?;
    let spool = Spool::open(&objects, SpoolBudget::HalfOfFree, InMemory::Allow)
        .map_err(|error| sentence(&error))?;
    let told = logger.clone();
    let depot = Depot::warning(
        objects.clone(),
        Some(spool.clone()),
        durations,
        move |text| {
            told.warning(text);
        },
    );
    let first = firesteel_node::parts::first_round(&run, resume).map_err(|e| sentence(&e))?;
    let watch = Watch::new(
        &logger,
        Progress::disabled(),
        Arc::clone(&run),
        &spec,
        durations,
        first,
    );
    logger.info(&format!(
        "job {id} ({}) with {} sites in {}",
        spec.name,
        spec.sites.len(),
        run.path().display()
    ));
    let relay = Relay::default();
    let rounds = Rounds::new(&run, first, &spec);
    let (status, mut stands) = watch::channel(None);
    let parts = JobParts {
        id: id.clone(),
        epoch: random(),
        seed: spec.seed.unwrap_or_else(random),
        spec,
        run,
        objects,
        spool: Some(spool),
        carriers: Box::new(move |site: &SiteName| {
            let remote = Remote::new(&depot, site.as_str()).relayed(&relay);
            let carrier: Arc<dyn Carrier> = Arc::new(remote);
            carrier
        }),
        watch,
        durations,
        threads: shared.threads,
    };
    let mut teller = Teller {
        shared: Arc::clone(&shared),
        id: id.clone(),
        rounds,
        started: None,
    };
    let RunEnds {
        connections,
        gone,
        abort,
    } = ends;
    let job = Job::run_without(parts, resume, connections, abort, status, gone);
    tokio::pin!(job);
    let report = loop {
        tokio::select! {
            report = &mut job => break report,
            Ok(()) = stands.changed() => {
                let status = stands.borrow_and_update().clone();
                teller.tell(status.as_ref()).await;
            }
        }
    };
    teller.tell(None).await;
    shared.end_job_logs(&id);
    tell_end(&logger, &report);
    report.map_err(|error| sentence(&error))
}

fn tell_end(logger: &Logger, report: &Result<JobReport, firesteel_server::JobError>) {
    match report {
        Ok(report) => logger.info(&report.status()),
        Err(error) => logger.error(&sentence(error)),
    }
}

/// The initial model of a job, where it was unpacked.
fn initial(dir: &Path) -> PathBuf {
    dir.join(super::intake::UNPACKED)
        .join(firesteel_pki::bundle::INITIAL)
}

/// The run's directory, made or found again, with room for what it will hold;
/// whether there is anything to go on with.
fn open(dir: &Path, spec: &JobSpec, resume: bool) -> Result<(RunDir, bool), String> {
    // Where the model lies says nothing about the job.
    let mut kept = spec.clone();
    if kept.initial_model.is_some() {
        kept.initial_model = Some(firesteel_pki::bundle::INITIAL.to_owned());
    }
    let text = String::from_utf8_lossy(&kept.to_json()).into_owned();
    if resume {
        match RunDir::open_latest(dir, RUN, &text) {
            Ok(run) => return Ok((run, true)),
            // It ended before it had begun.
            Err(RunError::NoRun { .. }) => {}
            Err(error) => return Err(sentence(&error)),
        }
    }
    let model_len = spec
        .initial_model
        .as_ref()
        .and_then(|path| std::fs::metadata(path).ok())
        .map_or(limits::INLINE_OBJECT as u64, |found| found.len());
    let updates = match spec.aggregation.method {
        Method::Mean => Updates::Elastic { budget: None },
        _ => Updates::AllSpooled,
    };
    let need = server_disk_need(&ServerDisk {
        model_len,
        update_len: model_len,
        sites: spec.sites.len() as u64,
        keep_models: u64::from(spec.keep_models),
        updates,
    });
    check_disks(&[DiskUse {
        dir,
        what: "the job's directory at the server",
        needed: need.required,
    }])
    .map_err(|error| sentence(&error))?;
    let run = RunDir::create(dir, RUN, &text).map_err(|error| sentence(&error))?;
    Ok((run, false))
}

/// Tells the loop what happens in the run.
struct Teller {
    shared: Arc<Shared>,
    id: JobId,
    rounds: Rounds,
    /// The round that was last told to be open.
    started: Option<Round>,
}

impl Teller {
    async fn tell(&mut self, status: Option<&Status>) {
        let mut events = self.rounds.more();
        if let Some(status) = status
            && let Some(round) = status.round
            && self.started.is_none_or(|told| told < round)
        {
            self.started = Some(round);
            events.push(EventKind::RoundStarted {
                round: round.0,
                rounds: status.total_rounds,
                sites: u32::try_from(status.sites.len()).unwrap_or(u32::MAX),
            });
        }
        let told = Input::Told {
            job: self.id.clone(),
            events,
            status: status.map(ToString::to_string),
        };
        // The loop has ended: so has the server.
        let _ = self.shared.inbox.send(told).await;
    }
}

/// The rounds that a run has written down.
struct Rounds {
    path: PathBuf,
    read: u64,
    from: u32,
    total: u32,
}

impl Rounds {
    fn new(run: &RunDir, first: Round, spec: &JobSpec) -> Self {
        let firesteel_wire::spec::Algorithm::Fedavg { num_rounds, .. } = spec.algorithm;
        Self {
            path: run.metrics_dir().join("rounds.jsonl"),
            read: 0,
            from: first.0,
            total: num_rounds,
        }
    }

    /// Those that have come since the last time.
    fn more(&mut self) -> Vec<EventKind> {
        let mut events = Vec::new();
        for line in lines_from(&self.path, &mut self.read) {
            let Some((round, event)) = round_done(&line, self.total) else {
                continue;
            };
            // Those before a restart were told before it.
            if round >= self.from {
                events.push(event);
            }
        }
        events
    }
}

/// Whole lines of a file from this byte on.
fn lines_from(path: &Path, read: &mut u64) -> Vec<String> {
    use std::io::{Read as _, Seek as _};
    let Ok(mut file) = std::fs::File::open(path) else {
        return Vec::new();
    };
    let mut text = String::new();
    let found = file
        .seek(std::io::SeekFrom::Start(*read))
        .and_then(|_| file.read_to_string(&mut text));
    let end = match (found, text.rfind('\n')) {
        (Ok(_), Some(end)) => end + 1,
        _ => return Vec::new(),
    };
    *read += end as u64;
    let whole = text.get(..end).unwrap_or_default();
    whole.lines().map(str::to_owned).collect()
}

/// A line of `rounds.jsonl` as an event.
pub(crate) fn round_done(line: &str, total: u32) -> Option<(u32, EventKind)> {
    let value: Value = serde_json::from_str(line).ok()?;
    let round = u32::try_from(value.get("round")?.as_u64()?).ok()?;
    let sites = value.get("sites")?.as_array()?;
    let done = sites.iter().filter(|site| {
        let weight = site.get("weight");
        weight.is_some_and(|weight| !weight.is_null())
    });
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let mut metrics = BTreeMap::new();
    if let Some(Value::Object(map)) = value.get("metrics") {
        for (name, number) in map {
            if let Some(number) = number.as_f64() {
                metrics.insert(name.clone(), number);
            }
        }
    }
    let event = EventKind::RoundDone {
        round,
        rounds: total,
        contributed: count(done.count()),
        sites: count(sites.len()),
        seconds: value.get("seconds").and_then(Value::as_f64).unwrap_or(0.0),
        metrics,
    };
    Some((round, event))
}
