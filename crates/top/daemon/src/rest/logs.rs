//! Logs, as they grow.
//!
//! A reader says with an opaque word where it stands, and gets what follows with
//! the next such word. The word names the file by its number on the disk and not
//! by its name, so a rotation in between neither loses nor repeats a byte.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use firesteel_api::logs::{ENDED, LogQuery, NEXT};
use firesteel_api::{Code, Problem};
use firesteel_base::limits;
use firesteel_policy::{Action, Resource};
use tokio::time::Instant;

use super::answer::{Answer, Refusal, short};
use super::body;
use super::events::deadline;
use super::gate::Caller;
use super::router::Inner;

/// How often a log is looked at while somebody waits for it to grow: well within
/// what a reader takes for live, and nothing beside what writing it costs.
const LOOK: Duration = Duration::from_millis(200);

/// A job's log from one site, or from the server.
///
/// The header `firesteel-log-next` says where to go on; `firesteel-log-ended` is
/// there when the job has ended and this was the rest.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/logs/{site}", tag = "jobs",
    params(("id" = String, Path), ("site" = String, Path, description = "A site, or `server`"), LogQuery),
    responses((status = 200, body = String, content_type = "text/plain"), (status = 404, body = Problem))
)]
pub(super) async fn job(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    Path((id, site)): Path<(String, String)>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Answer<Response> {
    let query = body::query(query)?;
    let job = caller.job(&rest, &id, Action::ReadJobLog).await?;
    let id = job.summary.id;
    let known = site == "server" || job.at.iter().any(|one| one.site == site);
    if !known {
        return Err(Problem::new(
            Code::SiteNotFound,
            format!("the job has no site `{}`", short(&site)),
        )
        .with_hint("`firesteel job show` names its sites; `server` is the server")
        .into());
    }
    let path = rest.federation().job_log(&id, &site);
    answer(path, query, Some((&rest, &id))).await
}

/// A site's own log, or the server's.
#[utoipa::path(
    get, path = "/v1/sites/{name}/log", tag = "sites",
    params(("name" = String, Path, description = "A site, or `server`"), LogQuery),
    responses((status = 200, body = String, content_type = "text/plain"), (status = 404, body = Problem))
)]
pub(super) async fn site(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    Path(name): Path<String>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Answer<Response> {
    let query = body::query(query)?;
    if name == "server" {
        let on = Resource::site(&rest.options().org);
        caller.may(&rest, Action::ReadFiles, &on)?;
    } else {
        caller.site(&rest, &name, Action::ReadFiles)?;
    }
    answer(rest.federation().site_log(&name), query, None).await
}

async fn answer(
    path: Option<PathBuf>,
    query: LogQuery,
    of: Option<(&Inner, &str)>,
) -> Answer<Response> {
    let Some(path) = path else {
        return Err(no_log());
    };
    let mut at = match query.after.as_deref() {
        None => None,
        Some(word) => Some(Place::parse(word).ok_or_else(|| {
            Problem::new(Code::Invalid, "`after` is no place in a log")
                .with_field("after")
                .with_hint("send the header `firesteel-log-next` of the answer before")
        })?),
    };
    let until = deadline(query.wait);
    let mut changes = of.map(|(rest, _)| rest.federation().changes());
    let mut over = false;
    let mut first = true;
    loop {
        // Asked before reading: what was written until then is read below.
        let changed = changes
            .as_mut()
            .is_some_and(|changes| changes.has_changed().unwrap_or(true));
        if let Some((rest, id)) = of
            && !over
            && (first || changed)
        {
            if let Some(changes) = &mut changes {
                changes.borrow_and_update();
            }
            let job = rest.federation().job(id).await?;
            over = job.is_none_or(|job| job.summary.state.is_terminal());
        }
        first = false;
        let from = path.clone();
        let tail = query.tail.filter(|_| at.is_none());
        let read = tokio::task::spawn_blocking(move || read(&from, at, tail))
            .await
            .map_err(|_| Problem::new(Code::Internal, "reading the log failed"))?
            .map_err(|_| Problem::new(Code::Internal, "the log cannot be read"))?;
        at = read.next;
        if !read.bytes.is_empty() || over || Instant::now() >= until {
            if over && read.next.is_none() && read.bytes.is_empty() && query.after.is_none() {
                return Err(no_log());
            }
            return Ok(response(read, over));
        }
        tokio::time::sleep_until(until.min(Instant::now() + LOOK)).await;
    }
}

fn no_log() -> Refusal {
    Problem::new(Code::FileNotFound, "there is no log from there")
        .with_hint(
            "a site may keep its logs to itself (`allow_log_streaming = false` in its site.toml)",
        )
        .into()
}

fn response(read: Piece, over: bool) -> Response {
    let all = read.bytes.len() < limits::REST_LOG;
    let mut response = Response::new(Body::from(read.bytes));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(next) = read.next
        && let Ok(value) = HeaderValue::try_from(next.word())
    {
        headers.insert(NEXT, value);
    }
    if over && all {
        headers.insert(ENDED, HeaderValue::from_static("true"));
    }
    response
}

/// A place in a log that may be rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    inode: u64,
    offset: u64,
}

impl Place {
    fn parse(word: &str) -> Option<Self> {
        let (inode, offset) = word.split_once('.')?;
        Some(Self {
            inode: u64::from_str_radix(inode, 16).ok()?,
            offset: u64::from_str_radix(offset, 16).ok()?,
        })
    }

    fn word(self) -> String {
        format!("{:x}.{:x}", self.inode, self.offset)
    }
}

/// What follows a place, and the place after it.
struct Piece {
    bytes: Vec<u8>,
    next: Option<Place>,
}

/// The log's files, oldest first: `log.txt.2`, `log.txt.1`, `log.txt`.
fn files(path: &FilePath) -> Vec<File> {
    let numbered = |number: usize| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    let mut found = Vec::new();
    // The newest first: one that is rotated while we look is then seen twice,
    // and not missed.
    found.extend(File::open(path));
    for number in 1..=limits::LOG_FILES_KEPT {
        match File::open(numbered(number)) {
            Ok(file) => found.push(file),
            Err(_) => break,
        }
    }
    found.reverse();
    let mut seen = Vec::new();
    found.retain(|file| {
        let inode = file.metadata().map_or(0, |meta| meta.ino());
        let new = !seen.contains(&inode);
        seen.push(inode);
        new
    });
    found
}

fn read(path: &FilePath, after: Option<Place>, tail: Option<u32>) -> std::io::Result<Piece> {
    let mut files = files(path);
    let mut offset = 0;
    if let Some(place) = after {
        let mut at = None;
        for (number, file) in files.iter().enumerate() {
            let meta = file.metadata()?;
            if meta.ino() == place.inode && place.offset <= meta.len() {
                at = Some(number);
            }
        }
        // A file that is gone was rotated away: on with the oldest that is there.
        if let Some(at) = at {
            files.drain(..at);
            offset = place.offset;
        }
    } else if let Some(lines) = tail {
        return last_lines(&mut files, lines);
    }
    let mut bytes = Vec::new();
    let mut next = after;
    for mut file in files {
        let room = limits::REST_LOG.saturating_sub(bytes.len());
        file.seek(SeekFrom::Start(offset))?;
        let read = (&mut file).take(room as u64).read_to_end(&mut bytes)?;
        next = Some(Place {
            inode: file.metadata()?.ino(),
            offset: offset + read as u64,
        });
        offset = 0;
        if bytes.len() >= limits::REST_LOG {
            break;
        }
    }
    Ok(Piece { bytes, next })
}

/// The last lines of the newest file, and of those before it as far as one answer
/// holds.
fn last_lines(files: &mut [File], lines: u32) -> std::io::Result<Piece> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut next = None;
    for file in files.iter_mut().rev() {
        let meta = file.metadata()?;
        let room = (limits::REST_LOG - 1).saturating_sub(bytes.len()) as u64;
        let from = meta.len().saturating_sub(room);
        file.seek(SeekFrom::Start(from))?;
        let mut piece = Vec::new();
        file.take(meta.len() - from).read_to_end(&mut piece)?;
        next = next.or(Some(Place {
            inode: meta.ino(),
            offset: from + piece.len() as u64,
        }));
        piece.append(&mut bytes);
        bytes = piece;
        let ends = bytes.iter().filter(|byte| **byte == b'\n').count();
        if ends > lines as usize || from > 0 {
            break;
        }
    }
    let whole = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let start = match lines {
        0 => bytes.len(),
        lines => whole
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(lines as usize - 1)
            .map_or(0, |(at, _)| at + 1),
    };
    bytes.drain(..start);
    Ok(Piece { bytes, next })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(piece: &Piece) -> &str {
        std::str::from_utf8(&piece.bytes).unwrap()
    }

    #[test]
    fn a_rotation_loses_and_repeats_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.txt");
        std::fs::write(&log, "one\ntwo\n").unwrap();
        let first = read(&log, None, None).unwrap();
        assert_eq!(text(&first), "one\ntwo\n");

        // Written on, rotated twice, and written on, all between two looks.
        std::fs::write(&log, "one\ntwo\nthree\n").unwrap();
        std::fs::rename(&log, dir.path().join("log.txt.2")).unwrap();
        std::fs::write(dir.path().join("log.txt.1"), "four\n").unwrap();
        std::fs::write(&log, "five\n").unwrap();
        let second = read(&log, first.next, None).unwrap();
        assert_eq!(text(&second), "three\nfour\nfive\n");
        let third = read(&log, second.next, None).unwrap();
        assert_eq!(text(&third), "");
        assert_eq!(third.next, second.next);
    }

    #[test]
    fn a_long_log_comes_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.txt");
        let all: Vec<u8> = (0..limits::REST_LOG * 2 + 7)
            .map(|n| (n % 251) as u8)
            .collect();
        std::fs::write(&log, &all).unwrap();
        let mut place = None;
        let mut got = Vec::new();
        loop {
            let piece = read(&log, place, None).unwrap();
            if piece.bytes.is_empty() {
                break;
            }
            assert!(piece.bytes.len() <= limits::REST_LOG);
            got.extend(piece.bytes);
            place = piece.next;
        }
        assert!(got == all);
    }

    #[test]
    fn the_last_lines_reach_into_older_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.txt");
        std::fs::write(dir.path().join("log.txt.1"), "one\ntwo\n").unwrap();
        std::fs::write(&log, "three\n").unwrap();
        for (lines, wanted) in [
            (0, ""),
            (1, "three\n"),
            (2, "two\nthree\n"),
            (9, "one\ntwo\nthree\n"),
        ] {
            let piece = read(&log, None, Some(lines)).unwrap();
            assert_eq!(text(&piece), wanted, "{lines}");
            std::fs::write(&log, "three\nmore\n").unwrap();
            assert_eq!(text(&read(&log, piece.next, None).unwrap()), "more\n");
            std::fs::write(&log, "three\n").unwrap();
        }
    }

    #[test]
    fn a_place_is_a_word() {
        let place = Place {
            inode: 77,
            offset: u64::MAX,
        };
        assert_eq!(Place::parse(&place.word()), Some(place));
        for bad in ["", ".", "1", "x.1", "1.x", "1.1.1"] {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }
}
