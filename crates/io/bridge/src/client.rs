//! The trainer's end of the connection: blocking, and interruptible.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use firesteel_base::{Attempt, Hint, Round, limits};
use firesteel_wire::bridge::{
    self as say, FromAgent, FromTrainer, TaskKey, from_agent, from_trainer,
};
use firesteel_wire::frame::{self, FrameError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::mapping::{MapError, Mapping};
use crate::pass;

/// How long a wait may last before the caller's check is called again. Python
/// handles a Ctrl-C in that check, and a tenth of a second is felt as at once.
const CHECK_EVERY: Duration = Duration::from_millis(100);
/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// Bytes of log lines and metrics that wait for a slow agent; beyond them, lines
/// are dropped and counted, for a log must never hold up the training.
const PENDING_BYTES: usize = 1024 * 1024;
/// Bytes of one log message or metric.
const MESSAGE_BYTES: usize = 64 * 1024;

/// The caller's check said to stop waiting (a signal's handler raised).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

/// Called at least every tenth of a second while a call waits.
pub type Check<'a> = &'a mut dyn FnMut() -> Result<(), Interrupted>;

/// Why a call on the bridge failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no agent listens on `{}`", socket.display())]
    Connect {
        /// The socket's path.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The agent refused the trainer or its result.
    #[error("{message}")]
    Refused {
        /// A `FailureCode`, as text.
        code: String,
        /// Why.
        message: String,
        /// What to do; may be empty.
        hint: String,
    },
    /// The agent is gone.
    #[error("the agent has closed the connection")]
    Lost,
    /// The socket failed.
    #[error("the connection to the agent failed")]
    Socket(#[source] io::Error),
    /// The agent sent bytes that are no message.
    #[error("the agent sent something that is not understood: {0}")]
    Malformed(String),
    /// What is to be sent does not fit a message.
    #[error("{what} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The largest allowed.
        limit: usize,
    },
    /// The task's model could not be brought into memory.
    #[error("the task's model could not be brought into memory")]
    Model(#[source] MapError),
    /// Nothing came within the time given.
    #[error("no answer from the agent within {0:?}")]
    TimedOut(Duration),
    /// The caller's check said to stop.
    #[error("interrupted")]
    Interrupted,
    /// Another thread waits on this connection.
    #[error("another thread of this trainer is already waiting for the agent")]
    Busy,
    /// The connection belongs to the process that made this one by forking.
    #[error("the connection to the agent belongs to the parent process {parent}")]
    Forked {
        /// The process that may use it.
        parent: u32,
    },
}

impl Hint for ClientError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { .. } => Some(
                "run the script through a recipe, or attach it to a job that is running".into(),
            ),
            Self::Refused { hint, .. } => (!hint.is_empty()).then(|| hint.clone()),
            Self::Lost => Some("the job has ended or was aborted; see its log".into()),
            Self::Busy => Some("call receive and send from one thread only".into()),
            Self::Forked { .. } => {
                Some("call receive, send and log in the main process only".into())
            }
            _ => None,
        }
    }
}

impl From<Interrupted> for ClientError {
    fn from(Interrupted: Interrupted) -> Self {
        Self::Interrupted
    }
}

/// Where to connect and as whom.
#[derive(Clone, Copy)]
pub struct Dial<'a> {
    /// The agent's socket.
    pub socket: &'a Path,
    /// The trainer's token.
    pub token: &'a str,
    /// The trainer's rank.
    pub rank: u32,
    /// The product's version in this environment.
    pub version: &'a str,
    /// How long the whole handshake may take.
    pub connect: Duration,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Taking tasks and answering them.
    Tasks,
    /// Offering and fetching streams.
    Streams,
}

/// Something that was fetched: its description, and the file, to be read by
/// position, for others may read the same open file.
#[derive(Debug)]
pub struct Fetched {
    /// What the agent says of it.
    pub about: say::Fetched,
    /// The file.
    pub file: OwnedFd,
}

/// A task as the trainer gets it.
#[derive(Debug)]
pub struct Job {
    /// Names the task in its result.
    pub key: TaskKey,
    /// The job's first round.
    pub start_round: Round,
    /// How many rounds the job has.
    pub total_rounds: u32,
    /// The model's meta dictionary, as JSON.
    pub meta: String,
    /// The model's bytes.
    pub model: Option<Mapping>,
}

impl Job {
    /// The round the task belongs to.
    pub fn round(&self) -> Round {
        Round(self.key.round)
    }

    /// Which try it is.
    pub fn attempt(&self) -> Attempt {
        Attempt(self.key.attempt)
    }
}

/// What waiting for a task came to.
#[derive(Debug)]
pub enum Outcome {
    /// Something to do.
    Task(Job),
    /// There will be no more tasks, and why.
    Ended(String),
}

/// What sending a result came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The agent has taken it.
    Taken,
    /// The job ended meanwhile, and why; the result is of no use any more.
    Ended(String),
}

/// The model of a result.
#[derive(Debug, Clone)]
pub enum ResultModel {
    /// A result of metrics alone.
    None,
    /// The bytes of a model file, at most `limits::INLINE_OBJECT` of them.
    Inline(Bytes),
    /// The name of a model file within the outbox.
    File(String),
}

/// The trainer's connection to its agent. Calls may come from any thread;
/// [`BridgeClient::next`] and [`BridgeClient::send_result`] from one at a time.
pub struct BridgeClient {
    socket: UnixStream,
    process: u32,
    welcome: String,
    reader: Mutex<Reader>,
    writer: Mutex<Writer>,
}

#[derive(Default)]
struct Reader {
    buffer: BytesMut,
    descriptors: VecDeque<OwnedFd>,
    /// A request for a task has been sent and not yet been answered.
    asked: bool,
    /// A task that came while something else was waited for.
    early: Option<say::Task>,
    ended: Option<String>,
}

#[derive(Default)]
struct Writer {
    pending: VecDeque<u8>,
    dropped: u32,
}

/// Until when a call may wait, and whom it asks meanwhile.
struct Patience<'a, 'b> {
    until: Option<Instant>,
    given: Duration,
    check: &'a mut (dyn FnMut() -> Result<(), Interrupted> + 'b),
}

impl<'a, 'b> Patience<'a, 'b> {
    fn new(
        given: Option<Duration>,
        check: &'a mut (dyn FnMut() -> Result<(), Interrupted> + 'b),
    ) -> Self {
        Self {
            until: given.and_then(|given| Instant::now().checked_add(given)),
            given: given.unwrap_or_default(),
            check,
        }
    }

    /// Waits until the socket is ready for `wanted`, or a tenth of a second.
    fn wait(&mut self, socket: &UnixStream, wanted: PollFlags) -> Result<(), ClientError> {
        (self.check)()?;
        let left = match self.until {
            None => CHECK_EVERY,
            Some(until) => until.saturating_duration_since(Instant::now()),
        };
        let turn = Timespec::try_from(left.min(CHECK_EVERY)).expect("a tenth of a second fits");
        let ready = match poll(&mut [PollFd::new(socket, wanted)], Some(&turn)) {
            Ok(ready) => ready,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(ClientError::Socket(error.into())),
        };
        if ready == 0 {
            (self.check)()?;
            if left.is_zero() {
                return Err(ClientError::TimedOut(self.given));
            }
        }
        Ok(())
    }
}

impl BridgeClient {
    /// Dials the agent and waits to be welcomed.
    ///
    /// # Errors
    /// [`ClientError`]; `Refused` says in one sentence what does not fit.
    pub fn connect(dial: Dial<'_>, check: Check<'_>) -> Result<Self, ClientError> {
        Self::dial(dial, Purpose::Tasks, check)
    }

    /// The same for a connection that offers and fetches streams: nothing of a
    /// task goes over it, and one question stands at a time.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect_streams(dial: Dial<'_>, check: Check<'_>) -> Result<Self, ClientError> {
        Self::dial(dial, Purpose::Streams, check)
    }

    fn dial(dial: Dial<'_>, purpose: Purpose, check: Check<'_>) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect {
            socket: dial.socket.to_owned(),
            source,
        };
        let socket = UnixStream::connect(dial.socket).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let mut client = Self {
            socket,
            process: std::process::id(),
            welcome: String::new(),
            reader: Mutex::default(),
            writer: Mutex::default(),
        };
        let mut patience = Patience::new(Some(dial.connect), check);
        client.say(
            from_trainer::Body::Hello(say::Hello {
                protocol_min: say::PROTOCOL_MIN,
                protocol_max: say::PROTOCOL_MAX,
                token: dial.token.to_owned(),
                pid: client.process,
                rank: dial.rank,
                version: dial.version.to_owned(),
                copies: !cfg!(unix),
                streams: purpose == Purpose::Streams,
            }),
            &mut patience,
        )?;
        let mut reader = client.take_reader()?;
        let welcome = loop {
            match client.hear(&mut reader, &mut patience)? {
                from_agent::Body::Welcome(welcome) => break welcome,
                from_agent::Body::Refused(refused) => return Err(refusal(refused)),
                from_agent::Body::End(end) => {
                    return Err(ClientError::Refused {
                        code: "aborted".into(),
                        message: format!("the job has ended: {}", end.reason),
                        hint: String::new(),
                    });
                }
                _ => {}
            }
        };
        drop(reader);
        client.welcome = welcome.json;
        Ok(client)
    }

    /// What the agent wants the trainer to know, as JSON.
    pub fn welcome(&self) -> &str {
        &self.welcome
    }

    /// Asks for a task and waits for it; `None` waits without end. After
    /// [`ClientError::TimedOut`] the question stands, and the next call goes on
    /// waiting for its answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn next(
        &self,
        timeout: Option<Duration>,
        check: Check<'_>,
    ) -> Result<Outcome, ClientError> {
        self.belongs_here()?;
        let mut patience = Patience::new(timeout, check);
        let mut reader = self.take_reader()?;
        if let Some(reason) = &reader.ended {
            return Ok(Outcome::Ended(reason.clone()));
        }
        if !reader.asked && reader.early.is_none() {
            match self.say(from_trainer::Body::Next(say::Next {}), &mut patience) {
                // The agent may have said why it left.
                Err(ClientError::Lost) => {}
                sent => sent?,
            }
            reader.asked = true;
        }
        loop {
            let task = match reader.early.take() {
                Some(task) => task,
                None => match self.hear(&mut reader, &mut patience)? {
                    from_agent::Body::Task(task) => task,
                    from_agent::Body::End(end) => {
                        reader.ended = Some(end.reason.clone());
                        return Ok(Outcome::Ended(end.reason));
                    }
                    from_agent::Body::Refused(refused) => return Err(refusal(refused)),
                    _ => continue,
                },
            };
            reader.asked = false;
            let model = self.model(task.model, &mut reader, &mut patience)?;
            return Ok(Outcome::Task(Job {
                key: task.key,
                start_round: Round(task.start_round),
                total_rounds: task.total_rounds,
                meta: task.meta,
                model,
            }));
        }
    }

    /// Hands a result over and waits until the agent has taken it.
    ///
    /// # Errors
    /// [`ClientError`]; `Refused` when the agent finds it unusable.
    pub fn send_result(
        &self,
        key: &TaskKey,
        result: Outgoing,
        check: Check<'_>,
    ) -> Result<Delivery, ClientError> {
        self.belongs_here()?;
        result.check()?;
        let mut patience = Patience::new(None, check);
        let mut reader = self.take_reader()?;
        if let Some(reason) = &reader.ended {
            return Ok(Delivery::Ended(reason.clone()));
        }
        let model = match result.model {
            ResultModel::None => None,
            ResultModel::Inline(bytes) => Some(say::task_result::Model::Inline(bytes)),
            ResultModel::File(name) => Some(say::task_result::Model::File(name)),
        };
        let result = say::TaskResult {
            key: key.clone(),
            params_type: result.params_type,
            model,
            metrics: result.metrics,
            meta: result.meta,
            state_file: result.state_file,
            partial: result.partial,
        };
        match self.say(from_trainer::Body::Result(result), &mut patience) {
            Err(ClientError::Lost) => {}
            sent => sent?,
        }
        loop {
            match self.hear(&mut reader, &mut patience)? {
                from_agent::Body::Accepted(say::Accepted {}) => return Ok(Delivery::Taken),
                from_agent::Body::Refused(refused) => return Err(refusal(refused)),
                from_agent::Body::End(end) => {
                    reader.ended = Some(end.reason.clone());
                    return Ok(Delivery::Ended(end.reason));
                }
                from_agent::Body::Task(task) => reader.early = Some(task),
                from_agent::Body::Welcome(_)
                | from_agent::Body::Chunk(_)
                | from_agent::Body::Offered(_)
                | from_agent::Body::Fetched(_) => {}
            }
        }
    }

    /// Offers a file or folder for others to fetch; answers its id. Only on a
    /// connection for streams; after any error but `Refused` it is of no use.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn offer(
        &self,
        offer: say::Offer,
        file: BorrowedFd<'_>,
        check: Check<'_>,
    ) -> Result<String, ClientError> {
        let offered = self.ask(from_trainer::Body::Offer(offer), Some(file), check)?;
        match offered {
            (from_agent::Body::Offered(offered), _) => Ok(offered.id),
            _ => Err(unexpected()),
        }
    }

    /// Ends an offer, under the same conditions.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn withdraw(&self, id: String, check: Check<'_>) -> Result<(), ClientError> {
        self.ask(
            from_trainer::Body::Withdraw(say::Withdraw { id }),
            None,
            check,
        )
        .map(drop)
    }

    /// Asks for what somebody offers, under the same conditions; waits until it is
    /// on this machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn fetch(&self, fetch: say::Fetch, check: Check<'_>) -> Result<Fetched, ClientError> {
        match self.ask(from_trainer::Body::Fetch(fetch), None, check)? {
            (from_agent::Body::Fetched(about), Some(file)) => Ok(Fetched { about, file }),
            _ => Err(unexpected()),
        }
    }

    /// One question and its answer, on a connection for streams.
    fn ask(
        &self,
        body: from_trainer::Body,
        descriptor: Option<BorrowedFd<'_>>,
        check: Check<'_>,
    ) -> Result<(from_agent::Body, Option<OwnedFd>), ClientError> {
        self.belongs_here()?;
        let mut patience = Patience::new(None, check);
        let mut reader = self.take_reader()?;
        let frame = encode(body)?;
        let mut rest: &[u8] = &frame;
        let mut descriptor = descriptor;
        while !rest.is_empty() {
            match pass::send(self.socket.as_fd(), rest, descriptor) {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    descriptor = None;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => patience.wait(&self.socket, PollFlags::OUT)?,
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                        return Err(ClientError::Lost);
                    }
                    _ => return Err(ClientError::Socket(error)),
                },
            }
        }
        match self.hear(&mut reader, &mut patience)? {
            from_agent::Body::Refused(refused) => Err(refusal(refused)),
            body => Ok((body, reader.descriptors.pop_front())),
        }
    }

    /// Sends a line of log, at a level of Python's. Never waits and never fails:
    /// while the agent is slow, lines are dropped and counted.
    pub fn log(&self, level: u32, logger: &str, message: &str) {
        let time = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
            });
        self.say_if_room(|dropped| {
            from_trainer::Body::Log(say::Log {
                level,
                logger: start_of(logger, MESSAGE_BYTES),
                message: start_of(message, MESSAGE_BYTES),
                time,
                dropped,
            })
        });
    }

    /// Sends a tracking event, as JSON. Never waits and never fails.
    pub fn metric(&self, json: &str) {
        if json.len() > MESSAGE_BYTES {
            return;
        }
        self.say_if_room(|_| {
            from_trainer::Body::Metric(say::Metric {
                json: json.to_owned(),
            })
        });
    }

    /// Tells the agent that the script failed.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn failed(&self, failed: say::Failed, check: Check<'_>) -> Result<(), ClientError> {
        self.belongs_here()?;
        let failed = say::Failed {
            message: start_of(&failed.message, MESSAGE_BYTES),
            traceback: ends_of(&failed.traceback, limits::TRACEBACK_BYTES),
            ..failed
        };
        let mut patience = Patience::new(Some(Duration::from_secs(5)), check);
        self.say(from_trainer::Body::Failed(failed), &mut patience)
    }

    /// Says goodbye and closes the connection. In a process that was forked from
    /// the one that connected, only the descriptor is closed.
    pub fn close(self, check: Check<'_>) {
        if self.belongs_here().is_ok() {
            let mut patience = Patience::new(Some(Duration::from_secs(1)), check);
            // An agent that is gone needs no goodbye.
            let _ = self.say(from_trainer::Body::Bye(say::Bye {}), &mut patience);
        }
    }

    fn belongs_here(&self) -> Result<(), ClientError> {
        if self.process == std::process::id() {
            Ok(())
        } else {
            Err(ClientError::Forked {
                parent: self.process,
            })
        }
    }

    fn take_reader(&self) -> Result<MutexGuard<'_, Reader>, ClientError> {
        match self.reader.try_lock() {
            Ok(reader) => Ok(reader),
            Err(TryLockError::WouldBlock) => Err(ClientError::Busy),
            Err(TryLockError::Poisoned(_)) => Err(ClientError::Lost),
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends everything pending and then this, and waits until it has gone.
    fn say(
        &self,
        body: from_trainer::Body,
        patience: &mut Patience<'_, '_>,
    ) -> Result<(), ClientError> {
        let frame = encode(body)?;
        self.writer().pending.extend(frame);
        // The lock is not held while waiting: a log line of another thread
        // queues up behind this message and goes with it.
        while !self.writer().flush(&self.socket)? {
            patience.wait(&self.socket, PollFlags::OUT)?;
        }
        Ok(())
    }

    /// Sends what `body` makes of the count of dropped messages, if there is room.
    fn say_if_room(&self, body: impl FnOnce(u32) -> from_trainer::Body) {
        if self.belongs_here().is_err() {
            return;
        }
        let mut writer = self.writer();
        if writer.pending.len() > PENDING_BYTES {
            writer.dropped = writer.dropped.saturating_add(1);
        } else if let Ok(frame) = encode(body(writer.dropped)) {
            writer.dropped = 0;
            writer.pending.extend(frame);
        }
        // A lost connection shows itself where it matters: in `next` and `send`.
        let _ = writer.flush(&self.socket);
    }

    /// The next frame of a kind that is known.
    fn hear(
        &self,
        reader: &mut Reader,
        patience: &mut Patience<'_, '_>,
    ) -> Result<from_agent::Body, ClientError> {
        loop {
            let decoded = frame::decode::<FromAgent>(&mut reader.buffer, "FromAgent")
                .map_err(|error| ClientError::Malformed(error.to_string()))?;
            match decoded {
                Some(FromAgent { body: Some(body) }) => return Ok(body),
                Some(FromAgent { body: None }) => continue,
                None => {}
            }
            patience.wait(&self.socket, PollFlags::IN)?;
            reader.fill(&self.socket)?;
        }
    }

    /// The bytes of a task's model.
    fn model(
        &self,
        model: Option<say::task::Model>,
        reader: &mut Reader,
        patience: &mut Patience<'_, '_>,
    ) -> Result<Option<Mapping>, ClientError> {
        let mapping = match model {
            None => return Ok(None),
            Some(say::task::Model::Inline(bytes)) => Mapping::from_bytes(&bytes),
            Some(say::task::Model::File(length)) => {
                let descriptor = reader.descriptors.pop_front().ok_or_else(|| {
                    ClientError::Malformed("a task whose model's descriptor is missing".into())
                })?;
                Mapping::from_descriptor(descriptor, length)
            }
            Some(say::task::Model::Copied(length)) => {
                let mut mapping = Mapping::zeroed(length).map_err(ClientError::Model)?;
                let mut rest = mapping.as_mut_slice();
                while !rest.is_empty() {
                    let data = match self.hear(reader, patience)? {
                        from_agent::Body::Chunk(chunk) => chunk.data,
                        _ => return Err(ClientError::Malformed("a model that breaks off".into())),
                    };
                    let (now, later) = rest.split_at_mut_checked(data.len()).ok_or_else(|| {
                        ClientError::Malformed("a model longer than announced".into())
                    })?;
                    now.copy_from_slice(&data);
                    rest = later;
                }
                Ok(mapping)
            }
        };
        mapping.map(Some).map_err(ClientError::Model)
    }
}

/// A result's content.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// `FULL` or `DIFF`; empty when there is no model.
    pub params_type: String,
    /// The trained model.
    pub model: ResultModel,
    /// What the trainer measured.
    pub metrics: BTreeMap<String, f64>,
    /// The result's meta dictionary, as JSON.
    pub meta: String,
    /// The name of the state file within the outbox; empty for none.
    pub state_file: String,
    /// Whether tensors of the task's model that the result's lacks are unchanged.
    pub partial: bool,
}

impl Outgoing {
    fn check(&self) -> Result<(), ClientError> {
        let inline = match &self.model {
            ResultModel::Inline(bytes) => bytes.len(),
            ResultModel::None | ResultModel::File(_) => 0,
        };
        let sizes = [
            ("the model in the message", inline, limits::INLINE_OBJECT),
            ("the meta dictionary", self.meta.len(), limits::META_BYTES),
            ("the number of metrics", self.metrics.len(), limits::METRICS),
        ];
        for (what, bytes, limit) in sizes {
            if bytes > limit {
                return Err(ClientError::TooLarge { what, bytes, limit });
            }
        }
        Ok(())
    }
}

impl Reader {
    fn fill(&mut self, socket: &UnixStream) -> Result<(), ClientError> {
        let filled = self.buffer.len();
        self.buffer.resize(filled + READ_BYTES, 0);
        let space = self.buffer.get_mut(filled..).unwrap_or_default();
        let read = pass::receive(socket.as_fd(), space, &mut self.descriptors);
        self.buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(ClientError::Lost),
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
                io::ErrorKind::ConnectionReset => Err(ClientError::Lost),
                _ => Err(ClientError::Socket(error)),
            },
        }
    }
}

impl Writer {
    /// Writes what it can without waiting; true when nothing is left.
    fn flush(&mut self, socket: &UnixStream) -> Result<bool, ClientError> {
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            match pass::send(socket.as_fd(), front, None) {
                Ok(sent) => drop(self.pending.drain(..sent.min(self.pending.len()))),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(false),
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                        self.pending = VecDeque::new();
                        return Err(ClientError::Lost);
                    }
                    _ => return Err(ClientError::Socket(error)),
                },
            }
        }
        // After a burst, give the memory back.
        if self.pending.capacity() > READ_BYTES {
            self.pending = VecDeque::new();
        }
        Ok(true)
    }
}

fn encode(body: from_trainer::Body) -> Result<Bytes, ClientError> {
    frame::encode(&FromTrainer { body: Some(body) }).map_err(|error| match error {
        FrameError::TooLong { length, limit } => ClientError::TooLarge {
            what: "the message to the agent",
            bytes: length,
            limit,
        },
        other => ClientError::Malformed(other.to_string()),
    })
}

fn unexpected() -> ClientError {
    ClientError::Malformed("an answer to another question".into())
}

fn refusal(refused: say::Refused) -> ClientError {
    ClientError::Refused {
        code: refused.code,
        message: refused.message,
        hint: refused.hint,
    }
}

/// At most the first `limit` bytes.
fn start_of(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(limit);
    format!(
        "{}… ({} bytes cut)",
        text.get(..end).unwrap_or_default(),
        text.len() - end
    )
}

/// The two ends of a text whose middle is cut.
fn ends_of(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let head = text.floor_char_boundary(limit / 2);
    let tail = text.ceil_char_boundary(text.len() - limit / 2);
    format!(
        "{}\n… {} bytes cut …\n{}",
        text.get(..head).unwrap_or_default(),
        tail - head,
        text.get(tail..).unwrap_or_default()
    )
}
