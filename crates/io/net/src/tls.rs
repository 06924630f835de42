//! Mutual TLS 1.3, and what a failed handshake means in words.

use std::sync::Arc;

use firesteel_base::limits;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    RootCertStore, ServerConfig, SignatureScheme, version,
};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::task::futures::TaskLocalFuture;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::identity::{Identity, Peer, PeerName};
use crate::wire::Wire;

/// What this protocol is called in the TLS handshake.
pub(crate) const ALPN: &[u8] = b"firesteel/1";

const UNWRITTEN: Option<usize> = Some(limits::TLS_UNWRITTEN);

tokio::task_local! {
    /// The leaf that the peer of this task's handshake showed, noted before it is
    /// judged: rustls keeps none that it refuses, and an error should name it.
    static SHOWN: std::cell::RefCell<Option<CertificateDer<'static>>>;
}

/// The cryptography of all connections, never installed for the process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())))
}

/// Both ends' settings for one identity.
pub(crate) fn configs(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), rustls::Error> {
    let refused =
        |error: rustls::server::VerifierBuilderError| rustls::Error::General(error.to_string());

    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(Arc::clone(&roots))?)
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    // Every connection shows and checks certificates anew, so that one that was
    // revoked or has expired gets no further connection.
    client.resumption = Resumption::disabled();

    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(refused)?;
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(Arc::new(NotingClient(clients)))
        .with_single_cert(chain, key)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok((Arc::new(client), Arc::new(server)))
}

/// What judges a server's certificate.
pub(crate) fn server_verifier(
    roots: Arc<RootCertStore>,
) -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    Ok(Arc::new(NotingServer(verifier)))
}

/// Why a peer and we did not come to trust each other. All names are as the
/// certificates have them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The peer's certificate is from elsewhere.
    #[error("its certificate{} was not issued by our authority, {authority}", of(shown.as_ref()))]
    UnknownAuthority {
        /// The name in the certificate it showed.
        shown: Option<PeerName>,
        /// Our authority's file.
        authority: Arc<str>,
    },
    /// The peer's certificate is too old or too new.
    #[error("its certificate{} {}", of(shown.as_ref()), when(*now, *bound))]
    OutOfDate {
        /// The name in the certificate it showed.
        shown: Option<PeerName>,
        /// What our clock says, seconds since 1970.
        now: u64,
        /// Until when it was valid, or from when it will be.
        bound: u64,
    },
    /// The server is another than the one meant.
    #[error(
        "it should be `{expected}`, but its certificate is for {}",
        list(presented)
    )]
    WrongName {
        /// The name we asked for.
        expected: String,
        /// The names in its certificate.
        presented: Vec<String>,
    },
    /// A client's certificate at a server, or the other way round.
    #[error("its certificate{} was not issued for a {needed}", of(shown.as_ref()))]
    WrongPurpose {
        /// The name in the certificate it showed.
        shown: Option<PeerName>,
        /// `server` or `client`.
        needed: &'static str,
    },
    /// The peer showed no certificate.
    #[error("it showed no certificate, and one from our authority, {authority}, is required")]
    NoCertificate {
        /// Our authority's file.
        authority: Arc<str>,
    },
    /// Anything else about the peer's certificate.
    #[error("its certificate{} cannot be accepted: {why}", of(shown.as_ref()))]
    BadCertificate {
        /// The name in the certificate it showed.
        shown: Option<PeerName>,
        /// What the verifier said.
        why: String,
    },
    /// The peer refused ours.
    #[error("it refused our certificate, of `{own}`: {}", refusal(*alert))]
    Refused {
        /// The name in our certificate.
        own: PeerName,
        /// The reason it gave.
        alert: AlertDescription,
    },
    /// No common protocol.
    #[error("it speaks TLS, but not Firesteel's protocol `firesteel/1`")]
    OtherProtocol,
    /// A TLS version before 1.3.
    #[error("it does not speak TLS 1.3")]
    OldTls,
    /// Not TLS at all.
    #[error("it does not speak TLS")]
    NotTls,
    /// The connection ended.
    #[error("it closed the connection during the handshake")]
    Ended,
    /// The connection failed.
    #[error("the connection failed during the handshake")]
    Io(#[source] std::io::Error),
    /// What else TLS can complain of.
    #[error("the TLS handshake failed")]
    Tls(#[source] rustls::Error),
}

impl firesteel_base::Hint for HandshakeError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownAuthority { authority, .. } => format!(
                "both ends need certificates of the same federation: compare {authority} with the peer's"
            ),
            Self::OutOfDate { now, bound, .. } if now > bound => {
                "have the peer's certificate renewed; if it should be valid, check this machine's clock"
                    .to_owned()
            }
            Self::OutOfDate { .. } => "check the clocks of both machines".to_owned(),
            Self::WrongName { presented, .. } => match presented.first() {
                Some(name) => format!(
                    "connect by a name in its certificate, such as `{name}`, or have one issued for this name"
                ),
                None => "have a certificate issued for this name".to_owned(),
            },
            Self::WrongPurpose { needed, .. } => {
                format!("the peer must use the startup kit of a {needed}")
            }
            Self::NoCertificate { .. } => {
                "the peer must use its startup kit; browsers and other programs cannot connect here"
                    .to_owned()
            }
            Self::Refused { alert, .. } => match *alert {
                AlertDescription::UnknownCA => {
                    "both ends need certificates of the same federation".to_owned()
                }
                AlertDescription::CertificateExpired => {
                    "have our certificate renewed, and check both machines' clocks".to_owned()
                }
                _ => "the peer's log has the details".to_owned(),
            },
            Self::OtherProtocol | Self::NotTls | Self::OldTls => {
                "check host and port: another program may listen there, or a proxy may stand between"
                    .to_owned()
            }
            Self::Ended => "the peer's log may say why".to_owned(),
            _ => return None,
        })
    }
}

fn of(shown: Option<&PeerName>) -> String {
    shown.map_or_else(String::new, |name| format!(", of `{name}`,"))
}

fn when(now: u64, bound: u64) -> String {
    let (far, unit) = match now.abs_diff(bound) {
        seconds @ ..7200 => (seconds / 60, "minutes"),
        seconds @ ..172_800 => (seconds / 3600, "hours"),
        seconds => (seconds / 86_400, "days"),
    };
    if now > bound {
        format!("expired {far} {unit} ago")
    } else {
        format!("will only be valid in {far} {unit}")
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "no name".to_owned();
    }
    let shown: Vec<_> = names
        .iter()
        .take(8)
        .map(|name| format!("`{name}`"))
        .collect();
    shown.join(", ")
}

fn refusal(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::UnknownCA => "it was not issued by the peer's authority".to_owned(),
        AlertDescription::CertificateExpired => "it has expired".to_owned(),
        AlertDescription::CertificateRevoked => "it was revoked".to_owned(),
        AlertDescription::CertificateRequired => "it did not receive one".to_owned(),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => "it cannot be accepted".to_owned(),
        AlertDescription::AccessDenied => "it may not connect".to_owned(),
        other => format!("{other:?}"),
    }
}

/// What the error needs beside what TLS said.
pub(crate) struct Handshake<'a> {
    pub own: &'a PeerName,
    pub authority: &'a Arc<str>,
    /// What the peer's certificate must be for.
    pub needed: &'static str,
}

/// Runs a handshake; on failure the certificate that the peer showed is known.
pub(crate) fn noting<F: Future>(
    future: F,
) -> TaskLocalFuture<std::cell::RefCell<Option<CertificateDer<'static>>>, F> {
    SHOWN.scope(std::cell::RefCell::new(None), future)
}

/// A connection whose ends have shown each other their certificates.
///
/// rustls asks for 4 KiB at a time; the buffer turns that into few large reads.
pub(crate) type TlsStream = tokio_rustls::TlsStream<BufReader<Wire>>;

/// The socket below, where there is nothing between.
pub(crate) fn socket(stream: &TlsStream) -> Option<&TcpStream> {
    stream.get_ref().0.get_ref().socket()
}

/// The dialing end's handshake with a server that must be called `name`.
pub(crate) async fn connect(
    wire: Wire,
    identity: &Identity,
    name: ServerName<'static>,
) -> Result<(TlsStream, Peer), HandshakeError> {
    let handshake = Handshake::of(identity, "server");
    let connector = TlsConnector::from(Arc::clone(&identity.client));
    noting(async {
        let stream = connector
            .connect(name, BufReader::with_capacity(limits::TLS_UNREAD, wire))
            .await
            .map_err(|error| handshake.explain(error))?;
        handshake.finish(stream.into())
    })
    .await
}

/// The accepting end's handshake.
pub(crate) async fn accept(
    stream: BufReader<Wire>,
    identity: &Identity,
) -> Result<(TlsStream, Peer), HandshakeError> {
    let handshake = Handshake::of(identity, "client");
    let acceptor = TlsAcceptor::from(Arc::clone(&identity.server));
    noting(async {
        let stream = acceptor
            .accept(stream)
            .await
            .map_err(|error| handshake.explain(error))?;
        handshake.finish(stream.into())
    })
    .await
}

impl<'a> Handshake<'a> {
    pub fn of(identity: &'a Identity, needed: &'static str) -> Self {
        Self {
            own: &identity.own.name,
            authority: &identity.authority,
            needed,
        }
    }

    /// Who the peer is, once the handshake is done.
    pub fn finish(&self, mut stream: TlsStream) -> Result<(TlsStream, Peer), HandshakeError> {
        match &mut stream {
            TlsStream::Client(stream) => stream.get_mut().1.set_buffer_limit(UNWRITTEN),
            TlsStream::Server(stream) => stream.get_mut().1.set_buffer_limit(UNWRITTEN),
        }
        let (_, session) = stream.get_ref();
        // A peer that offers no protocol at all passes the negotiation.
        if session.alpn_protocol() != Some(ALPN) {
            return Err(HandshakeError::OtherProtocol);
        }
        let leaf = session.peer_certificates().and_then(<[_]>::first);
        let leaf = leaf.ok_or_else(|| HandshakeError::NoCertificate {
            authority: Arc::clone(self.authority),
        })?;
        let peer = Peer::parse(leaf).map_err(|_| HandshakeError::BadCertificate {
            shown: None,
            why: "it names nobody".to_owned(),
        })?;
        Ok((stream, peer))
    }

    /// What the I/O error of a handshake, or of the first bytes after it, means.
    pub fn explain(&self, error: std::io::Error) -> HandshakeError {
        match error.downcast::<rustls::Error>() {
            Ok(error) => self.explain_tls(error),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                HandshakeError::Ended
            }
            Err(error) => HandshakeError::Io(error),
        }
    }

    fn explain_tls(&self, error: rustls::Error) -> HandshakeError {
        use rustls::Error as E;
        match error {
            E::InvalidCertificate(error) => self.explain_certificate(error),
            E::NoCertificatesPresented => HandshakeError::NoCertificate {
                authority: Arc::clone(self.authority),
            },
            E::AlertReceived(alert) => match alert {
                AlertDescription::NoApplicationProtocol => HandshakeError::OtherProtocol,
                AlertDescription::ProtocolVersion => HandshakeError::OldTls,
                AlertDescription::UnknownCA
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateRequired
                | AlertDescription::CertificateUnknown
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::DecryptError
                | AlertDescription::AccessDenied => HandshakeError::Refused {
                    own: self.own.clone(),
                    alert,
                },
                _ => HandshakeError::Tls(E::AlertReceived(alert)),
            },
            E::NoApplicationProtocol => HandshakeError::OtherProtocol,
            E::PeerIncompatible(
                rustls::PeerIncompatible::Tls13RequiredForQuic
                | rustls::PeerIncompatible::SupportedVersionsExtensionRequired
                | rustls::PeerIncompatible::Tls12NotOffered
                | rustls::PeerIncompatible::Tls12NotOfferedOrEnabled
                | rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13
                | rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ) => HandshakeError::OldTls,
            E::InvalidMessage(_) | E::InappropriateMessage { .. } => HandshakeError::NotTls,
            error => HandshakeError::Tls(error),
        }
    }

    fn explain_certificate(&self, error: CertificateError) -> HandshakeError {
        let shown = SHOWN
            .try_with(|shown| shown.borrow_mut().take())
            .ok()
            .flatten()
            .and_then(|leaf| Peer::parse(&leaf).ok())
            .map(|peer| peer.name);
        match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                HandshakeError::UnknownAuthority {
                    shown,
                    authority: Arc::clone(self.authority),
                }
            }
            CertificateError::ExpiredContext { time, not_after } => HandshakeError::OutOfDate {
                shown,
                now: time.as_secs(),
                bound: not_after.as_secs(),
            },
            CertificateError::NotValidYetContext { time, not_before } => {
                HandshakeError::OutOfDate {
                    shown,
                    now: time.as_secs(),
                    bound: not_before.as_secs(),
                }
            }
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => HandshakeError::WrongName {
                expected: expected.to_str().into_owned(),
                presented,
            },
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                HandshakeError::WrongPurpose {
                    shown,
                    needed: self.needed,
                }
            }
            error => HandshakeError::BadCertificate {
                shown,
                why: error.to_string(),
            },
        }
    }
}

fn note(leaf: &CertificateDer<'_>) {
    // Outside a handshake of ours there is nobody to tell.
    let _ = SHOWN.try_with(|shown| *shown.borrow_mut() = Some(leaf.clone().into_owned()));
}

#[derive(Debug)]
struct NotingServer(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for NotingServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        note(end_entity);
        self.0
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct NotingClient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for NotingClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        note(end_entity);
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
