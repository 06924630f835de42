//! Files, fetched from where they were cut.
//!
//! What has come lies beside the file as `.<name>.<tag>.part`; the tag is the
//! server's for this very content, so that a part of something else is never
//! taken for the start of it, today or next week. Files are written by the thread
//! that receives: there is nothing else that it would hold up.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use firesteel_api::{Code, route};
use http::header;

use crate::error::SessionError;
use crate::exchange::{Ask, Patience, refusal};
use crate::http1::Answer;
use crate::session::Session;

/// How far a download of several files is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Files that are there.
    pub files: usize,
    /// Files in all.
    pub of_files: usize,
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes in all.
    pub of_bytes: u64,
}

impl Session {
    /// Fetches the file at `path` into `to`, going on where an earlier try was
    /// cut, and through cuts until nothing got through for the duration `idle`.
    ///
    /// # Errors
    /// [`SessionError`]; what has come stays for the next try.
    pub async fn download(
        &self,
        path: &str,
        to: &Path,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, SessionError> {
        let mut patience = Patience::new(self.idle());
        loop {
            let before = part_of(to).map_or(0, |part| part.bytes);
            match self.fetch(path, to, &mut progress).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => {
                    if part_of(to).map_or(0, |part| part.bytes) > before {
                        patience.progressed();
                    }
                    patience.again(error).await?;
                }
            }
        }
    }

    /// Fetches files of a job into a folder. One that is there in full length is
    /// not fetched again: what a job left does not change.
    ///
    /// # Errors
    /// [`SessionError`]; what has come stays for the next try.
    pub async fn download_job(
        &self,
        id: &str,
        files: &[firesteel_api::job::JobFile],
        to: &Path,
        mut progress: impl FnMut(Progress),
    ) -> Result<(), SessionError> {
        let mut at = Progress {
            files: 0,
            of_files: files.len(),
            bytes: 0,
            of_bytes: files.iter().map(|file| file.bytes).sum(),
        };
        for file in files {
            let place = below(to, &file.path)?;
            let there = fs::metadata(&place).ok();
            let there = there.is_some_and(|meta| meta.is_file() && meta.len() == file.bytes);
            if !there {
                let path = format!(
                    "{}/{}",
                    route::job(id, "/files"),
                    route::encoded(&file.path)
                );
                let before = at.bytes;
                self.download(&path, &place, |bytes| {
                    progress(Progress {
                        bytes: before + bytes,
                        ..at
                    });
                })
                .await?;
            }
            at.files += 1;
            at.bytes += file.bytes;
            progress(at);
        }
        Ok(())
    }

    async fn fetch(
        &self,
        path: &str,
        to: &Path,
        progress: &mut impl FnMut(u64),
    ) -> Result<u64, SessionError> {
        let part = part_of(to);
        let mut ask = Ask::get(path);
        if let Some(part) = &part {
            ask = ask
                .header("range", format!("bytes={}-", part.bytes))
                .header("if-range", format!("\"{}\"", part.tag));
        }
        let answer = self.exchange(&ask).await?;
        let status = answer.head.status.as_u16();
        match (status, part) {
            (206, Some(part)) => {
                let file = fs::OpenOptions::new().append(true).open(&part.path);
                let file = file.map_err(SessionError::writing(&part.path))?;
                self.receive(answer, file, part, to, progress).await
            }
            (200, old) => {
                if let Some(old) = old {
                    let _ = fs::remove_file(&old.path);
                }
                let tag = tag(&answer).ok_or_else(|| SessionError::Answer {
                    request: ask.told(),
                    why: "it has no ETag".to_owned(),
                })?;
                let part = Part {
                    path: part_path(to, &tag),
                    tag,
                    bytes: 0,
                };
                if let Some(folder) = to.parent() {
                    let made = fs::create_dir_all(folder);
                    made.map_err(SessionError::writing(folder))?;
                }
                let file = fs::File::create(&part.path);
                let file = file.map_err(SessionError::writing(&part.path))?;
                self.receive(answer, file, part, to, progress).await
            }
            // All of it had come when the last try ended, or it is another file.
            (416, Some(part)) => {
                let whole = format!("bytes */{}", part.bytes);
                let said = answer.head.headers.get(header::CONTENT_RANGE);
                let is_whole = said.is_some_and(|said| said.as_bytes() == whole.as_bytes());
                if is_whole && tag(&answer).is_none_or(|tag| tag == part.tag) {
                    finish(&part.path, to)?;
                    return Ok(part.bytes);
                }
                let _ = fs::remove_file(&part.path);
                Err(SessionError::Cut {
                    address: self.connections().address(),
                    source: io::Error::other("the file changed while it was fetched"),
                })
            }
            (status, _) => {
                let body = answer.whole(firesteel_base::limits::REST_JSON).await?;
                Err(refusal(&ask, status, &body))
            }
        }
    }

    async fn receive(
        &self,
        mut answer: Answer,
        mut file: fs::File,
        mut part: Part,
        to: &Path,
        progress: &mut impl FnMut(u64),
    ) -> Result<u64, SessionError> {
        let failed = |path: &Path| SessionError::writing(path.to_owned());
        let received = loop {
            match answer.piece().await {
                Ok(Some(piece)) => {
                    let written = file.write_all(&piece);
                    written.map_err(failed(&part.path))?;
                    part.bytes += piece.len() as u64;
                    progress(part.bytes);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // After a cut, too: what has come is what the next try goes on from.
        received?;
        file.sync_all().map_err(failed(&part.path))?;
        finish(&part.path, to)?;
        Ok(part.bytes)
    }
}

struct Part {
    path: PathBuf,
    tag: String,
    bytes: u64,
}

fn finish(part: &Path, to: &Path) -> Result<(), SessionError> {
    fs::rename(part, to).map_err(SessionError::writing(to))
}

/// The server's tag for a content, when it is fit for the name of a file.
fn tag(answer: &Answer) -> Option<String> {
    let text = answer.head.headers.get(header::ETAG)?.to_str().ok()?;
    let tag = text.strip_prefix('"')?.strip_suffix('"')?;
    let fit = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (!tag.is_empty() && tag.len() <= 128 && tag.chars().all(fit)).then(|| tag.to_owned())
}

fn part_path(to: &Path, tag: &str) -> PathBuf {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    to.with_file_name(format!(".{name}.{tag}.part"))
}

/// What an earlier try left of a file.
fn part_of(to: &Path) -> Option<Part> {
    let name = to.file_name()?.to_string_lossy();
    let start = format!(".{name}.");
    for entry in fs::read_dir(to.parent()?).ok()?.flatten() {
        let found = entry.file_name();
        let found = found.to_string_lossy();
        let tag = found
            .strip_prefix(&start)
            .and_then(|rest| rest.strip_suffix(".part"));
        let Some(tag) = tag.filter(|tag| !tag.contains('.')) else {
            continue;
        };
        let Ok(meta) = entry.metadata() else {
            continue;
        };
        if meta.is_file() {
            return Some(Part {
                path: entry.path(),
                tag: tag.to_owned(),
                bytes: meta.len(),
            });
        }
    }
    None
}

/// Where a file of that name goes. A server cannot write anywhere else.
fn below(folder: &Path, path: &str) -> Result<PathBuf, SessionError> {
    let plain = |name: &str| {
        !name.is_empty() && name != "." && name != ".." && !name.contains(['\0', '\\', '/'])
    };
    if path.split('/').all(plain) {
        return Ok(folder.join(path));
    }
    Err(SessionError::Refused(firesteel_api::Problem::new(
        Code::Invalid,
        format!("the server names a file {path:?}, which may lie anywhere"),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_writes_nowhere_else() {
        let folder = Path::new("/tmp/here");
        assert_eq!(below(folder, "a/b").unwrap(), folder.join("a/b"));
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a//b",
            ".",
            "a\0",
            "a\\b",
        ] {
            assert!(below(folder, bad).is_err(), "{bad:?}");
        }
    }
}
