//! The TLS around links and web pages: the server shows a certificate, the client
//! none. Whoever connects is known by the mutual TLS inside, or by what the web
//! interface asks for.

use std::sync::Arc;

use firesteel_base::limits;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use tokio::io::BufReader;
use tokio_rustls::TlsConnector;

use crate::driver::Target;
use crate::session::DialError;
use crate::tls::{self, HandshakeError};
use crate::wire::Wire;

/// A server's settings.
pub(crate) fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut server = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(Arc::new(server))
}

/// A client's settings for a target.
pub(crate) fn client(target: &Target, protocols: &[&[u8]]) -> Result<Arc<ClientConfig>, DialError> {
    let malformed = |why: String| DialError::OuterAuthority { why };
    let roots = match &target.outer_authority {
        None => Arc::clone(&target.identity.roots),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            let mut why = "it holds no certificate in PEM form".to_owned();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| malformed(error.to_string()))?;
                // Bundles of systems hold some that no verifier takes.
                if let Err(error) = roots.add(certificate) {
                    why = error.to_string();
                }
            }
            if roots.is_empty() {
                return Err(malformed(why));
            }
            Arc::new(roots)
        }
    };
    let failed = |error: rustls::Error| malformed(error.to_string());
    let verifier = tls::server_verifier(roots).map_err(failed)?;
    let mut client = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    client.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    client.resumption = Resumption::disabled();
    Ok(Arc::new(client))
}

/// The dialing end's handshake.
pub(crate) async fn connect(
    wire: Wire,
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
    target: &Target,
) -> Result<Wire, HandshakeError> {
    let authority = match &target.outer_authority {
        None => Arc::clone(&target.identity.authority),
        Some(_) => "the one configured for the outer TLS".into(),
    };
    let handshake = tls::Handshake {
        own: &target.identity.own.name,
        authority: &authority,
        needed: "server",
    };
    let connector = TlsConnector::from(Arc::clone(config));
    let stream = tls::noting(async {
        connector
            .connect(name, BufReader::with_capacity(limits::TLS_UNREAD, wire))
            .await
            .map_err(|error| handshake.explain(error))
    })
    .await?;
    let asked = config.alpn_protocols.first();
    if asked.is_some() && stream.get_ref().1.alpn_protocol() != asked.map(Vec::as_slice) {
        return Err(HandshakeError::OtherProtocol);
    }
    let mut stream = stream;
    stream
        .get_mut()
        .1
        .set_buffer_limit(Some(limits::TLS_UNWRITTEN));
    Ok(Wire::Other(Box::new(stream)))
}
