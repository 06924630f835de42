//! Which tensors a filter is for.

use firesteel_tensor::{ModelHeader, TensorInfo};
use regex::RegexSet;

/// Tensors whose names match a pattern of `include` (all, when there is none) and
/// none of `exclude`. A pattern may match anywhere in a name. A tensor with
/// several names is picked by any of them, and left out by any of them.
#[derive(Debug, Clone, Default)]
pub struct Pick {
    include: Option<RegexSet>,
    exclude: RegexSet,
}

impl Pick {
    /// Every tensor.
    pub fn all() -> Self {
        Self::default()
    }

    /// Compiles patterns; no `include` is every tensor.
    ///
    /// # Errors
    /// [`PatternError`] names the first that is not a regular expression.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, PatternError> {
        let include = match include {
            [] => None,
            some => Some(compile(some)?),
        };
        let exclude = compile(exclude)?;
        Ok(Self { include, exclude })
    }

    /// Whether a name is picked.
    pub fn contains(&self, name: &str) -> bool {
        let included = self.include.as_ref().is_none_or(|set| set.is_match(name));
        included && !self.exclude.is_match(name)
    }

    /// Whether a tensor is picked, by its name or by an alias of it.
    pub fn picks(&self, header: &ModelHeader, tensor: &TensorInfo) -> bool {
        let aliases = header.aliases().iter();
        let names = aliases.filter(|(_, name)| *name == tensor.name);
        let names = names.map(|(alias, _)| &**alias).chain([&*tensor.name]);
        let mut included = false;
        for name in names {
            if self.exclude.is_match(name) {
                return false;
            }
            included |= self.include.as_ref().is_none_or(|set| set.is_match(name));
        }
        included
    }
}

fn compile(patterns: &[String]) -> Result<RegexSet, PatternError> {
    for pattern in patterns {
        regex::Regex::new(pattern).map_err(|source| PatternError {
            pattern: pattern.clone(),
            source: Box::new(source),
        })?;
    }
    RegexSet::new(patterns).map_err(|source| PatternError {
        pattern: patterns.join("|"),
        source: Box::new(source),
    })
}

/// A pattern that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{pattern}` is not a regular expression")]
pub struct PatternError {
    /// The pattern as given.
    pub pattern: String,
    /// What is wrong with it.
    #[source]
    pub source: Box<regex::Error>,
}
