//! The agent's side: a supervisor process and the trainers it watches.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as BlockingStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use firesteel_base::{Durations, Failure, FailureCode, Hint, Phase};
use firesteel_wire::frame;
use firesteel_wire::supervise::{self as say, Notice, Order, notice, order};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, watch};

use crate::trainer::{End, ExitReport, Oom, OutputLine, Stream, TrainerEvent, TrainerSpec};

/// Orders on their way to the supervisor.
const ORDERS: usize = 256;
/// Batches of output lines that wait for a trainer's reader, each at most what
/// one read of a pipe gave. Beyond them lines are dropped and counted; the last
/// lines are in the exit report in any case.
const OUTPUT_BATCHES: usize = 64;

/// Why a supervisor or a trainer could not be reached or started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The supervisor's binary could not be started.
    #[error("the supervisor `{}` could not be started", binary.display())]
    Start {
        /// The binary.
        binary: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It was started, but said nothing that is understood.
    #[error("`{}` was started but does not work as a supervisor: {reason}", binary.display())]
    Handshake {
        /// The binary.
        binary: PathBuf,
        /// What it did instead.
        reason: String,
    },
    /// It has ended.
    #[error("the supervisor has ended")]
    Gone,
    /// What is to be started cannot be written down.
    #[error("{what} is not valid UTF-8: {}", path.display())]
    NotText {
        /// Which part of the spec.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
}

impl Hint for LaunchError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Start { .. } | Self::Handshake { .. } => Some(
                "reinstall firesteel: the program and the library have to be of one version".into(),
            ),
            Self::Gone => Some("something outside of Firesteel ended it; run the job again".into()),
            Self::NotText { .. } => Some("rename the folder or file".into()),
        }
    }
}

/// How a supervisor is set up.
#[derive(Debug, Clone)]
pub struct SupervisorConfig {
    /// The `firesteel` binary.
    pub binary: PathBuf,
    /// The interpreter of the warm parent; `None` when every trainer is external.
    pub python: Option<PathBuf>,
    /// Modules that the warm parent imports ahead.
    pub preload: Vec<String>,
    /// Variables added to the environment of the warm parent (see
    /// [`crate::thread_env`]).
    pub env: BTreeMap<String, String>,
    /// Whether a process whose script ended well runs the next one, too: many
    /// times faster for short tasks, but scripts share what libraries keep.
    pub reuse: bool,
    /// True: everything ends when the agent does. False: trainers that run come
    /// to their end first.
    pub die_with_agent: bool,
    /// Between asking processes to end and ending them.
    pub stop_grace: Duration,
}

/// What a supervisor reports beside its trainers' events.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SupervisorNotice {
    /// The warm parent has imported its modules.
    WarmReady {
        /// Its process id.
        pid: u32,
        /// The interpreter's version.
        python: String,
        /// Modules that could not be imported, with the reason.
        failed: BTreeMap<String, String>,
        /// How long the imports took.
        import: Duration,
    },
    /// The warm parent ended unasked; it is started again when needed.
    WarmLost {
        /// How it ended.
        message: String,
    },
    /// The warm parent wrote lines.
    WarmOutput(Vec<OutputLine>),
}

/// A running supervisor process. Clones are the same supervisor. When the last
/// of them and of its trainers' handles is gone, it ends every trainer.
#[derive(Clone, Debug)]
pub struct Supervisor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    orders: mpsc::Sender<order::Body>,
    switchboard: Arc<Switchboard>,
    last: AtomicU64,
    gone: watch::Receiver<bool>,
    stop_grace: Duration,
    pid: u32,
}

/// Where each trainer's events go.
#[derive(Debug, Default)]
struct Switchboard {
    lines: Mutex<HashMap<u64, Line>>,
    /// Trainers whose handle was dropped while they ran.
    abandoned: Mutex<Vec<u64>>,
    dropped: Notify,
}

#[derive(Debug)]
struct Line {
    events: mpsc::Sender<TrainerEvent>,
    // Reserved when the trainer is ordered, so that they never wait for a slow reader.
    started: Option<mpsc::OwnedPermit<TrainerEvent>>,
    end: mpsc::OwnedPermit<TrainerEvent>,
    unseen: usize,
}

impl Supervisor {
    /// Starts the supervisor process and, if there is an interpreter, the warm
    /// parent, and waits until the supervisor answers (not for the warm parent).
    ///
    /// # Errors
    /// [`LaunchError`].
    pub async fn start(
        config: SupervisorConfig,
        notices: impl Fn(SupervisorNotice) + Send + Sync + 'static,
    ) -> Result<Self, LaunchError> {
        let binary = config.binary.clone();
        let failed = |source| LaunchError::Start {
            binary: binary.clone(),
            source,
        };
        let (ours, theirs) = BlockingStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let child = start_process(&config.binary, theirs).map_err(failed)?;
        let pid = child.id();
        let (mut reading, writing) = UnixStream::from_std(ours).map_err(failed)?.into_split();

        let switchboard = Arc::new(Switchboard::default());
        let (orders, queue) = mpsc::channel(ORDERS);
        orders
            .try_send(order::Body::Configure(configure(&config)?))
            .map_err(|_| LaunchError::Gone)?;
        tokio::spawn(write(writing, queue, switchboard.clone()));

        let mut buffer = BytesMut::new();
        if let Err(reason) = handshake(&mut reading, &mut buffer).await {
            drop((orders, reading));
            tokio::spawn(bury(child));
            return Err(LaunchError::Handshake { binary, reason });
        }

        let (ended, gone) = watch::channel(false);
        let lines = switchboard.clone();
        let listening = Listening {
            switchboard: switchboard.clone(),
            notices: Box::new(notices),
        };
        tokio::spawn(async move {
            listening.run(reading, buffer).await;
            bury(child).await;
            ended.send_replace(true);
            // A trainer that was ordered between the two has no end yet; one that
            // is ordered from here on is refused.
            lines.lost();
        });
        Ok(Self(Arc::new(Inner {
            orders,
            switchboard,
            last: AtomicU64::new(0),
            gone,
            stop_grace: config.stop_grace,
            pid,
        })))
    }

    /// The supervisor's process id.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Has a trainer started. That it could not be is an event of its handle.
    ///
    /// # Errors
    /// [`LaunchError::Gone`] or [`LaunchError::NotText`].
    pub async fn spawn(&self, spec: TrainerSpec) -> Result<TrainerHandle, LaunchError> {
        let id = self.0.last.fetch_add(1, Ordering::Relaxed) + 1;
        let order = order::Body::Spawn(order_for(id, spec)?);
        let (events, received) = mpsc::channel(OUTPUT_BATCHES + 2);
        let reserve = || {
            events
                .clone()
                .try_reserve_owned()
                .map_err(|_| LaunchError::Gone)
        };
        let line = Line {
            started: Some(reserve()?),
            end: reserve()?,
            events: events.clone(),
            unseen: 0,
        };
        self.0.switchboard.lines().insert(id, line);
        // From here on the handle cleans up, whatever becomes of this call.
        let handle = TrainerHandle {
            id,
            events: received,
            supervisor: self.clone(),
            pid: None,
            over: false,
        };
        if *self.0.gone.borrow() || self.0.orders.send(order).await.is_err() {
            return Err(LaunchError::Gone);
        }
        Ok(handle)
    }

    /// Ends every trainer, then the supervisor, and waits until it is gone.
    pub async fn shutdown(&self, grace: Duration) {
        let order = order::Body::Shutdown(say::Shutdown {
            grace_ms: millis(grace),
        });
        // When it cannot be told, it is gone already.
        let _ = self.0.orders.send(order).await;
        self.closed().await;
    }

    /// Waits until the supervisor process is gone, for whatever reason.
    pub async fn closed(&self) {
        let mut gone = self.0.gone.clone();
        // An error means that its sender is gone: as good as true.
        let _ = gone.wait_for(|gone| *gone).await;
    }
}

/// A trainer that was ordered. Dropping the handle before the last event ends
/// the trainer.
#[derive(Debug)]
pub struct TrainerHandle {
    id: u64,
    events: mpsc::Receiver<TrainerEvent>,
    supervisor: Supervisor,
    pid: Option<u32>,
    over: bool,
}

impl TrainerHandle {
    /// The next event; `None` after the last. May be cancelled.
    pub async fn event(&mut self) -> Option<TrainerEvent> {
        if self.over {
            return None;
        }
        let event = self.events.recv().await;
        match &event {
            Some(TrainerEvent::Started { pid }) => self.pid = Some(*pid),
            Some(TrainerEvent::Output(_)) => {}
            Some(TrainerEvent::Exited(_) | TrainerEvent::SpawnFailed(_)) | None => self.over = true,
        }
        event
    }

    /// Its process id, once `Started` has been seen.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Asks it to end (SIGTERM) and ends it (SIGKILL) after `grace`, with all its
    /// descendants. What became of it is an event.
    pub async fn stop(&self, grace: Duration) {
        let order = order::Body::Stop(say::Stop {
            id: self.id,
            grace_ms: millis(grace),
        });
        // When the supervisor is gone, so is the trainer.
        let _ = self.supervisor.0.orders.send(order).await;
    }

    /// As [`TrainerHandle::stop`], with the grace of the configuration.
    pub async fn stop_gently(&self) {
        self.stop(self.supervisor.0.stop_grace).await;
    }

    /// Ends it at once, with all its descendants.
    pub async fn kill(&self) {
        self.stop(Duration::ZERO).await;
    }
}

impl Drop for TrainerHandle {
    fn drop(&mut self) {
        let switchboard = &self.supervisor.0.switchboard;
        if switchboard.lines().remove(&self.id).is_some() {
            switchboard.abandoned().push(self.id);
            switchboard.dropped.notify_one();
        }
    }
}

impl Switchboard {
    fn lines(&self) -> MutexGuard<'_, HashMap<u64, Line>> {
        // Insertions and removals only: whole even after a panic.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn abandoned(&self) -> MutexGuard<'_, Vec<u64>> {
        self.abandoned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn started(&self, id: u64, pid: u32) {
        if let Some(line) = self.lines().get_mut(&id)
            && let Some(permit) = line.started.take()
        {
            permit.send(TrainerEvent::Started { pid });
        }
    }

    fn output(&self, id: u64, lines: Vec<OutputLine>) {
        if let Some(line) = self.lines().get_mut(&id) {
            line.output(lines);
        }
    }

    fn end(&self, id: u64, event: TrainerEvent) {
        if let Some(mut line) = self.lines().remove(&id) {
            line.output(Vec::new());
            line.end.send(event);
        }
    }

    /// Tells every trainer's reader that the supervisor is gone.
    fn lost(&self) {
        let lines = std::mem::take(&mut *self.lines());
        for line in lines.into_values() {
            line.end.send(TrainerEvent::Exited(ExitReport {
                end: End::Lost,
                sent_signal: None,
                oom: Oom::No,
                max_rss: 0,
                cpu: Duration::ZERO,
                log_tail: Vec::new(),
            }));
        }
    }
}

impl Line {
    fn output(&mut self, mut lines: Vec<OutputLine>) {
        let count = lines.len();
        if self.unseen > 0 {
            let text = format!("({} lines not kept: they came too fast)", self.unseen);
            lines.insert(
                0,
                OutputLine {
                    stream: Stream::Stderr,
                    text,
                },
            );
        }
        if lines.is_empty() {
            return;
        }
        match self.events.try_send(TrainerEvent::Output(lines)) {
            Ok(()) => self.unseen = 0,
            Err(_) => self.unseen += count,
        }
    }
}

/// Starts the supervisor with its end of the socket as standard input.
fn start_process(binary: &Path, socket: BlockingStream) -> io::Result<Child> {
    let mut command = Command::new(binary);
    command
        .arg("supervise")
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .stdout(Stdio::null());
    // SAFETY: `setsid` is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| {
            // Out of the terminal's foreground group: a Ctrl-C is for the agent,
            // which then tells the supervisor in its own words.
            rustix::process::setsid()?;
            Ok(())
        });
    }
    command.spawn()
}

/// Waits for the process, so that it leaves no zombie.
async fn bury(mut child: Child) {
    let pid = child.id();
    // It closed its socket last of all, so this is a matter of milliseconds. An
    // error means that someone else in this process has reaped it.
    let waited = tokio::task::spawn_blocking(move || child.wait());
    if tokio::time::timeout(Durations::default().drain, waited)
        .await
        .is_err()
    {
        // It closed its socket but does not end: nothing good can come of it.
        if let Some(pid) = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Waits for the supervisor's first word, and sees whether it is understood.
async fn handshake(socket: &mut OwnedReadHalf, buffer: &mut BytesMut) -> Result<(), String> {
    let first = tokio::time::timeout(Durations::default().connect, read(socket, buffer));
    match first.await {
        Ok(Ok(Some(notice::Body::Ready(ready)))) if ready.protocol == say::PROTOCOL => Ok(()),
        Ok(Ok(Some(notice::Body::Ready(ready)))) => Err(format!(
            "it is version {} and speaks protocol {}, not {}",
            ready.version,
            ready.protocol,
            say::PROTOCOL
        )),
        Ok(Ok(Some(_))) => Err("its first message is not the expected one".into()),
        Ok(Ok(None)) => Err("it ended at once".into()),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err("it does not answer".into()),
    }
}

/// Writes orders until nobody can give any, then closes the socket: the
/// supervisor takes that as the agent's end.
async fn write(
    mut socket: OwnedWriteHalf,
    mut orders: mpsc::Receiver<order::Body>,
    switchboard: Arc<Switchboard>,
) {
    loop {
        let order = tokio::select! {
            order = orders.recv() => match order {
                Some(order) => vec![order],
                None => break,
            },
            () = switchboard.dropped.notified() => std::mem::take(&mut *switchboard.abandoned())
                .into_iter()
                .map(|id| order::Body::Stop(say::Stop { id, grace_ms: 0 }))
                .collect(),
        };
        for body in order {
            let id = match &body {
                order::Body::Spawn(spawn) => Some(spawn.id),
                _ => None,
            };
            match (frame::encode(&Order { body: Some(body) }), id) {
                (Ok(bytes), _) => {
                    if socket.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                (Err(error), Some(id)) => switchboard.end(id, TrainerEvent::SpawnFailed(
                    Failure::new(
                        FailureCode::SpawnFailed,
                        Phase::Start,
                        format!("the trainer's arguments and environment do not fit a message: {error}"),
                    )
                    .with_hint("put them into a file and pass its name"),
                )),
                (Err(_), None) => {}
            }
        }
    }
    let _ = socket.shutdown().await;
}

/// The next notice of a kind that is known; `None` at the end of the stream.
async fn read(
    socket: &mut OwnedReadHalf,
    buffer: &mut BytesMut,
) -> Result<Option<notice::Body>, String> {
    loop {
        let decoded =
            frame::decode::<Notice>(buffer, "Notice").map_err(|error| error.to_string())?;
        match decoded {
            Some(Notice { body: Some(body) }) => return Ok(Some(body)),
            Some(Notice { body: None }) => continue,
            None => {}
        }
        match socket.read_buf(buffer).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

struct Listening {
    switchboard: Arc<Switchboard>,
    notices: Box<dyn Fn(SupervisorNotice) + Send + Sync>,
}

impl Listening {
    /// Passes notices on until the supervisor is gone.
    async fn run(self, mut socket: OwnedReadHalf, mut buffer: BytesMut) {
        // Whatever ends the reading, the supervisor is of no use after it.
        while let Ok(Some(notice)) = read(&mut socket, &mut buffer).await {
            self.pass_on(notice);
        }
        self.switchboard.lost();
    }

    fn pass_on(&self, notice: notice::Body) {
        match notice {
            notice::Body::Ready(_) => {}
            notice::Body::Started(started) => self.switchboard.started(started.id, started.pid),
            notice::Body::Output(output) if output.id == 0 => {
                (self.notices)(SupervisorNotice::WarmOutput(lines(output.lines)));
            }
            notice::Body::Output(output) => self.switchboard.output(output.id, lines(output.lines)),
            notice::Body::Exited(exited) => {
                self.switchboard
                    .end(exited.id, TrainerEvent::Exited(report(exited)));
            }
            notice::Body::SpawnFailed(failed) => {
                self.switchboard
                    .end(failed.id, TrainerEvent::SpawnFailed(failure(failed)));
            }
            notice::Body::WarmReady(ready) => (self.notices)(SupervisorNotice::WarmReady {
                pid: ready.pid,
                python: ready.python,
                failed: ready.failed,
                import: Duration::from_millis(ready.import_ms),
            }),
            notice::Body::WarmLost(lost) => {
                (self.notices)(SupervisorNotice::WarmLost {
                    message: lost.message,
                });
            }
        }
    }
}

fn configure(config: &SupervisorConfig) -> Result<say::Configure, LaunchError> {
    let warm = match &config.python {
        None => None,
        Some(python) => Some(say::WarmParent {
            python: text("the interpreter's path", python)?,
            preload: config.preload.clone(),
            env: config.env.clone(),
            reuse: config.reuse,
        }),
    };
    Ok(say::Configure {
        protocol: say::PROTOCOL,
        die_with_agent: config.die_with_agent,
        stop_grace_ms: millis(config.stop_grace),
        warm,
    })
}

fn order_for(id: u64, spec: TrainerSpec) -> Result<say::Spawn, LaunchError> {
    let (cwd, env, how) = match spec {
        TrainerSpec::Warm(warm) => {
            let script = text("the script's path", &warm.script)?;
            let how = say::WarmSpawn {
                script,
                args: warm.args,
                seed: warm.seed,
            };
            (warm.cwd, warm.env, say::spawn::How::Warm(how))
        }
        TrainerSpec::External(external) => {
            let terminal = match &external.terminal {
                Some(terminal) => text("the terminal's path", terminal)?,
                None => String::new(),
            };
            let how = say::ExternalSpawn {
                argv: external.argv,
                terminal,
            };
            (external.cwd, external.env, say::spawn::How::External(how))
        }
    };
    Ok(say::Spawn {
        id,
        cwd: text("the working directory", &cwd)?,
        env,
        how: Some(how),
    })
}

fn text(what: &'static str, path: &Path) -> Result<String, LaunchError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| LaunchError::NotText {
            what,
            path: path.to_owned(),
        })
}

fn lines(lines: Vec<say::Line>) -> Vec<OutputLine> {
    lines
        .into_iter()
        .map(|line| OutputLine {
            stream: if line.stderr {
                Stream::Stderr
            } else {
                Stream::Stdout
            },
            text: line.text,
        })
        .collect()
}

fn report(exited: say::Exited) -> ExitReport {
    let end = match (exited.code, exited.signal) {
        (Some(code), _) => End::Code(code),
        (None, Some(signal)) => End::Signal(signal),
        (None, None) => End::Lost,
    };
    let evidence = exited.oom_evidence;
    ExitReport {
        end,
        sent_signal: (exited.sent_signal != 0).then_some(exited.sent_signal),
        oom: match exited.oom {
            0 => Oom::No,
            1 => Oom::Likely { evidence },
            _ => Oom::Certain { evidence },
        },
        max_rss: exited.max_rss,
        cpu: Duration::from_micros(exited.cpu_us),
        log_tail: lines(exited.tail),
    }
}

fn failure(failed: say::SpawnFailed) -> Failure {
    let code = FailureCode::parse(&failed.code).unwrap_or(FailureCode::SpawnFailed);
    let mut failure = Failure::new(code, Phase::Start, failed.message).with_hint(failed.hint);
    failure.log_tail = failed.tail.into_iter().map(|line| line.text).collect();
    failure
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
