//! Sessions between peers: mutual TLS over TCP, any number of independent streams
//! on it, and messages over those.
//!
//! A driver (a TCP connection, an in-memory pipe) only makes a byte stream; what
//! travels on it is the same everywhere. A session is one control connection and,
//! while large things move, a few bulk connections to the same port; either end
//! opens streams on them.
//!
//! Never: knows what a message means, decides who may connect beyond what the
//! certificates say, connects again by itself, or installs anything for the whole
//! process (the cryptography is passed explicitly).
//!
//! Start at [`Session`], or at [`split`] for messages. The layout on the wire is
//! in `docs/specs/session.md`.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

mod messages;

mod driver;
mod front;
mod identity;
mod mux;
mod outer;
mod redial;
mod session;
mod tcp;
mod tls;
mod wire;

pub mod pull;

#[doc(hidden)]
pub mod fuzzing;

#[cfg(feature = "dev")]
pub mod dev;

pub use driver::{Opener, Proxy, ProxyError, Scheme, Security, Target, stream_with};
pub use front::{
    Entrance, Front, FrontOptions, Network, NetworkError, Serves, Web, WebBody, WebError,
};
pub use identity::{Identity, IdentityError, IdentityFiles, Peer, PeerName};
pub use messages::{LinkError, Reader, Writer, read_one, split, write_one};
pub use redial::redial;
pub use session::{
    AcceptError, BindError, CloseReason, DialError, HelloError, Kind, Listener, Options,
    ScopeError, Session, SessionError, dial, dial_over, dial_through, dial_with,
};
pub use tcp::{Congestion, CongestionError};
pub use tls::HandshakeError;

use std::any::Any;

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to a peer, whatever carries it.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The stream itself, for what some kinds can do beside: a session's takes
    /// bytes without copying them.
    fn as_any(&mut self) -> &mut dyn Any;
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// A stream of any driver.
pub type BoxStream = Box<dyn Stream>;

/// An in-memory stream and its other end, each direction holding at most
/// `capacity` bytes. Memory is taken as bytes are written, not before.
pub fn pipe(capacity: usize) -> (BoxStream, BoxStream) {
    let (near, far) = tokio::io::duplex(capacity);
    (Box::new(near), Box::new(far))
}
