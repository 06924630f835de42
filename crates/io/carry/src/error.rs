//! Why a model did not arrive.

use firesteel_base::Hint;
use firesteel_net::pull::PullError;
use firesteel_store::{IncomingError, LiveReason, ObjectError};
use firesteel_transfer::{ManifestError, TransferError};

/// Why a model did not arrive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CarryError {
    /// Whoever offered it does so no more.
    #[error("{what} was gone before it could be fetched")]
    Gone {
        /// `object 7 of site-1`.
        what: String,
    },
    /// No object can be what the peer named.
    #[error("the peer offers what cannot be")]
    Offer(#[from] TransferError),
    /// There is no place for it.
    #[error("it cannot be received")]
    Incoming(#[from] IncomingError),
    /// There is no place for it, and it can be read without one.
    #[error("{reason}")]
    NoRoom {
        /// Why.
        reason: LiveReason,
    },
    /// It could not be transferred.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// What arrived cannot be stored, or is no model.
    #[error("what arrived is of no use")]
    Object(#[from] ObjectError),
    /// The manifest speaks of another model than the bytes are.
    #[error("what arrived is not what its manifest says")]
    Manifest(#[from] ManifestError),
    /// A panic of our own.
    #[error("the transfer broke; this is a bug, please report it")]
    Broken,
}

impl CarryError {
    /// Whether a disk had no room for it.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Object(ObjectError::Store(error))
            | Self::Incoming(IncomingError::Store(error)) => error.is_full(),
            Self::Pull(error) => error.is_disk_full(),
            Self::NoRoom { .. } => true,
            _ => false,
        }
    }
}

impl Hint for CarryError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Object(error) => error.hint(),
            Self::Incoming(error) => error.hint(),
            Self::Pull(error) => error.hint(),
            _ => None,
        }
    }
}
