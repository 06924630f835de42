//! TLS 1.3 by rustls and aws-lc-rs over a blocking socket, as lean as it goes.
//!
//! Records are sealed straight from the caller's bytes into one buffer, which
//! goes out in one call; they are opened where they were received, and handed on
//! from there. So nothing is copied between the file and the cipher.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};

use crate::files::WINDOW;

/// The name in the certificate.
const NAME: &str = "localhost";
/// Room for the records of one window: each adds a header and a tag.
const SEALED: usize = WINDOW + WINDOW / 64 + 4096;

/// A certificate and its key, both DER.
pub struct Secret {
    /// The certificate, which is its own authority.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

impl Secret {
    /// A new one.
    pub fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        Ok(Self {
            certificate: made.cert.der().to_vec(),
            key: made.signing_key.serialize_der(),
        })
    }
}

/// One end of a connection.
pub struct Tls {
    socket: TcpStream,
    connection: Connection,
    /// What was received and not yet opened is its first `filled` bytes.
    received: Vec<u8>,
    filled: usize,
    sealed: Vec<u8>,
}

enum Connection {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What is wanted of the connection.
enum Want<'a, 'b> {
    Handshake,
    /// Opened bytes go to the function; it is done after one batch.
    Read(&'a mut dyn FnMut(&[u8]) -> io::Result<()>),
    /// These bytes are sealed and sent.
    Write(&'b [u8]),
}

impl Tls {
    /// The client's end, after the handshake.
    pub fn client(socket: TcpStream, secret: &Secret) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(secret.certificate.clone()))?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(NAME)?;
        let connection = UnbufferedClientConnection::new(Arc::new(config), name)?;
        Self::shake(socket, Connection::Client(Box::new(connection)))
    }

    /// The server's end, after the handshake.
    pub fn server(socket: TcpStream, secret: &Secret) -> Result<Self> {
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&version::TLS13])?
                .with_no_client_auth()
                .with_single_cert(
                    vec![CertificateDer::from(secret.certificate.clone())],
                    PrivateKeyDer::from(PrivatePkcs8KeyDer::from(secret.key.clone())),
                )?;
        config.send_tls13_tickets = 0;
        let connection = UnbufferedServerConnection::new(Arc::new(config))?;
        Self::shake(socket, Connection::Server(Box::new(connection)))
    }

    fn shake(socket: TcpStream, connection: Connection) -> Result<Self> {
        let mut tls = Self {
            socket,
            connection,
            received: vec![0; SEALED],
            filled: 0,
            sealed: vec![0; SEALED],
        };
        tls.drive(&mut Want::Handshake)?;
        Ok(tls)
    }

    /// Seals and sends up to one window.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.drive(&mut Want::Write(bytes))
    }

    /// Receives some bytes and hands them on, a record at a time.
    pub fn read(&mut self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
        self.drive(&mut Want::Read(&mut take))
    }

    fn drive(&mut self, want: &mut Want) -> Result<()> {
        let mut read_some = false;
        loop {
            let Self {
                socket,
                connection,
                received,
                filled,
                sealed,
            } = self;
            let step = match connection {
                Connection::Client(connection) => step(
                    connection.process_tls_records(&mut received[..*filled]),
                    socket,
                    sealed,
                    want,
                    &mut read_some,
                )?,
                Connection::Server(connection) => step(
                    connection.process_tls_records(&mut received[..*filled]),
                    socket,
                    sealed,
                    want,
                    &mut read_some,
                )?,
            };
            received.copy_within(step.discard..*filled, 0);
            *filled -= step.discard;
            if step.done {
                return Ok(());
            }
            if step.hungry {
                let got = socket.read(&mut received[*filled..])?;
                if got == 0 {
                    bail!("the other end closed the connection");
                }
                *filled += got;
            }
        }
    }
}

/// What became of one look at the connection.
struct Step {
    /// Received bytes that are done with.
    discard: usize,
    /// More bytes are needed.
    hungry: bool,
    /// What was wanted is done.
    done: bool,
}

fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    socket: &mut TcpStream,
    sealed: &mut [u8],
    want: &mut Want,
    read_some: &mut bool,
) -> Result<Step> {
    let UnbufferedStatus {
        mut discard, state, ..
    } = status;
    let (mut hungry, mut done) = (false, false);
    match state.context("TLS")? {
        ConnectionState::EncodeTlsData(mut data) => {
            let length = data.encode(sealed).map_err(|error| anyhow!("{error:?}"))?;
            socket.write_all(&sealed[..length])?;
        }
        ConnectionState::TransmitTlsData(data) => data.done(),
        ConnectionState::BlockedHandshake => hungry = true,
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record.context("a record")?;
                discard += record.discard;
                match want {
                    Want::Read(take) => take(record.payload)?,
                    Want::Handshake | Want::Write(_) => bail!("bytes that nobody waits for"),
                }
                *read_some = true;
            }
        }
        ConnectionState::WriteTraffic(mut traffic) => match want {
            Want::Handshake => done = true,
            Want::Write(bytes) => {
                let length = traffic
                    .encrypt(bytes, sealed)
                    .map_err(|error| anyhow!("{error:?}"))?;
                socket.write_all(&sealed[..length])?;
                done = true;
            }
            Want::Read(_) => {
                done = *read_some;
                hungry = !done;
            }
        },
        ConnectionState::PeerClosed | ConnectionState::Closed => bail!("the other end is done"),
        other => bail!("an unexpected state of TLS: {other:?}"),
    }
    Ok(Step {
        discard,
        hungry,
        done,
    })
}
