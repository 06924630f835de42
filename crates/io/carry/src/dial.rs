//! How connections to the peer come about.

use std::io;
use std::pin::Pin;

use crate::Connection;

/// A connection that is being made.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = io::Result<Connection>> + Send + 'a>>;

/// Makes connections to the peer.
pub trait Dial: Send {
    /// Makes one, in one try.
    fn dial(&mut self) -> Dialing<'_>;

    /// Whether another try may give another one.
    fn again(&self) -> bool {
        true
    }
}

/// The one connection that there is.
pub struct Once(Option<Connection>);

impl Once {
    /// This one.
    pub fn new(connection: Connection) -> Self {
        Self(Some(connection))
    }
}

impl Dial for Once {
    fn dial(&mut self) -> Dialing<'_> {
        let connection = self.0.take();
        Box::pin(async { connection.ok_or_else(|| io::ErrorKind::NotConnected.into()) })
    }

    fn again(&self) -> bool {
        false
    }
}
