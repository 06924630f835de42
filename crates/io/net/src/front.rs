//! The front door: one port, and everything that knocks on it.
//!
//! The TLS handshake's first message says who it is: a site by its protocol, which
//! must then show a certificate, or HTTP, which is asked for none. Of HTTP, two
//! addresses lead to sessions, and the rest goes to a [`Web`].

mod http;
pub(crate) mod proxy_protocol;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use firesteel_base::limits;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_rustls::LazyConfigAcceptor;

use crate::session::{AcceptError, BindError, Door, PAUSE, Session};
use crate::tcp::{self, Purpose};
use crate::tls::{self, ALPN, Handshake, HandshakeError, TlsStream};
use crate::wire::Wire;
use crate::{BoxStream, Identity, Options, Peer};

pub use http::{Web, WebBody, WebError};
pub use proxy_protocol::{Network, NetworkError};

/// An address at which a front door listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entrance {
    /// The address; `[::]` takes IPv4, too, and port 0 is any free one.
    pub address: SocketAddr,
    /// Whether HTTP without TLS is taken: only from an ingress that ends TLS, in a
    /// network that is protected otherwise.
    pub clear: bool,
    /// Who may come in here.
    pub serves: Serves,
}

/// What an [`Entrance`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Serves {
    /// Sessions, and the web.
    #[default]
    All,
    /// Sessions only.
    Sessions,
    /// What is no session.
    Web,
}

impl Entrance {
    /// For everything, in TLS.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            clear: false,
            serves: Serves::All,
        }
    }
}

/// What a front door needs.
#[derive(Clone)]
#[non_exhaustive]
pub struct FrontOptions {
    /// Where it listens.
    pub entrances: Vec<Entrance>,
    /// The server's certificate, and the authority that peers' must come from.
    pub identity: Identity,
    /// How sessions are made.
    pub options: Options,
    /// From where connections start with a header of the PROXY protocol, and must.
    pub proxy_protocol_from: Vec<Network>,
    /// What answers everything that is no session.
    pub web: Option<Arc<dyn Web>>,
    /// The roles that a certificate must name for a session; any, without.
    pub roles: Option<Vec<String>>,
}

impl FrontOptions {
    /// For sessions of any role.
    pub fn new(entrances: Vec<Entrance>, identity: Identity, options: Options) -> Self {
        Self {
            entrances,
            identity,
            options,
            proxy_protocol_from: Vec::new(),
            web: None,
            roles: None,
        }
    }
}

/// Ports on which sessions are made and the web is served. Dropping it closes
/// them; sessions that were taken stay.
pub struct Front {
    inside: Arc<Inside>,
    local: Vec<SocketAddr>,
    ready: tokio::sync::Mutex<mpsc::Receiver<Result<Session, AcceptError>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Front {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What all connections share.
struct Inside {
    door: Arc<Door>,
    trusted: Vec<Network>,
    web: Option<Arc<dyn Web>>,
    handshakes: Arc<Semaphore>,
    /// Those of sessions inside of HTTP, which cost an attacker less.
    links: Arc<Semaphore>,
    web_places: Arc<Semaphore>,
    ready: mpsc::Sender<Result<Session, AcceptError>>,
}

impl Front {
    /// Opens the ports.
    ///
    /// # Errors
    /// [`BindError`], of the first that cannot be opened.
    pub async fn bind(options: FrontOptions) -> Result<Self, BindError> {
        tcp::probe(&options.options.congestion)?;
        let mut listeners = Vec::new();
        let mut local = Vec::new();
        for entrance in &options.entrances {
            let failed = |source| BindError::Listen {
                address: entrance.address,
                source,
            };
            let listener = tcp::listen(entrance.address).map_err(failed)?;
            local.push(listener.local_addr().map_err(failed)?);
            listeners.push((listener, *entrance));
        }
        let (ready, sessions) = mpsc::channel(limits::WAITING_SESSIONS);
        let inside = Arc::new(Inside {
            door: Door::new(options.identity, options.options, options.roles),
            trusted: options.proxy_protocol_from,
            web: options.web,
            handshakes: Arc::new(Semaphore::new(limits::HANDSHAKES)),
            links: Arc::new(Semaphore::new(limits::HANDSHAKES)),
            web_places: Arc::new(Semaphore::new(limits::WEB_CONNECTIONS)),
            ready,
        });
        let tasks = listeners
            .into_iter()
            .map(|(listener, entrance)| {
                tokio::spawn(listen(Arc::clone(&inside), listener, entrance))
            })
            .collect();
        Ok(Self {
            inside,
            local,
            ready: tokio::sync::Mutex::new(sessions),
            tasks,
        })
    }

    /// Where it listens, in the order of the entrances.
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.local
    }

    /// The next session, by whatever way it came. Cancel safe.
    ///
    /// # Errors
    /// [`AcceptError`] of one peer: log it, and call again.
    pub async fn accept(&self) -> Result<Session, AcceptError> {
        let mut ready = self.ready.lock().await;
        ready.recv().await.unwrap_or(Err(AcceptError::Closed))
    }

    /// Takes a byte stream, such as one through a relay, as a connection that has
    /// just come: with mutual TLS inside, it becomes a session or joins one.
    pub fn serve_stream(&self, stream: BoxStream, from: SocketAddr) {
        let inside = Arc::clone(&self.inside);
        tokio::spawn(async move {
            let Ok(place) = Arc::clone(&inside.handshakes).acquire_owned().await else {
                return;
            };
            inside.admit(stream, from, || {}).await;
            drop(place);
        });
    }
}

async fn listen(inside: Arc<Inside>, listener: TcpListener, entrance: Entrance) {
    let mut pause = PAUSE;
    loop {
        let Ok(place) = Arc::clone(&inside.handshakes).acquire_owned().await else {
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
        tokio::spawn(Arc::clone(&inside).enter(tcp, address, entrance, place));
    }
}

/// What a connection turned out to be, once it has shown itself.
enum Came {
    /// One of a session's.
    Session(Option<Session>),
    /// HTTP, in TLS or not.
    Web {
        stream: BoxStream,
        http2: bool,
        from: SocketAddr,
    },
}

impl Inside {
    async fn enter(
        self: Arc<Self>,
        tcp: TcpStream,
        address: SocketAddr,
        entrance: Entrance,
        place: OwnedSemaphorePermit,
    ) {
        let connect = self.door.options.durations.connect;
        let came = tokio::time::timeout(connect, self.look(tcp, address, entrance)).await;
        drop(place);
        match came.unwrap_or(Err(AcceptError::TooSlow { address, connect })) {
            Ok(Came::Session(None)) => {}
            Ok(Came::Session(Some(session))) => self.tell(Ok(session)).await,
            Ok(Came::Web {
                stream,
                http2,
                from,
            }) => self.serve(stream, http2, from, entrance).await,
            Err(error) => self.tell(Err(error)).await,
        }
    }

    async fn tell(&self, news: Result<Session, AcceptError>) {
        // Nobody takes it: the front door was dropped, and so is the session.
        let _ = self.ready.send(news).await;
    }

    /// Takes a stream with mutual TLS inside; `admitted` is called when the peer
    /// has shown who it is.
    async fn admit(&self, stream: BoxStream, from: SocketAddr, admitted: impl FnOnce()) {
        let connect = self.door.options.durations.connect;
        let stream = BufReader::with_capacity(limits::TLS_UNREAD, Wire::Other(stream));
        let taken = tokio::time::timeout(connect, async {
            let (tls, peer) = tls::accept(stream, &self.door.identity)
                .await
                .map_err(|source| AcceptError::Handshake {
                    address: from,
                    source,
                })?;
            Arc::clone(&self.door).greet(tls, peer, from).await
        })
        .await;
        let address = from;
        match taken.unwrap_or(Err(AcceptError::TooSlow { address, connect })) {
            Ok(None) => admitted(),
            Ok(Some(session)) => {
                admitted();
                self.tell(Ok(session)).await;
            }
            Err(error) => self.tell(Err(error)).await,
        }
    }

    async fn look(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
        entrance: Entrance,
    ) -> Result<Came, AcceptError> {
        let handshake = |source| AcceptError::Handshake { address, source };
        let io = |source| handshake(HandshakeError::Io(source));
        tcp::tune(&tcp, Purpose::Control, self.door.options.durations.idle).map_err(io)?;
        let mut stream = BufReader::with_capacity(limits::TLS_UNREAD, Wire::Tcp(tcp));
        let from = if self.trusted.iter().any(|net| net.contains(address.ip())) {
            let told = proxy_protocol::read(&mut stream)
                .await
                .map_err(|source| AcceptError::Header { address, source })?;
            told.unwrap_or(address)
        } else {
            address
        };
        let address = from;
        let handshake = |source| AcceptError::Handshake { address, source };
        let io = |source| handshake(HandshakeError::Io(source));
        match stream.fill_buf().await.map_err(io)?.first() {
            // Whoever hangs up without a word wanted to see whether somebody
            // listens: a load balancer, a person with a port scanner.
            None => Ok(Came::Session(None)),
            Some(&TLS_HANDSHAKE) => {
                let secured = self.secured(stream, address, entrance).await;
                match secured.map_err(handshake)? {
                    Secured::Native(tls, peer) => Arc::clone(&self.door)
                        .greet(*tls, peer, address)
                        .await
                        .map(Came::Session),
                    Secured::Web { stream, http2 } => Ok(Came::Web {
                        stream,
                        http2,
                        from,
                    }),
                }
            }
            Some(_) if entrance.clear => {
                let start = start(&mut stream, PREFACE.len()).await.map_err(io)?;
                Ok(Came::Web {
                    http2: start == PREFACE,
                    stream: Box::new(stream),
                    from,
                })
            }
            Some(first) if first.is_ascii_uppercase() => {
                // Somebody typed `http:` for `https:`.
                let _ = stream.write_all(PLAIN.as_bytes()).await;
                let _ = stream.shutdown().await;
                Err(AcceptError::Plain { address })
            }
            Some(_) => Err(handshake(HandshakeError::NotTls)),
        }
    }

    /// TLS as the peer's first message asks for it.
    async fn secured(
        &self,
        stream: BufReader<Wire>,
        address: SocketAddr,
        entrance: Entrance,
    ) -> Result<Secured, HandshakeError> {
        let _ = address;
        let identity = &self.door.identity;
        let handshake = Handshake::of(identity, "client");
        tls::noting(async {
            let explain = |error| handshake.explain(error);
            let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream)
                .await
                .map_err(explain)?;
            let native = entrance.serves != Serves::Web
                && start
                    .client_hello()
                    .alpn()
                    .is_some_and(|mut names| names.any(|name| name == ALPN));
            if native {
                let stream = start
                    .into_stream(Arc::clone(&identity.server))
                    .await
                    .map_err(explain)?;
                let (tls, peer) = handshake.finish(stream.into())?;
                return Ok(Secured::Native(Box::new(tls), peer));
            }
            let mut stream = start
                .into_stream(Arc::clone(&identity.web))
                .await
                .map_err(explain)?;
            if let Some(socket) = stream.get_ref().0.get_ref().socket() {
                // Nobody knows yet what it is for; bulk data needs it most.
                let idle = self.door.options.durations.idle;
                tcp::tune(socket, Purpose::Bulk, idle).map_err(HandshakeError::Io)?;
                let _ = tcp::choose(socket, &self.door.options.congestion);
            }
            let connection = stream.get_mut().1;
            connection.set_buffer_limit(Some(limits::TLS_UNWRITTEN));
            let http2 = connection.alpn_protocol() == Some(b"h2");
            Ok(Secured::Web {
                stream: Box::new(stream),
                http2,
            })
        })
        .await
    }
}

enum Secured {
    Native(Box<TlsStream>, Peer),
    Web { stream: BoxStream, http2: bool },
}

/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// What an HTTP/2 connection starts with, as far as it is needed.
const PREFACE: &[u8] = b"PRI ";

/// What a browser gets that speaks no TLS.
const PLAIN: &str = "HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 52\r\n\
    connection: close\r\n\r\n\
    This port speaks TLS: use https:// instead of http.\n";

/// The first bytes of a stream, which stay in it. They come in one piece nearly
/// always; where they do not, what has come is looked at.
async fn start(stream: &mut BufReader<Wire>, size: usize) -> io::Result<Vec<u8>> {
    let bytes = stream.fill_buf().await?;
    Ok(bytes.get(..size).unwrap_or(bytes).to_vec())
}

/// A future without a name.
pub(crate) type Answering<T> = Pin<Box<dyn Future<Output = T> + Send>>;
