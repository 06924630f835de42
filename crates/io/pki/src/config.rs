//! `kit.toml`: what the project says about one node. Signed; nobody edits it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use firesteel_policy::Role;
use serde::{Deserialize, Serialize};

/// The version of `kit.toml` that is written, and the only one read.
pub(crate) const VERSION: u32 = 1;

/// What the project says about one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KitConfig {
    /// 1.
    pub version: u32,
    /// The federation.
    pub project: String,
    /// This node, as its certificate names it.
    pub name: String,
    /// What it is.
    #[serde(with = "role")]
    pub role: Role,
    /// Whose it is.
    pub org: String,
    /// The name in the server's certificate: who must answer in the end, also
    /// behind relays and proxies.
    pub server: String,
    /// Where it connects to, the first that answers; empty for the server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connect: Vec<Connect>,
    /// Where it is connected to: a server or a relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<Listen>,
}

/// One way up.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// What carries the connection.
    pub scheme: Scheme,
    /// A host name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The name in the certificate of who answers there: the server, or a relay.
    pub server_name: String,
    /// Whether somebody in between ends the outer TLS.
    #[serde(default)]
    pub security: Security,
    /// The authority of who ends it (`tls` only), a file of the kit; absent: the
    /// kit's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<PathBuf>,
    /// The HTTP proxy on the way out, `http://proxy:3128`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// The relay that answers there, if it is not the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through_relay: Option<String>,
}

/// Where a node is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// The address; absent: every address of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The port of sites, relays and, unless `admin_port` is given, admins.
    pub port: u16,
    /// The names it is reached by; its certificate holds them.
    pub host_names: Vec<String>,
    /// A second port, which takes the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_port: Option<u16>,
    /// Load balancers (`10.0.0.0/8`) that say who connects by the PROXY protocol.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxy_protocol_from: Vec<String>,
    /// Whether somebody in between ends the outer TLS.
    #[serde(default)]
    pub security: Security,
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("scheme", &self.scheme)
            .field("host", &self.host)
            .field("port", &self.port)
            .field("server_name", &self.server_name)
            .field("security", &self.security)
            .field("authority", &self.authority)
            .field("proxy", &self.proxy.as_deref().map(without_password))
            .field("through_relay", &self.through_relay)
            .finish()
    }
}

/// A proxy's address without who logs in there.
pub(crate) fn without_password(proxy: &str) -> String {
    match (proxy.split_once("://"), proxy.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        (None, Some((_, host))) => format!("…@{host}"),
        (_, None) => proxy.to_owned(),
    }
}

impl Listen {
    /// The sockets to bind. Where no address is given it is every address, IPv6
    /// and IPv4; on a machine without IPv6, every IPv4 one.
    pub fn sockets(&self) -> Vec<SocketAddr> {
        let address = self.address.unwrap_or_else(|| {
            // Asked of the machine, as kits are made on others.
            match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
                Ok(_) => Ipv6Addr::UNSPECIFIED.into(),
                Err(_) => Ipv4Addr::UNSPECIFIED.into(),
            }
        });
        std::iter::once(self.port)
            .chain(self.admin_port.filter(|port| *port != self.port))
            .map(|port| SocketAddr::new(address, port))
            .collect()
    }
}

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// TCP itself: the least between, so the fastest.
    #[default]
    Tcp,
    /// A gRPC stream over HTTP/2.
    Grpc,
    /// A WebSocket over HTTP/1.1: passes where nothing else does.
    Http,
}

/// What the outer connection is. Inside, both ends always show certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// Both ends show certificates; nobody in between can look.
    #[default]
    Mtls,
    /// A proxy with a certificate of its own ends the outer TLS.
    Tls,
    /// A proxy in front of the server has ended it: none on this part of the way.
    Clear,
}

mod role {
    use firesteel_policy::Role;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(role: &Role, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(role.as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Role, D::Error> {
        let text = String::deserialize(from)?;
        Role::parse(&text).ok_or_else(|| {
            let known = Role::ALL.map(Role::as_str).join(", ");
            D::Error::custom(format!("`{text}` is no role; the roles are {known}"))
        })
    }
}
