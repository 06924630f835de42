//! Whether a certificate is one of ours, whose it is, and until when.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use firesteel_base::{Hint, limits};
use firesteel_policy::Role;
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The authority of a project: what `authority.pem` holds.
#[derive(Debug, Clone)]
pub struct Authority {
    pem: Arc<[u8]>,
    pub(crate) certificates: Arc<[CertificateDer<'static>]>,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
}

/// What a certificate of the project says about its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The common name.
    pub name: String,
    /// The organization.
    pub org: String,
    /// The organizational unit.
    pub role: Role,
    /// From when it is valid.
    pub starts: SystemTime,
    /// Until when.
    pub expires: SystemTime,
}

/// Why a certificate is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// No certificate where one should be, or one that cannot be read.
    #[error("the {what} is damaged: {why}")]
    Damaged {
        /// `certificate` or `authority`.
        what: &'static str,
        /// What the parser said.
        why: String,
    },
    /// Another authority's.
    #[error("the certificate of `{name}` was not issued by this project's authority")]
    Foreign {
        /// The name in it.
        name: String,
    },
    /// Too late.
    #[error("the certificate of `{name}` expired on {when}")]
    Expired {
        /// The name in it.
        name: String,
        /// The day.
        when: String,
    },
    /// Too early.
    #[error("the certificate of `{name}` is valid from {when} only")]
    NotYet {
        /// The name in it.
        name: String,
        /// The day and time.
        when: String,
    },
    /// It has no common name or organization.
    #[error("the certificate says no {what}")]
    Nameless {
        /// `name` or `organization`.
        what: &'static str,
    },
    /// It says no role that there is.
    #[error("the certificate of `{name}` says the role {role}, and there is no such role")]
    NoRole {
        /// The name in it.
        name: String,
        /// What it says.
        role: String,
    },
}

impl Hint for ChainError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Foreign { .. } => {
                "kits of one project come from one `firesteel provision`: compare authority.pem"
                    .to_owned()
            }
            Self::Expired { .. } => {
                "provision again (certificates near their end are renewed) and hand out the new kit"
                    .to_owned()
            }
            Self::NotYet { .. } => "check this machine's clock".to_owned(),
            _ => return None,
        })
    }
}

impl Authority {
    /// Reads one or more certificates, PEM.
    ///
    /// # Errors
    /// [`ChainError::Damaged`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, ChainError> {
        let what = "authority";
        let damaged = |why: String| ChainError::Damaged { what, why };
        let certificates = read(what, pem)?;
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots
                .add(certificate.clone())
                .map_err(|error| damaged(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = Arc::new(roots);
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| damaged(error.to_string()))?;
        Ok(Self {
            pem: pem.into(),
            certificates: certificates.into(),
            roots,
            clients,
            provider,
        })
    }

    /// As it was read.
    pub fn pem(&self) -> &[u8] {
        &self.pem
    }

    /// Whose chain it is, if the authority issued it and `now` it is valid.
    ///
    /// # Errors
    /// [`ChainError`], which names the holder.
    pub fn check(&self, chain_pem: &[u8], now: SystemTime) -> Result<Holder, ChainError> {
        self.checked(chain_pem, now).map(|(holder, _)| holder)
    }

    /// Until when the first certificate of a chain says that it is valid; whether
    /// it is ours is not asked.
    pub(crate) fn expires(&self, chain_pem: &[u8]) -> Result<SystemTime, ChainError> {
        let what = "certificate";
        let chain = read(what, chain_pem)?;
        let damaged = |why: String| ChainError::Damaged { what, why };
        let leaf = chain
            .first()
            .ok_or_else(|| damaged("it is empty".to_owned()))?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|error| damaged(error.to_string()))?;
        Holder::of(&parsed).map(|holder| holder.expires)
    }

    /// As [`Self::check`], with the certificate itself.
    pub(crate) fn checked(
        &self,
        chain_pem: &[u8],
        now: SystemTime,
    ) -> Result<(Holder, CertificateDer<'static>), ChainError> {
        let what = "certificate";
        let chain = read(what, chain_pem)?;
        let Some((leaf, rest)) = chain.split_first() else {
            return Err(ChainError::Damaged {
                what,
                why: "it is empty".to_owned(),
            });
        };
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| ChainError::Damaged {
            what,
            why: error.to_string(),
        })?;
        let holder = Holder::of(&parsed)?;
        let for_clients = parsed
            .extended_key_usage()
            .ok()
            .flatten()
            .is_none_or(|usage| usage.value.client_auth || usage.value.any);
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let at = UnixTime::since_unix_epoch(since);
        let verified = if for_clients {
            self.clients.verify_client_cert(leaf, rest, at).map(|_| ())
        } else {
            ParsedCertificate::try_from(leaf).and_then(|certificate| {
                verify_server_cert_signed_by_trust_anchor(
                    &certificate,
                    &self.roots,
                    rest,
                    at,
                    self.provider.signature_verification_algorithms.all,
                )
            })
        };
        verified.map_err(|error| holder.explain(&error))?;
        Ok((holder, leaf.clone()))
    }
}

impl Holder {
    fn of(certificate: &X509Certificate<'_>) -> Result<Self, ChainError> {
        let subject = certificate.subject();
        let text = |found: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            let text = found?.as_str().ok()?;
            let plain = !text.is_empty()
                && text.len() <= limits::NAME_LENGTH * 4
                && !text.chars().any(char::is_control);
            plain.then(|| text.to_owned())
        };
        let name =
            text(subject.iter_common_name().next()).ok_or(ChainError::Nameless { what: "name" })?;
        let org = text(subject.iter_organization().next()).ok_or(ChainError::Nameless {
            what: "organization",
        })?;
        let unit = text(subject.iter_organizational_unit().next());
        let role = unit
            .as_deref()
            .and_then(Role::parse)
            .ok_or_else(|| ChainError::NoRole {
                name: name.clone(),
                role: unit.map_or_else(|| "none".to_owned(), |unit| format!("`{unit}`")),
            })?;
        let validity = certificate.validity();
        let at = |time: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        Ok(Self {
            name,
            org,
            role,
            starts: at(validity.not_before),
            expires: at(validity.not_after),
        })
    }

    fn explain(&self, error: &rustls::Error) -> ChainError {
        use rustls::CertificateError as E;
        let name = self.name.clone();
        let day = |time| firesteel_base::Moment::of(time).rfc3339();
        match error {
            rustls::Error::InvalidCertificate(E::Expired | E::ExpiredContext { .. }) => {
                ChainError::Expired {
                    name,
                    when: day(self.expires),
                }
            }
            rustls::Error::InvalidCertificate(E::NotValidYet | E::NotValidYetContext { .. }) => {
                ChainError::NotYet {
                    name,
                    when: day(self.starts),
                }
            }
            rustls::Error::InvalidCertificate(E::UnknownIssuer | E::BadSignature) => {
                ChainError::Foreign { name }
            }
            other => ChainError::Damaged {
                what: "certificate",
                why: other.to_string(),
            },
        }
    }
}

fn read(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ChainError> {
    let damaged = |why: String| ChainError::Damaged { what, why };
    if pem.len() > limits::PEM_FILE {
        return Err(damaged(format!(
            "it is over {} bytes long",
            limits::PEM_FILE
        )));
    }
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| damaged(error.to_string()))?;
    if found.is_empty() {
        return Err(damaged("it holds no certificate in PEM form".to_owned()));
    }
    Ok(found)
}
