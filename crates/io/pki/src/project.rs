//! Project files: who takes part in a federation.
//!
//! FLARE's `project.yml`, version 3. What it says is either done, or named with
//! the line where it stands; nothing is passed over in silence.

mod among;
mod builders;
mod names;
mod raw;
mod read;
mod sample;

use std::fmt;
use std::path::{Path, PathBuf};

use firesteel_base::{Hint, limits};
use firesteel_policy::{AdminRole, Role};

use crate::config::{Scheme, Security};
use among::Names;
use raw::{RawParticipant, RawProject};
use read::Reader;

pub use sample::SAMPLE;

/// The port of a server that names none.
const PORT: u16 = 8002;

/// Who takes part in a federation, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// What it is about.
    pub description: String,
    /// The file it was read from: what else it names lies beside it.
    pub file: PathBuf,
    /// Who takes part: one server, and the others in the file's order.
    pub participants: Vec<Participant>,
    /// What carries connections, where a participant says nothing else.
    pub scheme: Scheme,
    /// Days for which the authority is valid.
    pub root_days: u32,
    /// Days for which the participants' certificates are valid.
    pub days: u32,
    /// What the file says that has no effect here: sentences.
    pub warnings: Vec<String>,
}

/// One who takes part.
#[derive(Debug, Clone, PartialEq)]
pub struct Participant {
    /// Its name in the federation.
    pub name: String,
    /// Whose it is.
    pub org: String,
    /// What it is, and what only such a one says.
    pub part: Part,
    /// What its outer connection is.
    pub security: Security,
    /// The authority of the proxy that ends its outer TLS: a file, relative to the
    /// project's.
    pub custom_ca: Option<PathBuf>,
    /// The name in its certificate, where others must see another than `name`.
    pub auth_identity: Option<String>,
}

/// What a participant is.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// The server.
    Server(ServerPart),
    /// A site.
    Site(SitePart),
    /// A relay.
    Relay(RelayPart),
    /// A person.
    Admin(AdminPart),
}

/// What only a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPart {
    /// The port of everybody.
    pub port: u16,
    /// Another port for admins.
    pub admin_port: Option<u16>,
    /// The host that others connect to; absent: the server's name.
    pub default_host: Option<String>,
    /// Further names in its certificate.
    pub host_names: Vec<String>,
}

/// What only a site says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SitePart {
    /// Whom it connects to; absent: the server.
    pub connect_to: Option<ConnectTo>,
    /// Where its own devices or programs connect to it.
    pub listening: Option<ListeningHost>,
    /// GPUs it has.
    pub gpus: u32,
    /// Memory of each, GiB.
    pub mem_per_gpu_gib: Option<f64>,
    /// Whether it sends logs of running jobs.
    pub allow_log_streaming: bool,
}

/// What only a relay says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayPart {
    /// Whom it connects to; absent: the server.
    pub connect_to: Option<ConnectTo>,
    /// Where sites connect to it.
    pub listening: ListeningHost,
}

/// What only a person says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminPart {
    /// What they may do.
    pub role: AdminRole,
    /// Whom their tools connect to; absent: the server.
    pub connect_to: Option<ConnectTo>,
}

/// Whom to connect to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectTo {
    /// A relay; absent: the server.
    pub relay: Option<String>,
    /// Another host than it names itself.
    pub host: Option<String>,
    /// Another port than it names itself.
    pub port: Option<u16>,
    /// Another scheme than the project's.
    pub scheme: Option<Scheme>,
    /// What the outer connection is.
    pub security: Option<Security>,
    /// The name in the certificate of who answers.
    pub auth_identity: Option<String>,
}

/// Where a relay, or a site with devices, is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListeningHost {
    /// What carries connections.
    pub scheme: Option<Scheme>,
    /// The host that others connect to.
    pub default_host: String,
    /// Further names in its certificate.
    pub host_names: Vec<String>,
    /// The port.
    pub port: u16,
    /// What the outer connection is.
    pub security: Option<Security>,
}

/// Why a project file was refused: with line and field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ProjectError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1; 0 where it is the file as a whole.
    pub line: u64,
    /// The field: `participants[2].org`.
    pub field: String,
    /// What is wrong, and what was expected.
    pub problem: String,
    hint: Option<String>,
}

impl fmt::Display for ProjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        let mut text = self.file.display().to_string();
        if self.line > 0 {
            write!(text, ":{}", self.line)?;
        }
        if !self.field.is_empty() {
            write!(text, ": `{}`", self.field)?;
        }
        write!(text, ": {}", self.problem)?;
        // What it quotes of the file stays on one line, and of one length.
        text.chars()
            .take(600)
            .map(|c| if c.is_control() { ' ' } else { c })
            .try_for_each(|c| f.write_char(c))
    }
}

impl Hint for ProjectError {
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

impl Participant {
    /// What its certificate says that it is.
    pub fn role(&self) -> Role {
        match &self.part {
            Part::Server(_) => Role::Server,
            Part::Site(_) => Role::Site,
            Part::Relay(_) => Role::Relay,
            Part::Admin(admin) => Role::Admin(admin.role),
        }
    }

    /// The common name in its certificate.
    pub fn identity(&self) -> &str {
        self.auth_identity.as_deref().unwrap_or(&self.name)
    }

    fn connect_to(&self) -> Option<&ConnectTo> {
        match &self.part {
            Part::Server(_) => None,
            Part::Site(part) => part.connect_to.as_ref(),
            Part::Relay(part) => part.connect_to.as_ref(),
            Part::Admin(part) => part.connect_to.as_ref(),
        }
    }
}

impl Project {
    /// Reads a project file's text; `file` is where it lies.
    ///
    /// # Errors
    /// [`ProjectError`], with line and field.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ProjectError> {
        let raw: RawProject = raw::read(text, file)?;
        let reader = Reader { file };
        reader.version(&raw)?;
        let mut warnings = Vec::new();
        let settings = builders::read(&raw, &reader, &mut warnings)?;
        let name = reader.simple(&raw.name, "name")?;
        if raw.participants.len() > limits::PARTICIPANTS {
            return Err(reader.error(
                raw.name.referenced,
                "participants",
                format!("there are over {} of them", limits::PARTICIPANTS),
            ));
        }
        let mut project = Self {
            name,
            description: raw.description.unwrap_or_default(),
            file: file.to_owned(),
            participants: Vec::new(),
            scheme: settings.scheme,
            root_days: settings.root_days,
            days: settings.days,
            warnings,
        };
        let mut names = Names::default();
        for (at, raw) in raw.participants.iter().enumerate() {
            let field = format!("participants[{at}]");
            let participant = reader.participant(raw, &field, None, &mut project.warnings)?;
            names.add(&reader, &participant, raw, &field)?;
            project.participants.push(participant);
        }
        names.finish(&reader, &mut project)?;
        Ok(project)
    }

    /// Adds one participant from a file of its own.
    ///
    /// # Errors
    /// [`ProjectError`], with line and field of that file.
    pub fn add(&mut self, text: &str, file: &Path, what: Adding) -> Result<(), ProjectError> {
        let raw: RawParticipant = raw::read(text, file)?;
        let reader = Reader { file };
        let participant = reader.participant(&raw, "", Some(what), &mut self.warnings)?;
        let mut names = Names::default();
        for known in &self.participants {
            names.know(known);
        }
        names.add(&reader, &participant, &raw, "")?;
        self.participants.push(participant);
        names.finish(&reader, self)
    }

    /// The server.
    pub fn server(&self) -> Option<(&Participant, &ServerPart)> {
        self.participants
            .iter()
            .find_map(|participant| match &participant.part {
                Part::Server(part) => Some((participant, part)),
                _ => None,
            })
    }

    pub(crate) fn relay(&self, name: &str) -> Option<(&Participant, &RelayPart)> {
        self.participants
            .iter()
            .find_map(|participant| match &participant.part {
                Part::Relay(part) if participant.name == name => Some((participant, part)),
                _ => None,
            })
    }
}

/// What a file of one participant adds, if it does not say itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adding {
    /// A person.
    User,
    /// A site.
    Client,
}
