//! Many streams on one connection: HTTP/2 framing by the crate `h2`.
//!
//! The dialing end is HTTP/2's client. A stream is a request whose body is one
//! direction and whose response is the other. The accepting end cannot send
//! requests, so the dialing end keeps a few *parked* ones with it, which it
//! answers when it wants to open a stream. `docs/decisions/0005-multiplexer.md`
//! has the figures and the reasons.

mod connection;
mod gate;
mod stops;
mod stream;

pub(crate) use connection::{Arrivals, Connection, Incoming, Shape, accept, dial};
pub(crate) use stops::Stops;
pub(crate) use stream::MuxStream;
