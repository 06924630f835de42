//! Rulers for memory: of a process, of a tree of them, of a control group; their
//! peaks; and pages that are touched beforehand.
//!
//! What a process holds is its anonymous and shared pages ([`Held::owned`]).
//! Clean pages of mapped files are the page cache's: they go when somebody needs
//! the room, and are reported beside it.

mod cgroup;
mod peak;

pub use cgroup::{Group, Usage};
pub use peak::{Peak, Peaks};

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};

/// What a process has in memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// `RssAnon`: heap, stacks, private copies of mapped pages.
    pub anonymous: u64,
    /// `RssShmem`: shared memory and files on a tmpfs.
    pub shared: u64,
    /// `RssFile`: pages of mapped files.
    pub files: u64,
}

impl Held {
    /// Of a process; `None` when it has ended.
    pub fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kib = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            anonymous: kib("RssAnon:")? * 1024,
            shared: kib("RssShmem:")? * 1024,
            files: kib("RssFile:")? * 1024,
        })
    }

    /// Of this process.
    pub fn own() -> Self {
        Self::of(std::process::id()).expect("this process is there")
    }

    /// What nobody can take away from it.
    pub fn owned(&self) -> u64 {
        self.anonymous + self.shared
    }
}

/// The proportional set size of a process, in bytes: a page that several share
/// counts once among them. `None` when it has ended or is not ours.
pub fn pss(pid: u32) -> Option<u64> {
    let file = fs::File::open(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = BufReader::new(file)
        .lines()
        .map_while(Result::ok)
        .find(|line| line.starts_with("Pss:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// A process and everything below it.
pub fn tree(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // The name in parentheses may hold anything, spaces too.
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        found.extend(children.remove(&pid).unwrap_or_default());
    }
    found
}

/// Writes to so many bytes of fresh pages and gives them back.
///
/// On a virtual machine the first touch of a page costs far more than the next,
/// seconds per GiB: the host has to find it. Whatever is measured runs after the
/// pages that it will need have been touched once.
pub fn touch(bytes: u64) {
    /// Small enough for any machine, large enough that the allocator maps it and
    /// gives it back to the kernel at once.
    const PIECE: usize = 64 * 1024 * 1024;
    const PAGE: usize = 4096;
    let mut held = Vec::new();
    let mut left = usize::try_from(bytes).expect("what fits into memory fits into usize");
    while left > 0 {
        let mut piece: Vec<u8> = vec![0; left.min(PIECE)];
        for page in piece.chunks_mut(PAGE) {
            if let Some(byte) = page.first_mut() {
                *byte = 1;
            }
        }
        left -= piece.len();
        held.push(std::hint::black_box(piece));
    }
}
