//! The ways of a kit, as they are dialed.

use firesteel_net::{Proxy, Target};
use firesteel_node::parts::sentence;
use firesteel_pki::{Connect, Kit, Scheme, Security};

/// A way of a kit, as it is dialed.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub(crate) fn target(kit: &Kit, way: &Connect) -> Result<Target, String> {
    let scheme = match way.scheme {
        Scheme::Tcp => firesteel_net::Scheme::Tcp,
        Scheme::Grpc => firesteel_net::Scheme::Grpc,
        Scheme::Http => firesteel_net::Scheme::Http,
    };
    let mut target = Target::new(
        scheme,
        &way.host,
        way.port,
        &way.server_name,
        kit.identity().clone(),
    );
    target.security = match way.security {
        Security::Mtls => firesteel_net::Security::Mtls,
        Security::Tls => firesteel_net::Security::Tls,
        Security::Clear => firesteel_net::Security::Clear,
    };
    if let Some(authority) = &way.authority {
        let pem = std::fs::read(authority)
            .map_err(|error| format!("`{}` cannot be read: {error}", authority.display()))?;
        target.outer_authority = Some(pem);
    }
    if let Some(proxy) = &way.proxy {
        let parsed = Proxy::parse(proxy).map_err(|error| sentence(&error))?;
        target.proxy = Some(parsed);
    }
    Ok(target)
}
