//! The end that connects.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use firesteel_base::{Hint, limits};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::hello::{self, HEAD, Hello, HelloError, HelloPurpose, Token, VERSION, Welcome};
use super::link::Link;
use super::{Kind, Options, Origin, Parts, Session, Shared, Side, multiplexed};
use crate::identity::{Identity, Peer, PeerName};
use crate::tcp::{self, CongestionError, Purpose};
use crate::tls::{self, HandshakeError, TlsStream};

/// Why no session, or no further connection of one, could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The name of the server is none.
    #[error("`{name}` cannot be a server's name")]
    Name {
        /// What was given.
        name: String,
    },
    /// No address was found.
    #[error("no address is known for `{address}`")]
    Resolve {
        /// What was looked up.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nothing could be reached.
    #[error("could not connect to `{server}` at {address}")]
    Connect {
        /// The server.
        server: String,
        /// The address tried last.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("`{server}` at {address} did not end the handshake within {} s", connect.as_secs_f32())]
    TooSlow {
        /// The server.
        server: String,
        /// Its address.
        address: String,
        /// The duration `connect`.
        connect: Duration,
    },
    /// The ends do not trust each other, or do not understand each other.
    #[error("no session with `{server}` at {address}: {source}")]
    Handshake {
        /// The server.
        server: String,
        /// Its address.
        address: SocketAddr,
        /// What happened.
        source: HandshakeError,
    },
    /// The server answered with a refusal.
    #[error("`{server}` at {address} refused the session: {why}")]
    Refused {
        /// The server.
        server: PeerName,
        /// Its address.
        address: SocketAddr,
        /// Its own words.
        why: String,
    },
    /// The server answered nonsense.
    #[error("`{server}` at {address} does not speak the session protocol")]
    Protocol {
        /// The server.
        server: PeerName,
        /// Its address.
        address: SocketAddr,
        /// What was wrong.
        #[source]
        source: HelloError,
    },
    /// The congestion control asked for is not there.
    #[error(transparent)]
    Congestion(#[from] CongestionError),
}

impl Hint for DialError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Resolve { .. } => Some("write it as `host:port`, and check the name".to_owned()),
            Self::Connect { source, .. } => Some(match source.kind() {
                io::ErrorKind::ConnectionRefused => {
                    "nothing listens there: is the server running, and is the port right?".to_owned()
                }
                _ => "check the address, the network and firewalls between".to_owned(),
            }),
            Self::TooSlow { .. } => Some(
                "a firewall or proxy may hold the connection; `connect` in the durations is the limit"
                    .to_owned(),
            ),
            Self::Handshake { source, .. } => source.hint(),
            Self::Congestion(error) => error.hint(),
            _ => None,
        }
    }
}

/// Makes a session with the server at `address` (`host:port`), which must show a
/// certificate for `server_name`.
///
/// # Errors
/// [`DialError`]; nothing is left behind.
pub async fn dial(
    address: &str,
    server_name: &str,
    identity: &Identity,
    options: Options,
) -> Result<Session, DialError> {
    tcp::probe(&options.congestion)?;
    let name = ServerName::try_from(server_name.to_owned()).map_err(|_| DialError::Name {
        name: server_name.to_owned(),
    })?;
    let deadline = Instant::now() + options.durations.connect;
    let slow = || DialError::TooSlow {
        server: server_name.to_owned(),
        address: address.to_owned(),
        connect: options.durations.connect,
    };
    let made = async {
        let tcp = reach(address, server_name, deadline).await?;
        let remote = tcp.remote;
        let mut dialer = Dialer {
            address: remote,
            server: server_name.into(),
            name: name.clone(),
            identity: identity.clone(),
            token: Token::new([0; hello::TOKEN]),
            dialing: tokio::sync::Mutex::new(()),
        };
        let purpose = HelloPurpose::Control {
            bulk: options.bulk(),
        };
        let (tls, peer, welcome) = dialer.greet(tcp.stream, purpose, &options).await?;
        let Welcome::Session { bulk, token, .. } = welcome else {
            return Err(dialer.nonsense(&peer));
        };
        dialer.token = token;

        let (arrivals, incoming) = mpsc::channel(limits::WAITING_STREAMS);
        let shape = options.shape(Purpose::Control);
        let failed = |source| DialError::Handshake {
            server: server_name.to_owned(),
            address: remote,
            source: HandshakeError::Io(source),
        };
        let main = multiplexed(tls, Side::Dialed, shape, arrivals.clone())
            .await
            .map_err(failed)?;
        let control = main.open(Kind::CONTROL.0).await.map_err(failed)?;
        let link = main.open(Kind::LINK.0).await.map_err(failed)?;
        let (session, _) = Session::start(Parts {
            peer,
            address: remote,
            bulk: bulk.min(options.bulk()),
            options: options.clone(),
            main,
            origin: Origin::Dialed(dialer),
            control: Box::new(control),
            link: Link(link),
            incoming,
            arrivals,
        });
        Ok(session)
    };
    tokio::time::timeout_at(deadline, made)
        .await
        .unwrap_or_else(|_| Err(slow()))
}

/// What further connections of a session need.
pub(super) struct Dialer {
    address: SocketAddr,
    server: Arc<str>,
    name: ServerName<'static>,
    identity: Identity,
    token: Token,
    /// One at a time.
    dialing: tokio::sync::Mutex<()>,
}

impl Dialer {
    /// Makes bulk connections until there are `wanted`. A failure is left to
    /// whoever waits for one.
    pub async fn have(&self, shared: &Arc<Shared>, wanted: usize) {
        loop {
            let count = shared.bulks();
            if count >= wanted || self.bulk(shared, count).await.is_err() {
                return;
            }
        }
    }

    /// Makes another bulk connection, unless there are more than `known` by now.
    pub async fn bulk(&self, shared: &Arc<Shared>, known: usize) -> Result<(), DialError> {
        let _dialing = self.dialing.lock().await;
        if shared.bulks() > known {
            return Ok(());
        }
        let options = &shared.options;
        let deadline = Instant::now() + options.durations.connect;
        let made = async {
            let stream = tcp::connect(self.address)
                .await
                .map_err(|source| DialError::Connect {
                    server: self.server.to_string(),
                    address: self.address,
                    source,
                })?;
            let purpose = HelloPurpose::Bulk {
                token: self.token.clone(),
            };
            let (tls, peer, welcome) = self.greet(stream, purpose, options).await?;
            // Another server behind the same address would be another session.
            if welcome != Welcome::Bulk || peer.certificate != shared.peer.certificate {
                return Err(self.nonsense(&peer));
            }
            let shape = options.shape(Purpose::Bulk);
            multiplexed(tls, Side::Dialed, shape, shared.arrivals.clone())
                .await
                .map_err(|source| self.failed(HandshakeError::Io(source)))
        };
        let connection = tokio::time::timeout_at(deadline, made)
            .await
            .unwrap_or_else(|_| {
                Err(DialError::TooSlow {
                    server: self.server.to_string(),
                    address: self.address.to_string(),
                    connect: options.durations.connect,
                })
            })?;
        shared.add_bulk(connection);
        Ok(())
    }

    /// TLS, hello and welcome on a connection.
    async fn greet(
        &self,
        stream: TcpStream,
        purpose: HelloPurpose,
        options: &Options,
    ) -> Result<(TlsStream, Peer, Welcome), DialError> {
        let io = |source| self.failed(HandshakeError::Io(source));
        let use_of = match &purpose {
            HelloPurpose::Control { .. } => Purpose::Control,
            HelloPurpose::Bulk { .. } => Purpose::Bulk,
        };
        tcp::tune(&stream, use_of, options.durations.idle).map_err(io)?;
        tcp::choose(&stream, &options.congestion)?;
        let (mut tls, peer) = tls::connect(stream, &self.identity, self.name.clone())
            .await
            .map_err(|source| self.failed(source))?;

        let hello = Hello {
            oldest: VERSION,
            newest: VERSION,
            purpose,
        };
        // In TLS 1.3 the server judges our certificate after our side is done:
        // its verdict is what we read here.
        let handshake = tls::Handshake::of(&self.identity, "server");
        let verdict = |source| self.failed(handshake.explain(source));
        tls.write_all(&hello.encode()).await.map_err(verdict)?;
        tls.flush().await.map_err(verdict)?;
        let mut head = [0; HEAD];
        tls.read_exact(&mut head).await.map_err(verdict)?;
        let wrong = |source| DialError::Protocol {
            server: peer.name.clone(),
            address: self.address,
            source,
        };
        let mut body = vec![0; hello::length(head).map_err(wrong)?];
        tls.read_exact(&mut body).await.map_err(verdict)?;
        match Welcome::decode(&body).map_err(wrong)? {
            Welcome::Refused { why, .. } => Err(DialError::Refused {
                server: peer.name.clone(),
                address: self.address,
                why,
            }),
            Welcome::Session { version, .. } if version != VERSION => {
                Err(wrong(HelloError::Malformed("welcome")))
            }
            welcome => Ok((tls, peer, welcome)),
        }
    }

    fn failed(&self, source: HandshakeError) -> DialError {
        DialError::Handshake {
            server: self.server.to_string(),
            address: self.address,
            source,
        }
    }

    fn nonsense(&self, peer: &Peer) -> DialError {
        DialError::Protocol {
            server: peer.name.clone(),
            address: self.address,
            source: HelloError::Malformed("welcome"),
        }
    }
}

struct Reached {
    stream: TcpStream,
    remote: SocketAddr,
}

/// Tries the addresses of a name one after the other; each gets an equal part of
/// the time that is left.
async fn reach(address: &str, server: &str, deadline: Instant) -> Result<Reached, DialError> {
    let unknown = |source| DialError::Resolve {
        address: address.to_owned(),
        source,
    };
    let addresses: Vec<_> = tokio::net::lookup_host(address)
        .await
        .map_err(unknown)?
        .collect();
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    let mut last = None;
    for remote in addresses {
        let patience = deadline.saturating_duration_since(Instant::now()) / left.max(1);
        left = left.saturating_sub(1);
        match tokio::time::timeout(patience, tcp::connect(remote)).await {
            Ok(Ok(stream)) => return Ok(Reached { stream, remote }),
            Ok(Err(error)) => last = Some((remote, error)),
            Err(_) => last = Some((remote, io::ErrorKind::TimedOut.into())),
        }
    }
    Err(match last {
        Some((address, source)) => DialError::Connect {
            server: server.to_owned(),
            address,
            source,
        },
        None => unknown(io::ErrorKind::NotFound.into()),
    })
}
