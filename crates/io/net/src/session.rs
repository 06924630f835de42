//! Sessions: a control connection, bulk connections, and streams on them.

mod dialing;
mod errors;
mod hello;
mod link;
mod listening;
mod options;
mod scopes;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::mux::{self, Connection, Incoming, Shape};
use crate::{BoxStream, Peer};

pub use dialing::{DialError, dial, dial_over, dial_through, dial_with};
pub use errors::{CloseReason, SessionError};
pub use hello::HelloError;
pub use listening::{AcceptError, BindError, Listener};
pub use options::{Kind, Options};
pub use scopes::ScopeError;

pub(crate) use listening::{Door, PAUSE};
pub(crate) use scopes::valid as is_scope;

use dialing::Dialer;
use link::{FOLLOW_FROM, Followed, Link, LinkMessage};
use listening::Registration;
use scopes::{Arrivals, Scope};

/// A session with a peer, or a [scope](Session::scope) of one. Clones are the
/// same session; when the last is dropped it is closed, with all its streams.
#[derive(Clone)]
pub struct Session(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    /// The part of the session that this is, else all of it.
    scope: Option<Arc<Scope>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        match &self.scope {
            None => self.shared.over(CloseReason::Here, ""),
            Some(scope) => {
                self.shared.close_scope(scope, "");
            }
        }
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
    arrivals: Arc<Arrivals>,
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
    arrivals: Arc<Arrivals>,
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
        let handle = Handle {
            shared: Arc::clone(&shared),
            scope: None,
        };
        (Self(Arc::new(handle)), shared)
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    fn over(&self) -> &watch::Sender<Option<CloseReason>> {
        match &self.0.scope {
            None => &self.shared().over,
            Some(scope) => &scope.over,
        }
    }

    fn is_over(&self) -> SessionError {
        SessionError::Over {
            peer: self.shared().peer.name.clone(),
            reason: self.over().borrow().clone().unwrap_or(CloseReason::Here),
        }
    }

    /// A session within this one: with streams of its own, on the connections of
    /// this one. Both ends make it, under one name, such as a job's; a stream that
    /// comes before this end has made it waits up to the duration `connect`.
    /// Closing or dropping it ends its streams only, and is told to the peer. It
    /// ends with the session, and does not keep it alive.
    ///
    /// A name can be used again once its scope is closed at both ends. A scope of
    /// a scope is one of the same session.
    ///
    /// # Errors
    /// [`ScopeError`]: the name is taken or none, or the session is over.
    pub fn scope(&self, name: &str) -> Result<Self, ScopeError> {
        let shared = self.shared();
        let scope = shared.arrivals.make(&shared.peer.name, name)?;
        Ok(Self(Arc::new(Handle {
            shared: Arc::clone(shared),
            scope: Some(scope),
        })))
    }

    /// The name of the scope that this is.
    pub fn scope_name(&self) -> Option<&str> {
        self.0.scope.as_ref().map(|scope| &*scope.name)
    }

    /// Streams of scopes that this end did not make in time, or had no room for.
    pub fn refused_streams(&self) -> u64 {
        self.shared().arrivals.refused()
    }

    /// With whom, as its certificate says.
    pub fn peer(&self) -> &Peer {
        &self.shared().peer
    }

    /// The peer's address.
    pub fn address(&self) -> SocketAddr {
        self.shared().address
    }

    /// The stream for messages between the roles; the first caller gets it. In a
    /// scope it is one that the peer has opened already; see
    /// [`Self::open_control`] and [`Self::accept_control`].
    pub fn control(&self) -> Option<BoxStream> {
        match &self.0.scope {
            None => lock(&self.shared().control).take(),
            Some(scope) => {
                let next = scope.control.try_lock().ok()?.try_recv().ok()?;
                Some(Box::new(next.stream))
            }
        }
    }

    /// Opens the control stream of a scope, on the control connection. One end
    /// does, and the other accepts it: by custom the end that dialed opens. Of a
    /// whole session it is [`Self::control`].
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn open_control(&self) -> Result<BoxStream, SessionError> {
        let shared = self.shared();
        let Some(scope) = &self.0.scope else {
            return self.control().ok_or_else(|| SessionError::ControlTaken {
                peer: shared.peer.name.clone(),
            });
        };
        let mut over = self.over().subscribe();
        let opened = async {
            scope.ready().await;
            shared.on(&shared.main, Kind::CONTROL, Some(scope)).await
        };
        tokio::select! {
            biased;
            _ = over.wait_for(Option::is_some) => Err(self.is_over()),
            stream = opened => stream,
        }
    }

    /// Waits for the control stream of a scope; `None` when the scope is over. Of a
    /// whole session it is [`Self::control`].
    pub async fn accept_control(&self) -> Option<BoxStream> {
        let Some(scope) = &self.0.scope else {
            return self.control();
        };
        self.next(&scope.control).await.map(|(_, stream)| stream)
    }

    /// Opens a stream, on a bulk connection where there may be one.
    ///
    /// # Errors
    /// [`SessionError`]. Only [`SessionError::Over`] is final.
    pub async fn open(&self, kind: Kind) -> Result<BoxStream, SessionError> {
        let shared = self.shared();
        let mut over = self.over().subscribe();
        let scope = self.0.scope.as_ref();
        tokio::select! {
            biased;
            _ = over.wait_for(Option::is_some) => Err(self.is_over()),
            stream = shared.open(kind, scope) => stream,
        }
    }

    /// The next stream that the peer has opened; `None` when the session, or the
    /// scope, is over.
    pub async fn accept(&self) -> Option<(Kind, BoxStream)> {
        match &self.0.scope {
            None => self.next(&self.shared().incoming).await,
            Some(scope) => self.next(&scope.incoming).await,
        }
    }

    async fn next(
        &self,
        queue: &tokio::sync::Mutex<mpsc::Receiver<Incoming>>,
    ) -> Option<(Kind, BoxStream)> {
        let mut over = self.over().subscribe();
        let mut queue = queue.lock().await;
        tokio::select! {
            biased;
            _ = over.wait_for(Option::is_some) => None,
            next = queue.recv() => next
                .map(|next| (Kind(next.kind), Box::new(next.stream) as BoxStream)),
        }
    }

    /// Closes the session or the scope, and tells the peer why, in a sentence.
    /// Returns when both ends have closed, at the latest after the duration
    /// `drain`.
    pub async fn close(&self, why: &str) {
        let shared = self.shared();
        let Some(scope) = &self.0.scope else {
            shared.over(CloseReason::Here, why);
            shared.main.ended().await;
            return;
        };
        if let Some(mut seen) = shared.close_scope(scope, why) {
            let drain = shared.options.durations.drain;
            let _ = tokio::time::timeout(drain, seen.wait_for(|seen| *seen)).await;
        }
    }

    /// Waits for the end of the session or the scope.
    pub async fn closed(&self) -> CloseReason {
        ended(self.over()).await
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
            .field("scope", &self.scope_name())
            .field("address", &self.shared().address)
            .finish_non_exhaustive()
    }
}

impl Shared {
    async fn open(
        self: &Arc<Self>,
        kind: Kind,
        scope: Option<&Arc<Scope>>,
    ) -> Result<BoxStream, SessionError> {
        if self.over.borrow().is_some() {
            return Err(self.is_over());
        }
        if let Some(scope) = scope {
            scope.ready().await;
        }
        let connection = if self.bulk == 0 || kind.is_small() {
            self.main.clone()
        } else {
            self.bulk_connection().await?
        };
        self.on(&connection, kind, scope).await
    }

    async fn on(
        &self,
        connection: &Connection,
        kind: Kind,
        scope: Option<&Arc<Scope>>,
    ) -> Result<BoxStream, SessionError> {
        let mut stream = connection
            .open(kind.0, scope.map(|scope| &*scope.name))
            .await
            .map_err(|source| self.unopened(source))?;
        if let Some(scope) = scope {
            stream.stop_with(&scope.stops);
        }
        Ok(Box::new(stream))
    }

    /// Closes a scope at this end; what is returned turns true when the peer has
    /// seen it. `None` when it was closed before.
    fn close_scope(
        self: &Arc<Self>,
        scope: &Arc<Scope>,
        why: &str,
    ) -> Option<watch::Receiver<bool>> {
        let seen = self.arrivals.close(scope)?;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let name = Arc::clone(&scope.name);
            runtime.spawn(scopes::tell(Arc::clone(self), name, why.to_owned()));
        }
        Some(seen)
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
        ended(&self.over).await
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
        self.arrivals.end(&reason);
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

/// Waits for an end.
async fn ended(over: &watch::Sender<Option<CloseReason>>) -> CloseReason {
    match over.subscribe().wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or(CloseReason::Here),
        Err(_) => CloseReason::Here,
    }
}

/// Starts the multiplexer on a greeted connection.
async fn multiplexed(
    io: crate::tls::TlsStream,
    side: Side,
    shape: Shape,
    incoming: Arc<Arrivals>,
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

/// For fuzzing: everything that strangers say to a session.
pub(crate) fn decode_all(bytes: &[u8]) {
    let _ = hello::Hello::decode(bytes);
    let _ = hello::Welcome::decode(bytes);
    let _ = LinkMessage::decode(bytes);
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
