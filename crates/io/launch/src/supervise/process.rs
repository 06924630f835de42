//! Processes: starting, reaping, signalling, and finding descendants.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::{Pid, Signal};

/// A child that has ended and been reaped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) pid: u32,
    /// The status as `waitpid` returns it.
    pub(super) status: i32,
    /// Bytes of memory it held at most.
    pub(super) max_rss: u64,
    /// Microseconds of CPU it used.
    pub(super) cpu_us: u64,
    /// Only its script has ended; the process is there for the next one.
    pub(super) kept: bool,
}

impl Ended {
    pub(super) fn code(&self) -> Option<i32> {
        libc::WIFEXITED(self.status).then(|| libc::WEXITSTATUS(self.status))
    }

    pub(super) fn signal(&self) -> Option<i32> {
        libc::WIFSIGNALED(self.status).then(|| libc::WTERMSIG(self.status))
    }
}

/// Makes `command` start a session of its own and end with this process.
pub(super) fn detach(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: only system calls that are async-signal-safe; no allocation.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            die_with_parent(parent)
        });
    }
}

/// Makes `command` inherit a descriptor under the same number.
pub(super) fn inherit(command: &mut Command, descriptor: RawFd) {
    // SAFETY: one `fcntl`, which is async-signal-safe; the caller keeps the
    // descriptor open until after the start.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(descriptor, libc::F_SETFD, 0) == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

#[cfg(target_os = "linux")]
fn die_with_parent(parent: u32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the line above.
    let still = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if still == Some(parent) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_parent: u32) -> io::Result<()> {
    Ok(())
}

/// Closes every descriptor but the three standard ones: whatever the agent's
/// process had open is no business of this one or of its trainers.
pub(super) fn close_inherited() {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // SAFETY: nothing in this process has been opened yet that anything here
        // would use. The listing's own descriptor is closed already: EBADF.
        unsafe { libc::close(descriptor) };
    }
}

/// Has orphaned descendants become children of this process.
pub(super) fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    // Refused only by kernels older than 3.4; then orphans go to init.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Reaps one child that has ended; `None` when there is none now.
pub(super) fn reap() -> Option<Ended> {
    let mut status = 0;
    // SAFETY: `rusage` is a plain structure of integers, for which zeros are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals.
    let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, &mut usage) };
    let pid = u32::try_from(pid).ok().filter(|pid| *pid > 0)?;
    Some(Ended {
        pid,
        status,
        max_rss: max_rss(&usage),
        cpu_us: micros(usage.ru_utime) + micros(usage.ru_stime),
        kept: false,
    })
}

fn max_rss(usage: &libc::rusage) -> u64 {
    let held = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    // Kibibytes on Linux, bytes on macOS.
    if cfg!(target_os = "macos") {
        held
    } else {
        held * 1024
    }
}

fn micros(time: libc::timeval) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
}

/// The writing end of the pipe that [`Signals`] reads; -1 before it is made.
static WAKER: AtomicI32 = AtomicI32::new(-1);

#[cfg(not(target_os = "macos"))]
use libc::__errno_location as errno_location;
#[cfg(target_os = "macos")]
use libc::__error as errno_location;

extern "C" fn on_signal(signal: libc::c_int) {
    let waker = WAKER.load(Ordering::Relaxed);
    let byte = u8::try_from(signal).unwrap_or(0);
    // SAFETY: `write` is async-signal-safe, the pointer is to a live local, and
    // a full pipe (it does not block) already holds a reason to wake up.
    unsafe {
        let errno = errno_location();
        let saved = *errno;
        libc::write(waker, (&raw const byte).cast(), 1);
        *errno = saved;
    }
}

/// Signals, as bytes that can be polled for.
pub(super) struct Signals {
    reading: OwnedFd,
    _writing: OwnedFd,
}

impl Signals {
    /// Takes over SIGCHLD and those that ask a process to end.
    pub(super) fn take_over() -> io::Result<Self> {
        use rustix::pipe::{PipeFlags, pipe_with};
        let (reading, writing) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        WAKER.store(writing.as_raw_fd(), Ordering::Relaxed);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            // SAFETY: a zeroed `sigaction` is one without flags and mask; the
            // handler is async-signal-safe.
            let taken = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
                action.sa_flags = libc::SA_RESTART;
                libc::sigaction(signal, &action, std::ptr::null_mut())
            };
            if taken == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self {
            reading,
            _writing: writing,
        })
    }

    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.reading
    }

    /// Empties the pipe; true when one of the signals asked this process to end.
    pub(super) fn asked_to_end(&self) -> bool {
        let mut asked = false;
        let mut bytes = [0; 64];
        while let Ok(count) = rustix::io::read(&self.reading, &mut bytes)
            && count > 0
        {
            let seen = bytes.get(..count).unwrap_or_default();
            asked |= seen.iter().any(|byte| i32::from(*byte) != libc::SIGCHLD);
        }
        asked
    }
}

/// Sends a signal to a process; one that is gone is fine.
pub(super) fn signal(pid: u32, signal: i32) {
    if let (Some(pid), Some(signal)) = (as_pid(pid), Signal::from_named_raw(signal)) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Sends a signal to a process group; one that is gone is fine.
pub(super) fn signal_group(group: u32, signal: i32) {
    if let (Some(group), Some(signal)) = (as_pid(group), Signal::from_named_raw(signal)) {
        let _ = rustix::process::kill_process_group(group, signal);
    }
}

/// Whether a process group has a member, zombies included.
pub(super) fn group_lives(group: u32) -> bool {
    as_pid(group).is_some_and(|group| {
        !matches!(
            rustix::process::test_kill_process_group(group),
            Err(rustix::io::Errno::SRCH)
        )
    })
}

fn as_pid(pid: u32) -> Option<Pid> {
    // Never 0 or 1: `kill` would take them for this group and for everyone.
    i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 1)
        .and_then(Pid::from_raw)
}

/// The living and dead children of a process.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for thread in threads.filter_map(Result::ok) {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(text) => found.extend(
                text.split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            ),
            // A kernel without that file, or a thread that just ended.
            Err(_) => return children_by_scan(pid),
        }
    }
    found
}

fn children_by_scan(parent: u32) -> Vec<u32> {
    pids()
        .filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent))
        .collect()
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// All descendants of a process, parents before their children.
pub(super) fn descendants(pid: u32) -> Vec<u32> {
    // INVARIANT: `seen` only grows, so a tree that changes meanwhile ends the walk too.
    let mut seen = HashSet::new();
    let mut order = Vec::new();
    let mut open = vec![pid];
    while let Some(parent) = open.pop() {
        for child in children(parent) {
            if seen.insert(child) {
                order.push(child);
                open.push(child);
            }
        }
    }
    order
}

/// What is needed of `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) state: char,
    pub(super) parent: u32,
    pub(super) group: u32,
    pub(super) session: u32,
}

pub(super) fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name in parentheses may itself hold spaces and parentheses.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    Some(Stat {
        state,
        parent,
        group,
        session,
    })
}

/// A variable of a process's environment as it was at its start.
pub(super) fn variable(pid: u32, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    environment.split(|byte| *byte == 0).find_map(|entry| {
        let (key, value) = std::str::from_utf8(entry).ok()?.split_once('=')?;
        (key == name).then(|| value.to_owned())
    })
}

/// Whether this is a fork of a warm parent.
pub(super) fn is_fork_of_warm(pid: u32) -> bool {
    let name = super::warm::MODULE.as_bytes();
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.windows(name.len()).any(|part| part == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = parse_stat("812 (a) S 1 2) R 7 812 800 0 -1 4194304").unwrap();
        assert_eq!(
            stat,
            Stat {
                state: 'R',
                parent: 7,
                group: 812,
                session: 800
            }
        );
        assert_eq!(parse_stat("812 (sh"), None);
        assert_eq!(parse_stat("812 (sh) S"), None);
    }

    #[test]
    fn children_are_found_both_ways() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read x"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let me = std::process::id();
        assert!(children(me).contains(&child.id()));
        assert!(children_by_scan(me).contains(&child.id()));
        assert!(descendants(me).contains(&child.id()));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
