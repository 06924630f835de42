//! What is written: in groups, each flushed once.

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection as _, Sqlite, Transaction};
use tokio::sync::{mpsc, oneshot};

use crate::{Change, Jobs, JobsError, NewJob};

/// Writers that wait for the disk at once.
pub(crate) const WAITING: usize = 1024;

/// Writes that share one flush, so that nobody waits for an endless one.
const GROUP: usize = 256;

/// Changes that belong together, and who is told.
pub(crate) struct Batch {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), JobsError>>,
}

impl Jobs {
    /// Writes these changes, all or none. When it returns they are on the disk.
    ///
    /// # Errors
    /// [`JobsError`]; nothing of them is written then. [`JobsError::Exists`] when
    /// a new job has an id or a key that is taken.
    pub async fn write(&self, changes: Vec<Change>) -> Result<(), JobsError> {
        if changes.is_empty() {
            return Ok(());
        }
        let (done, told) = oneshot::channel();
        let batch = Batch { changes, done };
        let sent = self.0.writer.send(batch).await;
        sent.map_err(|_| JobsError::Closed)?;
        told.await.map_err(|_| JobsError::Closed)?
    }
}

/// Writes what comes, until nobody can write any more.
pub(crate) async fn run(mut connection: SqliteConnection, mut batches: mpsc::Receiver<Batch>) {
    let mut group = Vec::new();
    while batches.recv_many(&mut group, GROUP).await > 0 {
        match write_group(&mut connection, &group).await {
            Ok(results) => {
                for (batch, result) in group.drain(..).zip(results) {
                    // Whoever asked may have gone; it is written all the same.
                    let _ = batch.done.send(result);
                }
            }
            Err(_) => {
                // One by one, so that each is told what is true of itself.
                for batch in group.drain(..) {
                    let result = write_group(&mut connection, std::slice::from_ref(&batch)).await;
                    let first = |mut results: Vec<_>| results.pop().unwrap_or(Ok(()));
                    let _ = batch.done.send(result.and_then(first));
                }
            }
        }
    }
    // What can fail here is the last checkpoint, which the next start makes up for.
    let _ = connection.close().await;
}

/// Writes a group with one flush; what became of each batch.
async fn write_group(
    connection: &mut SqliteConnection,
    group: &[Batch],
) -> Result<Vec<Result<(), JobsError>>, JobsError> {
    let failed = || JobsError::database("write to the database of jobs");
    let mut all = connection
        .begin_with("BEGIN IMMEDIATE")
        .await
        .map_err(failed())?;
    let mut results = Vec::with_capacity(group.len());
    for batch in group {
        let mut one = all.begin().await.map_err(failed())?;
        let mut result = Ok(());
        for change in &batch.changes {
            result = write_change(&mut one, change).await;
            if result.is_err() {
                break;
            }
        }
        match &result {
            Ok(()) => one.commit().await.map_err(failed())?,
            Err(_) => one.rollback().await.map_err(failed())?,
        }
        results.push(result);
    }
    all.commit().await.map_err(failed())?;
    Ok(results)
}

async fn write_change(at: &mut Transaction<'_, Sqlite>, change: &Change) -> Result<(), JobsError> {
    let failed = || JobsError::database("write to the database of jobs");
    let query = match change {
        Change::New(job) => return write_new(at, job).await,
        Change::Event {
            job,
            time,
            kind,
            body,
        } => sqlx::query(
            "INSERT INTO events (job, number, time, kind, body)
             SELECT ?1, COALESCE(MAX(number), 0) + 1, ?2, ?3, ?4 FROM events WHERE job = ?1",
        )
        .bind(job.as_str())
        .bind(signed(*time))
        .bind(kind)
        .bind(body),
        Change::State {
            job,
            time,
            state,
            over,
            settled,
            detail,
        } => sqlx::query(
            "UPDATE jobs SET state = ?2, changed = ?3, over = ?4, settled = ?5, detail = ?6
             WHERE id = ?1",
        )
        .bind(job.as_str())
        .bind(state)
        .bind(signed(*time))
        .bind(*over)
        .bind(*settled)
        .bind(detail),
        Change::Delete { job } => sqlx::query("DELETE FROM jobs WHERE id = ?1").bind(job.as_str()),
    };
    query.execute(&mut **at).await.map_err(failed())?;
    Ok(())
}

async fn write_new(at: &mut Transaction<'_, Sqlite>, job: &NewJob) -> Result<(), JobsError> {
    sqlx::query(
        "INSERT INTO jobs (id, name, submitter, organization, role, submit_key, submitted,
             priority, state, spec, bundle_length, bundle_sha256, cloned_from, changed)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?7)",
    )
    .bind(job.id.as_str())
    .bind(&job.name)
    .bind(&job.submitter)
    .bind(&job.organization)
    .bind(&job.role)
    .bind(job.key.as_deref())
    .bind(signed(job.submitted))
    .bind(job.priority)
    .bind(&job.state)
    .bind(&job.spec)
    .bind(signed(job.bundle_length))
    .bind(&job.bundle_sha256)
    .bind(job.cloned_from.as_deref())
    .execute(&mut **at)
    .await
    .map_err(JobsError::database("write a job"))?;
    Ok(())
}

/// Times and lengths as the database has them: they stay below 2^63.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
