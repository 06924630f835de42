//! How trouble is told.

use std::error::Error;
use std::fmt;

use firesteel_base::Hint;

/// What failed, why, and what to do.
#[derive(Debug)]
pub(crate) struct Trouble {
    what: String,
    causes: Vec<String>,
    hint: Option<String>,
}

impl Trouble {
    /// An error of a lower floor.
    pub(crate) fn of(error: &(impl Error + Hint)) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        Self {
            what: error.to_string(),
            causes,
            hint: error.hint(),
        }
    }

    pub(crate) fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            causes: Vec::new(),
            hint: Some(hint.into()),
        }
    }
}

impl Trouble {
    /// For a program that waits for an event.
    pub(crate) fn as_json(&self, event: &str) -> serde_json::Value {
        let mut message = self.what.clone();
        for cause in &self.causes {
            message.push_str(": ");
            message.push_str(cause);
        }
        serde_json::json!({"event": event, "message": message, "hint": self.hint})
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", self.what)?;
        for cause in &self.causes {
            writeln!(f, "  because: {cause}")?;
        }
        match &self.hint {
            Some(hint) => writeln!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}
