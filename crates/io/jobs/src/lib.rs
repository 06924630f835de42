//! Jobs, their events and their files, in a database and a directory.
//!
//! Every step of a job is an event with a number of its own; what a job has come
//! to is kept beside it. What is written together is there as a whole or not at
//! all, and whoever writes is told once it is on the disk; writes that come at
//! the same time share one flush.
//!
//! Never: decides anything about a job, reads what is in an event, or overwrites
//! one.
//!
//! Start at [`Jobs`].
#![deny(clippy::indexing_slicing)]
#![forbid(unsafe_code)]

mod error;
mod files;
mod read;
mod rows;
mod schema;
mod write;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use firesteel_base::JobId;
use sqlx::SqlitePool;
use tokio::sync::mpsc;

pub use error::JobsError;
pub use rows::{Change, EventRow, Filter, JobRow, NewJob};

/// Jobs below one directory, which one process at a time may have open. Clones
/// are the same.
#[derive(Clone)]
pub struct Jobs(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    readers: SqlitePool,
    writer: mpsc::Sender<write::Batch>,
    /// Held for as long as this lives.
    _lock: std::fs::File,
}

impl Jobs {
    /// Opens the directory, which is made when it is not there.
    ///
    /// # Errors
    /// [`JobsError`], [`JobsError::Busy`] when another process has it open.
    pub async fn open(dir: &Path) -> Result<Self, JobsError> {
        let lock = files::prepare(dir)?;
        let file = dir.join(schema::FILE);
        let single = schema::open_writer(&file).await?;
        let readers = schema::open_readers(&file).await?;
        files::sweep(dir)?;
        let (writer, batches) = mpsc::channel(write::WAITING);
        tokio::spawn(write::run(single, batches));
        Ok(Self(Arc::new(Inner {
            dir: dir.to_owned(),
            readers,
            writer,
            _lock: lock,
        })))
    }

    /// Where the files of a job are.
    pub fn job_dir(&self, job: &JobId) -> PathBuf {
        // A `JobId` is one plain component by construction.
        self.0.dir.join(files::JOBS).join(job.as_str())
    }

    /// Where what is on its way in is put: on the same disk, and emptied at the
    /// next start.
    pub fn incoming_dir(&self) -> PathBuf {
        self.0.dir.join(files::INCOMING)
    }

    /// The names of the directories of jobs, whether those are known or not.
    ///
    /// # Errors
    /// [`JobsError::Io`].
    pub fn job_dirs(&self) -> Result<Vec<String>, JobsError> {
        files::names(&self.0.dir.join(files::JOBS))
    }

    /// Removes the files of a job.
    ///
    /// # Errors
    /// [`JobsError::Io`].
    pub async fn remove_files(&self, job: &JobId) -> Result<(), JobsError> {
        let (dir, gone) = (self.job_dir(job), self.incoming_dir().join(job.as_str()));
        let removing = tokio::task::spawn_blocking(move || files::remove(&dir, &gone));
        removing.await.map_err(|_| JobsError::Closed)?
    }

    fn readers(&self) -> &SqlitePool {
        &self.0.readers
    }
}
