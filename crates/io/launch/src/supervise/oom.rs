//! Whether the kernel ended something for want of memory.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of the kernel's log that are read at most: it is a ring of about this size.
const KERNEL_LOG: usize = 1024 * 1024;

/// A verdict, with what it rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    No,
    Likely(String),
    Certain(String),
}

/// Counters of kills for want of memory, and what they were when last looked at.
pub(super) struct Watch {
    group: Option<Counter>,
    machine: Counter,
    kernel_log: PathBuf,
}

struct Counter {
    file: PathBuf,
    key: &'static str,
    seen: u64,
}

impl Counter {
    fn new(file: PathBuf, key: &'static str) -> Option<Self> {
        let seen = field(&fs::read_to_string(&file).ok()?, key)?;
        Some(Self { file, key, seen })
    }

    /// How much it has grown since `seen`.
    fn grown(&self) -> u64 {
        fs::read_to_string(&self.file)
            .ok()
            .and_then(|text| field(&text, self.key))
            .map_or(0, |now| now.saturating_sub(self.seen))
    }
}

impl Watch {
    /// Watches the memory group this process is in, and the machine.
    pub(super) fn start() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::of(
            &groups,
            Path::new("/sys/fs/cgroup"),
            Path::new("/proc/vmstat"),
            "/dev/kmsg".into(),
        )
    }

    fn of(groups: &str, mount: &Path, vmstat: &Path, kernel_log: PathBuf) -> Self {
        let group = candidates(groups, mount)
            .into_iter()
            .find_map(|(file, key)| Counter::new(file, key));
        let machine = Counter::new(vmstat.to_owned(), "oom_kill").unwrap_or(Counter {
            file: vmstat.to_owned(),
            key: "oom_kill",
            seen: 0,
        });
        Self {
            group,
            machine,
            kernel_log,
        }
    }

    /// The verdict on a process that was killed by a SIGKILL nobody here sent
    /// (`killed`), or that failed otherwise. A growth of a counter is laid to
    /// one process only.
    pub(super) fn judge(&mut self, pid: u32, killed: bool) -> Verdict {
        if killed && kernel_log(&self.kernel_log).is_some_and(|log| names(&log, pid)) {
            self.take();
            return Verdict::Certain("the kernel's log names it".into());
        }
        if let Some(group) = &self.group
            && group.grown() > 0
        {
            let file = group.file.display().to_string();
            self.take();
            return if killed {
                Verdict::Certain(format!("its memory group's limit was reached, says {file}"))
            } else {
                Verdict::Likely(format!(
                    "a kill for want of memory in its group, says {file}"
                ))
            };
        }
        if self.machine.grown() > 0 {
            self.take();
            return Verdict::Likely("the machine ran out of memory, says /proc/vmstat".into());
        }
        Verdict::No
    }

    /// Counts one kill as laid to a process.
    fn take(&mut self) {
        if let Some(group) = &mut self.group
            && group.grown() > 0
        {
            group.seen += 1;
        }
        if self.machine.grown() > 0 {
            self.machine.seen += 1;
        }
    }
}

/// The files that may count kills, given `/proc/self/cgroup`. In a container the
/// path in it may not exist below the mount, while the mount itself is the group.
fn candidates(groups: &str, mount: &Path) -> Vec<(PathBuf, &'static str)> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let path = path.trim_start_matches('/');
        if controllers
            .split(',')
            .any(|controller| controller == "memory")
        {
            let memory = mount.join("memory");
            for folder in [memory.join(path), memory] {
                found.push((folder.join("memory.oom_control"), "oom_kill"));
            }
        } else if controllers.is_empty() {
            for folder in [mount.join(path), mount.to_owned()] {
                found.push((folder.join("memory.events"), "oom_kill"));
            }
        }
    }
    found
}

/// The number after `key` in a file of `key number` lines.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

/// The kernel's log, where this user may read it.
fn kernel_log(path: &Path) -> Option<String> {
    // Without blocking: at the end of the log there is an error, not a wait.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let mut log = Vec::new();
    // Each read gives one record.
    let mut record = [0; 8192];
    while log.len() < KERNEL_LOG {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(count) => log.extend_from_slice(record.get(..count).unwrap_or_default()),
            // EPIPE: records were overwritten meanwhile; the next read goes on.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => break,
        }
    }
    Some(String::from_utf8_lossy(&log).into_owned())
}

/// Whether the kernel's log says that it killed this process for want of memory.
fn names(log: &str, pid: u32) -> bool {
    let words = [
        format!("Killed process {pid} ("),
        format!("Kill process {pid} ("),
    ];
    log.lines()
        .any(|line| words.iter().any(|words| line.contains(words)))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine {
        folder: tempfile::TempDir,
        events: PathBuf,
    }

    impl Machine {
        fn new(file: &str, text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let events = folder.path().join(file);
            fs::create_dir_all(events.parent().unwrap()).unwrap();
            fs::write(&events, text).unwrap();
            fs::write(
                folder.path().join("vmstat"),
                "nr_free_pages 5\noom_kill 3\n",
            )
            .unwrap();
            fs::write(folder.path().join("kmsg"), "6,1,1,-;systemd[1]: started\n").unwrap();
            Self { folder, events }
        }

        fn watch(&self, groups: &str) -> Watch {
            let at = |name: &str| self.folder.path().join(name);
            Watch::of(groups, &at("cgroup"), &at("vmstat"), at("kmsg"))
        }
    }

    const V2: &str = "low 0\nhigh 0\nmax 12\noom 2\noom_kill 2\noom_group_kill 0\n";
    const V1: &str = "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n";

    #[test]
    fn a_kill_in_the_group_is_laid_to_one_process() {
        let machine = Machine::new("cgroup/user/job/memory.events", V2);
        let mut watch = machine.watch("0::/user/job\n");
        assert_eq!(watch.judge(7, true), Verdict::No);
        fs::write(&machine.events, V2.replace("oom_kill 2", "oom_kill 3")).unwrap();
        assert!(
            matches!(watch.judge(7, true), Verdict::Certain(why) if why.contains("memory.events"))
        );
        assert_eq!(watch.judge(8, true), Verdict::No);
        fs::write(&machine.events, V2.replace("oom_kill 2", "oom_kill 4")).unwrap();
        assert!(matches!(watch.judge(8, false), Verdict::Likely(_)));
    }

    #[test]
    fn the_first_version_of_groups_is_read_too() {
        let machine = Machine::new("cgroup/memory/box/memory.oom_control", V1);
        let mut watch = machine.watch("5:cpu,cpuacct:/\n4:memory:/box\n0::/\n");
        fs::write(&machine.events, V1.replace("oom_kill 0", "oom_kill 1")).unwrap();
        assert!(
            matches!(watch.judge(7, true), Verdict::Certain(why) if why.contains("oom_control"))
        );
    }

    #[test]
    fn in_a_container_the_mount_is_the_group() {
        let machine = Machine::new("cgroup/memory.events", V2);
        let mut watch = machine.watch("0::/../../outer/path\n");
        fs::write(&machine.events, V2.replace("oom_kill 2", "oom_kill 3")).unwrap();
        assert!(matches!(watch.judge(7, true), Verdict::Certain(_)));
    }

    #[test]
    fn without_a_group_the_machine_and_its_log_are_asked() {
        let machine = Machine::new("unused", "");
        let mut watch = machine.watch("");
        assert_eq!(watch.judge(7, true), Verdict::No);
        fs::write(machine.folder.path().join("vmstat"), "oom_kill 4\n").unwrap();
        assert!(matches!(watch.judge(7, true), Verdict::Likely(_)));
        assert_eq!(watch.judge(7, true), Verdict::No);
        let log = "3,9,1,-;Out of memory: Killed process 71 (python3) total-vm:1kB\n";
        fs::write(machine.folder.path().join("kmsg"), log).unwrap();
        assert_eq!(watch.judge(7, true), Verdict::No);
        assert!(matches!(watch.judge(71, true), Verdict::Certain(_)));
        assert_eq!(watch.judge(71, false), Verdict::No);
    }

    #[test]
    fn files_that_say_nothing_are_no_verdict() {
        let machine = Machine::new("cgroup/memory.events", "gibberish\noom_kill x\n");
        assert_eq!(
            machine.watch("0::/\nnonsense\n").judge(7, true),
            Verdict::No
        );
    }
}
