//! What is started, and what became of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use firesteel_base::{Failure, FailureCode, Phase};

/// How a trainer is started.
#[derive(Debug, Clone)]
pub enum TrainerSpec {
    /// Forked from the warm parent: a start of milliseconds.
    Warm(WarmSpec),
    /// A process of its own, from any command.
    External(ExternalSpec),
}

/// A Python script to be run by a fork of the warm parent.
#[derive(Debug, Clone)]
pub struct WarmSpec {
    /// The script.
    pub script: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// The directory it runs in.
    pub cwd: PathBuf,
    /// Variables added to the environment, among them `FIRESTEEL_BRIDGE` and
    /// `FIRESTEEL_TOKEN`.
    pub env: BTreeMap<String, String>,
    /// What the random generators are seeded from, for instance
    /// `"{job seed}/{site}/{round}"`; `None` seeds them from the system.
    pub seed: Option<String>,
}

/// A command to be run as a process of its own.
#[derive(Debug, Clone)]
pub struct ExternalSpec {
    /// The command and its arguments. A command without `/` is looked up in `PATH`.
    pub argv: Vec<String>,
    /// The directory it runs in.
    pub cwd: PathBuf,
    /// Variables added to the environment, among them `FIRESTEEL_BRIDGE` and
    /// `FIRESTEEL_TOKEN`.
    pub env: BTreeMap<String, String>,
    /// The terminal (`/dev/pts/3`) that its input and output are connected to,
    /// so that `breakpoint()` works; `None`: no input, output is collected.
    pub terminal: Option<PathBuf>,
}

/// Where a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line that a trainer wrote, without its line end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputLine {
    /// Where to.
    pub stream: Stream,
    /// What; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// What a trainer's supervisor reports about it. The last event is `Exited` or
/// `SpawnFailed`.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrainerEvent {
    /// It runs.
    Started {
        /// Its process id, process group and session.
        pid: u32,
    },
    /// It wrote lines.
    Output(Vec<OutputLine>),
    /// It has ended.
    Exited(ExitReport),
    /// It could not be started.
    SpawnFailed(Failure),
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// Its supervisor was lost, and the process with it.
    Lost,
}

/// Whether want of memory ended a trainer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Oom {
    /// Nothing points to it.
    No,
    /// The kernel ended something for want of memory in its time.
    Likely {
        /// What says so.
        evidence: String,
    },
    /// The kernel ended it for want of memory.
    Certain {
        /// What says so.
        evidence: String,
    },
}

/// A trainer's death certificate.
#[derive(Debug, Clone)]
pub struct ExitReport {
    /// How it ended.
    pub end: End,
    /// The strongest signal that this product had sent it before; `None` when it
    /// ended by itself or by somebody else's hand.
    pub sent_signal: Option<i32>,
    /// Whether want of memory ended it.
    pub oom: Oom,
    /// Bytes of memory it held at most.
    pub max_rss: u64,
    /// CPU time it used, its reaped children's included.
    pub cpu: Duration,
    /// Its last lines, oldest first.
    pub log_tail: Vec<OutputLine>,
}

impl ExitReport {
    /// True when it exited with code 0.
    pub fn success(&self) -> bool {
        self.end == End::Code(0)
    }

    /// How it ended, to stand after "the trainer ".
    pub fn describe(&self) -> String {
        match (&self.oom, &self.end) {
            (Oom::Certain { .. }, _) => "was ended by the kernel for want of memory".into(),
            (_, End::Code(code)) => format!("exited with code {code}"),
            (_, End::Signal(signal)) if Some(*signal) == self.sent_signal => {
                format!("was stopped with {}", signal_name(*signal))
            }
            (_, End::Signal(signal)) => {
                let meaning = signal_meaning(*signal);
                format!("was ended by {}{meaning}", signal_name(*signal))
            }
            (_, End::Lost) => "was lost together with its supervisor".into(),
        }
    }

    /// The failure that this end is, when it came while `phase` was not over.
    pub fn failure(&self, phase: Phase) -> Failure {
        let tail = self.log_tail.iter().map(|line| line.text.clone()).collect();
        let what = format!("the trainer {}", self.describe());
        let (code, message, hint) = match (&self.oom, &self.end) {
            (Oom::Certain { evidence }, _) => (
                FailureCode::OutOfMemory,
                format!(
                    "{what} ({evidence}; it held {} at most)",
                    bytes(self.max_rss)
                ),
                OOM_HINT.to_owned(),
            ),
            (Oom::Likely { evidence }, End::Signal(_)) => (
                FailureCode::OutOfMemory,
                format!(
                    "{what}, most likely for want of memory ({evidence}; it held {} at most)",
                    bytes(self.max_rss)
                ),
                OOM_HINT.to_owned(),
            ),
            (Oom::Likely { evidence }, _) => (
                FailureCode::Exited,
                format!("{what}, after {evidence}"),
                format!("one of its own child processes may have been ended; {OOM_HINT}"),
            ),
            (Oom::No, End::Signal(signal)) => {
                (FailureCode::Signaled, what, signal_hint(*signal).to_owned())
            }
            (Oom::No, End::Code(0)) => (
                FailureCode::Exited,
                "the trainer ended without an error, but before its work was done".into(),
                "keep calling receive and send while is_running() is true".into(),
            ),
            (Oom::No, End::Code(code)) => (FailureCode::Exited, what, code_hint(*code).to_owned()),
            (Oom::No, End::Lost) => (
                FailureCode::Internal,
                what,
                "something outside of Firesteel ended its supervisor; run the job again".into(),
            ),
        };
        let mut failure = Failure::new(code, phase, message).with_hint(hint);
        failure.log_tail = tail;
        failure
    }
}

const OOM_HINT: &str =
    "use smaller batches, fewer workers at a time, or a machine with more memory";

/// A signal's name.
pub fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

fn signal_meaning(signal: i32) -> &'static str {
    match signal {
        libc::SIGSEGV => " (a segmentation fault)",
        libc::SIGBUS => " (a bus error: mapped memory that is not there)",
        libc::SIGABRT => " (a library gave up)",
        libc::SIGILL => " (an instruction this CPU does not have)",
        libc::SIGFPE => " (an arithmetic error in native code)",
        libc::SIGXCPU => " (its limit of CPU time)",
        libc::SIGXFSZ => " (its limit of file size)",
        libc::SIGKILL => " (sent by something outside of Firesteel)",
        libc::SIGSYS => " (a system call that is not allowed here)",
        _ => "",
    }
}

fn signal_hint(signal: i32) -> &'static str {
    match signal {
        libc::SIGSEGV | libc::SIGABRT | libc::SIGFPE => {
            "run the script by itself with `python -X faulthandler` to see where"
        }
        libc::SIGBUS => "see whether the disk or /dev/shm is full",
        libc::SIGILL => "install a build of the library for this CPU",
        libc::SIGKILL => {
            "a resource limit, a batch system or a person ended it; see the system's log"
        }
        libc::SIGXCPU | libc::SIGXFSZ => "raise the limit with `ulimit`",
        _ => "",
    }
}

fn code_hint(code: i32) -> &'static str {
    match code {
        126 => "the command was found but cannot be executed",
        127 => "the shell did not find the command",
        _ => "its last lines say why",
    }
}

fn bytes(count: u64) -> String {
    let mib = count as f64 / (1024.0 * 1024.0);
    if mib >= 1024.0 {
        format!("{:.1} GiB", mib / 1024.0)
    } else {
        format!("{mib:.0} MiB")
    }
}

/// The variables that hold numeric libraries to `threads` threads, for the
/// environment of the warm parent: libraries read them when they are loaded.
pub fn thread_env(threads: u32) -> Vec<(String, String)> {
    [
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ]
    .map(|name| (name.to_owned(), threads.to_string()))
    .to_vec()
}

/// Sees, before anything is started, whether a script is there and readable.
///
/// # Errors
/// The [`Failure`] to report when it is not.
pub fn check_script(script: &Path) -> Result<(), Failure> {
    let opened = File::open(script).and_then(|file| file.metadata());
    let shown = script.display();
    let (message, hint) = match opened {
        Ok(found) if found.is_file() => return Ok(()),
        Ok(_) => (
            format!("the training script `{shown}` is not a file"),
            "name the Python file itself".to_owned(),
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (
            format!("the training script `{shown}` does not exist"),
            "paths are taken relative to the folder where the job is started".to_owned(),
        ),
        Err(error) => (
            format!("the training script `{shown}` cannot be read: {error}"),
            "see its permissions and those of the folders above it".to_owned(),
        ),
    };
    Err(Failure::new(FailureCode::ScriptMissing, Phase::Start, message).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(end: End, sent_signal: Option<i32>, oom: Oom) -> ExitReport {
        ExitReport {
            end,
            sent_signal,
            oom,
            max_rss: 3 << 29,
            cpu: Duration::ZERO,
            log_tail: vec![OutputLine {
                stream: Stream::Stderr,
                text: "last words".into(),
            }],
        }
    }

    #[test]
    fn every_end_has_its_sentence() {
        let evidence = || "the kernel's log says so".to_owned();
        let cases = [
            (
                report(End::Code(3), None, Oom::No),
                FailureCode::Exited,
                "exited with code 3",
            ),
            (
                report(End::Code(0), None, Oom::No),
                FailureCode::Exited,
                "before its work was done",
            ),
            (
                report(End::Signal(11), None, Oom::No),
                FailureCode::Signaled,
                "was ended by SIGSEGV (a segmentation fault)",
            ),
            (
                report(End::Signal(15), Some(15), Oom::No),
                FailureCode::Signaled,
                "was stopped with SIGTERM",
            ),
            (
                report(
                    End::Signal(9),
                    None,
                    Oom::Certain {
                        evidence: evidence(),
                    },
                ),
                FailureCode::OutOfMemory,
                "it held 1.5 GiB at most",
            ),
            (
                report(
                    End::Signal(9),
                    None,
                    Oom::Likely {
                        evidence: evidence(),
                    },
                ),
                FailureCode::OutOfMemory,
                "most likely for want of memory",
            ),
            (
                report(
                    End::Code(1),
                    None,
                    Oom::Likely {
                        evidence: evidence(),
                    },
                ),
                FailureCode::Exited,
                "exited with code 1, after the kernel's log says so",
            ),
            (
                report(End::Lost, None, Oom::No),
                FailureCode::Internal,
                "was lost",
            ),
        ];
        for (report, code, words) in cases {
            let failure = report.failure(Phase::Train);
            assert_eq!(failure.code, code, "{failure}");
            assert!(failure.message.contains(words), "{failure}");
            assert_eq!(failure.log_tail, ["last words"]);
        }
    }

    #[test]
    fn a_script_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("client.py");
        let failure = check_script(&script).unwrap_err();
        assert_eq!(failure.code, FailureCode::ScriptMissing);
        assert!(
            failure.message.ends_with("client.py` does not exist"),
            "{failure}"
        );
        assert!(
            check_script(folder.path())
                .unwrap_err()
                .message
                .contains("is not a file")
        );
        std::fs::write(&script, "").unwrap();
        assert!(check_script(&script).is_ok());
    }
}
