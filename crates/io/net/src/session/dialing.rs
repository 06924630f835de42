//! The end that connects.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use firesteel_base::Hint;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::hello::{self, HEAD, Hello, HelloError, HelloPurpose, Token, VERSION, Welcome};
use super::link::Link;
use super::scopes::Arrivals;
use super::{Kind, Options, Origin, Parts, Session, Shared, Side, lock, multiplexed};
use crate::BoxStream;
use crate::driver::{Driver, Opener, ProxyError, Target};
use crate::identity::{Identity, Peer, PeerName};
use crate::tcp::{self, CongestionError, Purpose};
use crate::tls::{self, HandshakeError, TlsStream};
use crate::wire::Wire;

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
        address: String,
        /// What happened.
        source: HandshakeError,
    },
    /// The server answered with a refusal.
    #[error("`{server}` at {address} refused the session: {why}")]
    Refused {
        /// The server.
        server: PeerName,
        /// Its address.
        address: String,
        /// Its own words.
        why: String,
    },
    /// The server answered nonsense.
    #[error("`{server}` at {address} does not speak the session protocol")]
    Protocol {
        /// The server.
        server: PeerName,
        /// Its address.
        address: String,
        /// What was wrong.
        #[source]
        source: HelloError,
    },
    /// The right authority, but the certificate is none of a server.
    #[error("`{server}` at {address} has a certificate of a {role}, and should have one of a {}", roles.join(" or "))]
    Role {
        /// Who.
        server: PeerName,
        /// Its address.
        address: String,
        /// What its certificate says.
        role: String,
        /// What it should say.
        roles: Vec<String>,
    },
    /// The proxy between does not help.
    #[error("no way through the proxy {proxy}: {why}")]
    Proxy {
        /// The proxy, without password.
        proxy: String,
        /// What happened.
        why: ProxyError,
    },
    /// The TLS around the session's own could not be made.
    #[error("no TLS with `{server}` at {address}: {source}")]
    Outer {
        /// The name asked for.
        server: String,
        /// Its address.
        address: String,
        /// What happened.
        source: HandshakeError,
    },
    /// The authorities given for the outer TLS are none.
    #[error("the authority for the outer TLS cannot be used: {why}")]
    OuterAuthority {
        /// What is wrong with it.
        why: String,
    },
    /// What answers at the address has no link for sessions.
    #[error("no link for sessions at {address}: {why}")]
    Link {
        /// The address.
        address: String,
        /// What happened.
        why: String,
    },
    /// Whoever makes the streams made none.
    #[error("no tunnel to the server")]
    Tunnel {
        /// What happened.
        #[source]
        source: io::Error,
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
            Self::Outer { source, .. } => Some(match source {
                HandshakeError::UnknownAuthority { .. } => {
                    "if an ingress ends TLS there, name the authority of its certificate (`outer_authority`)"
                        .to_owned()
                }
                source => source.hint()?,
            }),
            Self::Proxy { why, .. } => Some(match why {
                ProxyError::Credentials => {
                    "write user and password into its URL: `http://user:password@host:port`"
                        .to_owned()
                }
                ProxyError::Refused(_) => {
                    "have the server's host and port allowed there".to_owned()
                }
                _ => "check the proxy's host and port".to_owned(),
            }),
            Self::Role { .. } => Some("check host and port: another role answers there".to_owned()),
            Self::Link { .. } => Some(
                "check that the address is the server's, that its ingress passes the link on, and the scheme"
                    .to_owned(),
            ),
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
    let driver = Driver::plain(address, server_name, identity)?;
    make(driver, server_name, identity, options, &[]).await
}

/// Makes a session with a server, by the way that the target says.
///
/// # Errors
/// [`DialError`]; nothing is left behind.
pub async fn dial_with(target: &Target, options: Options) -> Result<Session, DialError> {
    let driver = Driver::new(target)?;
    make(
        driver,
        &target.server_name,
        &target.identity,
        options,
        &target.roles,
    )
    .await
}

/// Makes a session through a stream that is there, such as one that a relay passes
/// on to the server. Everything shares it.
///
/// # Errors
/// [`DialError`]; nothing is left behind.
pub async fn dial_over(
    stream: BoxStream,
    server_name: &str,
    identity: &Identity,
    options: Options,
) -> Result<Session, DialError> {
    let stream = Arc::new(Mutex::new(Some(stream)));
    let opener: Opener = Arc::new(move || {
        let stream = lock(&stream).take();
        Box::pin(async move { stream.ok_or_else(|| io::ErrorKind::Unsupported.into()) })
    });
    dial_through(opener, server_name, identity, options.single_connection()).await
}

/// Makes a session through streams that `opener` makes, one for each connection.
///
/// # Errors
/// [`DialError`]; nothing is left behind.
pub async fn dial_through(
    opener: Opener,
    server_name: &str,
    identity: &Identity,
    options: Options,
) -> Result<Session, DialError> {
    make(Driver::Opener(opener), server_name, identity, options, &[]).await
}

async fn make(
    driver: Driver,
    server_name: &str,
    identity: &Identity,
    options: Options,
    roles: &[String],
) -> Result<Session, DialError> {
    tcp::probe(&options.congestion)?;
    let name = ServerName::try_from(server_name.to_owned()).map_err(|_| DialError::Name {
        name: server_name.to_owned(),
    })?;
    let connect = options.durations.connect;
    let deadline = Instant::now() + connect;
    let address = driver.address();
    let made = async {
        let reached = driver.stream(Purpose::Control, &options, deadline).await?;
        let remote = reached.remote;
        let mut dialer = Dialer {
            driver,
            server: server_name.into(),
            name: name.clone(),
            identity: identity.clone(),
            token: Token::new([0; hello::TOKEN]),
            dialing: tokio::sync::Mutex::new(()),
        };
        let purpose = HelloPurpose::Control {
            bulk: options.bulk(),
        };
        let (tls, peer, welcome) = dialer.greet(reached.wire, purpose).await?;
        let role = peer.role.as_deref().unwrap_or("");
        if !roles.is_empty() && !roles.iter().any(|allowed| allowed == role) {
            return Err(DialError::Role {
                role: role.to_owned(),
                roles: roles.to_vec(),
                server: peer.name,
                address: dialer.driver.address(),
            });
        }
        let Welcome::Session { bulk, token, .. } = welcome else {
            return Err(dialer.nonsense(&peer));
        };
        dialer.token = token;

        let (arrivals, incoming) = Arrivals::new(options.durations.connect);
        let shape = options.shape(Purpose::Control);
        let failed = |source| dialer.failed(HandshakeError::Io(source));
        let main = multiplexed(tls, Side::Dialed, shape, Arc::clone(&arrivals))
            .await
            .map_err(failed)?;
        let control = main.open(Kind::CONTROL.0, None).await.map_err(failed)?;
        let link = main.open(Kind::LINK.0, None).await.map_err(failed)?;
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
        .unwrap_or_else(|_| {
            Err(DialError::TooSlow {
                server: server_name.to_owned(),
                address,
                connect,
            })
        })
}

/// What further connections of a session need.
pub(super) struct Dialer {
    driver: Driver,
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
            let reached = self.driver.stream(Purpose::Bulk, options, deadline).await?;
            let purpose = HelloPurpose::Bulk {
                token: self.token.clone(),
            };
            let (tls, peer, welcome) = self.greet(reached.wire, purpose).await?;
            // Another server behind the same address would be another session.
            if welcome != Welcome::Bulk || peer.certificate != shared.peer.certificate {
                return Err(self.nonsense(&peer));
            }
            let shape = options.shape(Purpose::Bulk);
            multiplexed(tls, Side::Dialed, shape, Arc::clone(&shared.arrivals))
                .await
                .map_err(|source| self.failed(HandshakeError::Io(source)))
        };
        let connection = tokio::time::timeout_at(deadline, made)
            .await
            .unwrap_or_else(|_| {
                Err(DialError::TooSlow {
                    server: self.server.to_string(),
                    address: self.driver.address(),
                    connect: options.durations.connect,
                })
            })?;
        shared.add_bulk(connection);
        Ok(())
    }

    /// TLS, hello and welcome on a connection.
    async fn greet(
        &self,
        wire: Wire,
        purpose: HelloPurpose,
    ) -> Result<(TlsStream, Peer, Welcome), DialError> {
        let (mut tls, peer) = tls::connect(wire, &self.identity, self.name.clone())
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
            address: self.driver.address(),
            source,
        };
        let mut body = vec![0; hello::length(head).map_err(wrong)?];
        tls.read_exact(&mut body).await.map_err(verdict)?;
        match Welcome::decode(&body).map_err(wrong)? {
            Welcome::Refused { why, .. } => Err(DialError::Refused {
                server: peer.name.clone(),
                address: self.driver.address(),
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
            address: self.driver.address(),
            source,
        }
    }

    fn nonsense(&self, peer: &Peer) -> DialError {
        DialError::Protocol {
            server: peer.name.clone(),
            address: self.driver.address(),
            source: HelloError::Malformed("welcome"),
        }
    }
}
