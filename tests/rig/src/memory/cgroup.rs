//! A control group that counts the memory of the processes in it, version 1 or 2.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::RigError;
use crate::wait::alive;

/// What a group's processes use, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Everything the kernel counts: pages, page cache, kernel memory.
    pub current: u64,
    /// Of that, the page cache.
    pub files: u64,
}

impl Usage {
    /// All but the page cache.
    pub fn owned(&self) -> u64 {
        self.current.saturating_sub(self.files)
    }
}

/// Starts the names of groups; the id of the process that made it follows.
const PREFIX: &str = "firesteel-rig-";

/// A group below this process's own; removed when this is dropped. Groups of
/// processes that were killed are removed by the next one that makes any.
#[derive(Debug)]
pub struct Group {
    folder: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Group {
    /// An empty group. Where this user may make none, that is unavailable.
    pub fn new() -> Result<Self, RigError> {
        let unavailable = |source| RigError::of("a control group for memory", source);
        let (parent, version) = own_group().map_err(unavailable)?;
        sweep(&parent);
        static GROUPS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = GROUPS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&folder).map_err(unavailable)?;
        let group = Self { folder, version };
        // A folder of version 2 counts only what its parent hands down.
        group.usage().map_err(unavailable)?;
        Ok(group)
    }

    /// Moves a process into it; what it starts from now on is in it, too. Pages
    /// that it has already stay counted where they were.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.folder.join("cgroup.procs"), pid.to_string())
    }

    /// What is used now.
    pub fn usage(&self) -> io::Result<Usage> {
        let (current, stat, files) = match self.version {
            Version::One => ("memory.usage_in_bytes", "memory.stat", "total_cache"),
            Version::Two => ("memory.current", "memory.stat", "file"),
        };
        let stat = fs::read_to_string(self.folder.join(stat))?;
        let mut files = field(&stat, files)?;
        if let Ok(shared) = field(&stat, self.version.shared()) {
            // Both versions count shared memory as cache, from which it cannot
            // be taken away.
            files = files.saturating_sub(shared);
        }
        Ok(Usage {
            current: number(&self.folder.join(current))?,
            files,
        })
    }

    /// The kernel's own peak, the page cache included, where it keeps one.
    pub fn peak(&self) -> io::Result<u64> {
        number(&self.folder.join(match self.version {
            Version::One => "memory.max_usage_in_bytes",
            Version::Two => "memory.peak",
        }))
    }

    /// The folder, for what is not offered here.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Version {
    fn shared(self) -> &'static str {
        match self {
            Self::One => "total_shmem",
            Self::Two => "shmem",
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Fails while a process is in it; the next group's sweep comes by.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Removes groups whose maker is gone.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        if maker.is_some_and(|pid| !alive(pid)) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The folder of this process's memory group.
fn own_group() -> io::Result<(PathBuf, Version)> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    find(&groups, &mounts).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

/// Finds it in the texts of `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn find(groups: &str, mounts: &str) -> Option<(PathBuf, Version)> {
    let one = groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers
            .split(',')
            .any(|controller| controller == "memory")
            .then_some(path)
    });
    let two = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let mount = |kind: &str, option: Option<&str>| {
        mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut right = right.split(' ');
            let fits = right.next() == Some(kind)
                && option.is_none_or(|option| {
                    right
                        .nth(1)
                        .is_some_and(|options| options.split(',').any(|one| one == option))
                });
            let mut left = left.split(' ');
            let (root, point) = (left.nth(3)?, left.next()?);
            fits.then_some((root, point))
        })
    };
    let (path, (root, point), version) = match one {
        Some(path) => (path, mount("cgroup", Some("memory"))?, Version::One),
        None => (two?, mount("cgroup2", None)?, Version::Two),
    };
    // In a container the mount may begin below the root of all groups.
    let below = path
        .strip_prefix(root.trim_end_matches('/'))
        .unwrap_or(path);
    let folder = Path::new(point).join(below.trim_start_matches('/'));
    Some((folder, version))
}

fn number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "no number"))
}

fn field(stat: &str, name: &str) -> io::Result<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no `{name}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(groups: &str, mounts: &str, expect: Option<(&str, Version)>) {
        let expect = expect.map(|(path, version)| (PathBuf::from(path), version));
        assert_eq!(find(groups, mounts), expect);
    }

    const ONE: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
    const TWO: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw";
    const INSIDE: &str = "30 23 0:26 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw";

    #[test]
    fn the_group_is_found_in_both_versions() {
        check(
            "4:memory:/jobs/a\n1:cpu:/\n0::/",
            ONE,
            Some(("/sys/fs/cgroup/memory/jobs/a", Version::One)),
        );
        check(
            "0::/user.slice/x",
            TWO,
            Some(("/sys/fs/cgroup/user.slice/x", Version::Two)),
        );
        check(
            "0::/docker/ab/x",
            INSIDE,
            Some(("/sys/fs/cgroup/x", Version::Two)),
        );
        check("4:memory:/jobs/a", TWO, None);
        check("", "", None);
    }
}
