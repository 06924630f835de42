//! Running a whole federation from Python.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use firesteel_base::Hint;
use firesteel_flow::{SiteState, Status};
use firesteel_server::SiteFailureReport;
use firesteel_sim::{SimError, SimOutcome};
use firesteel_wire::spec::{JobSpec, SpecError};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use serde_json::{Value, json};

use crate::errors::{Raise, raise, sentence};

/// Checks a job spec.
///
/// Raises:
///     firesteel.errors.SpecError: naming the field that is wrong.
#[pyfunction]
pub(crate) fn validate_job(py: Python<'_>, spec_json: &str) -> PyResult<()> {
    JobSpec::parse(spec_json.as_bytes())
        .map(drop)
        .map_err(|error| spec_error(py, &error))
}

pub(crate) fn spec_error(py: Python<'_>, error: &SpecError) -> PyErr {
    Raise {
        class: "SpecError",
        message: error.to_string(),
        hint: error.hint().unwrap_or_default(),
        code: "",
        extra: vec![("field", error.field.clone())],
    }
    .into_err(py)
}

/// A federation in this process.
#[pyclass(frozen, module = "firesteel._native")]
pub(crate) struct Simulation {
    // Locked for moments only; waiting is done on a part of its own.
    inner: Mutex<firesteel_sim::Simulation>,
}

#[pymethods]
impl Simulation {
    #[new]
    fn new(py: Python<'_>, spec_json: &str, options_json: &str) -> PyResult<Self> {
        let inner = firesteel_sim::Simulation::new(spec_json.as_bytes(), options_json.as_bytes())
            .map_err(|error| spec_error(py, &error))?;
        Ok(Self {
            inner: Mutex::new(inner),
        })
    }

    /// Starts it on threads of its own.
    fn start(&self) -> PyResult<()> {
        Ok(self.lock().start()?)
    }

    /// Waits at most `timeout` seconds for its end; whether it has ended.
    fn wait(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let limit = Duration::try_from_secs_f64(timeout).map_err(|_| {
            PyValueError::new_err(format!("timeout is {timeout}, expected seconds from 0 up"))
        })?;
        let waiter = self.lock().waiter();
        Ok(py.detach(|| waiter.wait(limit)))
    }

    /// Ends the job early.
    fn abort(&self, reason: &str) {
        self.lock().abort(reason);
    }

    /// Where it stands, as JSON.
    fn status(&self) -> String {
        let inner = self.lock();
        let status = inner.status();
        json!({
            "run_dir": inner.run_dir(),
            "text": status.as_ref().map(ToString::to_string),
            "round": status.as_ref().and_then(|status| status.round).map(|round| round.0),
            "total_rounds": status.as_ref().map(|status| status.total_rounds),
            "sites": status.as_ref().map(sites),
        })
        .to_string()
    }

    /// How it ended, as JSON; to be asked once, after its end.
    ///
    /// Raises:
    ///     firesteel.errors.Error: it could not be run at all.
    fn result(&self, py: Python<'_>) -> PyResult<String> {
        let result = self.lock().result();
        match result {
            None => Err(PyRuntimeError::new_err(
                "the simulation has not ended, or its result was taken",
            )),
            Some(Ok(outcome)) => Ok(outcome_json(&outcome).to_string()),
            Some(Err(error)) => Err(sim_error(py, &error)),
        }
    }
}

impl Simulation {
    fn lock(&self) -> std::sync::MutexGuard<'_, firesteel_sim::Simulation> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sites(status: &Status) -> Vec<Value> {
    status
        .sites
        .iter()
        .map(|site| {
            let word = match &site.state {
                SiteState::Absent => "absent",
                SiteState::Ready => "ready",
                SiteState::Working { .. } => "working",
                SiteState::Returning { .. } => "returning",
                SiteState::Contributed => "contributed",
                SiteState::Late => "late",
                SiteState::Failed(_) => "failed",
                SiteState::Excluded(_) => "excluded",
            };
            json!({ "site": site.site.as_str(), "state": word, "text": site.to_string() })
        })
        .collect()
}

fn outcome_json(outcome: &SimOutcome) -> Value {
    let report = &outcome.report;
    json!({
        "job_id": report.job,
        "status": report.status(),
        "run_dir": report.run_dir,
        "cause": outcome.cause(),
        "hint": outcome.hint(),
        "rounds": outcome.rounds(),
        "stop": outcome.stop(),
        "resumed_after": report.resumed_after.map(|round| round.0),
        "failures": report.failures.iter().map(failure_json).collect::<Vec<_>>(),
    })
}

fn failure_json(report: &SiteFailureReport) -> Value {
    let failure = &report.failure;
    json!({
        "site": report.site,
        "round": report.round.map(|round| round.0),
        "code": failure.code.as_str(),
        "phase": failure.phase.as_str(),
        "message": failure.message,
        "hint": failure.hint,
        "traceback": failure.traceback,
        "log_tail": failure.log_tail,
    })
}

fn sim_error(py: Python<'_>, error: &SimError) -> PyErr {
    let class = match error {
        SimError::Run(_) | SimError::Store(_) | SimError::Space(_) => "StoreError",
        SimError::InitialModel(_) => "ModelError",
        SimError::Logs(_) | SimError::Option { .. } => "SpecError",
        _ => "Error",
    };
    raise(py, class, sentence(error), error.hint().unwrap_or_default())
}
