//! Files of a folder for people who have no shell there: what there is, pieces of
//! files, lines that hold a pattern.
//!
//! Nothing here starts a process. A path is relative, has no `..`, and is opened
//! beneath the folder without following a link; a pattern is of a kind that takes
//! time in proportion to what it reads; every answer is bounded.

mod beneath;
mod grep;
mod text;

use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use firesteel_api::ask::{Entry, FileOp, Listing};
use firesteel_api::{Code, Problem, Stamp};
use firesteel_base::limits;
use rustix::fs::{AtFlags, Dir, FileType, statat};
use serde_json::{Value, to_value};

use beneath::{Opened, Place};

/// Folders within folders that a listing or a search goes down.
const DEPTH: usize = 32;

/// Answers a question about the files below `root`.
///
/// # Errors
/// [`Problem`]: the path is not one, there is no such file, or the pattern is no
/// pattern.
pub fn answer(root: &Path, op: &FileOp) -> Result<Value, Problem> {
    let root = File::open(root).map_err(|_| {
        Problem::new(Code::FileNotFound, "there is no folder of that job here").with_hint(
            "its folder is made when the job is deployed, and removed when its job is deleted",
        )
    })?;
    let answer = match op {
        FileOp::Ls { path, recursive } => to_value(ls(&root, path, *recursive)?),
        FileOp::Cat { path, offset } => to_value(text::cat(&root, path, *offset)?),
        FileOp::Head { path, lines } => to_value(text::head(&root, path, *lines)?),
        FileOp::Tail { path, lines } => to_value(text::tail(&root, path, *lines)?),
        FileOp::Grep {
            path,
            pattern,
            ignore_case,
            fixed,
            invert,
        } => {
            let search = grep::Search {
                pattern,
                ignore_case: *ignore_case,
                fixed: *fixed,
                invert: *invert,
            };
            to_value(grep::grep(&root, path, &search)?)
        }
        _ => {
            return Err(Problem::new(
                Code::Invalid,
                "this build does not know that operation on files",
            )
            .with_hint("update firesteel there"));
        }
    };
    answer.map_err(|error| Problem::new(Code::Internal, error.to_string()))
}

/// What a folder holds: files and folders; links, sockets and the like are not told.
fn ls(root: &File, path: &str, recursive: bool) -> Result<Listing, Problem> {
    let place = Place::parse(path)?;
    let mut listing = Listing {
        entries: Vec::new(),
        cut: false,
    };
    let mut room = Room::default();
    match place.open(root)? {
        Opened::File(file) => {
            let found = file.metadata().map_err(|error| broken(path, &error))?;
            let name = place.last().unwrap_or_default().to_owned();
            let modified = found.modified().ok().map(Stamp::of);
            listing.entries.push(Entry {
                path: name,
                folder: false,
                bytes: found.len(),
                modified,
            });
        }
        Opened::Folder(folder) => {
            let mut visit = |entry: Entry, _: &File| {
                if room.takes(entry.path.len()) {
                    listing.entries.push(entry);
                    return true;
                }
                listing.cut = true;
                false
            };
            let depth = if recursive { DEPTH } else { 0 };
            walk(&folder, "", depth, &mut visit);
        }
    }
    listing
        .entries
        .sort_by(|one, other| one.path.cmp(&other.path));
    Ok(listing)
}

/// Entries of an answer, and bytes of their names.
#[derive(Default)]
struct Room {
    entries: usize,
    bytes: usize,
}

impl Room {
    fn takes(&mut self, name: usize) -> bool {
        self.entries += 1;
        self.bytes += name;
        self.entries <= limits::FILES_ENTRIES && self.bytes <= limits::FILES_ANSWER
    }
}

/// Shows every file and folder below a folder to `visit`, with the folder that it
/// is in, until that says false; false when it has.
fn walk(
    folder: &File,
    prefix: &str,
    depth: usize,
    visit: &mut dyn FnMut(Entry, &File) -> bool,
) -> bool {
    let Ok(dir) = Dir::read_from(folder) else {
        return true; // gone meanwhile
    };
    for entry in dir {
        let Ok(entry) = entry else { return true };
        let Ok(name) = entry.file_name().to_str() else {
            continue; // nobody could ask for it
        };
        if matches!(name, "." | "..") {
            continue;
        }
        let Ok(stat) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !kind.is_file() && !kind.is_dir() {
            continue;
        }
        let path = format!("{prefix}{name}");
        let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
        let modified = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let told = Entry {
            path: path.clone(),
            folder: kind.is_dir(),
            bytes: if kind.is_file() {
                u64::try_from(stat.st_size).unwrap_or(0)
            } else {
                0
            },
            modified: Some(Stamp::of(modified)),
        };
        if !visit(told, folder) {
            return false;
        }
        if kind.is_dir()
            && depth > 0
            && let Ok(Opened::Folder(below)) = beneath::open(folder, name)
            && !walk(&below, &format!("{path}/"), depth - 1, visit)
        {
            return false;
        }
    }
    true
}

/// The system would not let us.
fn broken(path: &str, error: &std::io::Error) -> Problem {
    Problem::new(
        Code::FileNotFound,
        format!("`{path}` cannot be read: {error}"),
    )
}

#[cfg(test)]
mod tests;
