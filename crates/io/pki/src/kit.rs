//! A startup kit, opened and checked.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use firesteel_base::{Hint, limits};
use firesteel_net::{Identity, IdentityError, IdentityFiles};
use firesteel_policy::Role;

use crate::certificate::{Authority, ChainError, Holder};
use crate::config::{self, Connect, KitConfig};
use crate::files;
use crate::manifest::{self, Manifest};
use crate::own::{AdminConfig, Own, RelayConfig, ServerConfig, SiteConfig};
use crate::sign::{Purpose, VerifyError, verify_by};

/// The names of a kit's files.
pub(crate) const CONFIG: &str = "kit.toml";
pub(crate) const KEY: &str = "key.pem";
pub(crate) const CERTIFICATE: &str = "certificate.pem";
pub(crate) const AUTHORITY: &str = "authority.pem";

/// What a node runs with: who it is, whom it believes, where it connects to.
#[derive(Debug, Clone)]
pub struct Kit {
    folder: PathBuf,
    config: KitConfig,
    own: Own,
    authority: Authority,
    holder: Holder,
    identity: Identity,
    files: IdentityFiles,
}

/// Why a kit is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KitError {
    /// A file could not be read.
    #[error("could not read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file says what it cannot say.
    #[error("`{}`: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where, and what is wrong.
        problem: String,
    },
    /// Not signed by the project's authority.
    #[error("the list of files of the kit `{}` was not signed by its authority", folder.display())]
    Unsigned {
        /// The kit.
        folder: PathBuf,
        /// Why not.
        #[source]
        source: VerifyError,
    },
    /// A file is not as it was signed.
    #[error("`{}` was changed after the kit was made", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file that must be signed is not on the list.
    #[error("the list of files of the kit `{}` lacks `{file}`", folder.display())]
    Unlisted {
        /// The kit.
        folder: PathBuf,
        /// The file.
        file: String,
    },
    /// The certificate is not good.
    #[error("the certificate in `{}` is not taken", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ChainError,
    },
    /// The certificate and the configuration say different things.
    #[error("`{}` says the {what} `{configured}`, and the certificate says `{certified}`", path.display())]
    Mismatch {
        /// The kit's configuration.
        path: PathBuf,
        /// Name, role, organization or project.
        what: &'static str,
        /// What the configuration says.
        configured: String,
        /// What the certificate says.
        certified: String,
    },
    /// Key or certificate cannot be used for connections.
    #[error("the identity of the kit cannot be used")]
    Identity(#[from] IdentityError),
    /// A kit of another role than is needed.
    #[error("the kit of `{name}` is one of a {role}; {needed} is needed here")]
    WrongRole {
        /// Whose kit it is.
        name: String,
        /// What it is for.
        role: Role,
        /// What is needed: `a server's`.
        needed: &'static str,
    },
}

impl Hint for KitError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(
                "name the folder of a kit, as `firesteel provision` made it: it holds kit.toml"
                    .to_owned(),
            ),
            Self::Changed { path } => {
                let own = "what is yours to set stands in the .toml beside kit.toml \
                           (site.toml, server.toml, relay.toml, admin.toml)";
                Some(if path.ends_with(CONFIG) {
                    format!("copy the kit anew; {own}")
                } else {
                    "copy the kit anew from who made it".to_owned()
                })
            }
            Self::Unsigned { .. } | Self::Unlisted { .. } | Self::Mismatch { .. } => {
                Some("copy the whole kit anew from who made it".to_owned())
            }
            Self::Certificate { source, .. } => source.hint(),
            Self::Identity(error) => error.hint(),
            Self::WrongRole { needed, .. } => Some(format!("name the folder of {needed} kit")),
            _ => None,
        }
    }
}

impl Kit {
    /// Opens a kit: every signed file is as it was signed, the certificate is the
    /// authority's and valid now, the key is its own and nobody else can read it.
    ///
    /// # Errors
    /// [`KitError`], which names the file.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, KitError> {
        Self::open_at(folder.as_ref(), SystemTime::now())
    }

    pub(crate) fn open_at(folder: &Path, now: SystemTime) -> Result<Self, KitError> {
        // Paths of the owner's are the kit's wherever the process runs.
        let folder = &std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let path = |name: &str| folder.join(name);
        let read = |name: &str| {
            files::read(&path(name), limits::KIT_FILE).map_err(|source| KitError::Read {
                path: path(name),
                source,
            })
        };
        // The one that a folder without a kit lacks as well is looked for first.
        let configured = read(CONFIG)?;
        let authority = read(AUTHORITY)?;
        let authority =
            Authority::from_pem(&authority).map_err(|source| KitError::Certificate {
                path: path(AUTHORITY),
                source,
            })?;
        let list = read(manifest::LIST)?;
        let signature = read(manifest::SIGNATURE)?;
        signed(&authority, &list, &signature).map_err(|source| KitError::Unsigned {
            folder: folder.clone(),
            source,
        })?;
        let malformed = |name: &str, problem: String| KitError::Malformed {
            path: path(name),
            problem,
        };
        let list: Manifest = serde_json::from_slice(&list)
            .map_err(|error| malformed(manifest::LIST, error.to_string()))?;
        version(list.version, manifest::VERSION).map_err(|why| malformed(manifest::LIST, why))?;
        for needed in [CONFIG, CERTIFICATE, AUTHORITY] {
            if !list.files.contains_key(needed) {
                return Err(KitError::Unlisted {
                    folder: folder.clone(),
                    file: needed.to_owned(),
                });
            }
        }
        let mut chain = Vec::new();
        for (name, digest) in &list.files {
            if !is_plain(name) {
                let problem = format!("{name:?} is no plain file name");
                return Err(malformed(manifest::LIST, problem));
            }
            // What is used below is what is checked here, also when somebody
            // writes to the folder meanwhile.
            let bytes = match name.as_str() {
                CONFIG => configured.clone(),
                AUTHORITY => authority.pem().to_vec(),
                other => read(other)?,
            };
            if files::sha256(&bytes) != *digest {
                return Err(KitError::Changed { path: path(name) });
            }
            if name == CERTIFICATE {
                chain = bytes;
            }
        }

        let config = std::str::from_utf8(&configured).map_err(|error| error.to_string());
        let config: KitConfig = config
            .and_then(|text| toml::from_str(text).map_err(|error| error.to_string()))
            .map_err(|problem| malformed(CONFIG, problem))?;
        version(config.version, config::VERSION).map_err(|why| malformed(CONFIG, why))?;
        for connect in &config.connect {
            // What is not on the list could be anybody's.
            let listed = |file: &PathBuf| {
                file.to_str()
                    .is_some_and(|name| list.files.contains_key(name))
            };
            if let Some(file) = connect.authority.as_ref().filter(|file| !listed(file)) {
                return Err(KitError::Unlisted {
                    folder: folder.clone(),
                    file: file.display().to_string(),
                });
            }
        }

        let (holder, leaf) =
            authority
                .checked(&chain, now)
                .map_err(|source| KitError::Certificate {
                    path: path(CERTIFICATE),
                    source,
                })?;
        for (what, configured, certified) in [
            ("name", config.name.as_str(), holder.name.as_str()),
            ("role", config.role.as_str(), holder.role.as_str()),
            ("organization", &config.org, &holder.org),
            ("name", &list.name, &holder.name),
            ("project", &config.project, &list.project),
        ] {
            if configured != certified {
                return Err(KitError::Mismatch {
                    path: path(CONFIG),
                    what,
                    configured: configured.to_owned(),
                    certified: certified.to_owned(),
                });
            }
        }
        let files = IdentityFiles {
            certificates: path(CERTIFICATE),
            key: path(KEY),
            authority: path(AUTHORITY),
        };
        let identity = Identity::from_files(&files)?;
        if identity.own().certificate != leaf {
            return Err(KitError::Changed {
                path: path(CERTIFICATE),
            });
        }
        let own = own(folder, config.role)?;
        Ok(Self {
            folder: folder.clone(),
            config,
            own,
            authority,
            holder,
            identity,
            files,
        })
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the node is.
    pub fn role(&self) -> Role {
        self.config.role
    }

    /// Its name in the federation.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Whose it is.
    pub fn org(&self) -> &str {
        &self.config.org
    }

    /// The federation.
    pub fn project(&self) -> &str {
        &self.config.project
    }

    /// Certificate, key and authority, for connections.
    pub fn identity_files(&self) -> IdentityFiles {
        self.files.clone()
    }

    /// The same, loaded.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whom the node believes.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What its certificate says.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Until when its certificate is valid.
    pub fn expires(&self) -> SystemTime {
        self.holder.expires
    }

    /// What the project says about it.
    pub fn config(&self) -> &KitConfig {
        &self.config
    }

    /// What its owner says.
    pub fn own(&self) -> &Own {
        &self.own
    }

    /// The ways up, the owner's network settings over the project's. Files in
    /// them are absolute.
    pub fn connect(&self) -> Vec<Connect> {
        let mut ways = self.config.connect.clone();
        for way in &mut ways {
            if let Some(authority) = &mut way.authority {
                *authority = self.folder.join(&*authority);
            }
            let Some(own) = self.own.network() else {
                continue;
            };
            way.proxy = own.proxy.clone().or_else(|| way.proxy.take());
            way.scheme = own.scheme.unwrap_or(way.scheme);
            way.port = own.port.unwrap_or(way.port);
            if let Some(host) = &own.host {
                way.host.clone_from(host);
            }
        }
        ways
    }

    /// Where it is connected to, the owner's settings over the project's.
    pub fn listen(&self) -> Option<config::Listen> {
        let mut listen = self.config.listen.clone()?;
        let (address, port, admin_port, trusted) = match &self.own {
            Own::Server(own) => (
                own.address,
                own.port,
                own.admin_port,
                &own.proxy_protocol_from,
            ),
            Own::Relay(own) => (own.address, own.port, None, &own.proxy_protocol_from),
            Own::Site(_) | Own::Admin(_) => return Some(listen),
        };
        listen.address = address.or(listen.address);
        listen.port = port.unwrap_or(listen.port);
        listen.admin_port = admin_port.or(listen.admin_port);
        listen.proxy_protocol_from.extend(trusted.iter().cloned());
        Some(listen)
    }

    /// What the owner of a site says.
    ///
    /// # Errors
    /// [`KitError::WrongRole`].
    pub fn site(&self) -> Result<&SiteConfig, KitError> {
        match &self.own {
            Own::Site(own) => Ok(own),
            _ => Err(self.other_than("a site's")),
        }
    }

    /// What the owner of the server says.
    ///
    /// # Errors
    /// [`KitError::WrongRole`].
    pub fn server(&self) -> Result<&ServerConfig, KitError> {
        match &self.own {
            Own::Server(own) => Ok(own),
            _ => Err(self.other_than("a server's")),
        }
    }

    /// What the owner of a relay says.
    ///
    /// # Errors
    /// [`KitError::WrongRole`].
    pub fn relay(&self) -> Result<&RelayConfig, KitError> {
        match &self.own {
            Own::Relay(own) => Ok(own),
            _ => Err(self.other_than("a relay's")),
        }
    }

    /// What an admin says.
    ///
    /// # Errors
    /// [`KitError::WrongRole`].
    pub fn admin(&self) -> Result<&AdminConfig, KitError> {
        match &self.own {
            Own::Admin(own) => Ok(own),
            _ => Err(self.other_than("an admin's")),
        }
    }

    fn other_than(&self, needed: &'static str) -> KitError {
        KitError::WrongRole {
            name: self.config.name.clone(),
            role: self.config.role,
            needed,
        }
    }
}

/// Whether one of the authority's certificates signed the list.
fn signed(authority: &Authority, list: &[u8], signature: &[u8]) -> Result<(), VerifyError> {
    let mut last = None;
    for certificate in authority.certificates.iter() {
        match verify_by(certificate, "authority", Purpose::Manifest, list, signature) {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(VerifyError::Signature {
        name: "authority".to_owned(),
    }))
}

fn version(found: u32, known: u32) -> Result<(), String> {
    if found == known {
        return Ok(());
    }
    Err(format!(
        "it is of version {found}, and this Firesteel reads version {known}"
    ))
}

/// A name that is one component of a path, and no other thing.
pub(crate) fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let one = matches!(components.next(), Some(Component::Normal(part)) if part == name);
    one && components.next().is_none() && !name.chars().any(char::is_control)
}

fn own(folder: &Path, role: Role) -> Result<Own, KitError> {
    let path = folder.join(Own::file(role));
    let text = match files::read(&path, limits::KIT_FILE) {
        Ok(bytes) => bytes,
        // Without one everything is as it is by default.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(KitError::Read { path, source }),
    };
    let text = String::from_utf8(text).map_err(|error| error.to_string());
    text.and_then(|text| Own::parse(role, &text, folder))
        .map_err(|problem| KitError::Malformed { path, problem })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::project::{Project, SAMPLE};
    use crate::provision::provision;

    #[test]
    fn a_kit_opens_while_its_certificate_is_valid() {
        let root = tempfile::tempdir().unwrap();
        let project = Project::parse(SAMPLE, Path::new("project.yml")).unwrap();
        let kits = root.path().join("kits");
        provision(&project, &kits, &root.path().join("state")).unwrap();
        let folder = kits.join("site-1");
        let kit = Kit::open(&folder).unwrap();
        let minute = Duration::from_secs(60);
        Kit::open_at(&folder, kit.expires() - minute).unwrap();
        let error = Kit::open_at(&folder, kit.expires() + minute).unwrap_err();
        let KitError::Certificate { path, source } = &error else {
            panic!("{error}")
        };
        assert!(path.ends_with(CERTIFICATE));
        assert!(matches!(source, ChainError::Expired { name, .. } if name == "site-1"));
        assert!(error.hint().unwrap().contains("provision again"));
        let error = Kit::open_at(&folder, kit.holder().starts - minute).unwrap_err();
        assert!(error.hint().unwrap().contains("clock"), "{error}");
    }

    #[test]
    fn only_one_plain_part_of_a_path_is_a_name() {
        for bad in ["", ".", "..", "a/b", "/a", "../a", "a/", "a\n"] {
            assert!(!is_plain(bad), "{bad:?}");
        }
        assert!(is_plain("kit.toml") && is_plain("..a"));
    }
}
