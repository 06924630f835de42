//! From a project to startup kits.
//!
//! What must be the same the next time, the authority and who has which key, is
//! kept in a state folder; a kit is written beside its place and renamed, so
//! there is a whole one or none.

mod issue;
mod owners;
mod state;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use firesteel_base::{Hint, Moment, limits};
use firesteel_policy::Role;

use crate::certificate::{Authority, ChainError};
use crate::config::{self, Connect, KitConfig, Listen, Security};
use crate::files;
use crate::kit::{AUTHORITY, CERTIFICATE, CONFIG, KEY};
use crate::manifest::{self, Manifest};
use crate::own::Own;
use crate::project::{ConnectTo, Part, Participant, Project};
use crate::sign::{Purpose, SignError, Signer};
use state::State;

/// The authority of a proxy that ends the outer TLS, in a kit.
const OUTER_AUTHORITY: &str = "outer-authority.pem";

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioned {
    /// The folder of the kits.
    pub folder: PathBuf,
    /// The kits, in the project's order.
    pub kits: Vec<Made>,
    /// SHA-256 of the authority's certificate, for people to compare.
    pub authority_sha256: String,
}

/// One kit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Whose it is.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Where it lies.
    pub folder: PathBuf,
    /// How it came about.
    pub how: How,
}

/// How a kit came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// With a new certificate.
    New,
    /// With the certificate that its holder has already.
    Known,
    /// It lay there, as it would be made.
    Kept,
}

/// Why no kits were made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProvisionError {
    /// A file could not be read.
    #[error("could not read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error("could not write `{}`", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A project without a server: not one that was parsed.
    #[error("the project `{project}` has no server")]
    NoServer {
        /// The project.
        project: String,
    },
    /// A relay that is not there: not of a project that was parsed.
    #[error("`{name}` connects to the relay `{relay}`, which is none")]
    NoRelay {
        /// Who.
        name: String,
        /// To whom.
        relay: String,
    },
    /// A certificate cannot be made.
    #[error("could not make a certificate for `{name}`")]
    Issue {
        /// For whom.
        name: String,
        /// What the maker said.
        #[source]
        source: rcgen::Error,
    },
    /// What the state folder holds cannot be used.
    #[error("`{}` cannot be used: {problem}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The authority's time is over.
    #[error("the authority in `{}` is not valid any more", path.display())]
    Authority {
        /// The state folder.
        path: PathBuf,
    },
    /// The file that `custom_ca_cert` names.
    #[error("`custom_ca_cert` of `{name}`, `{}`, cannot be used", path.display())]
    CustomAuthority {
        /// Whose.
        name: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ChainError,
    },
    /// Somebody else provisions with the same state.
    #[error("another `firesteel provision` works with `{}`", path.display())]
    Busy {
        /// The state folder.
        path: PathBuf,
    },
    /// Another kit is there.
    #[error("`{}` holds another kit than would be made for `{name}`", path.display())]
    Exists {
        /// For whom.
        name: String,
        /// The kit.
        path: PathBuf,
    },
    /// The manifest could not be signed.
    #[error("the kit of `{name}` could not be signed")]
    Sign {
        /// For whom.
        name: String,
        /// Why not.
        #[source]
        source: SignError,
    },
}

impl Hint for ProvisionError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Exists { .. } => {
                "kits that are there are never overwritten: remove it, or make the kits elsewhere"
                    .to_owned()
            }
            Self::Busy { .. } => "wait until it is done".to_owned(),
            Self::Authority { path } => format!(
                "move `{}` away: a new authority is made then, and everybody needs a new kit",
                path.display()
            ),
            Self::State { .. } => {
                "restore it from a backup; without it everybody needs a new kit".to_owned()
            }
            Self::CustomAuthority { .. } => {
                "name the PEM file of the certificate that issued the proxy's".to_owned()
            }
            Self::Sign { source, .. } => return source.hint(),
            _ => return None,
        })
    }
}

/// Where the kits of the next run go: `<workspace>/<project>/prod_NN`.
///
/// # Errors
/// [`ProvisionError::Read`] when the folder cannot be listed.
pub fn next_folder(workspace: &Path, project: &Project) -> Result<PathBuf, ProvisionError> {
    let folder = workspace.join(&project.name);
    let failed = |source| ProvisionError::Read {
        path: folder.clone(),
        source,
    };
    let mut next = 0;
    match fs::read_dir(&folder) {
        Ok(entries) => {
            for entry in entries {
                let name = entry.map_err(failed)?.file_name();
                let number = name.to_str().and_then(|name| name.strip_prefix("prod_"));
                if let Some(number) = number.and_then(|number| number.parse::<u32>().ok()) {
                    next = next.max(number.saturating_add(1));
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    Ok(folder.join(format!("prod_{next:02}")))
}

/// Where the state of a project is kept: `<workspace>/<project>/state`.
pub fn state_folder(workspace: &Path, project: &Project) -> PathBuf {
    workspace.join(&project.name).join("state")
}

/// Makes a kit for each participant, in folders of `out` by their names.
///
/// Who has a certificate in the state keeps it, unless it says something else
/// than the project now, or two thirds of its time are over. Kits that lie in
/// `out` already are kept when they are as they would be made.
///
/// # Errors
/// [`ProvisionError`]; then nothing new lies in `out`, or whole kits only.
pub fn provision(
    project: &Project,
    out: &Path,
    state: &Path,
) -> Result<Provisioned, ProvisionError> {
    let now = SystemTime::now();
    let state = State::open(state, project, now)?;
    let signer = state.signer()?;
    let mut drafts = Vec::new();
    for participant in &project.participants {
        drafts.push(Draft::make(project, participant, &state, &signer, now)?);
    }
    let mut kits: Vec<Made> = drafts
        .iter()
        .map(|draft| Made {
            name: draft.name.clone(),
            role: draft.role,
            folder: out.join(&draft.name),
            how: if draft.fresh { How::New } else { How::Known },
        })
        .collect();

    let failed = |path: &Path, source| ProvisionError::Write {
        path: path.to_owned(),
        source,
    };
    let tag = files::random(6).map_err(|error| failed(out, error))?;
    if out.symlink_metadata().is_ok() {
        // All are looked at before the first is written.
        for (draft, made) in drafts.iter().zip(&mut kits) {
            if made.folder.symlink_metadata().is_ok() {
                if !draft.is_at(&made.folder) {
                    return Err(ProvisionError::Exists {
                        name: draft.name.clone(),
                        path: made.folder.clone(),
                    });
                }
                made.how = How::Kept;
            }
        }
        for (draft, made) in drafts.iter().zip(&kits) {
            if made.how != How::Kept {
                let part = Unfinished::make(out.join(format!(".{}.part-{tag}", draft.name)))?;
                draft.write(&part.folder)?;
                part.settle(&made.folder)?;
            }
        }
    } else {
        let above = match out.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        fs::create_dir_all(above).map_err(|error| failed(above, error))?;
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let part = Unfinished::make(above.join(format!(".{name}.part-{tag}")))?;
        for draft in &drafts {
            let folder = part.folder.join(&draft.name);
            directory(&folder).map_err(|error| failed(&folder, error))?;
            draft.write(&folder)?;
        }
        part.settle(out)?;
    }
    Ok(Provisioned {
        folder: out.to_owned(),
        kits,
        authority_sha256: state.fingerprint(),
    })
}

/// A kit before it is written.
struct Draft {
    name: String,
    role: Role,
    fresh: bool,
    key: String,
    /// What the manifest lists.
    signed: BTreeMap<&'static str, Vec<u8>>,
    manifest: Vec<u8>,
    signature: Vec<u8>,
    own: String,
}

impl Draft {
    fn make(
        project: &Project,
        participant: &Participant,
        state: &State,
        signer: &Signer,
        now: SystemTime,
    ) -> Result<Self, ProvisionError> {
        let name = participant.name.clone();
        let issued = state.identity(project, participant, now)?;
        let config = kit_config(project, participant)?;
        let mut signed = BTreeMap::new();
        signed.insert(CERTIFICATE, issued.certificate.into_bytes());
        signed.insert(AUTHORITY, state.authority_pem().to_vec());
        if config.connect.iter().any(|way| way.authority.is_some()) {
            let pem = outer_authority(project, participant)?;
            signed.insert(OUTER_AUTHORITY, pem);
        }
        let text = toml::to_string(&config).map_err(|error| ProvisionError::State {
            path: CONFIG.into(),
            problem: error.to_string(),
        })?;
        let text = format!(
            "# Made by `firesteel provision`, and signed: a change is noticed, and the kit refused.\n\
             # What is yours to set stands in {}.\n\n{text}",
            Own::file(participant.role())
        );
        signed.insert(CONFIG, text.into_bytes());
        let manifest = Manifest {
            version: manifest::VERSION,
            project: project.name.clone(),
            name: config.name.clone(),
            made: Moment::of(now).rfc3339(),
            files: signed
                .iter()
                .map(|(name, bytes)| ((*name).to_owned(), files::sha256(bytes)))
                .collect(),
        };
        let manifest =
            serde_json::to_vec_pretty(&manifest).map_err(|error| ProvisionError::State {
                path: manifest::LIST.into(),
                problem: error.to_string(),
            })?;
        let signature = signer
            .sign(Purpose::Manifest, &manifest)
            .map_err(|source| ProvisionError::Sign {
                name: name.clone(),
                source,
            })?;
        Ok(Self {
            role: participant.role(),
            fresh: issued.fresh,
            key: issued.key,
            signed,
            manifest,
            signature,
            own: owners::sample(participant),
            name,
        })
    }

    /// Whether a kit lies there that says the same.
    fn is_at(&self, folder: &Path) -> bool {
        let same = |name: &str, bytes: &[u8]| {
            files::read(&folder.join(name), limits::KIT_FILE).is_ok_and(|there| there == bytes)
        };
        self.signed.iter().all(|(name, bytes)| same(name, bytes)) && same(KEY, self.key.as_bytes())
    }

    fn write(&self, folder: &Path) -> Result<(), ProvisionError> {
        let write = |name: &str, bytes: &[u8], mode: u32| {
            let path = folder.join(name);
            create(&path, bytes, mode).map_err(|source| ProvisionError::Write { path, source })
        };
        for (name, bytes) in &self.signed {
            write(name, bytes, 0o644)?;
        }
        write(KEY, self.key.as_bytes(), 0o600)?;
        write(manifest::LIST, &self.manifest, 0o644)?;
        write(manifest::SIGNATURE, &self.signature, 0o644)?;
        // It may come to hold a proxy's password.
        write(Own::file(self.role), self.own.as_bytes(), 0o600)
    }
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?
        .write_all(bytes)
}

fn directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

fn outer_authority(
    project: &Project,
    participant: &Participant,
) -> Result<Vec<u8>, ProvisionError> {
    let beside = project.file.parent().unwrap_or(Path::new("."));
    let path = beside.join(participant.custom_ca.as_deref().unwrap_or(Path::new("")));
    let pem = files::read(&path, limits::PEM_FILE).map_err(|source| ProvisionError::Read {
        path: path.clone(),
        source,
    })?;
    Authority::from_pem(&pem).map_err(|source| ProvisionError::CustomAuthority {
        name: participant.name.clone(),
        path,
        source,
    })?;
    Ok(pem)
}

/// What a participant's kit says.
fn kit_config(project: &Project, participant: &Participant) -> Result<KitConfig, ProvisionError> {
    let (server, _) = project.server().ok_or_else(|| ProvisionError::NoServer {
        project: project.name.clone(),
    })?;
    let way = |to: Option<&ConnectTo>, admin: bool| way(project, participant, to, admin);
    let (connect, listen) = match &participant.part {
        Part::Server(part) => (
            Vec::new(),
            Some(Listen {
                address: None,
                port: part.port,
                host_names: issue::hosts(participant),
                admin_port: part.admin_port.filter(|port| *port != part.port),
                proxy_protocol_from: Vec::new(),
                security: participant.security,
            }),
        ),
        Part::Site(part) => (
            vec![way(part.connect_to.as_ref(), false)?],
            part.listening
                .as_ref()
                .map(|listening| listen(participant, listening)),
        ),
        Part::Relay(part) => (
            vec![way(part.connect_to.as_ref(), false)?],
            Some(listen(participant, &part.listening)),
        ),
        Part::Admin(part) => (vec![way(part.connect_to.as_ref(), true)?], None),
    };
    Ok(KitConfig {
        version: config::VERSION,
        project: project.name.clone(),
        name: participant.identity().to_owned(),
        role: participant.role(),
        org: participant.org.clone(),
        server: server.identity().to_owned(),
        connect,
        listen,
    })
}

fn listen(participant: &Participant, listening: &crate::project::ListeningHost) -> Listen {
    Listen {
        address: None,
        port: listening.port,
        host_names: issue::hosts(participant),
        admin_port: None,
        proxy_protocol_from: Vec::new(),
        security: listening.security.unwrap_or_default(),
    }
}

/// A participant's way up.
fn way(
    project: &Project,
    participant: &Participant,
    to: Option<&ConnectTo>,
    admin: bool,
) -> Result<Connect, ProvisionError> {
    let nothing = ConnectTo::default();
    let to = to.unwrap_or(&nothing);
    let (host, port, scheme, name, security) = match &to.relay {
        Some(name) => {
            let (relay, part) = project.relay(name).ok_or_else(|| ProvisionError::NoRelay {
                name: participant.name.clone(),
                relay: name.clone(),
            })?;
            let at = &part.listening;
            (
                at.default_host.as_str(),
                at.port,
                at.scheme,
                relay.identity(),
                at.security,
            )
        }
        None => {
            let (server, part) = project.server().ok_or_else(|| ProvisionError::NoServer {
                project: project.name.clone(),
            })?;
            let port = part.admin_port.filter(|_| admin).unwrap_or(part.port);
            let host = part.default_host.as_deref().unwrap_or(&server.name);
            (host, port, None, server.identity(), None)
        }
    };
    let security = match (to.security, participant.security) {
        (Some(security), _) => security,
        (None, Security::Mtls) => security.unwrap_or_default(),
        (None, own) => own,
    };
    Ok(Connect {
        scheme: to.scheme.or(scheme).unwrap_or(project.scheme),
        host: to.host.as_deref().unwrap_or(host).to_owned(),
        port: to.port.unwrap_or(port),
        server_name: to.auth_identity.as_deref().unwrap_or(name).to_owned(),
        security,
        authority: (security == Security::Tls && participant.custom_ca.is_some())
            .then(|| OUTER_AUTHORITY.into()),
        proxy: None,
        through_relay: to.relay.clone(),
    })
}

/// A folder that is to appear whole; removed unless it does.
struct Unfinished {
    folder: PathBuf,
    done: bool,
}

impl Unfinished {
    fn make(folder: PathBuf) -> Result<Self, ProvisionError> {
        match directory(&folder) {
            Ok(()) => Ok(Self {
                folder,
                done: false,
            }),
            Err(source) => Err(ProvisionError::Write {
                path: folder,
                source,
            }),
        }
    }

    fn settle(mut self, to: &Path) -> Result<(), ProvisionError> {
        files::rename_new(&self.folder, to).map_err(|source| ProvisionError::Write {
            path: to.to_owned(),
            source,
        })?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done {
            // It holds keys. What cannot be removed has mode 0700 and a name that
            // says what it is.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
