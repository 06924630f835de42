//! A session with a server's admin interface.

use std::path::Path;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use firesteel_api::Code;
use firesteel_api::logs::LogQuery;
use firesteel_base::Hint as _;
use firesteel_session::{Session, SessionError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::runtime::{Builder, Runtime};

use crate::errors::{Raise, raise, sentence};

/// How often a call that waits looks whether the person pressed Ctrl-C.
const LOOK: Duration = Duration::from_millis(100);

/// A session with the server of a startup kit, for any number of threads. It logs
/// in with the first request, and again when it has to.
#[pyclass(frozen, module = "firesteel._native")]
pub(crate) struct Admin {
    session: Mutex<Option<Session>>,
    // One thread's: whoever waits first runs it, also for the others.
    runtime: Runtime,
}

#[pymethods]
impl Admin {
    #[new]
    fn new(py: Python<'_>, kit_dir: &str) -> PyResult<Self> {
        let session = py
            .detach(|| Session::open(Path::new(kit_dir)))
            .map_err(|error| exception(py, &error))?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self {
            session: Mutex::new(Some(session)),
            runtime,
        })
    }

    /// Sends a request; gives the status and the body of whatever comes back.
    ///
    /// Raises:
    ///     firesteel.errors.NoConnection: the server was not reached.
    ///     firesteel.errors.AuthenticationError: it did not take the login.
    #[pyo3(signature = (method, path, body = None))]
    fn request<'py>(
        &self,
        py: Python<'py>,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
    ) -> PyResult<(u16, Bound<'py, PyBytes>)> {
        let session = self.there(py)?;
        let body = body.map(Bytes::copy_from_slice);
        let reply = self.wait(py, session.request(method, path, body))?;
        Ok((reply.status, PyBytes::new(py, &reply.body)))
    }

    /// Sends a file. With a key, one that was cut is sent again.
    #[pyo3(signature = (path, file, key = None))]
    fn upload<'py>(
        &self,
        py: Python<'py>,
        path: &str,
        file: &str,
        key: Option<&str>,
    ) -> PyResult<(u16, Bound<'py, PyBytes>)> {
        let session = self.there(py)?;
        let reply = self.wait(py, session.upload(path, Path::new(file), key))?;
        Ok((reply.status, PyBytes::new(py, &reply.body)))
    }

    /// Fetches a file, going on where an earlier try was cut.
    fn download(&self, py: Python<'_>, path: &str, file: &str) -> PyResult<()> {
        let session = self.there(py)?;
        self.wait(py, session.download(path, Path::new(file), |_| {}))?;
        Ok(())
    }

    /// A piece of the log at a path: its bytes, what to ask for `after` it, and
    /// whether nothing follows.
    #[pyo3(signature = (path, after = None, tail = None, wait = 0))]
    fn log<'py>(
        &self,
        py: Python<'py>,
        path: &str,
        after: Option<String>,
        tail: Option<u32>,
        wait: u32,
    ) -> PyResult<(Bound<'py, PyBytes>, Option<String>, bool)> {
        let session = self.there(py)?;
        let query = LogQuery { after, tail, wait };
        let piece = self.wait(py, session.log(path, &query))?;
        Ok((PyBytes::new(py, &piece.bytes), piece.next, piece.ended))
    }

    /// Gives the token back. A second time does nothing.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let session = self.lock().take();
        if let Some(session) = session {
            self.wait(py, async {
                session.close().await;
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Admin {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn there(&self, py: Python<'_>) -> PyResult<Session> {
        self.lock().clone().ok_or_else(|| {
            raise(
                py,
                "SessionClosed",
                "the session was closed",
                "make a new one",
            )
        })
    }

    /// Waits without the interpreter, and is still interrupted by a person.
    fn wait<T: Send>(
        &self,
        py: Python<'_>,
        work: impl Future<Output = Result<T, SessionError>> + Send,
    ) -> PyResult<T> {
        let mut work = pin!(work);
        loop {
            let waited = py.detach(|| {
                self.runtime
                    .block_on(async { tokio::time::timeout(LOOK, work.as_mut()).await })
            });
            match waited {
                Ok(done) => return done.map_err(|error| exception(py, &error)),
                Err(_) => py.check_signals()?,
            }
        }
    }
}

fn exception(py: Python<'_>, error: &SessionError) -> PyErr {
    let class = match error {
        SessionError::Kit(_) | SessionError::NotAdmin { .. } | SessionError::Key(_) => "KitError",
        SessionError::NoConnection { .. } | SessionError::Cut { .. } => "NoConnection",
        SessionError::OtherServer { .. } => "AuthenticationError",
        SessionError::File { .. } => "StoreError",
        SessionError::Refused(problem) => match problem.code {
            Code::LoginRefused => "AuthenticationError",
            Code::Unauthenticated => "SessionExpired",
            Code::Forbidden => "AuthorizationError",
            Code::JobNotFound => "JobNotFound",
            Code::SiteNotFound => "InvalidTarget",
            Code::Internal => "InternalError",
            _ => "CommandError",
        },
        _ => "SessionError",
    };
    Raise {
        class,
        message: sentence(error),
        hint: error.hint().unwrap_or_default(),
        code: error.code(),
        extra: Vec::new(),
    }
    .into_err(py)
}
