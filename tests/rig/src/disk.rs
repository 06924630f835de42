//! A file system that is soon full.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{RigError, Space, sys};

/// A file system of a given size, in this process's own mount namespace: nobody
/// else sees it, and it is gone with the process or when this is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    /// Where it is mounted; what is below lies in `_folder`.
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    /// One in memory: what it holds counts as memory of the machine.
    pub fn tmpfs(_: &Space, bytes: u64) -> Result<Self, RigError> {
        let (folder, path) = mount_point()?;
        sys::mount_tmpfs(&path, bytes).map_err(|source| RigError::of("a tmpfs", source))?;
        Ok(Self {
            path,
            _folder: folder,
        })
    }

    /// One in a file, through a loop device: an ext4 with everything that goes
    /// with a disk. Root's alone. Of the bytes some are the file system's own.
    pub fn ext4(_: &Space, bytes: u64) -> Result<Self, RigError> {
        let (folder, path) = mount_point()?;
        let image = folder.path().join("image");
        let failed = |source| RigError::of("the image of a file system", source);
        File::create(&image)
            .and_then(|file| file.set_len(bytes))
            .map_err(failed)?;
        tool(
            "an ext4 in a file",
            Command::new("mkfs.ext4")
                // No journal and no blocks for root: the size is for files.
                .args(["-q", "-F", "-m", "0", "-O", "^has_journal"])
                .arg(&image),
        )?;
        tool(
            "an ext4 through a loop device",
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(&image)
                .arg(&path),
        )?;
        Ok(Self {
            path,
            _folder: folder,
        })
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that still go into files.
    pub fn free(&self) -> u64 {
        rustix::fs::statvfs(&self.path).map_or(0, |stat| stat.f_bavail * stat.f_frsize)
    }

    /// Fills it with files of zeros until at most `left` bytes are free, give or
    /// take a block. Removing the returned file makes the room again.
    pub fn fill_but(&self, left: u64) -> io::Result<PathBuf> {
        let path = self.path.join("fills-the-disk");
        let mut file = File::options().create(true).append(true).open(&path)?;
        let zeros = vec![0; 64 * 1024];
        loop {
            let excess = self.free().saturating_sub(left);
            let some = zeros
                .len()
                .min(usize::try_from(excess).unwrap_or(usize::MAX));
            let (chunk, _) = zeros.split_at(some);
            match file.write(chunk) {
                Ok(0) => return Ok(path),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(path),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = sys::unmount(&self.path);
    }
}

fn mount_point() -> Result<(tempfile::TempDir, PathBuf), RigError> {
    let made = tempfile::tempdir().and_then(|folder| {
        let path = folder.path().join("disk");
        std::fs::create_dir(&path)?;
        Ok((folder, path))
    });
    made.map_err(|source| RigError::of("a folder to mount on", source))
}

/// Runs a system tool; what it says when it fails is why the disk is not there.
fn tool(what: &str, command: &mut Command) -> Result<(), RigError> {
    let output = command
        .output()
        .map_err(|source| RigError::of(what, source))?;
    if output.status.success() {
        return Ok(());
    }
    // Which of its reasons is one of permission, the tool does not say.
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(RigError::Unavailable {
        what: what.to_owned(),
        source: io::Error::other(said),
    })
}
