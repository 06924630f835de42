//! A job's files at the server: listed, and sent from any byte on.
//!
//! A path is walked name by name below the job's folder; links are not followed
//! and nothing above it can be named.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use firesteel_api::job::{JobFile, JobFiles};
use firesteel_api::{Code, Problem};
use firesteel_base::limits;
use firesteel_policy::Action;
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;

use super::answer::{Answer, Refusal, short};
use super::gate::Caller;
use super::router::Inner;

/// The files of a job at the server: models, metrics, logs.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/files", tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = JobFiles), (status = 404, body = Problem))
)]
pub(super) async fn list(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<JobFiles>> {
    let job = caller.job(&rest, &id, Action::DownloadJob).await?;
    let dirs = rest.federation().job_dirs(&job.summary.id);
    let files = tokio::task::spawn_blocking(move || walk(&dirs))
        .await
        .map_err(|_| Problem::new(Code::Internal, "listing the files failed"))?;
    Ok(Json(JobFiles { files }))
}

/// One file of a job. `Range` with one range, `If-Range` and `If-None-Match` are
/// understood, so that a download can go on where it was cut.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/files/{path}", tag = "jobs",
    params(("id" = String, Path), ("path" = String, Path, description = "As the list names it, `/` between names"),
           ("range" = Option<String>, Header, description = "`bytes=100-`, say")),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 304, description = "It is as you have it"),
        (status = 404, body = Problem), (status = 416, body = Problem),
    )
)]
pub(super) async fn get(
    State(rest): State<Arc<Inner>>,
    caller: Caller,
    Path((id, path)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Answer<Response> {
    let job = caller.job(&rest, &id, Action::DownloadJob).await?;
    let dirs = rest.federation().job_dirs(&job.summary.id);
    let name = path.clone();
    let file = tokio::task::spawn_blocking(move || open(&dirs, &name))
        .await
        .map_err(|_| Problem::new(Code::Internal, "opening the file failed"))?
        .map_err(|_| no_file(&path))?;
    let meta = file.metadata().map_err(|_| no_file(&path))?;
    let tag = format!(
        "\"{:x}-{:x}-{:x}\"",
        meta.ino(),
        meta.len(),
        meta.mtime_nsec() ^ meta.mtime()
    );
    if asked(&headers, &header::IF_NONE_MATCH) == Some(tag.as_str()) {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    let fresh = asked(&headers, &header::IF_RANGE).is_none_or(|had| had == tag);
    let wanted = asked(&headers, &header::RANGE).filter(|_| fresh);
    let (status, first, end) = match wanted.map(|text| range(text, meta.len())) {
        None | Some(Wanted::All) => (StatusCode::OK, 0, meta.len()),
        Some(Wanted::Part(first, end)) => (StatusCode::PARTIAL_CONTENT, first, end),
        Some(Wanted::Outside) => return Ok(outside(meta.len())),
    };
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        sent(file, first, end - first, rest.options().durations.idle)
    };
    let mut response = (status, body).into_response();
    let out = response.headers_mut();
    let number = |n: u64| HeaderValue::from(n);
    out.insert(header::CONTENT_LENGTH, number(end - first));
    out.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    out.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    out.insert(
        header::CONTENT_DISPOSITION,
        HeaderValue::from_static("attachment"),
    );
    if let Ok(tag) = HeaderValue::try_from(tag) {
        out.insert(header::ETAG, tag);
    }
    if status == StatusCode::PARTIAL_CONTENT {
        let part = format!("bytes {first}-{}/{}", end.saturating_sub(1), meta.len());
        if let Ok(part) = HeaderValue::try_from(part) {
            out.insert(header::CONTENT_RANGE, part);
        }
    }
    Ok(response)
}

fn asked<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn no_file(path: &str) -> Refusal {
    Problem::new(
        Code::FileNotFound,
        format!("the job has no file `{}`", short(path)),
    )
    .with_hint("GET /v1/jobs/{id}/files names them all")
    .into()
}

fn outside(length: u64) -> Response {
    let problem = Problem::new(
        Code::Range,
        format!("the range lies outside the file, which has {length} bytes"),
    );
    let mut response = Refusal(problem).into_response();
    if let Ok(value) = HeaderValue::try_from(format!("bytes */{length}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// Everything: there is no range in it that we understand, which HTTP has us
    /// pass over.
    All,
    /// From the first byte to before the second.
    Part(u64, u64),
    /// Nothing that is there.
    Outside,
}

fn range(text: &str, length: u64) -> Wanted {
    let Some(one) = text.strip_prefix("bytes=").filter(|one| !one.contains(',')) else {
        return Wanted::All;
    };
    let Some((first, last)) = one.trim().split_once('-') else {
        return Wanted::All;
    };
    let number = |text: &str| text.parse::<u64>().ok();
    match (first, last) {
        ("", last) => match number(last) {
            None => Wanted::All,
            Some(0) => Wanted::Outside,
            Some(_) if length == 0 => Wanted::Outside,
            Some(count) => Wanted::Part(length.saturating_sub(count), length),
        },
        (first, last) => {
            let Some(first) = number(first) else {
                return Wanted::All;
            };
            let last = match last {
                "" => u64::MAX,
                last => match number(last) {
                    Some(last) if last >= first => last,
                    _ => return Wanted::All,
                },
            };
            if first >= length {
                return Wanted::Outside;
            }
            Wanted::Part(first, last.saturating_add(1).min(length))
        }
    }
}

/// A piece of a file as a body. It is read ahead by two pieces, and given up when
/// the client takes none for `idle`.
pub(super) fn sent(file: File, first: u64, length: u64, idle: Duration) -> Body {
    let (give, take) = mpsc::channel::<Result<Bytes, std::io::Error>>(2);
    tokio::spawn(async move {
        let read = async {
            let mut at = Reading {
                file,
                first: Some(first),
                left: length,
            };
            loop {
                // On a thread that may wait for the disk.
                let reading = tokio::task::spawn_blocking(move || at.piece().map(|got| (got, at)));
                let (piece, then) = reading.await.map_err(std::io::Error::other)??;
                at = then;
                let Some(piece) = piece else { return Ok(()) };
                match tokio::time::timeout(idle, give.send(Ok(piece))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ok(()),
                    Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
                }
            }
        };
        let read: std::io::Result<()> = read.await;
        if let Err(error) = read {
            // No room: the client takes nothing, and the end of the stream before
            // its length is told by the missing bytes.
            let _ = give.try_send(Err(error));
        }
    });
    Body::from_stream(futures_util::stream::unfold(take, |mut take| async {
        take.recv().await.map(|piece| (piece, take))
    }))
}

struct Reading {
    file: File,
    first: Option<u64>,
    left: u64,
}

impl Reading {
    fn piece(&mut self) -> std::io::Result<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            self.file.seek(SeekFrom::Start(first))?;
        }
        let most = self.left.min(limits::REST_PIECE as u64);
        if most == 0 {
            return Ok(None);
        }
        let mut piece = Vec::new();
        (&mut self.file).take(most).read_to_end(&mut piece)?;
        if piece.is_empty() {
            // It was cut while it was sent: what was promised cannot be kept, and
            // the client must see that.
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.left = self.left.saturating_sub(piece.len() as u64);
        Ok(Some(piece.into()))
    }
}

/// What a run keeps for itself, in the folder that is shown without a name.
const OWN: [&str; 3] = ["objects", "state", "lock"];

/// Opens a plain file of a job by the name that the list gives it.
fn open(dirs: &[(String, PathBuf)], path: &str) -> std::io::Result<File> {
    let first = path.split('/').next().unwrap_or_default();
    if OWN.contains(&first) {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let mut last = Err(std::io::ErrorKind::NotFound.into());
    for (name, dir) in dirs {
        let below = match name.as_str() {
            "" => Some(path),
            name => path
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('/')),
        };
        if let Some(below) = below {
            last = open_below(dir, below);
        }
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Opens a plain file below `dir`, following no link.
fn open_below(dir: &FilePath, path: &str) -> std::io::Result<File> {
    let refused = || std::io::Error::from(std::io::ErrorKind::NotFound);
    let mut names = path.split('/').peekable();
    let mut at: OwnedFd = rustix::fs::open(
        dir,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    while let Some(name) = names.next() {
        if name.is_empty() || name == "." || name == ".." || name.contains('\0') {
            return Err(refused());
        }
        // NONBLOCK: a FIFO that somebody put there must not hold us.
        let mut flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let last = names.peek().is_none();
        if !last {
            flags |= OFlags::DIRECTORY;
        }
        at = rustix::fs::openat(at.as_fd(), name, flags, Mode::empty())?;
        if last {
            let file = File::from(at);
            return if file.metadata()?.is_file() {
                Ok(file)
            } else {
                Err(refused())
            };
        }
    }
    Err(refused())
}

/// Every plain file below the folders, by the name that it is shown by.
fn walk(dirs: &[(String, PathBuf)]) -> Vec<JobFile> {
    let mut files = Vec::new();
    for (name, dir) in dirs {
        for file in below(dir) {
            let path = match name.as_str() {
                "" => file.path,
                name => format!("{name}/{}", file.path),
            };
            let first = path.split('/').next().unwrap_or_default();
            if !OWN.contains(&first) && files.len() < limits::REST_FILES {
                files.push(JobFile { path, ..file });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn below(dir: &FilePath) -> Vec<JobFile> {
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    let mut looked = 0;
    while let Some(folder) = folders.pop() {
        looked += 1;
        if looked > limits::REST_FILES {
            break;
        }
        let Ok(entries) = std::fs::read_dir(dir.join(&folder)) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            // What is written aside, and notes of those who write.
            if name.starts_with('.') {
                continue;
            }
            let path = if folder.is_empty() {
                name
            } else {
                format!("{folder}/{name}")
            };
            // Of the entry itself, not of what a link points at.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(path);
            } else if meta.is_file() && files.len() < limits::REST_FILES {
                files.push(JobFile {
                    path,
                    bytes: meta.len(),
                });
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_says() {
        for (text, wanted) in [
            ("bytes=0-", Wanted::Part(0, 10)),
            ("bytes=3-4", Wanted::Part(3, 5)),
            ("bytes=3-99", Wanted::Part(3, 10)),
            ("bytes=-4", Wanted::Part(6, 10)),
            ("bytes=-40", Wanted::Part(0, 10)),
            ("bytes=10-", Wanted::Outside),
            ("bytes=-0", Wanted::Outside),
            ("bytes=4-3", Wanted::All),
            ("bytes=1-2,4-5", Wanted::All),
            ("bytes=x-", Wanted::All),
            ("bytes=", Wanted::All),
            ("lines=1-2", Wanted::All),
            ("bytes=0-18446744073709551615", Wanted::Part(0, 10)),
        ] {
            assert_eq!(range(text, 10), wanted, "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Wanted::Outside);
        assert_eq!(range("bytes=-1", 0), Wanted::Outside);
    }

    #[test]
    fn nothing_outside_a_folder_is_opened() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("job");
        std::fs::create_dir_all(dir.join("models")).unwrap();
        std::fs::write(dir.join("models/best"), "m").unwrap();
        std::fs::write(root.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("../secret", dir.join("link")).unwrap();
        std::os::unix::fs::symlink("..", dir.join("up")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(open_below(&dir, "models/best").is_ok());
        for bad in [
            "",
            ".",
            "..",
            "/",
            "../secret",
            "models/../../secret",
            "link",
            "up/secret",
            "models",
            "pipe",
            "models//best",
            "./models/best",
            "a\0b",
            "/etc/passwd",
            "nothing",
        ] {
            assert!(open_below(&dir, bad).is_err(), "{bad:?} was opened");
        }
        std::fs::create_dir(dir.join("state")).unwrap();
        std::fs::write(dir.join("state/own"), "o").unwrap();
        std::fs::create_dir(root.path().join("logs")).unwrap();
        std::fs::write(root.path().join("logs/site-1.log"), "l").unwrap();
        let dirs = [
            (String::new(), dir),
            ("logs".to_owned(), root.path().join("logs")),
        ];
        let found: Vec<_> = walk(&dirs).into_iter().map(|file| file.path).collect();
        assert_eq!(found, ["logs/site-1.log", "models/best"]);
        for path in found {
            assert!(open(&dirs, &path).is_ok(), "{path}");
        }
        for bad in ["state/own", "logs/../secret", "logs", "site-1.log"] {
            assert!(open(&dirs, bad).is_err(), "{bad:?} was opened");
        }
    }
}
