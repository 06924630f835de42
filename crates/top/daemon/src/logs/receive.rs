//! The server's end: what sites send of their logs is written down.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use firesteel_base::{JobId, limits};
use firesteel_net::{BoxStream, LinkError, split};
use firesteel_wire::logs::{LogFrom, LogIs, ToReader, to_reader};
use serde_json::json;

use super::source::{note, write_aside};

/// Takes one stream of logs until it ends. `place` says where the log of that job,
/// or of the site itself, is to be, or why there is no place for it.
///
/// Of each log the last [`limits::LOG_BUDGET`] bytes are kept: `path`, and what was
/// before it in `path.1`.
///
/// # Errors
/// [`LinkError`] when the stream failed. The site comes again with another one.
pub async fn receive(
    stream: BoxStream,
    place: impl FnOnce(Option<&str>) -> Result<PathBuf, String>,
) -> Result<(), LinkError> {
    receive_within(stream, place, limits::LOG_BUDGET).await
}

pub(super) async fn receive_within(
    stream: BoxStream,
    place: impl FnOnce(Option<&str>) -> Result<PathBuf, String>,
    budget: u64,
) -> Result<(), LinkError> {
    let (mut reader, mut writer) = split(stream);
    let Some(ToReader {
        body: Some(to_reader::Body::Is(is)),
    }) = reader.next::<ToReader>("ToReader").await?
    else {
        return writer
            .send(&refused("the first message names no log"))
            .await;
    };
    let mut sink = match opened(&is, place, budget) {
        Ok(sink) => sink,
        Err(why) => {
            writer.send(&refused(&why)).await?;
            return writer.close().await;
        }
    };
    let from = LogFrom {
        position: sink.position,
        ..LogFrom::default()
    };
    writer.send(&from).await?;
    while let Some(message) = reader.next::<ToReader>("ToReader").await? {
        let written = match message.body {
            Some(to_reader::Body::Bytes(bytes)) => {
                // Written by one of the threads that may wait for a disk.
                let job = tokio::task::spawn_blocking(move || {
                    let written = sink.write(bytes.from, &bytes.bytes);
                    (sink, written)
                });
                let (back, written) = job.await.map_err(io::Error::other)?;
                sink = back;
                written
            }
            Some(to_reader::Body::End(_)) => {
                let whole = LogFrom {
                    position: sink.position,
                    whole: true,
                    ..LogFrom::default()
                };
                writer.send(&whole).await?;
                return writer.close().await;
            }
            _ => Ok(()),
        };
        if let Err(error) = written {
            // The disk may have room again when the site asks the next time.
            writer.close().await?;
            return Err(error.into());
        }
    }
    Ok(())
}

fn opened(
    is: &LogIs,
    place: impl FnOnce(Option<&str>) -> Result<PathBuf, String>,
    budget: u64,
) -> Result<Sink, String> {
    if is.birth == 0 {
        return Err("the log has no number of birth".to_owned());
    }
    let job = match is.job.as_str() {
        "" => None,
        job => Some(JobId::new(job).map_err(|error| error.to_string())?),
    };
    let path = place(job.as_ref().map(JobId::as_str))?;
    Sink::open(&path, is.birth, budget)
        .map_err(|error| format!("the server cannot write it: {error}"))
}

fn refused(why: &str) -> LogFrom {
    LogFrom {
        refused: why.to_owned(),
        ..LogFrom::default()
    }
}

/// A log at the server: the file that is written, and the one before it.
struct Sink {
    path: PathBuf,
    file: File,
    birth: u64,
    /// Bytes of the file.
    len: u64,
    /// The position after the last byte that is here.
    position: u64,
    /// Bytes at which the file becomes the older one.
    half: u64,
}

impl Sink {
    fn open(path: &Path, birth: u64, budget: u64) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let known = note(&note_path(path));
        let number = |name: &str| {
            let text = known.as_ref()?.get(name)?.as_str()?;
            text.parse::<u64>().ok()
        };
        let file = open_file(path)?;
        let len = file.metadata()?.len();
        let mut sink = Self {
            path: path.to_owned(),
            file,
            birth,
            len,
            position: 0,
            half: (budget / 2).max(1),
        };
        if number("birth") == Some(birth) {
            sink.position = match (number("file"), number("begins")) {
                // It was turned over, and the note of that was not written any more:
                // the file before this one is the one that the note is about.
                (Some(file), Some(begins)) if file != sink.file.metadata()?.ino() => {
                    let older = std::fs::metadata(older(path)).ok();
                    let older = older.filter(|older| older.ino() == file);
                    let begins = begins + older.map_or(0, |older| older.len());
                    sink.note(begins)?;
                    begins + len
                }
                (_, begins) => begins.unwrap_or(0) + len,
            };
        } else {
            // Another log was here, or none. What it told is kept as the older one.
            if len > 0 {
                sink.turn_over(0)?;
            } else {
                sink.note(0)?;
            }
        }
        Ok(sink)
    }

    /// Writes bytes that begin at this position. What is here already is left out.
    fn write(&mut self, from: u64, bytes: &[u8]) -> io::Result<()> {
        let known = self.position.saturating_sub(from);
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let Some(bytes) = bytes.get(known..).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        if from > self.position {
            let gone = from - self.position;
            let told = format!("({gone} bytes of this log were gone before they could be sent)\n");
            if self.len > 0 {
                self.turn_over(from)?;
            }
            // What is told takes no position of the log's.
            if let Some(begins) = from.checked_sub(told.len() as u64) {
                self.append(told.as_bytes())?;
                self.note(begins)?;
            } else {
                self.note(from)?;
            }
            self.position = from;
        }
        if self.len > 0 && self.len + bytes.len() as u64 > self.half {
            self.turn_over(self.position)?;
        }
        self.append(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.file.write_all(bytes) {
            Ok(()) => {
                self.len += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // What was written of it would be taken for all of it.
                let _ = self.file.set_len(self.len);
                Err(error)
            }
        }
    }

    /// Goes on in a new file, whose first byte is at this position.
    fn turn_over(&mut self, begins: u64) -> io::Result<()> {
        std::fs::rename(&self.path, older(&self.path))?;
        self.file = open_file(&self.path)?;
        self.len = 0;
        self.note(begins)
    }

    fn note(&self, begins: u64) -> io::Result<()> {
        let file = self.file.metadata()?.ino();
        let note = json!({
            "birth": self.birth.to_string(),
            "file": file.to_string(),
            "begins": begins.to_string(),
        });
        write_aside(&note_path(&self.path), &note)
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn note_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.at"))
}
