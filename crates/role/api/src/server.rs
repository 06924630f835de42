//! The server itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Stamp;

/// How the server is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// The project it serves.
    pub project: String,
    /// The version of its binary.
    pub version: String,
    /// When it started.
    pub started: Stamp,
    /// Sites that are connected.
    pub sites_connected: u64,
    /// Sites that it knows.
    pub sites_known: u64,
}
