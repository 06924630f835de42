//! How a byte stream to the server comes about.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use firesteel_net::{BoxStream, Options, Proxy, Scheme, Target, stream_with};
use firesteel_pki::{Connect as Way, Kit, Security};

/// A stream on its way.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<BoxStream>> + Send + 'a>>;

/// Makes byte streams to one server.
pub trait Connect: Send + Sync + 'static {
    /// A new stream.
    fn connect(&self) -> Connecting<'_>;

    /// Where it leads, for errors and for the `host` header.
    fn address(&self) -> String;
}

/// Any of them.
pub type BoxConnect = Arc<dyn Connect>;

/// The way that a kit says: to the server itself or to who stands in front of it,
/// through its proxy if there is one.
pub struct KitConnect {
    target: Target,
    options: Options,
}

impl KitConnect {
    /// The first way of a kit that leads to the server and not to a relay.
    ///
    /// # Errors
    /// When the kit names none, or a file or the proxy that it names is no good.
    pub fn of(kit: &Kit) -> io::Result<Self> {
        let ways = kit.connect();
        let way = ways.iter().find(|way| way.through_relay.is_none());
        let way = way.ok_or_else(|| {
            let why =
                "the kit names no way to the server itself, and people do not log in at relays";
            io::Error::new(io::ErrorKind::NotFound, why)
        })?;
        Ok(Self {
            target: target(kit, way)?,
            options: Options::default(),
        })
    }
}

fn target(kit: &Kit, way: &Way) -> io::Result<Target> {
    // Whatever carries sessions there: a request is HTTP by itself.
    let identity = kit.identity().clone();
    let mut target = Target::new(
        Scheme::Http,
        &way.host,
        way.port,
        &way.server_name,
        identity,
    );
    target.security = match way.security {
        Security::Mtls => firesteel_net::Security::Mtls,
        Security::Tls => firesteel_net::Security::Tls,
        Security::Clear => firesteel_net::Security::Clear,
    };
    if let Some(path) = &way.authority {
        target.outer_authority = Some(std::fs::read(path)?);
    }
    if let Some(proxy) = &way.proxy {
        let proxy = Proxy::parse(proxy);
        target.proxy =
            Some(proxy.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?);
    }
    Ok(target)
}

impl Connect for KitConnect {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            let stream = stream_with(&self.target, &self.options).await;
            stream.map_err(io::Error::other)
        })
    }

    fn address(&self) -> String {
        self.target.authority()
    }
}
