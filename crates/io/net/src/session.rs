//! Sessions: a control connection, bulk connections, and streams on them.

mod dialing;
mod hello;
mod link;
mod listening;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use firesteel_base::{Durations, Hint, limits};
use tokio::sync::{mpsc, watch};

use crate::mux::{self, Connection, Incoming, Shape};
use crate::{BoxStream, Congestion, Peer, PeerName};

pub use dialing::{DialError, dial};
pub use hello::HelloError;
pub use listening::{AcceptError, BindError, Listener};

use dialing::Dialer;
use link::{FOLLOW_FROM, Followed, Link, LinkMessage};
use listening::Registration;

/// What a stream is for. Numbers below 16 are the session's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind(u16);

impl Kind {
    /// Large objects, pulled.
    pub const TRANSFER: Self = Self(16);
    /// Bytes of a process at one end for a process at the other.
    pub const TUNNEL: Self = Self(17);
    /// What a site offers, fetched by another one through the server.
    pub const STREAM: Self = Self(18);

    pub(crate) const CONTROL: Self = Self(1);
    pub(crate) const LINK: Self = Self(2);

    /// A kind of one's own, counted from 0.
    pub const fn other(number: u8) -> Self {
        Self(256 + number as u16)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TRANSFER => f.write_str("transfer"),
            Self::TUNNEL => f.write_str("tunnel"),
            Self::STREAM => f.write_str("stream"),
            Self(number) => write!(f, "kind {number}"),
        }
    }
}

/// How sessions are made and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// `connect` covers everything from the first packet to the welcome, `idle`
    /// is for how long a peer may be silent, `drain` for how long closing takes.
    pub durations: Durations,
    /// Bulk connections per session, opened as streams ask for them; the dialing
    /// and the accepting end's smaller number counts. More help on long or lossy
    /// links. With 0 everything shares the control connection.
    pub bulk_connections: u8,
    /// The congestion control of all connections, for what this end sends.
    pub congestion: Congestion,
    /// Bytes that the peer may send on one stream before we have read any.
    pub stream_window: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durations: Durations::default(),
            bulk_connections: 2,
            congestion: Congestion::System,
            stream_window: limits::STREAM_WINDOW,
        }
    }
}

impl Options {
    /// For networks that allow one connection only: control goes first on it.
    #[must_use]
    pub fn single_connection(self) -> Self {
        Self {
            bulk_connections: 0,
            ..self
        }
    }

    fn bulk(&self) -> u8 {
        self.bulk_connections.min(limits::BULK_CONNECTIONS)
    }

    fn shape(&self, purpose: crate::tcp::Purpose) -> Shape {
        let (frame, unwritten) = match purpose {
            crate::tcp::Purpose::Control => (limits::CONTROL_FRAME, limits::CONTROL_UNWRITTEN),
            crate::tcp::Purpose::Bulk => (limits::BULK_FRAME, limits::BULK_UNWRITTEN),
        };
        Shape {
            frame,
            unwritten,
            stream_window: self
                .stream_window
                .clamp(64 * 1024, limits::CONNECTION_WINDOW),
            drain: self.durations.drain,
        }
    }
}

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// This end closed it.
    Here,
    /// The peer closed it, and said why.
    Peer(String),
    /// The peer answered nothing for the duration `idle`.
    Silent(Duration),
    /// The control connection failed, or ended without a word.
    Lost(String),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("this end closed the session"),
            Self::Peer(why) if why.is_empty() => f.write_str("the peer closed the session"),
            Self::Peer(why) => write!(f, "the peer closed the session: {why}"),
            Self::Silent(idle) => write!(f, "the peer did not answer for {} s", idle.as_secs()),
            Self::Lost(why) if why.is_empty() => f.write_str("the connection ended without a word"),
            Self::Lost(why) => write!(f, "the connection was lost: {why}"),
        }
    }
}

/// Why no stream could be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The session is over.
    #[error("the session with `{peer}` is over: {reason}")]
    Over {
        /// With whom.
        peer: PeerName,
        /// Why.
        reason: CloseReason,
    },
    /// No bulk connection could be made.
    #[error("no connection for bulk data to `{peer}`")]
    Bulk {
        /// With whom.
        peer: PeerName,
        /// What happened.
        #[source]
        source: Box<DialError>,
    },
    /// The peer was asked for a bulk connection, and none came.
    #[error("`{peer}` made no connection for bulk data within {} s", waited.as_secs())]
    NoBulk {
        /// Who.
        peer: PeerName,
        /// For how long we waited.
        waited: Duration,
    },
    /// The connection failed meanwhile.
    #[error("could not open a stream to `{peer}`")]
    Open {
        /// With whom.
        peer: PeerName,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

impl Hint for SessionError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Bulk { source, .. } => source.hint(),
            Self::NoBulk { .. } => Some(
                "if its network allows one connection only, set `single_connection` there"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// A session with a peer. Clones are the same session; when the last is dropped
/// it is closed, with all its streams.
#[derive(Clone)]
pub struct Session(Arc<Handle>);

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.over(CloseReason::Here, "");
    }
}

/// What the session's tasks share.
struct Shared {
    peer: Peer,
    address: SocketAddr,
    options: Options,
    /// Bulk connections that both ends agreed on.
    bulk: u8,
    main: Connection,
    bulks: Mutex<Vec<Connection>>,
    bulk_came: watch::Sender<u64>,
    origin: Origin,
    control: Mutex<Option<BoxStream>>,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Incoming>>,
    arrivals: mpsc::Sender<Incoming>,
    link: mpsc::Sender<LinkMessage>,
    /// What is to be followed by small frames.
    followed: mpsc::Sender<Followed>,
    over: watch::Sender<Option<CloseReason>>,
    /// Microseconds; 0 while unknown.
    round_trip: AtomicU64,
}

/// Who made the connections.
enum Origin {
    Dialed(Dialer),
    Accepted(Registration),
}

/// What a session is made from, once both ends have greeted each other.
struct Parts {
    peer: Peer,
    address: SocketAddr,
    options: Options,
    bulk: u8,
    main: Connection,
    origin: Origin,
    control: BoxStream,
    link: Link,
    incoming: mpsc::Receiver<Incoming>,
    arrivals: mpsc::Sender<Incoming>,
}

impl Session {
    fn start(parts: Parts) -> (Self, Arc<Shared>) {
        let (link, messages) = mpsc::channel(8);
        let (follow, followed) = mpsc::channel(2);
        let shared = Arc::new(Shared {
            peer: parts.peer,
            address: parts.address,
            options: parts.options,
            bulk: parts.bulk,
            main: parts.main,
            bulks: Mutex::default(),
            bulk_came: watch::Sender::new(0),
            origin: parts.origin,
            control: Mutex::new(Some(parts.control)),
            incoming: tokio::sync::Mutex::new(parts.incoming),
            arrivals: parts.arrivals,
            link,
            followed: follow,
            over: watch::Sender::new(None),
            round_trip: AtomicU64::new(0),
        });
        link::start(&shared, parts.link, messages, followed);
        (Self(Arc::new(Handle(Arc::clone(&shared)))), shared)
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    /// With whom, as its certificate says.
    pub fn peer(&self) -> &Peer {
        &self.shared().peer
    }

    /// The peer's address.
    pub fn address(&self) -> SocketAddr {
        self.shared().address
    }

    /// The stream for messages between the roles; the first caller gets it.
    pub fn control(&self) -> Option<BoxStream> {
        lock(&self.shared().control).take()
    }

    /// Opens a stream, on a bulk connection where there may be one.
    ///
    /// # Errors
    /// [`SessionError`]. Only [`SessionError::Over`] is final.
    pub async fn open(&self, kind: Kind) -> Result<BoxStream, SessionError> {
        let shared = self.shared();
        let mut over = shared.over.subscribe();
        tokio::select! {
            stream = shared.open(kind) => stream,
            _ = over.wait_for(Option::is_some) => Err(shared.is_over()),
        }
    }

    /// The next stream that the peer has opened; `None` when the session is over.
    pub async fn accept(&self) -> Option<(Kind, BoxStream)> {
        let shared = self.shared();
        let mut over = shared.over.subscribe();
        let mut incoming = shared.incoming.lock().await;
        tokio::select! {
            biased;
            _ = over.wait_for(Option::is_some) => None,
            next = incoming.recv() => next
                .map(|next| (Kind(next.kind), Box::new(next.stream) as BoxStream)),
        }
    }

    /// Closes the session and tells the peer why, in a sentence. Returns when
    /// both ends have closed, at the latest after the duration `drain`.
    pub async fn close(&self, why: &str) {
        let shared = self.shared();
        shared.over(CloseReason::Here, why);
        shared.main.ended().await;
    }

    /// Waits for the end of the session.
    pub async fn closed(&self) -> CloseReason {
        self.shared().closed().await
    }

    /// How long a ping on the control connection took last.
    pub fn round_trip(&self) -> Option<Duration> {
        match self.shared().round_trip.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// Pings now.
    ///
    /// # Errors
    /// [`SessionError`] when the session is or gets lost.
    pub async fn ping(&self) -> Result<Duration, SessionError> {
        let shared = self.shared();
        shared
            .ping()
            .await
            .map_err(|source| shared.unopened(source))
    }

    /// Bulk connections that are up.
    pub fn bulk_connections(&self) -> usize {
        self.shared().bulks()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.shared().peer)
            .field("address", &self.shared().address)
            .finish_non_exhaustive()
    }
}

impl Shared {
    async fn open(self: &Arc<Self>, kind: Kind) -> Result<BoxStream, SessionError> {
        if self.over.borrow().is_some() {
            return Err(self.is_over());
        }
        let connection = if self.bulk == 0 {
            self.main.clone()
        } else {
            self.bulk_connection().await?
        };
        let stream = connection
            .open(kind.0)
            .await
            .map_err(|source| self.unopened(source))?;
        Ok(Box::new(stream))
    }

    /// The bulk connection with the fewest streams; another one first when all
    /// are in use and there may be more.
    async fn bulk_connection(self: &Arc<Self>) -> Result<Connection, SessionError> {
        let deadline = tokio::time::Instant::now() + self.options.durations.connect;
        loop {
            let mut came = self.bulk_came.subscribe();
            let (best, count) = {
                let mut bulks = lock(&self.bulks);
                bulks.retain(|connection| !connection.has_ended());
                let best = bulks.iter().min_by_key(|connection| connection.streams());
                (best.cloned(), bulks.len())
            };
            let room = count < usize::from(self.bulk);
            match (&self.origin, best) {
                (_, Some(best)) if best.streams() == 0 || !room => return Ok(best),
                (Origin::Dialed(dialer), best) => match dialer.bulk(self, count).await {
                    Ok(()) => {}
                    // One that is there is better than none.
                    Err(error) => match best.filter(|best| !best.has_ended()) {
                        Some(best) => return Ok(best),
                        None => {
                            return Err(SessionError::Bulk {
                                peer: self.peer.name.clone(),
                                source: Box::new(error),
                            });
                        }
                    },
                },
                (Origin::Accepted(_), best) => {
                    let wanted = u8::try_from(count + 1).unwrap_or(self.bulk);
                    // A full queue: the peer has been asked already.
                    let _ = self.link.try_send(LinkMessage::WantBulk(wanted));
                    if let Some(best) = best {
                        return Ok(best);
                    }
                    if tokio::time::timeout_at(deadline, came.changed())
                        .await
                        .is_err()
                    {
                        return Err(SessionError::NoBulk {
                            peer: self.peer.name.clone(),
                            waited: self.options.durations.connect,
                        });
                    }
                }
            }
        }
    }

    /// Bulk connections that are up.
    fn bulks(&self) -> usize {
        let mut bulks = lock(&self.bulks);
        bulks.retain(|connection| !connection.has_ended());
        bulks.len()
    }

    /// A bulk connection is there.
    fn add_bulk(self: &Arc<Self>, connection: Connection) {
        if self.over.borrow().is_some() {
            connection.close();
            return;
        }
        {
            let mut bulks = lock(&self.bulks);
            bulks.retain(|connection| !connection.has_ended());
            // Several may have been let in at once, before the first was here.
            if bulks.len() >= usize::from(self.bulk) {
                connection.close();
                return;
            }
            bulks.push(connection.clone());
        }
        self.bulk_came.send_modify(|count| *count += 1);
        // The session may have ended between the two.
        if self.over.borrow().is_some() {
            connection.close();
        }
    }

    async fn ping(&self) -> io::Result<Duration> {
        let before = Duration::from_micros(self.round_trip.load(Ordering::Relaxed));
        if before >= FOLLOW_FROM {
            // Of many at once a few are: those behind them follow them.
            let _ = self.followed.try_send(Followed::Ping);
        }
        let took = self.main.ping().await?;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        self.round_trip.store(micros, Ordering::Relaxed);
        Ok(took)
    }

    async fn closed(&self) -> CloseReason {
        let mut over = self.over.subscribe();
        match over.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(CloseReason::Here),
            Err(_) => CloseReason::Here,
        }
    }

    /// Notes the first reason, and takes everything down.
    fn over(self: &Arc<Self>, reason: CloseReason, why: &str) {
        let first = self.over.send_if_modified(|over| {
            let first = over.is_none();
            if first {
                *over = Some(reason.clone());
            }
            first
        });
        if !first {
            return;
        }
        if let Origin::Accepted(registration) = &self.origin {
            registration.remove();
        }
        let bulks = std::mem::take(&mut *lock(&self.bulks));
        let tell =
            reason == CloseReason::Here && self.link.try_send(LinkMessage::closing(why)).is_ok();
        let shared = Arc::clone(self);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            // The last handle was dropped after the runtime: so are the tasks.
            return;
        };
        runtime.spawn(async move {
            for bulk in &bulks {
                bulk.close();
            }
            if tell {
                // The peer closes when it has read the message.
                let drain = shared.options.durations.drain;
                let _ = tokio::time::timeout(drain, shared.main.ended()).await;
            }
            shared.main.close();
        });
    }

    fn is_over(&self) -> SessionError {
        SessionError::Over {
            peer: self.peer.name.clone(),
            reason: self.over.borrow().clone().unwrap_or(CloseReason::Here),
        }
    }

    fn unopened(&self, source: io::Error) -> SessionError {
        if self.over.borrow().is_some() {
            return self.is_over();
        }
        SessionError::Open {
            peer: self.peer.name.clone(),
            source,
        }
    }
}

/// Starts the multiplexer on a greeted connection.
async fn multiplexed(
    io: crate::tls::TlsStream,
    side: Side,
    shape: Shape,
    incoming: mpsc::Sender<Incoming>,
) -> io::Result<Connection> {
    match side {
        Side::Dialed => mux::dial(io, shape, incoming).await,
        Side::Accepted => mux::accept(io, shape, incoming).await,
    }
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Dialed,
    Accepted,
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
