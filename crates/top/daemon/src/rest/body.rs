//! Bodies of requests: read with a limit, and not for ever.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use bytes::Bytes;
use firesteel_api::{Code, Problem};
use firesteel_base::limits;
use futures_util::StreamExt as _;
use tokio::time::timeout;

/// A small body, whole.
pub(super) async fn small(body: Body, within: Duration) -> Result<Bytes, Problem> {
    let read = axum::body::to_bytes(body, limits::REST_JSON);
    match timeout(within, read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_limit(&error) => Err(Problem::new(
            Code::TooLarge,
            format!("the body is longer than {} bytes", limits::REST_JSON),
        )),
        Ok(Err(_)) => Err(Problem::new(Code::Invalid, "the body broke off")),
        Err(_) => Err(Problem::new(
            Code::TooSlow,
            format!("the body did not come within {} s", within.as_secs()),
        )),
    }
}

fn is_limit(error: &axum::Error) -> bool {
    // The limit's error type is not one that axum names.
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.to_string().contains("length limit") {
            return true;
        }
        source = error.source();
    }
    false
}

/// A body of any length into a new file. `idle` is how long no byte may come.
pub(super) async fn to_file(
    stream: &mut BodyDataStream,
    path: &Path,
    idle: Duration,
) -> Result<u64, Problem> {
    let failed = |error: std::io::Error| {
        let full = error.kind() == std::io::ErrorKind::StorageFull;
        let (code, hint) = if full {
            (
                Code::Unavailable,
                "the server's disk is full: its operator can free some",
            )
        } else {
            (Code::Internal, "the server's log says more")
        };
        Problem::new(code, "the server could not write the bundle to its disk").with_hint(hint)
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let mut length = 0;
    loop {
        let piece = match timeout(idle, stream.next()).await {
            Ok(None) => break,
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(_))) => {
                return Err(Problem::new(Code::Invalid, "the upload broke off"));
            }
            Err(_) => {
                let seconds = idle.as_secs();
                return Err(Problem::new(
                    Code::TooSlow,
                    format!("no byte of the upload came for {seconds} s"),
                ));
            }
        };
        length += piece.len() as u64;
        if length > limits::REST_UPLOAD {
            return Err(Problem::new(
                Code::TooLarge,
                format!("the bundle is longer than {} bytes", limits::REST_UPLOAD),
            ));
        }
        file = written(file, piece).await.map_err(failed)?;
    }
    Ok(length)
}

/// Reads what is left of a body that was refused, and forgets it: for so long, and
/// so many bytes, that a client on a usual line gets to read why.
pub(super) async fn pass_over(stream: &mut BodyDataStream, within: Duration) {
    let reading = async {
        let mut left = limits::REST_PASSED_OVER;
        while let Some(Ok(piece)) = stream.next().await {
            left = left.saturating_sub(piece.len());
            if left == 0 {
                break;
            }
        }
    };
    // Over time: the connection is closed on who sends.
    let _ = timeout(within, reading).await;
}

/// Writes on a thread that may wait for the disk.
async fn written(mut file: File, piece: Bytes) -> std::io::Result<File> {
    let writing = tokio::task::spawn_blocking(move || file.write_all(&piece).map(|()| file));
    writing.await.map_err(std::io::Error::other)?
}

/// The parameters after the `?`.
pub(super) fn query<T>(read: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    match read {
        Ok(Query(value)) => Ok(value),
        Err(error) => Err(Problem::new(Code::Invalid, lower(&error.body_text()))
            .with_hint("the parameters of each route are in /v1/openapi.json")),
    }
}

fn lower(sentence: &str) -> String {
    let mut chars = sentence.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}
