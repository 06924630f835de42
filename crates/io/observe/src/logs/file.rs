//! One log file that grows, is rotated, and survives a full disk.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy)]
pub(super) struct Rotation {
    pub(super) bytes: u64,
    pub(super) keep: usize,
}

pub(super) struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    open: Option<Open>,
}

struct Open {
    file: File,
    size: u64,
}

impl LogFile {
    pub(super) fn new(path: PathBuf, rotation: Rotation) -> Self {
        Self {
            path,
            rotation,
            open: None,
        }
    }

    /// Appends whole lines, or nothing.
    pub(super) fn append(&mut self, lines: &str) -> io::Result<()> {
        let lines = lines.as_bytes();
        self.rotate_if_due(lines.len() as u64)?;
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(open_file(&self.path)?),
        };
        match open.file.write_all(lines) {
            Ok(()) => {
                open.size += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a line may be there; the next one must not be glued to it.
                let _ = open.file.set_len(open.size);
                Err(error)
            }
        }
    }

    fn rotate_if_due(&mut self, more: u64) -> io::Result<()> {
        let due = self
            .open
            .as_ref()
            .is_some_and(|open| open.size > 0 && open.size + more > self.rotation.bytes);
        if !due {
            return Ok(());
        }
        self.open = None;
        let keep = self.rotation.keep;
        if keep == 0 {
            return std::fs::remove_file(&self.path);
        }
        for number in (1..keep).rev() {
            rename_if_there(&self.numbered(number), &self.numbered(number + 1))?;
        }
        rename_if_there(&self.path, &self.numbered(1))
    }

    /// `log.txt.1` is the youngest of the old ones.
    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn open_file(path: &Path) -> io::Result<Open> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok(Open { file, size })
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
