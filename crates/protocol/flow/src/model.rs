//! Models and updates as a workflow sees them: names for things it never opens.

use std::fmt;

/// A model or an update that the driver holds.
///
/// The driver makes the number and never gives it to anything else within the
/// job, a restart included; to the workflow it only is equal or different.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelHandle(pub u64);

impl fmt::Display for ModelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}", self.0)
    }
}

/// Whether the params of an update are a whole model or what is to be added to
/// the model that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParamsType {
    /// A whole model (FLARE's `FULL`).
    Full,
    /// The difference to the model that was handed out (FLARE's `DIFF`).
    Diff,
}

impl ParamsType {
    /// The word of the Client API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Diff => "DIFF",
        }
    }
}

impl fmt::Display for ParamsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// As what a model is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModelRole {
    /// The model that the job started from.
    Initial,
    /// The newest global model.
    Latest,
    /// The model with the best key metric so far.
    Best,
}

impl ModelRole {
    /// The word used in file names and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Latest => "latest",
            Self::Best => "best",
        }
    }
}

impl fmt::Display for ModelRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
