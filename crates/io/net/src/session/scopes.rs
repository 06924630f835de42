//! Scopes: sessions within a session, each with streams of its own.
//!
//! A stream of a scope names it in its first frame. Whoever learns of a scope
//! later than its first stream comes finds the stream waiting.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use firesteel_base::{Hint, limits};
use tokio::sync::{mpsc, watch};

use super::link::LinkMessage;
use super::{CloseReason, Kind, Shared, lock};
use crate::PeerName;
use crate::mux::{self, Incoming, Stops};

/// Why a scope could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScopeError {
    /// There is one of that name.
    #[error("the session with `{peer}` has a scope `{name}` already")]
    Taken {
        /// With whom.
        peer: PeerName,
        /// The name.
        name: String,
    },
    /// No name of a scope.
    #[error(
        "`{}` cannot name a scope: 1 to {limit} visible ASCII characters can",
        name.escape_debug(),
        limit = limits::NAME_LENGTH
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// As many as there may be.
    #[error("the session with `{peer}` has {limit} scopes already", limit = limits::SCOPES)]
    Many {
        /// With whom.
        peer: PeerName,
    },
    /// The session is over.
    #[error("the session with `{peer}` is over: {reason}")]
    Over {
        /// With whom.
        peer: PeerName,
        /// Why.
        reason: CloseReason,
    },
}

impl Hint for ScopeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Taken { .. } => Some("close the other one first".to_owned()),
            _ => None,
        }
    }
}

/// One end of a scope.
pub(super) struct Scope {
    pub name: Arc<str>,
    pub over: watch::Sender<Option<CloseReason>>,
    /// Turns true when the peer has seen the end of an earlier scope of this name.
    free: watch::Receiver<bool>,
    pub incoming: tokio::sync::Mutex<mpsc::Receiver<Incoming>>,
    pub control: tokio::sync::Mutex<mpsc::Receiver<Incoming>>,
    arrived: mpsc::Sender<Incoming>,
    control_arrived: mpsc::Sender<Incoming>,
    pub stops: Stops,
}

impl Scope {
    fn new(name: Arc<str>, free: watch::Receiver<bool>) -> Self {
        let (arrived, incoming) = mpsc::channel(limits::WAITING_STREAMS);
        let (control_arrived, control) = mpsc::channel(1);
        Self {
            name,
            over: watch::Sender::new(None),
            free,
            incoming: tokio::sync::Mutex::new(incoming),
            control: tokio::sync::Mutex::new(control),
            arrived,
            control_arrived,
            stops: Stops::default(),
        }
    }

    fn queue(&self, kind: u16) -> &mpsc::Sender<Incoming> {
        if kind == Kind::CONTROL.0 {
            &self.control_arrived
        } else {
            &self.arrived
        }
    }

    /// Whether streams may be opened in it, as far as earlier scopes go.
    pub async fn ready(&self) {
        // An error: the session is over, and that is told elsewhere.
        let _ = self.free.clone().wait_for(|free| *free).await;
    }

    /// Notes the first reason, and ends its streams. Whether it was the first.
    fn end(&self, reason: &CloseReason) -> bool {
        let first = self.over.send_if_modified(|over| {
            let first = over.is_none();
            if first {
                *over = Some(reason.clone());
            }
            first
        });
        if first {
            self.stops.stop();
        }
        first
    }
}

/// Where the streams that the peer opens go.
pub(super) struct Arrivals {
    unscoped: mpsc::Sender<Incoming>,
    scopes: Mutex<Scopes>,
    /// For how long a stream waits for its scope.
    patience: Duration,
    refused: AtomicU64,
}

#[derive(Default)]
struct Scopes {
    open: HashMap<Arc<str>, Arc<Scope>>,
    /// Those that this end has closed and the peer has not yet.
    closing: HashMap<Arc<str>, Closing>,
    waiting: VecDeque<(u64, Incoming)>,
    /// The number of the next stream that waits.
    next: u64,
    over: Option<CloseReason>,
}

/// Ends of scopes of one name.
struct Closing {
    /// How many of them the peer has not seen.
    untold: u32,
    /// Whether it has seen them all.
    free: watch::Sender<bool>,
}

impl Default for Closing {
    fn default() -> Self {
        Self {
            untold: 0,
            free: watch::Sender::new(false),
        }
    }
}

impl Arrivals {
    /// With the queue of streams that belong to no scope.
    pub fn new(patience: Duration) -> (Arc<Self>, mpsc::Receiver<Incoming>) {
        let (unscoped, incoming) = mpsc::channel(limits::WAITING_STREAMS);
        let this = Self {
            unscoped,
            scopes: Mutex::default(),
            patience,
            refused: AtomicU64::new(0),
        };
        (Arc::new(this), incoming)
    }

    /// Streams whose scope this end did not make in time.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Makes a scope, and gives it the streams that wait for it.
    pub fn make(&self, peer: &PeerName, name: &str) -> Result<Arc<Scope>, ScopeError> {
        if !valid(name) {
            return Err(ScopeError::Name {
                name: name.to_owned(),
            });
        }
        let mut scopes = lock(&self.scopes);
        if let Some(reason) = &scopes.over {
            return Err(ScopeError::Over {
                peer: peer.clone(),
                reason: reason.clone(),
            });
        }
        if scopes.open.contains_key(name) {
            return Err(ScopeError::Taken {
                peer: peer.clone(),
                name: name.to_owned(),
            });
        }
        if scopes.open.len() >= limits::SCOPES {
            return Err(ScopeError::Many { peer: peer.clone() });
        }
        let free = match scopes.closing.get(name) {
            Some(closing) => closing.free.subscribe(),
            None => watch::channel(true).1,
        };
        let scope = Arc::new(Scope::new(name.into(), free));
        scopes
            .open
            .insert(Arc::clone(&scope.name), Arc::clone(&scope));
        let waiting = std::mem::take(&mut scopes.waiting);
        for (number, incoming) in waiting {
            if incoming.scope.as_deref() == Some(name) {
                self.give(&scope, incoming);
            } else {
                scopes.waiting.push_back((number, incoming));
            }
        }
        Ok(scope)
    }

    fn give(&self, scope: &Scope, mut incoming: Incoming) {
        incoming.stream.stop_with(&scope.stops);
        if let Err(
            mpsc::error::TrySendError::Full(incoming) | mpsc::error::TrySendError::Closed(incoming),
        ) = scope.queue(incoming.kind).try_send(incoming)
        {
            self.refuse(incoming);
        }
    }

    fn refuse(&self, incoming: Incoming) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        incoming.stream.refuse();
    }

    /// This end closes a scope; `None` when it is closed already, else the peer
    /// is to be told. `true` on what is returned says that it has seen it.
    pub fn close(&self, scope: &Arc<Scope>) -> Option<watch::Receiver<bool>> {
        if !scope.end(&CloseReason::Here) {
            return None;
        }
        let mut scopes = lock(&self.scopes);
        // The peer may have closed it meanwhile, and another one be there.
        let open = scopes.open.get(&scope.name)?;
        if !Arc::ptr_eq(open, scope) {
            return None;
        }
        scopes.open.remove(&scope.name);
        let closing = scopes.closing.entry(Arc::clone(&scope.name)).or_default();
        closing.untold += 1;
        Some(closing.free.subscribe())
    }

    /// The peer has closed a scope. While we wait for it to see the end of ours,
    /// it speaks of that one, not of a newer one.
    pub fn closed_there(&self, name: &str, why: &str) {
        let scope = {
            let mut scopes = lock(&self.scopes);
            if scopes.closing.contains_key(name) {
                None
            } else {
                scopes.open.remove(name)
            }
        };
        if let Some(scope) = scope {
            scope.end(&CloseReason::Peer(why.to_owned()));
        }
    }

    /// The peer has seen that we closed a scope.
    pub fn seen(&self, name: &str) {
        let mut scopes = lock(&self.scopes);
        let Some(closing) = scopes.closing.get_mut(name) else {
            return;
        };
        closing.untold -= 1;
        if closing.untold == 0 {
            closing.free.send_replace(true);
            scopes.closing.remove(name);
        }
    }

    /// The session is over, and so are its scopes.
    pub fn end(&self, reason: &CloseReason) {
        let (open, waiting) = {
            let mut scopes = lock(&self.scopes);
            scopes.over.get_or_insert_with(|| reason.clone());
            scopes.closing.clear();
            (
                std::mem::take(&mut scopes.open),
                std::mem::take(&mut scopes.waiting),
            )
        };
        for scope in open.values() {
            scope.end(reason);
        }
        drop(waiting);
    }
}

impl mux::Arrivals for Arrivals {
    fn room(&self, kind: u16, scope: Option<&str>) -> bool {
        let Some(name) = scope else {
            return self.unscoped.capacity() > 0;
        };
        let scopes = lock(&self.scopes);
        let room = match scopes.open.get(name) {
            Some(scope) => scope.queue(kind).capacity() > 0,
            None => scopes.over.is_none() && scopes.waiting.len() < limits::WAITING_STREAMS,
        };
        if !room {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        room
    }

    fn arrived(self: Arc<Self>, incoming: Incoming) {
        let Some(name) = incoming.scope.clone() else {
            // Whoever is full by now: as if there had been no room before.
            if let Err(
                mpsc::error::TrySendError::Full(incoming)
                | mpsc::error::TrySendError::Closed(incoming),
            ) = self.unscoped.try_send(incoming)
            {
                incoming.stream.refuse();
            }
            return;
        };
        let mut scopes = lock(&self.scopes);
        if let Some(scope) = scopes.open.get(&name) {
            return self.give(scope, incoming);
        }
        if scopes.over.is_some() || scopes.waiting.len() >= limits::WAITING_STREAMS {
            drop(scopes);
            return self.refuse(incoming);
        }
        let number = scopes.next;
        scopes.next += 1;
        scopes.waiting.push_back((number, incoming));
        drop(scopes);
        tokio::spawn(expire(Arc::downgrade(&self), number, self.patience));
    }
}

/// Refuses a stream whose scope has not been made in time.
async fn expire(arrivals: Weak<Arrivals>, number: u64, patience: Duration) {
    tokio::time::sleep(patience).await;
    let Some(arrivals) = arrivals.upgrade() else {
        return;
    };
    let late = {
        let mut scopes = lock(&arrivals.scopes);
        let place = scopes.waiting.iter().position(|(n, _)| *n == number);
        place.and_then(|place| scopes.waiting.remove(place))
    };
    if let Some((_, incoming)) = late {
        arrivals.refuse(incoming);
    }
}

/// Tells the peer that a scope is closed.
pub(super) async fn tell(shared: Arc<Shared>, name: Arc<str>, why: String) {
    let message = LinkMessage::ScopeClosed { name, why };
    tokio::select! {
        _ = shared.link.send(message) => {}
        _ = shared.closed() => {}
    }
}

/// What can travel in a header and be shown as it is.
pub(crate) fn valid(name: &str) -> bool {
    (1..=limits::NAME_LENGTH).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}
