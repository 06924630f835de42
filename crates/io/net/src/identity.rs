//! Who we are and whom we believe: a certificate, its key, and an authority.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firesteel_base::{Hint, limits};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};

use crate::{outer, tls};

/// Where an identity's three files are, all of them PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// Our certificate, then those between it and the authority's.
    pub certificates: PathBuf,
    /// Its private key, readable by its owner only.
    pub key: PathBuf,
    /// The authority that both ends' certificates come from.
    pub authority: PathBuf,
}

/// Our certificate with its key, and the authority that a peer's must come from.
///
/// Cheap to clone. The key never leaves it.
#[derive(Clone)]
pub struct Identity {
    pub(crate) own: Arc<Peer>,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    /// The server's settings for those who are asked for no certificate.
    pub(crate) web: Arc<ServerConfig>,
    /// Our authority.
    pub(crate) roots: Arc<RootCertStore>,
    /// What errors call the authority: its file, or its name.
    pub(crate) authority: Arc<str>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("own", &self.own)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

/// The name in a certificate: its subject's common name, or without one its
/// first DNS name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerName(Arc<str>);

impl PeerName {
    /// The name as text. It is what the authority signed, and nothing is known
    /// about its characters but that none is a control character.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// What a verified certificate says about its holder.
#[derive(Clone, PartialEq, Eq)]
pub struct Peer {
    /// The subject's common name: for a site, its name in the federation.
    pub name: PeerName,
    /// The subject's organizational unit: `site`, `server`, `admin` …
    pub role: Option<String>,
    /// The subject's organization.
    pub organization: Option<String>,
    /// The certificate itself, DER.
    pub certificate: CertificateDer<'static>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("name", &self.name)
            .field("role", &self.role)
            .field("organization", &self.organization)
            .finish_non_exhaustive()
    }
}

/// Why an identity could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file could not be read.
    #[error("could not read the {what} `{}`", path.display())]
    Read {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others than its owner can read the key.
    #[error("the private key `{}` can be read by others (mode {mode:04o})", path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// More bytes than such a file can have.
    #[error("the {what} {from} is over {limit} bytes long")]
    TooLong {
        /// What it should hold.
        what: &'static str,
        /// The file, or where else it came from.
        from: String,
        /// [`limits::PEM_FILE`].
        limit: usize,
    },
    /// No certificate or key in what should hold one.
    #[error("{from} holds no {what} in PEM form")]
    Empty {
        /// What was looked for.
        what: &'static str,
        /// The file, or where else it came from.
        from: String,
    },
    /// What is there cannot be parsed.
    #[error("the {what} in {from} is damaged: {why}")]
    Malformed {
        /// What it should be.
        what: &'static str,
        /// The file, or where else it came from.
        from: String,
        /// What the parser said.
        why: String,
    },
    /// The key is not the certificate's.
    #[error("the private key does not belong to the certificate of `{name}`")]
    Mismatch {
        /// The name in the certificate.
        name: PeerName,
    },
    /// A subject that names nobody.
    #[error("the certificate {from} names nobody: it has no common name and no DNS name")]
    Nameless {
        /// The file, or where else it came from.
        from: String,
    },
}

impl Hint for IdentityError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("unpack the startup kit there, or name another file".to_owned())
            }
            Self::Exposed { path, .. } => Some(format!(
                "`chmod 600 {}`; if others may have read it, have a new one issued",
                path.display()
            )),
            Self::Empty { what, .. } => Some(format!(
                "the file must hold a section `-----BEGIN {}-----`",
                if *what == "private key" {
                    "PRIVATE KEY"
                } else {
                    "CERTIFICATE"
                }
            )),
            Self::Mismatch { .. } => {
                Some("take certificate and key from the same startup kit".to_owned())
            }
            _ => None,
        }
    }
}

impl Identity {
    /// Reads the three files.
    ///
    /// # Errors
    /// [`IdentityError`], which names the file.
    pub fn from_files(files: &IdentityFiles) -> Result<Self, IdentityError> {
        let certificates = read("certificate", &files.certificates)?;
        let key = read_key(&files.key)?;
        let authority = read("authority's certificate", &files.authority)?;
        let shown = |path: &Path| format!("`{}`", path.display());
        Self::build(&Pem {
            certificates: (&certificates, shown(&files.certificates)),
            key: (&key, shown(&files.key)),
            authority: (&authority, shown(&files.authority)),
        })
    }

    /// The same from memory.
    ///
    /// # Errors
    /// [`IdentityError`] when something is missing, damaged, or does not match.
    pub fn from_pem(
        certificates: &[u8],
        key: &[u8],
        authority: &[u8],
    ) -> Result<Self, IdentityError> {
        Self::build(&Pem {
            certificates: (certificates, "the given certificate".to_owned()),
            key: (key, "the given key".to_owned()),
            authority: (authority, "the given authority".to_owned()),
        })
    }

    /// What our own certificate says.
    pub fn own(&self) -> &Peer {
        &self.own
    }

    fn build(pem: &Pem<'_>) -> Result<Self, IdentityError> {
        let chain = certificates("certificate", &pem.certificates)?;
        let authorities = certificates("authority's certificate", &pem.authority)?;
        let key = PrivateKeyDer::from_pem_slice(pem.key.0).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => IdentityError::Empty {
                what: "private key",
                from: pem.key.1.clone(),
            },
            // The parser's own words could quote the file.
            _ => IdentityError::Malformed {
                what: "private key",
                from: pem.key.1.clone(),
                why: "it is no PEM section of a known kind".to_owned(),
            },
        })?;
        let own = chain
            .first()
            .and_then(|leaf| Peer::parse(leaf).ok())
            .ok_or_else(|| IdentityError::Nameless {
                from: pem.certificates.1.clone(),
            })?;
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots
                .add(authority)
                .map_err(|error| IdentityError::Malformed {
                    what: "authority's certificate",
                    from: pem.authority.1.clone(),
                    why: error.to_string(),
                })?;
        }
        let wrong = |error: rustls::Error| match error {
            rustls::Error::InconsistentKeys(_) => IdentityError::Mismatch {
                name: own.name.clone(),
            },
            error => IdentityError::Malformed {
                what: "certificate or private key",
                from: format!("{} and {}", pem.certificates.1, pem.key.1),
                why: error.to_string(),
            },
        };
        let roots = Arc::new(roots);
        let web = outer::server(chain.clone(), key.clone_key()).map_err(&wrong)?;
        let (client, server) = tls::configs(chain, key, Arc::clone(&roots)).map_err(&wrong)?;
        Ok(Self {
            own: Arc::new(own),
            client,
            server,
            web,
            roots,
            authority: pem.authority.1.as_str().into(),
        })
    }
}

/// The three parts, each with what errors call it.
struct Pem<'a> {
    certificates: (&'a [u8], String),
    key: (&'a [u8], String),
    authority: (&'a [u8], String),
}

/// A certificate that cannot be used to name anyone.
#[derive(Debug)]
pub(crate) struct Unnamed;

impl Peer {
    pub(crate) fn parse(certificate: &CertificateDer<'_>) -> Result<Self, Unnamed> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| Unnamed)?;
        let subject = parsed.subject();
        let dns = || {
            let names = parsed.subject_alternative_name().ok()??;
            names
                .value
                .general_names
                .iter()
                .find_map(|name| match name {
                    x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
                    _ => None,
                })
        };
        let name = first(subject.iter_common_name())
            .or_else(dns)
            .filter(|name| !name.is_empty() && name.len() <= limits::NAME_LENGTH * 4)
            .filter(|name| !name.chars().any(char::is_control))
            .ok_or(Unnamed)?;
        Ok(Self {
            name: PeerName(name.into()),
            role: first(X509Name::iter_organizational_unit(subject)),
            organization: first(subject.iter_organization()),
            certificate: certificate.clone().into_owned(),
        })
    }
}

fn first<'a>(
    mut values: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
) -> Option<String> {
    values.next()?.as_str().ok().map(str::to_owned)
}

fn certificates(
    what: &'static str,
    (pem, from): &(&[u8], String),
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| IdentityError::Malformed {
            what,
            from: from.clone(),
            why: error.to_string(),
        })?;
    if found.is_empty() {
        return Err(IdentityError::Empty {
            what,
            from: from.clone(),
        });
    }
    Ok(found)
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, IdentityError> {
    let file = File::open(path).map_err(|source| unread(what, path, source))?;
    contents(what, path, file)
}

fn read_key(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let what = "private key";
    let file = File::open(path).map_err(|source| unread(what, path, source))?;
    // The mode of what was opened, not of what the name means a moment later.
    let metadata = file
        .metadata()
        .map_err(|source| unread(what, path, source))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    contents(what, path, file)
}

fn contents(what: &'static str, path: &Path, file: File) -> Result<Vec<u8>, IdentityError> {
    let mut bytes = Vec::new();
    file.take(limits::PEM_FILE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| unread(what, path, source))?;
    if bytes.len() > limits::PEM_FILE {
        return Err(IdentityError::TooLong {
            what,
            from: format!("`{}`", path.display()),
            limit: limits::PEM_FILE,
        });
    }
    Ok(bytes)
}

fn unread(what: &'static str, path: &Path, source: io::Error) -> IdentityError {
    IdentityError::Read {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
#[cfg(feature = "dev")]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::dev::Authority;

    fn saved() -> (tempfile::TempDir, IdentityFiles) {
        let folder = tempfile::tempdir().unwrap();
        let site = Authority::new("test").unwrap().site("site-1").unwrap();
        let files = site.save(&folder.path().join("kit")).unwrap();
        (folder, files)
    }

    /// What a change of the files makes of loading them: text and hint.
    fn check(change: impl FnOnce(&IdentityFiles), words: &[&str]) {
        let (_folder, files) = saved();
        Identity::from_files(&files).unwrap();
        change(&files);
        let error = Identity::from_files(&files).unwrap_err();
        let text = format!("{error}; hint: {}", error.hint().unwrap_or_default());
        for word in words {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
        // Whatever is wrong, the key stays out of sight.
        let key = fs::read_to_string(&files.key).unwrap_or_default();
        for line in key
            .lines()
            .filter(|line| line.len() > 20 && !line.starts_with('-'))
        {
            assert!(!text.contains(line), "{text}");
        }
    }

    #[test]
    fn a_saved_identity_is_loaded_again() {
        let (_folder, files) = saved();
        let identity = Identity::from_files(&files).unwrap();
        assert_eq!(identity.own().name.as_str(), "site-1");
        assert!(!format!("{identity:?}").contains("PRIVATE"));
        let mode = fs::metadata(&files.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::set_permissions(&files.key, Permissions::from_mode(0o400)).unwrap();
        Identity::from_files(&files).unwrap();
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o660, 0o777] {
            check(
                |files| fs::set_permissions(&files.key, Permissions::from_mode(mode)).unwrap(),
                &[
                    "key.pem",
                    "read by others",
                    &format!("{mode:04o}"),
                    "chmod 600",
                ],
            );
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        check(
            |files| fs::remove_file(&files.authority).unwrap(),
            &["authority.pem", "startup kit"],
        );
    }

    #[test]
    fn files_without_what_they_should_hold_are_named() {
        let write = |path: &Path, bytes: &[u8]| fs::write(path, bytes).unwrap();
        check(
            |files| write(&files.certificates, b"hello"),
            &["certificate.pem", "no certificate", "BEGIN CERTIFICATE"],
        );
        check(
            |files| write(&files.key, b""),
            &["key.pem", "no private key", "BEGIN PRIVATE KEY"],
        );
        check(
            |files| {
                let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
                write(&files.authority, pem.as_bytes());
            },
            &["authority.pem", "damaged"],
        );
        check(
            |files| write(&files.certificates, &vec![b'x'; limits::PEM_FILE + 1]),
            &["certificate.pem", "bytes long"],
        );
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let other = Authority::new("test").unwrap().site("site-2").unwrap();
        check(
            |files| fs::write(&files.key, &other.key).unwrap(),
            &["does not belong", "`site-1`", "same startup kit"],
        );
    }
}
