//! The trainers of a supervisor, and the warm parent some of them come from.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use firesteel_base::FailureCode;
use firesteel_wire::supervise::{
    self as say, ExternalSpawn, Line, Spawn, WarmParent, WarmReport, WarmRequest, WarmSpawn,
    notice, spawn,
};
use rustix::event::PollFlags;

use super::oom::{Verdict, Watch};
use super::pipe::Output;
use super::process::{self, Ended};
use super::{Source, Warm, wanted};
use crate::trainer::signal_name;

/// The variable whose value is a trainer's own: a process that has it is the
/// trainer's descendant, whatever session it fled into.
const MARK: &str = "FIRESTEEL_TOKEN";

/// What a Python interpreter needs to tell everything it has to say. It holds back
/// what it writes to a pipe otherwise, and with it the last words of a trainer
/// that crashes; and a crash in native code says nothing at all.
const PYTHON_DEFAULTS: [(&str, &str); 2] = [("PYTHONUNBUFFERED", "1"), ("PYTHONFAULTHANDLER", "1")];

pub(super) struct Trainers {
    stop_grace: Duration,
    running: BTreeMap<u64, Trainer>,
    pids: HashMap<u32, u64>,
    /// Processes that outlived the trainer they belong to.
    stragglers: Vec<Straggler>,
    warm: Option<Warm>,
    warm_config: Option<WarmParent>,
    warm_ended: Option<Ended>,
    lifeline: OwnedFd,
    _held: OwnedFd,
    oom: Watch,
    notices: Vec<notice::Body>,
    /// Trainers that the warm parent says have ended.
    ended: Vec<Ended>,
}

struct Trainer {
    state: State,
    mark: Option<String>,
    output: Output,
    sent_signal: i32,
    /// When it is ended after it was asked to.
    kill_at: Option<Instant>,
}

enum State {
    /// The warm parent was asked to fork it.
    Asked {
        request: Box<WarmRequest>,
        again: bool,
    },
    Running {
        pid: u32,
    },
}

struct Straggler {
    group: u32,
    pids: Vec<u32>,
    kill_at: Instant,
}

/// Why a trainer could not be started.
struct Refusal {
    code: FailureCode,
    message: String,
    hint: String,
}

impl Refusal {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: FailureCode::SpawnFailed,
            message: message.into(),
            hint: hint.into(),
        }
    }
}

impl Trainers {
    pub(super) fn new(lifeline: OwnedFd, held: OwnedFd) -> Self {
        Self {
            stop_grace: Duration::ZERO,
            running: BTreeMap::new(),
            pids: HashMap::new(),
            stragglers: Vec::new(),
            warm: None,
            warm_config: None,
            warm_ended: None,
            lifeline,
            _held: held,
            oom: Watch::start(),
            notices: Vec::new(),
            ended: Vec::new(),
        }
    }

    pub(super) fn configure(&mut self, configure: say::Configure) {
        self.stop_grace = Duration::from_millis(configure.stop_grace_ms);
        self.warm_config = configure.warm;
        // Ahead of the first trainer. If it fails, the first trainer says why.
        let _ = self.start_warm();
    }

    pub(super) fn stop_grace(&self) -> Duration {
        self.stop_grace
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    pub(super) fn notify(&mut self, notice: notice::Body) {
        self.notices.push(notice);
    }

    pub(super) fn take_notices(&mut self) -> Vec<notice::Body> {
        std::mem::take(&mut self.notices)
    }

    /// Adds what is to be polled.
    pub(super) fn sources<'a>(
        &'a self,
        congested: bool,
        sources: &mut Vec<(Source, BorrowedFd<'a>, PollFlags)>,
    ) {
        if let Some(warm) = &self.warm {
            sources.push((Source::Warm, warm.socket.as_fd(), wanted(&warm.outgoing)));
        }
        if congested {
            return;
        }
        let pipes = |output: &'a Output| {
            [(false, &output.out), (true, &output.err)]
                .into_iter()
                .filter_map(|(stderr, pipe)| Some((stderr, pipe.as_ref()?.descriptor.as_fd())))
        };
        for (stderr, pipe) in self.warm.iter().flat_map(|warm| pipes(&warm.output)) {
            sources.push((Source::WarmOutput { stderr }, pipe, PollFlags::IN));
        }
        for (id, trainer) in &self.running {
            for (stderr, pipe) in pipes(&trainer.output) {
                sources.push((Source::Trainer { id: *id, stderr }, pipe, PollFlags::IN));
            }
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let trainers = self.running.values().filter_map(|trainer| trainer.kill_at);
        let stragglers = self.stragglers.iter().map(|straggler| straggler.kill_at);
        trainers.chain(stragglers).min()
    }

    // Starting.

    pub(super) fn spawn(&mut self, spawn: Spawn) {
        let id = spawn.id;
        let mark = spawn.env.get(MARK).cloned();
        let started = match spawn.how.clone() {
            Some(spawn::How::Warm(warm)) => self.spawn_warm(&spawn, warm),
            Some(spawn::How::External(external)) => self.spawn_external(&spawn, &external),
            None => Err(Refusal::new(
                "this supervisor does not know the way the trainer is to be started",
                "install one version of firesteel for the agent and its supervisor",
            )),
        };
        match started {
            Ok((state, output)) => {
                if let State::Running { pid } = state {
                    self.pids.insert(pid, id);
                    self.notify(notice::Body::Started(say::Started { id, pid }));
                }
                let trainer = Trainer {
                    state,
                    mark,
                    output,
                    sent_signal: 0,
                    kill_at: None,
                };
                self.running.insert(id, trainer);
            }
            Err(refusal) => self.spawn_failed(id, refusal),
        }
    }

    /// Answers an order that came too late.
    pub(super) fn refuse(&mut self, id: u64) {
        let mut refusal = Refusal::new("the job is ending", "");
        refusal.code = FailureCode::Aborted;
        self.spawn_failed(id, refusal);
    }

    fn spawn_failed(&mut self, id: u64, refusal: Refusal) {
        let tail = self
            .warm
            .as_ref()
            .map(|warm| warm.output.ring.tail())
            .unwrap_or_default();
        self.notify(notice::Body::SpawnFailed(say::SpawnFailed {
            id,
            code: refusal.code.as_str().to_owned(),
            message: refusal.message,
            hint: refusal.hint,
            tail,
        }));
    }

    fn spawn_external(
        &mut self,
        spawn: &Spawn,
        external: &ExternalSpawn,
    ) -> Result<(State, Output), Refusal> {
        let Some((program, args)) = external.argv.split_first() else {
            return Err(Refusal::new(
                "the trainer's command is empty",
                "name a command",
            ));
        };
        check_cwd(&spawn.cwd)?;
        let mut command = Command::new(program);
        command.args(args).current_dir(&spawn.cwd).envs(&spawn.env);
        for (name, value) in PYTHON_DEFAULTS {
            if !spawn.env.contains_key(name) && std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        let output = if external.terminal.is_empty() {
            let (output, stdout, stderr) = Output::pipes().map_err(no_pipes)?;
            command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
            output
        } else {
            let terminal = Terminal::open(&external.terminal)?;
            command
                .stdin(terminal.0)
                .stdout(terminal.1)
                .stderr(terminal.2);
            Output::default()
        };
        process::detach(&mut command);
        match command.spawn() {
            Ok(child) => Ok((State::Running { pid: child.id() }, output)),
            Err(error) => Err(not_started(program, &error)),
        }
    }

    fn spawn_warm(&mut self, spawn: &Spawn, warm: WarmSpawn) -> Result<(State, Output), Refusal> {
        check_cwd(&spawn.cwd)?;
        let request = WarmRequest {
            id: spawn.id,
            script: warm.script,
            args: warm.args,
            cwd: spawn.cwd.clone(),
            env: spawn.env.clone(),
            seed: warm.seed,
        };
        let output = self.ask_warm(&request)?;
        Ok((
            State::Asked {
                request: Box::new(request),
                again: false,
            },
            output,
        ))
    }

    fn ask_warm(&mut self, request: &WarmRequest) -> Result<Output, Refusal> {
        self.start_warm()?;
        let (output, stdout, stderr) = Output::pipes().map_err(no_pipes)?;
        let warm = self.warm.as_mut().ok_or_else(|| {
            Refusal::new(
                "this supervisor has no interpreter to fork trainers from",
                "start the trainer as an external process",
            )
        })?;
        warm.ask(request, stdout, stderr).map_err(|reason| {
            Refusal::new(
                format!("the trainer's arguments and environment do not fit a message: {reason}"),
                "put them into a file and pass its name",
            )
        })?;
        Ok(output)
    }

    /// Starts the warm parent if there should be one and is none.
    fn start_warm(&mut self) -> Result<(), Refusal> {
        if let (None, Some(config)) = (&self.warm, &self.warm_config) {
            let warm = Warm::start(config, self.lifeline.as_fd())
                .map_err(|error| not_started(&config.python, &error))?;
            self.warm = Some(warm);
        }
        Ok(())
    }

    // Listening.

    pub(super) fn wrote(&mut self, id: u64, stderr: bool, scratch: &mut [u8]) {
        if let Some(trainer) = self.running.get_mut(&id) {
            let lines = trainer.output.read(stderr, scratch);
            self.output(id, lines);
        }
    }

    pub(super) fn warm_wrote(&mut self, stderr: bool, scratch: &mut [u8]) {
        if let Some(warm) = &mut self.warm {
            let lines = warm.output.read(stderr, scratch);
            self.output(0, lines);
        }
    }

    fn output(&mut self, id: u64, lines: Vec<Line>) {
        if !lines.is_empty() {
            self.notify(notice::Body::Output(say::Output { id, lines }));
        }
    }

    pub(super) fn warm_spoke(&mut self, flags: PollFlags) {
        let Some(warm) = &mut self.warm else {
            return;
        };
        if flags.contains(PollFlags::OUT) {
            // If it is gone, that is noticed when it is reaped.
            let _ = warm.outgoing.flush(&warm.socket);
        }
        match warm.reports() {
            Ok(reports) => {
                for report in reports {
                    self.heard(report);
                }
            }
            // Something wrote into its socket that is not it. What it would
            // report from here on is lost, so it starts anew.
            Err(_) => process::signal(warm.pid, libc::SIGKILL),
        }
        if flags.intersects(PollFlags::HUP | PollFlags::ERR)
            && let Some(warm) = &self.warm
        {
            // It closed its socket, so it ends; a moment sooner is better than a
            // loop that is woken again and again.
            process::signal(warm.pid, libc::SIGKILL);
        }
    }

    fn heard(&mut self, report: WarmReport) {
        match report {
            WarmReport::Ready {
                protocol,
                python,
                failed,
                import_ms,
            } => {
                let Some(warm) = &mut self.warm else {
                    return;
                };
                if protocol != say::WARM_PROTOCOL {
                    // Never ready: whoever waits for it is told its last words.
                    return process::signal(warm.pid, libc::SIGKILL);
                }
                warm.ready = true;
                let pid = warm.pid;
                self.notify(notice::Body::WarmReady(say::WarmReady {
                    pid,
                    python,
                    failed,
                    import_ms,
                }));
            }
            WarmReport::Started { id, pid } => self.forked(id, pid),
            WarmReport::Failed {
                id,
                code,
                message,
                hint,
            } => {
                if self.running.remove(&id).is_some() {
                    let code = FailureCode::parse(&code).unwrap_or(FailureCode::SpawnFailed);
                    self.spawn_failed(
                        id,
                        Refusal {
                            code,
                            message,
                            hint,
                        },
                    );
                }
            }
            WarmReport::Exited {
                pid,
                status,
                max_rss,
                cpu_us,
                kept,
            } => {
                let ended = Ended {
                    pid,
                    status,
                    max_rss,
                    cpu_us,
                    kept,
                };
                if kept {
                    // Now: the next report may say what the process does next.
                    self.trainer_ended(ended, &mut [0; 16 * 1024]);
                } else {
                    self.ended.push(ended);
                }
            }
        }
    }

    fn forked(&mut self, id: u64, pid: u32) {
        let Some(trainer) = self.running.get_mut(&id) else {
            // Forgotten meanwhile; nobody would ever stop it.
            return signal_tree(pid, libc::SIGKILL);
        };
        trainer.state = State::Running { pid };
        let stopped = trainer.sent_signal;
        self.pids.insert(pid, id);
        self.notify(notice::Body::Started(say::Started { id, pid }));
        if stopped != 0 {
            signal_tree(pid, stopped);
        }
    }

    // Ending.

    pub(super) fn stop(&mut self, id: u64, grace: Duration) {
        let Some(trainer) = self.running.get_mut(&id) else {
            return;
        };
        let signal = if grace.is_zero() {
            trainer.kill_at = None;
            libc::SIGKILL
        } else {
            let kill_at = Instant::now() + grace;
            trainer.kill_at = Some(
                trainer
                    .kill_at
                    .map_or(kill_at, |before| before.min(kill_at)),
            );
            libc::SIGTERM
        };
        trainer.send(signal);
    }

    pub(super) fn stop_all(&mut self, grace: Duration) {
        // Those that are not forked yet need not be.
        let asked: Vec<u64> = self
            .running
            .iter()
            .filter(|(_, trainer)| matches!(trainer.state, State::Asked { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in asked {
            self.running.remove(&id);
            self.refuse(id);
        }
        let running: Vec<u64> = self.running.keys().copied().collect();
        for id in running {
            self.stop(id, grace);
        }
    }

    /// Does what is due.
    pub(super) fn pass_time(&mut self, now: Instant) {
        for trainer in self.running.values_mut() {
            if trainer.kill_at.is_some_and(|at| at <= now) {
                trainer.kill_at = None;
                trainer.send(libc::SIGKILL);
            }
        }
        self.stragglers.retain(|straggler| {
            if straggler.kill_at > now {
                return true;
            }
            signal_tree(straggler.group, libc::SIGKILL);
            for pid in &straggler.pids {
                signal_tree(*pid, libc::SIGKILL);
            }
            false
        });
    }

    /// A child of this process has ended.
    pub(super) fn reaped(&mut self, ended: Ended, scratch: &mut [u8]) {
        if self.warm.as_ref().is_some_and(|warm| warm.pid == ended.pid) {
            self.warm_ended = Some(ended);
        } else {
            self.trainer_ended(ended, scratch);
        }
    }

    /// Sees to those who have ended.
    pub(super) fn bury(&mut self, scratch: &mut [u8]) {
        if let Some(ended) = self.warm_ended.take() {
            self.warm_died(ended, scratch);
        }
        for ended in std::mem::take(&mut self.ended) {
            self.trainer_ended(ended, scratch);
        }
    }

    fn trainer_ended(&mut self, ended: Ended, scratch: &mut [u8]) {
        let Some(id) = self.pids.remove(&ended.pid) else {
            return;
        };
        let Some(mut trainer) = self.running.remove(&id) else {
            return;
        };
        let last = trainer.output.drain(scratch);
        for lines in last.chunks(512) {
            self.output(id, lines.to_vec());
        }
        let verdict = self.verdict(&ended, trainer.sent_signal);
        let (oom, oom_evidence) = match verdict {
            Verdict::No => (0, String::new()),
            Verdict::Likely(evidence) => (1, evidence),
            Verdict::Certain(evidence) => (2, evidence),
        };
        self.notify(notice::Body::Exited(say::Exited {
            id,
            code: ended.code(),
            signal: ended.signal(),
            sent_signal: trainer.sent_signal,
            oom,
            oom_evidence,
            max_rss: ended.max_rss,
            cpu_us: ended.cpu_us,
            tail: trainer.output.ring.tail(),
        }));
        if !ended.kept {
            self.end_stragglers(ended.pid, &trainer);
        }
    }

    fn verdict(&mut self, ended: &Ended, sent_signal: i32) -> Verdict {
        let killed = ended.signal() == Some(libc::SIGKILL);
        if (killed && sent_signal == libc::SIGKILL) || ended.code() == Some(0) {
            return Verdict::No;
        }
        self.oom.judge(ended.pid, killed)
    }

    /// Ends what a trainer has left running.
    fn end_stragglers(&mut self, group: u32, trainer: &Trainer) {
        let pids: Vec<u32> = self
            .strangers()
            .into_iter()
            .filter(|pid| {
                process::stat(*pid).is_some_and(|stat| stat.session == group)
                    || (trainer.mark.is_some() && process::variable(*pid, MARK) == trainer.mark)
            })
            .collect();
        if pids.is_empty() && !process::group_lives(group) {
            return;
        }
        // Time to clean up, unless the trainer itself was not given any.
        let grace = match trainer.sent_signal {
            libc::SIGKILL => Duration::ZERO,
            _ => self.stop_grace,
        };
        let signal = if grace.is_zero() {
            libc::SIGKILL
        } else {
            libc::SIGTERM
        };
        signal_tree(group, signal);
        for pid in &pids {
            signal_tree(*pid, signal);
        }
        // After a SIGKILL, too: a process may have forked in that very moment.
        self.stragglers.push(Straggler {
            group,
            pids,
            kill_at: Instant::now() + grace,
        });
    }

    /// Children of this process that are neither trainers nor the warm parent:
    /// orphans it has adopted.
    fn strangers(&self) -> Vec<u32> {
        let known: HashSet<u32> = self
            .pids
            .keys()
            .copied()
            .chain(self.warm.as_ref().map(|warm| warm.pid))
            .collect();
        let mut found = process::children(std::process::id());
        found.retain(|pid| !known.contains(pid));
        found
    }

    // The warm parent.

    fn warm_died(&mut self, ended: Ended, scratch: &mut [u8]) {
        let Some(warm) = &mut self.warm else {
            return;
        };
        // What it reported before its end still counts.
        for report in warm.reports().unwrap_or_default() {
            self.heard(report);
        }
        for ended in std::mem::take(&mut self.ended) {
            self.trainer_ended(ended, scratch);
        }
        let Some(mut warm) = self.warm.take() else {
            return;
        };
        let last = warm.output.drain(scratch);
        for lines in last.chunks(512) {
            self.output(0, lines.to_vec());
        }
        // A fork that it had no time to report is no trainer of ours.
        for pid in self.strangers() {
            let unknown = process::stat(pid)
                .is_some_and(|stat| stat.state != 'Z' && !self.pids.contains_key(&stat.session));
            if unknown && process::is_fork_of_warm(pid) {
                process::signal(pid, libc::SIGKILL);
            }
        }
        let how = match (ended.code(), ended.signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was ended by {}", signal_name(signal)),
            (None, None) => "ended".to_owned(),
        };
        let when = if warm.ready {
            ""
        } else {
            " before it was ready"
        };
        let message = format!("the warm parent `{}` {how}{when}", warm.python);
        self.notify(notice::Body::WarmLost(say::WarmLost {
            message: message.clone(),
        }));
        self.ask_again(&warm, &message);
    }

    /// What the dead warm parent was asked for, the next one is asked for; once.
    fn ask_again(&mut self, dead: &Warm, message: &str) {
        let asked: Vec<u64> = self
            .running
            .iter()
            .filter(|(_, trainer)| matches!(trainer.state, State::Asked { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in asked {
            let Some(trainer) = self.running.remove(&id) else {
                continue;
            };
            let State::Asked { request, again } = trainer.state else {
                continue;
            };
            let hint = "see its last lines; `pip install firesteel` in that interpreter's \
                        environment, or start the trainer as an external process";
            let outcome = if again || !dead.ready {
                Err(Refusal::new(message, hint))
            } else {
                self.ask_warm(&request)
            };
            match outcome {
                Ok(output) => {
                    let state = State::Asked {
                        request,
                        again: true,
                    };
                    self.running.insert(
                        id,
                        Trainer {
                            state,
                            output,
                            ..trainer
                        },
                    );
                }
                Err(refusal) => self.notify(notice::Body::SpawnFailed(say::SpawnFailed {
                    id,
                    code: refusal.code.as_str().to_owned(),
                    message: refusal.message,
                    hint: refusal.hint,
                    tail: dead.output.ring.tail(),
                })),
            }
        }
    }

    pub(super) fn let_warm_parent_go(&mut self) {
        self.warm = None;
        self.warm_config = None;
    }
}

impl Trainer {
    /// Sends a signal to it and everything it has started, or notes it for the
    /// moment it runs.
    fn send(&mut self, signal: i32) {
        // SIGKILL is the stronger one, though not the greater number.
        if self.sent_signal != libc::SIGKILL {
            self.sent_signal = signal;
        }
        if let State::Running { pid } = self.state {
            signal_tree(pid, signal);
        }
    }
}

/// Signals a process group and the descendants of its leader outside of it.
fn signal_tree(leader: u32, signal: i32) {
    // Collected first: when the leader is gone, they are nobody's descendants.
    let outside: Vec<u32> = process::descendants(leader)
        .into_iter()
        .filter(|pid| process::stat(*pid).is_some_and(|stat| stat.group != leader))
        .collect();
    // Between its fork and its `setsid` a trainer leads no group yet, and is
    // reached by its own number only.
    if process::stat(leader).is_some_and(|stat| stat.group != leader) {
        process::signal(leader, signal);
    }
    process::signal_group(leader, signal);
    for pid in outside {
        process::signal(pid, signal);
    }
}

fn check_cwd(cwd: &str) -> Result<(), Refusal> {
    if Path::new(cwd).is_dir() {
        return Ok(());
    }
    Err(Refusal::new(
        format!("the trainer's working directory `{cwd}` does not exist"),
        "it is the folder where the job was started; do not remove it while the job runs",
    ))
}

fn no_pipes(error: io::Error) -> Refusal {
    Refusal::new(
        format!("no pipe for the trainer's output could be made: {error}"),
        "raise the limit of open files: `ulimit -n 65536`",
    )
}

fn not_started(program: &str, error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::NotFound => Refusal::new(
            format!("the command `{program}` was not found"),
            "give its full path, or add its folder to PATH",
        ),
        io::ErrorKind::PermissionDenied => Refusal::new(
            format!("the command `{program}` may not be executed"),
            format!("make it executable: `chmod +x {program}`"),
        ),
        io::ErrorKind::ArgumentListTooLong => Refusal::new(
            format!("the arguments of `{program}` are too long"),
            "put them into a file and pass its name",
        ),
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => Refusal::new(
            format!("`{program}` is not a program"),
            "start it through its interpreter: `python3 script.py`",
        ),
        _ => Refusal::new(
            format!("the command `{program}` could not be started: {error}"),
            "run the same command by hand",
        ),
    }
}

/// A terminal, three times.
struct Terminal(File, File, File);

impl Terminal {
    fn open(path: &str) -> Result<Self, Refusal> {
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NOCTTY)
                .open(path)
        };
        let three = || Ok(Self(open()?, open()?, open()?));
        three().map_err(|error: io::Error| {
            Refusal::new(
                format!("the terminal `{path}` could not be opened: {error}"),
                "start the job from a terminal to debug a trainer",
            )
        })
    }
}
