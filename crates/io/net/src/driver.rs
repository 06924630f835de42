//! Drivers: ways to get a byte stream to a server. Whatever makes it, mutual TLS
//! and the session are the same inside.

mod connect;
pub(crate) mod grpc;
mod target;
pub(crate) mod websocket;

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use firesteel_base::limits;
use http::{Request, StatusCode, Version, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::Error as WsError;

use crate::outer;
use crate::session::{DialError, Options};
use crate::tcp::{self, Purpose};
use crate::wire::Wire;
use crate::{BoxStream, Identity};

pub use target::{Proxy, ProxyError, Scheme, Security, Target};

/// Makes streams to the server's end, such as through a relay.
pub type Opener =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<BoxStream>> + Send>> + Send + Sync>;

/// Makes the byte streams of one session.
pub(crate) enum Driver {
    /// Over sockets.
    Target(Box<TargetDriver>),
    /// By somebody else.
    Opener(Opener),
}

/// A stream, and where it leads.
pub(crate) struct Reached {
    pub wire: Wire,
    pub remote: std::net::SocketAddr,
}

pub(crate) struct TargetDriver {
    target: Target,
    /// The outer TLS, where there is one: its settings and the name to check.
    outer: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// The address that the first stream went to; the others go there, too.
    remote: OnceLock<std::net::SocketAddr>,
}

impl Driver {
    /// For a target; nothing is connected yet.
    pub fn new(target: &Target) -> Result<Self, DialError> {
        let protocols: &[&[u8]] = match target.scheme {
            Scheme::Tcp => &[],
            Scheme::Grpc => &[b"h2"],
            Scheme::Http => &[b"http/1.1"],
        };
        Ok(Self::Target(Box::new(TargetDriver::new(
            target,
            target.has_outer(),
            protocols,
        )?)))
    }

    /// Another stream, by `deadline`.
    pub async fn stream(
        &self,
        purpose: Purpose,
        options: &Options,
        deadline: Instant,
    ) -> Result<Reached, DialError> {
        match self {
            Self::Target(driver) => {
                let reached = driver.reach(purpose, options, deadline).await?;
                let remote = reached.remote;
                let wire = match driver.target.scheme {
                    Scheme::Tcp => reached.wire,
                    Scheme::Grpc => driver.grpc(reached.wire, options).await?,
                    Scheme::Http => driver.websocket(reached.wire).await?,
                };
                Ok(Reached { wire, remote })
            }
            Self::Opener(opener) => {
                let stream = opener()
                    .await
                    .map_err(|source| DialError::Tunnel { source })?;
                Ok(Reached {
                    wire: Wire::Other(stream),
                    remote: (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
                })
            }
        }
    }

    /// What errors call the server's address.
    pub fn address(&self) -> String {
        match self {
            Self::Target(driver) => driver.address(),
            Self::Opener(_) => "the end of a tunnel".to_owned(),
        }
    }
}

impl TargetDriver {
    pub fn new(target: &Target, outer: bool, protocols: &[&[u8]]) -> Result<Self, DialError> {
        let outer = if outer {
            let name = target.name_outside();
            let server = ServerName::try_from(name.to_owned()).map_err(|_| DialError::Name {
                name: name.to_owned(),
            })?;
            Some((outer::client(target, protocols)?, server))
        } else {
            None
        };
        Ok(Self {
            target: target.clone(),
            outer,
            remote: OnceLock::new(),
        })
    }

    pub fn address(&self) -> String {
        match self.remote.get() {
            Some(remote) if self.target.proxy.is_none() => remote.to_string(),
            _ => self.target.authority(),
        }
    }

    /// A socket to the server, or through the proxy, in the outer TLS if there is
    /// one.
    pub async fn reach(
        &self,
        purpose: Purpose,
        options: &Options,
        deadline: Instant,
    ) -> Result<Reached, DialError> {
        let (socket, remote) = match self.remote.get() {
            Some(&remote) => {
                let socket = tcp::connect(remote)
                    .await
                    .map_err(|source| self.unconnected(remote, source))?;
                (socket, remote)
            }
            None => {
                let (host, port) = match &self.target.proxy {
                    Some(proxy) => (&*proxy.host, proxy.port),
                    None => (&*self.target.host, self.target.port),
                };
                let reached = self.resolve(host, port, deadline).await?;
                let _ = self.remote.set(reached.1);
                reached
            }
        };
        let tuned = tcp::tune(&socket, purpose, options.durations.idle);
        tuned.map_err(|source| self.unconnected(remote, source))?;
        tcp::choose(&socket, &options.congestion)?;
        let wire = match &self.target.proxy {
            None => Wire::Tcp(socket),
            Some(proxy) => connect::through(proxy, socket, &self.target.authority()).await?,
        };
        let wire = match &self.outer {
            None => wire,
            Some((config, name)) => outer::connect(wire, config, name.clone(), &self.target)
                .await
                .map_err(|source| DialError::Outer {
                    server: self.target.name_outside().to_owned(),
                    address: self.address(),
                    source,
                })?,
        };
        Ok(Reached { wire, remote })
    }

    /// Tries the addresses of a name one after the other; each gets an equal part
    /// of the time that is left.
    async fn resolve(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<(TcpStream, std::net::SocketAddr), DialError> {
        let unknown = |source| DialError::Resolve {
            address: target::authority(host, port),
            source,
        };
        let addresses: Vec<_> = tokio::net::lookup_host((host, port))
            .await
            .map_err(unknown)?
            .collect();
        let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let mut last = None;
        for remote in addresses {
            let patience = deadline.saturating_duration_since(Instant::now()) / left.max(1);
            left = left.saturating_sub(1);
            match tokio::time::timeout(patience, tcp::connect(remote)).await {
                Ok(Ok(stream)) => return Ok((stream, remote)),
                Ok(Err(error)) => last = Some((remote, error)),
                Err(_) => last = Some((remote, io::ErrorKind::TimedOut.into())),
            }
        }
        Err(match last {
            Some((address, source)) => self.unconnected(address, source),
            None => unknown(io::ErrorKind::NotFound.into()),
        })
    }

    fn unconnected(&self, address: std::net::SocketAddr, source: io::Error) -> DialError {
        match &self.target.proxy {
            Some(proxy) => DialError::Proxy {
                proxy: proxy.to_string(),
                why: ProxyError::Connect(source),
            },
            None => DialError::Connect {
                server: self.target.server_name.clone(),
                address,
                source,
            },
        }
    }

    fn no_link(&self, why: String) -> DialError {
        DialError::Link {
            address: self.address(),
            why,
        }
    }

    async fn grpc(&self, wire: Wire, options: &Options) -> Result<Wire, DialError> {
        let failed = |error: hyper::Error| self.no_link(crate::session::chain(&error));
        let (mut sender, connection) =
            hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(options.stream_window)
                .initial_connection_window_size(options.stream_window)
                .max_frame_size(limits::SESSION_FRAME)
                .max_send_buf_size(limits::LINK_MESSAGE * 2)
                .max_header_list_size(limits::WEB_HEADERS)
                .keep_alive_interval(Some(beat(options.durations.idle)))
                .keep_alive_timeout(options.durations.idle)
                .keep_alive_while_idle(true)
                .handshake(TokioIo::new(wire))
                .await
                .map_err(failed)?;
        // It ends with the stream; why is told there.
        tokio::spawn(connection);
        let (outgoing, writer) = grpc::outgoing(false);
        let request = Request::post(self.uri("http", grpc::PATH))
            .version(Version::HTTP_2)
            .header(header::CONTENT_TYPE, grpc::CONTENT_TYPE)
            .header(header::TE, "trailers")
            .body(outgoing)
            .map_err(|error| self.no_link(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(failed)?;
        let kind = answer.headers().get(header::CONTENT_TYPE);
        let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if answer.status() != StatusCode::OK || !is_grpc {
            return Err(self.no_link(refusal(answer.status(), grpc::PATH)));
        }
        if let Some(status) = answer.headers().get("grpc-status") {
            let status = status.to_str().unwrap_or("?");
            if status != "0" {
                let message = answer.headers().get("grpc-message");
                let message = message.and_then(|message| message.to_str().ok());
                return Err(self.no_link(format!(
                    "the call ended with gRPC status {status}: {}",
                    message.unwrap_or("no reason given")
                )));
            }
        }
        let stream = grpc::GrpcStream::new(answer.into_body(), writer);
        Ok(Wire::Other(Box::new(stream)))
    }

    async fn websocket(&self, wire: Wire) -> Result<Wire, DialError> {
        let key = tokio_tungstenite::tungstenite::handshake::client::generate_key();
        let request = Request::get(self.uri("ws", websocket::PATH))
            .header(header::HOST, self.host())
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, key)
            .body(())
            .map_err(|error| self.no_link(error.to_string()))?;
        let answered = client_async_with_config(request, wire, Some(websocket::config())).await;
        match answered {
            Ok((messages, _)) => {
                let stream = websocket::WsStream::new(messages);
                Ok(Wire::Other(Box::new(stream)))
            }
            Err(WsError::Http(answer)) => {
                Err(self.no_link(refusal(answer.status(), websocket::PATH)))
            }
            Err(error) => Err(self.no_link(crate::session::chain(&error))),
        }
    }

    fn uri(&self, scheme: &str, path: &str) -> String {
        let secured = if self.outer.is_some() { "s" } else { "" };
        format!("{scheme}{secured}://{}{path}", self.host())
    }

    /// What HTTP calls the server: without a port where it is the usual one.
    fn host(&self) -> String {
        let usual = if self.outer.is_some() { 443 } else { 80 };
        let name = self.target.name_outside();
        if self.target.port == usual {
            target::bracketed(name)
        } else {
            target::authority(name, self.target.port)
        }
    }
}

fn refusal(status: StatusCode, path: &str) -> String {
    match status {
        StatusCode::NOT_FOUND => format!("there is no `{path}` there (404)"),
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            format!("what stands before the server does not reach it ({status})")
        }
        status => format!("`{path}` was answered with {status}"),
    }
}

/// The longest silence on a connection that somebody keeps open: what stands
/// between gives a connection up after 60 s (nginx) to 4 minutes (NAT of clouds).
const SILENCE: Duration = Duration::from_secs(50);

/// How often a connection shows that it lives.
pub(crate) fn beat(idle: Duration) -> Duration {
    (idle / 4).clamp(Duration::from_millis(1), SILENCE)
}

/// A stream to the server for HTTP/1.1, by the same way as its sessions: for
/// clients of what the server shows to people.
///
/// # Errors
/// [`DialError`].
pub async fn stream_with(target: &Target, options: &Options) -> Result<BoxStream, DialError> {
    tcp::probe(&options.congestion)?;
    let outer = target.security != Security::Clear;
    let driver = TargetDriver::new(target, outer, &[b"http/1.1"])?;
    let connect = options.durations.connect;
    let deadline = Instant::now() + connect;
    let reached = driver.reach(Purpose::Bulk, options, deadline);
    match tokio::time::timeout_at(deadline, reached).await {
        Ok(reached) => Ok(reached?.wire.into_stream()),
        Err(_) => Err(DialError::TooSlow {
            server: target.server_name.clone(),
            address: target.authority(),
            connect,
        }),
    }
}

impl Driver {
    /// For `host:port`, as text: a socket to the server itself.
    pub fn plain(address: &str, name: &str, identity: &Identity) -> Result<Self, DialError> {
        let (host, port) = target::split(address).ok_or_else(|| DialError::Resolve {
            address: address.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "it is not `host:port`"),
        })?;
        Self::new(&Target::new(
            Scheme::Tcp,
            host,
            port,
            name,
            identity.clone(),
        ))
    }
}
