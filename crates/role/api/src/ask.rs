//! What is asked of a site or of the server while it runs: files without a shell,
//! log levels, reports.
//!
//! An answer is JSON of the type named beside each question; a refusal is a
//! [`Problem`](crate::Problem).

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// Who is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The server.
    Server,
    /// The site of this name.
    Site(String),
}

impl Target {
    /// `server` is the server; every other word is a site. No site bears that name.
    pub fn parse(word: &str) -> Self {
        match word {
            "server" => Self::Server,
            site => Self::Site(site.to_owned()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => f.pad("server"),
            Self::Site(site) => f.pad(site),
        }
    }
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "what", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ask {
    /// Files of a job's folder there, or of the node's own workspace.
    Files {
        /// The job; absent: the node's workspace.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
        /// What to do.
        #[serde(flatten)]
        op: FileOp,
    },
    /// Changes what is logged; answered by [`LogSettings`].
    LogLevel {
        /// The job; absent: the node itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
        /// A level (`debug`, `info`, `warning`, `error`, `critical`), a mode
        /// (`concise`, `msg_only`, `full`, `verbose`), or `reload`.
        level: String,
    },
    /// The settings of a file's text: what `LogLevel` does for a word.
    LogConfig {
        /// The job; absent: the node itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
        /// The text of a log configuration.
        config: String,
    },
    /// What the node has, does and runs on; answered by [`Report`].
    Report,
}

/// What to do with files. Paths are relative to the folder, `/` between names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "op", rename_all = "snake_case")]
#[non_exhaustive]
pub enum FileOp {
    /// What a folder holds; answered by [`Listing`].
    Ls {
        /// The folder; empty: the whole.
        #[serde(default)]
        path: String,
        /// With all that is below.
        #[serde(default)]
        recursive: bool,
    },
    /// A piece of a file; answered by [`Text`].
    Cat {
        /// The file.
        path: String,
        /// The first byte.
        #[serde(default)]
        offset: u64,
    },
    /// A file's first lines; answered by [`Text`].
    Head {
        /// The file.
        path: String,
        /// How many.
        #[serde(default = "ten")]
        lines: u32,
    },
    /// A file's last lines; answered by [`Text`].
    Tail {
        /// The file.
        path: String,
        /// How many.
        #[serde(default = "ten")]
        lines: u32,
    },
    /// Lines that hold a pattern; answered by [`Matches`].
    Grep {
        /// The file, or a folder for all that is below.
        path: String,
        /// A regular expression without look-around or back references, so that
        /// none takes long.
        pattern: String,
        /// Upper and lower case are the same.
        #[serde(default)]
        ignore_case: bool,
        /// The pattern stands for itself.
        #[serde(default)]
        fixed: bool,
        /// Lines that do not hold it.
        #[serde(default)]
        invert: bool,
    },
}

fn ten() -> u32 {
    10
}

/// What a folder holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Listing {
    /// By path.
    pub entries: Vec<Entry>,
    /// There were more than are told.
    #[serde(default)]
    pub cut: bool,
}

/// A file or a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// Relative to the folder that was asked about.
    pub path: String,
    /// It is a folder.
    #[serde(default)]
    pub folder: bool,
    /// Its length.
    #[serde(default)]
    pub bytes: u64,
    /// When it was last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<crate::Stamp>,
}

/// A piece of a file. Bytes that are not UTF-8 are shown as U+FFFD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Text {
    /// The text.
    pub text: String,
    /// Its first byte's place in the file.
    pub offset: u64,
    /// The byte after its last: where to go on.
    pub end: u64,
    /// The file's length.
    pub bytes: u64,
    /// The limit cut it.
    #[serde(default)]
    pub cut: bool,
}

/// Lines that fit a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Matches {
    /// In order.
    pub lines: Vec<Match>,
    /// There are more than are told.
    #[serde(default)]
    pub cut: bool,
}

/// A line that fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Match {
    /// The file.
    pub path: String,
    /// Its number, counted from 1.
    pub line: u64,
    /// The line, cut when it is very long.
    pub text: String,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogSettings {
    /// The level or mode in force.
    pub level: String,
}

/// What a node has, does and runs on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// The version of its binary.
    pub version: String,
    /// When it started.
    pub started: crate::Stamp,
    /// Jobs in hand, with what each does.
    #[serde(default)]
    pub jobs: std::collections::BTreeMap<String, String>,
    /// What it has, and how much of it is free.
    #[serde(default)]
    pub resources: std::collections::BTreeMap<String, crate::site::Amount>,
    /// The machine: system, cores, memory, environments.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub environment: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_one_flat_object() {
        let ask = Ask::Files {
            job: Some("job-1".into()),
            op: FileOp::Tail {
                path: "log.txt".into(),
                lines: 5,
            },
        };
        let written = serde_json::to_value(&ask).unwrap();
        assert_eq!(
            written,
            serde_json::json!({"what": "files", "job": "job-1", "op": "tail", "path": "log.txt", "lines": 5})
        );
        assert_eq!(serde_json::from_value::<Ask>(written).unwrap(), ask);
    }
}
