//! Lines that hold a pattern.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::time::{Duration, Instant};

use firesteel_api::ask::{Match, Matches};
use firesteel_api::{Code, Problem};
use firesteel_base::limits;
use regex::bytes::{Regex, RegexBuilder};

use super::beneath::{self, Opened, Place};
use super::text::shown;
use super::{DEPTH, walk};

/// After so long a search says what it has found so far: whoever asks waits for it.
const LONGEST: Duration = Duration::from_secs(5);

/// Lines between two looks at the clock.
const LINES: u64 = 64;

/// What is searched for.
pub(super) struct Search<'a> {
    pub(super) pattern: &'a str,
    pub(super) ignore_case: bool,
    pub(super) fixed: bool,
    pub(super) invert: bool,
}

/// Lines of a file, or of all files below a folder.
pub(super) fn grep(root: &File, path: &str, search: &Search<'_>) -> Result<Matches, Problem> {
    let regex = compile(search)?;
    let place = Place::parse(path)?;
    let mut searching = Searching {
        regex,
        invert: search.invert,
        found: Matches {
            lines: Vec::new(),
            cut: false,
        },
        bytes: 0,
        read: 0,
        until: Instant::now() + LONGEST,
    };
    match place.open(root)? {
        Opened::File(file) => {
            let name = path.trim_end_matches('/');
            searching.file(&file, name);
        }
        Opened::Folder(folder) => {
            // In order of their names, for the same answer every time.
            let mut files: Vec<String> = Vec::new();
            let mut visit = |entry: firesteel_api::ask::Entry, _: &File| {
                if !entry.folder {
                    files.push(entry.path);
                }
                files.len() < limits::FILES_ENTRIES
            };
            let all = walk(&folder, "", DEPTH, &mut visit);
            searching.found.cut |= !all;
            files.sort_unstable();
            let prefix = path.trim_end_matches('/');
            let prefix = prefix.strip_prefix("./").unwrap_or(prefix);
            for name in files {
                let Ok(Opened::File(file)) = beneath::open(&folder, &name) else {
                    continue; // gone meanwhile
                };
                let shown = if prefix.is_empty() || prefix == "." {
                    name
                } else {
                    format!("{prefix}/{name}")
                };
                if !searching.file(&file, &shown) {
                    break;
                }
            }
        }
    }
    Ok(searching.found)
}

/// The pattern, of a kind whose time is bounded by what it reads.
fn compile(search: &Search<'_>) -> Result<Regex, Problem> {
    let wrong = |what: String| {
        Problem::new(Code::Invalid, what)
            .with_hint("patterns are regular expressions without look-around and back references; `fixed` takes the text as it stands")
            .with_field("pattern")
    };
    if search.pattern.len() > limits::FILES_PATH {
        return Err(wrong(format!(
            "the pattern has {} bytes, the limit is {}",
            search.pattern.len(),
            limits::FILES_PATH
        )));
    }
    let escaped;
    let pattern = if search.fixed {
        escaped = regex::escape(search.pattern);
        &escaped
    } else {
        search.pattern
    };
    RegexBuilder::new(pattern)
        .case_insensitive(search.ignore_case)
        .size_limit(limits::GREP_PATTERN)
        .dfa_size_limit(limits::GREP_PATTERN * 4)
        .build()
        .map_err(|error| {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            wrong(format!(
                "the pattern is refused: {}",
                last.trim_start_matches("error: ")
            ))
        })
}

struct Searching {
    regex: Regex,
    invert: bool,
    found: Matches,
    /// Bytes of what was found.
    bytes: usize,
    /// Bytes that were read.
    read: u64,
    until: Instant,
}

impl Searching {
    /// Searches one file; false when there is no room or time for another.
    fn file(&mut self, file: &File, name: &str) -> bool {
        let mut reader = BufReader::with_capacity(64 * 1024, file);
        let mut line = Vec::new();
        for number in 1.. {
            if number % LINES == 0 && Instant::now() > self.until || self.read > limits::GREP_BYTES
            {
                self.found.cut = true;
                return false;
            }
            match next_line(&mut reader, &mut line) {
                Ok(0) | Err(_) => break, // an error is the end of what can be read
                Ok(length) => self.read += length,
            }
            if self.regex.is_match(&line) == self.invert {
                continue;
            }
            let text = cut(&line);
            self.bytes += text.len() + name.len();
            let lines = self.found.lines.len();
            if lines >= limits::FILES_LINES || self.bytes > limits::FILES_ANSWER {
                self.found.cut = true;
                return false;
            }
            self.found.lines.push(Match {
                path: name.to_owned(),
                line: number,
                text,
            });
        }
        if Instant::now() > self.until {
            self.found.cut = true;
            return false;
        }
        true
    }
}

/// Reads a line without its end, of which the first bytes alone are held; gives the
/// bytes that it took, 0 at the end of the file.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    line.clear();
    let mut taken = 0;
    loop {
        let there = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            there => there?,
        };
        if there.is_empty() {
            return Ok(taken);
        }
        let end = there.iter().position(|byte| *byte == b'\n');
        let (part, used) = match end {
            Some(end) => (there.get(..end), end + 1),
            None => (Some(there), there.len()),
        };
        let room = limits::LOG_LINE.saturating_sub(line.len());
        let part = part.unwrap_or_default();
        line.extend_from_slice(part.get(..room).unwrap_or(part));
        reader.consume(used);
        taken += used as u64;
        if end.is_some() {
            return Ok(taken);
        }
    }
}

/// A line as it is answered.
fn cut(line: &[u8]) -> String {
    match line.get(..limits::FILES_LINE) {
        Some(first) if line.len() > limits::FILES_LINE => format!("{} …", shown(first)),
        _ => shown(line),
    }
}
