//! Identities made on the spot: an authority in memory, a server and sites.
//!
//! For tests, and for servers and agents that somebody starts by hand on one
//! machine. The authority's key is as safe as this process's memory.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use crate::{Identity, IdentityError, IdentityFiles};

/// For how long what is made here is valid: long enough for a demonstration, too
/// short to be kept.
pub const VALID: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevError {
    /// The certificate maker refused.
    #[error("could not make a certificate for `{name}`")]
    Make {
        /// For whom.
        name: String,
        /// What it said.
        #[source]
        source: rcgen::Error,
    },
    /// What was made could not be loaded again.
    #[error("the certificate that was made cannot be used")]
    Load(#[from] IdentityError),
    /// A file could not be written.
    #[error("could not write `{path}`")]
    Write {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// An authority that lives as long as this value.
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
    organization: String,
}

/// For whom a certificate is made.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The common name.
    pub name: &'a str,
    /// The organizational unit.
    pub role: &'a str,
    /// DNS names and addresses under which a server is reached; empty for others.
    pub hosts: &'a [&'a str],
    /// From when it is valid, counted from now; before now when negative.
    pub starts: time::Duration,
    /// Until when it is valid, counted from now.
    pub ends: time::Duration,
}

/// A certificate with its key and its authority, PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificates: String,
    /// Its private key.
    pub key: String,
    /// The authority's certificate.
    pub authority: String,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// [`DevError::Make`].
    pub fn new(organization: &str) -> Result<Self, DevError> {
        let failed = |source| DevError::Make {
            name: organization.to_owned(),
            source,
        };
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{organization} authority"));
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) =
            validity(-HOUR, time::Duration::try_from(VALID).unwrap_or(HOUR));
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self {
            certificate,
            issuer: Issuer::new(params, key),
            organization: organization.to_owned(),
        })
    }

    /// A server's certificate, valid for `hosts` (names or addresses).
    ///
    /// # Errors
    /// [`DevError`].
    pub fn server(&self, name: &str, hosts: &[&str]) -> Result<Issued, DevError> {
        self.issue(&Subject {
            name,
            role: "server",
            hosts,
            starts: -HOUR,
            ends: time::Duration::try_from(VALID).unwrap_or(HOUR),
        })
    }

    /// A site's certificate: its common name is the site's name.
    ///
    /// # Errors
    /// [`DevError`].
    pub fn site(&self, name: &str) -> Result<Issued, DevError> {
        self.issue(&Subject {
            name,
            role: "site",
            hosts: &[],
            starts: -HOUR,
            ends: time::Duration::try_from(VALID).unwrap_or(HOUR),
        })
    }

    /// Any certificate; one with hosts is a server's, one without a client's.
    ///
    /// # Errors
    /// [`DevError`].
    pub fn issue(&self, subject: &Subject<'_>) -> Result<Issued, DevError> {
        let failed = |source| DevError::Make {
            name: subject.name.to_owned(),
            source,
        };
        let mut params = CertificateParams::default();
        let names = &mut params.distinguished_name;
        names.push(DnType::CommonName, subject.name);
        names.push(DnType::OrganizationalUnitName, subject.role);
        names.push(DnType::OrganizationName, self.organization.as_str());
        for host in subject.hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*host).try_into().map_err(failed)?),
            });
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![if subject.hosts.is_empty() {
            ExtendedKeyUsagePurpose::ClientAuth
        } else {
            ExtendedKeyUsagePurpose::ServerAuth
        }];
        (params.not_before, params.not_after) = validity(subject.starts, subject.ends);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Issued {
            certificates: certificate.pem(),
            key: key.serialize_pem(),
            authority: self.certificate.pem(),
        })
    }
}

impl Issued {
    /// Ready for use.
    ///
    /// # Errors
    /// [`DevError::Load`] when the certificate maker made nonsense.
    pub fn identity(&self) -> Result<Identity, DevError> {
        Ok(Identity::from_pem(
            self.certificates.as_bytes(),
            self.key.as_bytes(),
            self.authority.as_bytes(),
        )?)
    }

    /// Writes `certificate.pem`, `key.pem` (mode 0600) and `authority.pem` into
    /// `folder`, which is made when it is not there.
    ///
    /// # Errors
    /// [`DevError::Write`], also when a file of that name exists.
    pub fn save(&self, folder: &Path) -> Result<IdentityFiles, DevError> {
        let failed = |path: &Path, source| DevError::Write {
            path: path.display().to_string(),
            source,
        };
        fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        let write = |name: &str, text: &str, mode: u32| {
            let path = folder.join(name);
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&path)
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .map_err(|error| failed(&path, error))?;
            Ok::<_, DevError>(path)
        };
        Ok(IdentityFiles {
            certificates: write("certificate.pem", &self.certificates, 0o644)?,
            key: write("key.pem", &self.key, 0o600)?,
            authority: write("authority.pem", &self.authority, 0o644)?,
        })
    }
}

const HOUR: time::Duration = time::Duration::HOUR;

fn validity(starts: time::Duration, ends: time::Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now + starts, now + ends)
}
