//! What the server knows of a job, and how it is written down and shown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use firesteel_api::job::{JobFailure, JobSite, RoundMetrics};
use firesteel_api::{JobDetail, JobState, JobSummary, Person, Stamp};
use firesteel_base::{JobId, SiteName};
use firesteel_flow::schedule::{JobPhase, Refusal, SitePart};
use firesteel_jobs::{Change, JobRow};
use firesteel_wire::spec::{Algorithm, JobSpec};
use serde_json::{Map, Value, json};

/// A job, as far as it has come.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: JobId,
    pub(crate) row: JobRow,
    pub(crate) spec: JobSpec,
    pub(crate) state: JobState,
    /// The same as a sentence.
    pub(crate) status: String,
    /// When its first round began, in microseconds since 1970 UTC.
    pub(crate) started: Option<u64>,
    pub(crate) ended: Option<u64>,
    pub(crate) rounds_done: u32,
    /// Its sites in its order, once they are known.
    pub(crate) sites: Vec<SiteName>,
    pub(crate) parts: BTreeMap<SiteName, SitePart>,
    pub(crate) losses: Vec<String>,
    pub(crate) pending: BTreeSet<String>,
    pub(crate) failures: Vec<JobFailure>,
    /// Somebody has asked for its end, and why.
    pub(crate) abort: Option<String>,
}

impl Record {
    /// The record in a row of the store.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub(crate) fn read(row: JobRow) -> Result<Self, String> {
        let spec = JobSpec::parse_submitted(row.job.spec.as_bytes())
            .map_err(|error| format!("its spec: {error}"))?;
        let state = JobState::parse(&row.job.state)
            .ok_or_else(|| format!("its state is {:?}", row.job.state))?;
        let detail: Value =
            serde_json::from_str(&row.detail).map_err(|error| format!("its detail: {error}"))?;
        let text = |name: &str| detail.get(name).and_then(Value::as_str);
        let number = |name: &str| detail.get(name).and_then(Value::as_u64);
        let names = |name: &str| {
            let list = detail.get(name).and_then(Value::as_array);
            let words = list.into_iter().flatten().filter_map(Value::as_str);
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        let mut parts = BTreeMap::new();
        if let Some(Value::Object(at)) = detail.get("at") {
            for (site, part) in at {
                let site = SiteName::new(site).map_err(|error| error.to_string())?;
                let part = part_of(part).ok_or_else(|| format!("its part at {site}"))?;
                parts.insert(site, part);
            }
        }
        let failures = match detail.get("failures") {
            Some(list) => serde_json::from_value(list.clone())
                .map_err(|error| format!("its failures: {error}"))?,
            None => Vec::new(),
        };
        let sites = names("sites");
        let sites: Result<_, _> = sites.iter().map(|site| SiteName::new(site)).collect();
        Ok(Self {
            id: row.job.id.clone(),
            spec,
            state,
            status: text("status").unwrap_or(state.as_str()).to_owned(),
            started: number("started"),
            ended: number("ended"),
            rounds_done: number("rounds_done").map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)),
            sites: sites.map_err(|error| error.to_string())?,
            parts,
            losses: names("losses"),
            pending: names("pending").into_iter().collect(),
            failures,
            abort: text("abort").map(str::to_owned),
            row,
        })
    }

    fn detail(&self) -> String {
        let mut out = Map::new();
        let mut put = |name: &str, value: Value| {
            out.insert(name.to_owned(), value);
        };
        put("status", json!(self.status));
        put("rounds_done", json!(self.rounds_done));
        put(
            "sites",
            json!(self.sites.iter().map(SiteName::as_str).collect::<Vec<_>>()),
        );
        let at = self.parts.iter();
        let at: Map<_, _> = at
            .map(|(site, part)| (site.to_string(), part_to(part)))
            .collect();
        put("at", Value::Object(at));
        for (name, when) in [("started", self.started), ("ended", self.ended)] {
            if let Some(when) = when {
                put(name, json!(when));
            }
        }
        if !self.losses.is_empty() {
            put("losses", json!(self.losses));
        }
        if !self.pending.is_empty() {
            put("pending", json!(self.pending));
        }
        if !self.failures.is_empty() {
            // Numbers and strings: it cannot fail.
            let list = serde_json::to_value(&self.failures);
            put("failures", list.unwrap_or_else(|_| json!([])));
        }
        if let Some(reason) = &self.abort {
            put("abort", json!(reason));
        }
        Value::Object(out).to_string()
    }

    /// Whether nothing more is to be done about it.
    pub(crate) fn is_settled(&self) -> bool {
        self.state.is_terminal() && self.pending.is_empty() && !self.leaving()
    }

    /// Whether a site may still have something of it.
    pub(crate) fn leaving(&self) -> bool {
        self.parts
            .values()
            .any(|part| !matches!(part, SitePart::Waiting | SitePart::Out(_) | SitePart::Ended))
    }

    /// What is written down of it now.
    pub(crate) fn change(&self, time: u64) -> Change {
        Change::State {
            job: self.id.clone(),
            time,
            state: self.state.as_str().to_owned(),
            over: self.state.is_terminal(),
            settled: self.is_settled(),
            detail: self.detail(),
        }
    }

    /// Rounds in all.
    pub(crate) fn rounds(&self) -> u32 {
        let Algorithm::Fedavg { num_rounds, .. } = self.spec.algorithm;
        num_rounds
    }

    /// What a list says of it.
    pub(crate) fn summary(&self, now: SystemTime) -> JobSummary {
        let job = &self.row.job;
        let from = self.started.unwrap_or(job.submitted);
        let to = self.ended.unwrap_or_else(|| micros(now));
        let sites = match self.sites.len() {
            0 => self.spec.sites.len(),
            sites => sites,
        };
        JobSummary {
            id: job.id.to_string(),
            name: job.name.clone(),
            state: self.state,
            status: self.status.clone(),
            submitter: Person {
                name: job.submitter.clone(),
                org: job.organization.clone(),
                role: job.role.clone(),
            },
            submitted: stamp(job.submitted),
            started: self.started.map(stamp),
            ended: self.ended.map(stamp),
            seconds: to.saturating_sub(from) as f64 / 1e6,
            rounds_done: self.rounds_done,
            rounds: self.rounds(),
            sites: u32::try_from(sites).unwrap_or(u32::MAX),
            priority: self.spec.priority,
            key: job.key.clone(),
        }
    }

    /// Everything about it; what its run has written is added by the caller.
    pub(crate) fn shown(&self, now: SystemTime, metrics: Vec<RoundMetrics>) -> JobDetail {
        let at = self.sites.iter().map(|site| {
            let part = self.parts.get(site);
            let pending = self.pending.contains(site.as_str());
            let (state, status) = match part {
                _ if pending => ("pending", "stops when it next connects".to_owned()),
                Some(SitePart::Out(why)) => ("excluded", why.reason.clone()),
                Some(SitePart::Waiting) | None => ("absent", String::new()),
                Some(SitePart::Deploying) => ("deploying", String::new()),
                Some(SitePart::Ready) => ("ready", String::new()),
                Some(SitePart::Starting) => ("starting", String::new()),
                Some(SitePart::Started) => ("working", String::new()),
                Some(SitePart::Stopping) => ("stopping", String::new()),
                Some(SitePart::Ended) => ("stopped", String::new()),
            };
            JobSite {
                site: site.to_string(),
                state: state.to_owned(),
                status,
                bytes_down: 0,
                bytes_up: 0,
            }
        });
        JobDetail {
            summary: self.summary(now),
            at: at.collect(),
            losses: self.losses.clone(),
            pending: self.pending.iter().cloned().collect(),
            failures: self.failures.clone(),
            metrics,
            cloned_from: self.row.job.cloned_from.clone(),
            bytes_down: 0,
            bytes_up: 0,
            meta: self.spec.meta.clone(),
            spec: serde_json::from_str(&self.row.job.spec).unwrap_or(Value::Null),
        }
    }
}

/// What a refusal is for whoever reads about the job.
pub(crate) fn failure(site: &SiteName, why: &Refusal) -> JobFailure {
    JobFailure {
        site: Some(site.to_string()),
        round: None,
        code: why.code.clone(),
        phase: why.phase.as_str().to_owned(),
        message: why.reason.clone(),
        hint: why.hint.clone(),
        traceback: None,
        log_tail: Vec::new(),
    }
}

fn part_to(part: &SitePart) -> Value {
    match part {
        SitePart::Out(why) => json!({
            "part": part.as_str(), "phase": why.phase.as_str(), "code": why.code,
            "reason": why.reason, "hint": why.hint,
        }),
        other => json!({"part": other.as_str()}),
    }
}

fn part_of(value: &Value) -> Option<SitePart> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    Some(match text("part")? {
        "waiting" => SitePart::Waiting,
        "deploying" => SitePart::Deploying,
        "ready" => SitePart::Ready,
        "starting" => SitePart::Starting,
        "started" => SitePart::Started,
        "stopping" => SitePart::Stopping,
        "ended" => SitePart::Ended,
        "out" => SitePart::Out(Refusal {
            phase: JobPhase::parse(text("phase")?)?,
            code: text("code")?.to_owned(),
            reason: text("reason")?.to_owned(),
            hint: text("hint").unwrap_or_default().to_owned(),
        }),
        _ => return None,
    })
}

/// Microseconds since 1970 UTC.
pub(crate) fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}

pub(crate) fn stamp(micros: u64) -> Stamp {
    Stamp::of(SystemTime::UNIX_EPOCH + Duration::from_micros(micros))
}
