//! A moment as the interface writes it.

use std::fmt;
use std::time::SystemTime;

use firesteel_base::Moment;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A moment in UTC as RFC 3339 writes it, `2026-11-22T12:00:00.123456Z`. All are
/// of one length, so that they sort as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, format = DateTime, example = "2026-11-22T12:00:00.123456Z")]
pub struct Stamp(String);

impl Stamp {
    /// The moment `at`.
    pub fn of(at: SystemTime) -> Self {
        Self(Moment::of(at).rfc3339())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
