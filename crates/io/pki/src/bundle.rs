//! Bundles: a job's spec, its code and its first model, signed by who submits it.
//!
//! A tar of the plainest kind whose first member lists all others with their
//! digests, and whose second signs that list. The reader goes through it once and
//! takes nothing that the list does not announce: `docs/specs/bundle.md`.

mod archive;
mod unpack;
mod write;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use firesteel_base::{Hint, limits};
use serde::{Deserialize, Serialize};

use crate::sign::{Signed, VerifyError};

pub use unpack::{open, unpack};
pub use write::{Draft, WriteError, Written, for_sites, write};

/// The members that are there before all others.
pub(crate) const LIST: &str = "bundle.json";
pub(crate) const SIGNATURE: &str = "bundle.sig";
pub(crate) const SUBMITTER: &str = "submitter.pem";

/// The job's spec.
pub const SPEC: &str = "job.json";
/// Below it lies the code.
pub const CODE: &str = "code";
/// The first model, which stays at the server.
pub const INITIAL: &str = "models/initial.safetensors";

pub(crate) const VERSION: u32 = 1;

/// Bytes of a signature; the longest, of RSA with 8192 bits, has as many.
const SIGNATURE_BYTES: usize = 1024;

/// Who unpacks, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Members, at most.
    pub members: usize,
    /// Bytes of all code.
    pub code: u64,
    /// Bytes of the initial model.
    pub model: u64,
    /// The server takes all members, a site those that are not the server's alone.
    pub taker: Taker,
}

/// Who unpacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taker {
    /// The server.
    Server,
    /// A site.
    Site,
}

impl Limits {
    /// Those of a server.
    pub fn server() -> Self {
        Self {
            members: limits::BUNDLE_MEMBERS,
            code: limits::BUNDLE_CODE,
            model: limits::BUNDLE_MODEL,
            taker: Taker::Server,
        }
    }

    /// Those of a site.
    pub fn site() -> Self {
        Self {
            taker: Taker::Site,
            ..Self::server()
        }
    }
}

/// A bundle that was checked and lies in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Where it lies.
    pub folder: PathBuf,
    /// The project it was made for.
    pub project: String,
    /// What `job.json` holds; not yet parsed.
    pub spec: Vec<u8>,
    /// Who submits it.
    pub submitter: Signed,
    /// What tells the same job submitted twice.
    pub submit_key: String,
    /// The folder of the code; it may be empty.
    pub code: PathBuf,
    /// Whether there is any code in it: what a site's policy asks.
    pub brings_code: bool,
    /// The initial model, at the server and where the job has one.
    pub initial: Option<PathBuf>,
}

/// One member, as the list announces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    pub path: String,
    pub length: u64,
    pub sha256: String,
    /// It stays at the server.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub server_only: bool,
    /// It may be run by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

/// `bundle.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct List {
    pub version: u32,
    pub project: String,
    pub submit_key: String,
    pub members: Vec<Member>,
}

/// Why a bundle is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The stream failed.
    #[error("the bundle could not be read")]
    Stream(#[source] io::Error),
    /// The stream ended early.
    #[error("the bundle ends within {within}")]
    Short {
        /// What was being read.
        within: String,
    },
    /// The archive is not of the plain kind.
    #[error("the bundle is not as bundles are: {problem}")]
    Archive {
        /// What is wrong.
        problem: String,
    },
    /// The list says what it cannot say.
    #[error("the bundle's list, bundle.json, is refused: {problem}")]
    List {
        /// Which member, and what is wrong.
        problem: String,
    },
    /// The signature over the list is not good.
    #[error("the bundle's signature is refused")]
    Signature(#[source] VerifyError),
    /// A member that the list does not announce at this place.
    #[error("the bundle holds {found:?} where its list announces {expected}")]
    Unannounced {
        /// What is there, shortened.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A member that is no file.
    #[error("`{path}` in the bundle is {kind}, and only plain files are taken")]
    NotAFile {
        /// The member.
        path: String,
        /// A link, a device …
        kind: &'static str,
    },
    /// A member that was changed.
    #[error("`{path}` in the bundle is not what its submitter signed")]
    Changed {
        /// The member.
        path: String,
    },
    /// More than is taken.
    #[error("the bundle's {what} has {found} {unit}; the limit is {limit}")]
    TooLarge {
        /// The code, the initial model, a member.
        what: String,
        /// How many.
        found: u64,
        /// `bytes` or `members`.
        unit: &'static str,
        /// How many are taken.
        limit: u64,
    },
    /// A folder of that name is there.
    #[error("`{}` exists", folder.display())]
    Exists {
        /// The folder.
        folder: PathBuf,
    },
    /// The disk failed.
    #[error("could not write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Hint for BundleError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Signature(error) => error.hint(),
            Self::Short { .. } | Self::Changed { .. } | Self::Stream(_) => {
                Some("submit the job again; what had arrived was removed".to_owned())
            }
            Self::Archive { .. } | Self::Unannounced { .. } | Self::NotAFile { .. } => Some(
                "bundles are made by `firesteel job submit` and `ProdEnv`, not by tar".to_owned(),
            ),
            Self::TooLarge { what, .. } if what == "code" => Some(
                "leave data, models and environments out of the code folder: sites have their own"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// What is wrong with a path of a member, if anything.
pub(crate) fn wrong_path(path: &str) -> Option<String> {
    let shown: String = path.chars().take(80).collect();
    let wrong = |problem: &str| Some(format!("{shown:?} {problem}"));
    if path.len() > limits::BUNDLE_PATH {
        return wrong(&format!("has over {} bytes", limits::BUNDLE_PATH));
    }
    if path.chars().any(|c| c.is_control() || c == '\\') {
        return wrong("holds a control character or a backslash");
    }
    for part in path.split('/') {
        match part {
            "" => return wrong("is absolute or has an empty part"),
            "." | ".." => return wrong("leads out of the bundle"),
            _ => {}
        }
    }
    let known = path == SPEC
        || path == INITIAL
        || path
            .strip_prefix(CODE)
            .is_some_and(|rest| rest.starts_with('/'));
    if !known {
        return wrong("is neither job.json, nor models/initial.safetensors, nor below code/");
    }
    if archive::header(path, 0, false).is_err() {
        return wrong(
            "is too long for the archive: its last part may have 100 bytes, the rest 155",
        );
    }
    None
}

impl List {
    /// What is wrong with it, if anything.
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), BundleError> {
        let refused = |problem: String| Err(BundleError::List { problem });
        if self.version != VERSION {
            return refused(format!(
                "it is of version {}, and this Firesteel reads version {VERSION}",
                self.version
            ));
        }
        if self.submit_key.is_empty()
            || self.submit_key.len() > limits::SUBMIT_KEY
            || self.submit_key.chars().any(char::is_control)
        {
            return refused(format!(
                "`submit_key` must have 1 to {} bytes without control characters",
                limits::SUBMIT_KEY
            ));
        }
        let too_large = |what: &str, found: u64, unit, limit: u64| {
            Err(BundleError::TooLarge {
                what: what.to_owned(),
                found,
                unit,
                limit,
            })
        };
        if self.members.len() > limits.members {
            let (found, limit) = (self.members.len() as u64, limits.members as u64);
            return too_large("list", found, "members", limit);
        }
        let mut files = BTreeSet::new();
        let mut folders = BTreeSet::new();
        let mut code: u64 = 0;
        for member in &self.members {
            if let Some(problem) = wrong_path(&member.path) {
                return refused(problem);
            }
            let path = &member.path;
            if member.sha256.len() != 64 || !member.sha256.bytes().all(is_hex) {
                return refused(format!("`sha256` of {path:?} is no digest"));
            }
            // A disk that does not tell case apart would write one over the other.
            let folded = path.to_lowercase();
            for (at, _) in folded.match_indices('/') {
                folders.insert(folded.get(..at).unwrap_or_default().to_owned());
            }
            if !files.insert(folded) {
                return refused(format!("{path:?} is there twice"));
            }
            match path.as_str() {
                SPEC => {
                    if member.server_only {
                        return refused("`job.json` cannot be the server's alone".to_owned());
                    }
                    if member.length > limits::JOB_SPEC as u64 {
                        let limit = limits::JOB_SPEC as u64;
                        return too_large(SPEC, member.length, "bytes", limit);
                    }
                }
                INITIAL => {
                    if !member.server_only {
                        return refused(format!("`{INITIAL}` must be `server_only`"));
                    }
                    if member.length > limits.model {
                        return too_large("initial model", member.length, "bytes", limits.model);
                    }
                }
                _ => {
                    code = code.saturating_add(member.length);
                    if code > limits.code {
                        return too_large("code", code, "bytes", limits.code);
                    }
                }
            }
        }
        if let Some(path) = files.intersection(&folders).next() {
            return refused(format!("{path:?} is a file and a folder"));
        }
        if !files.contains(SPEC) {
            return refused("`job.json` is missing".to_owned());
        }
        Ok(())
    }
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}
