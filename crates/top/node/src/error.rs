//! Why a process of a federation could not do its work.

use std::io;
use std::path::PathBuf;

use firesteel_agent::AgentError;
use firesteel_base::{Hint, IdError};
use firesteel_bridge::BindError;
use firesteel_launch::LaunchError;
use firesteel_net::{BindError as ListenError, IdentityError};
use firesteel_observe::ConfigError;
use firesteel_server::JobError;
use firesteel_store::{RunError, SpaceError, SpoolError, StoreError};
use firesteel_wire::spec::SpecError;

/// Why a process of a federation could not do its work. How a job ended that did
/// run is in its report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The job.
    #[error("the job cannot be read")]
    Spec(#[from] SpecError),
    /// A name.
    #[error(transparent)]
    Name(#[from] IdError),
    /// The run directory.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk is too small for the job.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// The place of the sites' updates.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A log configuration.
    #[error(transparent)]
    Logs(#[from] ConfigError),
    /// Key and certificates.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The port.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The trainers' supervisor.
    #[error("the trainers' supervisor could not be started")]
    Launch(#[from] LaunchError),
    /// The trainers' socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The server.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Another process works in the directory.
    #[error("a process works in `{}` already", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// Whatever else the system refused.
    #[error("could not {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl NodeError {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

impl Hint for NodeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Spec(error) => error.hint(),
            Self::Run(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Space(error) => error.hint(),
            Self::Spool(error) => error.hint(),
            Self::Logs(error) => error.hint(),
            Self::Identity(error) => error.hint(),
            Self::Listen(error) => error.hint(),
            Self::Launch(error) => error.hint(),
            Self::Bind(error) => error.hint(),
            Self::Job(error) => error.hint(),
            Self::Busy { .. } => {
                Some("each site needs a directory of its own: choose another with --root".into())
            }
            Self::Name(_) | Self::Agent(_) | Self::Io { .. } => None,
        }
    }
}
