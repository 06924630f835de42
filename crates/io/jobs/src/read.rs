//! What is read.

use firesteel_base::JobId;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::write::signed;
use crate::{EventRow, Filter, JobRow, Jobs, JobsError, NewJob};

fn failed() -> impl FnOnce(sqlx::Error) -> JobsError {
    JobsError::database("read from the database of jobs")
}

impl Jobs {
    /// A job.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn job(&self, job: &JobId) -> Result<Option<JobRow>, JobsError> {
        let row = sqlx::query("SELECT * FROM jobs WHERE id = ?1")
            .bind(job.as_str())
            .fetch_optional(self.readers())
            .await
            .map_err(failed())?;
        row.as_ref().map(job_row).transpose()
    }

    /// The job that somebody submitted with this key.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn by_key(
        &self,
        organization: &str,
        submitter: &str,
        key: &str,
    ) -> Result<Option<JobRow>, JobsError> {
        let row = sqlx::query(
            "SELECT * FROM jobs WHERE organization = ?1 AND submitter = ?2 AND submit_key = ?3",
        )
        .bind(organization)
        .bind(submitter)
        .bind(key)
        .fetch_optional(self.readers())
        .await
        .map_err(failed())?;
        row.as_ref().map(job_row).transpose()
    }

    /// Jobs, the newest first.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn list(&self, filter: &Filter) -> Result<Vec<JobRow>, JobsError> {
        let most = match filter.most {
            0 => -1,
            most => i64::from(most),
        };
        let rows = sqlx::query(
            "SELECT * FROM jobs
             WHERE (?1 IS NULL OR submitter = ?1)
               AND (?2 IS NULL OR organization = ?2)
               AND (?3 IS NULL OR state = ?3)
               AND (?4 IS NULL OR substr(name, 1, length(?4)) = ?4)
               AND (?5 IS NULL OR substr(id, 1, length(?5)) = ?5)
               AND (?6 IS NULL OR number < ?6)
             ORDER BY number DESC LIMIT ?7",
        )
        .bind(filter.submitter.as_deref())
        .bind(filter.organization.as_deref())
        .bind(filter.state.as_deref())
        .bind(filter.name.as_deref())
        .bind(filter.id.as_deref())
        .bind(filter.before.map(signed))
        .bind(most)
        .fetch_all(self.readers())
        .await
        .map_err(failed())?;
        rows.iter().map(job_row).collect()
    }

    /// The jobs about which something is still to be done, the oldest first.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn unsettled(&self) -> Result<Vec<JobRow>, JobsError> {
        let rows = sqlx::query("SELECT * FROM jobs WHERE settled = 0 ORDER BY number")
            .fetch_all(self.readers())
            .await
            .map_err(failed())?;
        rows.iter().map(job_row).collect()
    }

    /// The steps of a job after the one with this number, at most so many.
    ///
    /// # Errors
    /// [`JobsError`].
    pub async fn events(
        &self,
        job: &JobId,
        after: u64,
        most: u32,
    ) -> Result<Vec<EventRow>, JobsError> {
        let rows = sqlx::query(
            "SELECT number, time, kind, body FROM events
             WHERE job = ?1 AND number > ?2 ORDER BY number LIMIT ?3",
        )
        .bind(job.as_str())
        .bind(signed(after))
        .bind(i64::from(most))
        .fetch_all(self.readers())
        .await
        .map_err(failed())?;
        let event = |row: &SqliteRow| {
            Ok(EventRow {
                number: unsigned(row, "number")?,
                time: unsigned(row, "time")?,
                kind: row.try_get("kind")?,
                body: row.try_get("body")?,
            })
        };
        let events: Result<_, sqlx::Error> = rows.iter().map(event).collect();
        events.map_err(failed())
    }
}

fn unsigned(row: &SqliteRow, column: &str) -> Result<u64, sqlx::Error> {
    let value: i64 = row.try_get(column)?;
    Ok(u64::try_from(value).unwrap_or(0))
}

fn job_row(row: &SqliteRow) -> Result<JobRow, JobsError> {
    let id: String = row.try_get("id").map_err(failed())?;
    let id = JobId::new(&id).map_err(|error| JobsError::Damaged {
        problem: error.to_string(),
        job: id,
    })?;
    let read = || -> Result<JobRow, sqlx::Error> {
        Ok(JobRow {
            number: unsigned(row, "number")?,
            changed: unsigned(row, "changed")?,
            over: row.try_get("over")?,
            settled: row.try_get("settled")?,
            detail: row.try_get("detail")?,
            job: NewJob {
                id,
                name: row.try_get("name")?,
                submitter: row.try_get("submitter")?,
                organization: row.try_get("organization")?,
                role: row.try_get("role")?,
                key: row.try_get("submit_key")?,
                submitted: unsigned(row, "submitted")?,
                priority: row.try_get("priority")?,
                state: row.try_get("state")?,
                spec: row.try_get("spec")?,
                bundle_length: unsigned(row, "bundle_length")?,
                bundle_sha256: row.try_get("bundle_sha256")?,
                cloned_from: row.try_get("cloned_from")?,
            },
        })
    };
    read().map_err(failed())
}
