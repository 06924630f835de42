//! The trainer's side of the bridge, as Python sees it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use firesteel_base::{Durations, Hint};
use firesteel_bridge::{
    BridgeClient, ClientError, Delivery, Dial, Interrupted, Job, Outcome, Outgoing, ResultModel,
    TaskKey,
};
use firesteel_wire::bridge::Failed;
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;

use crate::errors::{Raise, sentence};
use crate::model::ModelFile;

/// A trainer's connection to its site's agent.
///
/// Calls that wait let go of the interpreter and honor signals.
#[pyclass(frozen, module = "firesteel._native")]
pub(crate) struct Bridge {
    /// Empty once closed. Shared with calls that wait, so that closing one's own
    /// end never waits for them.
    client: Mutex<Option<Arc<BridgeClient>>>,
}

/// A task that a trainer was given.
#[pyclass(frozen, module = "firesteel._native")]
pub(crate) struct Task {
    key: TaskKey,
    start_round: u32,
    total_rounds: u32,
    meta: String,
    model: Option<Py<ModelFile>>,
}

#[pymethods]
impl Task {
    /// `train`, `validate` or `submit_model`.
    #[getter]
    fn name(&self) -> &str {
        &self.key.name
    }

    /// The round, from zero.
    #[getter]
    fn round(&self) -> u32 {
        self.key.round
    }

    /// Which try it is, from zero.
    #[getter]
    fn attempt(&self) -> u32 {
        self.key.attempt
    }

    /// The job's first round.
    #[getter]
    fn start_round(&self) -> u32 {
        self.start_round
    }

    /// How many rounds the job has.
    #[getter]
    fn total_rounds(&self) -> u32 {
        self.total_rounds
    }

    /// Extra facts, as a JSON object.
    #[getter]
    fn meta(&self) -> &str {
        if self.meta.is_empty() {
            "{}"
        } else {
            &self.meta
        }
    }

    /// The model to work on; None when there is none yet.
    #[getter]
    fn model(&self, py: Python<'_>) -> Option<Py<ModelFile>> {
        self.model.as_ref().map(|model| model.clone_ref(py))
    }
}

#[pymethods]
impl Bridge {
    /// Dials an agent and shows it the token.
    #[staticmethod]
    fn connect(py: Python<'_>, socket: PathBuf, token: &str, rank: u32) -> PyResult<Self> {
        let client = waiting(py, |check| {
            BridgeClient::connect(
                Dial {
                    socket: &socket,
                    token,
                    rank,
                    version: env!("CARGO_PKG_VERSION"),
                    connect: Durations::default().connect,
                },
                check,
            )
        })?;
        Ok(Self {
            client: Mutex::new(Some(Arc::new(client))),
        })
    }

    /// What the agent wants the trainer to know, as JSON.
    fn welcome(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.client(py)?.welcome().to_owned())
    }

    /// Waits for a task; None when there will be no more.
    ///
    /// Raises:
    ///     TimeoutError: none came within `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Task>> {
        let client = self.client(py)?;
        let timeout = match timeout {
            None => None,
            Some(seconds) => Some(Duration::try_from_secs_f64(seconds).map_err(|_| {
                PyValueError::new_err(format!(
                    "timeout is {seconds}, expected seconds from 0 up, or None"
                ))
            })?),
        };
        match waiting(py, |check| client.next(timeout, check))? {
            Outcome::Ended(_) => Ok(None),
            Outcome::Task(Job {
                key,
                start_round,
                total_rounds,
                meta,
                model,
            }) => {
                let model = match model {
                    None => None,
                    Some(mapping) => Some(Py::new(py, ModelFile::new(py, mapping)?)?),
                };
                Ok(Some(Task {
                    key,
                    start_round: start_round.0,
                    total_rounds,
                    meta,
                    model,
                }))
            }
        }
    }

    /// Hands a task's result over; returns when the agent has taken it, True, or
    /// when the job ended meanwhile, False.
    #[pyo3(signature = (task, *, model=None, file=None, params_type=None, metrics, meta, state_file=None, partial=false))]
    #[expect(
        clippy::too_many_arguments,
        reason = "keyword arguments of a Python method"
    )]
    fn send(
        &self,
        py: Python<'_>,
        task: &Task,
        model: Option<Vec<u8>>,
        file: Option<String>,
        params_type: Option<String>,
        metrics: BTreeMap<String, f64>,
        meta: String,
        state_file: Option<String>,
        partial: bool,
    ) -> PyResult<bool> {
        let client = self.client(py)?;
        if let Some(received) = &task.model {
            received.get().done();
        }
        let model = match (model, file) {
            (None, None) => ResultModel::None,
            (Some(bytes), None) => ResultModel::Inline(Bytes::from(bytes)),
            (None, Some(name)) => ResultModel::File(name),
            (Some(_), Some(_)) => {
                return Err(PyValueError::new_err("give a model or a file, not both"));
            }
        };
        let outgoing = Outgoing {
            params_type: params_type.unwrap_or_default(),
            model,
            metrics,
            meta,
            state_file: state_file.unwrap_or_default(),
            partial,
        };
        let key = task.key.clone();
        let delivery = waiting(py, |check| client.send_result(&key, outgoing, check))?;
        Ok(delivery == Delivery::Taken)
    }

    /// Sends a line of log at one of Python's levels. Never waits, never fails.
    fn log(&self, py: Python<'_>, level: u32, logger: &str, message: &str) {
        if let Ok(client) = self.client(py) {
            client.log(level, logger, message);
        }
    }

    /// Sends a tracking event, as JSON. Never waits, never fails.
    fn metric(&self, py: Python<'_>, event: &str) {
        if let Ok(client) = self.client(py) {
            client.metric(event);
        }
    }

    /// Tells the agent that the script failed.
    fn failed(
        &self,
        py: Python<'_>,
        code: String,
        phase: String,
        message: String,
        traceback: String,
    ) -> PyResult<()> {
        let client = self.client(py)?;
        waiting(py, |check| {
            client.failed(
                Failed {
                    code,
                    phase,
                    message,
                    traceback,
                },
                check,
            )
        })
    }

    /// Says goodbye. Safe to call twice.
    fn close(&self, py: Python<'_>) {
        let client = self
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // Another thread may still wait on it; then the last one to let go closes.
        if let Some(client) = client.and_then(Arc::into_inner) {
            py.detach(|| client.close(&mut || Ok(())));
        }
    }
}

impl Bridge {
    fn client(&self, py: Python<'_>) -> PyResult<Arc<BridgeClient>> {
        let client = self
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        client.ok_or_else(|| {
            crate::errors::raise(
                py,
                "ClientError",
                "the connection to the federation is closed",
                "call init() again before receive() and send()",
            )
        })
    }
}

/// Runs a call that may wait, without the interpreter, looking for signals.
pub(crate) fn waiting<T: Send>(
    py: Python<'_>,
    call: impl FnOnce(&mut dyn FnMut() -> Result<(), Interrupted>) -> Result<T, ClientError> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let result = py.detach(|| {
        let mut check = || {
            Python::attach(|py| py.check_signals()).map_err(|error| {
                raised = Some(error);
                Interrupted
            })
        };
        call(&mut check)
    });
    result.map_err(|error| raised.take().unwrap_or_else(|| exception(py, &error)))
}

pub(crate) fn exception(py: Python<'_>, error: &ClientError) -> PyErr {
    if let ClientError::TimedOut(_) = error {
        return PyTimeoutError::new_err(error.to_string());
    }
    let code = match error {
        ClientError::Refused { code, .. } => code.as_str(),
        _ => "",
    };
    Raise {
        class: "ClientError",
        message: sentence(error),
        hint: error.hint().unwrap_or_default(),
        code,
        extra: Vec::new(),
    }
    .into_err(py)
}
