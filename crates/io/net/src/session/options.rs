//! How sessions are made, and what their streams are for.

use std::fmt;

use firesteel_base::{Durations, limits};

use crate::Congestion;
use crate::mux::Shape;

/// What a stream is for. Numbers below 16 are the session's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind(pub(super) u16);

impl Kind {
    /// Large objects, pulled.
    pub const TRANSFER: Self = Self(16);
    /// Bytes of a process at one end for a process at the other.
    pub const TUNNEL: Self = Self(17);
    /// What a site offers, fetched by another one through the server.
    pub const STREAM: Self = Self(18);

    /// Lines of a job's logs, as they are written.
    pub const LOGS: Self = Self(19);
    /// A job's code and what else its submitter sends along.
    pub const BUNDLE: Self = Self(20);
    /// Files of a job or a site, looked at from elsewhere.
    pub const FILES: Self = Self(21);

    /// Jobs of the sites below a relay, that their server has for it.
    pub const BELOW: Self = Self(22);
    /// Signed files of models that a relay holds for the sites below it.
    pub const CACHE: Self = Self(23);

    pub(crate) const CONTROL: Self = Self(1);
    pub(crate) const LINK: Self = Self(2);

    /// Whether its streams go over the control connection: those that carry little
    /// and live long, and would keep a bulk connection alive for that.
    pub(super) fn is_small(self) -> bool {
        [Self::LOGS, Self::FILES, Self::BELOW].contains(&self)
    }

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
            Self::LOGS => f.write_str("logs"),
            Self::BUNDLE => f.write_str("bundle"),
            Self::FILES => f.write_str("files"),
            Self::BELOW => f.write_str("below"),
            Self::CACHE => f.write_str("cache"),
            Self::CONTROL => f.write_str("control"),
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

    pub(super) fn bulk(&self) -> u8 {
        self.bulk_connections.min(limits::BULK_CONNECTIONS)
    }

    pub(super) fn shape(&self, purpose: crate::tcp::Purpose) -> Shape {
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
