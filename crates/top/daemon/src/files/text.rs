//! Pieces of a file.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;

use firesteel_api::Problem;
use firesteel_api::ask::Text;
use firesteel_base::limits;

use super::beneath::Place;
use super::broken;

/// Bytes that are read at a time when lines are counted from the end.
const BLOCK: u64 = 64 * 1024;

/// What can be shown of some bytes. What a terminal would act upon is not among
/// it, so that the answer has at most three bytes for one of the file.
pub(super) fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// A piece from a byte on.
pub(super) fn cat(root: &File, path: &str, offset: u64) -> Result<Text, Problem> {
    let (file, bytes) = opened(root, path)?;
    let read = read(&file, offset, limits::FILES_ANSWER as u64);
    let mut piece = read.map_err(|error| broken(path, &error))?;
    let more = offset + (piece.len() as u64) < bytes;
    if more {
        whole_characters(&mut piece);
    }
    Ok(text(&piece, offset, bytes, more))
}

/// The first lines.
pub(super) fn head(root: &File, path: &str, lines: u32) -> Result<Text, Problem> {
    let (file, bytes) = opened(root, path)?;
    let most = usize::try_from(lines)
        .unwrap_or(usize::MAX)
        .min(limits::FILES_LINES);
    let read = read(&file, 0, limits::FILES_ANSWER as u64);
    let mut piece = read.map_err(|error| broken(path, &error))?;
    let ends = piece.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    let end = match most {
        0 => Some(0),
        most => ends.map(|(at, _)| at + 1).nth(most - 1),
    };
    let mut cut = false;
    match end {
        Some(end) => {
            piece.truncate(end);
            cut = lines as usize > most && (end as u64) < bytes;
        }
        None if (piece.len() as u64) < bytes => {
            whole_characters(&mut piece);
            cut = true;
        }
        None => {}
    }
    Ok(text(&piece, 0, bytes, cut))
}

/// The last lines.
pub(super) fn tail(root: &File, path: &str, lines: u32) -> Result<Text, Problem> {
    let (file, bytes) = opened(root, path)?;
    let most = usize::try_from(lines)
        .unwrap_or(usize::MAX)
        .min(limits::FILES_LINES);
    let least = bytes.saturating_sub(limits::FILES_ANSWER as u64);
    let mut piece: Vec<u8> = Vec::new();
    let mut start = bytes;
    let mut found = None;
    while start > least && found.is_none() && most > 0 {
        let from = start.saturating_sub(BLOCK).max(least);
        let mut block = read(&file, from, start - from).map_err(|error| broken(path, &error))?;
        block.extend_from_slice(&piece);
        piece = block;
        start = from;
        found = nth_last_line(&piece, most);
    }
    let mut cut = false;
    if let Some(at) = found {
        piece.drain(..at);
        start += at as u64;
        cut = lines as usize > most;
    } else if start > 0 && most > 0 {
        // What the limit allows, from the first whole line on.
        cut = true;
        if let Some(at) = piece.iter().position(|byte| *byte == b'\n') {
            piece.drain(..=at);
            start += at as u64 + 1;
        }
    }
    Ok(text(&piece, start, bytes, cut))
}

/// Where the last `most` lines begin, when what is before them is there too.
fn nth_last_line(piece: &[u8], most: usize) -> Option<usize> {
    // The end of the last line begins no other.
    let within = piece.len().saturating_sub(1);
    let ends = piece.iter().take(within).enumerate().rev();
    ends.filter(|(_, byte)| **byte == b'\n')
        .map(|(at, _)| at + 1)
        .nth(most - 1)
}

/// Leaves off what is the beginning of a character whose rest was not read.
fn whole_characters(piece: &mut Vec<u8>) {
    if let Err(error) = std::str::from_utf8(piece)
        && error.error_len().is_none()
        && error.valid_up_to() > 0
    {
        piece.truncate(error.valid_up_to());
    }
}

fn opened(root: &File, path: &str) -> Result<(File, u64), Problem> {
    let file = Place::parse(path)?.file(root)?;
    let found = file.metadata().map_err(|error| broken(path, &error))?;
    Ok((file, found.len()))
}

fn read(file: &File, offset: u64, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    At { file, at: offset }.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file from a byte on.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl io::Read for At<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

fn text(piece: &[u8], offset: u64, bytes: u64, cut: bool) -> Text {
    Text {
        text: shown(piece),
        offset,
        end: offset + piece.len() as u64,
        bytes,
        cut,
    }
}
