//! Logs: text that grows.

use serde::{Deserialize, Serialize};

/// The header of an answer that says where to go on.
pub const NEXT: &str = "firesteel-log-next";
/// The header of an answer after which nothing comes.
pub const ENDED: &str = "firesteel-log-ended";

/// Which piece of a log is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// What `firesteel-log-next` of the answer before said; absent: from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Without `after`: the last so many lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
    /// Seconds to wait for something when there is nothing yet, at most 30.
    pub wait: u32,
}
