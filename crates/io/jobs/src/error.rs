//! Why jobs could not be read or written.

use std::io;
use std::path::PathBuf;

use firesteel_base::Hint;

/// Why jobs could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobsError {
    /// Another process has them open.
    #[error("a server works in `{}` already", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// They were made by a later build.
    #[error("the jobs in `{}` have schema {found}, this build knows up to {known}", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The directory.
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
    /// The database.
    #[error("could not {doing}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// What was to be new is there already.
    #[error("a job with this id or key is there already")]
    Exists,
    /// A row that this build cannot read.
    #[error("the record of job `{job}` is damaged: {problem}")]
    Damaged {
        /// The job.
        job: String,
        /// What is wrong.
        problem: String,
    },
    /// They are being closed.
    #[error("the jobs are being closed")]
    Closed,
}

impl JobsError {
    pub(crate) fn database(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| match &source {
            sqlx::Error::Database(error) if error.is_unique_violation() => Self::Exists,
            sqlx::Error::PoolClosed => Self::Closed,
            _ => Self::Database { doing, source },
        }
    }
}

impl Hint for JobsError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Busy { .. } => Some("stop it, or give this one another workspace".to_owned()),
            Self::Newer { .. } => Some("use the newer build, or another workspace".to_owned()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("make room on the disk of the workspace".to_owned())
            }
            _ => None,
        }
    }
}
