//! The session's own stream, and the pings: what keeps a session and ends it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use firesteel_base::limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::hello::{HEAD, length};
use super::{CloseReason, Origin, Shared};
use crate::driver;
use crate::mux::MuxStream;

/// The stream, still whole.
pub(super) struct Link(pub MuxStream);

/// What travels on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LinkMessage {
    /// Have so many bulk connections, please; from the accepting end.
    WantBulk(u8),
    /// This end closes the session, for this reason.
    Closing(String),
    /// A few bytes behind a ping or its answer; see [`follow`].
    Filler {
        /// Whether the peer is to send some, too.
        answer: bool,
    },
    /// This end has closed a scope, for this reason.
    ScopeClosed {
        /// Its name.
        name: Arc<str>,
        /// For people.
        why: String,
    },
    /// This end has seen that, and opens no more streams in it.
    ScopeSeen(Arc<str>),
}

const WANT_BULK: u8 = 1;
const CLOSING: u8 = 2;
const FILLER: u8 = 3;
const SCOPE_CLOSED: u8 = 4;
const SCOPE_SEEN: u8 = 5;

impl LinkMessage {
    pub fn closing(why: &str) -> Self {
        Self::Closing(why.to_owned())
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Self::WantBulk(count) => body.extend([WANT_BULK, *count]),
            Self::Filler { answer } => body.extend([FILLER, u8::from(*answer)]),
            Self::Closing(why) => {
                body.push(CLOSING);
                sentence(&mut body, why);
            }
            Self::ScopeClosed { name, why } => {
                body.push(SCOPE_CLOSED);
                scope(&mut body, name);
                sentence(&mut body, why);
            }
            Self::ScopeSeen(name) => {
                body.push(SCOPE_SEEN);
                scope(&mut body, name);
            }
        }
        let length = u16::try_from(body.len()).expect("a link message is at most 1 KiB long");
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.append(&mut body);
        bytes
    }

    /// `None` for what a later version may have sent.
    pub fn decode(body: &[u8]) -> Option<Self> {
        match body.split_first()? {
            (&WANT_BULK, rest) => rest.first().copied().map(Self::WantBulk),
            (&FILLER, rest) => Some(Self::Filler {
                answer: rest.first() == Some(&1),
            }),
            (&CLOSING, why) => Some(Self::Closing(printable(why))),
            (&SCOPE_CLOSED, rest) => {
                let (name, why) = scope_of(rest)?;
                let why = printable(why);
                Some(Self::ScopeClosed { name, why })
            }
            (&SCOPE_SEEN, rest) => Some(Self::ScopeSeen(scope_of(rest)?.0)),
            _ => None,
        }
    }
}

/// As much of a sentence as has room.
fn sentence(body: &mut Vec<u8>, why: &str) {
    let room = limits::SESSION_MESSAGE - body.len();
    body.extend(why.bytes().take(why.floor_char_boundary(room)));
}

/// A scope's name behind its length.
fn scope(body: &mut Vec<u8>, name: &str) {
    let length = u8::try_from(name.len()).expect("names were checked when the scopes were made");
    body.push(length);
    body.extend(name.bytes());
}

fn scope_of(bytes: &[u8]) -> Option<(Arc<str>, &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(length))?;
    let name = std::str::from_utf8(name).ok()?;
    super::is_scope(name).then(|| (name.into(), rest))
}

/// A peer's sentence, without what a terminal would obey.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Starts the tasks of a session.
pub(super) fn start(
    shared: &Arc<Shared>,
    link: Link,
    messages: mpsc::Receiver<LinkMessage>,
    followed: mpsc::Receiver<Followed>,
) {
    let (reading, writing) = tokio::io::split(link.0);
    let (fill, fillers) = mpsc::channel(1);
    tokio::spawn(write(writing, messages, fillers));
    tokio::spawn(follow(followed, fill));
    tokio::spawn(read(Arc::downgrade(shared), reading));
    tokio::spawn(beat(Arc::clone(shared)));
    tokio::spawn(watch(Arc::clone(shared)));
}

async fn write(
    mut stream: WriteHalf<MuxStream>,
    mut messages: mpsc::Receiver<LinkMessage>,
    mut fillers: mpsc::Receiver<LinkMessage>,
) {
    loop {
        let message = tokio::select! {
            biased;
            message = messages.recv() => message,
            Some(filler) = fillers.recv() => Some(filler),
        };
        let Some(message) = message else {
            return;
        };
        let written = async {
            stream.write_all(&message.encode()).await?;
            stream.flush().await
        };
        // Whoever watches the connection says why it failed.
        if written.await.is_err() {
            return;
        }
    }
}

/// What small frames are to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Followed {
    /// A ping of this end's: the peer's answer is to be followed, too.
    Ping,
    /// An answer to the peer's.
    Answer,
}

/// The round trip from which on pings are followed: on shorter ones TCP's timer is
/// no slower than what it saves.
pub(super) const FOLLOW_FROM: Duration = Duration::from_millis(50);

/// TCP takes a packet for lost when it hears of three later ones.
const FOLLOWERS: u32 = 3;

/// Between them, so that each is a packet of its own and one burst does not lose
/// them all.
const FOLLOW_GAP: Duration = Duration::from_millis(3);

/// Sends small frames behind pings and answers. Where a lone packet is lost, its
/// sender hears nothing and waits for a timer; with others behind it, it is known
/// within a round trip.
async fn follow(mut followed: mpsc::Receiver<Followed>, fill: mpsc::Sender<LinkMessage>) {
    while let Some(what) = followed.recv().await {
        for number in 0..FOLLOWERS {
            tokio::time::sleep(FOLLOW_GAP).await;
            let answer = what == Followed::Ping && number == 0;
            // Where one still waits, the line is busy and has enough that follows.
            let _ = fill.try_send(LinkMessage::Filler { answer });
        }
    }
}

async fn read(shared: Weak<Shared>, mut stream: ReadHalf<MuxStream>) {
    // When it ends, so does the connection; that is watched elsewhere.
    while let Some(message) = next(&mut stream).await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        match message {
            Some(LinkMessage::WantBulk(count)) => {
                if let Origin::Dialed(_) = &shared.origin {
                    let wanted = count.min(shared.bulk);
                    tokio::spawn(async move {
                        if let Origin::Dialed(dialer) = &shared.origin {
                            dialer.have(&shared, usize::from(wanted)).await;
                        }
                    });
                }
            }
            Some(LinkMessage::Closing(why)) => shared.over(CloseReason::Peer(why), ""),
            Some(LinkMessage::Filler { answer: true }) => {
                // One that asks faster than it is answered gets fewer.
                let _ = shared.followed.try_send(Followed::Answer);
            }
            Some(LinkMessage::ScopeClosed { name, why }) => {
                shared.arrivals.closed_there(&name, &why);
                // A peer that closes scopes faster than it reads waits for itself.
                if shared
                    .link
                    .send(LinkMessage::ScopeSeen(name))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Some(LinkMessage::ScopeSeen(name)) => shared.arrivals.seen(&name),
            Some(LinkMessage::Filler { answer: false }) | None => {}
        }
    }
}

/// The next message, or `Some(None)` for one that we do not know.
async fn next(stream: &mut ReadHalf<MuxStream>) -> Option<Option<LinkMessage>> {
    let mut head = [0; HEAD];
    stream.read_exact(&mut head).await.ok()?;
    let mut body = vec![0; length(head).ok()?];
    stream.read_exact(&mut body).await.ok()?;
    Some(LinkMessage::decode(&body))
}

/// Pings four times per `idle`, and at least so often that nothing between gives
/// the connections up; a peer that does not answer for `idle` is lost. Bulk
/// connections that nobody has used for as long are closed, too.
async fn beat(shared: Arc<Shared>) {
    let idle = shared.options.durations.idle.max(Duration::from_millis(4));
    let interval = driver::beat(idle);
    let most = idle.as_nanos().div_ceil(interval.as_nanos().max(1));
    let mut quiet = 0;
    loop {
        tokio::select! {
            answer = tokio::time::timeout(idle, shared.ping()) => match answer {
                Ok(Ok(_)) => {}
                // The one that watches says why.
                Ok(Err(_)) => return,
                Err(_) => return shared.over(CloseReason::Silent(idle), ""),
            },
            _ = shared.closed() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = shared.closed() => return,
        }
        quiet = shared.tidy(quiet, most);
    }
}

async fn watch(shared: Arc<Shared>) {
    let why = shared.main.ended().await;
    shared.over(CloseReason::Lost(why.to_string()), "");
}

impl Shared {
    /// Closes bulk connections after `most` quiet beats, and pings the others;
    /// returns how many quiet beats there were. Only the dialing end does: the
    /// other cannot make new ones.
    fn tidy(&self, quiet: u128, most: u128) -> u128 {
        let mut bulks = super::lock(&self.bulks);
        bulks.retain(|connection| !connection.has_ended());
        if !matches!(self.origin, Origin::Dialed(_)) || bulks.is_empty() {
            return 0;
        }
        let idle = self.options.durations.idle;
        let used = bulks.iter().any(|connection| connection.streams() > 0);
        if used || quiet + 1 < most {
            for bulk in bulks.iter() {
                let bulk = bulk.clone();
                tokio::spawn(async move {
                    // One whose way is gone while nobody waits for it.
                    if tokio::time::timeout(idle, bulk.ping()).await.is_err() {
                        bulk.close();
                    }
                });
            }
            return if used { 0 } else { quiet + 1 };
        }
        for bulk in bulks.drain(..) {
            bulk.close();
        }
        0
    }
}
