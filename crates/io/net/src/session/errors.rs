//! Ends of sessions, and streams that could not be opened.

use std::fmt;
use std::io;
use std::time::Duration;

use firesteel_base::Hint;

use super::DialError;
use crate::PeerName;

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
    /// The one control stream of a session was given out before.
    #[error("the control stream of the session with `{peer}` is in use already")]
    ControlTaken {
        /// With whom.
        peer: PeerName,
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
