//! What a job asks of the sites that run it, and what is noted on it.

use std::collections::BTreeMap;

use firesteel_base::limits;
use serde::{Deserialize, Serialize};

use super::{JobSpec, SiteSettings, SpecError};

/// What a site sets aside for a job while it runs there; zero asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// GPUs, each of them for this job alone.
    pub gpus: u32,
    /// Memory that each GPU has at least, in GiB.
    pub mem_per_gpu_gib: u32,
    /// Cores.
    pub cpus: u32,
    /// Memory, in GiB.
    pub memory_gib: u32,
    /// What the site's owner has named and counted: licenses, scanners.
    pub custom: BTreeMap<String, u64>,
}

impl Resources {
    /// Whether nothing is asked for.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    fn check(&self, field: &str) -> Result<(), SpecError> {
        if self.mem_per_gpu_gib > 0 && self.gpus == 0 {
            return Err(SpecError::new(
                format!("{field}.mem_per_gpu_gib"),
                format!("is {}, but `{field}.gpus` is 0", self.mem_per_gpu_gib),
            )
            .hint("say how many GPUs the job needs"));
        }
        for name in self.custom.keys() {
            check_word(&format!("{field}.custom"), name)?;
        }
        at_most(&format!("{field}.custom"), self.custom.len())
    }
}

/// What a relay may do with what passes through it. One mode holds for the whole
/// job; sites see it, and may refuse it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hierarchy {
    /// Nothing: it passes on bytes that it cannot read.
    #[default]
    Splice,
    /// It keeps models that are handed out, so that they come down to it once.
    Cache,
    /// It is a party to the job, and sends up the sum of the sites below it.
    Aggregate,
}

impl Hierarchy {
    /// The word in a spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Splice => "splice",
            Self::Cache => "cache",
            Self::Aggregate => "aggregate",
        }
    }

    pub(super) fn is_splice(&self) -> bool {
        *self == Self::Splice
    }
}

impl JobSpec {
    /// What the job needs at a site: the site's own settings, else the job's.
    pub fn resources_at(&self, site: &str) -> &Resources {
        self.site
            .get(site)
            .and_then(|settings| settings.resources.as_ref())
            .unwrap_or(&self.resources)
    }

    /// The environment that the job asks for at a site, by the name it has there.
    pub fn env_at(&self, site: &str) -> Option<&str> {
        self.site
            .get(site)
            .and_then(|settings| settings.environment.as_deref())
            .or(self.env.as_deref())
    }

    pub(super) fn check_needs(&self) -> Result<(), SpecError> {
        if let Some(name) = &self.env {
            check_word("env", name)?;
        }
        self.resources.check("resources")?;
        for (site, settings) in &self.site {
            let SiteSettings {
                environment,
                resources,
                ..
            } = settings;
            if let Some(name) = environment {
                check_word(&format!("site_config.{site}.environment"), name)?;
            }
            if let Some(resources) = resources {
                resources.check(&format!("site_config.{site}.resources"))?;
            }
        }
        at_most("meta", self.meta.len())?;
        for (key, value) in &self.meta {
            check_word("meta", key)?;
            if value.len() > limits::META_NOTE {
                return Err(SpecError::new(
                    format!("meta.{key}"),
                    format!(
                        "has {} bytes, the limit is {}",
                        value.len(),
                        limits::META_NOTE
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// A name that stands in lists, settings and logs.
fn check_word(field: &str, word: &str) -> Result<(), SpecError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if word.len() <= limits::NAME_LENGTH
        && word.starts_with(|c: char| c.is_ascii_alphanumeric())
        && word.chars().all(good)
    {
        return Ok(());
    }
    let shown: String = word.chars().take(limits::NAME_LENGTH).collect();
    Err(SpecError::new(
        field,
        format!(
            "has the name {shown:?}, expected 1 to {} letters, digits, `.`, `_` and `-`, the first a letter or a digit",
            limits::NAME_LENGTH
        ),
    ))
}

fn at_most(field: &str, entries: usize) -> Result<(), SpecError> {
    if entries <= limits::META_NOTES {
        return Ok(());
    }
    Err(SpecError::new(
        field,
        format!("has {entries} entries, the limit is {}", limits::META_NOTES),
    ))
}
