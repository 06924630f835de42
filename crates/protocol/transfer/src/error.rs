//! Why a transfer fails.

use firesteel_base::Hint;

/// Why bytes are no manifest, or not the manifest of this file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The bytes end early, go on too long, or hold what no manifest holds.
    #[error("the manifest is malformed at byte {at}: {what}")]
    Malformed {
        /// Where.
        at: usize,
        /// What stands there.
        what: &'static str,
    },
    /// Its bytes have another digest than was offered.
    #[error("the manifest has digest {found}, {offered} was offered")]
    Digest {
        /// Of the bytes.
        found: crate::Digest,
        /// What the offer said.
        offered: crate::Digest,
    },
    /// The parts do not add up to the file.
    #[error("the manifest's parts cover {parts} of the file's {total} bytes")]
    Cover {
        /// Bytes of the parts together.
        parts: u64,
        /// Bytes of the file.
        total: u64,
    },
    /// A length that no file has.
    #[error("the manifest has a length of {length} bytes")]
    Length {
        /// It.
        length: u64,
    },
    /// The manifest is of another model than the file's header.
    #[error("the manifest does not fit the model's header: {what}")]
    Misfit {
        /// Where they differ.
        what: String,
    },
    /// Bytes that were fed to a builder are more or fewer than the layout says.
    #[error("the file has {found} bytes, its header describes {expected}")]
    Fed {
        /// Bytes fed.
        found: u64,
        /// Bytes of the layout.
        expected: u64,
    },
}

/// Why a sender refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalCode {
    /// The object is not, or no longer, offered to this peer.
    Gone,
    /// The file was changed while it was sent.
    Changed,
    /// The file cannot be read.
    Unreadable,
    /// The sender has too much to do; ask again later.
    Busy,
    /// A code of a later version.
    Other,
}

impl RefusalCode {
    /// The number on the wire.
    pub fn code(self) -> u64 {
        match self {
            Self::Gone => 1,
            Self::Changed => 2,
            Self::Unreadable => 3,
            Self::Busy => 4,
            Self::Other => 0,
        }
    }

    /// The inverse of [`RefusalCode::code`].
    pub fn parse(code: u64) -> Self {
        match code {
            1 => Self::Gone,
            2 => Self::Changed,
            3 => Self::Unreadable,
            4 => Self::Busy,
            _ => Self::Other,
        }
    }
}

/// Why a transfer cannot go on over this stream. Peer and object are named by
/// whoever drives the value, which knows what a person calls them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The peer sent what is no frame.
    #[error("the peer does not speak the protocol: {what}")]
    Frame {
        /// What came.
        what: String,
    },
    /// A frame that has no place in the conversation.
    #[error("the peer sent {what}")]
    Unexpected {
        /// What came.
        what: String,
    },
    /// A range that is outside of the file, empty, or was not asked for.
    #[error("bytes {offset} to {offset}+{length} are outside of the {what} of {total} bytes")]
    Range {
        /// File or manifest.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// How long it is.
        length: u64,
        /// How long the whole is.
        total: u64,
    },
    /// More than may be asked for at a time.
    #[error("the peer asked for {asked} {what} at a time, the limit is {limit}")]
    TooMuch {
        /// Bytes or ranges.
        what: &'static str,
        /// How many.
        asked: u64,
        /// The limit.
        limit: u64,
    },
    /// The peer goes on sending what nobody asked for.
    #[error("the peer sent {bytes} bytes that nobody had asked for")]
    Surplus {
        /// How many.
        bytes: u64,
    },
    /// The object has another length than was announced, or one that no file has.
    #[error("{announced} bytes were announced, the peer offers {offered}")]
    Length {
        /// By the message that named the object.
        announced: u64,
        /// By the peer.
        offered: u64,
    },
    /// The manifest is none.
    #[error("the peer's manifest is of no use")]
    Manifest(#[from] ManifestError),
    /// The object is another one than before the connection was lost.
    #[error("the peer offers another file than before under the same number")]
    Replaced,
    /// Bytes that are not what the manifest says, pulled more than once.
    #[error(
        "bytes {start} to {end} ({part}) are not what the manifest says; they were pulled {times} times"
    )]
    Damaged {
        /// First of them.
        start: u64,
        /// Behind the last.
        end: u64,
        /// Which part of the file they are.
        part: String,
        /// How often.
        times: u32,
    },
    /// The sender refused.
    #[error("{sentence}")]
    Refused {
        /// Why.
        code: RefusalCode,
        /// The sender's sentence, cut and without control characters.
        sentence: String,
    },
    /// No progress for the duration `idle`.
    #[error("nothing came for {seconds} s")]
    Idle {
        /// How long.
        seconds: u64,
    },
}

impl TransferError {
    pub(crate) fn frame(what: String) -> Self {
        Self::Frame { what }
    }

    pub(crate) fn unexpected(what: impl Into<String>) -> Self {
        Self::Unexpected { what: what.into() }
    }

    /// Whether another stream to the same peer may end better.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Idle { .. }
                | Self::Refused {
                    code: RefusalCode::Busy,
                    ..
                }
        )
    }
}

impl Hint for TransferError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Refused {
                code: RefusalCode::Changed,
                ..
            }
            | Self::Damaged { .. } => {
                "a file that is offered must not be written to; offer a copy, or offer it when it is complete"
            }
            Self::Idle { .. } => {
                "`firesteel doctor` at both ends shows whether the network lets traffic through"
            }
            _ => return None,
        };
        Some(text.into())
    }
}
