//! Where a server is, and by which way it is reached.

use std::fmt;
use std::io;

use http::StatusCode;

use crate::Identity;

/// What carries the bytes of a session's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// A TCP connection.
    Tcp,
    /// A gRPC call over HTTP/2.
    Grpc,
    /// A WebSocket over HTTP/1.1.
    Http,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Grpc => "grpc",
            Self::Http => "http",
        })
    }
}

/// What lies around the session's own mutual TLS, which is always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Security {
    /// With [`Scheme::Tcp`] nothing; with the others TLS of the server.
    Mtls,
    /// TLS that whatever stands before the server ends, or the server itself.
    Tls,
    /// Nothing: an ingress within a protected network.
    Clear,
}

/// A server, and the way to it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Target {
    /// What carries the bytes.
    pub scheme: Scheme,
    /// The name or address to connect to.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The name that the server's certificate must have.
    pub server_name: String,
    /// Our certificate, and the authority that the server's must come from.
    pub identity: Identity,
    /// What lies around the mutual TLS.
    pub security: Security,
    /// The authorities, PEM, of the certificate that the outer TLS shows; without
    /// them it is the server's own, from our authority.
    pub outer_authority: Option<Vec<u8>>,
    /// The name that the outer TLS is asked for and must show. Without it, that is
    /// `host` with authorities of their own, else `server_name`.
    pub outer_name: Option<String>,
    /// An HTTP proxy that all connections go through.
    pub proxy: Option<Proxy>,
    /// The roles that the server's certificate may have; any, where it names none.
    pub roles: Vec<String>,
}

impl Target {
    /// A server that is reached directly.
    pub fn new(
        scheme: Scheme,
        host: &str,
        port: u16,
        server_name: &str,
        identity: Identity,
    ) -> Self {
        Self {
            scheme,
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            server_name: server_name.to_owned(),
            identity,
            security: Security::Mtls,
            outer_authority: None,
            outer_name: None,
            proxy: None,
            roles: vec!["server".to_owned(), "relay".to_owned()],
        }
    }

    /// `host:port`, as HTTP writes it.
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }

    /// Whether sessions have TLS around their mutual TLS.
    pub(crate) fn has_outer(&self) -> bool {
        match self.security {
            Security::Mtls => self.scheme != Scheme::Tcp,
            Security::Tls => true,
            Security::Clear => false,
        }
    }

    pub(crate) fn name_outside(&self) -> &str {
        match &self.outer_name {
            Some(name) => name,
            None if self.outer_authority.is_some() => &self.host,
            None => &self.server_name,
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("scheme", &self.scheme)
            .field("address", &self.authority())
            .field("server_name", &self.server_name)
            .field("security", &self.security)
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}

pub(super) fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

pub(super) fn authority(host: &str, port: u16) -> String {
    format!("{}:{port}", bracketed(host))
}

/// The two parts of `host:port`; an IPv6 address is in brackets.
pub(super) fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if inner.is_none() && host.contains(':') {
        return None;
    }
    let host = inner.unwrap_or(host);
    if host.is_empty() {
        return None;
    }
    Some((host, port.parse().ok()?))
}

/// An HTTP proxy that connects to others for us (`CONNECT`).
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// User and password, if it asks for them.
    pub credentials: Option<(String, String)>,
}

/// Never the password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", authority(&self.host, self.port))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// What went wrong with a proxy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// It is not written as one.
    #[error("it must be written as `http://host:port` or `http://user:password@host:port`")]
    Malformed,
    /// It cannot be reached.
    #[error("it cannot be reached: {0}")]
    Connect(#[source] io::Error),
    /// It speaks no HTTP.
    #[error("it does not answer as an HTTP proxy does: {0}")]
    Protocol(#[source] hyper::Error),
    /// It wants to know who we are, or does not believe it.
    #[error("it wants other credentials (407)")]
    Credentials,
    /// It connects to no such server.
    #[error("it answered with {0}")]
    Refused(StatusCode),
}

impl Proxy {
    /// From a URL: `http://host:port`, with `user:password@` where the proxy asks
    /// for it. Both may be percent-encoded.
    ///
    /// # Errors
    /// [`ProxyError::Malformed`]; the text may hold a password, and is not quoted.
    pub fn parse(url: &str) -> Result<Self, ProxyError> {
        let rest = url.strip_prefix("http://").unwrap_or(url);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('/') {
            return Err(ProxyError::Malformed);
        }
        let (credentials, address) = match rest.rsplit_once('@') {
            None => (None, rest),
            Some((credentials, address)) => {
                let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
                let decoded = decode(user).zip(decode(password));
                (Some(decoded.ok_or(ProxyError::Malformed)?), address)
            }
        };
        let (host, port) = split(address).ok_or(ProxyError::Malformed)?;
        Ok(Self {
            host: host.to_owned(),
            port,
            credentials,
        })
    }
}

/// Takes percent-encoding back.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let value = digit()? * 16 + digit()?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split() {
        assert_eq!(split("a.example:80"), Some(("a.example", 80)));
        assert_eq!(split("[::1]:8002"), Some(("::1", 8002)));
        assert_eq!(authority("::1", 8002), "[::1]:8002");
        for bad in ["", "host", ":1", "::1:80", "host:", "host:70000", "[::1]"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }

    #[test]
    fn proxies_are_read_and_their_passwords_are_not_shown() {
        let proxy = Proxy::parse("http://me:p%40ss%3A@proxy.example:3128/").unwrap();
        assert_eq!((&*proxy.host, proxy.port), ("proxy.example", 3128));
        assert_eq!(
            proxy.credentials,
            Some(("me".to_owned(), "p@ss:".to_owned()))
        );
        for shown in [proxy.to_string(), format!("{proxy:?}")] {
            assert!(shown.contains("proxy.example:3128"), "{shown}");
            assert!(
                !shown.contains("p@ss") && !shown.contains("p%40"),
                "{shown}"
            );
        }
        assert_eq!(Proxy::parse("[::1]:80").unwrap().host, "::1");
        for bad in ["https://x:1", "http://x", "http://a%zz@x:1", "http://x:1/y"] {
            let error = Proxy::parse(bad).unwrap_err().to_string();
            assert!(error.contains("http://host:port"), "{error}");
        }
    }
}
