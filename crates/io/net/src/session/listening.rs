//! The end that is connected to.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use firesteel_base::{Hint, limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use super::hello::{
    self, HEAD, Hello, HelloError, HelloPurpose, REFUSED_MANY, REFUSED_ROLE, REFUSED_TOKEN,
    REFUSED_VERSION, Token, VERSION, Welcome,
};
use super::link::Link;
use super::scopes::Arrivals;
use super::{Kind, Options, Origin, Parts, Session, Shared, Side, lock, multiplexed};
use crate::identity::{Identity, Peer, PeerName};
use crate::mux::Connection;
use crate::tcp::{self, CongestionError, Purpose};
use crate::tls::{self, HandshakeError, TlsStream};
use crate::wire::Wire;

/// Why a port could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The system refused.
    #[error("could not listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The congestion control asked for is not there.
    #[error(transparent)]
    Congestion(#[from] CongestionError),
}

impl Hint for BindError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Listen { address, source } => match source.kind() {
                io::ErrorKind::AddrInUse => Some(format!(
                    "another program has port {}: stop it, or choose another port",
                    address.port()
                )),
                io::ErrorKind::PermissionDenied => {
                    Some("ports below 1024 need root: choose a higher one".to_owned())
                }
                io::ErrorKind::AddrNotAvailable => {
                    Some("use an address of this machine, or `0.0.0.0` or `[::]`".to_owned())
                }
                _ => None,
            },
            Self::Congestion(error) => error.hint(),
        }
    }
}

/// Why one peer's connection was not taken. The listener goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The ends do not trust each other, or do not understand each other.
    #[error("no session with the peer at {address}: {source}")]
    Handshake {
        /// Where it connected from.
        address: SocketAddr,
        /// What happened.
        source: HandshakeError,
    },
    /// It took too long.
    #[error("the peer at {address} did not end the handshake within {} s", connect.as_secs_f32())]
    TooSlow {
        /// Where it connected from.
        address: SocketAddr,
        /// The duration `connect`.
        connect: Duration,
    },
    /// The peer has a certificate, and sends nonsense.
    #[error("`{peer}` at {address} does not speak the session protocol")]
    Protocol {
        /// Who.
        peer: PeerName,
        /// Where it connected from.
        address: SocketAddr,
        /// What was wrong.
        #[source]
        source: HelloError,
    },
    /// Another version.
    #[error(
        "`{peer}` at {address} speaks versions {oldest} to {newest} of the session protocol, we {ours}"
    )]
    Version {
        /// Who.
        peer: PeerName,
        /// Where it connected from.
        address: SocketAddr,
        /// Its oldest.
        oldest: u8,
        /// Its newest.
        newest: u8,
        /// Ours.
        ours: u8,
    },
    /// A bulk connection of no session of that peer.
    #[error("`{peer}` at {address} tried to join a session that is not its own, or is over")]
    Token {
        /// Who.
        peer: PeerName,
        /// Where it connected from.
        address: SocketAddr,
    },
    /// More bulk connections than agreed.
    #[error("`{peer}` at {address} makes more bulk connections than the {agreed} agreed")]
    Many {
        /// Who.
        peer: PeerName,
        /// Where it connected from.
        address: SocketAddr,
        /// How many there may be.
        agreed: u8,
    },
    /// The right authority, but not for this.
    #[error("`{peer}` at {address} has a certificate of a {role}, and sessions are for {}", roles.join(" and "))]
    Role {
        /// Who.
        peer: PeerName,
        /// Where it connected from.
        address: SocketAddr,
        /// What its certificate says.
        role: String,
        /// What it should say.
        roles: Vec<String>,
    },
    /// A load balancer that should have said for whom it connects.
    #[error("the connection from {address} does not start as a load balancer's should: {source}")]
    Header {
        /// Where it connected from.
        address: SocketAddr,
        /// What was wrong.
        source: io::Error,
    },
    /// HTTP without TLS. It was told.
    #[error("the client at {address} speaks HTTP without TLS")]
    Plain {
        /// Where it connected from.
        address: SocketAddr,
    },
    /// More of HTTP than there may be at a time.
    #[error("the HTTP connection from {address} is one too many")]
    Crowded {
        /// Where it connected from.
        address: SocketAddr,
    },
    /// The listener was closed.
    #[error("the port was closed")]
    Closed,
}

impl Hint for AcceptError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Handshake { source, .. } => source.hint(),
            Self::Version { .. } => Some("update the older of the two".to_owned()),
            Self::Role { .. } => Some("the peer must use its own startup kit".to_owned()),
            Self::Header { .. } => Some(
                "switch the PROXY protocol on at the load balancer, or take its network out of `proxy_protocol_from`"
                    .to_owned(),
            ),
            Self::Plain { .. } => Some("the address must start with https://".to_owned()),
            _ => None,
        }
    }
}

/// A port on which sessions are made. Dropping it closes the port; sessions that
/// were taken stay.
pub struct Listener {
    local: SocketAddr,
    ready: tokio::sync::Mutex<mpsc::Receiver<Result<Session, AcceptError>>>,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    /// Opens the port. `[::]` takes IPv4, too; port 0 is any free one.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(
        address: SocketAddr,
        identity: Identity,
        options: Options,
    ) -> Result<Self, BindError> {
        tcp::probe(&options.congestion)?;
        let failed = |source| BindError::Listen { address, source };
        let listener = tcp::listen(address).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let (ready, sessions) = mpsc::channel(limits::WAITING_SESSIONS);
        let door = Door::new(identity, options, None);
        let task = tokio::spawn(take(listener, door, ready));
        Ok(Self {
            local,
            ready: tokio::sync::Mutex::new(sessions),
            task,
        })
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// The next session. Cancel safe.
    ///
    /// # Errors
    /// [`AcceptError`] of one peer: log it, and call again. [`AcceptError::Closed`]
    /// does not happen while the runtime lives.
    pub async fn accept(&self) -> Result<Session, AcceptError> {
        let mut ready = self.ready.lock().await;
        ready.recv().await.unwrap_or(Err(AcceptError::Closed))
    }
}

/// Makes sessions of connections, and joins bulk connections to them.
pub(crate) struct Door {
    pub identity: Identity,
    pub options: Options,
    /// What certificates must say.
    roles: Option<Vec<String>>,
    registry: Arc<Registry>,
}

/// The sessions whose bulk connections may come. A token is known from the moment
/// it is sent; its session follows.
#[derive(Default)]
struct Registry(Mutex<HashMap<Token, watch::Receiver<Option<Weak<Shared>>>>>);

/// A session's place in the registry.
pub(super) struct Registration {
    registry: Arc<Registry>,
    token: Token,
}

impl Registration {
    pub fn remove(&self) {
        lock(&self.registry.0).remove(&self.token);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.remove();
    }
}

async fn take(
    listener: TcpListener,
    door: Arc<Door>,
    ready: mpsc::Sender<Result<Session, AcceptError>>,
) {
    let handshakes = Arc::new(Semaphore::new(limits::HANDSHAKES));
    let mut pause = PAUSE;
    loop {
        let Ok(place) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let (tcp, address) = match listener.accept().await {
            Ok(taken) => taken,
            Err(_) => {
                // Out of descriptors or memory, or a peer that has gone already:
                // it passes, and a tight loop would not help.
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE * 64);
                continue;
            }
        };
        pause = PAUSE;
        let (door, ready) = (Arc::clone(&door), ready.clone());
        tokio::spawn(async move {
            let connect = door.options.durations.connect;
            let taken = tokio::time::timeout(connect, door.admit(tcp, address))
                .await
                .unwrap_or(Err(AcceptError::TooSlow { address, connect }));
            drop(place);
            let news = match taken {
                Ok(Some(session)) => Ok(session),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            // Nobody takes it: the listener was dropped, and so is the session.
            let _ = ready.send(news).await;
        });
    }
}

/// The first pause after the system could give no connection.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

impl Door {
    pub fn new(identity: Identity, options: Options, roles: Option<Vec<String>>) -> Arc<Self> {
        Arc::new(Self {
            identity,
            options,
            roles,
            registry: Arc::default(),
        })
    }

    /// Takes one connection: a session, or nothing when it belongs to one.
    async fn admit(
        self: Arc<Self>,
        tcp: TcpStream,
        address: SocketAddr,
    ) -> Result<Option<Session>, AcceptError> {
        let handshake = |source| AcceptError::Handshake { address, source };
        let io = |source| handshake(HandshakeError::Io(source));
        tcp::tune(&tcp, Purpose::Control, self.options.durations.idle).map_err(io)?;
        let stream = BufReader::with_capacity(limits::TLS_UNREAD, Wire::Tcp(tcp));
        let (tls, peer) = tls::accept(stream, &self.identity)
            .await
            .map_err(handshake)?;
        self.greet(tls, peer, address).await
    }

    /// Takes a connection whose ends have shown each other their certificates.
    pub async fn greet(
        self: Arc<Self>,
        mut tls: TlsStream,
        peer: Peer,
        address: SocketAddr,
    ) -> Result<Option<Session>, AcceptError> {
        let handshake = |source| AcceptError::Handshake { address, source };
        let io = |source| handshake(HandshakeError::Io(source));
        let mut head = [0; HEAD];
        tls.read_exact(&mut head).await.map_err(io)?;
        let wrong = |source| AcceptError::Protocol {
            peer: peer.name.clone(),
            address,
            source,
        };
        let mut body = vec![0; hello::length(head).map_err(wrong)?];
        tls.read_exact(&mut body).await.map_err(io)?;
        let hello = Hello::decode(&body).map_err(wrong)?;
        if !(hello.oldest..=hello.newest).contains(&VERSION) {
            let (oldest, newest) = (hello.oldest, hello.newest);
            let why = format!(
                "the server speaks version {VERSION} of the session protocol, this end {oldest} to {newest}"
            );
            refuse(&mut tls, REFUSED_VERSION, why).await;
            return Err(AcceptError::Version {
                peer: peer.name,
                address,
                oldest,
                newest,
                ours: VERSION,
            });
        }
        let role = peer.role.as_deref().unwrap_or("");
        if let Some(roles) = &self.roles
            && !roles.iter().any(|allowed| allowed == role)
        {
            let why = format!("a certificate of a {role} opens no session here");
            refuse(&mut tls, REFUSED_ROLE, why).await;
            return Err(AcceptError::Role {
                role: role.to_owned(),
                roles: roles.clone(),
                peer: peer.name,
                address,
            });
        }
        match hello.purpose {
            HelloPurpose::Control { bulk } => {
                let bulk = bulk.min(self.options.bulk());
                self.session(tls, peer, address, bulk).await.map(Some)
            }
            HelloPurpose::Bulk { token } => {
                self.bulk(tls, peer, address, token).await.map(|()| None)
            }
        }
    }

    async fn session(
        &self,
        mut tls: TlsStream,
        peer: Peer,
        address: SocketAddr,
        bulk: u8,
    ) -> Result<Session, AcceptError> {
        let io = |source| AcceptError::Handshake {
            address,
            source: HandshakeError::Io(source),
        };
        if let Some(tcp) = tls::socket(&tls) {
            // It was there when the port was opened.
            let _ = tcp::choose(tcp, &self.options.congestion);
        }

        let token = fresh_token();
        let (known, waiting) = watch::channel(None);
        let registration = Registration {
            registry: Arc::clone(&self.registry),
            token: token.clone(),
        };
        lock(&self.registry.0).insert(token.clone(), waiting);
        let welcome = Welcome::Session {
            version: VERSION,
            bulk,
            token,
        };
        tls.write_all(&welcome.encode()).await.map_err(io)?;
        tls.flush().await.map_err(io)?;

        let (arrivals, mut incoming) = Arrivals::new(self.options.durations.connect);
        let shape = self.options.shape(Purpose::Control);
        let main = multiplexed(tls, Side::Accepted, shape, Arc::clone(&arrivals))
            .await
            .map_err(io)?;
        let unfinished = Unfinished(Some(main.clone()));
        let damaged = || AcceptError::Protocol {
            peer: peer.name.clone(),
            address,
            source: HelloError::Malformed("order of streams"),
        };
        let mut first = async |kind: Kind| match incoming.recv().await {
            Some(next) if next.kind == kind.0 => Ok(next.stream),
            _ => Err(damaged()),
        };
        let opened = async {
            let control = first(Kind::CONTROL).await?;
            Ok((control, first(Kind::LINK).await?))
        };
        // `arrivals` is held here, so that the end of the connection must be
        // watched besides.
        let opened = tokio::select! {
            opened = opened => opened,
            _ = main.ended() => Err(AcceptError::Handshake {
                address,
                source: HandshakeError::Ended,
            }),
        };
        let (control, link) = opened?;
        let (session, shared) = Session::start(Parts {
            peer,
            address,
            options: self.options.clone(),
            bulk,
            main,
            origin: Origin::Accepted(registration),
            control: Box::new(control),
            link: Link(link),
            incoming,
            arrivals,
        });
        unfinished.keep();
        known.send_replace(Some(Arc::downgrade(&shared)));
        Ok(session)
    }

    async fn bulk(
        &self,
        mut tls: TlsStream,
        peer: Peer,
        address: SocketAddr,
        token: Token,
    ) -> Result<(), AcceptError> {
        let io = |source| AcceptError::Handshake {
            address,
            source: HandshakeError::Io(source),
        };
        let waiting = lock(&self.registry.0).get(&token).cloned();
        let session = match waiting {
            Some(mut waiting) => match waiting.wait_for(Option::is_some).await {
                Ok(session) => session.as_ref().and_then(Weak::upgrade),
                Err(_) => None,
            },
            None => None,
        };
        // The same certificate, not the same name: a token that was stolen is
        // useless even to another machine of the same site.
        let session = session
            .filter(|session| session.peer.certificate == peer.certificate)
            .filter(|session| session.over.borrow().is_none());
        let Some(session) = session else {
            let why = "there is no such session of this peer".to_owned();
            refuse(&mut tls, REFUSED_TOKEN, why).await;
            return Err(AcceptError::Token {
                peer: peer.name,
                address,
            });
        };
        if session.bulks() >= usize::from(session.bulk) {
            let why = format!("{} bulk connections were agreed", session.bulk);
            refuse(&mut tls, REFUSED_MANY, why).await;
            return Err(AcceptError::Many {
                peer: peer.name,
                address,
                agreed: session.bulk,
            });
        }
        if let Some(tcp) = tls::socket(&tls) {
            tcp::tune(tcp, Purpose::Bulk, self.options.durations.idle).map_err(io)?;
            let _ = tcp::choose(tcp, &self.options.congestion);
        }
        tls.write_all(&Welcome::Bulk.encode()).await.map_err(io)?;
        tls.flush().await.map_err(io)?;
        let shape = self.options.shape(Purpose::Bulk);
        let connection = multiplexed(tls, Side::Accepted, shape, Arc::clone(&session.arrivals))
            .await
            .map_err(io)?;
        session.add_bulk(connection);
        Ok(())
    }
}

/// A connection whose session is not there yet. It ends with the handshake, also
/// when that takes too long: its task holds it.
struct Unfinished(Option<Connection>);

impl Unfinished {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.close();
        }
    }
}

/// Tells the peer why, as far as it listens.
async fn refuse(tls: &mut TlsStream, code: u8, why: String) {
    let refused = Welcome::Refused { code, why };
    if tls.write_all(&refused.encode()).await.is_ok() {
        let _ = tls.shutdown().await;
    }
}

fn fresh_token() -> Token {
    let mut bytes = [0; hello::TOKEN];
    tls::provider()
        .secure_random
        .fill(&mut bytes)
        .expect("the random generator of the system works");
    Token::new(bytes)
}
