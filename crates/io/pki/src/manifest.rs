//! `manifest.json`: the digests of a kit's signed files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The name of the list, and of the signature over it.
pub(crate) const LIST: &str = "manifest.json";
pub(crate) const SIGNATURE: &str = "manifest.sig";

/// The version that is written, and the only one read.
pub(crate) const VERSION: u32 = 1;

/// The digests of a kit's signed files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// 1.
    pub version: u32,
    /// The federation.
    pub project: String,
    /// The node.
    pub name: String,
    /// When it was made, RFC 3339.
    pub made: String,
    /// SHA-256 by file name, lower-case hexadecimal. The key is not among them,
    /// as it may be made where nobody else ever sees it, and the owner's file is
    /// not, as it is theirs.
    pub files: BTreeMap<String, String>,
}
