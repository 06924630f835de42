//! How models travel between a server and its sites: on one machine they are
//! shared and nothing is copied, over a network they are pulled.
//!
//! Roles hold a [`Carrier`] and do not know which of the two it is.
//!
//! Never: decides what is offered to whom or which filters it goes through, or
//! holds more of a model in memory than windows of it.
//!
//! Start at [`Carrier`].

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

pub mod filter;
pub mod update;

mod dial;
mod error;
mod live;
mod local;
mod progress;
mod remote;
mod stream;

use std::pin::Pin;
use std::sync::Arc;

use firesteel_net::{BoxStream, Session};
use firesteel_store::{ModelObject, PartName};
use firesteel_wire::control::Object;
use tokio::sync::mpsc;

pub use dial::{Dial, Dialing, Once};
pub use error::CarryError;
pub use live::LiveModel;
pub use local::Local;
pub use progress::Progress;
pub use remote::{Depot, Remote};
pub use stream::Relay;

/// The ways of models to and from one peer.
///
/// It outlives connections: what was offered stays so when the peer comes back,
/// and a fetch goes on where it stopped.
pub trait Carrier: Send + Sync {
    /// A connection to the peer is there, and this is its way.
    fn connected(&self, _way: Way) {}

    /// Lets the peer fetch `model` until [`Carrier::withdraw`]; what it must be
    /// told for that. Not for models up to `limits::INLINE_OBJECT`, which travel
    /// inside their message.
    fn offer(&self, name: Offer, model: &ModelObject) -> Object;

    /// Ends what was offered under this name.
    fn withdraw(&self, name: Offer);

    /// Where the streams go by which those below the peer, which is a relay, take
    /// part in the job.
    fn below(&self, _streams: mpsc::Sender<BoxStream>) {}

    /// A round is over for good: what was left half of earlier fetches is of no
    /// further use.
    fn tidy(&self) {}

    /// The model that the peer named, when nothing has to travel for it.
    fn here(&self, object: &Object) -> Option<ModelObject>;

    /// Fetches what the peer named. It goes on over lost connections for as long
    /// as it is polled, and ends when it is dropped.
    fn fetch(&self, order: Order) -> Fetching;
}

/// What a fetch came to.
#[derive(Debug, Clone)]
pub enum Fetched {
    /// It is here.
    Here(ModelObject),
    /// There was no room for it: it is to be read where it lies.
    Live(Arc<LiveModel>),
}

/// A fetch on its way.
pub type Fetching = Pin<Box<dyn Future<Output = Result<Fetched, CarryError>> + Send>>;

/// What is offered. The same name is the same bytes, also after the offering
/// process was started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Offer {
    /// A model of the job.
    Model {
        /// What the job's workflow calls it.
        handle: u64,
    },
    /// The update of a try.
    Update {
        /// The number of its round from zero.
        round: u32,
        /// The number of the try from zero.
        attempt: u32,
    },
}

impl Offer {
    /// The number under which it is asked for.
    pub fn id(self) -> u64 {
        match self {
            Self::Model { handle } => handle & !UPDATE,
            // Tries of one round are few: what is cut off here was never counted.
            Self::Update { round, attempt } => {
                UPDATE | u64::from(round) << 31 | u64::from(attempt & 0x7fff_ffff)
            }
        }
    }
}

/// The bit that tells updates from models.
const UPDATE: u64 = 1 << 63;

/// What is to be fetched.
pub struct Order {
    /// What the peer named.
    pub object: Object,
    /// What a person calls it, as in "the update of round 3".
    pub name: String,
    /// The name of its file while it is being received, by which it is gone on
    /// with after a restart.
    pub part: PartName,
    /// Whether it is of no use unless it is here as a whole.
    pub whole: bool,
    /// Where its progress is shown.
    pub progress: Arc<Progress>,
}

/// A connection to a peer.
pub struct Connection {
    /// The stream of control messages.
    pub control: BoxStream,
    /// The way of everything else.
    pub way: Way,
}

/// How a peer is reached.
pub enum Way {
    /// It is in this process.
    Here,
    /// It is at the other end of this.
    Session(Session),
    /// It is below the relay of this name, which has made sure who it is, and
    /// which models come from and go to.
    Below(String),
}

impl Connection {
    /// One within this process.
    pub fn local(control: BoxStream) -> Self {
        Self {
            control,
            way: Way::Here,
        }
    }
}

impl Way {
    /// The name that the peer has proved to have; none where nothing is to prove.
    pub fn peer(&self) -> Option<&str> {
        match self {
            Self::Here | Self::Below(_) => None,
            Self::Session(session) => Some(session.peer().name.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_offers_are_all_different() {
        let mut ids: Vec<u64> = [0, 1, 7, u32::MAX]
            .into_iter()
            .flat_map(|round| {
                let tries = [0, 1, 9].map(|attempt| Offer::Update { round, attempt }.id());
                let handle = u64::from(round) << 31;
                tries.into_iter().chain([Offer::Model { handle }.id()])
            })
            .collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }
}
