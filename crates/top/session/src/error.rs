//! What can go wrong between an admin and a server.

use std::io;
use std::path::PathBuf;

use firesteel_api::Problem;
use firesteel_base::Hint;
use firesteel_pki::{KitError, SignError};

/// Why something that was asked of the server was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The startup kit cannot be used.
    #[error("the startup kit cannot be used")]
    Kit(#[from] KitError),
    /// It is the kit of a machine.
    #[error("`{name}` is a {role}, and only people log in")]
    NotAdmin {
        /// The kit's name.
        name: String,
        /// Its role.
        role: String,
    },
    /// The kit's key does not sign.
    #[error("the kit's key cannot be used")]
    Key(#[from] SignError),
    /// The server was not reached.
    #[error("no connection to {address}")]
    NoConnection {
        /// Host and port, and the proxy in between.
        address: String,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// It was reached, and the connection broke off.
    #[error("the connection to {address} broke off")]
    Cut {
        /// Host and port.
        address: String,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// Another server than the kit is for.
    #[error("the server at {address} is `{found}`, and the kit is for `{wanted}`")]
    OtherServer {
        /// Host and port.
        address: String,
        /// Who it says it is.
        found: String,
        /// Who it should be.
        wanted: String,
    },
    /// The server refused it.
    #[error("{0}")]
    Refused(Problem),
    /// What answers is no Firesteel server, or one of another age.
    #[error("the answer to {request} is not understood: {why}")]
    Answer {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file here cannot be read or written.
    #[error("`{}` cannot be {}", path.display(), action)]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl SessionError {
    /// The server was not reached, or not to the end.
    pub fn is_connection(&self) -> bool {
        matches!(self, Self::NoConnection { .. } | Self::Cut { .. })
    }

    /// What the server said, when it refused.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            _ => None,
        }
    }

    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Kit(_) | Self::NotAdmin { .. } | Self::Key(_) => "kit",
            Self::NoConnection { .. } | Self::Cut { .. } => "no-connection",
            Self::OtherServer { .. } => "other-server",
            Self::Refused(problem) => problem.code.as_str(),
            Self::Answer { .. } => "answer",
            Self::File { .. } => "file",
        }
    }

    /// A file that could not be read.
    pub(crate) fn reading(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            path,
            action: "read",
            source,
        }
    }

    /// A file that could not be written.
    pub(crate) fn writing(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            path,
            action: "written",
            source,
        }
    }
}

impl Hint for SessionError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Kit(error) => error.hint(),
            Self::NotAdmin { .. } => Some("use the kit of an admin".to_owned()),
            Self::Key(error) => error.hint(),
            Self::NoConnection { .. } => Some(
                "is the server up, and are host, port and proxy in the kit's `kit.toml` and \
                 `admin.toml` right?"
                    .to_owned(),
            ),
            Self::Cut { .. } => Some("try again: what was done is not done twice".to_owned()),
            Self::OtherServer { .. } => {
                Some("use the kit that was made for that server".to_owned())
            }
            Self::Refused(problem) => problem.hint(),
            Self::Answer { .. } => Some(
                "does the address lead to a Firesteel server, and is it as new as this program?"
                    .to_owned(),
            ),
            Self::File { .. } => None,
        }
    }
}
