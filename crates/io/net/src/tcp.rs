//! TCP sockets as sessions need them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use firesteel_base::limits;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Which congestion control the bulk connections use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Congestion {
    /// What the system is set to.
    #[default]
    System,
    /// One of the kernel's, by name: `bbr`, `cubic` …
    Named(Arc<str>),
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("the system's"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// A congestion control that cannot be used here.
#[derive(Debug, thiserror::Error)]
#[error("the congestion control `{name}` cannot be used on this machine")]
pub struct CongestionError {
    /// Its name.
    pub name: Arc<str>,
    /// Those that the kernel has loaded, when it says.
    pub available: Vec<String>,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl firesteel_base::Hint for CongestionError {
    fn hint(&self) -> Option<String> {
        if self.available.iter().any(|name| **name == *self.name) {
            return Some(format!(
                "root must add `{}` to net.ipv4.tcp_allowed_congestion_control",
                self.name
            ));
        }
        Some(format!(
            "use one of {}, or have root run `modprobe tcp_{}`",
            self.available.join(", "),
            self.name
        ))
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Control,
    Bulk,
}

/// A socket that listens. On `[::]` it takes IPv4, too.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(limits::BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects to one address.
pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()?
    } else {
        TcpSocket::new_v4()?
    };
    socket.connect(address).await
}

/// Sets a connected socket up. `idle` is for how long a peer may be silent.
pub(crate) fn tune(stream: &TcpStream, purpose: Purpose, idle: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    // Frames are written whole, so nothing is gained by waiting for more bytes.
    socket.set_tcp_nodelay(true)?;
    let probe = crate::driver::beat(idle).max(Duration::from_secs(1));
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(probe)
            .with_interval(probe)
            .with_retries(3),
    )?;
    // A peer that vanished is noticed after this long even while data waits.
    socket.set_tcp_user_timeout(Some(idle))?;
    // Data that lies unsent in the kernel can no longer be overtaken.
    socket.set_tcp_notsent_lowat(match purpose {
        Purpose::Control => limits::UNSENT_CONTROL,
        Purpose::Bulk => limits::UNSENT_BULK,
    })?;
    Ok(())
}

/// Chooses the congestion control of a socket, before or after it is connected.
pub(crate) fn choose(stream: &TcpStream, congestion: &Congestion) -> Result<(), CongestionError> {
    let Congestion::Named(name) = congestion else {
        return Ok(());
    };
    SockRef::from(stream)
        .set_tcp_congestion(name.as_bytes())
        .map_err(|source| CongestionError {
            name: Arc::clone(name),
            available: available(),
            source,
        })
}

/// Asks the kernel once whether it would, so that a typing error is told at the
/// start and not with the first transfer.
pub(crate) fn probe(congestion: &Congestion) -> Result<(), CongestionError> {
    let Congestion::Named(name) = congestion else {
        return Ok(());
    };
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
        .and_then(|socket| socket.set_tcp_congestion(name.as_bytes()))
        .map_err(|source| CongestionError {
            name: Arc::clone(name),
            available: available(),
            source,
        })
}

fn available() -> Vec<String> {
    std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}
