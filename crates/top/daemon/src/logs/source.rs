//! A log and its rotated files as one row of bytes.

use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use firesteel_base::limits;
use firesteel_node::parts::random;
use serde_json::{Value, json};

/// Times the files are looked at again when they are being rotated meanwhile.
const TRIES: usize = 8;

/// Bytes of the note beside a log.
const NOTE: u64 = 4096;

/// A log and its rotated files (`log.txt`, `log.txt.1`, …) as one row of bytes.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    note: PathBuf,
    keep: usize,
    birth: u64,
    /// The file that was the newest when it was last looked, and where it begins.
    head: Option<Head>,
    /// The furthest position that was read from: what comes anew is after it.
    told: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    /// The file's number on its disk: it stays when the file is renamed.
    file: u64,
    begins: u64,
}

/// A file of the row.
#[derive(Debug, Clone)]
struct Segment {
    path: PathBuf,
    file: u64,
    begins: u64,
    len: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.begins + self.len
    }
}

impl Source {
    /// The log at `path`, of which `keep` rotated files are kept.
    ///
    /// # Errors
    /// That the note beside it cannot be written.
    pub fn open(path: &Path, keep: usize) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let note = path.with_file_name(format!(".{name}.begins"));
        let known = read_note(&note);
        let mut source = Self {
            path: path.to_owned(),
            note,
            keep,
            birth: known.map_or_else(random, |(birth, _)| birth),
            head: known.and_then(|(_, head)| head),
            told: 0,
        };
        if known.is_none() {
            source.save()?;
        }
        Ok(source)
    }

    /// The number that was drawn when the log was begun.
    pub fn birth(&self) -> u64 {
        self.birth
    }

    /// The position after the last byte that is there.
    ///
    /// # Errors
    /// What the system said.
    pub fn end(&mut self) -> io::Result<u64> {
        Ok(self.segments()?.last().map_or(0, Segment::end))
    }

    /// What is there from `position` on, and the position of its first byte, which
    /// is a later one when the file that held it is gone. `None` when nothing is.
    ///
    /// As long as the log grows, lines are given whole: one that is being written
    /// may yet be taken back, on a full disk. With `all` nothing is held back.
    ///
    /// # Errors
    /// What the system said.
    pub fn read(&mut self, position: u64, all: bool) -> io::Result<Option<(u64, Vec<u8>)>> {
        self.told = self.told.max(position);
        for _ in 0..TRIES {
            let segments = match self.newest_alone(position)? {
                Some(newest) => vec![newest],
                None => self.segments()?,
            };
            let Some(at) = segments.iter().position(|segment| position < segment.end()) else {
                return Ok(None);
            };
            let Some(segment) = segments.get(at) else {
                return Ok(None);
            };
            let from = position.max(segment.begins);
            let mut file = match File::open(&segment.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            if number_of(&file.metadata()?) != segment.file {
                continue; // rotated since
            }
            file.seek(SeekFrom::Start(from - segment.begins))?;
            let mut bytes = Vec::new();
            let most = (segment.end() - from).min(limits::LOG_CHUNK as u64);
            file.take(most).read_to_end(&mut bytes)?;
            let newest = at + 1 == segments.len();
            if newest && !all {
                match bytes.iter().rposition(|byte| *byte == b'\n') {
                    Some(last) => bytes.truncate(last + 1),
                    None if bytes.len() < limits::LOG_CHUNK => return Ok(None),
                    None => {}
                }
            }
            return Ok((!bytes.is_empty()).then_some((from, bytes)));
        }
        Ok(None) // it is rotated all the time: the next look finds it
    }

    /// The newest file, when it is the one that was the newest before and the
    /// position is in it: the usual case, for one call.
    fn newest_alone(&self, position: u64) -> io::Result<Option<Segment>> {
        let Some(head) = self.head else {
            return Ok(None);
        };
        match stat(&self.path)? {
            Some((file, len)) if file == head.file && position >= head.begins => {
                Ok(Some(Segment {
                    path: self.path.clone(),
                    file,
                    begins: head.begins,
                    len,
                }))
            }
            _ => Ok(None),
        }
    }

    /// All files, the oldest first.
    fn segments(&mut self) -> io::Result<Vec<Segment>> {
        let mut files = self.files()?; // newest first
        let Some(&(_, newest, _)) = files.first() else {
            return Ok(Vec::new());
        };
        let known = self.head.and_then(|head| {
            let at = files.iter().position(|(_, file, _)| *file == head.file)?;
            Some((at, head.begins))
        });
        // Where the one that was known begins, the others follow from their lengths.
        let len = |files: &[(PathBuf, u64, u64)]| files.iter().map(|(.., len)| *len).sum::<u64>();
        let mut begins = match (known, self.head) {
            (Some((at, begins)), _) => {
                let older = files.get(at + 1..).unwrap_or_default();
                begins.saturating_sub(len(older))
            }
            // Every file that was known is gone: what is there comes after it.
            (None, Some(head)) => self.told.max(head.begins),
            (None, None) => 0,
        };
        files.reverse();
        let segments: Vec<Segment> = files
            .into_iter()
            .map(|(path, file, len)| {
                let segment = Segment {
                    path,
                    file,
                    begins,
                    len,
                };
                begins = segment.end();
                segment
            })
            .collect();
        let head = segments.last().map(|segment| Head {
            file: newest,
            begins: segment.begins,
        });
        if head != self.head {
            self.head = head;
            self.save()?;
        }
        Ok(segments)
    }

    /// The files with their numbers and lengths, the newest first.
    ///
    /// A rotation renames from the oldest to the newest: looked at the other way
    /// round, a file that moves is seen twice or its old name is a gap, and the look
    /// is repeated.
    fn files(&self) -> io::Result<Vec<(PathBuf, u64, u64)>> {
        let mut found: Vec<(PathBuf, u64, u64)> = Vec::new();
        for _ in 0..TRIES {
            found.clear();
            let mut gap = false;
            let mut moved = false;
            for number in 0..=self.keep {
                let path = numbered(&self.path, number);
                match stat(&path)? {
                    Some((file, len)) => {
                        // Between two files of a row there is always the next; the
                        // current one alone may be about to be made.
                        moved |= gap || found.iter().any(|(_, seen, _)| *seen == file);
                        found.push((path, file, len));
                    }
                    None => gap |= number > 0,
                }
            }
            let first = found.first().map(|(path, file, _)| (path.clone(), *file));
            let still = match first {
                Some((path, file)) => stat(&path)?.is_some_and(|(now, _)| now == file),
                None => stat(&self.path)?.is_none(),
            };
            if !moved && still {
                return Ok(found);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "the log is being rotated all the time",
        ))
    }

    fn save(&mut self) -> io::Result<()> {
        let note = json!({
            "birth": self.birth.to_string(),
            "file": self.head.map(|head| head.file),
            "begins": self.head.map(|head| head.begins),
        });
        write_aside(&self.note, &note)
    }
}

/// Writes a note so that it is there whole or not at all.
pub(super) fn write_aside(path: &Path, note: &Value) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!("{name}.new"));
    std::fs::write(&aside, note.to_string())?;
    std::fs::rename(&aside, path)
}

/// Reads a note; `None` where there is none.
pub(super) fn note(path: &Path) -> Option<Value> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(NOTE).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn read_note(path: &Path) -> Option<(u64, Option<Head>)> {
    let note = note(path)?;
    let birth = note.get("birth")?.as_str()?.parse().ok()?;
    let number = |name: &str| note.get(name).and_then(Value::as_u64);
    let head = match (number("file"), number("begins")) {
        (Some(file), Some(begins)) => Some(Head { file, begins }),
        _ => None,
    };
    Some((birth, head))
}

/// `log.txt.1` is the youngest of the old ones.
fn numbered(path: &Path, number: usize) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// A file's number, and its length. The number stays when the file is renamed. A
/// disk gives a number to another file once the first is gone, so the time of its
/// making is part of it, where the disk keeps that.
fn stat(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(Some((number_of(&found), found.len()))),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn number_of(found: &Metadata) -> u64 {
    let made = found.created().ok();
    let since = made.and_then(|made| made.duration_since(SystemTime::UNIX_EPOCH).ok());
    let nanoseconds = since.map_or(0, |since| {
        since.as_secs().wrapping_mul(1_000_000_000) + u64::from(since.subsec_nanos())
    });
    // Odd, so that times which differ give numbers which differ.
    found.ino() ^ nanoseconds.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
