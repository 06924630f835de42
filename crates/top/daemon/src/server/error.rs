//! Why a server could not be started.

use std::io;
use std::path::PathBuf;

use firesteel_base::Hint;
use firesteel_jobs::JobsError;
use firesteel_net::{BindError, NetworkError};
use firesteel_observe::ConfigError;
use firesteel_pki::KitError;

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Its kit.
    #[error(transparent)]
    Kit(#[from] KitError),
    /// Its jobs.
    #[error(transparent)]
    Jobs(#[from] JobsError),
    /// A job of an earlier process.
    #[error("job `{job}` of an earlier start cannot be taken up: {problem}")]
    Job {
        /// Which.
        job: String,
        /// What is wrong.
        problem: String,
    },
    /// A log configuration.
    #[error(transparent)]
    Logs(#[from] ConfigError),
    /// The port.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// A network of load balancers.
    #[error(transparent)]
    Network(NetworkError),
    /// The interface for people.
    #[error(transparent)]
    Rest(#[from] crate::rest::RestError),
    /// The kit says nothing of where to listen.
    #[error("the kit of server `{server}` does not say where it listens")]
    Deaf {
        /// The server.
        server: String,
    },
    /// The workspace.
    #[error("could not {doing} `{}`", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Hint for ServerError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Kit(error) => error.hint(),
            Self::Jobs(error) => error.hint(),
            Self::Logs(error) => error.hint(),
            Self::Listen(error) => error.hint(),
            Self::Job { .. } => Some(
                "use the build that made it, or move the workspace aside to start without it"
                    .to_owned(),
            ),
            Self::Deaf { .. } => Some(
                "give the server a port in the project file, and provision it again".to_owned(),
            ),
            Self::Network(_) | Self::Rest(_) | Self::Io { .. } => None,
        }
    }
}
