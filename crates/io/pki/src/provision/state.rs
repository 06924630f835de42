//! What must be the same the next time: the authority, and who has which key.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use firesteel_base::limits;
use rcgen::{Issuer, KeyPair};
use rustix::fs::{FlockOperation, flock};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{ProvisionError, issue};
use crate::certificate::{Authority, Holder};
use crate::files;
use crate::project::{Participant, Project};
use crate::sign::Signer;

const ROOT_KEY: &str = "authority.key.pem";
const ROOT: &str = "authority.pem";
const LOCK: &str = "lock";
const IDENTITIES: &str = "identities";

/// The state folder of a project, while nobody else uses it.
pub(super) struct State {
    folder: PathBuf,
    key: String,
    pem: String,
    authority: Authority,
    issuer: Issuer<'static, KeyPair>,
    expires: SystemTime,
    /// Held as long as this value.
    _lock: File,
}

/// A key and the certificate that goes with it, PEM.
pub(super) struct Issued {
    pub key: String,
    pub certificate: String,
    /// Made just now.
    pub fresh: bool,
}

impl State {
    /// Opens the state; makes an authority where there is none.
    pub fn open(folder: &Path, project: &Project, now: SystemTime) -> Result<Self, ProvisionError> {
        let written = |path: &Path, source| ProvisionError::Write {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(folder).map_err(|error| written(folder, error))?;
        fs::set_permissions(folder, Permissions::from_mode(0o700))
            .map_err(|error| written(folder, error))?;
        let lock = folder.join(LOCK);
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(|error| written(&lock, error))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => ProvisionError::Busy {
                path: folder.to_owned(),
            },
            error => written(folder, error.into()),
        })?;

        let (key_path, path) = (folder.join(ROOT_KEY), folder.join(ROOT));
        let made = |source| ProvisionError::Issue {
            name: format!("{} authority", project.name),
            source,
        };
        let (key, pem) = match (kept(&key_path)?, kept(&path)?) {
            (Some(key), Some(pem)) => (key, pem),
            // The certificate is written last: a key alone was never used.
            (_, None) => {
                let key = KeyPair::generate().map_err(made)?;
                let pem = issue::root(project, &key, now).map_err(made)?;
                let key = key.serialize_pem();
                keep(&key_path, &key)?;
                keep(&path, &pem)?;
                (key, pem)
            }
            (None, Some(_)) => {
                return Err(ProvisionError::State {
                    path: key_path,
                    problem: "it is missing, and its certificate is there".to_owned(),
                });
            }
        };
        let unusable = |path: &Path, problem: String| ProvisionError::State {
            path: path.to_owned(),
            problem,
        };
        let authority = Authority::from_pem(pem.as_bytes())
            .map_err(|error| unusable(&path, error.to_string()))?;
        let expires = until(pem.as_bytes())
            .ok_or_else(|| unusable(&path, "it is no certificate".to_owned()))?;
        if expires <= now {
            return Err(ProvisionError::Authority {
                path: folder.to_owned(),
            });
        }
        let pair = KeyPair::from_pem(&key)
            // The maker's own words could quote the file.
            .map_err(|_| unusable(&key_path, "it is no private key in PEM form".to_owned()))?;
        let issuer = Issuer::new(issue::authority(project), pair);
        Ok(Self {
            folder: folder.to_owned(),
            key,
            pem,
            authority,
            issuer,
            expires,
            _lock: lock,
        })
    }

    pub fn authority_pem(&self) -> &[u8] {
        self.pem.as_bytes()
    }

    pub fn fingerprint(&self) -> String {
        self.authority
            .certificates
            .first()
            .map(|certificate| files::sha256(certificate))
            .unwrap_or_default()
    }

    /// Signs as the authority.
    pub fn signer(&self) -> Result<Signer, ProvisionError> {
        Signer::new(
            self.key.as_bytes(),
            self.pem.as_bytes(),
            &self.folder.join(ROOT_KEY).display().to_string(),
        )
        .map_err(|source| ProvisionError::Sign {
            name: "authority".to_owned(),
            source,
        })
    }

    /// A participant's key and certificate: those it has, if they still say what
    /// the project says and have a third of their time left.
    pub fn identity(
        &self,
        project: &Project,
        participant: &Participant,
        now: SystemTime,
    ) -> Result<Issued, ProvisionError> {
        let folder = self.folder.join(IDENTITIES);
        let key_path = folder.join(format!("{}.key.pem", participant.name));
        let path = folder.join(format!("{}.pem", participant.name));
        let (key, certificate) = (kept(&key_path)?, kept(&path)?);
        if let (Some(key), Some(certificate)) = (&key, &certificate)
            && self.still_says(certificate, participant, now)
        {
            return Ok(Issued {
                key: key.clone(),
                certificate: certificate.clone(),
                fresh: false,
            });
        }
        let made = |source| ProvisionError::Issue {
            name: participant.name.clone(),
            source,
        };
        let pair = match &key {
            Some(key) => KeyPair::from_pem(key).map_err(|_| ProvisionError::State {
                path: key_path.clone(),
                problem: "it is no private key in PEM form".to_owned(),
            })?,
            None => KeyPair::generate().map_err(made)?,
        };
        let span = (now, self.expires);
        let certificate =
            issue::leaf(project, participant, &pair, &self.issuer, span).map_err(made)?;
        fs::create_dir_all(&folder).map_err(|source| ProvisionError::Write {
            path: folder.clone(),
            source,
        })?;
        let key = match key {
            Some(key) => key,
            None => {
                let key = pair.serialize_pem();
                keep(&key_path, &key)?;
                key
            }
        };
        keep(&path, &certificate)?;
        Ok(Issued {
            key,
            certificate,
            fresh: true,
        })
    }

    fn still_says(&self, pem: &str, participant: &Participant, now: SystemTime) -> bool {
        let Ok((holder, leaf)) = self.authority.checked(pem.as_bytes(), now) else {
            return false;
        };
        let Holder {
            name,
            org,
            role,
            starts,
            expires,
        } = holder;
        let whole = expires.duration_since(starts).unwrap_or(Duration::ZERO);
        let left = expires.duration_since(now).unwrap_or(Duration::ZERO);
        let hosts: BTreeSet<String> = issue::hosts(participant).into_iter().collect();
        name == participant.identity()
            && org == participant.org
            && role == participant.role()
            && left * 3 >= whole
            && reached_by(&leaf) == hosts
    }
}

/// The names and addresses in a certificate.
fn reached_by(certificate: &CertificateDer<'_>) -> BTreeSet<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return BTreeSet::new();
    };
    let Ok(Some(names)) = parsed.subject_alternative_name() else {
        return BTreeSet::new();
    };
    let address = |bytes: &[u8]| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

/// Until when a certificate of PEM is valid.
fn until(pem: &[u8]) -> Option<SystemTime> {
    let certificate = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, parsed) = X509Certificate::from_der(&certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// A file of the state, if it is there.
fn kept(path: &Path) -> Result<Option<String>, ProvisionError> {
    let bytes = match files::read(path, limits::PEM_FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(ProvisionError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| ProvisionError::State {
            path: path.to_owned(),
            problem: "it is no text".to_owned(),
        })
}

/// Writes a file of the state, whole or not at all, for its owner only.
fn keep(path: &Path, text: &str) -> Result<(), ProvisionError> {
    let written = |source| ProvisionError::Write {
        path: path.to_owned(),
        source,
    };
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    // One that was left by somebody who was killed; the lock is ours.
    let _ = fs::remove_file(&part);
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(written)?;
    fs::rename(&part, path).map_err(written)
}
