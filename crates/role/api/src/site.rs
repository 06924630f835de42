//! Sites.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::Stamp;

/// Whether a site is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SiteState {
    /// Connected.
    Connected,
    /// Was connected and is expected back: its lease runs.
    Away,
    /// Gone: its lease has ended.
    Gone,
}

impl SiteState {
    /// The word as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Away => "away",
            Self::Gone => "gone",
        }
    }
}

impl std::fmt::Display for SiteState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A site as the server knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SiteInfo {
    /// Its name.
    pub name: String,
    /// Its organization.
    pub org: String,
    /// Whether it is there.
    pub state: SiteState,
    /// When it connected last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected_since: Option<Stamp>,
    /// When something was last heard of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heard: Option<Stamp>,
    /// Where it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The relay it comes through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// The version of its binary.
    #[serde(default)]
    pub version: String,
    /// The last round trip to it, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_ms: Option<f64>,
    /// Jobs that it has in hand.
    #[serde(default)]
    pub jobs: Vec<String>,
    /// What it has, and how much of it is free, by name: `gpus`, `cpus`,
    /// `memory_gib` and the site's own.
    #[serde(default)]
    pub resources: BTreeMap<String, Amount>,
    /// What it says of itself beyond that: environments, data, settings.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub facts: Value,
}

/// How much of something there is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Amount {
    /// In all.
    pub total: f64,
    /// Not in use.
    pub free: f64,
}

/// A list of sites.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sites {
    /// By name.
    pub sites: Vec<SiteInfo>,
}
