//! The agent's socket: who may come in.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use firesteel_base::{Failure, FailureCode, Hint, Phase, limits};
use firesteel_wire::bridge::{self as say, Hello, from_agent, from_trainer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use crate::connection::{BridgeReceiver, BridgeSender, Connection, ConnectionError};
use crate::stream::{self, Streams};
use crate::token::{Token, random};

/// Bytes of a socket's path. The kernel takes 107 (Linux) or 103 (macOS).
const PATH_BYTES: usize = 100;
/// Folders of dead agents that are looked at when a new one starts.
const SWEPT_FOLDERS: usize = 64;
/// Connections that have not yet shown their token. Each may hold one frame.
const STRANGERS: usize = 64;
/// Connections that showed a token and wait for the agent to take them: the
/// ranks of one multi-process trainer, and those of earlier attempts.
const WAITING: usize = 64;
/// What a folder of sockets is called.
const FOLDER_PREFIX: &str = "firesteel-";
/// What the socket in it is called.
const SOCKET_NAME: &str = "bridge";

/// Why no socket could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// No folder would do.
    #[error("no private folder for the trainers' socket could be made in `{}`", parent.display())]
    Folder {
        /// The last place that was tried.
        parent: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The folder is there, but no socket could be made in it.
    #[error("the trainers' socket `{}` could not be made", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Hint for BindError {
    fn hint(&self) -> Option<String> {
        Some(
            "set XDG_RUNTIME_DIR or TMPDIR to a folder on a local disk with a path of at most 60 \
             characters"
                .into(),
        )
    }
}

/// Why someone was not let in. It is one line of log: nobody else is disturbed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// Another user's process.
    #[error("a process of user {uid} tried to connect as a trainer")]
    OtherUser {
        /// Whose.
        uid: u32,
    },
    /// The token is not one that is waited for.
    #[error("process {pid} tried to connect as a trainer with a token that is not valid here")]
    Token {
        /// Which process.
        pid: u32,
    },
    /// The first frame was no hello, or none came in time.
    #[error("process {pid} connected but did not say who it is: {reason}")]
    NoHello {
        /// Which process.
        pid: u32,
        /// What it did instead.
        reason: String,
    },
    /// The product's version in the trainer's environment does not fit.
    #[error("the trainer of process {pid} has firesteel {version}: {reason}")]
    Protocol {
        /// Which process.
        pid: u32,
        /// The trainer's version.
        version: String,
        /// What does not fit.
        reason: String,
    },
    /// The agent has not taken the earlier connections with this token.
    #[error("process {pid} is one trainer too many for its token")]
    TooMany {
        /// Which process.
        pid: u32,
    },
    /// The socket itself failed.
    #[error("a trainer's connection could not be taken: {reason}")]
    Socket {
        /// What the system said.
        reason: String,
    },
}

/// The agent's socket. Clones are the same socket; it is closed, and its folder
/// removed, with the last of them.
#[derive(Clone)]
pub struct BridgeListener(Arc<Door>);

struct Door {
    path: PathBuf,
    guests: Arc<Guests>,
    accepting: AbortHandle,
}

/// Who is waited for.
#[derive(Default)]
struct Guests(Mutex<Book>);

#[derive(Default)]
struct Book {
    last: u64,
    waiting: HashMap<u64, Guest>,
}

struct Guest {
    token: Token,
    door: mpsc::Sender<Connection>,
    desk: Option<Desk>,
}

/// Where a guest's offers and fetches go.
#[derive(Clone)]
struct Desk {
    streams: Arc<dyn Streams>,
    room: Arc<Semaphore>,
    /// Closed when the guest is no longer waited for.
    open: watch::Receiver<()>,
}

impl Guests {
    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change to the book is one insertion or removal: it is whole
        // even if a holder of the lock panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, text: &str) -> Option<(mpsc::Sender<Connection>, Option<Desk>)> {
        let number = Token::claimed_number(text)?;
        let book = self.book();
        let guest = book.waiting.get(&number)?;
        let admitted = guest.token.admits(text);
        admitted.then(|| (guest.door.clone(), guest.desk.clone()))
    }
}

impl BridgeListener {
    /// Makes a socket in a private folder and listens on it. `parent` is where
    /// the folder is made; `None` is `$XDG_RUNTIME_DIR`, or else the folder for
    /// temporary files. A place whose path is too long is passed over.
    ///
    /// `connect` is how long a stranger may take to show its token; `rejected`
    /// is told of everyone who was not let in.
    ///
    /// Needs a tokio runtime around it.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(
        parent: Option<&Path>,
        connect: Duration,
        rejected: impl Fn(Rejection) + Send + Sync + 'static,
    ) -> Result<Self, BindError> {
        let folder = private_folder(parent)?;
        let path = folder.join(SOCKET_NAME);
        let listener = UnixListener::bind(&path).map_err(|source| {
            let _ = fs::remove_dir(&folder);
            BindError::Socket {
                path: path.clone(),
                source,
            }
        })?;
        let guests = Arc::new(Guests::default());
        let reception = Reception {
            guests: guests.clone(),
            connect,
            rejected: Arc::new(rejected),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
        };
        let accepting = tokio::spawn(reception.accept(listener)).abort_handle();
        Ok(Self(Arc::new(Door {
            path,
            guests,
            accepting,
        })))
    }

    /// The socket's path, for `FIRESTEEL_BRIDGE` and attach profiles.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Makes a token and lets in whoever shows it, until the returned value is
    /// dropped.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn expect(&self) -> io::Result<Expected> {
        self.expect_with(None)
    }

    /// The same for a trainer that may offer and fetch streams, in connections
    /// beside the one for its tasks that are served here until the returned value
    /// is dropped. Its welcome should say `"streams": true`.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn expect_with(&self, streams: Option<Arc<dyn Streams>>) -> io::Result<Expected> {
        let (door, connections) = mpsc::channel(WAITING);
        let (closing, open) = watch::channel(());
        let desk = streams.map(|streams| Desk {
            streams,
            room: Arc::new(Semaphore::new(limits::STREAM_CONNECTIONS)),
            open,
        });
        let mut book = self.0.guests.book();
        let number = book.last + 1;
        let token = Token::new(number)?;
        book.last = number;
        let text = token.text();
        book.waiting.insert(number, Guest { token, door, desk });
        Ok(Expected {
            token: text,
            number,
            connections,
            guests: self.0.guests.clone(),
            _closing: closing,
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = fs::remove_file(&self.path);
        if let Some(folder) = self.path.parent() {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A token and the connections that showed it.
pub struct Expected {
    token: String,
    number: u64,
    connections: mpsc::Receiver<Connection>,
    guests: Arc<Guests>,
    /// Ends the connections for streams when it is dropped.
    _closing: watch::Sender<()>,
}

impl Expected {
    /// For `FIRESTEEL_TOKEN` and attach profiles. A secret: never log it.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The next trainer that shows the token: every rank of a multi-process
    /// trainer is one, and so is a trainer that comes back. May be cancelled.
    pub async fn accept(&mut self) -> Connection {
        match self.connections.recv().await {
            Some(connection) => connection,
            // The book holds the sending half for as long as `self` lives.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.guests.book().waiting.remove(&self.number);
    }
}

/// What the accepting task needs.
#[derive(Clone)]
struct Reception {
    guests: Arc<Guests>,
    connect: Duration,
    rejected: Arc<dyn Fn(Rejection) + Send + Sync>,
    strangers: Arc<Semaphore>,
}

impl Reception {
    async fn accept(self, listener: UnixListener) {
        loop {
            // First the room, then the guest: who is not yet accepted waits in
            // the kernel's queue and costs nothing here.
            let Ok(room) = self.strangers.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let reception = self.clone();
                    tokio::spawn(async move {
                        if let Err(rejection) = reception.receive(stream).await {
                            (reception.rejected)(rejection);
                        }
                        drop(room);
                    });
                }
                Err(error) => {
                    (self.rejected)(Rejection::Socket {
                        reason: error.to_string(),
                    });
                    // Out of descriptors, say: some may come back by then.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Takes one caller up to the point where its owner waits for it.
    async fn receive(&self, stream: UnixStream) -> Result<(), Rejection> {
        let peer = stream.peer_cred().map_err(|error| Rejection::Socket {
            reason: error.to_string(),
        })?;
        if peer.uid() != rustix::process::geteuid().as_raw() {
            return Err(Rejection::OtherUser { uid: peer.uid() });
        }
        let pid = peer
            .pid()
            .and_then(|pid| u32::try_from(pid).ok())
            .unwrap_or(0);
        let mut receiver = BridgeReceiver::new(stream);
        let hello = match tokio::time::timeout(self.connect, hello(&mut receiver)).await {
            Ok(hello) => hello.map_err(|reason| Rejection::NoHello { pid, reason })?,
            Err(_) => {
                let reason = format!("nothing came within {:?}", self.connect);
                return Err(Rejection::NoHello { pid, reason });
            }
        };
        let Some((door, desk)) = self.guests.find(&hello.token) else {
            let failure = Failure::new(
                FailureCode::Misuse,
                Phase::Start,
                "the trainer's token is not valid here",
            )
            .with_hint("the job it belongs to may have ended: start the trainer for a running job");
            self.turn_away(&receiver, &failure).await;
            return Err(Rejection::Token { pid });
        };
        let Some(protocol) = say::negotiate(hello.protocol_min, hello.protocol_max) else {
            let reason = format!(
                "it speaks bridge protocol {} to {}, this agent speaks {} to {}",
                hello.protocol_min,
                hello.protocol_max,
                say::PROTOCOL_MIN,
                say::PROTOCOL_MAX
            );
            let failure = Failure::new(FailureCode::Misuse, Phase::Start, reason.clone())
                .with_hint("install the agent's version of firesteel in the trainer's environment");
            self.turn_away(&receiver, &failure).await;
            return Err(Rejection::Protocol {
                pid,
                version: hello.version,
                reason,
            });
        };
        if hello.streams {
            return self.take_streams(receiver, desk, pid, protocol).await;
        }
        let connection = Connection::new(receiver, hello, pid, protocol);
        match door.try_send(connection) {
            Ok(()) => Ok(()),
            Err(_) => Err(Rejection::TooMany { pid }),
        }
    }

    /// Takes a connection for streams, and serves it beside everything else.
    async fn take_streams(
        &self,
        receiver: BridgeReceiver,
        desk: Option<Desk>,
        pid: u32,
        protocol: u32,
    ) -> Result<(), Rejection> {
        let Some(desk) = desk else {
            let failure = Failure::new(
                FailureCode::Misuse,
                Phase::Train,
                "this site's agent serves no streams",
            );
            self.turn_away(&receiver, &failure).await;
            return Err(Rejection::NoHello {
                pid,
                reason: "it asked for streams, which are not served here".into(),
            });
        };
        let Ok(place) = desk.room.clone().try_acquire_owned() else {
            let failure = Failure::new(
                FailureCode::Misuse,
                Phase::Train,
                format!(
                    "this trainer has {} connections for streams open already",
                    limits::STREAM_CONNECTIONS
                ),
            )
            .with_hint("fetch in fewer threads at a time");
            self.turn_away(&receiver, &failure).await;
            return Err(Rejection::TooMany { pid });
        };
        let mut sender = BridgeSender::new(receiver.stream());
        let mut open = desk.open.clone();
        let rejected = self.rejected.clone();
        tokio::spawn(async move {
            let welcome = from_agent::Body::Welcome(say::Welcome {
                protocol,
                json: "{}".into(),
            });
            let serving = async {
                sender.say(welcome).await?;
                stream::serve(receiver, sender, desk.streams).await
            };
            let served = tokio::select! {
                served = serving => served,
                // The value is never sent: what happens is that its sender goes.
                _ = open.changed() => Ok(()),
            };
            drop(place);
            // A trainer that is gone is no news; one that talks nonsense is.
            if let Err(error @ (ConnectionError::Frame(_) | ConnectionError::Unexpected)) = served {
                rejected(Rejection::NoHello {
                    pid,
                    reason: error.to_string(),
                });
            }
        });
        Ok(())
    }

    /// Tells a caller why it is not let in; it may be gone, or not listen.
    async fn turn_away(&self, receiver: &BridgeReceiver, failure: &Failure) {
        let mut sender = BridgeSender::new(receiver.stream());
        let _ = tokio::time::timeout(self.connect, sender.refuse(failure)).await;
    }
}

/// The first frame, which has to be a hello.
async fn hello(receiver: &mut BridgeReceiver) -> Result<Hello, String> {
    match receiver.frame().await {
        Ok(Some(from_trainer::Body::Hello(hello))) => Ok(hello),
        Ok(Some(_)) => Err("its first message is no hello".into()),
        Ok(None) => Err("it left".into()),
        Err(ConnectionError::Frame(error)) => Err(format!("it sent {error}")),
        Err(error) => Err(error.to_string()),
    }
}

/// A new folder that only this user can enter.
fn private_folder(parent: Option<&Path>) -> Result<PathBuf, BindError> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let candidates: Vec<PathBuf> = match parent {
        Some(parent) => vec![parent.to_owned(), std::env::temp_dir(), "/tmp".into()],
        None => runtime
            .filter(|folder| is_ours(folder))
            .into_iter()
            .chain([std::env::temp_dir(), "/tmp".into()])
            .collect(),
    };
    let mut last = BindError::Folder {
        parent: "/tmp".into(),
        source: io::Error::from(io::ErrorKind::InvalidFilename),
    };
    for parent in candidates {
        match new_folder(&parent) {
            Ok(folder) => return Ok(folder),
            Err(source) => last = BindError::Folder { parent, source },
        }
    }
    Err(last)
}

fn new_folder(parent: &Path) -> io::Result<PathBuf> {
    let name = format!("{FOLDER_PREFIX}{:016x}", u64::from_ne_bytes(random()?));
    // Absolute: trainers run in directories of their own.
    let folder = std::path::absolute(parent)?.join(name);
    if folder.join(SOCKET_NAME).as_os_str().len() > PATH_BYTES {
        return Err(io::Error::from(io::ErrorKind::InvalidFilename));
    }
    sweep(parent);
    DirBuilder::new().mode(0o700).create(&folder)?;
    Ok(folder)
}

/// Removes what agents that were killed have left behind.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    let folders = entries
        .filter_map(Result::ok)
        .filter(|entry| name_is_ours(&entry.file_name()))
        .take(SWEPT_FOLDERS);
    for entry in folders {
        let folder = entry.path();
        let socket = folder.join(SOCKET_NAME);
        // A socket without a listener refuses; anything else is left alone.
        let dead = is_ours(&folder)
            && BlockingStream::connect(&socket)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if dead {
            let _ = fs::remove_file(&socket);
            let _ = fs::remove_dir(&folder);
        }
    }
}

fn name_is_ours(name: &OsStr) -> bool {
    name.to_str()
        .and_then(|name| name.strip_prefix(FOLDER_PREFIX))
        .is_some_and(|rest| rest.len() == 16 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A folder, not a link, of this user, that nobody else can enter.
fn is_ours(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|found| {
        found.is_dir()
            && found.uid() == rustix::process::geteuid().as_raw()
            && found.mode() & 0o077 == 0
    })
}
