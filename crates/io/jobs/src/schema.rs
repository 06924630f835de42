//! The database.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Row as _};

use crate::JobsError;

pub(crate) const FILE: &str = "jobs.sqlite";

/// The schema that this build writes.
const VERSION: i64 = 1;

/// Connections that read at once. Each is a thread and its cache.
const READERS: u32 = 2;

/// For how long a reader waits for a checkpoint: it takes milliseconds.
const BUSY: Duration = Duration::from_secs(5);

/// What each version adds to the one before it.
const STEPS: [&str; 1] = ["
CREATE TABLE jobs (
    number        INTEGER PRIMARY KEY AUTOINCREMENT,
    id            TEXT NOT NULL UNIQUE,
    name          TEXT NOT NULL,
    submitter     TEXT NOT NULL,
    organization  TEXT NOT NULL,
    role          TEXT NOT NULL,
    submit_key    TEXT,
    submitted     INTEGER NOT NULL,
    priority      INTEGER NOT NULL,
    state         TEXT NOT NULL,
    spec          TEXT NOT NULL,
    bundle_length INTEGER NOT NULL,
    bundle_sha256 BLOB NOT NULL,
    cloned_from   TEXT,
    changed       INTEGER NOT NULL,
    over          INTEGER NOT NULL DEFAULT 0,
    settled       INTEGER NOT NULL DEFAULT 0,
    detail        TEXT NOT NULL DEFAULT '{}'
);
CREATE UNIQUE INDEX jobs_by_key ON jobs (organization, submitter, submit_key)
    WHERE submit_key IS NOT NULL;
CREATE INDEX jobs_unsettled ON jobs (settled) WHERE settled = 0;
CREATE TABLE events (
    job    TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    time   INTEGER NOT NULL,
    kind   TEXT NOT NULL,
    body   TEXT NOT NULL,
    PRIMARY KEY (job, number)
) WITHOUT ROWID;
"];

fn options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // What was said to be written survives a power cut.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY)
}

/// The one connection that writes, with the schema as this build knows it.
pub(crate) async fn open_writer(file: &Path) -> Result<SqliteConnection, JobsError> {
    let failed = || JobsError::database("open the database of jobs");
    let mut connection = options(file).connect().await.map_err(failed())?;
    let row = sqlx::query("PRAGMA user_version")
        .fetch_one(&mut connection)
        .await
        .map_err(failed())?;
    let found: i64 = row.try_get(0).map_err(failed())?;
    if found > VERSION {
        return Err(JobsError::Newer {
            path: file.to_owned(),
            found,
            known: VERSION,
        });
    }
    let missing = STEPS.iter().skip(usize::try_from(found).unwrap_or(0));
    for step in missing {
        sqlx::raw_sql(*step)
            .execute(&mut connection)
            .await
            .map_err(failed())?;
    }
    if found < VERSION {
        sqlx::raw_sql("PRAGMA user_version = 1")
            .execute(&mut connection)
            .await
            .map_err(failed())?;
    }
    Ok(connection)
}

pub(crate) async fn open_readers(file: &Path) -> Result<SqlitePool, JobsError> {
    SqlitePoolOptions::new()
        .max_connections(READERS)
        .connect_with(options(file).read_only(true))
        .await
        .map_err(JobsError::database("open the database of jobs"))
}
