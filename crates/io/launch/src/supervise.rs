//! The supervisor process: one thread, one poll loop.

mod lines;
mod oom;
mod outgoing;
mod pipe;
mod process;
mod trainers;
mod warm;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use firesteel_base::Hint;
use firesteel_wire::frame;
use firesteel_wire::supervise::{self as say, Notice, Order, notice, order};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use outgoing::Outgoing;
use pipe::READ_BYTES;
use process::Signals;
use trainers::Trainers;
use warm::Warm;

/// Bytes on their way to the agent beyond which trainers' pipes are not read, so
/// that a trainer that writes too much waits, as it would for a slow terminal.
const UNREAD_BYTES: usize = 1024 * 1024;
/// How long trainers are given to end when the agent has vanished: there is
/// nobody left to wait for them.
const ORPHAN_GRACE: Duration = Duration::from_secs(1);
/// How long processes may take to disappear after SIGKILL, and last words to be read.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// Why a supervisor could not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuperviseError {
    /// It was not started by an agent.
    #[error("standard input is not an agent's socket")]
    NoAgent,
    /// The system refused something every supervisor needs.
    #[error("the supervisor could not be set up")]
    Setup(#[source] io::Error),
    /// The wait for events failed.
    #[error("the supervisor could not wait for events")]
    Wait(#[source] io::Error),
}

impl Hint for SuperviseError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoAgent => Some("`firesteel supervise` is started by Firesteel itself".into()),
            Self::Setup(_) | Self::Wait(_) => None,
        }
    }
}

/// Works as a supervisor until the agent at the other end of standard input has
/// no more need of it.
///
/// Takes over this process: its signals, its children, its standard input, and
/// every other descriptor but standard output and error, which are closed. Call
/// it first of all.
///
/// # Errors
/// [`SuperviseError`].
pub fn supervise() -> Result<(), SuperviseError> {
    process::close_inherited();
    let socket = take_standard_input()?;
    process::adopt_orphans();
    let signals = Signals::take_over().map_err(SuperviseError::Setup)?;
    let (lifeline, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| SuperviseError::Setup(error.into()))?;
    Supervisor {
        control: Some(Control {
            socket,
            incoming: BytesMut::new(),
            outgoing: Outgoing::default(),
        }),
        agent: agent_process(),
        signals,
        die_with_agent: true,
        trainers: Trainers::new(lifeline, held),
        ending: None,
        scratch: vec![0; READ_BYTES],
    }
    .run()
}

/// The socket that is standard input, which becomes the null device.
fn take_standard_input() -> Result<UnixStream, SuperviseError> {
    let stdin = io::stdin();
    let kind = rustix::fs::fstat(&stdin)
        .map_err(|_| SuperviseError::NoAgent)?
        .st_mode;
    if rustix::fs::FileType::from_raw_mode(kind) != rustix::fs::FileType::Socket {
        return Err(SuperviseError::NoAgent);
    }
    let moved = || -> io::Result<UnixStream> {
        let socket = rustix::io::fcntl_dupfd_cloexec(&stdin, 3)?;
        let null = std::fs::File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    moved().map_err(SuperviseError::Setup)
}

/// A descriptor that becomes readable when the agent's process ends, even if a
/// fork of it still holds the socket. Older kernels have none.
fn agent_process() -> Option<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        let agent = rustix::process::getppid()?;
        rustix::process::pidfd_open(agent, rustix::process::PidfdFlags::empty()).ok()
    }
    #[cfg(not(target_os = "linux"))]
    None
}

struct Supervisor {
    control: Option<Control>,
    agent: Option<OwnedFd>,
    signals: Signals,
    die_with_agent: bool,
    trainers: Trainers,
    /// When it has been told to end: until when it waits for its trainers.
    ending: Option<Instant>,
    scratch: Vec<u8>,
}

/// The agent's end of things.
struct Control {
    socket: UnixStream,
    incoming: BytesMut,
    outgoing: Outgoing,
}

/// Who woke the loop up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Agent,
    Control,
    Warm,
    WarmOutput { stderr: bool },
    Trainer { id: u64, stderr: bool },
}

impl Supervisor {
    fn run(mut self) -> Result<(), SuperviseError> {
        while !self.is_over() {
            for (source, flags) in self.wait()? {
                self.handle(source, flags);
            }
            self.bury();
            self.trainers.pass_time(Instant::now());
            self.send();
        }
        self.finish();
        Ok(())
    }

    fn is_over(&self) -> bool {
        let idle = self.trainers.is_empty();
        match self.ending {
            Some(until) => idle || Instant::now() >= until,
            None => idle && self.control.is_none(),
        }
    }

    /// Waits for an event or for the next moment at which something is due.
    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, SuperviseError> {
        let mut sources: Vec<(Source, BorrowedFd<'_>, PollFlags)> = vec![(
            Source::Signals,
            self.signals.descriptor().as_fd(),
            PollFlags::IN,
        )];
        if let Some(agent) = &self.agent {
            sources.push((Source::Agent, agent.as_fd(), PollFlags::IN));
        }
        let mut congested = false;
        if let Some(control) = &self.control {
            let wanted = wanted(&control.outgoing);
            sources.push((Source::Control, control.socket.as_fd(), wanted));
            congested = control.outgoing.len() > UNREAD_BYTES;
        }
        self.trainers.sources(congested, &mut sources);
        let mut polled: Vec<PollFd<'_>> = sources
            .iter()
            .map(|(_, descriptor, wanted)| PollFd::from_borrowed_fd(*descriptor, *wanted))
            .collect();
        let due = [self.trainers.next_due(), self.ending]
            .into_iter()
            .flatten()
            .min();
        let timeout = due.map(|due| {
            Timespec::try_from(due.saturating_duration_since(Instant::now())).unwrap_or(Timespec {
                tv_sec: 3600,
                tv_nsec: 0,
            })
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(SuperviseError::Wait(error.into())),
        }
        Ok(sources
            .iter()
            .zip(&polled)
            .map(|((source, _, _), polled)| (*source, polled.revents()))
            .filter(|(_, flags)| !flags.is_empty())
            .collect())
    }

    fn handle(&mut self, source: Source, flags: PollFlags) {
        match source {
            Source::Signals => {
                if self.signals.asked_to_end() {
                    self.end(self.trainers.stop_grace());
                }
            }
            Source::Agent => self.agent_vanished(),
            Source::Control => self.read_orders(flags),
            Source::Warm => self.trainers.warm_spoke(flags),
            Source::WarmOutput { stderr } => self.trainers.warm_wrote(stderr, &mut self.scratch),
            Source::Trainer { id, stderr } => self.trainers.wrote(id, stderr, &mut self.scratch),
        }
    }

    fn read_orders(&mut self, flags: PollFlags) {
        if !flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        let Some(control) = &mut self.control else {
            return;
        };
        let alive = match rustix::io::read(&control.socket, &mut self.scratch[..]) {
            Ok(0) => false,
            Ok(count) => {
                control
                    .incoming
                    .extend_from_slice(self.scratch.get(..count).unwrap_or_default());
                true
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
            Err(_) => false,
        };
        loop {
            let Some(control) = &mut self.control else {
                return;
            };
            match frame::decode::<Order>(&mut control.incoming, "Order") {
                Ok(Some(Order { body: Some(body) })) => self.obey(body),
                Ok(Some(Order { body: None })) => {}
                Ok(None) => break,
                // Not an agent: as good as none.
                Err(_) => return self.agent_vanished(),
            }
        }
        if !alive {
            self.agent_vanished();
        }
    }

    fn obey(&mut self, order: order::Body) {
        match order {
            order::Body::Configure(configure) => {
                self.die_with_agent = configure.die_with_agent;
                self.trainers.notify(notice::Body::Ready(say::Ready {
                    protocol: say::PROTOCOL,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                }));
                // Another version's agent reads that, and hangs up.
                if configure.protocol == say::PROTOCOL {
                    self.trainers.configure(configure);
                }
            }
            order::Body::Spawn(spawn) if self.ending.is_some() => self.trainers.refuse(spawn.id),
            order::Body::Spawn(spawn) => self.trainers.spawn(spawn),
            order::Body::Stop(stop) => {
                self.trainers
                    .stop(stop.id, Duration::from_millis(stop.grace_ms));
            }
            order::Body::Shutdown(shutdown) => {
                self.end(Duration::from_millis(shutdown.grace_ms));
            }
        }
    }

    fn agent_vanished(&mut self) {
        self.agent = None;
        self.control = None;
        if self.die_with_agent {
            self.end(self.trainers.stop_grace().min(ORPHAN_GRACE));
        }
    }

    /// Starts to end: every trainer is asked to, and none is started any more.
    fn end(&mut self, grace: Duration) {
        self.trainers.stop_all(grace);
        let until = Instant::now() + grace + LAST_WAIT;
        self.ending = Some(self.ending.map_or(until, |before| before.min(until)));
    }

    /// Reaps every child that has ended.
    fn bury(&mut self) {
        while let Some(ended) = process::reap() {
            self.trainers.reaped(ended, &mut self.scratch);
        }
        self.trainers.bury(&mut self.scratch);
    }

    /// Hands notices to the socket as far as it takes them.
    fn send(&mut self) {
        let notices = self.trainers.take_notices();
        let Some(control) = &mut self.control else {
            return;
        };
        for body in notices {
            // A notice that does not fit a frame cannot be: outputs and tails are
            // limited to a fraction of it.
            if let Ok(frame) = frame::encode(&Notice { body: Some(body) }) {
                control.outgoing.push(frame, Vec::new());
            }
        }
        if control.outgoing.flush(&control.socket).is_err() {
            self.agent_vanished();
        }
    }

    /// Ends what is left, and leaves the last words with the agent.
    fn finish(&mut self) {
        self.trainers.let_warm_parent_go();
        let until = Instant::now() + LAST_WAIT;
        let me = std::process::id();
        loop {
            self.bury();
            let left = process::descendants(me);
            if left.is_empty() || Instant::now() >= until {
                break;
            }
            for pid in left {
                process::signal(pid, libc::SIGKILL);
            }
            self.pause(self.signals.descriptor().as_fd(), PollFlags::IN);
            let _ = self.signals.asked_to_end();
        }
        self.send();
        while let Some(control) = &mut self.control
            && !control.outgoing.is_empty()
            && Instant::now() < until
        {
            let Some(control) = &self.control else {
                return;
            };
            self.pause(control.socket.as_fd(), PollFlags::OUT);
            self.send();
        }
    }

    fn pause(&self, descriptor: BorrowedFd<'_>, wanted: PollFlags) {
        let turn = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        let _ = poll(
            &mut [PollFd::from_borrowed_fd(descriptor, wanted)],
            Some(&turn),
        );
    }
}

fn wanted(outgoing: &Outgoing) -> PollFlags {
    if outgoing.is_empty() {
        PollFlags::IN
    } else {
        PollFlags::IN | PollFlags::OUT
    }
}
